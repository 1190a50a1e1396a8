"""The port `Store` in memory: versions, limits and logs as the contract says, and every way to fail."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from attrs import define, field

from moorage.core.admission import Taken, takes_place
from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.machine import Decision, begin, step
from moorage.core.model import Ended, Instant, Session, SessionId, SessionKey
from moorage.ports.errors import LimitReached, StaleVersion, StoreFailed
from moorage.ports.store import Logged, Stored

from .calls import Road
from .crashes import Boundary
from .faults import Verdict

Answer = TypeVar("Answer")
Committed = Callable[[Session | None, Event | None, Decision, Instant, Session], None]
"""
Told of everything that became durable: the session before, the event, what the machine makes of it again, when, and the
session as it was saved.
"""


@define(eq=False)
class Shelf:
    """What is durable; it outlives every process."""

    sessions: dict[SessionId, Stored] = field(factory=dict)
    logs: dict[SessionId, list[Logged]] = field(factory=dict)
    keys: dict[SessionKey, SessionId] = field(factory=dict)
    open: dict[SessionId, None] = field(factory=dict)
    taken: Taken = field(factory=Taken)
    saves: int = 0
    failures: int = 0
    failed_at: int = -(10**9)
    """When a save last failed: meanwhile decisions come late, and nobody is to blame for that."""
    failed_for: dict[SessionId, int] = field(factory=dict)
    """The same for each session."""
    committed: Committed = lambda _before, _event, _decision, _at, _saved: None

    def save(
        self,
        session: Session,
        event: Event | None,
        at: Instant,
        expected: int,
        limits: Limits | None,
        decided: Callable[[Session | None, Session, Event | None, Instant], Decision],
        stop: Callable[[Decision, Event | None], None],
    ) -> int:
        """One transaction. `stop` may end the process before it is durable."""
        stored = self.sessions.get(session.id)
        version = 0 if stored is None else stored.version
        if version != expected or (event is None) != (stored is None):
            raise StaleVersion(f"session {session.id} has version {version}, not {expected}")
        before = None if stored is None else stored.session
        asks_for_place = takes_place(session) and not (before is not None and takes_place(before))
        if limits is not None and asks_for_place and self.taken.reached(session, limits) is not None:
            raise LimitReached(f"no place: {self.taken.reached(session, limits)}")
        decision = decided(before, session, event, at)
        stop(decision, event)
        self._put(before, session, event, at, version + 1)
        self.committed(before, event, decision, at, session)
        return version + 1

    def _put(self, before: Session | None, session: Session, event: Event | None, at: Instant, version: int) -> None:
        self.sessions[session.id] = Stored(session, version)
        self.logs.setdefault(session.id, []).append(Logged(version, at, event))
        if before is None:
            self.keys[session.spec.key] = session.id
        held, holds = before is not None and takes_place(before), takes_place(session)
        if holds and not held:
            self.taken.take(session)
        elif held and not holds:
            self.taken.give_back(session)
        if session.over:
            self.open.pop(session.id, None)
        else:
            self.open[session.id] = None
        self.saves += 1


def decided(before: Session | None, after: Session, event: Event | None, at: Instant) -> Decision:
    """What the machine makes of the same event again: the log is the truth, so this has to be what was saved."""
    if before is None or event is None:
        return begin(after.spec)
    return step(before, event, at)


class SimStore:
    """See `moorage.ports.store.Store`."""

    def __init__(self, shelf: Shelf, road: Road) -> None:
        self.shelf = shelf
        self.road = road

    @property
    def _boundary(self) -> Boundary:
        return self.road.boundary

    async def load(self, session: SessionId) -> Stored | None:
        return await self._call("load", lambda _verdict: self.shelf.sessions.get(session))

    async def save(
        self, session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None = None
    ) -> int:
        def act(_verdict: Verdict) -> int:
            if not self.road.life.alive:
                raise StoreFailed("the process is dead; its connection is closed")
            return self.shelf.save(session, event, at, expected, limits, decided, self._stop)

        try:
            return await self._call("save", act)
        except StoreFailed:
            self.shelf.failures += 1
            self.shelf.failed_at = self.shelf.failed_for[session.id] = self.road.loop.now_ms
            raise

    def _stop(self, decision: Decision, event: Event | None) -> None:
        """Kill the process before an intent, or before an answer, is durable."""
        if self._boundary.armed is None:
            return
        if self._boundary.before_intent(decision.effects) or self._boundary.before_result(event):
            self.road.kill()
            raise StoreFailed("the process died in the transaction")

    async def unfinished(self) -> Sequence[Stored]:
        sessions = self.shelf.sessions
        return await self._call("load", lambda _verdict: [sessions[id_] for id_ in self.shelf.open])

    async def latest(self, key: SessionKey) -> Stored | None:
        def act(_verdict: Verdict) -> Stored | None:
            session = self.shelf.keys.get(key)
            return None if session is None else self.shelf.sessions[session]

        return await self._call("load", act)

    async def log(self, session: SessionId, after: int = 0, limit: int = 1000) -> Sequence[Logged]:
        entries = self.shelf.logs
        return await self._call("log", lambda _verdict: entries.get(session, [])[after : after + limit])

    async def close(self) -> None:
        """Nothing to give back."""

    async def _call(self, verb: str, act: Callable[[Verdict], Answer]) -> Answer:
        return await self.road.call("store", verb, "", act, _as_store_error, 5_000)


def _as_store_error(error: BaseException) -> BaseException:
    return StoreFailed(str(error))


__all__ = ["Ended", "Shelf", "SimStore"]
