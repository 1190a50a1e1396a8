"""The Slurm adapter keeps the promises of a `System`, on a real Slurm of four nodes behind a real sshd."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from attrs import evolve
from tests.contract.system.ssh_world import TIMEOUTS, Login, slurm
from tests.contract.system.suite import *  # noqa: F403 (the suite's tests become tests of this module)
from tests.contract.system.suite import SystemCase
from tests.servers import slurm as real_slurm
from tests.servers import sshd as real_sshd


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


@pytest.fixture
async def system_case(cluster: real_slurm.Slurm, login: Login, tmp_path: Path) -> AsyncIterator[SystemCase]:
    lose = cluster.home / "lose"

    @contextlib.asynccontextmanager
    async def lose_answer() -> AsyncIterator[None]:
        lose.touch()
        try:
            yield
        finally:
            lose.unlink()

    timeouts = evolve(TIMEOUTS, submit_s=2)
    async with slurm(login, timeouts, directory=str(tmp_path / "jobs"), commands=str(cluster.programs)) as system:
        yield SystemCase(system=system, lose_answer=lose_answer)
