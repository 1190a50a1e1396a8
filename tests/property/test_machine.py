"""
The machine alone: any events in any order.

Names of tests are names of invariants (design section 10). The numbers are those of the reliability specification.
"""

from collections.abc import Callable
from typing import Any, get_args

import attrs
import pytest
from attrs import evolve
from hypothesis import given as given_once
from hypothesis import settings
from hypothesis import strategies as st
from tests.property.alphabet import DECODERS, START, a_spec, decode, run
from tests.property.kind_world import KindWorld

from moorage.core import effects, events
from moorage.core.events import Event
from moorage.core.machine import BLOCKING, Decision, begin, step, wake_at, watches
from moorage.core.model import (
    NEVER,
    Connecting,
    Degraded,
    Desired,
    Doubt,
    DoubtReason,
    Ended,
    Instant,
    Left,
    Locating,
    Queued,
    Ready,
    Session,
    Starting,
    Stopping,
    Submitting,
    Waiting,
)
from moorage.wire import dump_session, load_session

# The machine alone is fast: seven programs for each that the profile asks for.
MANY = settings(max_examples=7 * settings.default.max_examples)
programs = st.lists(st.integers(0, 1 << 40), max_size=30)


def given(*strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return lambda test: MANY(given_once(*strategies)(test))


CREATES = (effects.Submit,)
RANK = {Waiting: 0, Submitting: 1, Locating: 2, Queued: 3, Starting: 4, Connecting: 5, Ready: 6, Degraded: 6}
RANK |= {Stopping: 7, Ended: 8}


def test_every_event_is_in_the_alphabet() -> None:
    """A new class of event has to be thought about here, too."""
    assert set(DECODERS) == set(get_args(Event))


@given(programs)
def test_total_and_deterministic(program: list[int]) -> None:
    """I16, I17: every state takes every event, and says the same when asked again."""
    for before, event, now, decision in run(program):
        again = step(before, event, now)
        assert again == decision
        assert isinstance(decision.session.state, tuple(RANK))
        assert decision.wake_at == wake_at(decision.session)


@given(programs)
def test_whatever_is_decided_can_be_stored(program: list[int]) -> None:
    """I18: the stored form gives the very same session back, and every effect is whole."""
    for _, _, _, decision in run(program):
        assert load_session(dump_session(decision.session)) == decision.session
        for effect in decision.effects:
            missing = [name for name, value in attrs.asdict(effect, recurse=False).items() if value is None]
            assert not missing


@given(programs)
def test_nothing_wakes_for_nothing(program: list[int]) -> None:
    """After a wake-up the next one is later: no session keeps a runner busy by itself."""
    for before, event, now, decision in run(program):
        if isinstance(event, events.Woke) and wake_at(before) <= now:
            assert decision.wake_at > now


@given(programs)
def test_a_stop_wins(program: list[int]) -> None:
    """I6: after a stop nothing wants the session up, and it gets no further on its way there."""
    stopped = False
    for _, event, _, decision in run(program):
        stopped = stopped or isinstance(event, events.StopAsked)
        if stopped:
            assert decision.session.desired is Desired.DOWN
            assert isinstance(decision.session.state, Stopping | Ended)
            assert not any(isinstance(effect, CREATES) for effect in decision.effects)


@given(programs)
def test_late_answers_are_harmless(program: list[int]) -> None:
    """I10: the answer to an older attempt changes no state; all that it may start is the end of that very job."""
    for before, event, _, decision in run(program):
        attempt = getattr(event, "attempt", before.attempt)
        if isinstance(event, events.EffectFailed):
            continue
        if attempt < before.attempt:
            assert _but_residue(decision.session) == _but_residue(before) or isinstance(before.state, Stopping)
            allowed = (effects.Cancel, effects.Find, effects.Remove, effects.Report, effects.ReadLog)
            assert all(isinstance(effect, allowed) for effect in decision.effects)
            assert all(
                effect.attempt < before.attempt for effect in decision.effects if effect.attempt != before.attempt
            )


def _but_residue(session: Session) -> Session:
    return evolve(session, residue=(), serial=0)


@given(programs)
def test_duplicates_are_harmless(program: list[int]) -> None:
    """I11: the same answer once more starts nothing that creates, and never goes back."""
    for _, event, now, decision in run(program):
        once = decision.session
        twice = step(once, event, now)
        assert not any(isinstance(effect, CREATES) for effect in twice.effects)
        if isinstance(event, events.Submitted | events.StopAsked | events.Published | events.TunnelOpened):
            assert type(twice.session.state) is type(once.state)


@given(programs)
def test_monotone_progress(program: list[int]) -> None:
    """I13: within one run of one attempt no session falls back, but for a path in doubt; numbers have no gap."""
    for before, _, _, decision in run(program):
        after = decision.session
        assert after.attempt - before.attempt in (0, 1)
        numbers = [effect.number for effect in decision.effects]
        assert numbers == list(range(before.serial + 1, after.serial + 1))
        same_run = (after.attempt, after.run) == (before.attempt, before.run)
        if same_run and not isinstance(after.state, Waiting):
            assert RANK[type(after.state)] >= RANK[type(before.state)]


@given(programs)
def test_a_submit_needs_an_admission(program: list[int]) -> None:
    """I34: no create without a place, and never a second one while the first may have worked."""
    for before, event, _, decision in run(program):
        if any(isinstance(effect, CREATES) for effect in decision.effects):
            assert isinstance(event, events.Admitted)
            assert isinstance(before.state, Waiting)
            assert decision.session.attempt == before.attempt + 1


@given(programs)
def test_ended_absorbs(program: list[int]) -> None:
    """I14, I15: an end has one cause and keeps it; only what is left over still moves."""
    for before, _, _, decision in run(program):
        if isinstance(before.state, Ended):
            assert decision.session.state == before.state
        if isinstance(before.state, Stopping):
            assert decision.session.state.cause is before.state.cause  # type: ignore[union-attr]


@given(programs)
def test_a_stop_is_honest(program: list[int]) -> None:
    """I8: `Ended` is never reached while something that could harm is left."""
    for before, _, _, decision in run(program):
        newly = isinstance(decision.session.state, Ended) and not isinstance(before.state, Ended)
        if newly:
            assert not any(left.kind in BLOCKING for left in decision.session.residue)


@given(programs)
def test_no_dead_ends(program: list[int]) -> None:
    """Every session that is not over has a time at which it acts again, or a call under way that ends in an event."""
    for _, _, _, decision in run(program):
        session = decision.session
        if not session.over:
            assert decision.wake_at < NEVER or isinstance(session.state, Submitting)
        if isinstance(session.state, Stopping):
            assert any(left.kind in BLOCKING for left in session.residue)


DOUBTS = st.lists(
    st.tuples(st.sampled_from(sorted(DoubtReason, key=str)), st.integers(0, 1 << 30), st.integers(0, 200_000)),
    max_size=40,
)


@given(programs, DOUBTS)
def test_doubt_never_ends_a_session(program: list[int], doubts: list[tuple[DoubtReason, int, int]]) -> None:
    """I9: however long a system gives no answer, or a wrong one, nothing that runs or waits there is given up."""
    history = run(program)
    session, now = (history[-1][3].session, history[-1][2]) if history else (begin(a_spec()).session, START)
    state = session.state
    if not isinstance(state, Queued | Starting | Ready | Degraded):
        return
    for reason, number, pause_ms in doubts:
        now = Instant(now + pause_ms)
        observed = events.Observed(state.job.id, now, Doubt(reason))
        decision = step(session, observed, now)
        for effect in decision.effects:
            _, later = decode(number, decision.session, now)
            failed = events.EffectFailed(effect, _a_failure(number))
            decision = step(decision.session, failed, min(later, Instant(now + 1000)))
        session = decision.session
        assert not isinstance(session.state, Stopping | Ended)


def _a_failure(number: int) -> events.Failure:
    kinds = sorted(events.Failure.__attrs_attrs__[0].type, key=str)  # type: ignore[arg-type]
    return events.Failure(kinds[number % len(kinds)])


@given(programs)
def test_losing_a_tunnel_is_not_losing_a_job(program: list[int]) -> None:
    """I26: nothing that is said about a path cancels a job."""
    for _, event, _, decision in run(program):
        if isinstance(event, events.PathDoubted | events.Probed | events.TunnelClosed):
            assert not any(isinstance(effect, effects.Cancel) for effect in decision.effects)


@given(programs)
def test_no_ready_without_a_working_path(program: list[int]) -> None:
    """I22: only a good probe makes a session `Ready`."""
    for before, event, _, decision in run(program):
        if isinstance(decision.session.state, Ready) and not isinstance(before.state, Ready):
            assert isinstance(event, events.Probed)
            assert event.good


@given(programs)
def test_residue_is_kept_until_it_is_confirmed_gone(program: list[int]) -> None:
    """I45: what has to go leaves the list by an answer that says so, and not by being forgotten."""
    answers = {
        Left.JOB: (events.Found, events.Observed, events.CancelAnswered, events.EffectFailed),
        Left.TUNNEL: (events.TunnelClosed,),
        Left.ROUTE: (events.Withdrawn,),
        Left.FILES: (events.Removed,),
        Left.SECRET: (events.Revoked,),
        Left.LOG: (events.LogRead, events.EffectFailed),
    }
    for before, event, _, decision in run(program):
        kept = {(left.kind, left.attempt) for left in decision.session.residue}
        for left in before.residue:
            if (left.kind, left.attempt) not in kept:
                assert isinstance(event, answers[left.kind])


@given(programs)
def test_watched_jobs_are_jobs_of_the_session(program: list[int]) -> None:
    """A job is asked about exactly if the state or the residue names it."""
    for _, _, now, decision in run(program):
        session = decision.session
        own = getattr(getattr(session.state, "job", None), "id", None)
        left = {each.job for each in session.residue if each.kind is Left.JOB}
        watched = {watch.job for watch in watches(session, now)}
        assert watched == {job for job in {own, *left} if job is not None}


@given(programs, st.booleans())
def test_from_anywhere_a_kind_world_leads_to_the_end_or_to_ready(program: list[int], stop: bool) -> None:
    """Liveness of the machine alone: whatever happened, honest answers bring it where the user wants it."""
    history = run(program)
    last = history[-1][3] if history else begin(a_spec())
    now = history[-1][2] if history else START
    outstanding = [effect for _, _, _, decision in history for effect in decision.effects]
    world = KindWorld(last.session, now, outstanding)
    if stop:
        world.take(events.StopAsked())
    final = world.settle()
    if final.desired is Desired.DOWN or isinstance(final.state, Ended):
        assert final.over
    else:
        assert isinstance(final.state, Ready)


def test_a_quiet_life() -> None:
    """From the wish to a ready lab and back to nothing, with every effect answered at once."""
    decision: Decision = begin(a_spec())
    world = KindWorld(decision.session, START, list(decision.effects))
    assert isinstance(world.settle().state, Ready)
    world.take(events.StopAsked())
    assert world.settle().over
    assert world.session.attempt == 1


@pytest.mark.parametrize("kind", get_args(effects.Effect), ids=lambda kind: kind.__name__)
def test_every_effect_is_asked_for_in_some_life(kind: type) -> None:
    """The alphabet of effects is used: a short fixed set of lives asks for each."""
    asked: set[type] = set()
    for seed in range(300):
        program = [(seed * 7919 + index * 104729) * 2654435761 % (1 << 40) for index in range(30)]
        history = run(program)
        world = KindWorld(history[-1][3].session, history[-1][2], [])
        world.take(events.StopAsked())
        world.settle()
        asked |= {type(effect) for *_, decision in history for effect in decision.effects} | world.asked
        if kind in asked:
            return
    pytest.fail(f"no life asks for {kind.__name__}")
