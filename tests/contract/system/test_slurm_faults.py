"""What goes wrong at a Slurm cluster, and the reaction that the table of faults (F-S*) asks for; over real sockets."""

import asyncio
import contextlib
import json
import stat
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from attrs import evolve
from tests.contract.system.ssh_world import TIMEOUTS, Login, simulated, slurm
from tests.contract.system.suite import PlansOfSleepers, SystemCase, a_spec, eventually, submitted

from moorage.adapters.ssh.slurm import SlurmSystem
from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    JobId,
    Observation,
    Phase,
    SessionSpec,
    Tag,
    tag_of,
)
from moorage.core.plan import ENDPOINT_NAME, SECRET_NAME, LaunchSecrets, Rendered, parse_plan, render
from moorage.core.secret import Secret
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unreachable
from moorage.ports.system import Handle, Load, Measured
from moorage.simulator.servers.ssh import Account, NodeConfig, Nodes, Partition, Running, Timing

QUICK = evolve(TIMEOUTS, call_s=2, submit_s=2, connect_s=2)
Node = tuple[Running, Login]


@pytest.fixture
def node() -> Iterator[Node]:
    partitions = (Partition("batch", preempt="CANCEL", grace_s=0.2), Partition("urgent", priority=9))
    config = NodeConfig(
        accounts=(Account("alice"),), nodes=Nodes(2, cores=1), timing=Timing.fast(), partitions=partitions
    )
    with simulated(config) as made:
        yield made


@pytest.fixture
async def system(node: Node) -> AsyncIterator[SlurmSystem]:
    async with slurm(node[1], QUICK) as made:
        yield made


@pytest.fixture
def case(system: SlurmSystem) -> SystemCase:
    return SystemCase(system=system)


async def observed(case: SystemCase, job: Handle) -> Observation | None:
    return (await case.system.observe([job])).get(job.job)


async def becomes(case: SystemCase, job: Handle, *kinds: type, **fields: Any) -> Any:
    """The first observation of such a kind whose fields are like that."""

    def fits(said: object) -> bool:
        return isinstance(said, kinds) and all(getattr(said, name) == value for name, value in fields.items())

    return await eventually(case, lambda: observed(case, job), fits)


class RequeuedPlans(PlansOfSleepers):
    """Launch plans of jobs that may run again."""

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        plan = parse_plan((await super().rendered(tag, spec)).plan)
        return render(evolve(plan, requeue=True), LaunchSecrets(Secret("5e" * 32)))


# The scheduler -----------------------------------------------------------------------------------------------


async def test_s1_a_full_cluster_leaves_a_job_in_the_queue_and_says_why(node: Node, case: SystemCase) -> None:
    async with submitted(case, evolve(a_spec(case), nodes=2)) as first:
        await becomes(case, first, Alive, phase=Phase.RUNNING)
        async with submitted(case) as second:
            await becomes(
                case, second, Alive, phase=Phase.PENDING, node=None, note="PENDING: the job waits for nodes (Resources)"
            )


async def test_s2_a_requeued_job_is_the_same_job_with_another_launcher(node: Node) -> None:
    """Same id, alive all the time; the launcher's report is a new one."""

    async def nonce() -> str:
        text = await case.system.read(job, ENDPOINT_NAME)
        return str(json.loads(text)["nonce"]) if text else ""

    async with slurm(node[1], QUICK, RequeuedPlans()) as system:
        case = SystemCase(system=system)
        async with submitted(case) as job:
            before = await eventually(case, nonce, bool)
            number = int(job.job)
            assert node[0].cluster.call(lambda batch, now: batch.requeue(number, now))
            assert isinstance(await observed(case, job), Alive)
            after = await eventually(case, nonce, lambda said: said not in ("", before))
            assert after != before
            assert isinstance(await observed(case, job), Alive)


async def test_s3_preemption_is_told_as_such(node: Node, case: SystemCase) -> None:
    spec = evolve(a_spec(case), nodes=2)
    async with submitted(case, spec) as job:
        await becomes(case, job, Alive, phase=Phase.RUNNING)
        async with submitted(case, evolve(a_spec(case), nodes=2, partition="urgent")) as urgent:
            await becomes(case, urgent, Alive, phase=Phase.RUNNING)
            await becomes(case, job, Gone, reason=EndReason.PREEMPTED)


async def test_s4_a_failed_node_ends_its_job_and_a_hanging_one_does_not(node: Node, case: SystemCase) -> None:
    async with submitted(case) as hanging, submitted(case) as failing:
        await becomes(case, hanging, Alive, phase=Phase.RUNNING)
        said = await becomes(case, failing, Alive, phase=Phase.RUNNING)
        node[0].cluster.freeze(int(hanging.job))
        assert isinstance(await observed(case, hanging), Alive)
        node[0].cluster.freeze(int(hanging.job), False)
        node[0].cluster.call(lambda batch, now: batch.fail_node(said.node, now))
        await becomes(case, failing, Gone, reason=EndReason.NODE_FAILED)


async def test_s5_the_end_of_the_walltime_is_told_before_and_after(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S5", "delay_s": 1.5})
    async with submitted(case) as job:
        said = await becomes(case, job, Alive, phase=Phase.RUNNING)
        assert said.ends_at is not None
        await becomes(case, job, Gone, reason=EndReason.WALLTIME)


async def test_s6_a_job_that_configures_for_ever_runs_the_boot_clock_and_can_be_ended(
    node: Node, case: SystemCase
) -> None:
    node[0].faults.add({"fault": "F-S6"})
    async with submitted(case) as job:
        said = await becomes(case, job, Alive, phase=Phase.RUNNING)
        assert said.note == "CONFIGURING"
        await case.system.cancel(job)
        await becomes(case, job, Gone, reason=EndReason.CANCELLED)


async def test_s7_completing_is_neither_running_nor_over(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S7"})
    job = await _submit(case)
    await becomes(case, job, Alive, phase=Phase.RUNNING)
    for _ in range(3):
        said = await case.system.cancel(job)
        assert isinstance(said, Alive)
        assert said.phase is Phase.ENDING
        await asyncio.sleep(0.3)


@pytest.mark.parametrize("variant", ["connect", "timeout", "standby", "hang"])
async def test_s8_a_controller_that_does_not_answer_is_doubt(node: Node, case: SystemCase, variant: str) -> None:
    async with submitted(case) as job:
        node[0].faults.add({"fault": "F-S8", "variant": variant})
        for ask in (lambda: case.system.observe([job]), lambda: case.system.find(job.tag, job.owner)):
            with pytest.raises((Unreachable, Unanswered)):
                await ask()
        node[0].faults.clear()
        await becomes(case, job, Alive)


async def test_s8_a_controller_that_forgot_its_jobs_ends_none(node: Node, case: SystemCase) -> None:
    """Not listed is doubt; with accounting, the record says that it lives and the list is out of date."""
    async with submitted(case) as job:
        await becomes(case, job, Alive, phase=Phase.RUNNING)
        node[0].faults.add({"fault": "F-S8", "variant": "forget"})
        assert await observed(case, job) == Doubt(
            DoubtReason.STALE, "the accounting says that it lives, and squeue does not list it"
        )
        assert isinstance(await case.system.cancel(job), Doubt)
        (seen,) = await case.system.find(job.tag, job.owner)
        assert (seen.job, seen.alive) == (job.job, True)
        node[0].faults.clear()
        await becomes(case, job, Alive)


async def test_s8_a_submit_that_timed_out_is_looked_up_and_found_once(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S8", "variant": "submit-timeout"})
    await _lost_and_found(case, Unanswered)


async def test_s8_a_submit_that_did_not_reach_the_controller_leaves_nothing(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S8", "variant": "submit-connect"})
    spec = a_spec(case)
    with pytest.raises(Unreachable):
        await case.system.submit(tag_of(spec, 1), spec)
    assert list((node[0].homes / "alice" / ".moorage").iterdir()) == []


async def test_s9_a_number_that_is_used_again_is_another_job(case: SystemCase) -> None:
    """The job that has our number now is neither observed as ours nor cancelled."""
    async with submitted(case) as theirs:
        await becomes(case, theirs, Alive, phase=Phase.RUNNING)
        old = Handle(theirs.owner, tag_of(a_spec(case), 1), theirs.job)
        said = await observed(case, old)
        assert isinstance(said, Doubt)
        assert said.reason is DoubtReason.NOT_LISTED
        assert isinstance(await case.system.cancel(old), Doubt)
        assert isinstance(await observed(case, theirs), Alive)


@pytest.mark.parametrize(
    ("variant", "error", "jobs"),
    [("warning", Malformed, 1), ("silent", Malformed, 1), ("pretend", Malformed, 0), ("fail-after", Unanswered, 1)],
)
async def test_s10_an_odd_answer_of_sbatch_is_looked_up(
    node: Node, case: SystemCase, variant: str, error: type[PortError], jobs: int
) -> None:
    node[0].faults.add({"fault": "F-S10", "variant": variant, "times": 1})
    spec = a_spec(case)
    with pytest.raises(error):
        await case.system.submit(tag_of(spec, 1), spec)
    found = await case.system.find(tag_of(spec, 1), case.owner)
    assert len(found) == jobs
    for each in found:
        await case.system.cancel(Handle(case.owner, each.tag, each.job))


@pytest.mark.parametrize("variant", ["cut", "columns", "greeting"])
async def test_s11_a_listing_that_is_not_what_was_asked_for_is_no_evidence(
    node: Node, case: SystemCase, variant: str
) -> None:
    async with submitted(case) as job:
        node[0].faults.add({"fault": "F-S11", "variant": variant})
        with contextlib.suppress(Malformed):
            assert not isinstance(await observed(case, job), Gone)
        with pytest.raises(Malformed):
            await case.system.find(job.tag, job.owner)
        node[0].faults.clear()
        await becomes(case, job, Alive)


async def test_s11_a_listing_that_is_minutes_old_shows_a_new_job_as_not_listed(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S11", "variant": "late"})
    async with submitted(case) as job:
        assert isinstance(await observed(case, job), Doubt)


async def test_s12_an_end_in_the_accounting_counts_when_the_queue_does_not_list_the_job(
    node: Node, case: SystemCase
) -> None:
    async with submitted(case) as job:
        await becomes(case, job, Alive, phase=Phase.RUNNING)
        await case.system.cancel(job)
        await becomes(case, job, Gone)
        node[0].faults.add({"fault": "F-S12", "variant": "queue"})
        said = await observed(case, job)
        assert isinstance(said, Gone)
        assert said.reason is EndReason.CANCELLED
        assert said.exit_code is not None


async def test_s12_a_life_in_the_queue_counts_whatever_the_accounting_says(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S12", "variant": "accounting"})
    async with submitted(case) as job:
        assert isinstance(await observed(case, job), Alive)


async def test_s13_a_held_job_says_so(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S13"})
    async with submitted(case) as job:
        said = await becomes(case, job, Alive)
        assert said.note == "PENDING: the job is held by its owner (JobHeldUser)"


async def test_s14_arrays_and_odd_ids_are_never_taken_for_ours(case: SystemCase) -> None:
    for number in ("7_1", "7_[1-3]", "7+0", "7;cluster", "-7", "seven", "$(id)"):
        job = Handle(case.owner, tag_of(a_spec(case), 1), JobId(number))
        assert isinstance(await observed(case, job), Doubt | None)
        assert isinstance(await case.system.cancel(job), Doubt)


async def test_s15_a_job_that_cannot_hear_is_killed_in_bounded_time(node: Node, case: SystemCase) -> None:
    node[0].faults.add({"fault": "F-S15"})
    async with submitted(case) as job:
        await becomes(case, job, Alive, phase=Phase.RUNNING)
        await case.system.cancel(job)
        await becomes(case, job, Gone, reason=EndReason.CANCELLED)


async def test_a_cancel_that_changed_nothing_is_followed_by_a_kill(node: Node, case: SystemCase) -> None:
    """scancel ends with 0 and the job goes on running: it is not asked a second time."""
    async with submitted(case) as job:
        await becomes(case, job, Alive, phase=Phase.RUNNING)
        node[0].faults.add({"do": "pretend", "on": ["scancel"], "times": 1})
        said = await case.system.cancel(job)
        assert isinstance(said, Gone) or (isinstance(said, Alive) and said.phase is Phase.ENDING)
        assert node[0].counted["scancel"] == 2


# What is refused, what is left, what is asked -----------------------------------------------------------------


async def test_what_sbatch_refuses_is_refused_and_leaves_nothing(node: Node, case: SystemCase) -> None:
    for wrong in ({"partition": "nosuch"}, {"nodes": 99}, {"walltime_s": 31_000_000}):
        spec = evolve(a_spec(case), **wrong)
        with pytest.raises(Refused):
            await case.system.submit(tag_of(spec, 1), spec)
    assert list((node[0].homes / "alice" / ".moorage").iterdir()) == []


async def test_one_squeue_tells_about_all_jobs(node: Node, case: SystemCase) -> None:
    handles = [await _submit(case) for _ in range(6)]
    before = dict(node[0].counted)
    said = await case.system.observe(handles)
    assert len(said) == 6
    assert node[0].counted["squeue"] - before.get("squeue", 0) == 1
    assert node[0].counted.get("sacct", 0) == before.get("sacct", 0)
    assert node[0].counted["logins"] == 1
    for job in handles:
        await case.system.cancel(job)


async def test_without_accounting_sacct_is_asked_once(case: SystemCase) -> None:
    config = NodeConfig(accounts=(Account("alice"),), timing=Timing.fast(), accounting=False)
    with simulated(config) as (running, login):
        async with slurm(login) as system:
            job = Handle(case.owner, tag_of(a_spec(case), 1), JobId("99"))
            for _ in range(3):
                said = await system.observe([job])
                assert said == {job.job: Doubt(DoubtReason.NOT_LISTED, "squeue does not list the job")}
            assert running.counted["sacct"] == 1


async def test_secrets_are_in_one_private_file(node: Node, case: SystemCase) -> None:
    async with submitted(case) as job:
        directory = node[0].homes / "alice" / ".moorage" / job.tag
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert stat.S_IMODE(directory.parent.stat().st_mode) == 0o700
        assert (
            stat.S_IMODE((directory / SECRET_NAME).stat().st_mode) == 0o600
            if (directory / SECRET_NAME).exists()
            else True
        )
        secret = "5e" * 32  # the gate secret of these plans
        told = node[0].cluster.call(lambda batch, now: repr(batch.jobs()))
        assert secret not in told
        for path in directory.iterdir():
            if path.is_file() and path.name != SECRET_NAME:
                assert secret.encode() not in path.read_bytes()


async def test_removing_takes_attempts_that_never_had_a_job_with_it(node: Node, case: SystemCase) -> None:
    spec = a_spec(case)
    node[0].faults.add({"fault": "F-S10", "variant": "pretend", "times": 1})
    with pytest.raises(Malformed):
        await case.system.submit(tag_of(spec, 1), spec)
    async with submitted(case, spec, attempt=2):
        assert (node[0].homes / "alice" / ".moorage" / tag_of(spec, 1)).is_dir()
    assert list((node[0].homes / "alice" / ".moorage").iterdir()) == []


async def test_the_form_is_told_what_there_is_and_when_it_was_asked(case: SystemCase) -> None:
    assert isinstance(case.system, SlurmSystem)
    info = await case.system.info(case.owner)
    assert [(each.name, each.nodes, each.idle, each.cores) for each in info.partitions] == [
        ("batch", 2, 2, 1),
        ("urgent", 2, 2, 1),
    ]
    assert [each.account for each in info.associations] == ["project"]
    assert info.age_s(info.at) == 0
    assert isinstance(case.system, Measured)
    assert await case.system.load(case.owner) == {"batch": Load(2, 2), "urgent": Load(2, 2)}


async def _submit(case: SystemCase) -> Handle:
    spec = a_spec(case)
    return Handle(case.owner, tag_of(spec, 1), await case.system.submit(tag_of(spec, 1), spec))


async def _lost_and_found(case: SystemCase, error: type[PortError]) -> None:
    spec = a_spec(case)
    with pytest.raises(error):
        await case.system.submit(tag_of(spec, 1), spec)
    (seen,) = await case.system.find(tag_of(spec, 1), case.owner)
    job = Handle(case.owner, seen.tag, seen.job)
    await case.system.cancel(job)
    await becomes(case, job, Gone)
    await case.system.remove(job)
