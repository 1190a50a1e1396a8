"""
The runner: the only code that waits.

    take an event -> read the clock once -> step -> save state and event -> perform the effects -> each ends in an event

One event at a time per session, any number of sessions at once. What is not saved has not been decided, so nothing is
done before the save, with one exception: what only removes things is done even if the store is full.
`performing.py` turns effects into calls, `observing.py` asks the systems how the jobs are.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from typing import Any

from attrs import define, field, frozen

from moorage.core.admission import Taken, admit, in_line, takes_place
from moorage.core.effects import REMOVING, Effect
from moorage.core.events import Admitted, Event, Held, Observed, PathDoubted, Resumed, StopAsked, Woke
from moorage.core.limits import Limits
from moorage.core.machine import Decision, begin, step, wake_at
from moorage.core.model import (
    NEVER,
    Ended,
    Instant,
    Ready,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    Stopping,
    Submitting,
    SystemName,
    Waiting,
    Why,
    WithJob,
)
from moorage.core.progress import progress_of
from moorage.observing import Observing
from moorage.performing import Performing, SystemEntry
from moorage.ports.clock import Choices, Clock
from moorage.ports.credentials import Credentials, Vault
from moorage.ports.errors import LimitReached, Refused, StaleVersion, StoreFailed
from moorage.ports.hub import Hub
from moorage.ports.sessions import JobReport, StartRequest, Step, View
from moorage.ports.store import Store
from moorage.ports.tunnels import Tunnels
from moorage.ports.wakeups import Wakeups

log = logging.getLogger(__name__)

STORE_RETRY_MS = (250, 5_000)
"""Between two tries to save a decision: first, and at most. Short, because meanwhile the session stands still."""

NEWS = 64
"""Steps kept for a follower that is slow; what is missing it reads in the log."""

SUBMITS_LOOK_MS = 60_000
"""Between two looks for submits that nobody makes any more."""

ADMISSION_PAUSE_MS = 1_000
"""A breaker that closes, or a minute's budget that comes back, is noticed after this time at the latest."""


@frozen
class Ports:
    """The world as the runner sees it."""

    store: Store
    wakeups: Wakeups
    clock: Clock
    choices: Choices
    hub: Hub
    tunnels: Tunnels
    credentials: Credentials
    vault: Vault
    systems: Mapping[SystemName, SystemEntry]


@define(eq=False)
class Live:
    """A session that this process works on: what is saved of it, and the events that wait for it."""

    id: SessionId
    session: Session | None = None
    version: int = 0
    mailbox: deque[tuple[Event, asyncio.Future[None] | None]] = field(factory=deque)
    worker: asyncio.Task[None] | None = None
    created: asyncio.Future[None] | None = None
    wake_at: Instant = NEVER
    followers: list["_News"] = field(factory=list)
    latest: Step | None = None
    """The last step since this process took the session up."""


@define(eq=False)
class _News:
    """New steps for one who follows a session; of one who does not come to take them, the latest."""

    steps: deque[Step] = field(factory=lambda: deque(maxlen=NEWS))
    came: asyncio.Event = field(factory=asyncio.Event)

    def tell(self, step: Step) -> None:
        self.steps.append(step)
        self.came.set()


@frozen
class _Tried:
    """A decision whose save was not confirmed."""

    before: Session
    version: int
    decision: Decision
    at: Instant

    def is_stored(self, live: Live) -> bool:
        """Whether this is what the store has."""
        return live.version == self.version + 1 and live.session == self.decision.session


Watcher = Callable[[Session | None, Event | None, Decision, Instant], None]
"""Told of every saved decision: the session before (`None` at its creation), the event, what follows, and when."""


class Runner:
    """
    Carries sessions through their lives; implements the port `Sessions`.

    Use as an async context manager: entering takes up every unfinished session of the store, leaving stops working
    and leaves the sessions as they are.
    """

    def __init__(
        self, ports: Ports, limits: Limits, deployment: str = "moorage", watchers: Iterable[Watcher] = ()
    ) -> None:
        self.ports = ports
        self.limits = limits
        self.deployment = deployment
        self.watchers = list(watchers)
        self.live: dict[SessionId, Live] = {}
        self.keys: dict[SessionKey, list[SessionId]] = {}
        self.waiting: set[SessionId] = set()
        self.admitting: dict[SessionId, Session] = {}
        self.taken = Taken()
        # A dict keeps the order of starting, so that a crash in virtual time ends tasks in the same order each run.
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.closing = False
        self.performing = Performing(ports, self.post, self.session)
        self.observing = Observing(ports, self.performing, self.post, self.session, deployment)
        self._admission_due = self.performing.alarm()

    # The driving port -------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> SessionId:
        """See `Sessions.start`."""
        entry = self.ports.systems.get(request.system)
        if entry is None:
            known = ", ".join(sorted(self.ports.systems))
            raise Refused(f"there is no system {request.system!r}; there are: {known}")
        if self.closing:
            raise _closed()
        present = self._up(request.key)
        if present is not None:
            if present.created is not None:
                await asyncio.shield(present.created)
            return present.id
        live = self._create(request, entry)
        # The caller may give up waiting; the session that was asked for comes into being all the same.
        assert live.created is not None
        await asyncio.shield(live.created)
        return live.id

    async def stop(self, session: SessionId, by: str = "user") -> None:
        """See `Sessions.stop`."""
        live = self.live.get(session)
        if (live is None or live.created is None) and await self._find(session) is None:
            raise KeyError(session)
        saved: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.post(session, StopAsked(by), saved)
        await asyncio.shield(saved)

    async def get(self, session: SessionId) -> View:
        """See `Sessions.get`."""
        stored = await self._find(session)
        if stored is None:
            raise KeyError(session)
        found, version = stored
        return View(found, version, progress_of(found.state), self._place(found))

    async def follow(self, session: SessionId, after: int = 0) -> AsyncIterator[Step]:
        """See `Sessions.follow`."""
        stored = await self._find(session)
        if stored is None:
            raise KeyError(session)
        live, news, over = self.live.get(session), _News(), isinstance(stored[0].state, Ended)
        if live is not None:
            live.followers.append(news)
        try:
            latest = None if live is None else live.latest
            if latest is not None and after >= latest.position - 1:
                news.tell(latest)  # who only waits for what comes costs the store nothing
            else:
                async for each in self._past(stored[0].spec, after):
                    yield each
                    after, over = each.position, each.progress.state == "ended"
            while not over or news.steps:
                if not news.steps:
                    news.came.clear()
                    await news.came.wait()
                new = news.steps.popleft()
                # Between the last step and this one some were dropped, or another process decided them.
                missing = self._past(stored[0].spec, after) if new.position > after + 1 else _only(new)
                async for each in missing:
                    if each.position > after:
                        yield each
                        after, over = each.position, each.progress.state == "ended"
        finally:
            if live is not None:
                live.followers.remove(news)

    async def _past(self, spec: SessionSpec, after: int) -> AsyncIterator[Step]:
        """The steps after a position, as the log has them."""
        past, position = begin(spec).session, 0
        while entries := await self.ports.store.log(spec.id, position):
            for entry in entries:
                if entry.event is not None:
                    past = step(past, entry.event, entry.at).session
                position = entry.version
                if position > after:
                    yield _step_of(position, entry.at, entry.event, past)

    async def job_report(self, session: SessionId) -> JobReport | None:
        """See `Sessions.job_report`."""
        stored = await self._find(session)
        if stored is None:
            raise KeyError(session)
        found = stored[0]
        if not isinstance(found.state, WithJob):
            return None
        return await self.performing.job_report(found.spec, found.attempt, found.state.job.id)

    # Life of the runner -----------------------------------------------------------------------------------------------

    async def __aenter__(self) -> "Runner":
        now = self.ports.clock.now()
        for stored in await self.ports.store.unfinished():
            live = self._adopt(stored.session, stored.version)
            live.wake_at = wake_at(stored.session)
            await self.ports.wakeups.wake(live.id, max(now, live.wake_at))
            self.post(live.id, Resumed())
        self.spawn(self._run_wakeups())
        self.spawn(self._admission_loop())
        self.spawn(self._resume_submits())
        for loop in (*self.performing.loops(), *self.observing.loops()):
            self.spawn(loop)
        self._admission_due.ring()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop working. Sessions stay as they are; calls under way are given up, so their outcome is unknown."""
        self.closing = True
        # Ending one may start another (a task that cleans up after itself), so look again until there are none.
        while tasks := [*self.tasks, *self.performing.tasks]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for live in self.live.values():
            _fail_all(live, _closed())

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task of this runner; one that dies of an exception is a bug and says so."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.critical("a part of the runner died", exc_info=task.exception())

    async def _run_wakeups(self) -> None:
        await self.ports.wakeups.run(self._woke)

    async def _woke(self, session: SessionId) -> None:
        if session in self.live:
            self.post(session, Woke())

    async def _resume_submits(self) -> None:
        """
        Take up submits that nobody makes any more.

        It is the only state whose next act is an answer. If another process took the session over for a while and then
        ended, no answer comes here, and what we remember of the session is old.
        """
        clock = self.ports.clock
        while True:
            await clock.sleep_until(Instant(clock.now() + SUBMITS_LOOK_MS))
            for live in list(self.live.values()):
                session = live.session
                if session is None or not isinstance(session.state, Submitting) or live.mailbox:
                    continue
                longest_ms = 1000 * (session.spec.timeouts.call_s + session.spec.timeouts.submit_s)
                if live.id not in self.performing.submissions and clock.now() - session.state.since > longest_ms:
                    self.post(live.id, Resumed())

    # Events -----------------------------------------------------------------------------------------------------------

    def session(self, session: SessionId) -> Session | None:
        """The session as last saved, if this process works on it."""
        live = self.live.get(session)
        return None if live is None else live.session

    def post(self, session: SessionId, event: Event, saved: "asyncio.Future[None] | None" = None) -> None:
        """
        Put an event into the session's mailbox; returns at once.

        What comes again and again (readings, reasons to wait, doubts about the path, wake-ups) replaces what is not yet
        taken of its kind: while the store is away it would pile up for as long.
        """
        if self.closing:
            _fail(saved, _closed())
            return
        live = self.live.get(session)
        if live is None:
            live = self.live[session] = Live(session)
        if live.mailbox and isinstance(event, Observed | Held | PathDoubted | Woke):
            older = next((each for each in live.mailbox if _replaces(event, each[0])), None)
            if older is not None:
                live.mailbox.remove(older)
        live.mailbox.append((event, saved))
        if live.worker is None and live.created is None:
            live.worker = self.spawn(self._work(live))

    async def _work(self, live: Live) -> None:
        """Take the events of one session, one at a time, until there are none."""
        ended = False
        try:
            while live.mailbox:
                event, saved = live.mailbox.popleft()
                try:
                    await self._handle(live, event)
                except BaseException as error:
                    _fail(saved, error)  # nobody waits for what will not come
                    ended = _was_ended(error)
                    raise
                if saved is not None and not saved.done():
                    saved.set_result(None)
        finally:
            live.worker = None
            if live.mailbox and not self.closing and not ended:
                live.worker = self.spawn(self._work(live))  # a bug met one event; the others are not to blame
            elif live.session is None or live.session.over:
                self._forget(live)

    async def _handle(self, live: Live, event: Event) -> None:
        """
        One event: decide, save, perform.

        1. Somebody else may have moved the session on: then it is loaded and decided anew.
        2. The store may be full or away: the decision is tried again until it is saved or the process ends, and only
           what removes things is done meanwhile, once; also for a stop that waits behind this event. It may also have
           saved and not said so; then the version has moved, and what is loaded is one of our own tries.
        3. A session that took the last place at the same moment as another one goes on waiting.
        """
        removed, retry_ms, full = list[Event](), STORE_RETRY_MS[0], False
        stale, tried = live.session is None, list[_Tried]()
        while True:
            now = self.ports.clock.now()
            try:
                if stale and not await self._load(live):
                    break
                stale, before = False, live.session
                assert before is not None
                done = next((each for each in tried if each.is_stored(live)), None)
                if done is not None:
                    # The store had saved it and could not say so. Nobody but us knows what has to follow.
                    await self._follow_up(live, done.before, event, done.decision, done.at)
                    break
                decision = step(before, event, now)
                if decision.session is before:
                    # Not the planned wake-up: another process's decision was loaded, and its plan died with it.
                    if isinstance(event, Woke) or decision.wake_at != live.wake_at:
                        await self._plan(live, decision.wake_at, again=True)
                    break
                tried.append(_Tried(before, live.version, decision, now))
                await self._save(live, event, decision, now)
                break
            except StaleVersion:
                stale = True
            except LimitReached:
                # Places that another process holds. Asking again at once would only ask again and again.
                full = True
                break
            except StoreFailed as error:
                log.warning("session %s: not saved: %s", live.id, error)
                if tried:
                    self._remove_unsaved(live, event, tried[-1].decision, removed)
                await self.ports.clock.sleep_until(Instant(now + retry_ms))
                retry_ms = min(2 * retry_ms, STORE_RETRY_MS[1])
        if isinstance(event, Admitted):
            self._admission_answered(live, full)

    def _remove_unsaved(self, live: Live, event: Event, decision: Decision, removed: list[Event]) -> None:
        """Do what removes things although it cannot be saved: of this event, and of stops that wait behind it."""
        decisions = [(event, decision)]
        for waiting, _ in live.mailbox:
            if isinstance(waiting, StopAsked):
                decisions.append((waiting, step(decisions[-1][1].session, waiting, self.ports.clock.now())))
        for each, follows in decisions:
            if not any(each is other for other in removed):
                removed.append(each)
                self.performing.start(live.id, follows.session.spec, only(follows.effects, REMOVING), told=False)

    async def _save(self, live: Live, event: Event, decision: Decision, now: Instant) -> None:
        before, after = live.session, decision.session
        assert before is not None
        # Only an admission asks for a place. A stop of a session that waits may take one for a while, too, because of
        # what an earlier attempt has left; no limit may refuse it.
        limits = self.limits if isinstance(event, Admitted) and takes_place(after) else None
        live.version = await self.ports.store.save(after, event, now, live.version, limits)
        live.session = after
        self._account(live, before, after)
        await self._follow_up(live, before, event, decision, now)

    async def _follow_up(self, live: Live, before: Session, event: Event, decision: Decision, now: Instant) -> None:
        """What follows once a decision is saved."""
        after = decision.session
        if isinstance(before.state, Submitting) and isinstance(after.state, Stopping):
            self.performing.give_up_submit(live.id)
        self.performing.start(live.id, after.spec, decision.effects)
        live.latest = _step_of(live.version, now, event, after)
        for follower in live.followers:
            follower.tell(live.latest)
        self._tell_watchers(before, event, decision, now)
        if decision.wake_at != live.wake_at:
            await self._plan(live, decision.wake_at)

    def _tell_watchers(self, before: Session | None, event: Event | None, decision: Decision, now: Instant) -> None:
        """They only look on: what one of them raises is loud and changes nothing."""
        for watcher in self.watchers:
            try:
                watcher(before, event, decision, now)
            except Exception as error:
                log.critical("a watcher failed with a bug", exc_info=error)

    async def _plan(self, live: Live, at: Instant, again: bool = False) -> None:
        live.wake_at = at
        if at != NEVER or again:
            await self.ports.wakeups.wake(live.id, at)

    async def _load(self, live: Live) -> bool:
        """
        Load the session, for the first time or anew; whether there is one.

        What is known stays until then: while a store takes its time, the name of the session is still taken and its
        place, too.
        """
        stored = await self.ports.store.load(live.id)
        if stored is None:
            self._forget(live)
            live.session = None
            return False
        before, live.session, live.version = live.session, stored.session, stored.version
        self._account(live, before, stored.session)
        return True

    async def _find(self, session: SessionId) -> tuple[Session, int] | None:
        live = self.live.get(session)
        if live is not None and live.created is not None:
            await asyncio.shield(live.created)
        if live is not None and live.session is not None:
            return live.session, live.version
        stored = await self.ports.store.load(session)
        return None if stored is None else (stored.session, stored.version)

    # Coming and going -------------------------------------------------------------------------------------------------

    def _up(self, key: SessionKey) -> Live | None:
        """The session of this key that is up or coming up."""
        for session in self.keys.get(key, ()):
            live = self.live[session]
            if live.session is not None and not isinstance(live.session.state, Stopping | Ended):
                return live
        return None

    def _create(self, request: StartRequest, entry: SystemEntry) -> Live:
        """Reserve the key, then save: between the look at the key and this nobody else has had a turn."""
        now, choices = self.ports.clock.now(), self.ports.choices
        spec = SessionSpec(
            id=choices.session_id(),
            key=request.key,
            system=request.system,
            asked_at=now,
            seed=choices.seed(),
            deployment=self.deployment,
            groups=request.groups,
            service=request.service,
            partition=request.partition,
            walltime_s=request.walltime_s,
            nodes=request.nodes,
            options=request.options,
            destinations=entry.destinations,
            timeouts=entry.timeouts,
        )
        decision = begin(spec)
        live = self._adopt(decision.session, 0)
        live.created = asyncio.get_running_loop().create_future()
        self.spawn(self._save_new(live, decision, now))
        return live

    async def _save_new(self, live: Live, decision: Decision, now: Instant) -> None:
        created = live.created
        assert created is not None
        try:
            live.version = await self._create_once(decision.session, now)
        except BaseException as error:
            self._forget(live)
            _fail_all(live, error)
            if isinstance(error, StoreFailed):
                return
            raise
        live.created = None
        created.set_result(None)
        if live.mailbox:  # a stop that was asked for meanwhile comes before the admission
            live.worker = self.spawn(self._work(live))
        # Before anything that takes time: a stop may come at once and end the session.
        self.waiting.add(live.id)
        self._admission_due.ring()
        self.performing.start(live.id, decision.session.spec, decision.effects)
        self._tell_watchers(None, None, decision, now)
        if live.wake_at == NEVER and self.live.get(live.id) is live:
            await self._plan(live, decision.wake_at)

    async def _create_once(self, session: Session, now: Instant) -> int:
        """
        Save a new session, or be certain that it is not saved.

        A store that fails may have saved all the same. A session of which its user was told that it was not started
        would then wait in the store for the next start of the process, beside the one they ask for instead.
        """
        try:
            return await self.ports.store.save(session, None, now, 0)
        except StoreFailed as error:
            retry_ms = STORE_RETRY_MS[0]
            while True:
                try:
                    stored = await self.ports.store.load(session.id)
                except StoreFailed:
                    await self.ports.clock.sleep_until(Instant(self.ports.clock.now() + retry_ms))
                    retry_ms = min(2 * retry_ms, STORE_RETRY_MS[1])
                    continue
                if stored is None:
                    raise error
                return stored.version

    def _adopt(self, session: Session, version: int) -> Live:
        live = self.live.get(session.id)
        if live is None:
            live = self.live[session.id] = Live(session.id)
        live.session, live.version = session, version
        self._account(live, None, session)
        if version == 0:
            self.waiting.discard(session.id)  # not before it is saved
        return live

    def _forget(self, live: Live) -> None:
        """Nothing is left to do for the session; the store keeps its history."""
        if self.live.get(live.id) is not live:
            return
        del self.live[live.id]
        if live.session is not None:
            ids = self.keys.get(live.session.spec.key, [])
            if live.id in ids:
                ids.remove(live.id)
                if not ids:
                    del self.keys[live.session.spec.key]
            if takes_place(live.session):
                self.taken.give_back(live.session)
        self.waiting.discard(live.id)
        self.observing.forget(live.id)

    def _account(self, live: Live, before: Session | None, after: Session) -> None:
        """Keep the tallies and indices in step with what was saved."""
        if before is None and live.id not in self.keys.setdefault(after.spec.key, []):
            self.keys[after.spec.key].insert(0, live.id)  # the newest first
        held, holds = before is not None and takes_place(before), takes_place(after)
        if holds and not held:
            self.taken.take(after)
        if held and not holds:
            self.taken.give_back(after)
        if isinstance(after.state, Waiting):
            self.waiting.add(live.id)
        else:
            self.waiting.discard(live.id)
        came = isinstance(after.state, Waiting) and not (before is not None and isinstance(before.state, Waiting))
        if holds != held or came or isinstance(after.state, Ended):
            self._admission_due.ring()  # but not because somebody was told why they wait: all would be looked at again
        self.observing.changed(after)

    # Admission --------------------------------------------------------------------------------------------------------

    async def _admission_loop(self) -> None:
        """Decide who may start whenever something changed, and once a second while somebody waits."""
        while True:
            self._admit()
            pause = Instant(self.ports.clock.now() + ADMISSION_PAUSE_MS) if self.waiting else NEVER
            await self._admission_due.wait(pause)

    def _admit(self) -> None:
        now = self.ports.clock.now()
        waiting = [live.session for live in map(self.live.__getitem__, sorted(self.waiting - self.admitting.keys()))]
        sessions = [session for session in waiting if session is not None]
        if not sessions:
            return
        gates = {name: self.performing.gate(name, now) for name in self.ports.systems}
        for verdict in admit(sessions, self.taken, self.limits, gates, self._busy(sessions), now):
            live = self.live[verdict.session]
            assert live.session is not None
            if verdict.why is None:
                # The place is kept for it from now on, not from the save on.
                self.admitting[live.id] = live.session
                self.performing.admitted(live.session, now)
                self.post(live.id, Admitted())
            elif worth_telling(live.session, verdict.why, verdict.note):
                self.post(live.id, Held(verdict.why, verdict.note))

    def _admission_answered(self, live: Live, full: bool) -> None:
        """The admission was saved, or came to nothing: either way the place is no longer kept twice."""
        admitted = self.admitting.pop(live.id, None)
        if admitted is not None:
            self.taken.give_back(admitted)
            if not full:
                self._admission_due.ring()

    def _busy(self, waiting: list[Session]) -> set[SessionKey]:
        """Keys with a session that is not waiting and has not ended."""
        busy = set()
        for key in {session.spec.key: None for session in waiting}:
            for session in self.keys.get(key, ()):
                other = self.live[session].session
                if other is not None and not isinstance(other.state, Waiting | Ended):
                    busy.add(key)
        return busy

    def _place(self, session: Session) -> int | None:
        """The place in line among those who wait for the same system and the same reason."""
        state = session.state
        if not isinstance(state, Waiting) or state.why is not Why.LIMIT:
            return None
        others = [live.session for live in map(self.live.__getitem__, sorted(self.waiting))]
        line = [
            other
            for other in in_line([other for other in others if other is not None])
            if other.spec.system == session.spec.system and getattr(other.state, "why", None) is Why.LIMIT
        ]
        return next((index + 1 for index, other in enumerate(line) if other.id == session.id), None)

    def ready(self) -> int:
        """How many sessions of this process are `Ready`."""
        return sum(1 for live in self.live.values() if live.session and isinstance(live.session.state, Ready))


async def _only(step: Step) -> AsyncIterator[Step]:
    yield step


def _step_of(position: int, at: Instant, event: Event | None, session: Session) -> Step:
    name = "Started" if event is None else type(event).__name__
    return Step(position, at, name, progress_of(session.state))


def _fail(waiting: "asyncio.Future[None] | None", error: BaseException) -> None:
    """Tell whoever waits that it came to nothing."""
    if waiting is not None and not waiting.done():
        waiting.set_exception(_closed() if isinstance(error, asyncio.CancelledError) else error)
        waiting.exception()  # the caller may have gone; nobody has to be told twice


def _fail_all(live: Live, error: BaseException) -> None:
    for waiting in (live.created, *(saved for _, saved in live.mailbox)):
        _fail(waiting, error)


def _closed() -> StoreFailed:
    return StoreFailed("this process is ending and has not seen it saved")


def _replaces(event: Event, other: Event) -> bool:
    """Whether an event that waits is worth nothing any more beside a newer one."""
    if isinstance(event, Observed):
        return isinstance(other, Observed) and other.job == event.job
    return type(event) is type(other)


def _was_ended(error: BaseException) -> bool:
    """Whether somebody ended this very task, or nobody will ever run it again: not the time to begin another one."""
    if isinstance(error, GeneratorExit):
        return True
    task = asyncio.current_task() if isinstance(error, asyncio.CancelledError) else None
    return task is not None and task.cancelling() > 0


def only(effects: Iterable[Effect], kinds: tuple[type, ...]) -> tuple[Effect, ...]:
    """The effects of some kinds, in order."""
    return tuple(effect for effect in effects if isinstance(effect, kinds))


def worth_telling(session: Session, why: Why, note: str) -> bool:
    """Whether the user does not know yet why the session waits."""
    state = session.state
    return isinstance(state, Waiting) and (state.why, state.note) != (why, note)
