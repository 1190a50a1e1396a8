"""The adapter for a host without a batch system keeps the promises of a `System`, simulated and behind a real sshd."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from tests.contract.system.ssh_world import Login, host, simulated
from tests.contract.system.suite import *  # noqa: F403 (the suite's tests become tests of this module)
from tests.contract.system.suite import SystemCase, a_spec, eventually, submitted
from tests.servers import sshd

from moorage.core.model import Alive, EndReason, Gone, tag_of
from moorage.ports.errors import Unanswered
from moorage.ports.system import Handle

# A submit here is one command on one connection: its lost answers are among the faults of SSH, in test_ssh_faults.py.
del test_a_lost_answer_is_healed_by_a_lookup  # noqa: F821 (it comes with the suite)


@pytest.fixture(params=["simulated", "sshd"])
def login(request: pytest.FixtureRequest) -> Iterator[Login]:
    if request.param == "simulated":
        with simulated() as (_, made):
            yield made
        return
    try:
        sshd.require()
    except sshd.NotInstalled as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    with sshd.server() as running:
        yield Login(running.port, running.host_key, running.key_file, running.user)


@pytest.fixture
async def system_case(login: Login, tmp_path: Path) -> AsyncIterator[SystemCase]:
    async with host(login, directory=str(tmp_path / "jobs")) as system:
        yield SystemCase(system=system)


async def test_a_job_outlives_the_connection(system_case: SystemCase, login: Login, tmp_path: Path) -> None:
    """It is nobody's child: the login ends, and the next one finds it alive."""
    async with host(login, directory=str(tmp_path / "jobs")) as first:
        spec = a_spec(system_case)
        job = Handle(system_case.owner, tag_of(spec, 1), await first.submit(tag_of(spec, 1), spec))
    assert isinstance((await system_case.system.observe([job]))[job.job], Alive)
    await system_case.system.cancel(job)
    await _gone(system_case, job)
    await system_case.system.remove(job)


async def test_a_process_that_ignores_being_asked_is_killed(system_case: SystemCase) -> None:
    async with submitted(system_case) as job:
        # It belongs to the job by its environment, as kernels with a session of their own do.
        script = "trap '' TERM; while :; do sleep 0.05; done"
        environment = {"MOORAGE_JOB": job.tag, "PATH": os.environ["PATH"]}
        stubborn = await asyncio.create_subprocess_exec("/bin/bash", "-c", script, env=environment)
        await asyncio.sleep(0.1)
        assert isinstance(await system_case.system.cancel(job), Alive)
        await asyncio.sleep(1.1)  # the grace of this system, in the host's own time
        assert stubborn.returncode is None
        await system_case.system.cancel(job)
        await system_case.system.remove(job)
        assert await asyncio.wait_for(stubborn.wait(), 5) == -9


async def test_the_walltime_ends_a_job(system_case: SystemCase) -> None:
    async with submitted(system_case, evolve(a_spec(system_case), walltime_s=1)) as job:
        assert (await _gone(system_case, job)).reason is EndReason.WALLTIME


async def test_a_job_is_started_once(system_case: SystemCase) -> None:
    """A second submit of the same attempt starts nothing and says that there may be a job."""
    spec = a_spec(system_case)
    async with submitted(system_case, spec) as job:
        with pytest.raises(Unanswered):
            await system_case.system.submit(job.tag, spec)
        assert [each.job for each in await system_case.system.find(job.tag, job.owner)] == [job.job]


async def _gone(case: SystemCase, job: Handle) -> Gone:
    async def ask() -> object:
        return (await case.system.observe([job]))[job.job]

    said = await eventually(case, ask, lambda said: isinstance(said, Gone))
    assert isinstance(said, Gone)
    return said
