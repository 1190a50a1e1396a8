"""The suite over the wake-ups in the process, and their memory."""

import pytest
from tests.contract.wakeups.suite import CLAIMS, A, Claim, HandClock, Run, settle

from moorage.adapters.local.clock import LocalClock
from moorage.adapters.local.wakeups import SLACK, LocalWakeups
from moorage.core.model import Instant, SessionId


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
async def test_wakeups(claim: Claim) -> None:
    await claim(LocalWakeups)


async def test_memory_is_bounded_by_the_sessions() -> None:
    """A session that is planned anew for a year does not grow the heap."""
    wakeups = LocalWakeups(HandClock())
    for time in range(10_000):
        await wakeups.wake(A, Instant(10**9 + time))
    assert len(wakeups._heap) <= 2 + SLACK


async def test_with_the_real_clock() -> None:
    clock = LocalClock()
    wakeups = LocalWakeups(clock)
    run = Run(wakeups, clock)  # type: ignore[arg-type]  # only `now` is used
    async with run:
        at = Instant(clock.now() + 20)
        await wakeups.wake(SessionId("b" * 26), at)
        while not run.handled:
            await clock.sleep_until(Instant(clock.now() + 5))
    assert run.handled[0][1] >= at
    await settle()
