"""Which time it is for a site, and waiting in it: the machine's time, or time that a caller moves."""

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds since 1970, UTC, and waiting in the same time."""

    def now(self) -> float: ...

    async def sleep(self, seconds: float) -> None: ...


class RealClock:
    """The machine's time."""

    def now(self) -> float:
        return time.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class ManualClock:
    """Time that stands still until `advance` moves it, from one waiting task to the next."""

    def __init__(self, start: float = 1_780_000_000.0) -> None:
        self._now = start
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (self._now + max(seconds, 0.0), next(self._order), waiter))
        await waiter

    async def advance(self, seconds: float) -> None:
        """Move time forward; everything that was due has been woken, in order, when this returns."""
        until = self._now + seconds
        await _settle()
        while self._waiting and self._waiting[0][0] <= until:
            due, _, waiter = heapq.heappop(self._waiting)
            if not waiter.done():
                self._now = due
                waiter.set_result(None)
                await _settle()
        self._now = until
        await _settle()


async def _settle() -> None:
    """Let woken tasks run until they wait again: a bounded number of rounds covers the longest chain here."""
    for _ in range(20):
        await asyncio.sleep(0)
