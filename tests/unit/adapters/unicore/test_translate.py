"""UNICORE's words and ours, on whole answers in tests/recorded/unicore."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import pytest

from moorage.adapters.unicore import translate
from moorage.adapters.unicore.config import UnicoreConfig
from moorage.adapters.unicore.translate import TABLE, Absent, Answer, SessionExpired, Status, Verb
from moorage.core.model import (
    EndReason,
    Gone,
    Instant,
    JobId,
    Owner,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
    Tag,
    deployment_tag,
    tag_of,
)
from moorage.core.plan import SCRIPT, LaunchPlan, LaunchSecrets, Rendered, Resources, parse_plan, render
from moorage.core.secret import Secret
from moorage.ports.errors import (
    Malformed,
    Overloaded,
    PortError,
    Refused,
    Unanswered,
    Unauthorised,
    Unreachable,
)

RECORDED = Path(__file__).parents[3] / "recorded" / "unicore"
BASE = "https://gateway.example.org:8080/DEMO-SITE/rest/core"
BASES = (BASE,)
NOW = datetime(2026, 6, 17, 12, 0, tzinfo=UTC)
CONFIG = UnicoreConfig(url=BASE)
SPEC = SessionSpec(
    id=SessionId("a" * 26), key=SessionKey("hub", Owner("alice")), system=SystemName("s"), asked_at=Instant(0), seed=0
)
TAG = tag_of(SPEC, 1)


def recorded(name: str) -> Answer:
    head, _, body = (RECORDED / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split(" ")[1]), headers, body)


def body(name: str) -> bytes:
    return recorded(name).body


# Errors ------------------------------------------------------------------------------------------------------

CLASSIFIED = [
    ("redirect_to_login", "redirect", Verb.ASK, Malformed),
    ("redirect_to_login", "redirect", Verb.CREATE, Malformed),
    ("wrong_form_no_from", "wrong-form", Verb.CHANGE, Refused),
    ("wrong_form_lifetime", "wrong-form", Verb.ASK, Refused),
    ("no_factory", "no-factory", Verb.CREATE, Unauthorised),
    ("credentials_wrong_password", "credentials", Verb.LIST, Unauthorised),
    ("credentials_not_renewable", "credentials", Verb.ASK, Unauthorised),
    ("credentials_other_owner", "credentials", Verb.CHANGE, Unauthorised),
    ("no_site_gateway", "no-site", Verb.ASK, Unreachable),
    ("no_site_gateway", "no-site", Verb.LIST, Unreachable),
    ("not_there_job", "no-collection", Verb.LIST, Unreachable),
    ("not_there_job", "no-collection", Verb.CREATE, Unreachable),
    ("not_there_job", "not-there", Verb.ASK, Absent),
    ("not_there_job", "not-there", Verb.CHANGE, Absent),
    ("method_trace", "method", Verb.CHANGE, Refused),
    ("media_directory_as_bytes", "media", Verb.ASK, Refused),
    ("timed_out_sending", "timed-out-sending", Verb.CREATE, Unanswered),
    ("conflict_proxy", "conflict", Verb.CHANGE, Unreachable),
    ("too_large_proxy", "too-large", Verb.CREATE, Refused),
    ("content_type_text", "content-type", Verb.CREATE, Refused),
    ("range_reversed", "range", Verb.ASK, Refused),
    ("too_many_seconds", "too-many", Verb.ASK, Overloaded),
    ("too_many_silent", "too-many", Verb.CREATE, Overloaded),
    ("session_unknown", "session", Verb.ASK, SessionExpired),
    ("other_4xx_gone", "other-4xx", Verb.ASK, Refused),
    ("no_object_submit", "no-object", Verb.CREATE, Refused),
    ("no_object_submit", "server-error", Verb.ASK, Unanswered),
    ("server_error_submit", "server-error", Verb.CREATE, Unanswered),
    ("server_error_truncated", "server-error", Verb.ASK, Unanswered),
    ("server_error_details_unknown_job", "server-error", Verb.ASK, Unanswered),
    ("bad_gateway_proxy", "bad-gateway", Verb.CREATE, Unanswered),
    ("patience_maintenance", "patience", Verb.LIST, Overloaded),
    ("out_of_service_switched_off", "out-of-service", Verb.CREATE, Unreachable),
    ("out_of_service_locked", "out-of-service", Verb.CHANGE, Unreachable),
    ("out_of_service_gateway", "out-of-service", Verb.ASK, Unreachable),
    ("gateway_timeout_proxy", "gateway-timeout", Verb.CREATE, Unanswered),
    ("other_5xx_not_implemented", "other-5xx", Verb.ASK, Unanswered),
    ("no_status_600", "no-status", Verb.ASK, Malformed),
]


@pytest.mark.parametrize(("name", "row", "verb", "error"), CLASSIFIED, ids=lambda value: str(value)[:40])
def test_every_error_answer_means_what_its_row_says(name: str, row: str, verb: Verb, error: type[Exception]) -> None:
    assert translate.row_of(recorded(name), verb).name == row
    made = translate.error_of(recorded(name), verb, "a call", NOW)
    assert type(made) is error
    if isinstance(made, PortError):
        assert made.note.startswith(translate.row_of(recorded(name), verb).why), "what matters comes first"
        assert made.note.endswith("; a call)")
        assert len(made.note) <= 500


def test_every_row_has_a_recorded_answer_and_every_error_answer_a_row() -> None:
    assert {row for _, row, _, _ in CLASSIFIED} == {row.name for row in TABLE}
    errors = {path.stem for path in RECORDED.glob("*.http") if recorded(path.stem).status >= 300}
    assert {name for name, _, _, _ in CLASSIFIED} == errors


@pytest.mark.parametrize("status", range(300, 600))
@pytest.mark.parametrize("verb", Verb)
def test_every_status_means_something(status: int, verb: Verb) -> None:
    made = translate.error_of(Answer(status), verb, "a call", NOW)
    assert isinstance(made, PortError | Absent | SessionExpired)


def test_a_404_to_a_lookup_or_a_submit_is_never_an_absence() -> None:
    for verb in (Verb.CREATE, Verb.LIST):
        assert isinstance(translate.error_of(recorded("not_there_job"), verb, "", NOW), Unreachable)


def test_the_sites_own_words_are_told() -> None:
    made = translate.error_of(recorded("out_of_service_switched_off"), Verb.CREATE, "submit", NOW)
    assert isinstance(made, PortError)
    assert "Job submission is currently disabled" in made.note


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        ("0", 0.0),
        ("-1", 0.0),
        ("1000000000", 86_400.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 17 Jun 2026 12:00:30 GMT", 30.0),
        ("soon", None),
        ("", None),
        ("1" * 400, None),
        ("Wed, 99 Foo 9999 99:99:99 GMT", None),
    ],
)
def test_a_wish_for_patience_is_read_within_reason(text: str | None, seconds: float | None) -> None:
    assert translate.retry_after(text, NOW) == seconds


# Jobs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "batch_id"),
    [
        ("job_ready", Status.READY, ""),
        ("job_stagingin", Status.STAGINGIN, ""),
        ("job_queued", Status.QUEUED, "8017847"),
        ("job_running", Status.RUNNING, "8017847"),
        ("job_stagingout", Status.STAGINGOUT, "8017847"),
        ("job_undefined", Status.UNDEFINED, "8017847"),
    ],
)
def test_a_living_job(name: str, status: Status, batch_id: str) -> None:
    reading = translate.reading(body(name))
    assert (reading.status, reading.batch_id) == (status, batch_id)
    assert not reading.status.over
    assert reading.kept_until == datetime(2026, 7, 17, 12, 54, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "reason", "exit_code", "says"),
    [
        ("job_successful", EndReason.FINISHED, 0, ""),
        ("job_failed_exit_code", EndReason.FAILED, 3, "exit code 3"),
        ("job_failed_aborted", EndReason.CANCELLED, None, "Job aborted."),
        ("job_failed_killed", EndReason.FAILED, None, "did not complete normally"),
        ("job_failed_out_of_range", EndReason.FAILED, None, "<Nodes=99> is out of range"),
        ("job_failed_queue", EndReason.FAILED, None, "Queue = foo"),
        ("job_failed_sbatch", EndReason.FAILED, None, "Invalid account"),
        ("job_failed_staging", EndReason.FAILED, None, "Disk quota exceeded"),
    ],
)
def test_how_a_job_ended(name: str, reason: EndReason, exit_code: int | None, says: str) -> None:
    gone = translate.end_of(translate.reading(body(name)))
    assert isinstance(gone, Gone)
    assert (gone.reason, gone.exit_code) == (reason, exit_code)
    assert says in gone.note


@pytest.mark.parametrize(
    "name",
    ["unknown_word", "number_status", "exit_code_words", "twice", "nan", "list", "cut", "html", "nul", "deep"],
)
def test_what_is_no_job_is_malformed(name: str) -> None:
    with pytest.raises(Malformed) as caught:
        translate.reading(body(f"job_{name}"))
    assert len(caught.value.note) < 300
    assert caught.value.note.isprintable()


def test_details_name_the_node_and_the_time_left() -> None:
    running = translate.details(body("details_running"))
    assert running is not None
    assert (running.node, running.left_s, running.reason) == ("n0025", 5 * 3600 + 59 * 60 - 9 * 60 - 9, "")
    several = translate.details(body("details_running_two_nodes"))
    assert several is not None
    assert (several.node, several.left_s) == ("n0025", 86_400 - 9 * 60 - 9)
    guessed = translate.details(body("details_running_no_batch_host"))
    assert guessed is not None
    assert guessed.node == "n0025"


def test_details_of_a_job_that_waits_say_why() -> None:
    pending = translate.details(body("details_pending"))
    assert pending is not None
    assert (pending.reason, pending.node, pending.left_s) == ("Priority", None, None)


@pytest.mark.parametrize(
    ("name", "ended"),
    [
        ("timeout", EndReason.WALLTIME),
        ("node_fail", EndReason.NODE_FAILED),
        ("out_of_memory", EndReason.OUT_OF_MEMORY),
        ("preempted", EndReason.PREEMPTED),
        ("cancelled", EndReason.CANCELLED),
        ("running", None),
    ],
)
def test_details_say_why_the_batch_system_ended_a_job(name: str, ended: EndReason | None) -> None:
    details = translate.details(body(f"details_{name}"))
    assert details is not None
    assert details.ended is ended


def test_jobs_without_a_record_have_no_details() -> None:
    assert translate.details(body("details_none")) is None


def test_a_login_nodes_job_names_its_node() -> None:
    reading = translate.reading(body("job_running_login_node"))
    assert translate.login_node_of(reading.batch_id) == "login1.cluster"
    assert translate.login_node_of("8017847") is None


def test_the_excerpt_of_a_log_has_the_causes_and_no_secrets() -> None:
    excerpt = translate.log_excerpt(body("job_log"))
    assert "invalid account" in excerpt
    assert "SECRET" not in excerpt
    assert "Demo User" not in excerpt


def test_a_record_that_ends_soon_is_to_live_longer() -> None:
    reading = translate.reading(body("job_running"))
    assert reading.kept_until is not None
    assert translate.longer_life(reading, reading.kept_until - timedelta(days=1)) is None
    wanted = translate.longer_life(reading, reading.kept_until - timedelta(hours=1))
    assert translate.read_date(wanted) == reading.kept_until - timedelta(hours=1) + timedelta(days=7)
    assert translate.granted(body("prolonged"), "terminationTime")
    assert not translate.granted(body("not_prolonged"), "terminationTime")


# Lookups -----------------------------------------------------------------------------------------------------


def test_listings() -> None:
    assert translate.jobs_in(body("listing_empty"), BASES) == ((), False)
    assert translate.jobs_in(body("listing_last_page"), BASES) == (("6peEzRO27B9", "2aBcDeFgHi0"), False)
    assert translate.jobs_in(body("listing_more"), BASES) == (("6peEzRO27B9",), True)
    for name in ("listing_foreign", "listing_no_list"):
        with pytest.raises(Malformed):
            translate.jobs_in(body(name), BASES)


def test_a_job_of_another_host_is_none_of_ours() -> None:
    assert translate.job_of(recorded("submitted").headers["location"], BASES) == "6peEzRO27B9"
    with pytest.raises(Malformed):
        translate.job_of(recorded("submitted_elsewhere").headers["location"], BASES)
    alias = "https://elsewhere.example.org/DEMO-SITE/rest/core"
    assert translate.job_of(recorded("submitted_elsewhere").headers["location"], (BASE, alias)) == "6peEzRO27B9"


@pytest.mark.parametrize(
    "tail", ["", "a/b", "../x", "a?b", "a#b", "a b", "a\n", "a%2f", "ä", "a" * 65, "6peEzRO27B9/actions/abort"]
)
def test_what_is_no_job_id(tail: str) -> None:
    with pytest.raises(Malformed):
        translate.job_of(f"{BASE}/jobs/{tail}", BASES)


@pytest.mark.parametrize("url", [None, 7, [], "", BASE, f"{BASE}.evil/jobs/abc", f"http{BASE[5:]}/jobs/abc"])
def test_what_is_no_jobs_address(url: object) -> None:
    with pytest.raises(Malformed):
        translate.job_of(url, BASES)


def test_the_role_check() -> None:
    translate.check_role(body("core_user"), "check")
    for name in ("core_anonymous", "core_unmapped"):
        with pytest.raises(Unauthorised):
            translate.check_role(body(name), "check")
    with pytest.raises(Malformed):
        translate.check_role(body("core_no_client"), "check")


@pytest.mark.parametrize("width", range(40))
def test_a_lookup_searches_for_a_tag_that_jobs_really_have(width: int) -> None:
    searched = translate.searched_tag(Tag(TAG[:width]))
    assert TAG[:width].startswith(searched)
    assert searched == "" or searched in translate.tags_of(TAG, SPEC)
    assert width < 9 or searched


# Submitting --------------------------------------------------------------------------------------------------


def rendered(**changes: object) -> Rendered:
    plan = LaunchPlan(
        tag=TAG,
        attempt=1,
        owner="alice",
        command=("jupyter", "lab", "--ServerApp.sock={socket}"),
        walltime_s=3661,
        resources=Resources(nodes=2, cores=4, account="proj", partition="batch", qos="fast"),
    )
    return render(attrs.evolve(plan, **changes), LaunchSecrets(Secret("ab" * 32)))  # type: ignore[arg-type]


def test_a_description_is_one_request_with_everything_in_it() -> None:
    job = translate.description(TAG, SPEC, rendered(), "# launcher", CONFIG)
    assert job["Executable"] == "./start.sh"
    assert job["Name"] == TAG
    assert job["Tags"] == [deployment_tag("moorage"), TAG[:-4], TAG]
    files = {each["To"]: each for each in job["Imports"]}
    assert list(files) == ["start.sh", "moorage_launcher.py", "plan.json", "secret.json"]
    assert files["secret.json"]["Permissions"] == "rw-------"
    assert files["start.sh"] == {
        "From": "inline://start.sh",
        "To": "start.sh",
        "Data": SCRIPT,
        "Permissions": "rwx------",
        "FailOnError": "true",
    }
    assert job["Umask"] == "0077"
    assert job["Resources"] == {
        "Nodes": "2",
        "CPUsPerNode": "4",
        "Runtime": "3720",
        "Project": "proj",
        "Queue": "batch",
        "QoS": "fast",
    }
    assert not {"Arguments", "Environment", "Parameters", "haveClientStageIn", "NotificationSettings"} & set(job)


def test_the_secret_stands_in_one_place_only() -> None:
    job = translate.description(TAG, SPEC, rendered(), "# launcher", CONFIG)
    text = json.dumps(job)
    assert text.count("ab" * 32) == 1


def test_users_words_stay_in_the_plan() -> None:
    """Whatever a user chooses, the rest of the description is the same, and the plan comes back as it was."""
    plain = translate.description(TAG, SPEC, rendered(), "# launcher", CONFIG)
    hostile = ("--a=$(touch /tmp/x)", '--b="; rm -rf ~"', "--c='`id`'", "--d=\\\\", "--e=${PATH}", "--f=</script>")
    made = rendered(args=hostile, environment=(("A", "$(id)\"'`"),))
    job = translate.description(TAG, SPEC, made, "# launcher", CONFIG)
    (plan,) = [each["Data"] for each in job["Imports"] if each["To"] == "plan.json"]
    assert parse_plan(plan).args == hostile
    for each in (plain, job):
        each["Imports"] = [file for file in each["Imports"] if file["To"] != "plan.json"]
    assert plain == job


def test_a_login_node_partition_has_no_resources() -> None:
    config = attrs.evolve(CONFIG, login_nodes={"login": "login*"})
    job = translate.description(TAG, attrs.evolve(SPEC, partition="login"), rendered(), "", config)
    assert (job["Job type"], job["Login node"]) == ("ON_LOGIN_NODE", "login*")
    assert "Resources" not in job


def test_notifications_carry_their_url() -> None:
    config = attrs.evolve(CONFIG, notify_url="https://hub.example.org/told")
    job = translate.description(TAG, SPEC, rendered(), "", config)
    assert job["NotificationSettings"]["URL"] == "https://hub.example.org/told"


@pytest.mark.parametrize("resources", [Resources(gpus=1), Resources(memory_mib=2048), Resources(memory_mib=1 << 20)])
def test_what_the_server_would_silently_get_wrong_is_refused(resources: Resources) -> None:
    with pytest.raises(Refused, match=r"gpus|memory"):
        translate.description(TAG, SPEC, rendered(resources=resources), "", CONFIG)
    fixed = attrs.evolve(CONFIG, directives_fixed=True)
    assert translate.description(TAG, SPEC, rendered(resources=resources), "", fixed)["Resources"]
    named = attrs.evolve(CONFIG, resources={"gpus": "GPUS", "memory": "MEM"})
    asked = translate.description(TAG, SPEC, rendered(resources=resources), "", named)["Resources"]
    assert {"GPUS", "MEM"} & set(asked)


def test_memory_below_2_gib_is_passed_on() -> None:
    job = translate.description(TAG, SPEC, rendered(resources=Resources(memory_mib=1024)), "", CONFIG)
    assert job["Resources"]["MemoryPerNode"] == "1024M"


def test_a_directive_without_a_word_is_refused() -> None:
    with pytest.raises(Refused, match="array"):
        translate.resources([("array", "1-9")], CONFIG)


# Notifications and forwarding --------------------------------------------------------------------------------


def test_a_notification_names_a_job_of_this_site() -> None:
    assert translate.noticed_job(json.dumps({"href": f"{BASE}/jobs/abc"}).encode(), BASES) == JobId("abc")
    for bad in (b"", b"[]", b"{}", b'{"href":7}', b'{"href":"https://x/jobs/a"}', b" " * 70_000):
        with pytest.raises(Malformed):
            translate.noticed_job(bad, BASES)


def test_forwarding_queries() -> None:
    assert translate.forward_query("n1", 8888, "", None) == {"port": "8888", "host": "n1"}
    assert translate.forward_query("n1", 8888, "", "login2") == {"port": "8888", "host": "n1", "loginNode": "login2"}
    assert translate.forward_query("", 0, "private/gate.sock", None) == {"file": "private/gate.sock"}
    with pytest.raises(Refused):
        translate.forward_query("n1", 8888, "a/../../b", None)
