"""The Slurm adapter keeps the promises of a `System`, on the simulated login node over real sockets."""

import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.contract.system.ssh_world import Login, simulated, slurm
from tests.contract.system.suite import *  # noqa: F403 (the suite's tests become tests of this module)
from tests.contract.system.suite import SystemCase

from moorage.simulator.servers.ssh import Account, NodeConfig, Running, Timing


@pytest.fixture(params=[True, False], ids=["accounting", "no-accounting"])
def node(request: pytest.FixtureRequest) -> Iterator[tuple[Running, Login]]:
    config = NodeConfig(accounts=(Account("alice"),), timing=Timing.fast(), accounting=request.param)
    with simulated(config) as made:
        yield made


@pytest.fixture
async def system_case(node: tuple[Running, Login]) -> AsyncIterator[SystemCase]:
    running, login = node

    @contextlib.asynccontextmanager
    async def lose_answer() -> AsyncIterator[None]:
        running.faults.add({"do": "disconnect-after", "on": ["sbatch"], "times": 1})
        yield
        assert running.faults.fired["disconnect-after"] == 1

    async with slurm(login) as system:
        yield SystemCase(system=system, lose_answer=lose_answer)
