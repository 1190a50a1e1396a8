"""The Slurm adapter keeps the promises of a `System`, on a real Slurm of four nodes behind a real sshd."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest
from attrs import evolve
from tests.contract.system.ssh_world import TIMEOUTS, Login, slurm
from tests.contract.system.suite import *  # noqa: F403 (the suite's tests become tests of this module)
from tests.contract.system.suite import SystemCase, eventually, submitted
from tests.servers import slurm as real_slurm
from tests.servers import sshd as real_sshd

from moorage.core.plan import ENDPOINT_NAME, PLAN_NAME, SECRET_NAME


@pytest.fixture(scope="module")
def cluster() -> Iterator[real_slurm.Slurm]:
    try:
        real_sshd.require()
        real_slurm.require()
    except (real_slurm.NotInstalled, real_sshd.NotInstalled) as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))
    with real_slurm.cluster() as running:
        yield running


@pytest.fixture(scope="module")
def login() -> Iterator[Login]:
    with real_sshd.server() as running:
        yield Login(running.port, running.host_key, running.key_file, running.user)


def jobs_of(cluster: real_slurm.Slurm) -> str:
    """Where job directories are: what is above can be entered by everybody."""
    return str(cluster.home / "jobs")


@pytest.fixture
async def system_case(cluster: real_slurm.Slurm, login: Login) -> AsyncIterator[SystemCase]:
    lose = cluster.home / "lose"

    @contextlib.asynccontextmanager
    async def lose_answer() -> AsyncIterator[None]:
        lose.touch()
        try:
            yield
        finally:
            lose.unlink()

    timeouts = evolve(TIMEOUTS, submit_s=2)
    async with slurm(login, timeouts, directory=jobs_of(cluster), commands=str(cluster.programs)) as system:
        yield SystemCase(system=system, lose_answer=lose_answer)


async def test_another_user_of_the_machine_reads_nothing(system_case: SystemCase, cluster: real_slurm.Slurm) -> None:
    """Neither the files of a job, nor its secret in what Slurm and the process list tell to everybody."""
    async with submitted(system_case) as job:

        async def is_running() -> bool:
            return await system_case.system.read(job, ENDPOINT_NAME) is not None

        await eventually(system_case, is_running, bool)
        directory = f"{jobs_of(cluster)}/{job.tag}"
        programs = cluster.programs
        script = (
            f"cd /; ls {directory}; cat {directory}/{SECRET_NAME} {directory}/{PLAN_NAME};"
            f" cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; {programs}/scontrol show job {job.job};"
            f" {programs}/squeue --noheader --states=all --format=%all"
        )
        done = await asyncio.create_subprocess_exec(
            *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/bin/sh", "-c", script),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await done.communicate()
        assert job.tag.encode() in out  # it did see the job
        assert b"5e" * 32 not in out  # the gate secret of these plans
        assert err.count(b"Permission denied") >= 3
