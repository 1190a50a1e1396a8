"""When a session wants to be woken, and how often its jobs are asked about."""

import pytest
from tests.unit.core.life import JOB, START, Life

from moorage.core import effects, events
from moorage.core.machine import Watch, watches
from moorage.core.model import (
    NEVER,
    Alive,
    Cause,
    Doubt,
    DoubtReason,
    EndReason,
    Failure,
    FailureKind,
    Gone,
    Instant,
    JobId,
    Left,
    Phase,
    Starting,
    Stopping,
)
from moorage.core.timeouts import Timeouts

DAY_S = 86_400


def at(life: Life, seconds: float) -> Instant:
    return Instant(life.now + int(seconds * 1000))


def watched(life: Life, after_s: float = 0) -> list[Watch]:
    return list(watches(life.decision.session, at(life, after_s)))


# How often ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "shortest_s", "longest_s"), [("queued", 0.25, 30), ("starting", 5, 5), ("connecting", 5, 5)]
)
def test_the_older_a_state_the_rarer_the_question(state: str, shortest_s: float, longest_s: float) -> None:
    """A quarter of its age, within limits; seldom while something else tells sooner how the job is."""
    life = getattr(Life(), state)()
    for age_s in (0, 1, 4, 18, 3600):
        assert watched(life, age_s) == [Watch(JOB, int(1000 * min(longest_s, max(shortest_s, age_s / 4))))]
    assert watched(life, 40) == [Watch(JOB, min(10_000, int(longest_s * 1000)))]


def test_the_first_question_comes_when_the_table_says() -> None:
    assert watched(Life(timeouts=Timeouts(status_first_s=2)).queued()) == [Watch(JOB, 2_000)]


def test_the_launcher_is_looked_for_four_times_as_often_as_a_young_job_is_asked_about() -> None:
    life = Life(timeouts=Timeouts(status_first_s=2)).starting()
    life.take(events.EndpointRead(1, JOB, None))
    assert life.state.due == at(life, 0.5)


def test_a_good_path_needs_few_questions_and_a_bad_one_many() -> None:
    assert watched(Life().ready(), 7) == [Watch(JOB, 300_000)]
    assert watched(Life().degraded(), 7) == [Watch(JOB, 5_000, urgent=True)]


@pytest.mark.parametrize("state", ["queued", "starting", "connecting", "ready"])
def test_a_suspicion_is_looked_into_at_once(state: str) -> None:
    life = getattr(Life(), state)()
    life.seen(observation=Gone(EndReason.FAILED))
    assert watched(life, 3600) == [Watch(JOB, 5_000, urgent=True)]


def test_without_a_job_nothing_is_watched_and_what_has_to_go_is() -> None:
    life = Life()
    assert watched(life) == []
    life.take(events.Admitted())
    life.take(events.StopAsked())
    assert watched(life) == [], "its job is not known yet"
    life.take(events.Submitted(1, JOB))
    life.take(events.StraySeen(1, JobId("twin")))
    assert watched(life) == [Watch(JOB, 5_000, urgent=True), Watch(JobId("twin"), 5_000, urgent=True)]


def test_a_living_job_and_one_that_has_to_go() -> None:
    life = Life().ready()
    life.take(events.StraySeen(0, JobId("old")))
    assert watched(life) == [Watch(JOB, 300_000), Watch(JobId("old"), 5_000, urgent=True)]


# When -----------------------------------------------------------------------------------------------------------------


def test_when_each_state_wants_to_be_woken() -> None:
    """The next act of the state or its end, whichever is sooner."""
    life = Life()
    assert life.decision.wake_at == at(life, DAY_S)
    life.take(events.Admitted())
    assert life.decision.wake_at == NEVER, "the submit is answered"
    assert Life().queued().decision.wake_at == START + 14 * DAY_S * 1000
    for life, seconds in ((Life().starting(), 90), (Life().connecting(), 60)):
        assert life.decision.wake_at == life.state.due == at(life, seconds)
    assert Life().ready().decision.wake_at == Life().ready().state.due
    assert Life().degraded().decision.wake_at == Life().degraded().state.due


def test_a_state_is_woken_for_its_end_if_that_is_sooner() -> None:
    short = Timeouts(boot_s=7, connecting_s=8)
    for life, seconds, cause in (
        (Life(timeouts=short).starting(), 7, Cause.BOOT_TIMED_OUT),
        (Life(timeouts=short).connecting(), 8, Cause.CONNECT_TIMED_OUT),
    ):
        assert life.decision.wake_at == at(life, seconds)
        life.wake(after_s=seconds - 0.001)
        assert not isinstance(life.state, Stopping)
        life.wake(after_s=0.001)
        assert life.state.cause is cause


def test_a_lookup_that_is_due_wakes_before_anything_else() -> None:
    for life in (Life().queued(), Life().starting(), Life().connecting(), Life().ready(), Life().degraded()):
        life.take(events.Found(1, life.now, ()))
        assert life.decision.wake_at == at(life, 10)


def test_what_is_left_wakes_a_session_that_wants_nothing_itself() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    dues = {left.kind: left.due for left in life.decision.session.residue}
    assert dues == {Left.JOB: at(life, 10), Left.SECRET: at(life, 60)}
    assert life.decision.wake_at == at(life, 10)


def test_waiting_ends_at_its_time_and_not_before() -> None:
    life = Life()
    life.wake(after_s=DAY_S - 0.001)
    assert life.new == []
    life.wake(after_s=0.001)
    assert life.state.cause is Cause.WAITED_TOO_LONG


def test_the_queue_ends_at_its_time_and_not_before() -> None:
    life = Life().queued()
    life.seen(observation=Alive(Phase.PENDING, note="Priority"), after_s=0)
    life.wake(after_s=14 * DAY_S - 0.001)
    assert life.new == []
    life.wake(after_s=0.001)
    assert (life.state.cause, life.state.evidence.note) == (Cause.QUEUED_TOO_LONG, "Priority")


def test_a_wake_up_before_its_time_asks_for_nothing() -> None:
    """And one at its time does."""
    for life, kind in (
        (Life().starting(), "ReadEndpoint"),
        (Life().connecting(), "OpenTunnel"),
        (Life().ready(), "Probe"),
        (Life().degraded(), "OpenTunnel"),
    ):
        due = life.state.due
        life.wake(after_s=(due - life.now) / 1000 - 0.001)
        assert life.new == []
        life.now = due
        life.wake()
        assert life.kinds() == {kind}
        if kind == "ReadEndpoint":
            assert life.last(effects.ReadEndpoint).patient is True, "it is repeated until the report is there"


def test_a_restart_asks_at_once_and_changes_no_time_of_the_state() -> None:
    for life, kind, seconds in (
        (Life().starting(), "ReadEndpoint", 90),
        (Life().connecting(), "OpenTunnel", 60),
        (Life().ready(), "Probe", 60),
        (Life().degraded(), "OpenTunnel", 60),
    ):
        since = life.state.since
        life.take(events.Resumed(), after_s=1)
        assert life.kinds() == {kind}
        assert (life.state.since, life.state.due) == (since, at(life, seconds))


def test_a_suspicion_that_is_due_is_looked_up_in_every_state() -> None:
    """Once, and then not again before the answer must be there."""
    for life in (Life().queued(), Life().starting(), Life().connecting(), Life().ready(), Life().degraded()):
        life.take(events.Found(1, life.now, ()))
        first = life.state.suspicion
        life.wake(after_s=9.999)
        assert life.new == []
        life.wake(after_s=0.001)
        assert life.kinds() == {"Find"}
        assert (life.state.suspicion.proof, life.state.suspicion.since) == (first.proof, first.since)
        assert life.state.suspicion.lookup_at == at(life, 60)


def test_every_left_thing_is_tried_again_at_its_time() -> None:
    """After a restart all of them at once."""
    life = Life().ready()
    life.take(events.StopAsked())
    assert life.kinds() == {"CloseTunnel", "Withdraw", "Cancel", "Revoke", "Report"}
    life.wake(after_s=9.999)
    assert life.new == []
    life.wake(after_s=0.001)
    assert life.kinds() == {"Cancel"}
    life.take(events.Resumed(), after_s=1)
    assert life.kinds() == {"CloseTunnel", "Withdraw", "Cancel", "Revoke"}
    assert all(left.due >= at(life, 20) for left in life.decision.session.residue)


def test_files_wait_for_the_log_and_are_looked_at_soon() -> None:
    life = Life().starting()
    life.seen(observation=Gone(EndReason.FAILED))
    life.seen(observation=Gone(EndReason.FAILED), after_s=6)
    files = next(left for left in life.decision.session.residue if left.kind is Left.FILES)
    assert (files.asked, files.due) == (0, at(life, 5))
    for _ in range(3):
        life.take(events.EffectFailed(life.last(effects.ReadLog), Failure(FailureKind.UNANSWERED)))
        life.take(events.Resumed(), after_s=1)
    assert life.last(effects.Remove).job == JOB


def test_doubt_wakes_nobody() -> None:
    life = Life().starting()
    before = life.decision
    life.take(events.Observed(JOB, life.now, Doubt(DoubtReason.UNREACHABLE)))
    assert (life.decision.session, life.decision.wake_at) == (before.session, before.wake_at)
    assert isinstance(life.state, Starting)
