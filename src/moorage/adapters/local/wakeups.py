"""Wake-ups inside one process: a heap, and nothing that polls."""

import asyncio
from collections.abc import Awaitable, Callable
from heapq import heapify, heappop, heappush

from attrs import frozen

from moorage.core.model import NEVER, Instant, SessionId
from moorage.ports.clock import Clock

SLACK = 64
"""Replaced entries that the heap may hold besides the living ones, before it is made anew."""


@frozen(order=True)
class _Planned:
    at: Instant
    number: int
    session: SessionId


class LocalWakeups:
    """
    Implements the port `Wakeups`. What is planned is lost with the process; the runner plans anew from the store.

    A session is taken off the list when its handler has returned, so that a run that is cancelled loses nothing.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[_Planned] = []
        self._planned: dict[SessionId, _Planned] = {}
        self._number = 0
        self._sleepers: set[asyncio.Event] = set()

    async def wake(self, session: SessionId, not_before: Instant) -> None:
        """See `Wakeups.wake`. At `NEVER` there is nothing to wait for: what was planned is dropped."""
        if not_before >= NEVER:
            self._planned.pop(session, None)
            return
        self._number += 1
        planned = self._planned[session] = _Planned(not_before, self._number, session)
        self._push(planned)

    async def run(self, handler: Callable[[SessionId], Awaitable[None]]) -> None:
        """See `Wakeups.run`. Sessions are handed out one after the other, the earliest first."""
        changed = asyncio.Event()
        self._sleepers.add(changed)
        try:
            while True:
                planned = self._pop_due()
                if planned is None:
                    await self._sleep(changed)
                else:
                    await self._hand_out(planned, handler)
        finally:
            self._sleepers.discard(changed)

    async def _hand_out(self, planned: _Planned, handler: Callable[[SessionId], Awaitable[None]]) -> None:
        try:
            await handler(planned.session)
        except BaseException:
            if self._lives(planned):
                self._push(planned)  # for whoever runs next
            raise
        if self._lives(planned):  # a newer call, also one by the handler itself, stays
            del self._planned[planned.session]
        # Many sessions may be due at once, and a handler need not wait for anything: let the others have a turn.
        await asyncio.sleep(0)

    async def _sleep(self, changed: asyncio.Event) -> None:
        """Until the next one is due, or the heap has another first one."""
        changed.clear()
        if not self._heap:
            await changed.wait()
            return
        tasks = [
            asyncio.ensure_future(changed.wait()),
            asyncio.ensure_future(self._clock.sleep_until(self._heap[0].at)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _pop_due(self) -> _Planned | None:
        """The earliest entry if its time has come; replaced ones are thrown away on the way."""
        now = self._clock.now()
        while self._heap:
            first = self._heap[0]
            if self._lives(first) and first.at > now:
                return None
            heappop(self._heap)
            if self._lives(first):
                return first
        return None

    def _push(self, planned: _Planned) -> None:
        heappush(self._heap, planned)
        if len(self._heap) > 2 * len(self._planned) + SLACK:
            self._heap = [entry for entry in self._heap if self._lives(entry)]
            heapify(self._heap)
        if self._heap and self._heap[0] is planned:
            for changed in self._sleepers:
                changed.set()

    def _lives(self, planned: _Planned) -> bool:
        return self._planned.get(planned.session) is planned
