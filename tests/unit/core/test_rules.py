"""The small pure rules: limits and fairness, breaker, back-off, timeouts, tags, progress, secrets."""

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.core.life import ENDPOINT, JOB, ROUTE, START, a_spec

from moorage.core.admission import Gate, Taken, Verdict, admit, in_line, takes_place
from moorage.core.backoff import RetryBudget, full_jitter_ms, mix
from moorage.core.breaker import IN_A_ROW, Breaker
from moorage.core.limits import Limits
from moorage.core.machine import begin
from moorage.core.model import (
    Cause,
    Connecting,
    Degraded,
    Ended,
    Evidence,
    FailureKind,
    Instant,
    Job,
    Locating,
    Owner,
    Queued,
    Ready,
    Session,
    SessionId,
    SessionKey,
    Starting,
    State,
    Stopping,
    Submitting,
    SystemName,
    Waiting,
    Why,
    deployment_tag,
    parse_tag,
    tag_of,
)
from moorage.core.progress import Progress, progress_of
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts

OPEN = {SystemName("juniper"): Gate()}
NOW = Instant(START + 1_000)


def waiting(owner: str, number: int = 0, **changes: Any) -> Session:
    state = changes.pop("state", None)
    key = SessionKey("hub", Owner(owner), str(number))
    spec = a_spec(id=SessionId(f"{owner}{number}"), key=key, asked_at=Instant(START + number), **changes)
    session = begin(spec).session
    return session if state is None else evolve(session, state=state)


def verdicts(sessions: list[Session], limits: Limits | None = None, **other: Any) -> dict[str, Why | None]:
    arguments = {"taken": Taken(), "gates": OPEN, "busy": (), "now": NOW} | other
    said = admit(sessions, limits=limits or Limits(), **arguments)
    return {verdict.session: verdict.why for verdict in said}


# Admission ------------------------------------------------------------------------------------------------------------


def test_by_turns() -> None:
    """Nobody's second session comes before anybody's first."""
    asked = [waiting("ada", number) for number in range(3)] + [waiting("bob", 9)]
    said = verdicts(asked, Limits(in_all=2))
    assert said == {"ada0": None, "bob9": None, "ada1": Why.LIMIT, "ada2": Why.LIMIT}


def test_the_place_in_line_is_told() -> None:
    said = admit([waiting("ada"), waiting("bob", 1), waiting("cyd", 2)], Taken(), Limits(in_all=1), OPEN, (), NOW)
    assert [(verdict.session, verdict.place) for verdict in said] == [("ada0", 0), ("bob1", 1), ("cyd2", 2)]


def test_turn_after_turn() -> None:
    """However many somebody asked for, and however early."""
    asked = [waiting("ada", number) for number in range(4)] + [waiting("bob", 8), waiting("bob", 9)]
    assert [session.id for session in in_line(asked[::-1])] == ["ada0", "bob8", "ada1", "bob9", "ada2", "ada3"]


def test_each_system_has_its_own_line() -> None:
    cedar = SystemName("cedar")
    asked = [waiting("ada"), waiting("bob", 1), waiting("cyd", 2, system=cedar), waiting("dan", 3, system=cedar)]
    said = admit(asked, Taken(), Limits(per_system=0), OPEN | {cedar: Gate()}, (), NOW)
    assert [(verdict.session, verdict.place) for verdict in said] == [
        ("ada0", 1),
        ("bob1", 2),
        ("cyd2", 1),
        ("dan3", 2),
    ]


@pytest.mark.parametrize(
    ("limits", "note"),
    [
        (Limits(in_all=1), "1 sessions in all"),
        (Limits(per_user=1), "1 sessions of one user"),
        (Limits(per_group={"course": 1}), "1 sessions of group course"),
        (Limits(per_system=1), "1 sessions on juniper"),
        (Limits(of_system={"juniper": 0}), "0 sessions on juniper"),
    ],
)
def test_each_limit_holds(limits: Limits, note: str) -> None:
    """And says which it was."""
    held = waiting("ada", groups=("course",))
    said = admit([waiting("ada", 1, groups=("course", "free"))], Taken([held]), limits, OPEN, (), NOW)
    assert (said[0].why, said[0].note) == (Why.LIMIT, note)


def test_a_place_that_is_given_back_is_free() -> None:
    taken = Taken([waiting("ada")])
    taken.give_back(waiting("ada"))
    assert taken.reached(waiting("ada", 1), Limits(in_all=1, per_user=1)) is None


def test_one_place_given_back_is_one_place() -> None:
    taken = Taken([waiting("ada"), waiting("ada", 1)])
    taken.give_back(waiting("ada"))
    assert taken.reached(waiting("bob"), Limits(in_all=1)) == "1 sessions in all"
    assert taken.reached(waiting("ada", 2), Limits(per_user=1)) == "1 sessions of one user"


@pytest.mark.parametrize(
    "limits",
    [Limits(in_all=2), Limits(per_user=2), Limits(per_group={"course": 2}), Limits(per_system=2)],
    ids=range(4),
)
def test_places_are_counted(limits: Limits) -> None:
    held = [waiting("ada", number, groups=("course",)) for number in range(2)]
    one_more = waiting("ada", 2, groups=("course",))
    assert Taken(held).reached(one_more, limits) is not None
    assert Taken(held[:1]).reached(one_more, limits) is None


def test_first_tries_use_up_no_retries() -> None:
    again = Waiting(Why.RETRY, START, "refused", tries=1)
    asked = [waiting("ada"), waiting("bob", 1, state=again), waiting("cyd", 2, state=again)]
    one_retry = {SystemName("juniper"): Gate(retries=1)}
    assert verdicts(asked, gates=one_retry) == {"ada0": None, "bob1": None, "cyd2": Why.RETRY}
    assert verdicts(asked) == {"ada0": None, "bob1": None, "cyd2": None}, "without a bound all may"


def test_what_is_said_to_those_who_wait() -> None:
    juniper = SystemName("juniper")
    again = Waiting(Why.RETRY, START, "refused", tries=1, not_before=Instant(NOW + 1))
    for session, gates, busy, note in (
        (waiting("ada"), {}, (), "juniper is not configured"),
        (waiting("ada"), OPEN, {waiting("ada").spec.key}, "an earlier session of this name is still stopping"),
        (waiting("ada"), {juniper: Gate(Why.MAINTENANCE, "till six")}, (), "till six"),
        (waiting("ada", state=again), OPEN, (), "refused"),
        (waiting("ada"), {juniper: Gate(places=0)}, (), "the system is being tried with one session first"),
    ):
        (said,) = admit([session], Taken(), Limits(), gates, busy, NOW)
        assert (said.note, said.place) == (note, 1)
    assert admit([waiting("ada")], Taken(), Limits(), OPEN, (), NOW) == (Verdict(SessionId("ada0"), None),)


def test_who_is_held_for_other_reasons() -> None:
    juniper = SystemName("juniper")
    again = Waiting(Why.RETRY, START, "refused", tries=1, not_before=Instant(NOW + 1))
    assert verdicts([waiting("ada")], gates={}) == {"ada0": Why.MAINTENANCE}
    assert verdicts([waiting("ada")], gates={juniper: Gate(Why.MAINTENANCE, "till six")}) == {"ada0": Why.MAINTENANCE}
    assert verdicts([waiting("ada")], busy={waiting("ada").spec.key}) == {"ada0": Why.STOP_RUNNING}
    assert verdicts([waiting("ada", state=again)]) == {"ada0": Why.RETRY}
    half_open = {juniper: Gate(places=1)}
    assert verdicts([waiting("ada"), waiting("bob", 1)], gates=half_open) == {"ada0": None, "bob1": Why.BREAKER}
    due = evolve(again, not_before=NOW)
    one_retry = {juniper: Gate(retries=1)}
    said = verdicts([waiting("ada", state=due), waiting("bob", 1, state=due), waiting("cyd", 2)], gates=one_retry)
    assert said == {"ada0": None, "bob1": Why.RETRY, "cyd2": None}


def test_what_takes_a_place() -> None:
    session = waiting("ada")
    ended = Ended(Cause.STOPPED, Evidence(), NOW)
    states = [session.state, Submitting(NOW), ended]
    assert [takes_place(evolve(session, state=state)) for state in states] == [False, True, False]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 50)), unique=True, max_size=30), st.data())
def test_limits_hold(asked: list[tuple[str, int]], data: st.DataObject) -> None:
    """I43: whoever asks in whatever order, no limit is exceeded, and no place stays empty that somebody may take."""
    limits = Limits(in_all=data.draw(st.integers(0, 8)), per_user=data.draw(st.integers(0, 3)))
    sessions = [waiting(owner, number) for owner, number in asked]
    said = verdicts(sessions, limits)
    admitted = [session for session in sessions if said[session.id] is None]
    owners = [session.spec.key.owner for session in admitted]
    assert len(admitted) <= limits.in_all
    assert all(owners.count(owner) <= limits.per_user for owner in owners)
    if len(admitted) < limits.in_all:
        left = [session.spec.key.owner for session in sessions if said[session.id] is not None]
        assert all(owners.count(owner) == limits.per_user for owner in left)


# Breaker and back-off -------------------------------------------------------------------------------------------------


def broken() -> Breaker:
    breaker = Breaker()
    for _ in range(IN_A_ROW):
        breaker = breaker.failed(FailureKind.UNREACHABLE, NOW)
    return breaker


def test_five_failures_in_a_row_open_it_and_one_success_closes_it() -> None:
    assert Breaker().places(NOW) is None
    assert Breaker().started(NOW) == Breaker()
    breaker = broken()
    assert breaker.places(NOW) == 0
    assert breaker.open_until is not None
    half_open = breaker.open_until
    assert breaker.places(half_open) == 1
    trying = breaker.started(half_open)
    assert trying.places(Instant(half_open + 1)) == 0, "one call at a time"
    assert trying.places(Instant(half_open + 120_000)) == 1, "a call that nobody told us about is forgotten"
    assert trying.succeeded() == Breaker()
    assert trying.failed(FailureKind.UNANSWERED, half_open).opened == 2


def test_half_of_twenty_opens_it() -> None:
    breaker = Breaker()
    for _ in range(10):
        breaker = breaker.succeeded().failed(FailureKind.MALFORMED, NOW)
    assert breaker.places(NOW) == 0


def test_four_failures_in_a_row_are_not_enough() -> None:
    breaker = Breaker()
    for _ in range(IN_A_ROW - 1):
        breaker = breaker.failed(FailureKind.UNREACHABLE, NOW)
        assert breaker.places(NOW) is None


def outcomes(pattern: str) -> Breaker:
    """A breaker that has seen these calls: `+` is a success, `-` a failure."""
    breaker = Breaker()
    for each in pattern:
        breaker = breaker.succeeded() if each == "+" else breaker.failed(FailureKind.UNANSWERED, NOW)
    return breaker


@pytest.mark.parametrize(
    ("pattern", "opened"),
    [
        ("---+" * 4 + "---", False),  # many, but not yet twenty calls
        ("---+" * 4 + "--+-", True),
        ("+" * 11 + "----+----", False),  # eight of twenty
        ("-" + "+" * 20 + "----+----", False),  # older ones are forgotten
    ],
)
def test_a_share_counts_over_twenty_calls(pattern: str, opened: bool) -> None:
    assert (outcomes(pattern).places(NOW) == 0) is opened


def test_the_pause_doubles_from_a_second_to_a_minute() -> None:
    """And never is shorter than a second."""
    breaker = evolve(broken(), seed=5)
    for opened in range(2, 12):
        breaker = breaker.failed(FailureKind.UNREACHABLE, NOW)
        assert (breaker.opened, breaker.seed) == (opened, 5)
        assert breaker.open_until == NOW + 1000 + full_jitter_ms(1, 60, opened, 5)


def test_a_refused_trial_gives_its_place_back() -> None:
    """It says nothing about the system; the next call may try."""
    breaker = broken()
    assert breaker.open_until is not None
    half_open = breaker.open_until
    trying = breaker.started(half_open)
    assert trying.failed(FailureKind.REFUSED, half_open) == breaker
    assert trying.failed(FailureKind.REFUSED, half_open).places(half_open) == 1


@pytest.mark.parametrize("kind", [FailureKind.REFUSED, FailureKind.UNAUTHORISED, FailureKind.OVERLOADED])
def test_what_says_nothing_about_the_system_does_not_open_it(kind: FailureKind) -> None:
    breaker = Breaker()
    for _ in range(50):
        breaker = breaker.failed(kind, NOW)
    assert breaker.places(NOW) is None


@given(st.integers(1, 10**6), st.integers(0, 2**64 - 1))
def test_full_jitter_stays_within_its_bounds(tries: int, seed: int) -> None:
    assert 1 <= full_jitter_ms(1, 60, tries, seed) <= 60_000
    assert full_jitter_ms(1, 60, tries, seed) <= 1 + 1000 * 2 ** min(tries - 1, 20)


def test_the_numbers_are_those_of_splitmix64() -> None:
    """The upper halves of the published sequences for the seeds 0 and 1234567."""
    assert mix(0, 0) == 0xE220A8397B1DCDAF >> 32
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    assert [mix(1_234_567, number) for number in range(4)] == [number >> 32 for number in published]


@pytest.mark.parametrize(
    ("base_s", "cap_s", "tries", "longest_ms"),
    [
        *((1, 60, 0, 1_000), (1, 60, 1, 1_000), (1, 60, 2, 2_000), (1, 60, 6, 32_000), (1, 60, 7, 60_000)),
        *((0.5, 60, 3, 2_000), (1, 1e12, 21, 2**20 * 1000), (1, 1e12, 22, 2**20 * 1000)),
    ],
)
def test_the_longest_pause_doubles(base_s: float, cap_s: float, tries: int, longest_ms: int) -> None:
    for seed in range(5):
        share = mix(seed, tries) / 2**32
        assert full_jitter_ms(base_s, cap_s, tries, seed) == 1 + int(share * longest_ms)


def test_jitter_spreads() -> None:
    """A hundred sessions that failed together do not come back together."""
    seconds = {full_jitter_ms(1, 60, 7, mix(number, 0)) // 1000 for number in range(100)}
    assert len(seconds) > 40


def test_a_tenth_may_be_repeated_and_always_one() -> None:
    budget = RetryBudget()
    assert budget.allows_retry(NOW)
    budget = budget.spent(NOW, retry=True)
    assert not budget.allows_retry(NOW)
    for _ in range(20):
        budget = budget.spent(NOW, retry=False)
    assert budget.allows_retry(NOW)
    assert not budget.spent(NOW, retry=True).allows_retry(NOW)
    assert budget.spent(NOW, retry=True).allows_retry(Instant(NOW + 61_000))


def test_retries_are_whole_and_of_the_last_minute() -> None:
    """What is a minute old no longer counts, and is not kept."""
    first = RetryBudget(first_tries=(NOW,) * 29, retries=(NOW,))
    last_moment, over = Instant(NOW + 59_999), Instant(NOW + 60_000)
    assert first.retries_left(NOW) == first.retries_left(last_moment) == 1
    assert repr(first.retries_left(NOW)) == "1"
    assert RetryBudget(first_tries=(NOW,) * 29).retries_left(over) == 1
    assert RetryBudget(retries=(NOW,)).retries_left(last_moment) == 0
    assert RetryBudget(retries=(NOW,)).retries_left(over) == 1
    assert RetryBudget(retries=(NOW,) * 5).retries_left(NOW) == 0
    assert first.spent(last_moment, retry=True) == RetryBudget((NOW,) * 29, (NOW, last_moment))
    assert first.spent(over, retry=False) == RetryBudget((over,), ())


# Timeouts, limits, tags -----------------------------------------------------------------------------------------------


def test_timeouts_are_data() -> None:
    table = Timeouts().override({"call_s": 7})
    assert (table.call_s, table.submit_s) == (7, 120)
    assert table.scaled(0.1).submit_s == pytest.approx(12)
    with pytest.raises(TypeError):
        Timeouts().override({"cal_s": 7})
    with pytest.raises(ValueError, match="call_s"):
        Timeouts(call_s=0)


def test_every_duration_says_what_it_means() -> None:
    """The meaning travels with the field into the schema for editors."""
    meanings = [each.metadata["doc"] for each in fields(Timeouts)]
    assert all(isinstance(meaning, str) and " " in meaning for meaning in meanings)
    assert len(set(meanings)) == len(meanings)


@pytest.mark.parametrize("wrong", [{"in_all": -1}, {"per_user": "x"}, {"per_group": {"g": -1}}, {"per_group": {1: 1}}])
def test_limits_are_whole_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Limits(**wrong)


def test_tags_are_read_back_and_none_begins_another() -> None:
    first, tenth = tag_of(a_spec(), 1), tag_of(a_spec(), 10)
    assert parse_tag(first) == (a_spec().id, 1)
    assert parse_tag(tenth) == (a_spec().id, 10)
    assert not tenth.startswith(first)
    assert first.startswith(deployment_tag("moorage"))
    assert first.isalnum()


def test_a_tag_in_full() -> None:
    """Lower case as Kubernetes wants it, and of one length whatever the deployment is called."""
    assert deployment_tag("jsc") == "m00000jsc"
    assert tag_of(a_spec(deployment="jsc"), 7) == "m00000jsc" + "b" * 26 + "0007"
    assert parse_tag("m00000jsc" + "b" * 26 + "12345") == ("b" * 26, 12_345)


@pytest.mark.parametrize("tag", ["", "m", "myjob", "m" + "0" * 34, "m" + "0" * 34 + "x001", "m" + "0" * 34 + "001"])
def test_tags_of_others_are_nothing(tag: str) -> None:
    assert parse_tag(tag) is None


# Progress and secrets -------------------------------------------------------------------------------------------------


JOB_ON_NODE = Job(JOB, "n17")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (Waiting(Why.STOP_RUNNING, NOW), Progress("waiting", 5, "waiting (stop running)")),
        (Waiting(Why.LIMIT, NOW, "10 in all"), Progress("waiting", 5, "waiting (limit): 10 in all")),
        (Submitting(NOW), Progress("submitting", 15, "submitting the job")),
        (Locating(NOW, NOW), Progress("locating", 20, "the system did not answer; looking for the job")),
        (Queued(Job(JOB), NOW), Progress("queued", 30, "in the queue")),
        (Queued(Job(JOB, note="Priority"), NOW), Progress("queued", 30, "in the queue: Priority")),
        (Starting(Job(JOB), NOW, NOW), Progress("starting", 55, "starting")),
        (Starting(JOB_ON_NODE, NOW, NOW), Progress("starting", 55, "starting: on n17")),
        (Starting(JOB_ON_NODE, NOW, NOW, note="not there"), Progress("starting", 55, "starting: not there")),
        (Connecting(JOB_ON_NODE, ENDPOINT, NOW, NOW), Progress("connecting", 80, "connecting")),
        (Connecting(JOB_ON_NODE, ENDPOINT, NOW, NOW, note="no"), Progress("connecting", 80, "connecting: no")),
        (Ready(JOB_ON_NODE, ENDPOINT, ROUTE, NOW, NOW), Progress("ready", 100, "ready")),
        (
            Degraded(JOB_ON_NODE, ENDPOINT, ROUTE, NOW, NOW),
            Progress("degraded", 90, "the connection is interrupted; the job goes on"),
        ),
        (Stopping(Cause.STOPPED, Evidence(), NOW), Progress("stopping", 100, "stopping")),
        (Stopping(Cause.STOPPED, Evidence(), NOW, "no answer"), Progress("stopping", 100, "stopping: no answer")),
        (Ended(Cause.OUT_OF_MEMORY, Evidence(), NOW), Progress("ended", 100, "ended (out of memory)")),
        (Ended(Cause.FAILED, Evidence("code 1"), NOW), Progress("ended", 100, "ended (failed): code 1")),
    ],
    ids=range(17),
)
def test_progress_says_what_people_want_to_know(state: State, said: Progress) -> None:
    assert progress_of(state) == said


def test_secrets_show_stars_and_refuse_to_leave() -> None:
    """One way out, by name; every other one shows stars or fails."""
    secret = Secret("hunter2")
    assert secret.reveal() == "hunter2"
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret:>20}", f"{[secret]}", "%s" % secret):  # noqa: UP031
        assert "hunter2" not in shown
    leaves: tuple[Callable[[Any], object], ...] = (pickle.dumps, json.dumps, bytes)
    for leave in leaves:
        with pytest.raises(TypeError):
            leave(secret)
    assert copy.copy(secret) is secret
    assert copy.deepcopy([secret])[0] is secret
    assert secret == Secret("hunter2")
    assert secret != Secret("hunter3")
    assert secret != "hunter2"
    with pytest.raises(TypeError):
        hash(secret)
    for copied in (pickle.dumps, Secret.__getstate__, lambda it: it.__reduce_ex__(4)):
        with pytest.raises(TypeError, match=r"^a secret is not pickled$"):
            copied(secret)
    assert Secret("\ud800") == Secret("\ud800")
    assert Secret("\ud800") != Secret("\ud801")
    with pytest.raises(TypeError):
        Secret(b"bytes")  # type: ignore[arg-type]
