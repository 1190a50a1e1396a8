"""The runner keeps what the port `Sessions` promises: over doubles in virtual time, and over SQLite in real time."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from tests.contract.sessions.suite import CLAIMS, Case
from tests.unit.runner.doubles import A, World, in_virtual_time

from moorage.adapters.local.store import SqlStore
from moorage.core.timeouts import Timeouts
from moorage.ports.sessions import Sessions

Claim = Callable[[Case], Awaitable[None]]
claims = pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)


def case(world: World, serving: Callable[[], AbstractAsyncContextManager[Sessions]], patience_s: float) -> Case:
    def launcher_reports() -> None:
        world.site.status = {
            "state": "serving",
            "steps": [],
            "walltime_left_s": 60,
            "exit_code": None,
            "log": ["a line"],
        }

    return Case(
        serving=serving,
        system=A,
        living=lambda: len(world.site.living),
        launcher_reports=launcher_reports,
        patience_s=patience_s,
    )


@claims
def test_over_doubles_in_virtual_time(claim: Claim) -> None:
    @in_virtual_time
    async def story() -> None:
        world = World()

        @asynccontextmanager
        async def serving() -> AsyncIterator[Sessions]:
            async with world.runner() as runner:
                yield runner

        await claim(case(world, serving, patience_s=120))

    story()


@claims
async def test_over_sqlite_in_real_time(claim: Claim, tmp_path: Path) -> None:
    quick = Timeouts().scaled(0.02)
    world = World(timeouts=quick)
    for party in (world.hub, world.relay, world.safe, *world.sites.values()):
        party.latency_s = 0.001

    @asynccontextmanager
    async def serving() -> AsyncIterator[Sessions]:
        world.other_store = store = await SqlStore.open(tmp_path / "state" / "moorage.sqlite")
        try:
            async with world.runner() as runner:
                yield runner
            assert await store.check() == []
        finally:
            await store.close()

    await claim(case(world, serving, patience_s=30))
