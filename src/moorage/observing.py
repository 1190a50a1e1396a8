"""
How the jobs are: one observer per system, the check of all paths, and the sweep.

The machine says which jobs it wants to know about and how often (`machine.watches`); an observer asks about all that
are due, or soon will be, in one call. Readings that say nothing new are not events. What a system calls by itself only
makes the observer ask earlier. The sweep compares what carries our tag with what the store knows.
"""

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from functools import partial
from typing import Any, Protocol

from attrs import define, field, frozen

from moorage.core.events import Observed, PathDoubted, StraySeen
from moorage.core.machine import watches
from moorage.core.model import (
    NEVER,
    Connecting,
    Degraded,
    Doubt,
    DoubtReason,
    Instant,
    JobId,
    Left,
    Observation,
    Owner,
    Ready,
    Session,
    SessionId,
    Sighting,
    SystemName,
    deployment_tag,
    parse_tag,
    tag_of,
)
from moorage.performing import (
    Alarm,
    Look,
    Performing,
    Post,
    SystemEntry,
    World,
    checked_observation,
    checked_sightings,
)
from moorage.ports.errors import Malformed, PortError, StoreFailed
from moorage.ports.store import Store
from moorage.ports.system import Handle, Pushing
from moorage.ports.tunnels import PathReport

log = logging.getLogger(__name__)

REST = 4
"""An observer rests this many times as long as its last call took, so that it is never the load it watches; at most as
long as between readings of jobs that only wait."""

BREATH = 1
"""For a job that nobody has asked about yet the rest is only so many times as long: somebody waits for its start, and
it is new only once. In a crowd of starts a call takes long; four times that was a quarter of what they took in all."""

SOON = 2
"""A job is asked about with the others once this part (1/2) of its interval has passed."""

STRAYS_LIMIT = 10_000
"""Jobs of nobody that are kept in mind; a system that shows more of them is looked at by a person."""

HEAP_SLACK = 1_000
"""Entries of the heap that were planned anew and wait to be dropped."""


class ObservingWorld(World, Protocol):
    """What is needed of `runner.Ports`."""

    @property
    def store(self) -> Store: ...


@define(eq=False)
class Watched:
    """One job that somebody wants to know about."""

    session: SessionId
    handle: Handle
    interval_ms: int
    urgent: bool
    due: Instant
    asked_at: Instant
    """When it was asked about last; before the first time, when somebody wanted to know."""
    new: bool = True
    """Nobody has asked about it yet."""
    soon: Instant = NEVER
    """From then on it is asked about if somebody else is."""
    told: Observation | None = None


@frozen
class Stray:
    """A job with our tag that no session accounts for; cancelled after a grace time."""

    system: SystemName
    handle: Handle
    since: Instant


@define(eq=False)
class Observer:
    """What one system is asked, and when."""

    name: SystemName
    entry: SystemEntry
    alarm: Alarm
    jobs: dict[JobId, Watched] = field(factory=dict)
    sessions: dict[SessionId, tuple[JobId, ...]] = field(factory=dict)
    heap: list[tuple[Instant, JobId]] = field(factory=list)
    planned: Instant = NEVER
    rested_at: Instant = field(default=Instant(0))
    """The system is left alone until then, however urgent a job is, ..."""
    breathed_at: Instant = field(default=Instant(0))
    """... except for jobs that nobody has asked about yet."""
    new_at: Instant = NEVER
    """When the first of those is due."""
    owners: dict[Owner, Instant] = field(factory=dict)
    """On whose behalf to sweep, and when a session of theirs last changed in a way that can make or lose a job."""
    swept: dict[str, Instant] = field(factory=dict)
    """When the last sweep of an account began that was answered."""
    answered_at: Instant | None = None
    failed: str = ""
    strays: dict[JobId, Stray] = field(factory=dict)

    def plan(self, watched: Watched, due: Instant) -> None:
        """Ask about a job at `due`."""
        watched.due = due
        watched.soon = Instant(due - watched.interval_ms // SOON)
        heapq.heappush(self.heap, (due, watched.handle.job))
        if len(self.heap) > HEAP_SLACK + 4 * len(self.jobs):
            self.heap = [(each.due, job) for job, each in self.jobs.items()]
            heapq.heapify(self.heap)
        if watched.new:
            self.new_at = min(self.new_at, due)
        if max(due, self.breathed_at if watched.new else self.rested_at) < self.planned:
            self.alarm.ring()

    def next_call(self) -> Instant:
        """When to ask the system again."""
        return min(max(self.next_due(), self.rested_at), max(self.new_at, self.breathed_at))

    def next_due(self) -> Instant:
        """When the next job is due; entries that were planned anew are dropped."""
        while self.heap:
            due, job = self.heap[0]
            watched = self.jobs.get(job)
            if watched is not None and watched.due == due:
                return due
            heapq.heappop(self.heap)
        return NEVER

    def drop(self, job: JobId, session: SessionId) -> None:
        """Nobody wants to know any more."""
        watched = self.jobs.get(job)
        if watched is not None and watched.session == session:
            del self.jobs[job]


class Observing:
    """Asks the systems and the relay on behalf of all sessions."""

    def __init__(self, ports: ObservingWorld, performing: Performing, post: Post, look: Look, deployment: str) -> None:
        self.ports = ports
        self.performing = performing
        self.post = post
        self.look = look
        self.deployment = deployment
        self.observers = {name: Observer(name, entry, performing.alarm()) for name, entry in ports.systems.items()}
        self.ready: dict[SessionId, Session] = {}
        self.with_path: dict[SessionId, Session] = {}
        self.paths: Mapping[SessionId, PathReport] = {}
        self.paths_at: Instant | None = None

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What has to run: for each system its observer, its sweep and its pushes; and the check of the paths."""
        for observer in self.observers.values():
            yield self._observe(observer)
            yield self._sweep(observer)
            if isinstance(observer.entry.system, Pushing):
                yield self._listen(observer, observer.entry.system.watch)
        yield self._check_paths()

    # What to watch ----------------------------------------------------------------------------------------------------

    def changed(self, session: Session) -> None:
        """A session was saved: what it wants to know may be something else now."""
        _keep(self.ready, session, isinstance(session.state, Ready))
        _keep(self.with_path, session, _may_have_path(session))
        observer = self.observers.get(session.spec.system)
        if observer is None:
            return
        now = self.ports.clock.now()
        owner = session.spec.key.owner
        if session.attempt and not (owner in observer.owners and isinstance(session.state, Ready | Degraded)):
            # Also without a job that we know of: a submit that was given up may come to something very late.
            observer.owners[owner] = now
        wanted = watches(session, now)
        before = observer.sessions.get(session.id, ())
        if not wanted and not before:
            return
        for watch in wanted:
            self._watch(observer, session, watch.job, watch.interval_ms, watch.urgent, now)
        jobs = tuple(watch.job for watch in wanted)
        for job in before:
            if job not in jobs:
                observer.drop(job, session.id)
        if jobs:
            observer.sessions[session.id] = jobs
        else:
            observer.sessions.pop(session.id, None)

    def forget(self, session: SessionId) -> None:
        """The session is over."""
        self.ready.pop(session, None)
        self.with_path.pop(session, None)
        for observer in self.observers.values():
            for job in observer.sessions.pop(session, ()):
                observer.drop(job, session)

    def _watch(
        self, observer: Observer, session: Session, job: JobId, interval_ms: int, urgent: bool, now: Instant
    ) -> None:
        watched = observer.jobs.get(job)
        if watched is None or watched.session != session.id:
            handle = Handle(session.spec.key.owner, tag_of(session.spec, _attempt_of(session, job)), job)
            watched = observer.jobs[job] = Watched(session.id, handle, interval_ms, urgent, NEVER, now)
        if urgent and not watched.urgent:
            watched.told = None  # a repeated reading is worth something now
        watched.interval_ms, watched.urgent = interval_ms, urgent
        due = Instant(max(now, watched.asked_at + interval_ms))
        if due != watched.due:
            observer.plan(watched, due)

    # Asking -----------------------------------------------------------------------------------------------------------

    async def _observe(self, observer: Observer) -> None:
        """Ask when something is due, never faster than the system can be asked."""
        clock = self.ports.clock
        while True:
            observer.planned = at = observer.next_call()
            if clock.now() < at:
                await observer.alarm.wait(at)
                continue
            began = clock.now()
            await self._ask(observer, began)
            ended = clock.now()
            timeouts = observer.entry.timeouts
            least_ms, most_ms = int(timeouts.status_first_s * 1000), int(timeouts.status_queued_s * 1000)
            observer.rested_at = Instant(ended + max(least_ms, min(most_ms, REST * (ended - began))))
            observer.breathed_at = Instant(ended + max(least_ms, min(most_ms, BREATH * (ended - began))))
            if observer.new_at != NEVER:
                new = (watched.due for watched in observer.jobs.values() if watched.new)
                observer.new_at = min(new, default=NEVER)

    async def _ask(self, observer: Observer, now: Instant) -> None:
        asked = [watched for watched in observer.jobs.values() if watched.soon <= now]
        if not asked:
            return
        handles = [watched.handle for watched in asked]
        system = observer.entry.system
        try:
            said = await self.performing.observe(observer.name, "observe", lambda: system.observe(handles))
            if not isinstance(said, Mapping):
                raise Malformed(f"the adapter of {observer.name} answered a status call with no mapping")
            observer.answered_at, observer.failed = self.ports.clock.now(), ""
        except PortError as error:
            # Nothing is known about any of them: that is no event, it only makes the knowledge older.
            said, observer.failed = {}, error.note
        after = self.ports.clock.now()
        for watched in asked:
            if observer.jobs.get(watched.handle.job) is watched:
                self._reading(observer, watched, said.get(watched.handle.job), now, after)

    def _reading(self, observer: Observer, watched: Watched, said: object, asked_at: Instant, now: Instant) -> None:
        watched.asked_at, watched.new = asked_at, False
        session = self.look(watched.session)
        job = watched.handle.job
        interval = (
            next((each.interval_ms for each in watches(session, now) if each.job == job), None) if session else None
        )
        if interval is None:
            observer.drop(job, watched.session)
            return
        watched.interval_ms = interval
        observer.plan(watched, Instant(now + interval))
        # A doubt is worth more the longer it lasts; what it is worth the machine knows.
        if said is None or (said == watched.told and not watched.urgent and not isinstance(said, Doubt)):
            return
        observation = checked_observation(said)
        if observation is not None and _is_news(observation):
            watched.told = observation
            self.post(watched.session, Observed(job, asked_at, observation))

    async def _listen(self, observer: Observer, watch: Callable[[], AsyncIterator[JobId]]) -> None:
        """
        Hints of the system. They may lie, so a job is asked about earlier, but not more often than it may be.

        The first hint about a job that nobody has asked about yet needs no pause after a question.
        """
        clock, pause_ms = self.ports.clock, int(observer.entry.timeouts.backoff_cap_s * 1000)
        least_ms = int(observer.entry.timeouts.status_first_s * 1000)
        while True:
            try:
                async for job in watch():
                    watched = observer.jobs.get(job)
                    if watched is not None:
                        earliest = watched.asked_at if watched.new else watched.asked_at + least_ms
                        observer.plan(watched, Instant(max(clock.now(), earliest)))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise
                log.info("%s: pushes were given up by the adapter", observer.name)
            except (KeyboardInterrupt, GeneratorExit):
                raise
            except BaseException as error:  # noqa: BLE001 (hints are worth nothing more than another try)
                log.info("%s: pushes ended: %s", observer.name, error)
            await clock.sleep_until(Instant(clock.now() + pause_ms))

    # Paths ------------------------------------------------------------------------------------------------------------

    async def _check_paths(self) -> None:
        """Every path, in one call: those in doubt are told to their sessions, those of nobody are closed."""
        clock = self.ports.clock
        silent_since = clock.now()
        while True:
            fresh_s, stale_s, call_s = self._path_times()
            await clock.sleep_until(Instant(clock.now() + int(fresh_s * 1000)))
            try:
                paths = _checked_paths(await self.performing.call(call_s, self.ports.tunnels.list))
            except PortError as error:
                log.info("the paths are not known: %s", error.note)
                if clock.now() - silent_since > stale_s * 1000:
                    self._doubt_all(f"the relay does not answer: {error.note}")
                    silent_since = clock.now()
                continue
            silent_since = clock.now()
            self.paths, self.paths_at = paths, silent_since
            self._judge_paths(paths, stale_s)
            await self._close_paths_of_nobody(paths, call_s)

    def _path_times(self) -> tuple[float, float, float]:
        tables = [observer.entry.timeouts for observer in self.observers.values()]
        return (
            min((table.probe_fresh_s for table in tables), default=10),
            min((table.probe_stale_s for table in tables), default=60),
            min((table.call_s for table in tables), default=30),
        )

    def _doubt_all(self, note: str) -> None:
        for session in list(self.ready):
            self.post(session, PathDoubted(note))

    def _judge_paths(self, paths: Mapping[SessionId, PathReport], stale_s: float) -> None:
        for session, path in _doubtful(paths, stale_s):
            known = self.ready.get(session)
            if known is None:
                continue
            limit_s = max(stale_s, known.spec.timeouts.probe_stale_s)
            if path.lost:
                self.post(session, PathDoubted(path.note))
            elif path.good_age_s is not None and path.good_age_s > limit_s:
                self.post(session, PathDoubted(f"nothing has come through for {path.good_age_s:.0f} s"))
        now = self.ports.clock.now()
        for session, known in [each for each in self.ready.items() if each[0] not in paths]:
            # Opened after the list was made? Then the next look will show it.
            limit_s = max(stale_s, known.spec.timeouts.probe_stale_s)
            if isinstance(known.state, Ready) and now - known.state.since > limit_s * 1000:
                self.post(session, PathDoubted("the relay has no path for this session"))

    async def _close_paths_of_nobody(self, paths: Mapping[SessionId, PathReport], call_s: float) -> None:
        """
        Paths whose session is over or has no use for one: left by a process that died at a bad moment.

        The store is asked, also about sessions that we work on: another process may have taken them further.
        """
        for session in [each for each in paths if each not in self.with_path]:
            try:
                stored = await self.ports.store.load(session)
            except StoreFailed:
                continue  # whose it is will be known at another look
            if stored is not None and isinstance(stored.session.state, Connecting | Ready | Degraded):
                continue
            if session in self.with_path:
                continue  # it came up while the store was asked
            log.warning("session %s has no use for its path; it is closed", session)
            try:
                await self.performing.call(call_s, lambda session=session: self.ports.tunnels.close(session))  # type: ignore[misc]
            except PortError as error:
                log.info("session %s: its path is still there: %s", session, error.note)

    # Sweep ------------------------------------------------------------------------------------------------------------

    async def _sweep(self, observer: Observer) -> None:
        """
        Compare the system's jobs with the store, once soon after the start and then now and then.

        The longer nothing has changed with somebody, the rarer: what nobody knows of comes from a change. On behalf of
        whom there was no answer is asked again sooner: what nobody knows of may be over by the next sweep.
        """
        clock, timeouts = self.ports.clock, observer.entry.timeouts
        at = Instant(clock.now() + int(timeouts.lookup_s * 1000))
        while True:
            await clock.sleep_until(at)
            at, pause_ms = Instant(clock.now() + int(timeouts.sweep_s * 1000)), int(timeouts.status_queued_s * 1000)
            owners = _to_sweep(observer, clock.now())
            while owners := await self._sweep_accounts(observer, owners):
                if clock.now() + pause_ms >= at:
                    break
                await clock.sleep_until(Instant(clock.now() + pause_ms))
                pause_ms *= 2

    async def _sweep_accounts(self, observer: Observer, owners: list[Owner]) -> list[Owner]:
        """On behalf of whom the system did not answer."""
        complete: dict[str, Instant] = {}
        for owner in owners:
            began = self.ports.clock.now()
            if await self._sweep_account(observer, owner):
                complete[_account(observer, owner)] = began
        self._swept(observer, complete)
        return [owner for owner in owners if _account(observer, owner) not in complete]

    def _swept(self, observer: Observer, complete: Mapping[str, Instant]) -> None:
        """
        Who has no session and no stray needs no sweep any more, once one has begun late enough to see everything.

        Args:
            complete: When the lookup on behalf of an account began that was answered.
        """
        timeouts, account = observer.entry.timeouts, partial(_account, observer)
        observer.swept.update(complete)
        late_ms = int(1000 * (timeouts.submit_s + timeouts.horizon_s))
        sessions = [known for known in map(self.look, observer.sessions) if known is not None]
        busy = {account(session.spec.key.owner) for session in sessions}
        busy |= {account(stray.handle.owner) for stray in observer.strays.values()}
        for owner, changed in list(observer.owners.items()):
            began = complete.get(account(owner))
            if began is not None and account(owner) not in busy and began - changed > late_ms:
                del observer.owners[owner]
        kept = {account(owner) for owner in observer.owners}
        observer.swept = {each: at for each, at in observer.swept.items() if each in kept}

    async def _sweep_account(self, observer: Observer, owner: Owner) -> bool:
        """Whether the system answered."""
        tag, system = deployment_tag(self.deployment), observer.entry.system
        try:
            found = await self.performing.observe(observer.name, "sweep", lambda: system.find(tag, owner))
            sightings = checked_sightings(found, observer.name)
            for sighting in sightings:
                if sighting.alive:
                    await self._account_for(observer, owner, sighting)
        except (PortError, StoreFailed) as error:
            log.info("%s: not swept: %s", observer.name, error)
            return False
        seen = {sighting.job for sighting in sightings if sighting.alive}
        for job, stray in list(observer.strays.items()):
            if stray.handle.owner == owner and job not in seen:
                del observer.strays[job]
        return True

    async def _account_for(self, observer: Observer, owner: Owner, sighting: Sighting) -> None:
        """A living job with our tag: known, or told to its session, or a stray."""
        named = parse_tag(sighting.tag)
        if named is None:
            return
        session_id, attempt = named
        session = self.look(session_id)
        if session is None:
            stored = await self.ports.store.load(session_id)
            session = None if stored is None else stored.session
        if session is None:
            await self._stray(observer, Handle(owner, sighting.tag, sighting.job))
        elif not _knows(session, sighting.job):
            self.post(session_id, StraySeen(attempt, sighting.job))

    async def _stray(self, observer: Observer, handle: Handle) -> None:
        """
        A job of no session: of a store that was lost or set back. It is kept for a grace time, then cancelled.

        Until then people can see it: it is residue that nobody else has.
        """
        now, timeouts = self.ports.clock.now(), observer.entry.timeouts
        stray = observer.strays.get(handle.job)
        if stray is None:
            if len(observer.strays) < STRAYS_LIMIT:
                observer.strays[handle.job] = Stray(observer.name, handle, now)
            return
        if now - stray.since < timeouts.stray_grace_s * 1000:
            return
        log.warning("%s: job %s carries our tag and belongs to no session; it is cancelled", observer.name, handle.job)
        await self.performing.cancel_stray(observer.name, handle)


def _keep(kept: dict[SessionId, Session], session: Session, belongs: bool) -> None:
    if belongs:
        kept[session.id] = session
    else:
        kept.pop(session.id, None)


def _may_have_path(session: Session) -> bool:
    if isinstance(session.state, Connecting | Ready | Degraded):
        return True
    return any(left.kind is Left.TUNNEL for left in session.residue)  # the machine is closing it


def _checked_paths(found: object) -> Mapping[SessionId, PathReport]:
    """The relay's answer; one of another type must not end the check of all paths."""
    # By their types and not one by one: there are thousands, every few seconds.
    if not isinstance(found, Mapping) or not all(
        issubclass(kind, PathReport) for kind in set(map(type, found.values()))
    ):
        raise Malformed("the relay answered with something else than its paths")
    return found


def _doubtful(paths: Mapping[SessionId, PathReport], stale_s: float) -> list[tuple[SessionId, PathReport]]:
    """Those that are lost or have not been good for long: hardly any of them."""
    return [
        (session, path)
        for session, path in paths.items()
        if path.lost or (path.good_age_s is not None and path.good_age_s > stale_s)
    ]


def _to_sweep(observer: Observer, now: Instant) -> list[Owner]:
    """
    Owners to look on behalf of: people with one account see the same jobs.

    Each time as long after the last one as that was after the last change, within bounds. An account with a stray is
    looked at every time: the stray is to be seen again before it is cancelled.
    """
    timeouts = observer.entry.timeouts
    accounts: dict[str, tuple[Owner, Instant]] = {}
    for owner, changed in observer.owners.items():
        account = _account(observer, owner)
        first, latest = accounts.get(account, (owner, changed))
        accounts[account] = (first, max(latest, changed))
    strays = {_account(observer, stray.handle.owner) for stray in observer.strays.values()}
    found = []
    for account, (owner, changed) in accounts.items():
        last = observer.swept.get(account)
        pause_ms = min(1000 * timeouts.sweep_quiet_s, max(1000 * timeouts.sweep_s, (now - changed) / 2))
        if last is None or account in strays or changed > last or now - last >= pause_ms - 1000:
            found.append(owner)
    return found


def _account(observer: Observer, owner: Owner) -> str:
    """The account that acts for this person; an adapter that fails to say gets every person swept for."""
    try:
        account = observer.entry.system.account(owner)
    except Exception as error:
        log.critical("an adapter raised what it may not", exc_info=error)
        return owner
    return account if isinstance(account, str) else owner


def _attempt_of(session: Session, job: JobId) -> int:
    return next((left.attempt for left in session.residue if left.job == job), session.attempt)


def _knows(session: Session, job: JobId) -> bool:
    state_job = getattr(session.state, "job", None)
    if state_job is not None and state_job.id == job:
        return True
    return any(left.kind is Left.JOB and left.job == job for left in session.residue)


def _is_news(said: Observation) -> bool:
    return not isinstance(said, Doubt) or said.reason is DoubtReason.NOT_LISTED
