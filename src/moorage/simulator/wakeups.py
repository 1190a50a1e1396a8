"""The port `Wakeups` inside one process: planned in memory, lost with the process."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from moorage.core.model import NEVER, Instant, SessionId

from .calls import Killed, Life
from .clock import SimClock
from .loop import VirtualLoop


class SimWakeups:
    """See `moorage.ports.wakeups.Wakeups`. Times are those of the process's own clock, which may be slow or fast."""

    def __init__(self, loop: VirtualLoop, clock: SimClock, life: Life) -> None:
        self._loop = loop
        self._clock = clock
        self._life = life
        self._planned: dict[SessionId, Instant] = {}
        self._due: deque[SessionId] = deque()
        self._filled = asyncio.Event()

    async def wake(self, session: SessionId, not_before: Instant) -> None:
        if not self._life.alive:
            raise Killed
        if not_before >= NEVER:
            self._planned.pop(session, None)
            return
        before = self._planned.get(session)
        self._planned[session] = not_before
        # A timer that is there already and comes no later will plan itself anew when it finds that it is too early.
        if before is None or not_before < before:
            self._plan(session, not_before)

    def _plan(self, session: SessionId, at: Instant) -> None:
        self._loop.call_at_ms(max(self._loop.now_ms, self._clock.on_loop(at)), self._wake, session, at)

    def _wake(self, session: SessionId, at: Instant) -> None:
        planned = self._planned.get(session)
        if planned is None or not self._life.alive:
            return
        if planned > at:
            self._plan(session, planned)
        elif planned == at:
            del self._planned[session]
            self._due.append(session)
            self._filled.set()

    async def run(self, handler: Callable[[SessionId], Awaitable[None]]) -> None:
        while True:
            while self._due:
                await handler(self._due[0])
                self._due.popleft()  # not before it is handled: a run that ends in the middle loses nothing
            self._filled.clear()
            await self._filled.wait()
