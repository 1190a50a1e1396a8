"""How jobs run: as real processes with everything they start, or only in the simulator's time."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from moorage.simulator.servers.unicore import (
    ManualClock,
    Outcome,
    Partition,
    Running,
    SiteConfig,
    Timing,
    serve,
)
from moorage.simulator.servers.unicore.access import Caller, Identity
from moorage.simulator.servers.unicore.jobs import Job

FAST = SiteConfig(timing=Timing.fast())


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    async with serve(FAST) as running:
        yield running


def _submit(running: Running, **description: Any) -> Job:
    """A job of the site's own user, without HTTP."""
    user = running.site.config.users[0]
    identity = Identity("CN=Demo User,O=UNICORE,C=EU", user, "PASSWORD_FILE")
    return running.site.submit(Caller(identity, None, identity.dn, "user", "demouser", "users", ()), description)


async def _until(condition: Any) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never became true")


def _text(job: Job, name: str = "stdout") -> str:
    path = job.directory / name if job.directory else None
    return path.read_text() if path and path.exists() else ""


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


TREE = """
trap '' TERM
(trap '' TERM; sleep 12345) &
echo $! > child
setsid bash -c 'echo $$ > daemon; exec sleep 12345' &
while [ ! -s daemon ]; do sleep 0.01; done
echo $$ > self
wait
"""


async def _tree(running: Running, **more: Any) -> tuple[Job, list[str]]:
    """A running job with a child that ignores TERM and one in a session of its own, and all three process ids."""
    job = _submit(running, Executable="bash tree.sh", Imports=[{"To": "tree.sh", "Data": TREE}], **more)
    await _until(lambda: _text(job, "self").strip() and _text(job, "child").strip())
    pids = [_text(job, name).strip() for name in ("self", "child", "daemon")]
    assert all(map(_alive, pids))
    return job, pids


@pytest.mark.parametrize("kind", ["batch", "on_login_node"])
async def test_an_abort_ends_the_whole_tree(running: Running, kind: str) -> None:
    job, pids = await _tree(running, **{"Job type": kind})
    running.site.processor.abort(job)
    await _until(lambda: job.done)
    assert (job.status, job.message) == ("FAILED", "Job aborted.")
    assert not any(map(_alive, pids))


async def test_a_delete_ends_the_whole_tree_and_the_directory(running: Running) -> None:
    job, pids = await _tree(running)
    running.site.delete_job(job)
    await _until(lambda: job.directory is not None and not job.directory.exists())
    assert not any(map(_alive, pids))


async def test_the_end_of_the_walltime_ends_the_whole_tree(running: Running) -> None:
    """And leaves no exit code, so the server notices late."""
    partition = evolve(FAST.partitions[0], resources={"Runtime": "1-10"})
    async with serve(evolve(FAST, partitions=(partition,))) as other:
        job, pids = await _tree(other, Resources={"Runtime": 1})
        await _until(lambda: job.batch_id and (other.site.batch.details(job.batch_id) or {})["JobState"] == "TIMEOUT")
        assert not any(map(_alive, pids))
        assert job.status == "RUNNING"
        await _until(lambda: job.done)
        assert job.exit_code is None
        assert job.message.startswith("Failed: Job did not complete normally on BSS")


async def test_what_a_batch_job_leaves_running_is_ended(running: Running) -> None:
    job = _submit(running, Executable="bash -c 'setsid sleep 12345 & echo $! > child'")
    await _until(lambda: job.done)
    assert job.status == "SUCCESSFUL"
    assert not _alive(_text(job, "child").strip())


async def test_closing_the_site_ends_every_job() -> None:
    async with serve(FAST) as running:
        _, pids = await _tree(running)
        directory = running.site.directory
    assert not any(map(_alive, pids))
    assert not os.access(directory, os.F_OK)


async def test_a_job_sees_its_own_environment_only(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_PLANTED", "secret")
    job = _submit(running, Executable="env", Environment={"MINE": "yes"})
    await _until(lambda: job.done)
    variables = dict(line.split("=", 1) for line in _text(job).splitlines() if "=" in line)
    assert "MOORAGE_PLANTED" not in variables
    assert variables["MINE"] == "yes"
    assert variables["USER"] == "demouser"
    assert variables["HOME"].endswith("/HOME/demouser")
    assert variables["UC_WORKING_DIRECTORY"] == f"{job.directory}/"
    assert (variables["UC_NODES"], variables["UC_RUNTIME"]) == ("1", "3600")


async def test_output_that_cannot_be_opened_is_a_job_that_did_not_complete(running: Running) -> None:
    job = _submit(running, Executable="true", Stdout="no/such/directory")
    await _until(lambda: job.done)
    assert job.message.startswith("Failed: Job did not complete normally on BSS")


async def test_a_script_that_cannot_be_started_on_the_login_node_fails(running: Running) -> None:
    job = _submit(running, Executable="true", Stdout="no/such/directory", **{"Job type": "interactive"})
    await _until(lambda: job.done)
    assert job.message.startswith("Processing failed: ")


async def test_jobs_wait_for_nodes_in_order() -> None:
    config = evolve(FAST, execute="virtual", partitions=(Partition(nodes=2, resources={"Nodes": "1-2"}),))
    async with serve(config, decide=lambda work: Outcome(0.2 if work.nodes == 2 else 0.0)) as running:
        wide = _submit(running, Executable="x", Resources={"Nodes": 2})
        await _until(lambda: wide.status == "RUNNING")
        narrow = [_submit(running, Executable="x") for _ in range(2)]
        await _until(lambda: all(job.batch_id for job in narrow))
        assert {job.status for job in narrow} == {"QUEUED"}
        await _until(lambda: all(job.done for job in narrow))
        assert wide.done


async def test_a_virtual_job_says_how_it_goes() -> None:
    async with serve(evolve(FAST, execute="virtual")) as running:
        said = {"SIM_RUNTIME_S": "0.05", "SIM_EXIT_CODE": "7", "SIM_STDOUT": "said"}
        job = _submit(running, Executable="never run", Environment=said)
        await _until(lambda: job.done)
        assert (job.exit_code, _text(job)) == (7, "said")


async def test_virtual_time_passes_only_when_it_is_moved() -> None:
    """A job of hours with the server's own delays, in no time."""
    clock = ManualClock()
    config = SiteConfig(execute="virtual", virtual_runtime_s=3 * 3600, timing=Timing.real())
    partition = evolve(config.partitions[0], default_runtime_s=86_400)
    async with serve(evolve(config, partitions=(partition,)), clock=clock) as running:
        job = _submit(running, Executable="x")
        await clock.advance(0.4)
        assert (job.status, job.directory) == ("READY", None)
        await clock.advance(30)
        assert job.status == "RUNNING"
        await clock.advance(2.5 * 3600)
        assert job.status == "RUNNING"
        await clock.advance(3600)
        assert job.status == "SUCCESSFUL"
        assert job.took["main"] == pytest.approx(3 * 3600, abs=20)


async def test_killed_jobs_are_noticed_after_the_servers_own_graces() -> None:
    clock = ManualClock()
    config = SiteConfig(execute="virtual", virtual_runtime_s=3600, timing=Timing.real())
    async with serve(config, clock=clock) as running:
        job = _submit(running, Executable="x")
        await clock.advance(30)
        assert job.batch_id is not None
        await running.site.batch.cancel(job.batch_id, "NODE_FAIL")
        await clock.advance(120)
        assert job.status == "RUNNING"
        await clock.advance(120)
        assert job.status == "FAILED"


async def test_a_refused_sbatch_is_tried_three_times(running: Running) -> None:
    running.site.batch.refuse_with = "sbatch: error: Batch job submission failed: Invalid account"
    job = _submit(running, Executable="true")
    await _until(lambda: job.done)
    assert "TSI_FAILED: Command 'sbatch ./bss_submit_XXXXXX' failed with code 1: sbatch: error:" in job.message
    assert sum("Submit attempt" in line for line in job.log) == 3


async def test_a_job_of_an_unlimited_log_stays_bounded(running: Running) -> None:
    """A restart writes lines for ever; the document does not grow for ever."""
    job = _submit(running, Executable="true")
    await _until(lambda: job.done)
    job.log.extend(["x"] * 3000)
    running.site.processor.restart(job)
    await _until(lambda: job.done)
    assert len(job.log) < 3100
