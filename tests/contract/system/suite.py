"""
What every `System` promises (`moorage.ports.system`), as tests over a fixture `system_case`.

A test module provides the fixture and takes the tests with `from tests.contract.system.suite import *`. The jobs are
real launch plans: where jobs really run, it is moorage's launcher that runs, waiting at its gate until it is told to
end or cancelled.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from attrs import evolve, field, frozen

from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    Instant,
    JobId,
    Observation,
    Owner,
    Phase,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
    Tag,
    deployment_tag,
    parse_tag,
    tag_of,
)
from moorage.core.plan import (
    ENDPOINT_NAME,
    GatePort,
    LaunchLimits,
    LaunchPlan,
    LaunchSecrets,
    Rendered,
    Resources,
    render,
)
from moorage.core.secret import Secret
from moorage.ports.errors import Unanswered
from moorage.ports.system import Handle, System

__all__ = [
    "GATE_SECRET",
    "PlansOfSleepers",
    "SystemCase",
    "a_spec",
    "eventually",
    "submitted",
    "test_a_cancelled_job_is_gone_and_stays_gone",
    "test_a_job_is_found_by_the_tag_of_its_attempt",
    "test_a_job_nobody_knows_is_never_called_alive_and_spoils_no_other",
    "test_a_life_from_submit_to_remove",
    "test_a_lost_answer_is_healed_by_a_lookup",
    "test_a_tag_that_nobody_used_is_absent",
    "test_accounts_are_told_without_io",
    "test_attempts_of_one_session_are_told_apart",
    "test_every_job_of_the_deployment_is_found_by_the_beginning_of_its_tag",
    "test_many_jobs_are_observed_at_once",
    "test_removing_again_is_harmless",
    "test_the_launchers_report_can_be_read",
]

GATE_SECRET = Secret("5e" * 32)
_numbers = itertools.count(int(time.time()) % 1_000_000 * 1000)
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


async def _breathe() -> None:
    await asyncio.sleep(0.02)


@frozen(kw_only=True)
class SystemCase:
    """
    A system under test and what its world can do.

    Args:
        system: Made with plans like `PlansOfSleepers`.
        pause: Let a little of the world's time pass.
        patience: So often `pause` is called before a test gives up.
        runs_jobs: Jobs really run moorage's launcher, so its report can be read.
        lose_answer: A context in which the next submit takes effect and its answer does not arrive; `None` if the
            world cannot do that.
        horizon_pauses: So often `pause` until a created job is visible in lookups.
        partition: Where jobs go; "" for the system's default.
    """

    system: System
    pause: Callable[[], Awaitable[None]] = _breathe
    patience: int = 500
    runs_jobs: bool = True
    lose_answer: Callable[[], AbstractAsyncContextManager[None]] | None = None
    horizon_pauses: int = 0
    owner: Owner = field(default=Owner("alice"))
    deployment: str = "suite"
    partition: str = ""
    options: tuple[tuple[str, str], ...] = field(default=())


def a_spec(case: SystemCase) -> SessionSpec:
    """A session that nobody has had before."""
    number, letters = next(_numbers), ""
    for _ in range(26):
        number, digit = divmod(number, 32)
        letters += _BASE32[digit]
    return SessionSpec(
        id=SessionId(letters[::-1]),
        key=SessionKey("hub", case.owner),
        system=SystemName("here"),
        asked_at=Instant(0),
        seed=0,
        deployment=case.deployment,
        partition=case.partition,
        walltime_s=600,
        options=case.options,
    )


@frozen
class PlansOfSleepers:
    """Launch plans whose lab is never admitted: the launcher waits at its gate. Implements the port `Plans`."""

    admission_s: int = 600
    command: tuple[str, ...] = ("/bin/sleep", "600", "{socket}")
    gate: GatePort = field(factory=GatePort)

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        parsed = parse_tag(tag)
        assert parsed is not None
        plan = LaunchPlan(
            tag=tag,
            attempt=parsed[1],
            owner=spec.key.owner,
            command=self.command,
            walltime_s=spec.walltime_s,
            resources=Resources(nodes=spec.nodes, partition=spec.partition),
            gate=self.gate,
            limits=LaunchLimits(admission_s=self.admission_s, status_s=1),
        )
        return render(plan, LaunchSecrets(GATE_SECRET))


async def eventually(case: SystemCase, ask: Callable[[], Awaitable[object]], true: Callable[[object], bool]) -> object:
    """Ask until the answer is as wanted; fails with the last answer."""
    said: object = None
    for _ in range(case.patience):
        said = await ask()
        if true(said):
            return said
        await case.pause()
    pytest.fail(f"it never came true; the last answer was {said!r}")


@contextlib.asynccontextmanager
async def submitted(case: SystemCase, spec: SessionSpec | None = None, attempt: int = 1) -> AsyncIterator[Handle]:
    """A job, visible in lookups; afterwards it is cancelled and its files are removed."""
    spec = spec or a_spec(case)
    job = Handle(case.owner, tag_of(spec, attempt), await case.system.submit(tag_of(spec, attempt), spec))
    for _ in range(case.horizon_pauses):
        await case.pause()
    try:
        yield job
    finally:
        await case.system.cancel(job)
        await case.system.remove(job)


async def _observed(case: SystemCase, job: Handle) -> Observation | None:
    return (await case.system.observe([job])).get(job.job)


def _runs(said: object) -> bool:
    return isinstance(said, Alive) and said.phase is Phase.RUNNING


# The normal day ----------------------------------------------------------------------------------------------


async def test_a_life_from_submit_to_remove(system_case: SystemCase) -> None:
    """Submitted, it is alive; cancelled, it is gone; removed, nothing of its files is left."""
    case, spec = system_case, a_spec(system_case)
    tag = tag_of(spec, 1)
    job = Handle(case.owner, tag, await case.system.submit(tag, spec))
    said = await eventually(case, lambda: _observed(case, job), lambda said: isinstance(said, Alive))
    assert isinstance(said, Alive)
    assert isinstance(await case.system.cancel(job), Alive | Gone)
    gone = await eventually(case, lambda: _observed(case, job), lambda said: isinstance(said, Gone))
    assert isinstance(gone, Gone)
    assert gone.reason in (EndReason.CANCELLED, EndReason.FAILED)
    await case.system.remove(job)
    assert await case.system.read(job, ENDPOINT_NAME) is None


async def test_the_launchers_report_can_be_read(system_case: SystemCase) -> None:
    if not system_case.runs_jobs:
        pytest.skip("jobs of this system run nothing")
    async with submitted(system_case) as job:
        system = system_case.system
        # Before a job runs, some systems have no directory for it yet.
        await eventually(system_case, lambda: _observed(system_case, job), _runs)
        assert await system.read(job, "no-such-file.json") is None
        text = await eventually(system_case, lambda: system.read(job, ENDPOINT_NAME), bool)
        assert isinstance(text, bytes)
        assert json.loads(text)["tag"] == job.tag
        assert await system.read(job, ENDPOINT_NAME, limit=7) == text[-7:]


async def test_a_cancelled_job_is_gone_and_stays_gone(system_case: SystemCase) -> None:
    """Cancelling again is harmless, while it ends and after it has."""
    async with submitted(system_case) as job:
        for _ in range(2):
            assert isinstance(await system_case.system.cancel(job), Alive | Gone)

        async def again() -> Observation:
            return await system_case.system.cancel(job)

        gone = await eventually(system_case, again, lambda said: isinstance(said, Gone))
        assert isinstance(gone, Gone)
        assert isinstance(await _observed(system_case, job), Gone)


async def test_removing_again_is_harmless(system_case: SystemCase) -> None:
    async with submitted(system_case) as job:
        await system_case.system.cancel(job)
        await eventually(system_case, lambda: _observed(system_case, job), lambda said: isinstance(said, Gone))
        await system_case.system.remove(job)
        await system_case.system.remove(job)


# Lookups -----------------------------------------------------------------------------------------------------


async def test_a_job_is_found_by_the_tag_of_its_attempt(system_case: SystemCase) -> None:
    async with submitted(system_case) as job:
        (sighting,) = await system_case.system.find(job.tag, job.owner)
        assert (sighting.job, sighting.tag, sighting.alive) == (job.job, job.tag, True)


async def test_attempts_of_one_session_are_told_apart(system_case: SystemCase) -> None:
    spec = a_spec(system_case)
    async with submitted(system_case, spec, 1) as first, submitted(system_case, spec, 2) as second:
        assert [seen.job for seen in await system_case.system.find(first.tag, first.owner)] == [first.job]
        assert [seen.job for seen in await system_case.system.find(second.tag, second.owner)] == [second.job]
        both = await system_case.system.find(Tag(first.tag[:-4]), first.owner)
        assert {(seen.job, seen.tag) for seen in both} == {(first.job, first.tag), (second.job, second.tag)}


async def test_every_job_of_the_deployment_is_found_by_the_beginning_of_its_tag(system_case: SystemCase) -> None:
    """The sweep asks like this; jobs of other deployments are none of its business."""
    other = evolve(a_spec(system_case), deployment="other")
    async with submitted(system_case) as mine, submitted(system_case, other) as theirs:
        seen = await system_case.system.find(deployment_tag(system_case.deployment), mine.owner)
        assert (mine.job, mine.tag) in {(each.job, each.tag) for each in seen}
        assert theirs.job not in {each.job for each in seen}


async def test_a_tag_that_nobody_used_is_absent(system_case: SystemCase) -> None:
    assert await system_case.system.find(tag_of(a_spec(system_case), 1), system_case.owner) == ()


async def test_a_lost_answer_is_healed_by_a_lookup(system_case: SystemCase) -> None:
    """The submit says that it may have happened, and the lookup tells that it has: once."""
    if system_case.lose_answer is None:
        pytest.skip("this world loses no answers")
    spec = a_spec(system_case)
    tag = tag_of(spec, 1)
    async with system_case.lose_answer():
        with pytest.raises(Unanswered):
            await system_case.system.submit(tag, spec)
    found = await eventually(system_case, lambda: system_case.system.find(tag, system_case.owner), bool)
    assert isinstance(found, tuple)
    (sighting,) = found
    job = Handle(system_case.owner, tag, sighting.job)
    await system_case.system.cancel(job)
    await system_case.system.remove(job)


# Observing ---------------------------------------------------------------------------------------------------


async def test_many_jobs_are_observed_at_once(system_case: SystemCase) -> None:
    async with contextlib.AsyncExitStack() as stack:
        jobs = [await stack.enter_async_context(submitted(system_case)) for _ in range(5)]
        said = await system_case.system.observe(jobs)
        assert set(said) <= {job.job for job in jobs}

        async def all_alive() -> bool:
            said = await system_case.system.observe(jobs)
            return [job.job for job in jobs if isinstance(said.get(job.job), Alive)] == [job.job for job in jobs]

        assert await eventually(system_case, all_alive, bool)


async def test_a_job_nobody_knows_is_never_called_alive_and_spoils_no_other(system_case: SystemCase) -> None:
    async with submitted(system_case) as job:
        spec = a_spec(system_case)
        # One digit changed keeps the form that this system's ids have.
        last = "1" if job.job[-1] != "1" else "2"
        unknown = Handle(job.owner, tag_of(spec, 1), JobId(job.job[:-1] + last))

        async def alive_beside() -> bool:
            said = await system_case.system.observe([unknown, job])
            other = said.get(unknown.job)
            assert other is None or isinstance(other, Doubt | Gone)
            if isinstance(other, Doubt):
                assert other.reason is DoubtReason.NOT_LISTED
            return isinstance(said.get(job.job), Alive)

        assert await eventually(system_case, alive_beside, bool)


async def test_accounts_are_told_without_io(system_case: SystemCase) -> None:
    """The same person has the same account; it is a text, for grouping lookups."""
    account = system_case.system.account(system_case.owner)
    assert isinstance(account, str)
    assert account == system_case.system.account(system_case.owner)
