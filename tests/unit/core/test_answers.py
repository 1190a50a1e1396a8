"""Answers that are late, doubled, about something else, or come at the very edge of a time."""

import pytest
from attrs import evolve
from tests.unit.core.life import ENDPOINT, JOB, ROUTE, Life, a_spec

from moorage.core import effects, events
from moorage.core.machine import may_dial
from moorage.core.model import (
    NEVER,
    NOTE_LIMIT,
    Alive,
    Cause,
    Connecting,
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
    Phase,
    Queued,
    Ready,
    Residue,
    Sighting,
    Starting,
    Stopping,
    Suspicion,
    Waiting,
    Why,
    tag_of,
)
from moorage.core.plan import EXIT_WALLTIME
from moorage.core.progress import progress_of
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


def test_a_new_session_is_told_and_waits() -> None:
    life = Life()
    assert life.state == Waiting(Why.ASKED, life.now)
    (report,) = life.new
    assert report == effects.Report(a_spec().id, 0, 1, progress_of(life.state))
    assert (life.decision.session.attempt, life.decision.session.run) == (0, 1)


def test_an_admission_submits_and_says_whether_it_is_a_repetition() -> None:
    life = Life()
    for attempt in (1, 2):
        life.take(events.Admitted(), after_s=61)
        report, submit = life.new
        assert report == effects.Report(a_spec().id, attempt, report.number, progress_of(life.state))
        tag = tag_of(a_spec(), attempt)
        assert submit == effects.Submit(a_spec().id, attempt, report.number + 1, tag, retry=attempt > 1)
        life.take(events.EffectFailed(submit, Failure(FailureKind.OVERLOADED)))


def test_who_waits_may_be_stopped_and_is_told_why_it_took_so_long() -> None:
    life = Life()
    life.take(events.StopAsked("ada"))
    assert life.state == Ended(Cause.STOPPED, Evidence("asked by ada"), life.now)
    life = Life()
    life.take(events.Held(Why.LIMIT, "10 sessions in all"))
    life.wake()
    assert life.state == Ended(Cause.WAITED_TOO_LONG, Evidence("10 sessions in all"), life.now)


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
        life.now = began = at(life, 30)
        if first is not None:
            life.take(events.Observed(JOB, began, first))
        life.take(events.Observed(JOB, began, NOT_LISTED), after_s=2)
        assert life.state.suspicion == Suspicion(first, began, at(life, 60))
        assert life.last(effects.Find).tag == tag_of(a_spec(), 1)


def test_a_job_that_was_created_a_moment_ago_need_not_be_listed() -> None:
    life = Life().queued()
    before = life.state
    life.seen(observation=NOT_LISTED, after_s=29)
    assert (life.state, life.new) == (before, [])
    life.seen(observation=NOT_LISTED, after_s=2)
    assert life.kinds() == {"Find"}


def test_a_sign_of_life_clears_a_suspicion() -> None:
    life = Life().starting()
    before = life.state
    life.seen(observation=Gone(EndReason.FAILED))
    assert life.state.suspicion is not None
    life.seen()
    assert life.state == before


def test_what_says_nothing_new_changes_nothing() -> None:
    """The very same session: nothing has to be saved for it."""
    tag = tag_of(a_spec(), 1)
    for life in (Life().starting(), Life().connecting(), Life().ready()):
        life.seen()
        before = life.decision.session
        life.seen()
        life.take(events.Found(1, life.now, (Sighting(JOB, tag),)))
        life.take(events.Found(1, life.now, (Sighting(JOB, tag, alive=False),)))
        assert life.decision.session is before


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
                assert (read.job, read.tag, read.patient) == (JOB, tag_of(a_spec(), 1), False)
            else:
                assert life.kinds() == {"OpenTunnel"}


def test_no_pause_is_nothing() -> None:
    life = Life(timeouts=Timeouts(status_starting_s=1e-6, status_first_s=1e-6)).starting()
    life.take(events.EndpointRead(1, JOB, None))
    assert life.state.due == life.now + 1
    assert Life(timeouts=Timeouts(call_s=1e-6)).starting().state.due == life.now + 1
    life = Life(timeouts=Timeouts(lookup_s=1e-6)).queued()
    life.take(events.Found(1, life.now, ()))
    assert life.state.suspicion.lookup_at == life.now + 1


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


def test_a_reading_in_connecting_and_ready_is_only_noted() -> None:
    """What the scheduler says is kept, a suspicion goes, and nobody else's reading counts."""
    for life in (Life().connecting(), Life().ready()):
        before = life.state
        life.seen(observation=Gone(EndReason.FAILED))
        asked = life.state.asked
        life.seen(note="n" * 2 * NOTE_LIMIT)
        assert life.new == []
        assert life.state == evolve(before, job=Job(JOB, "n17", note="n" * NOTE_LIMIT), asked=asked, due=life.state.due)
        known = life.state
        life.take(events.Observed(OTHER, life.now, Alive(Phase.RUNNING, "n17", note="other")))
        life.take(events.Observed(OTHER, life.now, Alive(Phase.ENDING, "n17", note="other")))
        life.take(events.Observed(OTHER, life.now, NOT_LISTED))
        assert (life.state, life.new) == (known, [])


def test_only_the_probe_under_way_makes_a_session_ready() -> None:
    """Not an older one, and none before there is a path to probe."""
    life = Life().connecting()
    opened = life.state.asked
    life.take(events.TunnelOpened(opened, ROUTE))
    probe = life.state.asked
    before = life.state
    life.take(events.Probed(opened, good=True))
    life.take(events.Probed(probe + 1, good=True))
    assert life.state == before
    life.take(events.Probed(probe, good=True))
    assert life.state == Ready(Job(JOB, "n17"), ENDPOINT, ROUTE, life.now, at(life, 3600), published=False)
    life = Life().connecting()
    life.take(events.Probed(life.state.asked, good=True))
    assert (type(life.state), life.state.asked, life.state.tries) == (Connecting, 0, 1)


def test_what_a_probe_met_is_told_once() -> None:
    life = Life().connecting()
    for note, kinds in (("starting", {"Report"}), ("starting", set()), ("another", {"Report"})):
        life.wake()
        life.take(events.TunnelOpened(life.state.asked, ROUTE))
        life.take(events.Probed(life.state.asked, good=False, note=note), after_s=1)
        assert life.kinds() == kinds
        assert (life.state.asked, life.state.note) == (0, note)
        assert life.state.due == life.now + min(5000, max(250, (life.now - life.state.since) // 4))


def test_a_path_to_a_lab_that_is_not_up_yet_is_only_probed() -> None:
    """Until a probe gets no answer: then nobody knows whether the path still leads anywhere."""
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    assert life.kinds() == {"Report", "Probe"}
    assert life.last(effects.Probe).patient
    assert life.state.note == "waiting for the lab"
    life.take(events.Probed(life.state.asked, good=False, note="starting", proven=True))
    for _ in range(2):
        life.wake()
        probe = life.last(effects.Probe)
        assert life.new == [probe]
        assert probe.patient, "it is repeated until the lab is up, and nothing is decided or saved meanwhile"
        assert (life.state.asked, life.state.due, life.state.route) == (probe.number, at(life, 90), ROUTE)
        life.take(events.Probed(probe.number, good=False, note="starting", proven=True), after_s=1)
    life.wake()
    life.take(events.EffectFailed(life.last(effects.Probe), Failure(FailureKind.UNANSWERED)))
    assert life.state.route is None
    life.wake()
    assert life.kinds() == {"OpenTunnel"}


def test_no_path_says_so() -> None:
    life = Life().connecting()
    while not isinstance(life.state, Stopping):
        life.wake()
    assert life.state == Stopping(
        Cause.CONNECT_TIMED_OUT, Evidence("the job runs but no path to it could be made"), life.now
    )
    assert residue(life, Left.LOG).attempt == 1


def test_a_probe_that_is_not_answered_is_sent_again() -> None:
    life = Life().ready()
    for _ in range(3):
        life.wake()
        assert life.kinds() == {"Probe"}
        assert (life.state.asked, life.state.due) == (life.last(effects.Probe).number, at(life, 60))


def test_a_lookup_under_way_is_enough() -> None:
    for life in (Life().queued(), Life().starting(), Life().connecting(), Life().ready(), Life().degraded()):
        life.now = at(life, 30)
        life.seen(observation=NOT_LISTED)
        assert "Find" in life.kinds()
        suspicion = life.state.suspicion
        life.seen(observation=NOT_LISTED)
        assert (life.new, life.state.suspicion) == ([], suspicion)
        life.wake(after_s=60)
        assert life.last(effects.Find).tag == tag_of(a_spec(), 1)


def test_a_stop_that_takes_its_time_says_why() -> None:
    """Once for each reason, and not about what nobody waits for."""
    life = Life().ready()
    life.take(events.StopAsked("ada"))
    away = Failure(FailureKind.UNREACHABLE, "the gateway is down")
    life.take(events.EffectFailed(life.last(effects.Revoke), away))
    assert life.state.note == ""
    life.take(events.EffectFailed(life.last(effects.Cancel), away))
    assert life.state.note == "the gateway is down"
    assert life.last(effects.Report).progress == progress_of(life.state)
    life.wake()
    life.take(events.EffectFailed(life.last(effects.Cancel), away))
    assert life.kinds() == set()
    life.wake()
    life.take(events.EffectFailed(life.last(effects.Cancel), Failure(FailureKind.UNANSWERED, "x" * 2 * NOTE_LIMIT)))
    assert life.state.note == "x" * NOTE_LIMIT
    assert isinstance(life.state, Stopping)


def test_a_ready_session_that_its_system_does_not_know_is_looked_up_ever_more_rarely() -> None:
    """A thousand of them would keep a system busy that has lost its data. Once the path fails it matters again."""
    life = Life().ready()
    life.seen(observation=NOT_LISTED)
    begun, pauses = life.now, list[int]()
    while life.now - begun < 3_600_000:
        if "Find" in life.kinds():
            life.take(events.Found(1, life.now, ()))
            pauses.append((life.state.suspicion.lookup_at - life.now) // 1000)
        elif "Probe" in life.kinds():
            life.take(events.Probed(life.state.asked, good=True))
        else:
            life.wake()
    assert pauses[:6] == [10, 10, 10, 10, 10, 12]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300
    assert len(pauses) < 30
    life.take(events.PathDoubted("cut"))
    assert life.state.suspicion.lookup_at > at(life, 10)
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    assert life.state.suspicion.lookup_at <= at(life, 10)


def test_a_twin_that_a_lookup_finds_has_to_go() -> None:
    tag = tag_of(a_spec(), 1)
    life = Life().ready()
    before = life.state
    life.take(events.Found(1, life.now, (Sighting(JOB, tag), Sighting(OTHER, tag), Sighting(JobId("x"), tag, False))))
    assert life.state == before
    cancel = life.last(effects.Cancel)
    assert (cancel.job, cancel.attempt, cancel.tag) == (OTHER, 1, tag)
    assert kinds_left(life) == [Left.JOB]


def test_the_first_word_about_an_end_names_the_cause() -> None:
    life = Life().starting()
    life.seen(observation=Gone(EndReason.FAILED, 1, "first"))
    life.seen(observation=Gone(EndReason.FINISHED, 0, "second"), after_s=6)
    assert life.state == Stopping(Cause.FAILED, Evidence("first", 1), life.now)
    life = Life().ready()
    life.seen(observation=Gone(EndReason.FAILED))
    first = life.state.suspicion
    life.seen(observation=Gone(EndReason.FINISHED), after_s=60)
    assert life.state.suspicion == first


def test_two_absences_need_the_horizon_between_them() -> None:
    """And a lookup is planned until then."""
    life = Life().starting()
    first = life.now
    life.take(events.Found(1, first, ()))
    life.take(events.Found(1, at(life, 29.999), ()), after_s=29.999)
    assert life.state.suspicion == Suspicion(Gone(EndReason.ABSENT), first, at(life, 10))
    life.take(events.Found(1, at(life, 0.001), ()), after_s=0.001)
    assert life.state.cause is Cause.VANISHED


@pytest.mark.parametrize(
    ("node", "host", "allowed"),
    [
        ("n17", "n17", True),
        ("n17.cluster", "n17", True),
        ("N17.Cluster", "n17.cluster", True),
        ("n17.cluster", "n17.other", False),
        ("n17", "n18", False),
        ("n17", "", False),
        (None, "", False),
        (None, "n17", False),
        (None, "xxxx", False),
        (None, "ok.example.org", True),
        ("n17", "evil.example.org", False),
        ("n17", "a.allowed.org", True),
        ("n17", "a.allowed.org.evil.org", False),
        ("n17", "allowed.org", False),
        ("n17", "not-ok.example.org", False),
    ],
    ids=range(15),
)
def test_where_a_tunnel_may_lead(node: str | None, host: str, allowed: bool) -> None:
    """I52: to the job's own node under its short or long name, or where the operator says."""
    spec = a_spec(destinations=("ok.example.org", ".allowed.org"))
    assert may_dial(spec, Job(JOB, node), Endpoint(host, 4000)) is allowed


def test_a_restart_during_a_second_submit_keeps_the_count() -> None:
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNREACHABLE)))
    life.take(events.Admitted(), after_s=61)
    life.take(events.Resumed(), after_s=1)
    assert life.state == Locating(life.now, at(life, 60), tries=1)


def test_only_the_report_of_this_very_job_is_read() -> None:
    life = Life().starting()
    before = life.state
    read = life.last(effects.ReadEndpoint)
    life.take(events.EndpointRead(0, JOB, ENDPOINT))
    life.take(events.EndpointRead(1, OTHER, ENDPOINT))
    for wrong in (evolve(read, attempt=0), evolve(read, job=OTHER)):
        life.take(events.EffectFailed(wrong, Failure(FailureKind.UNANSWERED)), after_s=1)
    assert life.state == before
    life.wake()
    read = life.last(effects.ReadEndpoint)
    assert (read.job, read.tag) == (JOB, tag_of(a_spec(), 1))


def test_a_launcher_that_does_not_report_is_named_as_the_cause() -> None:
    life = Life().starting()
    life.wake(after_s=600)
    said = "the launcher did not report where it listens"
    assert life.state == Stopping(Cause.BOOT_TIMED_OUT, Evidence(said), life.now)


def test_an_old_address_is_withdrawn_before_a_new_path_is_made() -> None:
    life = Life().degraded()
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    life.seen(observation=Alive(Phase.PENDING))
    life.seen()
    life.take(events.TunnelClosed(life.last(effects.CloseTunnel).number))
    assert kinds_left(life) == [Left.ROUTE]
    life.take(events.EndpointRead(1, JOB, ENDPOINT), after_s=4)
    assert isinstance(life.state, Starting)
    assert life.state.due == life.now + (life.now - life.state.since) // 4
    life.take(events.Withdrawn(life.last(effects.Withdraw).number))
    life.take(events.EndpointRead(1, JOB, ENDPOINT))
    assert isinstance(life.state, Connecting)


def test_a_suspicion_goes_along_to_connecting() -> None:
    life = Life().starting()
    life.seen(observation=Gone(EndReason.FAILED))
    suspicion = life.state.suspicion
    life.take(events.EndpointRead(1, JOB, ENDPOINT))
    assert life.state.suspicion == suspicion == Suspicion(Gone(EndReason.FAILED), life.now)


def test_what_the_scheduler_no_longer_says_stays_known() -> None:
    life = Life().starting()
    ends_at = at(life, 3600)
    life.seen(ends_at=ends_at, note="until noon")
    life.seen(observation=Alive(Phase.RUNNING))
    assert life.state.job == Job(JOB, "n17", ends_at)
    life.seen(observation=Alive(Phase.RUNNING, "n18", at(life, 60)))
    assert life.state.job == Job(JOB, "n18", at(life, 59))


def test_where_no_scheduler_says_when_the_job_ends_its_walltime_does() -> None:
    """On a login node, say. What a scheduler says later is better."""
    life = Life(walltime_s=600).queued()
    life.seen(observation=Alive(Phase.RUNNING, "n17"), after_s=30)
    assert life.state.job.ends_at == at(life, 600)
    life.seen(observation=Alive(Phase.RUNNING, "n17"), after_s=100)
    assert life.state.job.ends_at == at(life, 500)
    better = at(life, 480)
    life.seen(ends_at=better)
    assert life.state.job.ends_at == better
    said = Life(walltime_s=600).queued()
    said.seen(ends_at=better)
    assert said.state.job.ends_at == better


def test_a_requeued_job_has_its_whole_time_again() -> None:
    for seen_waiting in (True, False):
        life = Life(walltime_s=600).connecting()
        if seen_waiting:
            life.seen(observation=Alive(Phase.PENDING), after_s=60)
            assert life.state.job.ends_at is None
        else:
            life.take(events.EndpointRead(1, JOB, Endpoint("n17", 5000, nonce="second")), after_s=60)
            assert (type(life.state), life.state.job.ends_at) == (Starting, None)
        life.seen(observation=Alive(Phase.RUNNING, "n17"), after_s=60)
        assert life.state.job.ends_at == at(life, 600)


@pytest.mark.parametrize(
    ("reason", "code", "cause", "note"),
    [
        (EndReason.FAILED, EXIT_WALLTIME, Cause.WALLTIME, ""),
        (EndReason.FAILED, 1, Cause.FAILED, "exit code not 0"),
        (EndReason.FINISHED, EXIT_WALLTIME, Cause.FINISHED, "exit code not 0"),
    ],
)
def test_a_launcher_that_ended_itself_at_its_walltime_did_not_fail(
    reason: EndReason, code: int, cause: Cause, note: str
) -> None:
    life = Life().starting()
    for _ in range(2):
        life.seen(observation=Gone(reason, code, "exit code not 0"), after_s=10)
    assert life.state == Stopping(cause, Evidence(note, code), life.now)


# What has to go -------------------------------------------------------------------------------------------------------


def test_an_absent_job_that_has_to_go_is_looked_up_again_soon() -> None:
    life = lost()
    life.take(events.StopAsked())
    assert residue(life, Left.JOB, None).due == at(life, 60)
    assert life.last(effects.Find) == effects.Find(
        a_spec().id, 1, residue(life, Left.JOB, None).asked, tag_of(a_spec(), 1)
    )
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


def test_everything_that_a_stop_asks_for_names_its_attempt_tag_and_job() -> None:
    """Also when it is tried again, and for what an older attempt left."""
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    while not isinstance(life.state, Stopping):
        life.wake()
    life.take(events.StraySeen(0, OTHER))
    began = len(life.asked)
    life.take(events.Resumed(), after_s=1)
    life.take(events.LogRead(JOB, ""))
    life.take(events.Observed(JOB, life.now, NOT_LISTED))
    asked = life.asked[began:]
    assert {type(each).__name__ for each in asked} == {
        *("CloseTunnel", "ReadLog", "Cancel", "Revoke", "Find"),
    }
    ready = Life().ready()
    ready.take(events.StopAsked())
    assert "Withdraw" in ready.kinds()
    for each in [*asked, *ready.new]:
        old = getattr(each, "job", JOB) == OTHER
        assert each.attempt == (0 if old else 1)
        assert getattr(each, "tag", tag_of(a_spec(), each.attempt)) == tag_of(a_spec(), each.attempt)
        assert getattr(each, "job", JOB) in (JOB, OTHER)
    life.seen(observation=Gone(EndReason.CANCELLED))
    life.seen(observation=Gone(EndReason.CANCELLED), after_s=6)
    remove = life.last(effects.Remove)
    assert (remove.attempt, remove.tag, remove.job) == (1, tag_of(a_spec(), 1), JOB)


def test_a_stop_is_told_who_asked() -> None:
    life = Life().queued()
    life.take(events.StopAsked("a" * 2 * NOTE_LIMIT, Cause.POLICY))
    assert life.decision.session.desired is Desired.DOWN
    assert life.state == Stopping(Cause.POLICY, Evidence(f"asked by {'a' * NOTE_LIMIT}"[:NOTE_LIMIT]), life.now)


def test_the_late_answer_of_the_submit_makes_the_unknown_job_known() -> None:
    """It is cancelled at once, and its count begins anew; a job of another attempt is another one."""
    life = lost()
    life.take(events.StopAsked(), after_s=1)
    began = life.now
    life.take(events.EffectFailed(life.last(effects.Find), Failure(FailureKind.UNREACHABLE)))
    life.take(events.Found(1, life.now, ()))
    life.take(events.Submitted(0, OTHER), after_s=1)
    assert residue(life, Left.JOB, None).tries == 1
    assert residue(life, Left.JOB, OTHER).attempt == 0
    life.take(events.Submitted(1, JOB), after_s=1)
    cancel = life.last(effects.Cancel)
    assert residue(life, Left.JOB) == Residue(Left.JOB, 1, began, at(life, 10), JOB, cancel.number, tries=1)
    assert [left.job for left in life.decision.session.residue if left.kind is Left.JOB] == [JOB, OTHER]


@pytest.mark.parametrize("alive", [True, False])
def test_a_lookup_makes_the_unknown_job_known(alive: bool) -> None:
    """Also one that is over: its end has to be said twice, and its files have to go."""
    tag = tag_of(a_spec(), 1)
    life = lost()
    life.take(events.StopAsked())
    life.take(events.Found(1, life.now, (Sighting(JOB, tag, alive=alive),)), after_s=1)
    (cancel,) = life.new
    assert cancel == effects.Cancel(a_spec().id, 1, cancel.number, tag, JOB)
    assert residue(life, Left.JOB).asked == cancel.number
    life.take(events.CancelAnswered(JOB, life.now, Gone(EndReason.FINISHED)))
    life.seen(observation=Gone(EndReason.FINISHED), after_s=5)
    assert isinstance(life.state, Ended)
    assert kinds_left(life) == [Left.SECRET, Left.FILES]


def test_an_absent_job_that_has_to_go_is_cancelled_and_looked_up_at_once() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    life.take(events.Found(1, life.now, ()))
    life.wake(after_s=9.999)
    assert life.new == []
    life.wake(after_s=0.001)
    assert life.kinds() == {"Cancel", "Find"}
    left = residue(life, Left.JOB)
    assert (left.tries, left.asked, left.due) == (2, life.last(effects.Cancel).number, at(life, 20))
    assert left.suspicion is not None
    assert left.suspicion.lookup_at == at(life, 60)
    life.wake()
    assert life.kinds() == {"Cancel"}
