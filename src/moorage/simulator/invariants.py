"""
What must hold whatever happens, as named functions.

Most look at one saved decision, or at one thing that happened in the world, and compare what the machine believes with
what is true; they take microseconds, so that every world checks all of them always. The rest are questions to a healed
world: what is still pending, in one sentence each.

The numbers I1 to I56 are those of the reliability specification.
"""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from moorage.core.backoff import RETRY_FLOOR, RETRY_SHARE, RETRY_WINDOW_MS
from moorage.core.effects import (
    Cancel,
    CloseTunnel,
    Find,
    OpenTunnel,
    Publish,
    ReadLog,
    Remove,
    Report,
    Revoke,
    Submit,
    Withdraw,
)
from moorage.core.effects import Probe as ProbeEffect
from moorage.core.events import (
    CancelAnswered,
    EffectFailed,
    EndpointRead,
    Event,
    Found,
    Observed,
    PathDoubted,
    Probed,
    StopAsked,
    StraySeen,
    Submitted,
    TunnelOpened,
    Woke,
)
from moorage.core.machine import BLOCKING, Decision, may_dial, step
from moorage.core.model import (
    NEVER,
    NOTE_LIMIT,
    Cause,
    Connecting,
    Degraded,
    Desired,
    Ended,
    FailureKind,
    Gone,
    Instant,
    Left,
    Locating,
    Queued,
    Ready,
    Residue,
    Session,
    SessionId,
    Starting,
    State,
    Stopping,
    Submitting,
    SystemName,
    Waiting,
    Why,
)
from moorage.core.timeouts import Timeouts
from moorage.performing import Kind as Way

from .clock import EPOCH_MS
from .site import SiteJob, jobs_of
from .systems import SimSystem

if TYPE_CHECKING:
    from .world import World


class Broken(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, sentence: str, session: SessionId | None = None, at_ms: int = 0) -> None:
        super().__init__(f"{invariant}: {sentence}")
        self.invariant = invariant
        self.sentence = sentence
        self.session = session
        self.at_ms = at_ms


@frozen
class Saved:
    """One saved decision: what was, what happened, what follows."""

    before: Session | None
    event: Event | None
    decision: Decision
    at: Instant
    session: Session
    """As it was saved."""


Check = Callable[["World", Saved], str | None]
"""A sentence if the invariant is broken."""


# About one saved decision ---------------------------------------------------------------------------------------------

_RANKS: Mapping[type[State], int] = {
    Waiting: 0,
    Submitting: 1,
    Locating: 2,
    Queued: 3,
    Starting: 4,
    Connecting: 5,
    Ready: 6,
    Degraded: 6,
    Stopping: 7,
    Ended: 8,
}
_HAS_JOB = (Queued, Starting, Connecting, Ready, Degraded)
_OVER = (Stopping, Ended)
_ABOUT_PATHS = (Probed, PathDoubted, TunnelOpened)
_CLEANING = (Cancel, CloseTunnel, Withdraw, Revoke, Find, ReadLog, Remove, Report)
_POLICY = frozenset({Cause.QUEUED_TOO_LONG, Cause.BOOT_TIMED_OUT, Cause.CONNECT_TIMED_OUT, Cause.WAITED_TOO_LONG})


def replay_equals_state(_world: "World", saved: Saved) -> str | None:
    """I18: the log is the truth; the machine makes the same of the same event again."""
    if saved.decision.session is saved.session or saved.decision.session == saved.session:
        return None
    return f"replaying {_name(saved.event)} gives another state than the one that was saved"


def a_stop_wins(_world: "World", saved: Saved) -> str | None:
    """I6: after a stop nothing starts or connects, and nobody wants it up again."""
    before, after = saved.before, saved.session
    if before is None:
        return None
    if before.desired is Desired.DOWN and after.desired is not Desired.DOWN:
        return "a stopped session is wanted again"
    stopped = isinstance(before.state, _OVER) or isinstance(saved.event, StopAsked)
    if stopped and not isinstance(after.state, _OVER):
        return f"after a stop the session is {_state(after)}"
    return None


def ended_absorbs(_world: "World", saved: Saved) -> str | None:
    """I14: an ended session stays as it is; only what is left of it is still removed."""
    before, after = saved.before, saved.session
    if before is None or not isinstance(before.state, Ended):
        return None
    if after.state is not before.state and after.state != before.state:
        return f"an ended session became {_state(after)}"
    wrong = [effect for effect in saved.decision.effects if not isinstance(effect, _CLEANING)]
    return f"an ended session asks for {_name(wrong[0])}" if wrong else None


def exactly_one_cause(_world: "World", saved: Saved) -> str | None:
    """I15: a session ends for one cause, which does not change between stopping and the end."""
    before, after = saved.before, saved.session
    if before is not None and isinstance(before.state, Stopping) and isinstance(after.state, Stopping | Ended):
        if after.state.cause is not before.state.cause:
            return f"the cause changed from {before.state.cause.value} to {after.state.cause.value}"
    elif before is not None and isinstance(after.state, Ended) and isinstance(before.state, _HAS_JOB):
        return f"it ended from {_state(before)} without stopping"
    return None


def monotone_progress(_world: "World", saved: Saved) -> str | None:
    """I13: within one run of one attempt a session goes forward; attempts and effects are counted without gaps."""
    before, after = saved.before, saved.session
    if before is None:
        return None
    if after.attempt not in (before.attempt, before.attempt + 1):
        return f"the attempt jumped from {before.attempt} to {after.attempt}"
    if after.serial != before.serial + len(saved.decision.effects):
        return "effects are not numbered without gaps"
    if after.attempt != before.attempt or after.run > before.run or isinstance(after.state, Waiting):
        return None
    if _RANKS[type(after.state)] < _RANKS[type(before.state)]:
        return f"it fell from {_state(before)} to {_state(after)}"
    return None


def doubt_never_ends_a_session(_world: "World", saved: Saved) -> str | None:
    """I9: only proof, a wish or a deadline of policy ends a session; no failure and no silence does."""
    before, after, event = saved.before, saved.session, saved.event
    if before is None or isinstance(before.state, _OVER) or not isinstance(after.state, _OVER):
        return None
    if isinstance(event, StopAsked):
        return None
    if isinstance(event, Woke):
        cause = after.state.cause
        if cause not in _POLICY:
            return f"a wake-up ended it with the cause {cause.value}"
        timeouts, since = before.spec.timeouts, getattr(before.state, "since", before.spec.asked_at)
        allowed_s, since = {
            Cause.QUEUED_TOO_LONG: (timeouts.queued_s, since),
            Cause.BOOT_TIMED_OUT: (timeouts.boot_s, since),
            Cause.CONNECT_TIMED_OUT: (timeouts.connecting_s, since),
            Cause.WAITED_TOO_LONG: (timeouts.waiting_s, before.spec.asked_at),
        }[cause]
        passed_s = (saved.at - since) / 1000
        # The queue has a clock of its own: days of it are no reason to give up.
        return None if passed_s >= allowed_s - 1 else f"{cause.value} after {passed_s:.0f} s of {allowed_s:.0f} s"
    if isinstance(before.state, _HAS_JOB):
        gone = isinstance(event, Observed | CancelAnswered) and isinstance(event.observation, Gone)
        absent = isinstance(event, Found)
        return None if gone or absent else f"{_name(event)} ended a session that was {_state(before)}"
    failed = isinstance(event, EffectFailed) and isinstance(event.effect, Submit)
    refusals = (FailureKind.REFUSED, FailureKind.UNAUTHORISED)
    if failed and isinstance(event, EffectFailed) and event.failure.kind in refusals:
        return None
    return f"{_name(event)} ended a session that was {_state(before)}"


def one_reading_is_never_enough(_world: "World", saved: Saved) -> str | None:
    """I8, first half: a job counts as gone after two readings that agree, some time apart."""
    before, after, event = saved.before, saved.session, saved.event
    if before is None or not isinstance(before.state, _HAS_JOB) or not isinstance(after.state, _OVER):
        return None
    if not isinstance(event, Observed | Found):
        return None
    first = before.state.suspicion
    if first is None or first.proof is None:
        return "one reading ended it"
    apart_ms = event.asked_at - first.since
    if apart_ms < 1000 * min(before.spec.timeouts.confirm_s, before.spec.timeouts.horizon_s) - 1:
        return f"two readings {apart_ms} ms apart ended it"
    return None


def late_answers_are_harmless(_world: "World", saved: Saved) -> str | None:
    """I10: an answer of an old attempt changes no state; a living job that it names is cancelled."""
    before, after, event = saved.before, saved.session, saved.event
    if before is None or not isinstance(event, Submitted | StraySeen | EndpointRead | Found):
        return None
    if event.attempt >= before.attempt:
        return None
    if after.state is not before.state and after.state != before.state and not isinstance(before.state, Stopping):
        return f"an answer of attempt {event.attempt} changed attempt {before.attempt}"
    if isinstance(event, Submitted | StraySeen):
        known = [left for left in before.residue if left.kind in (Left.JOB, Left.FILES) and left.job == event.job]
        going = [left for left in after.residue if left.kind in (Left.JOB, Left.FILES) and left.job == event.job]
        if not known and not going:
            return f"the job {event.job} of an old attempt is left alone"
    return None


def duplicates_are_harmless(_world: "World", saved: Saved) -> str | None:
    """I11: the same event once more creates nothing and ends nothing."""
    before, after, event = saved.before, saved.session, saved.event
    if before is None or event is None:
        return None
    again = step(after, event, saved.at)
    if any(isinstance(effect, Submit) for effect in again.effects):
        return f"{_name(event)} twice submits twice"
    if isinstance(again.session.state, _OVER) and not isinstance(after.state, _OVER):
        return f"{_name(event)} twice ends the session"
    return None


def losing_a_tunnel_is_not_losing_a_job(_world: "World", saved: Saved) -> str | None:
    """I26: what happens to a path alone never cancels a job."""
    event = saved.event
    about_path = isinstance(event, _ABOUT_PATHS) or (
        isinstance(event, EffectFailed) and isinstance(event.effect, OpenTunnel | ProbeEffect)
    )
    if not about_path or saved.before is None:
        return None
    if any(isinstance(effect, Cancel) for effect in saved.decision.effects):
        return f"{_name(event)} cancelled a job"
    if isinstance(saved.session.state, _OVER) and not isinstance(saved.before.state, _OVER):
        return f"{_name(event)} ended the session"
    return None


def no_blind_retry(_world: "World", saved: Saved) -> str | None:
    """I34, second half: a submit that may have worked is looked up before anything else is tried."""
    before, event = saved.before, saved.event
    if before is None or not isinstance(before.state, Submitting) or not isinstance(event, EffectFailed):
        return None
    unclear = event.failure.kind in (FailureKind.UNANSWERED, FailureKind.MALFORMED)
    current = isinstance(event.effect, Submit) and event.effect.attempt == before.attempt
    if unclear and current and not isinstance(saved.session.state, Locating | Stopping):
        return f"after an unclear submit it is {_state(saved.session)}, not looked up"
    return None


def no_dead_ends(_world: "World", saved: Saved) -> str | None:
    """Rule 6: what is not over has an effect under way or a wake-up planned."""
    after = saved.session
    if after.over or saved.decision.wake_at < NEVER:
        return None
    if isinstance(after.state, Submitting):
        return None  # the submit is under way; `settle` finds out if it is not
    return f"nothing will ever wake a session that is {_state(after)}"


def what_is_left_is_remembered(_world: "World", saved: Saved) -> str | None:
    """I8, second half: a stop keeps what has to go until it is confirmed gone."""
    before, after = saved.before, saved.session
    if before is None:
        return None
    if isinstance(after.state, Ended) and not isinstance(before.state, Ended):
        kept = [left for left in after.residue if left.kind in BLOCKING]
        if kept:
            return f"it ended while its {kept[0].kind.value} was not confirmed gone"
    if isinstance(after.state, Stopping) and isinstance(before.state, _HAS_JOB):
        ended_itself = isinstance(saved.event, Observed | Found)
        has_job = any(left.kind is Left.JOB and left.job == before.state.job.id for left in after.residue)
        if not has_job and not ended_itself:
            return f"it is stopping without remembering its job {before.state.job.id}"
        if isinstance(before.state, Connecting | Ready | Degraded) and not _left(after, Left.TUNNEL):
            return "it is stopping without remembering its path"
    unclear = isinstance(before.state, Submitting | Locating) and isinstance(saved.event, StopAsked)
    if unclear and isinstance(after.state, Stopping) and not _left(after, Left.JOB):
        return "it is stopping without looking for the job of its submit"
    return None


def only_a_proof_removes_a_job(_world: "World", saved: Saved) -> str | None:
    """I8: a job that has to go is forgotten only when a system said twice that it is gone."""
    before, after, event = saved.before, saved.session, saved.event
    if before is None or not before.residue:
        return None
    for left in before.residue:
        if left.kind is not Left.JOB or _still_there(left, after.residue):
            continue
        proven = isinstance(event, Observed | CancelAnswered | Found)
        never_was = isinstance(event, EffectFailed) and isinstance(event.effect, Submit)
        if not proven and not never_was:
            return f"{_name(event)} made it forget the job {left.job}"
        if proven and (left.suspicion is None or left.suspicion.proof is None):
            return f"one reading made it forget the job {left.job}"
    return None


def destinations_are_ours(_world: "World", saved: Saved) -> str | None:
    """I52: a path goes to the job's own node, or where the operator allows."""
    for effect in saved.decision.effects:
        if isinstance(effect, OpenTunnel):
            state = saved.session.state
            if not isinstance(state, Connecting | Degraded):
                return f"a path is opened for a session that is {_state(saved.session)}"
            # A job that has moved is dialled at its old node until its launcher has been asked.
            if (
                isinstance(state, Connecting)
                and state.tries == 0
                and not may_dial(saved.session.spec, state.job, effect.endpoint)
            ):
                return f"a path to {effect.endpoint.host}, which is not the node of its job"
    return None


def everything_bounded(_world: "World", saved: Saved) -> str | None:
    """I36: foreign text is cut, what is left over is counted."""
    state = saved.session.state
    note = getattr(state, "note", "") or getattr(getattr(state, "job", None), "note", "")
    if len(note) > NOTE_LIMIT:
        return f"a note of {len(note)} characters is kept"
    if len(saved.session.residue) > 20 + 2 * saved.session.attempt:
        return f"{len(saved.session.residue)} things are left of attempt {saved.session.attempt}"
    return None


def what_was_asked_for_stays(_world: "World", saved: Saved) -> str | None:
    """I42: a session keeps what it was started with."""
    before = saved.before
    if before is not None and before.spec is not saved.session.spec and before.spec != saved.session.spec:
        return "what the session was started with has changed"
    return None


def limits_hold_under_races(world: "World", saved: Saved) -> str | None:
    """I43: no interleaving of starts takes more places than there are."""
    taken, limits, spec = world.shelf.taken, world.plan.limits, saved.session.spec
    if taken.owners[spec.key.owner] > limits.per_user:
        return f"{taken.owners[spec.key.owner]} sessions of one user, {limits.per_user} are allowed"
    if taken.systems[spec.system] > limits.on_system(spec.system):
        return f"{taken.systems[spec.system]} sessions on {spec.system}, {limits.on_system(spec.system)} are allowed"
    if taken.in_all > limits.in_all:
        return f"{taken.in_all} sessions in all, {limits.in_all} are allowed"
    over = [group for group in spec.groups if taken.groups[group] > limits.per_group.get(group, 1 << 30)]
    return f"too many sessions of group {over[0]}" if over else None


def one_session_per_key(world: "World", saved: Saved) -> str | None:
    """
    I44: two starts under one name are one session; a new one begins only when the old one is ending.

    Of one process: names are the Hub's, and a Hub is one. Two processes that are both asked (storm S8) are not held to
    it; what they must not do is change each other's sessions.
    """
    after, event = saved.session, saved.event
    if event is not None or len(world.processes) > 1:
        return None
    key = after.spec.key
    for id_ in world.shelf.open:
        other = world.shelf.sessions[id_].session
        if other.spec.key == key and id_ != after.id and not isinstance(other.state, _OVER):
            return f"session {id_} of the same name is {_state(other)}"
    return None


def no_ready_without_a_working_path(world: "World", saved: Saved) -> str | None:
    """I22: a session is called ready after a good probe through the very address that the Hub gets."""
    before, after = saved.before, saved.session
    if not isinstance(after.state, Ready) or before is None or isinstance(before.state, Ready):
        return None
    if not isinstance(saved.event, Probed) or not saved.event.good:
        return f"{_name(saved.event)} made it ready"
    path = world.relay.paths.get(after.id)
    if path is None or path.route != after.state.route:
        return None if _disturbed(world, after) else "there is no path at its address"
    late_ms = world.loop.now_ms + EPOCH_MS - (path.good_at or 0)
    if late_ms > 1000 * after.spec.timeouts.probe_stale_s and not _disturbed(world, after):
        return f"its last good probe is {late_ms} ms old"
    return None


def a_path_leads_to_its_own_lab(world: "World", saved: Saved) -> str | None:
    """I25, I50: the far end of a published address is the job of this session."""
    after = saved.session
    if not isinstance(after.state, Ready) or not isinstance(saved.event, Probed):
        return None
    far = world.relay.far_end(after.id)
    if far is not None and far.session != after.id:
        return f"its address leads to the lab of session {far.session}"
    if far is not None and far.id != after.state.job.id and not _disturbed(world, after):
        return f"its address leads to job {far.id}, not to {after.state.job.id}"
    return None


def endpoints_never_shared(world: "World", saved: Saved) -> str | None:
    """I24: no two sessions have one address."""
    for effect in saved.decision.effects:
        if isinstance(effect, Publish):
            for other, route in world.hub.routes.items():
                if route == effect.route and other != saved.session.id:
                    return f"its address {route.address} is that of session {other}"
    return None


def a_stop_is_honest(world: "World", saved: Saved) -> str | None:
    """I8: ended means that no job of it lives, as far as anybody could have known."""
    before, after = saved.before, saved.session
    if not isinstance(after.state, Ended) or before is None or isinstance(before.state, Ended):
        return None
    known_since = saved.at - int(after.spec.timeouts.horizon_s * 1000)
    for _, job in jobs_of(list(world.sites.values()), after.id):
        if job.lied or job.removed or job.visible_at > known_since or _too_late(world, job):
            continue
        if any(left.job == job.id for left in after.residue):
            continue
        return f"it ended ({after.state.cause.value}) while its job {job.id} lives"
    return None


DECISIONS: tuple[Check, ...] = (
    replay_equals_state,
    a_stop_wins,
    ended_absorbs,
    exactly_one_cause,
    monotone_progress,
    doubt_never_ends_a_session,
    one_reading_is_never_enough,
    late_answers_are_harmless,
    duplicates_are_harmless,
    losing_a_tunnel_is_not_losing_a_job,
    no_blind_retry,
    no_dead_ends,
    what_is_left_is_remembered,
    only_a_proof_removes_a_job,
    destinations_are_ours,
    everything_bounded,
    what_was_asked_for_stays,
    limits_hold_under_races,
    one_session_per_key,
    no_ready_without_a_working_path,
    a_path_leads_to_its_own_lab,
    endpoints_never_shared,
    a_stop_is_honest,
)
"""Checked for every saved decision, in this order."""


Kinds = tuple[type[State] | None, type[State], type[Event] | None]
"""State before, state after, event: by their classes it is known which checks can find anything."""

_PATHY = (Connecting, Ready, Degraded)
_MAY_FIND: Mapping[Check, Callable[[Any, Any, Any], bool]] = {
    a_stop_wins: lambda before, _after, event: before in _OVER or event is StopAsked,
    ended_absorbs: lambda before, _after, _event: before is Ended,
    exactly_one_cause: lambda _before, after, _event: after in _OVER,
    doubt_never_ends_a_session: lambda before, after, _event: after in _OVER and before not in _OVER,
    one_reading_is_never_enough: lambda before, after, _event: after in _OVER and before in _HAS_JOB,
    late_answers_are_harmless: lambda _before, _after, event: event in (Submitted, StraySeen, EndpointRead, Found),
    duplicates_are_harmless: lambda before, after, event: before is not after or event in (Submitted, Found, StraySeen),
    losing_a_tunnel_is_not_losing_a_job: lambda _before, _after, event: event in (*_ABOUT_PATHS, EffectFailed),
    no_blind_retry: lambda before, _after, event: before is Submitting and event is EffectFailed,
    what_is_left_is_remembered: lambda _before, after, _event: after in _OVER,
    everything_bounded: lambda _before, _after, event: event not in (Woke, EndpointRead, TunnelOpened),
    what_was_asked_for_stays: lambda before, after, _event: before is not after,
    limits_hold_under_races: lambda before, after, _event: before in (None, Waiting) and after is not Waiting,
    one_session_per_key: lambda _before, _after, event: event is None,
    no_ready_without_a_working_path: lambda before, after, _event: after is Ready and before is not Ready,
    a_path_leads_to_its_own_lab: lambda _before, after, event: after is Ready and event is Probed,
    endpoints_never_shared: lambda _before, after, _event: after in _PATHY,
    a_stop_is_honest: lambda before, after, _event: after is Ended and before is not Ended,
}
"""For the rest, every decision may."""


@cache
def checks_for(kinds: Kinds) -> tuple[Check, ...]:
    """The checks that can find anything about such a decision."""
    return tuple(check for check in DECISIONS if check not in _MAY_FIND or _MAY_FIND[check](*kinds))


# About what happens in the world --------------------------------------------------------------------------------------


def never_two_live_jobs(world: "World", job: SiteJob) -> str | None:
    """
    I1: a second job of a session is created only when the first is being removed, or was called over by its site.

    A request that was under way for longer than the visibility horizon is beyond every lookup: the job of an attempt
    that was given up is no breach then. It is never admitted (`never_two_serving_labs`), and found by the sweep.
    """
    assert job.session is not None
    stored = world.shelf.sessions.get(job.session)
    if stored is not None and job.attempt < stored.session.attempt:
        return None
    for _, other in jobs_of(list(world.sites.values()), job.session):
        if other is job or other.cancelled or other.lied:
            continue
        if stored is not None and any(
            left.kind is Left.JOB and left.attempt == other.attempt for left in stored.session.residue
        ):
            continue
        if _too_late(world, other):
            continue
        return f"job {other.id} of attempt {other.attempt} lives while {job.id} of attempt {job.attempt} is created"
    return None


def intent_before_effect(world: "World", job: SiteJob) -> str | None:
    """I3, I4: the store knew that this job would be made before it was."""
    assert job.session is not None
    stored = world.shelf.sessions.get(job.session)
    if stored is None:
        return f"no record knows the session of job {job.id}"
    if stored.session.attempt < job.attempt:
        return f"job {job.id} is of attempt {job.attempt}, the record knows of {stored.session.attempt}"
    return None


def never_two_serving_labs(world: "World", job: SiteJob) -> str | None:
    """I2: a lab is started only if no other one of the session serves, whatever the lookups said."""
    assert job.session is not None
    for _, other in jobs_of(list(world.sites.values()), job.session):
        launcher = other.launcher
        if other is job or launcher is None or launcher.admitted_at is None or launcher.over:
            continue
        if not other.cancelled and not other.lied and not _going(world, other):
            return f"the lab of job {other.id} serves while that of {job.id} is started"
    return None


def labs_are_admitted_for_their_session(world: "World", job: SiteJob) -> str | None:
    """I2: a lab is started only for the job that the record names."""
    assert job.session is not None
    stored = world.shelf.sessions.get(job.session)
    if stored is None:
        return f"no record knows the session of job {job.id}"
    state = stored.session.state
    if isinstance(state, Connecting | Ready | Degraded) and state.job.id != job.id and not _two(world):
        return f"the lab of job {job.id} is started, the record names {state.job.id}"
    return None


def only_the_dead_are_buried(_world: "World", job: SiteJob) -> str | None:
    """I8: files are removed of jobs that are over, or that their site has called over."""
    return None if not job.alive or job.lied else f"the files of job {job.id} are removed while it lives"


CREATIONS = (never_two_live_jobs, intent_before_effect)
ADMISSIONS = (never_two_serving_labs, labs_are_admitted_for_their_session)
REMOVALS = (only_the_dead_are_buried,)


# Now and then ---------------------------------------------------------------------------------------------------------


def ready_decays(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I23: who has had no good probe for long is not called ready any more."""
    now = world.now()
    if any(process.life.resumed is not None for process in world.processes):
        return
    disturbed_at = world.invariants.disturbed_at if world.invariants else 0
    calm_ms = world.loop.now_ms - max(disturbed_at, world.faults.last.get("tunnels", 0) - EPOCH_MS)
    for id_, path in world.relay.paths.items():
        stored = world.shelf.sessions.get(id_)
        if stored is None or not isinstance(stored.session.state, Ready):
            continue
        timeouts = stored.session.spec.timeouts
        limit_ms = int(1000 * (timeouts.probe_stale_s + 3 * timeouts.probe_fresh_s + timeouts.call_s)) + 15_000
        if path.good_at is None or now - path.good_at <= limit_ms or calm_ms < limit_ms:
            continue
        if world.loop.now_ms - world.shelf.failed_for.get(id_, -limit_ms) < limit_ms:
            continue  # while nothing of it can be saved nothing is decided, and the doubt waits with everything else
        if world.relay.far_end(id_) is None and now - stored.session.state.since > limit_ms:
            yield f"it is called ready; nothing has come through for {(now - path.good_at) // 1000} s", id_
    yield from _ready_without_any(world, min(calm_ms, world.loop.now_ms + EPOCH_MS - world.faults.last.get("net", 0)))


def _ready_without_any(world: "World", calm_ms: int) -> Iterator[tuple[str, SessionId]]:
    """Sessions that are called ready although the relay has had no path of theirs for long."""
    for id_ in world.shelf.open:
        session = world.shelf.sessions[id_].session
        if id_ in world.relay.paths or not isinstance(session.state, Ready):
            continue
        timeouts, state = session.spec.timeouts, session.state
        limit_ms = int(1000 * (timeouts.probe_stale_s + 3 * timeouts.probe_fresh_s + timeouts.call_s)) + 15_000
        unsaved = world.loop.now_ms - world.shelf.failed_for.get(id_, -limit_ms) < limit_ms
        if calm_ms > limit_ms and world.now() - state.since > limit_ms and not unsaved:
            yield (
                f"it is called ready for {(world.now() - state.since) // 1000} s and the relay has no path for it",
                id_,
            )


def repair_is_bounded(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I27: a path that cannot be made is not hammered at."""
    invariants = world.invariants
    assert invariants is not None
    minutes = max(1.0, (world.loop.now_ms - invariants.opens_since) / 60_000)
    factor = max((1 / plan.timeouts.repair_s for plan in world.plan.systems), default=1) * Timeouts().repair_s
    for session, opened in world.relay.opened.items():
        # With full jitter a pause may be none, but not always.
        if opened > (10 + 80 * minutes) * max(1.0, factor):
            yield f"its path was opened {opened} times in {minutes:.1f} min", session
    invariants.opens_since = world.loop.now_ms
    world.relay.opened.clear()


def poll_cost_bounded(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I33: status calls depend on time, not on the number of sessions."""
    invariants = world.invariants
    assert invariants is not None
    seconds = (world.loop.now_ms - invariants.polls_since) / 1000
    for plan in world.plan.systems:
        key = f"{plan.name}.observe"
        polls = world.calls.get(key, 0) - invariants.polls_seen.get(key, 0)
        lives = 1 + len([process for process in world.processes if process.life.alive]) + invariants.crashes_since
        if seconds > 0 and polls > lives * (seconds / plan.timeouts.status_first_s + 2):
            yield f"{polls} status calls to {plan.name} in {seconds:.0f} s", SessionId("")
        invariants.polls_seen[key] = world.calls.get(key, 0)
    invariants.polls_since, invariants.crashes_since = world.loop.now_ms, 0


def mailboxes_bounded(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I36: events do not pile up, logs do not grow without end."""
    for process in world.processes:
        if process.life.alive:
            for live in process.runner.live.values():
                if len(live.mailbox) > 1_000:
                    yield f"{len(live.mailbox)} events wait", live.id
    for id_ in world.shelf.open:
        entries = len(world.shelf.logs[id_])
        if entries <= 2_000:
            continue
        hours = (world.now() - world.shelf.sessions[id_].session.spec.asked_at) / 3_600_000
        if entries > 2_000 + 3_000 * hours:
            yield f"{entries} entries in its log after {hours:.1f} h", id_


def what_is_wrong_is_mended(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I7, I37: in a calm world no session stays long in a state that its job, or an answer, has left behind."""
    invariants = world.invariants
    assert invariants is not None
    if any(process.life.resumed is not None for process in world.processes):
        return  # it stands still, and so does what it knows
    if invariants.shared:
        return  # what a process has decided and not done is taken up at the next start, not by another process
    disturbed_at = invariants.disturbed_at
    troubled_at = max((at - EPOCH_MS for at in world.faults.last.values()), default=0)
    calm_ms, now = world.loop.now_ms - max(disturbed_at, troubled_at), world.now()
    for id_ in world.shelf.open:
        session = world.shelf.sessions[id_].session
        timeouts, state = session.spec.timeouts, session.state
        if isinstance(state, Ready) and world.hub.routes.get(id_) == state.route:
            continue  # nearly all of them
        # A submit is waited for; a job that its system calls configuring for ever (F-S6) is given its time to boot.
        waits_s = {Submitting: timeouts.submit_s, Starting: timeouts.boot_s}.get(type(state), 0)
        limit_ms = int(1000 * (5 * timeouts.call_s + waits_s))
        if calm_ms < limit_ms or now - getattr(state, "since", now) < limit_ms:
            continue
        since_s = (now - state.since) // 1000 if not isinstance(state, Ended) else 0
        if isinstance(state, Submitting):
            yield f"it is being submitted for {since_s} s", id_
        elif isinstance(state, Queued) and now - state.since > 1000 * timeouts.queued_s + limit_ms:
            yield f"it is Queued for {since_s} s, {timeouts.queued_s:.0f} s are allowed", id_
        elif isinstance(state, Waiting) and now - session.spec.asked_at > 1000 * timeouts.waiting_s + limit_ms:
            yield f"it waits for {(now - session.spec.asked_at) // 1000} s, {timeouts.waiting_s:.0f} s are allowed", id_
        elif isinstance(state, Queued | Starting | Connecting | Degraded):
            site = world.sites[session.spec.system]
            job = site.jobs.get(state.job.id)
            boots_at = None if job is None or job.launcher is None else job.launcher.boots_at
            if isinstance(state, Queued) and boots_at is not None and site.clock() - boots_at > limit_ms:
                yield f"its job runs for {(site.clock() - boots_at) // 1000} s and it is still Queued", id_
            elif job is None or (job.ended_at is not None and site.clock() - job.ended_at > limit_ms):
                yield f"its job is over and it is still {_state(session)} after {since_s} s", id_
            elif isinstance(state, Degraded) and _answers(job) and site.clock() > job.silent_until + limit_ms:
                yield f"its job answers and its path is in doubt for {since_s} s", id_
        elif isinstance(state, Ready):
            yield f"it is ready for {since_s} s and the Hub does not know its address", id_


def one_observer_per_system(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I33: however many sessions there are, a process has one status call to a system under way."""
    for process in world.processes:
        for name, entry in process.runner.ports.systems.items():
            if isinstance(entry.system, SimSystem) and entry.system.most_asking > 1:
                yield f"{entry.system.most_asking} status calls to {name} at once", SessionId("")


def nothing_holds_up_a_cancel(world: "World") -> Iterator[tuple[str, SessionId]]:
    """A breaker closes the way to new work, never the way out."""
    for process in world.processes:
        if process.life.alive:
            for (name, kind), lane in process.runner.performing.lanes.items():
                if kind in (Way.CANCEL, Way.PATH) and lane.blocked(process.clock.now()):
                    yield f"the breaker of {name} is open for calls of the kind {kind.value}", SessionId("")


def _answers(job: SiteJob) -> bool:
    """Whether the launcher of a job is there, and its port its own."""
    return job.alive and not job.foreign_until and job.launcher is not None and not job.launcher.over


def no_starvation(world: "World") -> Iterator[tuple[str, SessionId]]:
    """I37: who waits for a place gets it once there is one."""
    invariants = world.invariants
    assert invariants is not None
    now, could = world.loop.now_ms, dict[SessionId, int]()
    standing = invariants.shared or any(process.life.resumed is not None for process in world.processes)
    for id_ in () if standing else world.shelf.open:
        session = world.shelf.sessions[id_].session
        if not isinstance(session.state, Waiting) or session.state.why not in (Why.ASKED, Why.LIMIT):
            continue
        if now - max(world.shelf.failed_at, invariants.disturbed_at) < LOOK_MS or not _could_start(world, session):
            continue
        could[id_] = since = invariants.could_start.get(id_, now)
        if now - since > 1000 * session.spec.timeouts.fairness_s:
            yield f"it waits although there has been a place for it for {(now - since) // 1000} s", id_
    invariants.could_start = could


LOOK_MS = 60_000
"""How often everything is looked at as a whole."""

LOOKS = (
    no_starvation,
    ready_decays,
    repair_is_bounded,
    poll_cost_bounded,
    one_observer_per_system,
    nothing_holds_up_a_cancel,
    mailboxes_bounded,
    what_is_wrong_is_mended,
)


# The checker ----------------------------------------------------------------------------------------------------------


@define(eq=False)
class _Ear(logging.Handler):
    """Hears what the runner calls critical: a bug of its own is a broken invariant."""

    heard: list[logging.LogRecord] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        super().__init__(logging.CRITICAL)

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record)


class Invariants:
    """Checks everything of one world and keeps what was broken first."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.checked: Counter[str] = Counter()
        self.decisions = self.about_decisions = 0
        self.healed_at: int | None = None
        self.disturbed_at = 0
        self.opens_since = 0
        self.could_start: dict[SessionId, int] = {}
        self.shared = False  # more than one process has worked on the store at the same time
        self.polls_since = self.crashes_since = 0
        self.polls_seen: dict[str, int] = {}
        self.stops: dict[SessionId, int] = {}
        self.stop_took_ms: list[int] = []
        self._submits: dict[tuple[SystemName, int], deque[tuple[int, bool]]] = {}
        self.ear = _Ear()

    # What is told

    def more_processes(self) -> None:
        """One was started."""
        self.shared = self.shared or _two(self.world)

    def decided(self, saved: Saved) -> None:
        """A decision is durable."""
        self.decisions += 1
        before, event = saved.before, saved.event
        checks = checks_for(
            (
                None if before is None else type(before.state),
                type(saved.session.state),
                None if event is None else type(event),
            )
        )
        self.about_decisions += len(checks)
        for check in checks:
            sentence = check(self.world, saved)
            if sentence is not None:
                self.broken(check.__name__, sentence, saved.session.id)
        for effect in saved.decision.effects:
            if isinstance(effect, Submit):
                self._retry_budget(saved.session, effect)
        self._stop_in_time(saved)

    def job_created(self, job: SiteJob) -> None:
        self._about_job(CREATIONS, job)

    def job_admitted(self, job: SiteJob) -> None:
        self._about_job(ADMISSIONS, job)

    def job_removed(self, job: SiteJob) -> None:
        self._about_job(REMOVALS, job)

    def _about_job(self, checks: tuple[Callable[["World", SiteJob], str | None], ...], job: SiteJob) -> None:
        if job.session is None:
            return
        for check in checks:
            self.checked[check.__name__] += 1
            sentence = check(self.world, job)
            if sentence is not None:
                self.broken(check.__name__, sentence, job.session)

    def look(self) -> None:
        """Now and then, at everything."""
        for check in LOOKS:
            self.checked[check.__name__] += 1
            for sentence, session in check(self.world):
                self.broken(check.__name__, sentence, session)
        self.listen()

    def listen(self) -> None:
        """I16, I46: no part of the runner dies; what an adapter raises is contained."""
        self.checked["total"] += 1
        for record in self.ear.heard:
            message = record.getMessage()
            if message.startswith("an adapter"):
                continue
            cause = record.exc_info[1] if record.exc_info else None
            self.broken("total", f"{message}: {type(cause).__name__}: {cause}", None)
        self.ear.heard.clear()
        for failure in self.world.loop.failures:
            self.broken("total", f"{failure.get('message')}: {failure.get('exception')!r}", None)

    # Budgets and times

    def _retry_budget(self, session: Session, effect: Submit) -> None:
        """I34: retries are at most a tenth of the first tries of a minute, and one is always allowed."""
        world = self.world
        self.checked["retry_budget"] += 1
        process = world.process
        if process is None or _two(world):
            return
        lately = self._submits.setdefault((session.spec.system, process.life.number), deque())
        now = process.clock.now()
        lately.append((now, effect.retry))
        while lately and lately[0][0] <= now - RETRY_WINDOW_MS - 2_000:
            lately.popleft()
        # Admissions that a full disk held back come together once it has room; they were given out minute by minute.
        calm_since = max(self.disturbed_at, world.shelf.failed_at)
        if not effect.retry or world.loop.now_ms - calm_since < 2 * RETRY_WINDOW_MS:
            return
        inside = [retry for at, retry in lately if at > now - RETRY_WINDOW_MS + 2_000]
        first, again = len(lately) - sum(retry for _, retry in lately), sum(inside)
        if again > max(RETRY_FLOOR, first // RETRY_SHARE) + 1:
            self.broken("retry_budget", f"{again} retries and {first} first tries in a minute", session.id)

    def _stop_in_time(self, saved: Saved) -> None:
        """I7: in a healthy world a stop is over soon."""
        session, now = saved.session, self.world.loop.now_ms
        if isinstance(saved.event, StopAsked) and not isinstance(session.state, Ended):
            self.stops.setdefault(session.id, now)
        if isinstance(session.state, Ended) and session.id in self.stops:
            asked = self.stops.pop(session.id)
            if self.healed_at is None:
                return
            took = now - max(asked, self.healed_at)
            self.stop_took_ms.append(took)
            self.checked["a_stop_ends_in_time"] += 1
            limit_ms = 1000 * stop_limit_s(session)
            if took > limit_ms:
                self.broken(
                    "a_stop_ends_in_time",
                    f"it took {took / 1000:.0f} s, {limit_ms / 1000:.0f} s are allowed",
                    session.id,
                )

    def broken(self, invariant: str, sentence: str, session: SessionId | None) -> None:
        """Keep the first; what follows from it is of no interest."""
        if self.world.broken is None:
            about = f"session {session}: " if session else ""
            self.world.note(f"BROKEN {invariant}: {about}{sentence}")
            self.world.broken = Broken(invariant, sentence, session, self.world.loop.now_ms)
            self.world.loop.stop()

    @property
    def count(self) -> int:
        """How many single checks were made."""
        return self.about_decisions + sum(self.checked.values())


def stop_limit_s(session: Session) -> float:
    """How long a stop may take in a healthy world."""
    timeouts = session.spec.timeouts
    # A job may use its whole KillWait, and absence is believed after a visibility horizon only.
    return max(120.0, timeouts.stop_s + timeouts.horizon_s + 30)


# What a healed world still has to do ----------------------------------------------------------------------------------


def pending(world: "World") -> Iterator[str]:
    """What is on its way to somewhere else, one sentence each."""
    for id_ in world.shelf.open:
        session = world.shelf.sessions[id_].session
        if isinstance(session.state, Submitting | Locating | Starting | Connecting | Degraded | Stopping):
            yield f"session {id_} is {_state(session)} for {_since(world, session)}"
        elif isinstance(session.state, Waiting) and world.invariants is not None and _could_start(world, session):
            yield f"session {id_} waits although it could start ({session.state.why.value}: {session.state.note})"
    yield from orphans(world)


def orphans(world: "World") -> Iterator[str]:
    """I5: living jobs with our tag that no session wants."""
    for site in world.sites.values():
        for job in site.living.values():
            if job.session is None:
                continue
            stored = world.shelf.sessions.get(job.session)
            if stored is None:
                yield f"job {job.id} lives and no record knows its session"
                continue
            state = stored.session.state
            if isinstance(state, _HAS_JOB) and state.job.id == job.id:
                continue
            yield f"job {job.id} of attempt {job.attempt} lives; its session is {_state(stored.session)}"


def remains(world: "World") -> Iterator[str]:
    """I21, I45, I55: what is still there of sessions that have ended."""
    shelf = world.shelf
    for id_ in shelf.open:
        session = shelf.sessions[id_].session
        what = ", ".join(left.kind.value for left in session.residue)
        yield f"session {id_} is {_state(session)} for {_since(world, session)}" + (
            f" with {what} left" if what else ""
        )
    for id_, path in world.relay.paths.items():
        yield f"the path {path.route.address} of session {id_} is open"
    for id_ in world.hub.routes:
        yield f"the Hub has a route to session {id_}"
    for id_ in world.safe.sessions:
        yield f"the secret of session {id_} is valid"
    for site in world.sites.values():
        for job in site.jobs.values():
            if job.session is not None and not _died_unknown(world, job):
                yield f"the files of job {job.id} are there{' and it lives' if job.alive else ''}"


# Words ----------------------------------------------------------------------------------------------------------------


def _name(thing: object) -> str:
    return type(thing).__name__


def _state(session: Session) -> str:
    return type(session.state).__name__


def _since(world: "World", session: Session) -> str:
    since = getattr(session.state, "since", getattr(session.state, "at", 0))
    return f"{(world.now() - since) // 1000} s"


def _left(session: Session, kind: Left) -> bool:
    return any(left.kind is kind for left in session.residue)


def _still_there(left: Residue, residue: tuple[Residue, ...]) -> bool:
    for other in residue:
        if other.kind is Left.JOB and other.attempt == left.attempt and (left.job is None or other.job == left.job):
            return True
    return False


def _two(world: "World") -> bool:
    """Whether more than one process works now."""
    return sum(process.life.alive for process in world.processes) > 1


def _going(world: "World", job: SiteJob) -> bool:
    """Whether the record says that this job has to go."""
    stored = world.shelf.sessions.get(job.session) if job.session else None
    return stored is not None and any(
        left.kind is Left.JOB and (left.job == job.id or (left.job is None and left.attempt == job.attempt))
        for left in stored.session.residue
    )


def _too_late(world: "World", job: SiteJob) -> bool:
    """Whether a job came into being later than any lookup could wait for: after its submit was given up long ago."""
    return job.late


def _died_unknown(world: "World", job: SiteJob) -> bool:
    """
    Whether a job that came too late ended by itself, unadmitted, and nobody swept on its person's behalf.

    A process that was started after the session's end does not know that person. Dead jobs are not swept: batch systems
    list them for ever. Its folder is left.
    """
    stored = world.shelf.sessions.get(job.session) if job.session else None
    unadmitted = job.launcher is None or job.launcher.admitted_at is None
    if stored is None or not isinstance(stored.session.state, Ended) or job.alive or not unadmitted:
        return False
    started = max((process.started_ms for process in world.processes), default=0)
    return _too_late(world, job) and started > stored.session.state.at - EPOCH_MS


def _disturbed(world: "World", session: Session) -> bool:
    """Whether decisions come late because the store, the process or time itself was away a moment ago."""
    invariants = world.invariants
    assert invariants is not None
    limit_ms = int(1000 * session.spec.timeouts.probe_stale_s)
    recent = world.loop.now_ms - max(world.shelf.failed_at, invariants.disturbed_at) < 10 * limit_ms
    return recent or _two(world)


def _could_start(world: "World", session: Session) -> bool:
    """Whether nothing but time keeps a waiting session from starting."""
    state, limits = session.state, world.plan.limits
    assert isinstance(state, Waiting)
    if state.why.value == "stop_running" or world.shelf.taken.reached(session, limits) is not None:
        return False
    return world.now() > state.not_before


__all__ = ["DECISIONS", "Broken", "Invariants", "Saved", "orphans", "pending", "remains"]
