"""The UNICORE adapter keeps the promises of a `System`, on the simulated site over real sockets."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.system.suite import *  # noqa: F403 (the suite's tests become tests of this module)
from tests.contract.system.suite import SystemCase
from tests.contract.system.unicore_world import World, world


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def unicore(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, tls=request.param) as made:
        yield made


@pytest.fixture
def system_case(unicore: World) -> SystemCase:
    @contextlib.asynccontextmanager
    async def lose_answer() -> AsyncIterator[None]:
        unicore.site.faults.add({"fault": "F-U3", "variant": "drop", "times": 1})
        yield
        assert unicore.site.faults.ledger["F-U3", "submit"] == 1

    return SystemCase(system=unicore.make(), lose_answer=lose_answer)
