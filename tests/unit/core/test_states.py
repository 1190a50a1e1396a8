"""Whole states: what exactly is remembered after each kind of answer, and when the session acts again."""

from itertools import permutations

import pytest
from attrs import evolve
from tests.unit.core.life import ENDPOINT, JOB, ROUTE, START, Life, a_spec

from moorage.core import effects, events
from moorage.core.backoff import full_jitter_ms
from moorage.core.model import (
    NEVER,
    Alive,
    Cause,
    Connecting,
    Degraded,
    Doubt,
    DoubtReason,
    Ended,
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
    Phase,
    Queued,
    Ready,
    Residue,
    Route,
    Sighting,
    Starting,
    Stopping,
    Submitting,
    Suspicion,
    Waiting,
    Why,
    tag_of,
)

SEED = a_spec().seed
ON_NODE = Job(JOB, "n17")


def at(life: Life, seconds: float) -> Instant:
    return Instant(life.now + int(seconds * 1000))


def after_pause(life: Life, tries: int, cap_s: float = 60) -> Instant:
    return Instant(life.now + full_jitter_ms(1, cap_s, tries, SEED))


def submitted(kind: FailureKind, note: str = "why") -> Life:
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(kind, note)), after_s=3)
    return life


# Submitting and locating ----------------------------------------------------------------------------------------------


def test_after_a_submit_that_came_to_nothing() -> None:
    life = submitted(FailureKind.UNREACHABLE)
    assert life.state == Waiting(Why.RETRY, life.now, "why", 1, after_pause(life, 1))
    life.wake(after_s=5)
    life.take(events.Admitted())
    assert life.state == Submitting(life.now, tries=1)


def test_after_refusals() -> None:
    """Nothing of a job is looked for: the system said that there is none."""
    for kind, times, cause in (
        (FailureKind.REFUSED, 1, Cause.REFUSED),
        (FailureKind.UNAUTHORISED, 3, Cause.UNAUTHORISED),
    ):
        life = Life()
        for _ in range(times):
            life.take(events.Admitted(), after_s=61)
            life.take(events.EffectFailed(life.last(effects.Submit), Failure(kind, "no")))
        assert life.state == Ended(cause, Evidence("no"), life.now)
        assert [left.kind for left in life.decision.session.residue] == [Left.SECRET]


def test_while_it_is_located() -> None:
    """Absent once: looked up again before the horizon has passed, and exactly then."""
    life = submitted(FailureKind.UNANSWERED)
    assert life.state == Locating(life.now, at(life, 60))
    find = life.last(effects.Find)
    assert find.tag == tag_of(a_spec(), 1)
    life.take(events.EffectFailed(find, Failure(FailureKind.UNREACHABLE)), after_s=1)
    assert life.state.due == at(life, 10)
    life.wake()
    assert life.state.due == at(life, 60)
    assert life.last(effects.Find).tag == tag_of(a_spec(), 1)
    first = life.now
    life.take(events.Found(1, first, ()))
    assert life.state == Locating(START + 3_000, at(life, 10), absent_since=first)
    life.take(events.Found(1, Instant(first + 29_999), ()), after_s=29.999)
    assert life.state.due == life.now + 1
    life.take(events.Found(1, Instant(first + 30_000), ()), after_s=0.001)
    assert life.state == Waiting(Why.RETRY, life.now, "the job was lost on its way", 1, after_pause(life, 1))


def test_a_second_loss_counts() -> None:
    life = submitted(FailureKind.UNANSWERED)
    life.take(events.Found(1, life.now, ()))
    life.take(events.Found(1, at(life, 30), ()), after_s=30)
    life.wake(after_s=61)
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNREACHABLE)))
    assert life.state.tries == 2
    assert life.state.not_before == after_pause(life, 2)


@pytest.mark.parametrize("event", [events.Submitted(1, JOB), events.StraySeen(1, JOB)])
@pytest.mark.parametrize("kind", [None, FailureKind.UNANSWERED])
def test_found_by_whatever_way(event: events.Event, kind: FailureKind | None) -> None:
    life = Life()
    life.take(events.Admitted())
    if kind is not None:
        life.take(events.EffectFailed(life.last(effects.Submit), Failure(kind)))
    life.take(event, after_s=2)
    assert life.state == Queued(Job(JOB), life.now)
    assert not life.decision.session.residue


def test_twins_but_the_living_one_is_ours() -> None:
    life, tag = submitted(FailureKind.UNANSWERED), tag_of(a_spec(), 1)
    dead, twin = Sighting(JobId("dead"), tag, alive=False), Sighting(JobId("twin"), tag)
    life.take(events.Found(1, life.now, (dead, Sighting(JOB, tag), twin)))
    assert life.state == Queued(Job(JOB), life.now)
    assert [left.job for left in life.decision.session.residue] == ["twin"]


# Ready and degraded ---------------------------------------------------------------------------------------------------


def test_ready_in_full() -> None:
    life = Life().ready()
    assert life.state == Ready(ON_NODE, ENDPOINT, ROUTE, life.now, at(life, 3_600), published=True)
    life.wake()
    assert life.state == evolve(life.state, asked=life.last(effects.Probe).number, due=at(life, 60))
    assert not life.last(effects.Probe).patient, "a lab that was there needs no time to come up"
    life.take(events.Probed(life.state.asked, good=True), after_s=1)
    assert (life.state.asked, life.state.due) == (0, at(life, 3_600))


def test_a_suspicion_goes_with_the_session_to_ready() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.seen(observation=Gone(EndReason.FAILED))
    suspicion = Suspicion(Gone(EndReason.FAILED), life.now)
    life.take(events.Probed(life.state.asked, good=True))
    assert life.state.suspicion == suspicion
    life.take(events.PathDoubted("cut"))
    assert life.state.suspicion == suspicion


def test_an_address_not_taken_is_told_soon() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True))
    publish = life.last(effects.Publish)
    before = life.state
    life.take(events.EffectFailed(evolve(publish, route=Route("http://127.0.0.1:1")), Failure(FailureKind.UNREACHABLE)))
    assert life.state == before
    life.take(events.EffectFailed(publish, Failure(FailureKind.UNREACHABLE)), after_s=1)
    assert life.state == evolve(before, due=at(life, 5))
    life.wake()
    assert life.last(effects.Publish).route == ROUTE
    life.take(events.Published(ROUTE))
    after = life.state
    life.take(events.EffectFailed(publish, Failure(FailureKind.UNREACHABLE)))
    assert life.state == after


def test_a_good_probe_does_not_put_off_telling_the_address() -> None:
    """Whichever of the two is answered first."""
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True))
    for _ in range(2):
        life.take(events.EffectFailed(life.last(effects.Publish), Failure(FailureKind.UNREACHABLE)))
        life.wake()
        life.take(events.EffectFailed(life.last(effects.Publish), Failure(FailureKind.UNREACHABLE)))
        life.take(events.Probed(life.state.asked, good=True), after_s=1)
        assert (life.state.asked, life.state.due) == (0, at(life, 5))


def test_degraded_in_full() -> None:
    life = Life().ready()
    life.take(events.PathDoubted("cut"), after_s=7)
    opened = life.last(effects.OpenTunnel)
    job = evolve(ON_NODE, note="cut")
    assert life.state == Degraded(job, ENDPOINT, ROUTE, life.now, at(life, 60), opened.number, published=True)
    assert (opened.job, opened.endpoint) == (JOB, ENDPOINT)
    life.take(events.EffectFailed(opened, Failure(FailureKind.UNREACHABLE)), after_s=1)
    assert (life.state.tries, life.state.asked) == (1, 0)
    assert life.state.due == after_pause(life, 1, 4)
    life.wake()
    opened = life.last(effects.OpenTunnel)
    assert (life.state.asked, life.state.due) == (opened.number, at(life, 60))
    life.take(events.TunnelOpened(opened.number, ROUTE), after_s=1)
    probe = life.last(effects.Probe)
    assert (life.state.asked, life.state.due, life.state.published) == (probe.number, at(life, 60), True)
    life.take(events.Probed(probe.number, good=False))
    assert (life.state.tries, life.state.asked) == (2, 0)


def test_a_bad_probe_counts_as_one_try_and_a_word_of_the_relay_as_none() -> None:
    for how, tries in (("probe", 1), ("failed", 1), ("word", 0)):
        life = Life().ready()
        life.wake()
        match how:
            case "probe":
                life.take(events.Probed(life.state.asked, good=False, note="n"))
            case "failed":
                life.take(events.EffectFailed(life.last(effects.Probe), Failure(FailureKind.UNANSWERED, "n")))
            case _:
                life.take(events.PathDoubted("n"))
        assert (life.state.tries, life.state.job.note) == (tries, "n")


def test_repaired_in_full() -> None:
    life = Life().degraded()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True), after_s=1)
    job = evolve(ON_NODE, note="cut")
    assert life.state == Ready(job, ENDPOINT, ROUTE, life.now, at(life, 3_600), published=True)
    assert life.kinds() == {"Report"}


def test_other_answers_do_not_move_a_degraded_session() -> None:
    """Answers to other numbers, readings of other jobs, a wake-up before its time."""
    life = Life().degraded()
    before = life.state
    life.take(events.Probed(life.state.asked + 7, good=True))
    life.take(events.Probed(life.state.asked + 7, good=False))
    life.take(events.Observed(JobId("other"), life.now, Alive(Phase.PENDING)))
    life.wake(after_s=1)
    life.seen(observation=Alive(Phase.PENDING))
    assert life.state == evolve(before, job=ON_NODE), "waiting again, but no probe has failed yet"
    life.seen(observation=Alive(Phase.RUNNING, "n18"))
    assert life.kinds() == set(), "another node, but no probe has failed yet"
    life.take(events.Resumed())
    assert life.kinds() == {"OpenTunnel"}


def test_another_node_is_asked_for_its_launcher() -> None:
    life = Life().degraded()
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    life.seen()
    assert life.new == []
    life.seen(observation=Alive(Phase.RUNNING, "n18"))
    read = life.last(effects.ReadEndpoint)
    assert (read.job, read.tag) == (JOB, tag_of(a_spec(), 1))


def test_a_ready_session_takes_note_of_other_jobs_only_as_strays() -> None:
    life = Life().ready()
    before = life.state
    life.take(events.Observed(JobId("other"), life.now, Alive(Phase.RUNNING, "n17")))
    life.take(events.Observed(JobId("other"), life.now, Alive(Phase.ENDING)))
    life.take(events.Observed(JobId("other"), life.now, Gone(EndReason.FAILED)))
    assert life.state == before
    life.seen(observation=Alive(Phase.RUNNING, "n18"))
    assert life.kinds() == {"Probe"}


def test_a_first_reading_is_remembered_until_the_second() -> None:
    life = Life().ready()
    life.seen(observation=Gone(EndReason.WALLTIME))
    first = life.now
    life.take(events.Probed(life.state.asked, good=False))
    life.seen(observation=Gone(EndReason.WALLTIME), after_s=2)
    assert life.state.suspicion == Suspicion(Gone(EndReason.WALLTIME), first)
    life.seen(observation=Gone(EndReason.WALLTIME), after_s=2.999)
    assert isinstance(life.state, Degraded)
    life.seen(observation=Gone(EndReason.WALLTIME), after_s=0.001)
    assert life.state == Stopping(Cause.WALLTIME, Evidence(), life.now)


def test_the_word_that_names_a_cause_wins_over_an_absence() -> None:
    life = Life().starting()
    life.take(events.Found(1, life.now, ()))
    assert life.state.suspicion == Suspicion(Gone(EndReason.ABSENT), life.now, at(life, 10))
    life.seen(observation=Gone(EndReason.PREEMPTED, note="by urgent"), after_s=6)
    assert life.state == Stopping(Cause.PREEMPTED, Evidence("by urgent"), life.now)


def test_connecting_in_full() -> None:
    life = Life().connecting()
    opened = life.last(effects.OpenTunnel)
    assert life.state == Connecting(ON_NODE, ENDPOINT, life.now, at(life, 60), opened.number)
    assert (opened.job, opened.endpoint, opened.attempt) == (JOB, ENDPOINT, 1)
    life.take(events.TunnelOpened(opened.number, ROUTE), after_s=1)
    probe = life.last(effects.Probe)
    assert (life.state.asked, life.state.route, life.state.due) == (probe.number, ROUTE, at(life, 90))
    life.take(events.EffectFailed(probe, Failure(FailureKind.UNANSWERED)), after_s=1)
    assert (life.state.asked, life.state.tries, life.state.due) == (0, 1, after_pause(life, 1, 4))


def test_starting_in_full() -> None:
    life = Life().queued()
    life.seen()
    assert life.state == Starting(ON_NODE, life.now, at(life, 90))
    assert life.last(effects.ReadEndpoint).patient
    life.take(events.EndpointRead(1, JOB, None), after_s=4)
    assert life.state.due == at(life, 1), "a quarter of the state's age"
    life.take(events.EffectFailed(life.last(effects.ReadEndpoint), Failure(FailureKind.MALFORMED)))
    assert life.state.due == at(life, 5)


# Residue --------------------------------------------------------------------------------------------------------------


def residue(life: Life, kind: Left) -> Residue:
    return next(left for left in life.decision.session.residue if left.kind is kind)


def test_an_unknown_job_becomes_known() -> None:
    """The lookup of a stop prefers the living one, begins its count anew and cancels it by its id."""
    life, tag = submitted(FailureKind.UNANSWERED), tag_of(a_spec(), 1)
    life.take(events.StopAsked())
    first = residue(life, Left.JOB)
    assert (first.job, first.attempt, first.asked) == (None, 1, life.last(effects.Find).number)
    life.take(events.Found(1, life.now, ()), after_s=1)
    asked_at = Instant(life.now - 1_000)
    assert residue(life, Left.JOB).suspicion == Suspicion(Gone(EndReason.ABSENT), asked_at, at(life, 10))
    life.take(events.EffectFailed(life.last(effects.Find), Failure(FailureKind.UNREACHABLE)))
    life.take(events.Found(1, life.now, (Sighting(JobId("dead"), tag, alive=False), Sighting(JOB, tag))), after_s=1)
    cancel = life.last(effects.Cancel)
    assert (cancel.job, cancel.tag) == (JOB, tag)
    assert residue(life, Left.JOB) == Residue(Left.JOB, 1, first.since, at(life, 10), JOB, cancel.number, tries=1)


def test_a_lookup_is_about_its_own_attempt_and_job() -> None:
    """Absent under another attempt says nothing; of several leftovers each is looked at."""
    life = Life().queued()
    life.take(events.StraySeen(0, JobId("old")))
    life.take(events.StopAsked())
    life.take(events.Found(0, life.now, ()))
    left = {each.job: each.suspicion for each in life.decision.session.residue if each.kind is Left.JOB}
    assert left == {"old": Suspicion(Gone(EndReason.ABSENT), life.now, at(life, 10)), JOB: None}
    life.take(events.Found(1, life.now, (Sighting(JobId("another"), tag_of(a_spec(), 1), alive=False),)))
    suspicion = {each.job: each.suspicion for each in life.decision.session.residue}[JOB]
    assert suspicion is not None


def test_repeats_of_a_cancel_grow_apart() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    apart = []
    for _ in range(8):
        apart.append((residue(life, Left.JOB).due - life.now) // 1000)
        life.now = residue(life, Left.JOB).due
        life.take(events.Woke())
    assert apart == [10, 20, 30, 40, 50, 60, 60, 60]


@pytest.mark.parametrize(("kind", "cap_s"), [(Left.SECRET, 3600), (Left.TUNNEL, 10)])
def test_a_failed_removal_waits_its_time(kind: Left, cap_s: float) -> None:
    """What could harm somebody is tried again soon, the rest ever more rarely."""
    life = Life().ready()
    life.take(events.StopAsked())
    for tries in range(1, 13):
        effect = next(each for each in reversed(life.asked) if each.number == residue(life, kind).asked)
        life.take(events.EffectFailed(effect, Failure(FailureKind.UNREACHABLE)))
        left = residue(life, kind)
        assert (left.tries, left.asked, left.due) == (tries, 0, after_pause(life, tries, cap_s))
        life.now = left.due
        life.take(events.Woke())


def test_a_failed_submit_takes_its_unknown_job_along() -> None:
    """Only if the system said that nothing happened, only of its own attempt, only the unknown one."""
    for kind, gone in ((FailureKind.UNANSWERED, False), (FailureKind.MALFORMED, False), (FailureKind.REFUSED, True)):
        life = Life()
        life.take(events.Admitted())
        submit = life.last(effects.Submit)
        life.take(events.StopAsked())
        life.take(events.EffectFailed(evolve(submit, attempt=7), Failure(FailureKind.REFUSED)))
        assert Left.JOB in {left.kind for left in life.decision.session.residue}
        life.take(events.EffectFailed(submit, Failure(kind)))
        assert isinstance(life.state, Ended) is gone


def test_doubt_about_a_job_that_has_to_go_changes_nothing() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    before = life.decision.session
    life.seen(observation=Doubt(DoubtReason.UNAUTHORISED))
    assert life.decision.session is before
    life.seen(observation=Gone(EndReason.CANCELLED))
    suspicion = residue(life, Left.JOB).suspicion
    assert suspicion == Suspicion(Gone(EndReason.CANCELLED), life.now, NEVER)
    life.seen(observation=Alive(Phase.ENDING))
    assert residue(life, Left.JOB).suspicion is None


# The end --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (EndReason.FINISHED, Cause.FINISHED),
        (EndReason.FAILED, Cause.FAILED),
        (EndReason.CANCELLED, Cause.CANCELLED_ELSEWHERE),
        (EndReason.WALLTIME, Cause.WALLTIME),
        (EndReason.PREEMPTED, Cause.PREEMPTED),
        (EndReason.NODE_FAILED, Cause.NODE_FAILED),
        (EndReason.OUT_OF_MEMORY, Cause.OUT_OF_MEMORY),
        (EndReason.ABSENT, Cause.VANISHED),
    ],
)
def test_how_a_job_ended_is_told_as_it_was(reason: EndReason, cause: Cause) -> None:
    life = Life().starting()
    for _ in range(2):
        life.seen(observation=Gone(reason), after_s=31)
    assert life.state.cause is cause


@pytest.mark.parametrize("order", list(permutations([Left.TUNNEL, Left.ROUTE, Left.JOB])), ids=str)
def test_a_session_ends_when_its_path_and_its_job_are_confirmed_gone(order: tuple[Left, ...]) -> None:
    """In whatever order that is told, and not one of them earlier; its secret may come later."""
    life = Life().ready()
    life.take(events.StopAsked())
    closing, withdrawing = life.last(effects.CloseTunnel), life.last(effects.Withdraw)
    answers = {
        Left.TUNNEL: [events.TunnelClosed(closing.number)],
        Left.ROUTE: [events.Withdrawn(withdrawing.number)],
        Left.JOB: [events.Observed(JOB, at(life, seconds), Gone(EndReason.CANCELLED)) for seconds in (1, 7)],
    }
    for left in order:
        assert isinstance(life.state, Stopping)
        for answer in answers[left]:
            life.take(answer)
    assert isinstance(life.state, Ended)
    assert {left.kind for left in life.decision.session.residue} == {Left.SECRET, Left.FILES}
