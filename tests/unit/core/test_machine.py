"""The machine in examples: normal days, and the incidents that it was made for."""

import pytest
from tests.unit.core.life import ENDPOINT, JOB, ROUTE, START, Life, a_spec

from moorage.core import effects, events
from moorage.core.backoff import full_jitter_ms
from moorage.core.machine import LOG_LIMIT
from moorage.core.model import (
    NEVER,
    NOTE_LIMIT,
    Alive,
    Cause,
    Connecting,
    Degraded,
    Doubt,
    DoubtReason,
    Ended,
    Endpoint,
    EndReason,
    Failure,
    FailureKind,
    Gone,
    JobId,
    Left,
    Locating,
    Phase,
    Queued,
    Ready,
    Route,
    Sighting,
    Starting,
    Stopping,
    Submitting,
    Waiting,
    Why,
    tag_of,
)

DEAD = Gone(EndReason.FAILED, 1, "killed by signal 9")
NOT_LISTED = Doubt(DoubtReason.NOT_LISTED)


def left(life: Life) -> set[Left]:
    return {each.kind for each in life.decision.session.residue}


# The normal day -------------------------------------------------------------------------------------------------------


def test_from_wish_to_ready() -> None:
    """Each state asks for what leads to the next."""
    life = Life()
    assert isinstance(life.state, Waiting)
    assert isinstance(life.take(events.Admitted()), Submitting)
    assert life.last(effects.Submit).tag == tag_of(a_spec(), 1)
    assert isinstance(life.take(events.Submitted(1, JOB)), Queued)
    assert isinstance(life.seen(), Starting)
    assert life.kinds() == {"Report", "ReadEndpoint"}
    assert isinstance(life.take(events.EndpointRead(1, JOB, ENDPOINT)), Connecting)
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    assert life.kinds() == {"Report", "Probe"}
    assert isinstance(life.take(events.Probed(life.state.asked, good=True)), Ready)
    assert life.last(effects.Publish).route == ROUTE


def test_a_stop_takes_everything_away_before_the_end() -> None:
    """Path, route and job are confirmed gone before `Ended`; files and secrets are removed after it, visibly."""
    life = Life().ready()
    life.take(events.StopAsked("ada"))
    assert left(life) == {Left.TUNNEL, Left.ROUTE, Left.JOB, Left.SECRET}
    life.take(events.TunnelClosed(life.last(effects.CloseTunnel).number))
    life.take(events.Withdrawn(life.last(effects.Withdraw).number))
    life.take(events.CancelAnswered(JOB, life.now, Gone(EndReason.CANCELLED)))
    assert isinstance(life.state, Stopping), "one reading is not enough"
    life.seen(observation=Gone(EndReason.CANCELLED), after_s=6)
    assert isinstance(life.state, Ended)
    assert life.state.cause is Cause.STOPPED
    assert left(life) == {Left.SECRET, Left.FILES}
    life.take(events.Revoked(life.last(effects.Revoke).number))
    life.take(events.Removed(JOB))
    assert life.decision.session.over
    assert life.decision.wake_at == NEVER


def test_a_job_that_ends_by_itself_leaves_its_log() -> None:
    """The user is told the cause, the exit code and the end of the log."""
    life = Life().starting()
    life.seen(observation=DEAD)
    assert isinstance(life.state, Starting)
    life.seen(observation=DEAD, after_s=6)
    assert isinstance(life.state, Stopping)
    life.take(events.LogRead(JOB, "x" * LOG_LIMIT + "No module named jupyterlab"))
    assert isinstance(life.state, Ended)
    assert life.state.cause is Cause.FAILED
    assert life.state.evidence.exit_code == 1
    assert life.state.evidence.log.endswith("No module named jupyterlab")
    assert len(life.state.evidence.log) == LOG_LIMIT
    assert life.kinds() >= {"Remove"}, "the files go only after the log was read"


# Waiting and submitting -----------------------------------------------------------------------------------------------


def test_held_says_why() -> None:
    life = Life()
    life.take(events.Held(Why.LIMIT, "n" * 2 * NOTE_LIMIT))
    assert life.state.why is Why.LIMIT
    assert len(life.state.note) == NOTE_LIMIT


def test_waiting_for_ever_ends() -> None:
    life = Life()
    life.wake()
    assert isinstance(life.state, Ended)
    assert life.state.cause is Cause.WAITED_TOO_LONG


def test_an_admission_before_the_end_of_the_pause_is_nothing() -> None:
    """A back-off is kept even if admission is too early."""
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNREACHABLE, "refused")))
    assert isinstance(life.state, Waiting)
    before = life.decision.session
    assert life.take(events.Admitted()) is before.state
    life.wake(after_s=(life.state.not_before - life.now) / 1000)
    assert isinstance(life.take(events.Admitted()), Submitting)
    assert life.last(effects.Submit).retry
    assert life.last(effects.Submit).attempt == 2


@pytest.mark.parametrize(
    ("asked", "pause_s"), [(0, 1), (-1, 1), (1, 1), (5, 5), (3600, 3600), (10**9, 3600), (float("nan"), 1)]
)
def test_a_wish_for_patience_is_clamped(asked: float, pause_s: int) -> None:
    """F-U11: absurd Retry-After values bring nobody to a standstill, nor to a storm. The usual pause comes on top."""
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.OVERLOADED, "", asked)))
    usual_ms = full_jitter_ms(1, 60, 1, a_spec().seed)
    assert life.state.not_before - life.now == usual_ms + pause_s * 1000


def test_refused_ends_with_the_systems_words() -> None:
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.REFUSED, "no such account")))
    assert isinstance(life.state, Ended)
    assert (life.state.cause, life.state.evidence.note) == (Cause.REFUSED, "no such account")


def test_stale_credentials_are_tried_again_but_not_for_ever() -> None:
    life = Life()
    for _ in range(3):
        life.wake(after_s=61)
        life.take(events.Admitted())
        life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNAUTHORISED)))
    assert isinstance(life.state, Ended)
    assert life.state.cause is Cause.UNAUTHORISED


# A lost answer --------------------------------------------------------------------------------------------------------


def lost() -> Life:
    life = Life()
    life.take(events.Admitted())
    life.take(events.EffectFailed(life.last(effects.Submit), Failure(FailureKind.UNANSWERED)))
    return life


def test_a_lost_answer_is_looked_up_not_repeated() -> None:
    """Failure mode 8: the scheduler made the job although the call timed out."""
    life = lost()
    assert isinstance(life.state, Locating)
    assert life.kinds() == {"Report", "Find"}
    tag = tag_of(a_spec(), 1)
    life.take(events.Found(1, life.now, (Sighting(JobId("dead"), tag, alive=False), Sighting(JOB, tag))))
    assert isinstance(life.state, Queued)
    assert life.state.job.id == JOB


def test_two_jobs_of_one_attempt_become_one() -> None:
    """A server that made one job for each repeated request: the other one is cancelled."""
    life, tag = lost(), tag_of(a_spec(), 1)
    life.take(events.Found(1, life.now, (Sighting(JOB, tag), Sighting(JobId("twin"), tag))))
    assert life.state.job.id == JOB
    assert life.last(effects.Cancel).job == "twin"


def test_absent_counts_only_after_the_horizon() -> None:
    """Only then a second submit is allowed, and it is another attempt."""
    life = lost()
    life.take(events.Found(1, life.now, ()))
    assert isinstance(life.state, Locating)
    life.take(events.EffectFailed(life.last(effects.Find), Failure(FailureKind.UNREACHABLE)))
    life.wake()
    assert life.kinds() == {"Find"}
    life.take(events.Found(1, life.now, ()), after_s=1)
    assert isinstance(life.state, Locating)
    life.now = START + 40_000  # type: ignore[assignment]
    life.take(events.Found(1, life.now, ()))
    assert isinstance(life.state, Waiting)
    life.wake(after_s=2)
    life.take(events.Admitted())
    assert life.last(effects.Submit).attempt == 2


def test_the_answer_comes_after_all() -> None:
    life = lost()
    assert isinstance(life.take(events.Submitted(1, JOB)), Queued)


def test_a_restart_during_the_submit_is_a_lost_answer() -> None:
    """Failure mode 7: nobody knows whether the call was made."""
    life = Life()
    life.take(events.Admitted())
    assert isinstance(life.take(events.Resumed()), Locating)


def test_the_late_answer_of_an_old_attempt_has_its_job_cancelled() -> None:
    """Failure mode 21."""
    life = lost()
    life.take(events.Found(1, life.now, ()))
    life.take(events.Found(1, life.now + 31_000, ()), after_s=31)  # type: ignore[arg-type]
    life.wake(after_s=61)
    life.take(events.Admitted())
    before = life.state
    life.take(events.Submitted(1, JobId("late")))
    assert life.state == before
    assert life.last(effects.Cancel).job == "late"


# In the queue ---------------------------------------------------------------------------------------------------------


def test_days_in_the_queue_are_no_reason_to_end() -> None:
    """Failure mode 14: the queue has its own clock."""
    life = Life().queued()
    life.seen(observation=Alive(Phase.PENDING, note="Priority"), after_s=5 * 86_400)
    assert isinstance(life.state, Queued)
    assert life.state.job.note == "Priority"
    life.wake()
    assert isinstance(life.state, Stopping)
    assert life.state.cause is Cause.QUEUED_TOO_LONG


def test_a_job_that_is_not_listed_is_looked_up() -> None:
    """An empty list is no evidence, but worth a complete lookup; a sign of life clears the suspicion."""
    life = Life().queued()
    life.seen(observation=NOT_LISTED, after_s=30)
    assert life.kinds() == {"Find"}
    life.take(events.Found(1, life.now, (Sighting(JOB, tag_of(a_spec(), 1)),)))
    assert life.state.suspicion is None
    life.seen(observation=NOT_LISTED)
    life.wake()
    assert life.kinds() == {"Find"}, "a lost lookup is asked for again"
    life.take(events.Found(1, life.now, ()))
    life.wake()
    life.take(events.Found(1, life.now, ()), after_s=31)
    life.now = life.now + 31_000  # type: ignore[assignment]
    life.take(events.Found(1, life.now, ()))
    assert isinstance(life.state, Stopping)
    assert life.state.cause is Cause.VANISHED


# Starting and connecting ----------------------------------------------------------------------------------------------


def test_the_launchers_report_is_asked_for_until_it_is_there() -> None:
    life = Life().starting()
    life.take(events.EndpointRead(1, JOB, None))
    life.wake()
    assert life.kinds() == {"ReadEndpoint"}
    life.take(events.EffectFailed(life.last(effects.ReadEndpoint), Failure(FailureKind.MALFORMED)))
    assert isinstance(life.wake(), Starting)


def test_a_boot_that_takes_too_long_ends_with_the_log() -> None:
    life = Life().starting()
    for _ in range(100):
        if isinstance(life.wake(), Stopping):
            break
    assert life.state.cause is Cause.BOOT_TIMED_OUT
    assert Left.LOG in left(life)


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1", "169.254.169.254", ""])
def test_the_job_does_not_choose_where_the_tunnel_goes(host: str) -> None:
    """I52: an endpoint on another host than the job's node is not dialled."""
    life = Life().starting()
    life.take(events.EndpointRead(1, JOB, Endpoint(host, 22)))
    assert isinstance(life.state, Starting)
    said = life.last(effects.Report).progress.text
    assert said == f"starting: the job reports {host!r}, which is neither its node (n17) nor an allowed destination"
    life.take(events.EndpointRead(1, JOB, Endpoint(host, 22)))
    assert life.new == [], "once is enough"
    life.wake(after_s=601)
    assert life.state.evidence.note in said


@pytest.mark.parametrize(
    ("endpoint", "allowed"),
    [
        (Endpoint("", 0, "private/gate.sock"), True),
        (Endpoint("n17", 4000, "private/gate.sock"), False),
        (Endpoint("", 4000, "private/gate.sock"), False),
        (Endpoint("", 0, "/run/docker.sock"), False),
        (Endpoint("", 0, "../other/private/gate.sock"), False),
    ],
)
def test_a_socket_is_the_gates_or_none(endpoint: Endpoint, allowed: bool) -> None:
    """A gate in the job's own directory may be dialled; no other socket of the node."""
    life = Life().starting()
    assert isinstance(life.take(events.EndpointRead(1, JOB, endpoint)), Connecting) is allowed


@pytest.mark.parametrize("host", ["n17", "N17", "login1.cluster", "exact"])
def test_allowed_destinations(host: str) -> None:
    life = Life(destinations=(".cluster", "exact")).starting()
    assert isinstance(life.take(events.EndpointRead(1, JOB, Endpoint(host, 4000))), Connecting)


def test_a_bad_probe_is_tried_again_with_the_listener() -> None:
    life = Life().connecting()
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    life.wake()
    assert life.kinds() == {"OpenTunnel"}
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=False, note="the lab is starting"))
    assert isinstance(life.state, Connecting)
    assert life.state.tries == 2
    assert life.last(effects.Report).progress.text == "connecting: the lab is starting"


def test_a_route_that_the_hub_did_not_take_is_offered_again_soon() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True))
    for _ in range(3):
        life.take(events.EffectFailed(life.last(effects.Publish), Failure(FailureKind.UNREACHABLE)))
        before = life.now
        life.wake()
        assert life.now - before <= 5_000
        assert {"Publish", "Probe"} <= life.kinds()
        life.take(events.Probed(life.state.asked, good=True))


def test_while_only_the_lab_is_missing_the_path_is_left_alone() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=False, note="the lab is starting", proven=True))
    life.wake()
    assert life.kinds() == {"Probe"}
    life.take(events.Probed(life.state.asked, good=False, note="another launcher answered"))
    life.wake()
    assert life.kinds() == {"OpenTunnel"}


def test_a_probe_without_an_answer_has_the_path_made_again() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=False, proven=True))
    life.wake()
    life.wake()
    assert life.kinds() == {"OpenTunnel"}


def test_after_some_failures_the_launcher_is_asked_where_it_is_now() -> None:
    """A requeued job has another launcher; nobody may have seen it wait."""
    life = Life().connecting()
    for _ in range(3):
        life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
        life.wake()
    assert life.kinds() == {"OpenTunnel", "ReadEndpoint"}
    life.take(events.EndpointRead(1, JOB, Endpoint("n17", 5000, nonce="second")))
    assert isinstance(life.state, Starting)
    assert life.decision.session.run == 2
    assert Left.TUNNEL in left(life)


def test_no_new_path_before_the_old_one_is_gone() -> None:
    life = Life().connecting()
    life.seen(observation=Alive(Phase.PENDING))
    life.seen()
    life.take(events.EndpointRead(1, JOB, ENDPOINT))
    assert isinstance(life.state, Starting)
    life.take(events.TunnelClosed(life.last(effects.CloseTunnel).number))
    life.wake()
    assert isinstance(life.take(events.EndpointRead(1, JOB, ENDPOINT)), Connecting)


def test_no_path_for_too_long_ends() -> None:
    life = Life().connecting()
    for _ in range(1000):
        if isinstance(life.wake(), Stopping):
            break
        life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    assert life.state.cause is Cause.CONNECT_TIMED_OUT


# Ready and degraded ---------------------------------------------------------------------------------------------------


def test_ready_is_probed_now_and_then() -> None:
    life = Life().ready()
    life.wake()
    assert life.kinds() == {"Probe"}
    asked = life.state.asked
    life.seen(observation=Alive(Phase.ENDING))
    assert life.state.asked == asked, "one probe under way is enough"
    life.take(events.Probed(asked, good=True))
    assert isinstance(life.state, Ready)


@pytest.mark.parametrize("how", ["bad probe", "failed probe", "doubt"])
def test_doubt_about_the_path_is_degraded(how: str) -> None:
    life = Life().ready()
    life.wake()
    if how == "bad probe":
        life.take(events.Probed(life.state.asked, good=False, note="another launcher answered"))
    elif how == "failed probe":
        life.take(events.EffectFailed(life.last(effects.Probe), Failure(FailureKind.UNANSWERED, "cut")))
    else:
        life.take(events.PathDoubted("cut"))
    assert isinstance(life.state, Degraded)
    assert life.kinds() == {"Report", "OpenTunnel"}


def test_an_address_that_the_hub_did_not_take_is_told_again() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True))
    life.take(events.EffectFailed(life.last(effects.Publish), Failure(FailureKind.UNREACHABLE)))
    life.wake()
    assert life.kinds() == {"Probe", "Publish"}


def test_a_repaired_path_at_another_address_is_published() -> None:
    life = Life().degraded()
    other = Route("http://127.0.0.1:20002")
    life.take(events.TunnelOpened(life.state.asked, other))
    life.take(events.Probed(life.state.asked, good=False))
    life.wake()
    life.take(events.TunnelOpened(life.state.asked, other))
    life.take(events.Probed(life.state.asked, good=True))
    assert isinstance(life.state, Ready)
    assert life.last(effects.Publish).route == other
    life.take(events.Published(other))
    assert life.state.published


def test_a_published_word_reaches_a_degraded_session() -> None:
    life = Life().connecting()
    life.take(events.TunnelOpened(life.state.asked, ROUTE))
    life.take(events.Probed(life.state.asked, good=True))
    life.take(events.PathDoubted())
    life.take(events.Published(ROUTE))
    assert life.state.published


def test_a_terminal_word_about_a_lab_that_answers_ends_nothing() -> None:
    """F-U17: a server that lost its data calls living jobs finished. The path decides."""
    life = Life().ready()
    life.seen(observation=DEAD)
    assert life.kinds() == {"Probe"}
    life.take(events.Probed(life.state.asked, good=True))
    life.seen(observation=DEAD, after_s=10)
    life.take(events.Probed(life.state.asked, good=True))
    assert isinstance(life.state, Ready)


def test_a_terminal_word_and_a_dead_path_end_the_session() -> None:
    life = Life().ready()
    life.seen(observation=DEAD)
    life.take(events.Probed(life.state.asked, good=False))
    assert isinstance(life.state, Degraded)
    life.seen(observation=DEAD, after_s=6)
    assert isinstance(life.state, Stopping)
    assert life.state.cause is Cause.FAILED


def test_a_requeued_job_is_followed_to_its_new_node() -> None:
    """Failure mode 15: same id, other node; the old path goes first."""
    life = Life().degraded()
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    life.seen(observation=Alive(Phase.PENDING))
    assert isinstance(life.state, Queued)
    assert life.decision.session.run == 2
    assert left(life) == {Left.TUNNEL, Left.ROUTE}


def test_a_job_on_another_node_is_asked_where_its_launcher_is() -> None:
    life = Life().degraded()
    life.take(events.EffectFailed(life.last(effects.OpenTunnel), Failure(FailureKind.UNREACHABLE)))
    life.seen(observation=Alive(Phase.RUNNING, "n18"))
    assert life.kinds() == {"ReadEndpoint"}
    life.take(events.EndpointRead(1, JOB, Endpoint("n18", 4000, nonce="second")))
    assert isinstance(life.state, Starting)


def test_a_reading_while_the_path_is_repaired_changes_nothing_else() -> None:
    life = Life().degraded()
    life.seen(observation=Alive(Phase.RUNNING, None, note="fine"))
    assert isinstance(life.state, Degraded)
    assert (life.state.job.node, life.state.job.note) == ("n17", "fine")


# Stops at bad moments -------------------------------------------------------------------------------------------------


def test_a_stop_during_the_submit_waits_for_certainty() -> None:
    """Failure mode 12: the id is not known yet; the job is looked up and cancelled."""
    life = Life()
    life.take(events.Admitted())
    life.take(events.StopAsked())
    assert life.kinds() >= {"Find"}
    assert isinstance(life.take(events.Submitted(1, JOB)), Stopping)
    assert life.last(effects.Cancel).job == JOB


def test_a_stop_and_a_submit_that_never_happened() -> None:
    life = Life()
    life.take(events.Admitted())
    submit = life.last(effects.Submit)
    life.take(events.StopAsked())
    life.take(events.EffectFailed(submit, Failure(FailureKind.UNREACHABLE)))
    assert isinstance(life.state, Ended)


def test_a_stop_finds_the_job_by_its_tag() -> None:
    life = lost()
    life.take(events.StopAsked())
    life.take(events.Found(1, life.now, (Sighting(JOB, tag_of(a_spec(), 1)),)))
    assert life.last(effects.Cancel).job == JOB


def test_a_stop_finds_nothing_twice() -> None:
    """Absent twice, a visibility horizon apart: nothing was ever there."""
    life = lost()
    life.take(events.StopAsked())
    life.take(events.Found(1, life.now, ()))
    assert isinstance(life.state, Stopping)
    life.take(events.Found(1, life.now + 31_000, ()), after_s=31)  # type: ignore[arg-type]
    assert isinstance(life.state, Ended)
    assert Left.FILES not in left(life)


def test_a_cancel_that_does_nothing_is_repeated() -> None:
    """Failure mode 9: accepted, and the job runs on. The session stays in `Stopping`, visibly."""
    life = Life().queued()
    life.take(events.StopAsked())
    for _ in range(3):
        life.take(events.CancelAnswered(JOB, life.now, Alive(Phase.RUNNING)))
        life.wake()
        assert "Cancel" in life.kinds()
    assert isinstance(life.state, Stopping)


def test_a_cancelled_job_that_seems_to_be_over_is_not_cancelled_again_before_that_is_confirmed() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    cancel = life.last(effects.Cancel)
    life.take(events.CancelAnswered(JOB, life.now, Alive(Phase.ENDING)))
    life.seen(observation=Gone(EndReason.CANCELLED), after_s=6)
    life.wake(after_s=5)
    assert life.last(effects.Cancel) == cancel
    life.wake(after_s=5)
    assert life.last(effects.Cancel) != cancel, "no second reading came"
    life.seen(observation=Gone(EndReason.CANCELLED))
    assert isinstance(life.state, Ended)


def test_a_cancelled_job_that_is_not_listed_is_looked_up() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    life.seen(observation=NOT_LISTED)
    assert life.kinds() == {"Find"}
    life.seen(observation=Doubt(DoubtReason.UNREACHABLE))
    life.seen(observation=NOT_LISTED)
    assert life.new == []
    life.take(events.Found(1, life.now, ()))
    life.wake()
    life.take(events.Found(1, life.now + 31_000, ()), after_s=31)  # type: ignore[arg-type]
    assert isinstance(life.state, Ended)


def test_a_log_that_cannot_be_read_holds_up_no_end() -> None:
    life = Life().starting()
    life.seen(observation=DEAD)
    life.seen(observation=DEAD, after_s=6)
    for _ in range(3):
        assert isinstance(life.state, Stopping)
        life.take(events.EffectFailed(life.last(effects.ReadLog), Failure(FailureKind.UNANSWERED)))
        life.wake()
    assert isinstance(life.state, Ended)


def test_what_cannot_be_removed_is_tried_again_ever_more_rarely() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    revoke = life.last(effects.Revoke)
    life.take(events.EffectFailed(revoke, Failure(FailureKind.UNREACHABLE)))
    assert Left.SECRET in left(life)
    tries = next(each.tries for each in life.decision.session.residue if each.kind is Left.SECRET)
    assert tries == 1


def test_an_older_answer_says_nothing_about_what_was_made_after_it() -> None:
    """A revocation that was made while the store was full is answered late; the one that counts has failed."""
    life = Life().queued()
    life.take(events.StopAsked())
    revoke = life.last(effects.Revoke)
    life.take(events.Revoked(revoke.number - 1))
    assert Left.SECRET in left(life)
    life.take(events.EffectFailed(revoke, Failure(FailureKind.UNREACHABLE)))
    life.take(events.Revoked(revoke.number))
    assert Left.SECRET in left(life)


def test_a_living_job_of_an_ended_session_is_cancelled() -> None:
    """What the sweep sees after the end goes, too; the end stays as it was."""
    life = Life()
    life.wake()
    ended = life.state
    life.take(events.StraySeen(1, JobId("stray")))
    assert life.state == ended
    assert life.last(effects.Cancel).job == "stray"


def test_a_second_stop_is_nothing() -> None:
    life = Life().queued()
    life.take(events.StopAsked())
    before = life.decision.session
    life.take(events.StopAsked())
    assert life.decision.session is before
