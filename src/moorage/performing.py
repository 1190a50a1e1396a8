"""
Effects into calls: each effect is bounded calls over a port, nearly always one, and ends in exactly one event.

A system is behind a bulkhead. Its calls run in lanes (submit, status, watch, cancel, path), each with places of its
own, so that hanging submits hold up no cancel; the first three have circuit breakers, cancel has none. Nothing here
retries: what failed is an event, and the machine decides. A patient effect is no retry: it looks again for what takes
its time to come. An adapter that raises what it may not, hangs, or answers
with something of the wrong type is a typed failure of this one call.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar, assert_never

from attrs import define, evolve, field, frozen

from moorage.core.admission import Gate
from moorage.core.backoff import RetryBudget
from moorage.core.breaker import Breaker
from moorage.core.effects import (
    Cancel,
    CloseTunnel,
    Effect,
    Find,
    OpenTunnel,
    Probe,
    Publish,
    ReadEndpoint,
    ReadLog,
    Remove,
    Report,
    Revoke,
    Submit,
    Withdraw,
)
from moorage.core.events import (
    CancelAnswered,
    EffectFailed,
    EndpointRead,
    Event,
    Found,
    LogRead,
    Probed,
    Published,
    Removed,
    Revoked,
    Submitted,
    TunnelClosed,
    TunnelOpened,
    Withdrawn,
)
from moorage.core.gate import Unproven, check_document
from moorage.core.machine import look_again_ms
from moorage.core.model import (
    NEVER,
    NOTE_LIMIT,
    Alive,
    Connecting,
    Doubt,
    DoubtReason,
    Endpoint,
    EndReason,
    Failure,
    FailureKind,
    Gone,
    Instant,
    JobId,
    Observation,
    Phase,
    Route,
    Session,
    SessionId,
    SessionSpec,
    Sighting,
    Starting,
    SystemName,
    Tag,
    Waiting,
    Why,
    tag_of,
)
from moorage.core.plan import ENDPOINT_NAME, LOG_NAME, STATUS_NAME
from moorage.core.progress import Progress
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.clock import Clock
from moorage.ports.credentials import Credentials, Vault
from moorage.ports.errors import Malformed, Overloaded, PortError, Unanswered, Unreachable
from moorage.ports.hub import Hub
from moorage.ports.sessions import JobReport
from moorage.ports.system import Handle, System
from moorage.ports.tunnels import ProbeResult, Tunnels

log = logging.getLogger(__name__)

JOB_ID_LIMIT = 2_000
"""Characters of a job's id; UNICORE's are URLs. A longer one is an adapter gone wrong."""

STDERR_NAME = "stderr"
"""What the job itself wrote, for a launcher that never came as far as the lab's log."""

WATCH_CALLS = 2
"""The observer and the sweep of one system at once."""

PATH_CALLS = 64
"""Path calls of one system at once: they go to the relay, which bounds connects per host itself."""

_THINGS: Mapping[type[Effect], str] = {
    Submit: "secret",
    Revoke: "secret",
    OpenTunnel: "path",
    CloseTunnel: "path",
    Publish: "route",
    Withdraw: "route",
}
"""What an effect makes or removes."""

Answer = TypeVar("Answer")


@frozen
class SystemEntry:
    """
    A system as the runner has it.

    Args:
        destinations: Hosts that its launchers may name besides the job's own node.
        calls: How many calls of one lane run at once.
        queue: How many may wait for that; beyond it calls are refused as overloaded.
        closed: Why nobody may start now (maintenance, drained), or `None`; asked at every admission.
    """

    system: System
    timeouts: Timeouts = field(factory=Timeouts)
    destinations: tuple[str, ...] = ()
    calls: int = 16
    queue: int = 1_000
    closed: Callable[[Instant], str | None] = lambda _now: None


class Kind(Enum):
    """
    The lanes of a system. `WATCH` is for calls on behalf of many sessions: behind a thousand reports that wait to be
    read in the lane `STATUS`, nobody would learn for minutes what has become of the jobs.
    """

    SUBMIT = "submit"
    STATUS = "status"
    WATCH = "watch"
    CANCEL = "cancel"
    PATH = "path"


@define(eq=False)
class Lane:
    """One kind of call to one system: places, a queue, and what happened lately."""

    places: asyncio.Semaphore
    queue: int
    breaker: Breaker | None
    waiting: int = 0
    running: int = 0
    counted: Counter[str] = field(factory=Counter)

    def blocked(self, now: Instant, admitted: bool = False) -> bool:
        """
        Whether the breaker lets no call through now.

        Args:
            admitted: Admission has asked the breaker and has a place for this very call, unless it opened since.
        """
        if self.breaker is None or self.breaker.open_until is None:
            return False
        return now < self.breaker.open_until if admitted else self.breaker.places(now) == 0


class World(Protocol):
    """What is needed of `runner.Ports`."""

    @property
    def clock(self) -> Clock: ...
    @property
    def hub(self) -> Hub: ...
    @property
    def tunnels(self) -> Tunnels: ...
    @property
    def credentials(self) -> Credentials: ...
    @property
    def vault(self) -> Vault: ...
    @property
    def systems(self) -> Mapping[SystemName, SystemEntry]: ...


Post = Callable[[SessionId, Event], None]
Look = Callable[[SessionId], Session | None]


@define(eq=False)
class _Submission:
    """A submit under way. `called`: the system has been asked, so it may happen."""

    task: "asyncio.Task[None]"
    begun: bool = False
    called: bool = False
    given_up: bool = False


class Alarm:
    """
    Something to wait for that rings when it is told to, or at a time; perhaps earlier, so look what there is to do.

    However often it is set, one task at most sleeps for it.
    """

    def __init__(self, clock: Clock, spawn: "Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]") -> None:
        self._clock = clock
        self._spawn = spawn
        self._rung = asyncio.Event()
        self._until = NEVER
        self._sleeper: asyncio.Task[None] | None = None

    def ring(self) -> None:
        """Have whoever waits go on; or, if nobody does, whoever waits next."""
        self._rung.set()

    async def wait(self, until: Instant) -> None:
        """Until it is rung, or `until`."""
        if until < self._until:
            if self._sleeper is not None:
                self._sleeper.cancel()
            self._until = until
            self._sleeper = self._spawn(self._sleep(until))
        await self._rung.wait()
        self._rung.clear()

    async def _sleep(self, until: Instant) -> None:
        await self._clock.sleep_until(until)
        self._until, self._sleeper = NEVER, None
        self._rung.set()


class Performing:
    """Performs effects for the runner."""

    def __init__(self, ports: World, post: Post, look: Look) -> None:
        self.ports = ports
        self.post = post
        self.look = look
        # A dict keeps the order of starting, so that a crash in virtual time ends tasks in the same order each run.
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.lanes = {
            (name, kind): _lane(name, entry, kind, number)
            for number, (name, entry) in enumerate(sorted(ports.systems.items()))
            for kind in Kind
        }
        self.budgets = {name: RetryBudget() for name in ports.systems}
        self.submissions: dict[SessionId, _Submission] = {}
        self.turns: dict[tuple[SessionId, str], asyncio.Task[None]] = {}
        self.reports: dict[SessionId, tuple[SessionSpec, Progress] | None] = {}

    def loops(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Nothing runs here by itself."""
        return iter(())

    # Admission --------------------------------------------------------------------------------------------------------

    def gate(self, name: SystemName, now: Instant) -> Gate:
        """How open a system is for new sessions."""
        entry, lane = self.ports.systems[name], self.lanes[name, Kind.SUBMIT]
        reason = entry.closed(now)
        if reason is not None:
            return Gate(Why.MAINTENANCE, reason)
        assert lane.breaker is not None
        places = lane.breaker.places(now)
        if places == 0:
            return Gate(Why.BREAKER, f"{name} does not take jobs at the moment; it is tried again by itself")
        return Gate(places=places, retries=self.budgets[name].retries_left(now))

    def admitted(self, session: Session, now: Instant) -> None:
        """A place was given: its submit counts from now on."""
        name, state = session.spec.system, session.state
        retry = isinstance(state, Waiting) and state.tries > 0
        self.budgets[name] = self.budgets[name].spent(now, retry=retry)
        lane = self.lanes[name, Kind.SUBMIT]
        assert lane.breaker is not None
        lane.breaker = lane.breaker.started(now)

    # Effects ----------------------------------------------------------------------------------------------------------

    def start(self, session: SessionId, spec: SessionSpec, effects: Iterable[Effect], told: bool = True) -> None:
        """
        Start every effect, in order; each ends in one event for the session.

        Args:
            told: `False` for what is done although it cannot be saved. It is done again after the save, under the same
                number, and its first answer must not be taken for that of the second.
        """
        for effect in effects:
            if isinstance(effect, Report):
                self._report(spec, effect.progress)
                continue
            task = self._in_turn(spec, effect, told)
            if isinstance(effect, Submit):
                self.submissions[session] = _Submission(task)

    def _in_turn(self, spec: SessionSpec, effect: Effect, told: bool) -> "asyncio.Task[None]":
        """
        Perform one effect after the one before it that concerns the same thing.

        Making something and removing it must not overtake each other on their way: a route that is published after it
        was withdrawn would lead somewhere for ever.
        """
        thing = _THINGS.get(type(effect))
        if thing is None:
            return self._spawn(self._perform(spec, effect, told))
        before = self.turns.get((spec.id, thing))
        task = self._spawn(self._perform(spec, effect, told, before))
        self.turns[spec.id, thing] = task
        task.add_done_callback(lambda _task: self._turn_over(spec.id, thing, task))
        return task

    def _turn_over(self, session: SessionId, thing: str, task: "asyncio.Task[None]") -> None:
        if self.turns.get((session, thing)) is task:
            del self.turns[session, thing]

    def give_up_submit(self, session: SessionId) -> None:
        """A stop has overtaken the submit: what has not been asked yet is not asked any more."""
        submission = self.submissions.get(session)
        if submission is not None:
            submission.given_up = True
            # A task that is cancelled before its first step would end without its event.
            if submission.begun:
                submission.task.cancel()

    def alarm(self) -> "Alarm":
        """An alarm that rings by this process's clock."""
        return Alarm(self.ports.clock, self._spawn)

    def _spawn(self, work: Coroutine[Any, Any, Answer]) -> "asyncio.Task[Answer]":
        task = asyncio.get_running_loop().create_task(work)
        self.tasks[task] = None
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self.tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            log.critical("performing an effect failed with a bug", exc_info=task.exception())

    async def _perform(
        self, spec: SessionSpec, effect: Effect, told: bool, before: "asyncio.Task[None] | None" = None
    ) -> None:
        submission = self.submissions.get(spec.id) if isinstance(effect, Submit) else None
        try:
            if before is not None:
                await asyncio.wait([before])
            if submission is not None:
                submission.begun = True
                if submission.given_up:
                    raise Unreachable("given up because the session is to end")
            event = await self._answer(spec, effect)
        except PortError as error:
            event = EffectFailed(effect, error.as_failure())
        except asyncio.CancelledError:
            # A stop has overtaken the submit; or this process works no more, and then `post` drops the event.
            called = submission is None or submission.called
            kind = FailureKind.UNANSWERED if called else FailureKind.UNREACHABLE
            event = EffectFailed(effect, Failure(kind, "given up because the session is to end"))
        except Exception as error:
            # Ours, not an adapter's; the session must not wait for ever for what comes of it.
            log.critical("performing an effect failed with a bug", exc_info=error)
            event = EffectFailed(effect, Failure(FailureKind.MALFORMED, f"a bug: {type(error).__name__}"))
        finally:
            if submission is not None:
                self.submissions.pop(spec.id, None)
                if not submission.called:
                    self._not_tried(spec.system)
        if told:
            self.post(spec.id, event)

    def _not_tried(self, name: SystemName) -> None:
        """The submit that was let through a half-open breaker was never made: another one may try."""
        lane = self.lanes.get((name, Kind.SUBMIT))
        if lane is not None and lane.breaker is not None:
            lane.breaker = evolve(lane.breaker, trying=None)

    async def _answer(self, spec: SessionSpec, effect: Effect) -> Event:
        match effect:
            case Submit():
                return await self._submit(spec, effect)
            case Find(tag=tag):
                asked_at = self.ports.clock.now()
                sightings = await self._find(spec, tag)
                return Found(effect.attempt, asked_at, sightings)
            case Cancel():
                return await self._cancel(spec, effect)
            case ReadEndpoint(patient=True):
                return await self._patiently(spec, effect, lambda: self._read_endpoint(spec, effect), _not_there)
            case ReadEndpoint():
                return await self._read_endpoint(spec, effect)
            case ReadLog():
                return LogRead(effect.job, await self._read_log(spec, effect))
            case Remove(job=job):
                handle = Handle(spec.key.owner, effect.tag, job)
                await self._on_system(spec, Kind.CANCEL, "remove", lambda system: system.remove(handle))
                return Removed(job)
            case OpenTunnel(number=number):
                return TunnelOpened(number, await self._open(spec, effect))
            case Probe(number=number, patient=True):
                return await self._patiently(spec, effect, lambda: self._probe(spec, number), _no_lab)
            case Probe(number=number):
                return await self._probe(spec, number)
            case CloseTunnel(number=number):
                await self._bounded(spec.timeouts.tunnel_close_s, lambda: self.ports.tunnels.close(spec.id))
                return TunnelClosed(number)
            case Publish(route=route):
                await self._bounded(spec.timeouts.call_s, lambda: self.ports.hub.publish(spec, route))
                return Published(route)
            case Withdraw(number=number):
                await self._bounded(spec.timeouts.call_s, lambda: self.ports.hub.withdraw(spec))
                return Withdrawn(number)
            case Revoke(number=number):
                await self._bounded(spec.timeouts.call_s, lambda: self.ports.credentials.revoke(spec.id))
                return Revoked(number)
            case Report():
                raise AssertionError("reports are lossy and have no answer")
            case _:
                assert_never(effect)

    async def _submit(self, spec: SessionSpec, effect: Submit) -> Event:
        await self._issue(spec, effect.attempt)

        async def call(system: System) -> JobId:
            submission = self.submissions.get(spec.id)
            if submission is not None:
                submission.called = True
            return await system.submit(effect.tag, spec)

        job = await self._on_system(spec, Kind.SUBMIT, "submit", call, spec.timeouts.submit_s)
        if not _is_job(job):
            raise Malformed(f"the adapter of {spec.system} answered a submit with no job id")
        return Submitted(effect.attempt, job)

    async def _issue(self, spec: SessionSpec, attempt: int) -> None:
        """Make the secrets of this attempt; not given up half-way, or they could come after their revocation."""

        async def issue() -> PortError | None:
            try:
                await self._bounded(spec.timeouts.call_s, lambda: self.ports.credentials.issue(spec, attempt))
            except PortError as error:
                return error
            return None

        issuing = self._spawn(issue())
        try:
            error = await asyncio.shield(issuing)
        except asyncio.CancelledError:
            await asyncio.wait([issuing])
            raise
        if error is not None:
            raise error

    async def _find(self, spec: SessionSpec, tag: Tag) -> tuple[Sighting, ...]:
        owner = spec.key.owner
        found = await self._on_system(spec, Kind.STATUS, "find", lambda system: system.find(tag, owner))
        return checked_sightings(found, spec.system)

    async def _cancel(self, spec: SessionSpec, effect: Cancel) -> Event:
        handle = Handle(spec.key.owner, effect.tag, effect.job)
        asked_at = self.ports.clock.now()
        said = await self._on_system(spec, Kind.CANCEL, "cancel", lambda system: system.cancel(handle))
        observation = checked_observation(said)
        if observation is None:
            raise Malformed(f"the adapter of {spec.system} answered a cancel with no observation")
        return CancelAnswered(effect.job, asked_at, observation)

    async def _read_endpoint(self, spec: SessionSpec, effect: ReadEndpoint) -> Event:
        handle = Handle(spec.key.owner, effect.tag, effect.job)
        report = await self._file(spec, handle, ENDPOINT_NAME)
        if report is None:
            return EndpointRead(effect.attempt, effect.job, None)
        endpoint = await self._proven_endpoint(spec, effect, report)
        return EndpointRead(effect.attempt, effect.job, endpoint)

    async def _patiently(
        self,
        spec: SessionSpec,
        effect: ReadEndpoint | Probe,
        look: Callable[[], Coroutine[Any, Any, Event]],
        fruitless: Callable[[Event], bool],
    ) -> Event:
        """
        Look again until something is there, the session has gone on without it, or one call's time is over.

        Nothing is held between two looks, and nothing is saved: that nothing is there yet is no news.
        """
        clock, timeouts = self.ports.clock, spec.timeouts
        state = _state_of(self.look(spec.id), effect)
        until = clock.now() + int(timeouts.call_s * 1000)
        while True:
            event = await look()
            now = clock.now()
            if state is None or not fruitless(event) or now >= until:
                return event
            await clock.sleep_until(Instant(now + look_again_ms(state.since, timeouts, now)))
            if _state_of(self.look(spec.id), effect) is None:
                return event

    async def _proven_endpoint(self, spec: SessionSpec, effect: ReadEndpoint, report: bytes) -> Endpoint:
        """What the launcher said about itself. A file that anybody else wrote is worth nothing."""
        try:
            secret = await self._gate_secret(spec, effect.attempt)
            said = check_document(secret, "endpoint", effect.tag, report)
            host, port, socket = said.get("host", ""), said.get("port", 0), said.get("socket", "")
            return Endpoint(str(host), int(port), str(socket), str(said["nonce"]))
        except (Unproven, KeyError, TypeError, ValueError, OverflowError) as error:
            raise Malformed(f"the launcher's report is not believed: {error}") from error

    async def _gate_secret(self, spec: SessionSpec, attempt: int) -> Secret:
        async def call() -> Secret:
            try:
                return await self.ports.vault.gate(spec.id, attempt)
            except KeyError as error:
                # A word of the vault's contract; of any other port it would be a bug.
                raise Malformed("the gate secret of this attempt is gone") from error

        return await self._bounded(spec.timeouts.call_s, call)

    async def job_report(self, spec: SessionSpec, attempt: int, job: JobId) -> JobReport | None:
        """See `Sessions.job_report`."""
        tag = tag_of(spec, attempt)
        handle = Handle(spec.key.owner, tag, job)
        report = await self._file(spec, handle, STATUS_NAME)
        if report is None:
            return None
        try:
            secret = await self._gate_secret(spec, attempt)
            return _job_report(check_document(secret, "status", tag, report))
        except (Unproven, KeyError, TypeError, ValueError, OverflowError) as error:
            raise Malformed(f"the launcher's report is not believed: {error}") from error

    async def _read_log(self, spec: SessionSpec, effect: ReadLog) -> str:
        handle = Handle(spec.key.owner, effect.tag, effect.job)
        for name in (LOG_NAME, STDERR_NAME):
            text = await self._file(spec, handle, name)
            if text:
                return text.decode("utf-8", "replace")
        return ""

    async def _file(self, spec: SessionSpec, handle: Handle, name: str) -> bytes | None:
        found = await self._on_system(spec, Kind.STATUS, "read", lambda system: system.read(handle, name))
        if found is not None and not isinstance(found, bytes):
            raise Malformed(f"the adapter of {spec.system} answered a read with no bytes")
        return found

    async def _open(self, spec: SessionSpec, effect: OpenTunnel) -> Route:
        def call() -> Awaitable[Route]:
            return self.ports.tunnels.open(spec, effect.attempt, effect.job, effect.endpoint)

        seconds = spec.timeouts.connect_s + spec.timeouts.call_s
        route = await self._in_lane(spec.system, Kind.PATH, "open", seconds, call)
        if not isinstance(route, Route) or not _is_text(route.address):
            raise Malformed("the relay answered with no route")
        return route

    async def _probe(self, spec: SessionSpec, number: int) -> Event:
        seconds = 2 * spec.timeouts.probe_s  # the relay keeps to the deadline itself; this is for a relay that hangs
        result = await self._in_lane(
            spec.system, Kind.PATH, "probe", seconds, lambda: self.ports.tunnels.probe(spec.id)
        )
        if not (isinstance(result, ProbeResult) and isinstance(result.good, bool) and isinstance(result.note, str)):
            raise Malformed("the relay answered a probe with no result")
        return Probed(number, result.good, result.note[:NOTE_LIMIT], result.proven is True)

    # Calls ------------------------------------------------------------------------------------------------------------

    async def _on_system(
        self,
        spec: SessionSpec,
        kind: Kind,
        verb: str,
        call: Callable[[System], Awaitable[Answer]],
        deadline_s: float | None = None,
    ) -> Answer:
        entry = self.ports.systems.get(spec.system)
        if entry is None:
            raise Unreachable(f"{spec.system} is not configured any more")
        seconds = spec.timeouts.call_s if deadline_s is None else deadline_s
        return await self._in_lane(spec.system, kind, verb, seconds, lambda: call(entry.system))

    async def observe(self, name: SystemName, verb: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """A status call on behalf of many sessions."""
        return await self._in_lane(name, Kind.WATCH, verb, self.ports.systems[name].timeouts.call_s, call)

    async def cancel_stray(self, name: SystemName, job: Handle) -> None:
        """End a job that belongs to no session; what comes of it the next sweep shows."""
        entry = self.ports.systems[name]
        try:
            await self._in_lane(name, Kind.CANCEL, "cancel", entry.timeouts.call_s, lambda: entry.system.cancel(job))
        except PortError as error:
            log.info("%s: stray job %s is still there: %s", name, job.job, error.note)

    async def call(self, seconds: float, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """A call that concerns no single system, bounded like all others."""
        return await self._bounded(seconds, call)

    async def _in_lane(
        self, name: SystemName, kind: Kind, verb: str, seconds: float, call: Callable[[], Awaitable[Answer]]
    ) -> Answer:
        """One call: wait for a place, make it within its deadline, tell the breaker."""
        lane = self.lanes.get((name, kind))
        if lane is None:
            raise Unreachable(f"{name} is not configured any more")
        self._ask_breaker(name, kind)
        if lane.waiting >= lane.queue:
            raise Overloaded(f"{lane.queue} calls to {name} are waiting already")
        await self._placed(lane, name, kind)
        lane.counted[verb] += 1
        if lane.breaker is not None and kind is not Kind.SUBMIT:
            lane.breaker = lane.breaker.started(self.ports.clock.now())
        try:
            answer = await self._bounded(seconds, call)
        except PortError as error:
            lane.counted[f"{verb} failed"] += 1
            if lane.breaker is not None:
                lane.breaker = lane.breaker.failed(error.kind, self.ports.clock.now())
            raise
        else:
            if lane.breaker is not None:
                lane.breaker = lane.breaker.succeeded()
            return answer
        finally:
            lane.running -= 1
            lane.places.release()

    async def _placed(self, lane: Lane, name: SystemName, kind: Kind) -> None:
        """Have a place in the lane."""
        waits = lane.places.locked()
        lane.waiting += 1
        try:
            await lane.places.acquire()
        finally:
            lane.waiting -= 1
        lane.running += 1
        try:
            if waits:  # those who were before us in the queue may have opened the breaker meanwhile
                self._ask_breaker(name, kind)
        except PortError:
            lane.running -= 1
            lane.places.release()
            raise

    def _ask_breaker(self, name: SystemName, kind: Kind) -> None:
        if self.lanes[name, kind].blocked(self.ports.clock.now(), admitted=kind is Kind.SUBMIT):
            raise Unreachable(f"{name} does not answer at the moment; it is tried again by itself")

    async def _bounded(self, seconds: float, call: Callable[[], Awaitable[Answer]]) -> Answer:
        """
        The answer within a deadline, or a `PortError`.

        Anything else that an adapter raises is its bug, loud in the log, and may have happened; so is a cancellation
        that nobody asked for.
        """
        try:
            async with asyncio.timeout(seconds):
                return await call()
        except TimeoutError as error:
            raise Unanswered(f"no answer within {seconds:g} s") from error
        except PortError as error:
            _mend(error)
            raise
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Malformed("the adapter gave its own call up") from error
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            # Libraries have exceptions of their own below `Exception`, and `sys.exit` must not end the Hub's process.
            log.critical("an adapter raised what it may not", exc_info=error)
            raise Malformed(f"the adapter failed with a bug: {type(error).__name__}") from error

    # Reports ----------------------------------------------------------------------------------------------------------

    def _report(self, spec: SessionSpec, progress: Progress) -> None:
        """Tell the Hub, one report at a time for each session; what is overtaken meanwhile is not told."""
        busy = spec.id in self.reports
        self.reports[spec.id] = (spec, progress)
        if not busy:
            self._spawn(self._tell(spec.id))

    async def _tell(self, session: SessionId) -> None:
        try:
            while (told := self.reports[session]) is not None:
                self.reports[session] = None
                await self._tell_once(*told)
        finally:
            del self.reports[session]

    async def _tell_once(self, spec: SessionSpec, progress: Progress) -> None:
        try:
            await self._bounded(spec.timeouts.call_s, lambda: self.ports.hub.report(spec, progress))
        except PortError as error:
            log.info("session %s: progress not reported: %s", spec.id, error.note)


# What adapters answer -------------------------------------------------------------------------------------------------
#
# It is saved, and what has a wrong type there can never be loaded again: so it is looked at here, to the last field.


def checked_sightings(found: object, name: SystemName) -> tuple[Sighting, ...]:
    """A lookup's answer; an adapter that answers with something else must not end a session."""
    if not isinstance(found, Sequence) or not all(map(_is_sighting, found)):
        raise Malformed(f"the adapter of {name} answered a lookup with something else")
    return tuple(found)


def checked_observation(said: object) -> Observation | None:
    """What is said about a job, its note bounded; `None` if it is no observation."""
    match said:
        case Alive(Phase(), node, ends_at, str()) if (node is None or _is_text(node)) and _is_whole(ends_at):
            return _short(said)
        case Gone(EndReason(), code, str()) if _is_whole(code):
            return _short(said)
        case Doubt(DoubtReason(), str()):
            return _short(said)
        case _:
            return None


def _short(said: Observation) -> Observation:
    return said if len(said.note) <= NOTE_LIMIT else evolve(said, note=said.note[:NOTE_LIMIT])


def _is_sighting(each: object) -> bool:
    return isinstance(each, Sighting) and _is_job(each.job) and _is_text(each.tag) and isinstance(each.alive, bool)


def _is_job(job: object) -> bool:
    return isinstance(job, str) and 0 < len(job) <= JOB_ID_LIMIT


def _is_text(text: object) -> bool:
    return isinstance(text, str) and len(text) <= JOB_ID_LIMIT


def _is_whole(number: object) -> bool:
    return number is None or (isinstance(number, int) and not isinstance(number, bool) and abs(number) < 1 << 62)


def _mend(error: PortError) -> None:
    """Its kind is what counts; a note or a wish of another type than text and number becomes one."""
    note, wish = getattr(error, "note", None), getattr(error, "retry_after_s", None)
    error.note = note[:NOTE_LIMIT] if isinstance(note, str) else f"{type(error).__name__} ({type(note).__name__})"
    error.retry_after_s = wish if isinstance(wish, int | float) else None


def _not_there(event: Event) -> bool:
    return isinstance(event, EndpointRead) and event.endpoint is None


def _no_lab(event: Event) -> bool:
    return isinstance(event, Probed) and event.proven and not event.good


def _state_of(session: Session | None, effect: ReadEndpoint | Probe) -> Starting | Connecting | None:
    """The state that a patient effect is for, while the session is in it."""
    if session is None or session.attempt != effect.attempt:
        return None
    match session.state, effect:
        case Starting() as state, ReadEndpoint(job=job) if state.job.id == job:
            return state
        case Connecting() as state, Probe(number=number) if state.asked == number:
            return state
        case _:
            return None


def _job_report(said: Mapping[str, Any]) -> JobReport:
    left_s, code = said["walltime_left_s"], said["exit_code"]
    return JobReport(
        state=str(said["state"]),
        steps=tuple((str(name), int(at)) for name, at in said["steps"]),
        left_s=None if left_s is None else int(left_s),
        exit_code=None if code is None else int(code),
        log=tuple(str(line) for line in said["log"]),
    )


def _lane(name: SystemName, entry: SystemEntry, kind: Kind, number: int) -> Lane:
    calls = {Kind.PATH: PATH_CALLS, Kind.WATCH: WATCH_CALLS}.get(kind, entry.calls)
    seed = sum(map(ord, name)) * 8 + number
    breaker = Breaker(seed) if kind in (Kind.SUBMIT, Kind.STATUS, Kind.WATCH) else None
    return Lane(asyncio.Semaphore(calls), entry.queue, breaker)


__all__ = ["Alarm", "Kind", "Performing", "SystemEntry", "checked_observation", "checked_sightings"]
