"""The port `Clock` in virtual time."""

import asyncio

from moorage.core.model import Instant

from .loop import VirtualLoop

EPOCH_MS = 1_767_225_600_000
"""When every world begins: 2026-01-01T00:00Z. Only a start; no day of the calendar matters."""


class SimClock:
    """
    The clock of one process.

    Args:
        rate: How fast it goes; 1 is right. Storms run two processes with clocks that disagree.
    """

    def __init__(self, loop: VirtualLoop, rate: float = 1.0) -> None:
        self._loop = loop
        self._rate = rate
        self._began = loop.now_ms

    def now(self) -> Instant:
        if self._rate == 1.0:
            return Instant(EPOCH_MS + self._loop.now_ms)
        return Instant(EPOCH_MS + self._began + int((self._loop.now_ms - self._began) * self._rate))

    def on_loop(self, at: Instant) -> int:
        """When on the loop's time this clock shows `at`, at the earliest."""
        if self._rate == 1.0:
            return at - EPOCH_MS
        return self._began + int((at - EPOCH_MS - self._began) / self._rate) + 1

    async def sleep_until(self, at: Instant) -> None:
        now = self.now()
        if at <= now:
            await asyncio.sleep(0)
            return
        waiter = self._loop.create_future()
        delay = at - now if self._rate == 1.0 else int((at - now) / self._rate) + 1
        timer = self._loop.call_at_ms(self._loop.now_ms + delay, _wake, waiter)
        try:
            await waiter
        finally:
            timer.cancel()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
