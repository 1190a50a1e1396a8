"""The wake-ups of the simulated world keep the promises of the real ones."""

import asyncio
import heapq
from collections.abc import Callable
from typing import Any

import pytest
from tests.contract.wakeups.suite import CLAIMS, Claim

from moorage.core.model import Instant
from moorage.ports.clock import Clock
from moorage.simulator.calls import Life
from moorage.simulator.loop import virtual_loop
from moorage.simulator.wakeups import SimWakeups


class Timers:
    """The timers of a loop, on a clock that is moved by hand: all that is due fires when one of them wakes up."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.timers: list[tuple[int, int, Callable[..., object], tuple[Any, ...]]] = []
        self.numbers = 0
        self.sleeper: asyncio.Task[None] | None = None
        self.sleeps_until: int | None = None

    @property
    def now_ms(self) -> int:
        return self.clock.now()

    def on_loop(self, at: Instant) -> int:
        return at

    def call_at_ms(self, when: int, callback: Callable[..., object], *args: object) -> None:
        self.numbers += 1
        heapq.heappush(self.timers, (when, self.numbers, callback, args))
        overslept = self.sleeps_until is not None and self.sleeps_until <= self.now_ms
        if self.sleeps_until is None or overslept or when < self.sleeps_until:
            if self.sleeper is not None:
                self.sleeper.cancel()
            self.sleeper, self.sleeps_until = asyncio.ensure_future(self._fire_at(when)), when

    async def _fire_at(self, when: int) -> None:
        await self.clock.sleep_until(Instant(when))
        self.sleeps_until = None
        while self.timers and self.timers[0][0] <= self.clock.now():
            _, _, callback, args = heapq.heappop(self.timers)
            callback(*args)
        if self.timers and self.sleeps_until is None:
            self.sleeps_until = self.timers[0][0]
            self.sleeper = asyncio.ensure_future(self._fire_at(self.sleeps_until))


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_wakeups(claim: Claim) -> None:
    def make(clock: Clock) -> SimWakeups:
        timers = Timers(clock)
        return SimWakeups(timers, timers, Life(1))  # type: ignore[arg-type]  # what is needed of a loop and its clock

    with virtual_loop() as loop:
        loop.run_until_complete(claim(make))
