"""
The session machine: all state changes of the package happen in this file.

`begin` makes a session, `step` takes it one event further, `wake_at` says when it wants to be woken, `watches` which of
its jobs should be asked about and how often. All are pure: time is an argument, chance is a number in the spec.

The machine is level-driven: a state holds `due`, the time of its next act, so that a lost answer, a late wake-up and a
restart all come to the same thing. Answers are known by attempt, or by the number of the effect they answer (`asked`).
Events that come twice, late or for an old attempt are ordinary: they change nothing, and a living job that such an
event names is cancelled.
"""

from collections.abc import Callable
from typing import Any, assert_never

from attrs import evolve, frozen

from .backoff import full_jitter_ms
from .effects import (
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
from .events import (
    Admitted,
    CancelAnswered,
    EffectFailed,
    EndpointRead,
    Event,
    Found,
    Held,
    LogRead,
    Observed,
    PathDoubted,
    Probed,
    Published,
    Removed,
    Resumed,
    Revoked,
    StopAsked,
    StraySeen,
    Submitted,
    TunnelClosed,
    TunnelOpened,
    Withdrawn,
    Woke,
)
from .model import (
    NEVER,
    NOTE_LIMIT,
    Alive,
    Cause,
    Connecting,
    Degraded,
    Desired,
    Doubt,
    DoubtReason,
    Ended,
    Endpoint,
    EndReason,
    Evidence,
    Failure,
    FailureKind,
    Gone,
    Instant,
    Job,
    JobId,
    Left,
    Locating,
    Observation,
    Phase,
    Queued,
    Ready,
    Residue,
    Route,
    Session,
    SessionSpec,
    Sighting,
    Starting,
    State,
    Stopping,
    Submitting,
    Suspicion,
    Waiting,
    Why,
    WithJob,
    tag_of,
)
from .plan import EXIT_WALLTIME, GATE_SOCKET_NAME
from .progress import progress_of
from .timeouts import Timeouts

UNAUTHORISED_TRIES = 3  # a stale token is refreshed by then; more tries only annoy the site
LOG_TRIES = 3  # the log is a courtesy: an end must not wait for it
LOG_LIMIT = 8_000  # characters of a job's log kept as evidence: about a hundred lines
REREAD_EVERY = 3  # failed repairs until the launcher is asked again where it is
RETRY_AFTER_S = (1.0, 3600.0)  # a system's wish is clamped: 0, -1 and 10**9 have all been seen


@frozen
class Decision:
    """
    What follows from one event.

    Args:
        session: The session afterwards; the very same object if nothing changed.
        effects: To be performed after the session is saved, in this order of starting.
        wake_at: When the session wants `Woke`; `NEVER` if only an answer can move it.
    """

    session: Session
    effects: tuple[Effect, ...]
    wake_at: Instant


def begin(spec: SessionSpec) -> Decision:
    """A new session: it waits to be admitted."""
    turn = _Turn(Session(spec, Waiting(Why.ASKED, spec.asked_at)), spec.asked_at)
    turn.report()
    return turn.decision()


def step(session: Session, event: Event, now: Instant) -> Decision:
    """
    Take a session one event further.

    Args:
        now: The time at which the event is handled; not before the time of any earlier event.

    Total: every state takes every event. An event that means nothing to the state returns the very same session.
    """
    turn = _Turn(session, now)
    state = session.state
    if isinstance(event, Found):
        _found_residue(turn, event)
    match state:
        case Waiting():
            _waiting(turn, state, event)
        case Submitting():
            _submitting(turn, state, event)
        case Locating():
            _locating(turn, state, event)
        case Queued():
            _queued(turn, state, event)
        case Starting():
            _starting(turn, state, event)
        case Connecting():
            _connecting(turn, state, event)
        case Ready():
            _ready(turn, state, event)
        case Degraded():
            _degraded(turn, state, event)
        case Stopping() | Ended():
            _anywhere(turn, event)
        case _:
            assert_never(state)
    if isinstance(event, Woke | Resumed):
        _look_again(turn)
        _act_on_residue(turn, every=isinstance(event, Resumed))
    _finish_stop(turn)
    return turn.decision()


def wake_at(session: Session) -> Instant:
    """When the session wants to be woken next, if nothing is heard until then."""
    at = _state_wake(session)
    for left in session.residue:
        if left.due < at:
            at = left.due
    return at


@frozen
class Watch:
    """A job to ask about: `interval_ms` after its last reading. `urgent`: a repeated reading matters, too."""

    job: JobId
    interval_ms: int
    urgent: bool = False


def watches(session: Session, now: Instant) -> tuple[Watch, ...]:
    """The jobs of this session that the observer of its system has to ask about, and how often."""
    state, timeouts = session.state, session.spec.timeouts
    found: tuple[Watch, ...] = ()
    match state:
        case Queued() | Starting() | Connecting() | Ready() if state.suspicion is not None:
            found = (Watch(state.job.id, _ms(timeouts.confirm_s), urgent=True),)
        case Queued():
            found = (Watch(state.job.id, _aging(state.since, timeouts.status_queued_s, timeouts.status_first_s, now)),)
        case Starting() | Connecting():
            # What these wait for, the launcher and the lab, is looked for directly; this is for the end of the job.
            found = (Watch(state.job.id, _ms(timeouts.status_starting_s)),)
        case Ready():
            found = (Watch(state.job.id, _ms(timeouts.status_ready_s)),)
        case Degraded():
            found = (Watch(state.job.id, _ms(timeouts.status_starting_s), urgent=True),)
        case _:
            pass
    for left in session.residue:
        if left.kind is Left.JOB and left.job is not None:
            found += (Watch(left.job, _ms(timeouts.status_starting_s), urgent=True),)
    return found


def look_again_ms(since: Instant, timeouts: Timeouts, now: Instant) -> int:
    """
    How long to wait until the next look at what is starting: short at first, then a quarter of the state's age.

    A look into the job's own directory, or through its own path, asks no scheduler: it may come sooner than the
    question how the job is. A quarter of a second each, for the launcher and the lab, is what people wait for.
    """
    return max(1, _aging(since, timeouts.status_starting_s, timeouts.status_first_s / 4, now))


def _aging(since: Instant, slow_s: float, first_s: float, now: Instant) -> int:
    """The older a state, the rarer the question: what has not changed for long rarely changes now."""
    return int(min(slow_s * 1000, max(first_s * 1000, (now - since) / 4)))


# The states, in the order of a normal life ----------------------------------------------------------------------------


def _waiting(turn: "_Turn", state: Waiting, event: Event) -> None:
    match event:
        case Admitted() if turn.now >= state.not_before:
            turn.attempt += 1
            turn.run = 1
            turn.go(Submitting(turn.now, state.tries))
            turn.ask(Submit, tag=tag_of(turn.spec, turn.attempt), retry=state.tries > 0)
        case Held(why, note):
            turn.set(evolve(state, why=why, note=note[:NOTE_LIMIT]))
        case Woke() if turn.now >= _waiting_deadline(turn.session):
            _begin_stop(turn, Cause.WAITED_TOO_LONG, Evidence(state.note))
        case _:
            _anywhere(turn, event)


def _submitting(turn: "_Turn", state: Submitting, event: Event) -> None:
    match event:
        case Submitted(attempt, job) | StraySeen(attempt, job) if attempt == turn.attempt:
            turn.go(Queued(Job(job), turn.now))
        case EffectFailed(Submit(attempt=attempt), failure) if attempt == turn.attempt:
            _submit_failed(turn, state, failure)
        case Resumed():
            # Whether the call was made before the process died, nobody knows.
            _locate(turn, state.tries)
        case _:
            _anywhere(turn, event)


def _submit_failed(turn: "_Turn", state: Submitting, failure: Failure) -> None:
    note, tries = failure.note[:NOTE_LIMIT], state.tries + 1
    match failure.kind:
        case FailureKind.REFUSED:
            _begin_stop(turn, Cause.REFUSED, Evidence(note), job_may_exist=False)
        case FailureKind.UNAUTHORISED if tries >= UNAUTHORISED_TRIES:
            _begin_stop(turn, Cause.UNAUTHORISED, Evidence(note), job_may_exist=False)
        case FailureKind.UNREACHABLE | FailureKind.OVERLOADED | FailureKind.UNAUTHORISED:
            turn.go(Waiting(Why.RETRY, turn.now, note, tries, turn.after_failure(tries, failure)))
        case FailureKind.UNANSWERED | FailureKind.MALFORMED:
            _locate(turn, state.tries)
        case _:
            assert_never(failure.kind)


def _locate(turn: "_Turn", tries: int) -> None:
    turn.go(Locating(turn.now, turn.answer_due(), tries))
    turn.ask(Find, tag=tag_of(turn.spec, turn.attempt))


def _locating(turn: "_Turn", state: Locating, event: Event) -> None:
    match event:
        case Submitted(attempt, job) | StraySeen(attempt, job) if attempt == turn.attempt:
            turn.go(Queued(Job(job), turn.now))
        case Found(attempt, _, sightings) if attempt == turn.attempt and sightings:
            # Several jobs of one attempt: a server that made one per repeated request. One is ours, the rest goes.
            ours = min(sightings, key=lambda sighting: not sighting.alive)
            turn.go(Queued(Job(ours.job), turn.now))
            _leave_strays(turn, attempt, sightings)
        case Found(attempt, asked_at, _) if attempt == turn.attempt:
            _not_located(turn, state, asked_at)
        case EffectFailed(Find(attempt=attempt)) if attempt == turn.attempt:
            turn.set(evolve(state, due=turn.in_s(turn.spec.timeouts.lookup_s)))
        case Woke() | Resumed() if turn.now >= state.due or isinstance(event, Resumed):
            turn.set(evolve(state, due=turn.answer_due()))
            turn.ask(Find, tag=tag_of(turn.spec, turn.attempt))
        case _:
            _anywhere(turn, event)


def _not_located(turn: "_Turn", state: Locating, asked_at: Instant) -> None:
    """Absent once may be too early to see it; absent again after the horizon is absent."""
    first = asked_at if state.absent_since is None else state.absent_since
    visible_at = first + _ms(turn.spec.timeouts.horizon_s)
    if asked_at >= visible_at:
        tries = state.tries + 1
        turn.go(Waiting(Why.RETRY, turn.now, "the job was lost on its way", tries, turn.backoff_at(tries)))
    else:
        due = max(turn.now + 1, min(visible_at, turn.in_s(turn.spec.timeouts.lookup_s)))
        turn.set(evolve(state, absent_since=first, due=Instant(due)))


def _queued(turn: "_Turn", state: Queued, event: Event) -> None:
    match event:
        case Observed(job, _, Alive(phase=Phase.RUNNING) as alive) if job == state.job.id:
            turn.go(Starting(_as_seen(turn, state.job, alive), turn.now, turn.patient_due()))
            turn.ask_about(ReadEndpoint, state.job.id, patient=True)
        case Observed(job, _, Alive() as alive) if job == state.job.id:
            _seen_alive(turn, state, alive)
        case Observed(job, asked_at, Doubt(DoubtReason.NOT_LISTED)) if job == state.job.id and _is_new(
            turn.session, state, asked_at
        ):
            pass  # it was created a moment ago, and listings need a moment
        case Woke() if turn.now >= _queue_deadline(turn.session, state):
            _begin_stop(turn, Cause.QUEUED_TOO_LONG, Evidence(state.job.note))
        case _:
            _with_job(turn, state, event)


def _starting(turn: "_Turn", state: Starting, event: Event) -> None:
    match event:
        case EndpointRead(attempt, job, endpoint) if attempt == turn.attempt and job == state.job.id:
            _endpoint_read(turn, state, endpoint)
        case EffectFailed(ReadEndpoint(attempt=attempt, job=job)) if attempt == turn.attempt and job == state.job.id:
            turn.set(evolve(state, due=turn.in_s(turn.spec.timeouts.status_starting_s)))
        case Observed(job, _, Alive(phase=Phase.PENDING) as alive) if job == state.job.id:
            _requeued(turn, state, alive)
        case Observed(job, _, Alive() as alive) if job == state.job.id:
            _seen_alive(turn, state, alive)
        case Woke() if turn.now >= _boot_deadline(turn.session, state):
            _begin_stop(
                turn, Cause.BOOT_TIMED_OUT, Evidence(state.note or "the launcher did not report where it listens")
            )
        case Woke() | Resumed() if turn.now >= state.due or isinstance(event, Resumed):
            turn.set(evolve(state, due=turn.patient_due()))
            turn.ask_about(ReadEndpoint, state.job.id, patient=True)
        case _:
            _with_job(turn, state, event)


def _endpoint_read(turn: "_Turn", state: Starting, endpoint: Endpoint | None) -> None:
    if endpoint is not None and not may_dial(turn.spec, state.job, endpoint):
        _not_allowed(turn, state, endpoint)
        return
    # An old path that is still being removed must not take the new one with it.
    if endpoint is None or turn.has_left(Left.TUNNEL) or turn.has_left(Left.ROUTE):
        turn.set(evolve(state, due=turn.soon(state.since)))
        return
    asked = turn.serial + 2  # the report comes first
    turn.go(Connecting(state.job, endpoint, turn.now, turn.answer_due(), asked, suspicion=state.suspicion))
    turn.ask(OpenTunnel, job=state.job.id, endpoint=endpoint)


def _not_allowed(turn: "_Turn", state: Starting, endpoint: Endpoint) -> None:
    """Said aloud, because it looks like a slow start and is a line missing in the configuration."""
    where = repr(endpoint.host or endpoint.socket)[:100]
    note = f"the job reports {where}, which is neither its node ({state.job.node}) nor an allowed destination"
    tell = turn.set if note == state.note else turn.go
    tell(evolve(state, due=turn.soon(state.since), note=note[:NOTE_LIMIT]))


def _connecting(turn: "_Turn", state: Connecting, event: Event) -> None:
    match event:
        case TunnelOpened(number, route) if number == state.asked:
            # What is wrong with the path the first probe says; nearly always it is only the lab that needs its time.
            if not state.note:
                state = evolve(state, note="waiting for the lab")
                turn.go(state)
            turn.set(evolve(state, route=route, asked=turn.serial + 1, due=turn.patient_due()))
            turn.ask(Probe, patient=True)
        case Probed(number, good=True) if number == state.asked and state.route is not None:
            turn.go(_ready_now(turn, state, state.route, published=False))
            turn.ask(Publish, route=state.route)
        case Probed(number, _, note, proven) if number == state.asked:
            said = note[:NOTE_LIMIT]
            tell = turn.set if said == state.note else turn.go
            kept = state.route if proven else None
            tell(evolve(state, asked=0, tries=state.tries + 1, due=turn.soon(state.since), note=said, route=kept))
        case EffectFailed(Probe(number=number) | OpenTunnel(number=number)) if number == state.asked:
            turn.set(evolve(state, asked=0, tries=state.tries + 1, due=turn.repair_at(state.tries + 1), route=None))
        case EndpointRead(attempt, job, endpoint) if _has_moved(turn, state, attempt, job, endpoint):
            _moved(turn, state)
        case Observed(job, _, Alive(phase=Phase.PENDING) as alive) if job == state.job.id:
            _requeued(turn, state, alive)
        case Observed(job, _, Alive() as alive) if job == state.job.id:
            _seen_alive(turn, state, alive)
        case Woke() if turn.now >= _connecting_deadline(turn.session, state):
            _begin_stop(turn, Cause.CONNECT_TIMED_OUT, Evidence("the job runs but no path to it could be made"))
        case Woke() if turn.now >= state.due and state.route is not None and not state.asked:
            # The path is there and leads to our launcher; what is missing is its lab.
            turn.set(evolve(state, asked=turn.serial + 1, due=turn.patient_due()))
            turn.ask(Probe, patient=True)
        case Woke() | Resumed() if turn.now >= state.due or isinstance(event, Resumed):
            _repair(turn, state)
        case _:
            _with_job(turn, state, event)


def _ready(turn: "_Turn", state: Ready, event: Event) -> None:
    match event:
        # The most frequent event of all comes first.
        case Observed(job, _, Alive(phase=Phase.RUNNING) as alive) if job == state.job.id and _same_node(state, alive):
            _seen_alive(turn, state, alive)
        case Probed(number, good=True) if number == state.asked:
            timeouts = turn.spec.timeouts
            # While the Hub does not know the route there is more to do soon than to probe.
            next_s = timeouts.probe_ready_s if state.published else timeouts.status_starting_s
            turn.set(evolve(state, asked=0, due=turn.in_s(next_s)))
        case Probed(number, _, note) if number == state.asked:
            _degrade(turn, state, note, tries=1)
        case EffectFailed(Probe(number=number), failure) if number == state.asked:
            _degrade(turn, state, failure.note, tries=1)
        case PathDoubted(note):
            _degrade(turn, state, note, tries=0)
        case Published(route) if route == state.route:
            turn.set(evolve(state, published=True))
        case EffectFailed(Publish(route=route)) if route == state.route and not state.published:
            turn.set(evolve(state, due=min(state.due, turn.in_s(turn.spec.timeouts.status_starting_s))))
        case Observed(job, _, Alive()) if job == state.job.id:
            # Pending again, ending, or on another node: perhaps a requeue, perhaps a passing reading. The path tells.
            _probe_now(turn, state)
        case Observed(job, asked_at, Gone() as proof) if job == state.job.id:
            # A system that has lost its data calls living jobs finished. While the lab answers, the session stays.
            _probe_now(turn, evolve(state, suspicion=_confirm(turn, state.suspicion, proof, asked_at)[0]))
        case Woke() | Resumed() if turn.now >= state.due or isinstance(event, Resumed):
            _probe_now(turn, evolve(state, asked=0))
            if not state.published:
                turn.ask(Publish, route=state.route)
        case _:
            _with_job(turn, state, event)


def _degraded(turn: "_Turn", state: Degraded, event: Event) -> None:
    match event:
        case Probed(number, good=True) if number == state.asked:
            turn.go(_ready_now(turn, state, state.route, state.published))
            if not state.published:
                turn.ask(Publish, route=state.route)
        case Probed(number) if number == state.asked:
            _still_degraded(turn, state)
        case EffectFailed(Probe(number=number) | OpenTunnel(number=number)) if number == state.asked:
            _still_degraded(turn, state)
        case TunnelOpened(number, route) if number == state.asked:
            published, asked = state.published and route == state.route, turn.serial + 1
            turn.set(evolve(state, route=route, published=published, asked=asked, due=turn.answer_due()))
            turn.ask(Probe)
        case Published(route) if route == state.route:
            turn.set(evolve(state, published=True))
        case EndpointRead(attempt, job, endpoint) if _has_moved(turn, state, attempt, job, endpoint):
            _moved(turn, state)
        case Observed(job, _, Alive(phase=Phase.PENDING) as alive) if job == state.job.id and state.tries > 0:
            _requeued(turn, state, alive)
        case Observed(job, _, Alive() as alive) if job == state.job.id:
            _seen_alive(turn, state, alive)
            if not _same_node(state, alive) and state.tries > 0:
                turn.ask_about(ReadEndpoint, state.job.id)
        case Woke() | Resumed() if turn.now >= state.due or isinstance(event, Resumed):
            _repair(turn, state)
        case _:
            _with_job(turn, state, event)


# What several states do alike -----------------------------------------------------------------------------------------


def _with_job(turn: "_Turn", state: WithJob, event: Event) -> None:
    """Signs that the job is gone, for every state that has one."""
    match event:
        case Observed(job, asked_at, Gone() as proof) if job == state.job.id:
            _suspect(turn, state, proof, asked_at)
        case Observed(job, asked_at, Doubt(DoubtReason.NOT_LISTED)) if job == state.job.id and _unsought(
            state.suspicion
        ):
            # A listing without the job proves nothing, but it is worth a complete lookup.
            turn.set(evolve(state, suspicion=_sought(turn, state.suspicion or Suspicion(None, asked_at))))
            turn.ask(Find, tag=tag_of(turn.spec, turn.attempt))
        case Found(attempt, asked_at, sightings) if attempt == turn.attempt:
            _leave_strays(turn, attempt, sightings)
            ours = [sighting for sighting in sightings if sighting.job == state.job.id]
            if not ours:
                _suspect(turn, state, Gone(EndReason.ABSENT), asked_at)
            elif ours[0].alive:
                turn.set(evolve(state, suspicion=None))
        case _:
            _anywhere(turn, event)


def _look_again(turn: "_Turn") -> None:
    """A lookup that is due, whatever else the session was woken for."""
    state = turn.state
    if isinstance(state, WithJob) and state.suspicion is not None and turn.now >= state.suspicion.lookup_at:
        turn.set(evolve(state, suspicion=_sought(turn, state.suspicion)))
        turn.ask(Find, tag=tag_of(turn.spec, turn.attempt))


def _unsought(suspicion: Suspicion | None) -> bool:
    """Whether no lookup is planned; also when a record said that the job is over and then disappeared itself."""
    return suspicion is None or suspicion.lookup_at == NEVER


def _sought(turn: "_Turn", suspicion: Suspicion) -> Suspicion:
    """The suspicion while a lookup is under way."""
    return evolve(suspicion, lookup_at=turn.answer_due())


def _suspect(turn: "_Turn", state: WithJob, proof: Gone, asked_at: Instant) -> None:
    """
    A reading that says the job is gone.

    1. One reading is never enough: batch systems and gateways have called living jobs finished.
    2. A second one, far enough from the first, ends the session, unless it has a path.
    3. With a path, the path decides: only after a probe has failed as well is the job believed to be gone.
    """
    suspicion, confirmed = _confirm(turn, state.suspicion, proof, asked_at)
    path_may_be_good = isinstance(state, Ready) or (isinstance(state, Degraded) and state.tries == 0)
    if confirmed and not path_may_be_good:
        assert suspicion.proof is not None
        _ended_by_itself(turn, state, suspicion.proof)
    else:
        turn.set(evolve(state, suspicion=suspicion))


def _confirm(turn: "_Turn", first: Suspicion | None, proof: Gone, asked_at: Instant) -> tuple[Suspicion, bool]:
    """The suspicion after one more reading that says gone, and whether the two suffice."""
    timeouts = turn.spec.timeouts
    since = asked_at if first is None or first.proof is None else first.since
    lookup_at = NEVER
    if proof.reason is EndReason.ABSENT:
        # Ever more rarely: a system that has lost its data would be asked about all its ready sessions, for ever.
        first_s = min(timeouts.lookup_s, timeouts.horizon_s)
        lookup_at = Instant(turn.now + max(1, _aging(since, timeouts.status_ready_s, first_s, turn.now)))
    if first is None or first.proof is None:
        return Suspicion(proof, since, lookup_at), False
    # A terminal record says more than an absence: it names the cause and needs no horizon.
    terminal = proof if first.proof.reason is EndReason.ABSENT else first.proof
    apart_s = timeouts.horizon_s if terminal.reason is EndReason.ABSENT else timeouts.confirm_s
    return Suspicion(terminal, since, lookup_at), asked_at - since >= _ms(apart_s)


def _seen_alive(turn: "_Turn", state: WithJob, alive: Alive) -> None:
    """A sign of life: it clears a suspicion. Most readings say nothing new, and then nothing is made anew."""
    job = _as_seen(turn, state.job, alive)
    if state.suspicion is not None or job != state.job:
        turn.set(evolve(state, job=job, suspicion=None))


def _as_seen(turn: "_Turn", job: Job, alive: Alive) -> Job:
    """
    The job with what the scheduler says now; what it does not say stays as it was.

    Not every system says when a job will end, and on a login node nobody ends it but the launcher, at the walltime.
    """
    node = job.node if alive.node is None else alive.node
    ends_at = job.ends_at if alive.ends_at is None else alive.ends_at
    if ends_at is None and alive.phase is Phase.RUNNING and turn.spec.walltime_s:
        ends_at = turn.in_s(turn.spec.walltime_s)
    return Job(job.id, node, ends_at, alive.note[:NOTE_LIMIT])


def _same_node(state: Ready | Degraded, alive: Alive) -> bool:
    return alive.node is None or alive.node == state.job.node


def _requeued(turn: "_Turn", state: Starting | Connecting | Degraded, alive: Alive) -> None:
    """Same job, back in the queue: its old path leads nowhere, or to somebody else's job."""
    _leave_path(turn, state)
    turn.run += 1
    turn.go(Queued(Job(state.job.id, note=alive.note[:NOTE_LIMIT]), turn.now))


def _has_moved(
    turn: "_Turn", state: Connecting | Degraded, attempt: int, job: JobId, endpoint: Endpoint | None
) -> bool:
    current = attempt == turn.attempt and job == state.job.id
    return current and endpoint is not None and endpoint != state.endpoint


def _moved(turn: "_Turn", state: Connecting | Degraded) -> None:
    """The launcher listens elsewhere: the job was requeued and nobody saw it wait."""
    _leave_path(turn, state)
    turn.run += 1
    job = evolve(state.job, ends_at=None)  # its time began anew
    turn.go(Starting(job, turn.now, turn.in_s(turn.spec.timeouts.status_first_s)))


def may_dial(spec: SessionSpec, job: Job, endpoint: Endpoint) -> bool:
    """
    Destinations are ours to choose: the node that the scheduler names, or what the operator allows.

    The launcher's report comes out of the job and so from its user; a tunnel must not be led anywhere by it.
    """
    if endpoint.socket:
        # Inside the job's own directory nobody else's service can be reached.
        return endpoint.socket == GATE_SOCKET_NAME and not endpoint.host and not endpoint.port
    host, node = endpoint.host.lower(), (job.node or "").lower()
    if host and host in (node, node.split(".")[0]):
        return True
    return any(host == allowed or (allowed[:1] == "." and host.endswith(allowed)) for allowed in spec.destinations)


def _repair(turn: "_Turn", state: Connecting | Degraded) -> None:
    """The next try to get a path: the listener first (again is harmless), then a probe; now and then the endpoint."""
    turn.set(evolve(state, asked=turn.serial + 1, due=turn.answer_due()))
    turn.ask(OpenTunnel, job=state.job.id, endpoint=state.endpoint)
    if state.tries and state.tries % REREAD_EVERY == 0:
        turn.ask_about(ReadEndpoint, state.job.id)


def _probe_now(turn: "_Turn", state: Ready) -> None:
    """One probe under way is enough, however many reasons there are for it."""
    if state.asked:
        turn.set(state)
    else:
        turn.set(evolve(state, asked=turn.serial + 1, due=turn.answer_due()))
        turn.ask(Probe)


def _ready_now(turn: "_Turn", state: Connecting | Degraded, route: Route, published: bool) -> Ready:
    check = turn.in_s(turn.spec.timeouts.probe_ready_s)
    return Ready(state.job, state.endpoint, route, turn.now, check, published=published, suspicion=state.suspicion)


def _degrade(turn: "_Turn", state: Ready, note: str, tries: int) -> None:
    job, asked = evolve(state.job, note=note[:NOTE_LIMIT]), turn.serial + 2  # the report comes first
    due, published, suspicion = turn.answer_due(), state.published, state.suspicion
    turn.go(Degraded(job, state.endpoint, state.route, turn.now, due, asked, published, tries, suspicion))
    turn.ask(OpenTunnel, job=state.job.id, endpoint=state.endpoint)


def _still_degraded(turn: "_Turn", state: Degraded) -> None:
    tries, suspicion = state.tries + 1, state.suspicion
    if suspicion is not None and suspicion.lookup_at != NEVER:
        # While the path was good nobody waited for the answer.
        suspicion = evolve(suspicion, lookup_at=min(suspicion.lookup_at, turn.in_s(turn.spec.timeouts.lookup_s)))
    turn.set(evolve(state, asked=0, tries=tries, due=turn.repair_at(tries), suspicion=suspicion))


# Stopping -------------------------------------------------------------------------------------------------------------


def _begin_stop(turn: "_Turn", cause: Cause, evidence: Evidence, job_may_exist: bool = True) -> None:
    """From any state: whatever exists or may exist becomes residue, and its removal starts at once."""
    state = turn.state
    if isinstance(state, Submitting | Locating) and job_may_exist:
        _leave_job(turn, turn.attempt, None)
    if isinstance(state, WithJob):
        _leave_path(turn, state)
        if cause in (Cause.BOOT_TIMED_OUT, Cause.CONNECT_TIMED_OUT):
            turn.leave(Left.LOG, turn.attempt, state.job.id)
        _leave_job(turn, turn.attempt, state.job.id)
    _enter_stopping(turn, cause, evidence)


def _ended_by_itself(turn: "_Turn", state: WithJob, proof: Gone) -> None:
    """The job is gone: fetch the end of its log, then remove what it left."""
    _leave_path(turn, state)
    turn.leave(Left.LOG, turn.attempt, state.job.id)
    turn.leave(Left.FILES, turn.attempt, state.job.id)
    reason, note = proof.reason, proof.note[:NOTE_LIMIT]
    if reason is EndReason.FAILED and proof.exit_code == EXIT_WALLTIME:
        # The launcher ended itself, as nobody else did; whoever ran it calls that a failure.
        reason, note = EndReason.WALLTIME, ""
    _enter_stopping(turn, CAUSES[reason], Evidence(note, proof.exit_code))


CAUSES = {
    EndReason.FINISHED: Cause.FINISHED,
    EndReason.FAILED: Cause.FAILED,
    EndReason.CANCELLED: Cause.CANCELLED_ELSEWHERE,
    EndReason.WALLTIME: Cause.WALLTIME,
    EndReason.PREEMPTED: Cause.PREEMPTED,
    EndReason.NODE_FAILED: Cause.NODE_FAILED,
    EndReason.OUT_OF_MEMORY: Cause.OUT_OF_MEMORY,
    EndReason.ABSENT: Cause.VANISHED,
}
"""The cause of a session whose job ended without being asked to."""


def _enter_stopping(turn: "_Turn", cause: Cause, evidence: Evidence) -> None:
    if turn.attempt:
        turn.leave(Left.SECRET, turn.attempt)
    turn.go(Stopping(cause, evidence, turn.now))


def _leave_path(turn: "_Turn", state: WithJob) -> None:
    if isinstance(state, Connecting | Ready | Degraded):
        turn.leave(Left.TUNNEL, turn.attempt)
    if isinstance(state, Ready | Degraded):
        turn.leave(Left.ROUTE, turn.attempt)


def _leave_job(turn: "_Turn", attempt: int, job: JobId | None) -> None:
    """A job that must go: unknown ones are looked up, known ones cancelled until the system says they are gone."""
    for left in turn.residue:
        if left.kind is Left.JOB and left.attempt == attempt and left.job is None and job is not None:
            turn.replace(left, _act(turn, evolve(left, job=job, tries=0, suspicion=None)))
            return
    turn.leave(Left.JOB, attempt, job)


def _leave_strays(turn: "_Turn", attempt: int, sightings: tuple[Sighting, ...]) -> None:
    """Living jobs with our tag that no state accounts for have to go."""
    for sighting in sightings:
        if sighting.alive:
            _leave_stray(turn, attempt, sighting.job)


def _leave_stray(turn: "_Turn", attempt: int, job: JobId) -> None:
    """Not the session's own job: it has one tag, so whoever names it under another attempt is wrong."""
    if not (isinstance(turn.state, WithJob) and turn.state.job.id == job):
        _leave_job(turn, attempt, job)


BLOCKING = frozenset({Left.JOB, Left.TUNNEL, Left.ROUTE, Left.LOG})
"""What must be gone before a session is `Ended`. Files and secrets are removed after that, visibly, without end."""


def _finish_stop(turn: "_Turn") -> None:
    state = turn.state
    if isinstance(state, Stopping) and not any(left.kind in BLOCKING for left in turn.residue):
        turn.go(Ended(state.cause, state.evidence, turn.now))


# Residue --------------------------------------------------------------------------------------------------------------


def _act(turn: "_Turn", left: Residue) -> Residue:
    """Start the next try to remove something; the answer is known by the number of the effect."""
    tag, due = tag_of(turn.spec, left.attempt), turn.answer_due()
    match left.kind:
        case Left.JOB if left.job is None:
            turn.ask_for(left.attempt, Find, tag=tag)
        case Left.JOB:
            turn.ask_for(left.attempt, Cancel, tag=tag, job=left.job)
            # An accepted cancel is no end: some are accepted and do nothing. Again soon, then more rarely.
            tries, timeouts = left.tries + 1, turn.spec.timeouts
            again = turn.in_s(min(timeouts.backoff_cap_s, timeouts.lookup_s * tries))
            left, doubt = evolve(left, asked=turn.serial, tries=tries, due=again), left.suspicion
            return _seek(turn, left, doubt) if doubt and turn.now >= doubt.lookup_at else left
        case Left.TUNNEL:
            turn.ask_for(left.attempt, CloseTunnel)
        case Left.ROUTE:
            turn.ask_for(left.attempt, Withdraw)
        case Left.LOG:
            turn.ask_for(left.attempt, ReadLog, tag=tag, job=left.job)
        case Left.FILES if turn.has_left(Left.LOG):
            return evolve(left, due=turn.in_s(turn.spec.timeouts.confirm_s))
        case Left.FILES:
            turn.ask_for(left.attempt, Remove, tag=tag, job=left.job)
        case Left.SECRET:
            turn.ask_for(left.attempt, Revoke)
        case _:
            assert_never(left.kind)
    return evolve(left, asked=turn.serial, due=due)


def _seek(turn: "_Turn", left: Residue, suspicion: Suspicion) -> Residue:
    """Look a job up that has to go and that its system does not seem to know."""
    turn.ask_for(left.attempt, Find, tag=tag_of(turn.spec, left.attempt))
    sought = _sought(turn, suspicion)
    return evolve(left, suspicion=sought, due=min(left.due, sought.lookup_at))


def _act_on_residue(turn: "_Turn", every: bool) -> None:
    for left in list(turn.residue):
        if every or turn.now >= left.due:
            turn.replace(left, _act(turn, left))


def _found_residue(turn: "_Turn", event: Found) -> None:
    """What a complete lookup says about jobs that have to go."""
    for left in list(turn.residue):
        if left.kind is not Left.JOB or left.attempt != event.attempt:
            continue
        ours = [sighting for sighting in event.sightings if left.job in (None, sighting.job)]
        if not ours:
            _residue_gone(turn, left, Gone(EndReason.ABSENT), event.asked_at)
        elif left.job is None:
            first = min(ours, key=lambda sighting: not sighting.alive)
            turn.replace(left, _act(turn, evolve(left, job=first.job, tries=0, suspicion=None)))
        elif ours[0].alive:
            turn.replace(left, evolve(left, suspicion=None))


def _job_reading(turn: "_Turn", job: JobId, asked_at: Instant, observation: Observation) -> None:
    for left in list(turn.residue):
        if left.kind is not Left.JOB or left.job != job:
            continue
        match observation:
            case Gone():
                _residue_gone(turn, left, observation, asked_at)
            case Alive():
                turn.replace(left, evolve(left, suspicion=None))
            case Doubt(DoubtReason.NOT_LISTED) if _unsought(left.suspicion):
                turn.replace(left, _seek(turn, left, left.suspicion or Suspicion(None, asked_at)))
            case Doubt():
                pass
            case _:
                assert_never(observation)


def _residue_gone(turn: "_Turn", left: Residue, proof: Gone, asked_at: Instant) -> None:
    """The same two readings as for a session's own job, then its files go."""
    suspicion, confirmed = _confirm(turn, left.suspicion, proof, asked_at)
    if confirmed:
        turn.residue.remove(left)
        if left.job is not None:
            turn.leave(Left.FILES, left.attempt, left.job)
    else:
        # What seems to be over is not cancelled again before a second reading can say so.
        due = max(left.due, turn.in_s(turn.spec.timeouts.lookup_s))
        turn.replace(left, evolve(left, suspicion=suspicion, due=min(due, suspicion.lookup_at)))


def _residue_failed(turn: "_Turn", effect: Effect, failure: Failure) -> None:
    """Try again later, ever more rarely, and never give up what could harm somebody."""
    for left in list(turn.residue):
        if isinstance(effect, Submit) and _never_happened(left, effect, failure):
            turn.residue.remove(left)
        elif left.asked == effect.number:
            tries = left.tries + 1
            if left.kind is Left.LOG and tries >= LOG_TRIES:
                turn.residue.remove(left)
            else:
                turn.replace(left, evolve(left, asked=0, tries=tries, due=turn.removal_at(left, tries)))
                _tell_what_holds_the_end(turn, left, failure.note[:NOTE_LIMIT])


def _tell_what_holds_the_end(turn: "_Turn", left: Residue, note: str) -> None:
    state = turn.state
    if isinstance(state, Stopping) and left.kind in BLOCKING and note != state.note:
        turn.go(evolve(state, note=note))


def _never_happened(left: Residue, effect: Submit, failure: Failure) -> bool:
    """A stop overtook the submit, and now the system says that there is no job of it."""
    unknown_job = left.kind is Left.JOB and left.job is None and left.attempt == effect.attempt
    return unknown_job and failure.kind not in (FailureKind.UNANSWERED, FailureKind.MALFORMED)


# Any state ------------------------------------------------------------------------------------------------------------


def _anywhere(turn: "_Turn", event: Event) -> None:
    """Stops, answers about residue, late answers; and nothing for the rest."""
    match event:
        case StopAsked(by, cause):
            turn.desired = Desired.DOWN
            if not isinstance(turn.state, Stopping | Ended):
                _begin_stop(turn, cause, Evidence(f"asked by {by}"[:NOTE_LIMIT]))
        case Submitted(attempt, job) | StraySeen(attempt, job):
            # A job that no state accounts for: a late answer, a duplicate, one that the sweep saw. It has to go.
            _leave_stray(turn, attempt, job)
        case Found(attempt, _, sightings):
            _leave_strays(turn, attempt, sightings)
        case Observed(job, asked_at, observation) | CancelAnswered(job, asked_at, observation):
            _job_reading(turn, job, asked_at, observation)
        case EffectFailed(effect, failure):
            _residue_failed(turn, effect, failure)
        case TunnelClosed(number):
            turn.drop_asked(Left.TUNNEL, number)
        case Withdrawn(number):
            turn.drop_asked(Left.ROUTE, number)
        case Revoked(number):
            turn.drop_asked(Left.SECRET, number)
        case Removed(job):
            turn.drop(Left.FILES, job)
        case LogRead(job, text):
            _log_read(turn, job, text)
        case Admitted() | Held() | EndpointRead() | TunnelOpened() | Probed() | PathDoubted() | Published():
            pass  # an answer that came too late, or a word to a state that does not need it
        case Woke() | Resumed():
            pass  # residue is looked at after the state, in `step`
        case _:
            assert_never(event)


def _log_read(turn: "_Turn", job: JobId, text: str) -> None:
    if isinstance(turn.state, Stopping) and turn.has_left(Left.LOG):
        turn.set(evolve(turn.state, evidence=evolve(turn.state.evidence, log=text[-LOG_LIMIT:])))
    turn.drop(Left.LOG, job)
    for left in list(turn.residue):
        if left.kind is Left.FILES and left.asked == 0:
            turn.replace(left, _act(turn, left))


# Clocks ---------------------------------------------------------------------------------------------------------------


def _state_wake(session: Session) -> Instant:
    state = session.state
    match state:
        case Waiting():
            return _waiting_deadline(session)  # the end of a back-off is for admission to see
        case Locating():
            return state.due
        case Queued():
            return _sooner(_queue_deadline(session, state), state.suspicion)
        case Starting():
            return _sooner(min(state.due, _boot_deadline(session, state)), state.suspicion)
        case Connecting():
            return _sooner(min(state.due, _connecting_deadline(session, state)), state.suspicion)
        case Ready() | Degraded():
            return _sooner(state.due, state.suspicion)
        case Submitting() | Stopping() | Ended():
            return NEVER  # the submit is answered within its deadline; residue has times of its own
        case _:
            assert_never(state)


def _sooner(at: Instant, suspicion: Suspicion | None) -> Instant:
    return at if suspicion is None else min(at, suspicion.lookup_at)


def _waiting_deadline(session: Session) -> Instant:
    return Instant(session.spec.asked_at + _ms(session.spec.timeouts.waiting_s))


def _is_new(session: Session, state: Queued, at: Instant) -> bool:
    """Whether a listing that was made at an instant need not show the job yet."""
    return state.suspicion is None and at - state.since < _ms(session.spec.timeouts.horizon_s)


def _queue_deadline(session: Session, state: Queued) -> Instant:
    return Instant(state.since + _ms(session.spec.timeouts.queued_s))


def _boot_deadline(session: Session, state: Starting) -> Instant:
    return Instant(state.since + _ms(session.spec.timeouts.boot_s))


def _connecting_deadline(session: Session, state: Connecting) -> Instant:
    return Instant(state.since + _ms(session.spec.timeouts.connecting_s))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


# The turn: what one step has changed so far ---------------------------------------------------------------------------


class _Turn:
    """One step in the making. It never leaves this module, so `step` stays pure although this is not."""

    __slots__ = ("attempt", "desired", "effects", "now", "residue", "run", "serial", "session", "spec", "state")

    def __init__(self, session: Session, now: Instant) -> None:
        self.session = session
        self.spec = session.spec
        self.now = now
        self.state: State = session.state
        self.desired = session.desired
        self.attempt = session.attempt
        self.run = session.run
        self.serial = session.serial
        self.residue = list(session.residue)
        self.effects: list[Effect] = []

    def decision(self) -> Decision:
        old, residue = self.session, tuple(self.residue)
        unchanged = (
            self.serial == old.serial
            and self.desired is old.desired
            and residue == old.residue
            and (self.state is old.state or self.state == old.state)
        )
        if unchanged:
            return Decision(old, (), wake_at(old))
        session = Session(self.spec, self.state, self.desired, self.attempt, self.run, self.serial, residue)
        return Decision(session, tuple(self.effects), wake_at(session))

    # changes

    def set(self, state: State) -> None:
        """The same kind of state with other contents: nothing that people have to be told."""
        self.state = state

    def go(self, state: State) -> None:
        """Another state: the Hub is told."""
        self.state = state
        self.report()

    def report(self) -> None:
        self.ask(Report, progress=progress_of(self.state))

    def leave(self, kind: Left, attempt: int, job: JobId | None = None) -> None:
        """Something has to go: note it and make the first try at once."""
        if not any(left.kind is kind and left.job == job and left.attempt == attempt for left in self.residue):
            self.residue.append(_act(self, Residue(kind, attempt, self.now, self.now, job)))

    def replace(self, old: Residue, new: Residue) -> None:
        self.residue[self.residue.index(old)] = new

    def drop(self, kind: Left, job: JobId | None = None) -> None:
        self.residue = [left for left in self.residue if left.kind is not kind or left.job != job]

    def drop_asked(self, kind: Left, number: int) -> None:
        """Only the try under way may say so: an older answer says nothing about what was made after it."""
        self.residue = [left for left in self.residue if left.kind is not kind or left.asked != number]

    def has_left(self, kind: Left) -> bool:
        return any(left.kind is kind for left in self.residue)

    # effects

    def ask(self, effect: Callable[..., Effect], **details: Any) -> None:
        self.ask_for(self.attempt, effect, **details)

    def ask_about(self, effect: Callable[..., Effect], job: JobId, **details: Any) -> None:
        self.ask_for(self.attempt, effect, tag=tag_of(self.spec, self.attempt), job=job, **details)

    def ask_for(self, attempt: int, effect: Callable[..., Effect], **details: Any) -> None:
        self.serial += 1
        self.effects.append(effect(session=self.spec.id, attempt=attempt, number=self.serial, **details))

    # times

    def in_s(self, seconds: float) -> Instant:
        return Instant(self.now + max(1, _ms(seconds)))

    def answer_due(self) -> Instant:
        """Every effect is answered within its deadline; after twice that time we act again without an answer."""
        return self.in_s(2 * self.spec.timeouts.call_s)

    def patient_due(self) -> Instant:
        """A patient effect may begin its last call when an ordinary one is over."""
        return self.in_s(3 * self.spec.timeouts.call_s)

    def soon(self, since: Instant) -> Instant:
        return Instant(self.now + look_again_ms(since, self.spec.timeouts, self.now))

    def backoff_at(self, tries: int) -> Instant:
        timeouts = self.spec.timeouts
        wait_ms = full_jitter_ms(timeouts.backoff_base_s, timeouts.backoff_cap_s, tries, self.spec.seed)
        return Instant(self.now + wait_ms)

    def repair_at(self, tries: int) -> Instant:
        timeouts = self.spec.timeouts
        wait_ms = full_jitter_ms(timeouts.backoff_base_s, timeouts.repair_s, tries, self.spec.seed)
        return Instant(self.now + wait_ms)

    def after_failure(self, tries: int, failure: Failure) -> Instant:
        at = self.backoff_at(tries)
        if failure.retry_after_s is None:
            return at
        low, high = RETRY_AFTER_S
        # `min` around `max`, with the bounds first, also turns NaN into a bound.
        return Instant(at + _ms(min(high, max(low, failure.retry_after_s))))

    def removal_at(self, left: Residue, tries: int) -> Instant:
        timeouts = self.spec.timeouts
        patient = left.kind in (Left.FILES, Left.SECRET)
        cap_s = timeouts.residue_cap_s if patient else timeouts.lookup_s
        return Instant(self.now + full_jitter_ms(timeouts.backoff_base_s, cap_s, tries, self.spec.seed))
