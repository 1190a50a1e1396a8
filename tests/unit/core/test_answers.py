"""Answers that are late, doubled, about something else, or come at the very edge of a time."""

from tests.unit.core.life import ENDPOINT, JOB, Life, a_spec

from moorage.core import effects, events
from moorage.core.model import (
    NEVER,
    NOTE_LIMIT,
    Alive,
    Cause,
    Doubt,
    DoubtReason,
    Ended,
    Endpoint,
    EndReason,
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
    Residue,
    Sighting,
    Stopping,
    Suspicion,
    tag_of,
)
from moorage.core.timeouts import Timeouts

OTHER = JobId("other")
NOT_LISTED = Doubt(DoubtReason.NOT_LISTED)


def at(life: Life, seconds: float) -> Instant:
    return Instant(life.now + int(seconds * 1000))


def residue(life: Life, kind: Left, job: JobId | None = JOB) -> Residue:
    return next(left for left in life.decision.session.residue if (left.kind, left.job) == (kind, job))


def kinds_left(life: Life) -> list[Left]:
    return [left.kind for left in life.decision.session.residue]


def lost() -> Life:
    """The answer to the submit was lost."""
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNANSWERED)))
    return life


# While the job lives --------------------------------------------------------------------------------------------------


def test_a_lookup_that_took_longer_than_the_horizon_is_repeated_at_once() -> None:
    """It began too early to count, and there is nothing more to wait for."""
    life = lost()
    first = life.now
    life.take(events.Found(1, first, ()))
    life.take(events.Found(1, Instant(first + 29_999), ()), after_s=40)
    assert life.state.due == life.now + 1


def test_a_job_that_is_not_listed_is_looked_up_while_its_suspicion_stands() -> None:
    """What was suspected first, and since when, is not forgotten over the lookup."""
    for first in (None, Gone(EndReason.FAILED, 1, "bad")):
        life = Life().queued()
        began = life.now
        if first is not None:
            life.take(events.Observed(JOB, began, first))
        life.take(events.Observed(JOB, began, NOT_LISTED), after_s=2)
        assert life.state.suspicion == Suspicion(first, began, at(life, 60))
        assert life.last(effects.Find).tag == tag_of(a_spec(), 1)


def test_a_sign_of_life_clears_a_suspicion() -> None:
    life = Life().starting()
    before = life.state
    life.seen(observation=Gone(EndReason.FAILED))
    assert life.state.suspicion is not None
    life.seen()
    assert life.state == before


def test_a_requeued_job_begins_anew_in_the_queue() -> None:
    """Node and end are forgotten; what the scheduler says now is kept, as far as it fits."""
    life = Life().starting()
    life.seen(observation=Alive(Phase.PENDING, "n17", at(life, 60), "n" * 2 * NOTE_LIMIT))
    assert life.state == Queued(Job(JOB, note="n" * NOTE_LIMIT), life.now)
    assert life.decision.session.run == 2


def test_only_another_endpoint_of_this_very_job_is_a_move() -> None:
    elsewhere = Endpoint("n18", 4000, nonce="second")
    for life in (Life().connecting(), Life().degraded()):
        before = life.state
        life.take(events.EndpointRead(1, JOB, None))
        life.take(events.EndpointRead(1, JOB, ENDPOINT))
        life.take(events.EndpointRead(0, JOB, elsewhere))
        life.take(events.EndpointRead(1, OTHER, elsewhere))
        assert life.state == before
        life.take(events.EndpointRead(1, JOB, elsewhere))
        assert life.decision.session.run == 2


def test_a_lost_answer_does_not_count_but_keeps_the_count() -> None:
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNREACHABLE)))
    life.take(events.Admitted(), after_s=61)
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNANSWERED)))
    assert life.state == Locating(life.now, at(life, 60), tries=1)


def test_a_foreign_destination_is_shown_as_far_as_a_line_goes() -> None:
    """And the launcher is asked again soon: its operator may have corrected it."""
    life = Life().starting()
    life.take(events.EndpointRead(1, JOB, Endpoint("x" * 200, 22)), after_s=8)
    assert life.state.note == f"the job reports '{'x' * 99}, which is neither its node (n17) nor an allowed destination"
    assert life.state.due == at(life, 2)
    life.take(events.EndpointRead(1, JOB, Endpoint("", 0, "/run/docker.sock")))
    assert life.state.note.startswith("the job reports '/run/docker.sock', which")


def test_a_path_that_may_be_good_outlives_every_word_about_its_job() -> None:
    """Absent twice or finished twice: as long as no probe has failed, the session stays."""
    for life in (Life().ready(), Life().degraded()):
        kind = type(life.state)
        life.take(events.Found(1, life.now, ()))
        life.take(events.Found(1, at(life, 60), ()), after_s=60)
        life.seen(observation=Gone(EndReason.FINISHED), after_s=60)
        life.seen(observation=Gone(EndReason.FINISHED), after_s=60)
        assert type(life.state) is kind
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    assert type(life.state) is kind
    life.seen(observation=Gone(EndReason.FINISHED))
    assert (type(life.state), life.state.cause) == (Stopping, Cause.FINISHED)
    assert set(kinds_left(life)) == {Left.TUNNEL, Left.ROUTE, Left.LOG, Left.FILES, Left.SECRET}
    assert residue(life, Left.FILES).attempt == residue(life, Left.LOG).attempt == 1


def test_a_repair_asks_for_the_very_path_and_launcher() -> None:
    for life in (Life().connecting(), Life().degraded()):
        for tries in range(1, 7):
            life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
            assert life.state.tries == tries
            life.wake()
            opened = life.last(effects.OpenTunnel)
            assert (opened.job, opened.endpoint) == (JOB, ENDPOINT)
            assert (life.state.asked, life.state.due) == (opened.number, at(life, 60))
            if tries % 3 == 0:
                assert life.kinds() == {"OpenTunnel", "ReadEndpoint"}
                read = life.last(effects.ReadEndpoint)
                assert (read.job, read.tag) == (JOB, tag_of(a_spec(), 1))
            else:
                assert life.kinds() == {"OpenTunnel"}


def test_no_pause_is_nothing() -> None:
    life = Life(timeouts=Timeouts(status_starting_s=1e-6, status_first_s=1e-6)).starting()
    life.take(events.EndpointRead(1, JOB, None))
    assert life.state.due == life.now + 1


def test_a_lookup_clears_the_suspicion_about_the_living_job_that_has_to_go() -> None:
    """And only of that one: a dead twin says nothing."""
    tag = tag_of(a_spec(), 1)
    life = Life().queued()
    life.take(events.StopAsked())
    life.take(events.Found(1, life.now, ()))
    suspicion = residue(life, Left.JOB).suspicion
    assert suspicion == Suspicion(Gone(EndReason.ABSENT), life.now, at(life, 10))
    life.take(events.Found(1, life.now, (Sighting(JOB, tag, alive=False),)))
    assert residue(life, Left.JOB).suspicion == suspicion
    life.take(events.Found(1, life.now, (Sighting(JOB, tag),)))
    assert residue(life, Left.JOB).suspicion is None
    assert life.new == []


# What has to go -------------------------------------------------------------------------------------------------------


def test_an_absent_job_that_has_to_go_is_looked_up_again_soon() -> None:
    life = lost()
    life.take(events.StopAsked())
    assert residue(life, Left.JOB, None).due == at(life, 60)
    life.take(events.Found(1, life.now, ()))
    assert residue(life, Left.JOB, None).due == at(life, 10)


def test_a_job_that_has_to_go_and_is_not_listed_is_looked_up() -> None:
    """By its own tag, and before the next cancel if that is sooner."""
    life = Life(timeouts=Timeouts(call_s=2)).queued()
    life.take(events.StopAsked())
    asked_at = life.now
    life.take(events.Observed(JOB, asked_at, NOT_LISTED), after_s=1)
    find = life.last(effects.Find)
    assert (find.attempt, find.tag) == (1, tag_of(a_spec(), 1))
    left = residue(life, Left.JOB)
    assert left.suspicion == Suspicion(None, asked_at, at(life, 4))
    assert left.due == at(life, 4)


def test_what_was_suspected_of_a_job_that_has_to_go_stays() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    proof, since = Gone(EndReason.CANCELLED), life.now
    life.take(events.Observed(JOB, since, proof))
    assert residue(life, Left.JOB).suspicion == Suspicion(proof, since, NEVER)
    life.take(events.Observed(JOB, life.now, NOT_LISTED), after_s=1)
    assert residue(life, Left.JOB).suspicion == Suspicion(proof, since, at(life, 60))


def test_a_reading_is_about_one_job_and_nothing_else_of_it() -> None:
    """Not about another job that has to go, nor about the log or the path of this one."""
    life = Life().starting()
    life.take(events.StraySeen(0, OTHER))
    while not isinstance(life.state, Stopping):
        life.wake()
    before = residue(life, Left.JOB, OTHER)
    kinds = kinds_left(life)
    life.seen(observation=Gone(EndReason.FAILED))
    assert residue(life, Left.JOB).suspicion is not None
    life.seen(observation=Gone(EndReason.FAILED), after_s=6)
    assert residue(life, Left.JOB, OTHER).suspicion == before.suspicion
    assert set(kinds_left(life)) == {*kinds, Left.FILES}


def test_a_log_that_comes_late_is_not_kept() -> None:
    """Nobody waits for it, and a second answer removes nothing twice."""
    life = Life().queued()
    life.take(events.StopAsked())
    life.take(events.LogRead(JOB, "late"))
    assert life.state.evidence.log == ""
    life = Life().starting()
    life.take(events.LogRead(JOB, "early"))
    assert life.new == []


def test_after_the_log_the_files_go_and_nothing_else() -> None:
    life = Life().starting()
    life.seen(observation=Gone(EndReason.FAILED, 1))
    life.seen(observation=Gone(EndReason.FAILED, 1), after_s=6)
    life.take(events.EffectFailed(life.last(effects.Revoke), Failure(FailureKind.UNREACHABLE)))
    life.take(events.LogRead(JOB, "the end"))
    assert isinstance(life.state, Ended)
    assert life.state.cause is Cause.FAILED
    assert life.state.evidence.log == "the end"
    assert life.kinds() == {"Remove", "Report"}
    life.take(events.LogRead(JOB, "once more"))
    assert life.new == []
    assert life.state.evidence.log == "the end"
