"""Answers of four versions of Slurm and what they are evidence of."""

from pathlib import Path

import pytest

from moorage.adapters.ssh.translate import (
    Association,
    Kind,
    Listing,
    PartitionInfo,
    Strange,
    failed_silently,
    failure,
    parse_accounting,
    parse_associations,
    parse_details,
    parse_partitions,
    parse_queue,
    parse_reservations,
    parse_submitted,
)
from moorage.core.model import Alive, Doubt, DoubtReason, EndReason, Gone, Instant, Observation, Phase, Tag
from moorage.ports.errors import Overloaded, PortError, Refused, Unanswered, Unreachable

HERE = Path(__file__).parent
NOW = Instant(1_000_000)


def recorded(version: str, name: str) -> str:
    return (HERE / version / name).read_text(encoding="utf-8")


def tag(attempt: int) -> Tag:
    return Tag(f"m0000demoabcdefghijklmnopqrstuvwxyz{attempt:04d}")


def said(listing: Listing) -> dict[str, Observation]:
    """What a listing says about every job that carries one of our tags, by its number."""
    rows = [row for row in listing.rows if row.tag_like(Tag("m0000demo"))]
    return {row.id: row.observation(NOW) for row in rows}


def test_the_queue_as_recorded() -> None:
    listing = parse_queue(recorded("22.05", "queue.txt"))
    assert listing.bad == 0
    assert len(listing.rows) == 12
    assert said(listing) == {
        "1": Alive(Phase.RUNNING, "n1", Instant(NOW + 599_000)),
        "2": Gone(EndReason.FAILED, None, "FAILED"),
        "3": Alive(Phase.PENDING, note="PENDING: the job is held by its owner (JobHeldUser)"),
        "4": Alive(Phase.ENDING, "n1", None, "COMPLETING"),
        "5": Alive(Phase.PENDING, note="PENDING: the job waits for nodes (Resources)"),
        "6": Alive(Phase.PENDING, note="PENDING: jobs of higher priority go first (Priority)"),
        "7": Alive(Phase.PENDING, note="PENDING: jobs of higher priority go first (Priority)"),
        "12": Gone(EndReason.CANCELLED, None, "CANCELLED"),
    }


def test_jobs_of_others_keep_their_strange_names_to_themselves() -> None:
    """Line ends, bars and our separator in a name, arrays and parts of heterogeneous jobs: rows like any other."""
    listing = parse_queue(recorded("22.05", "queue.txt"))
    assert [row.id for row in listing.rows if not row.tag_like(Tag("m"))] == ["8", "9_[1-3%1]", "10+0", "10+1"]
    assert next(row.name for row in listing.rows if row.id == "8") == "evil|na\x1fme\nnew line"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "20.11",
            {
                "4711": Alive(Phase.RUNNING, "n0001", Instant(NOW + 172_798_000)),
                "4712": Alive(
                    Phase.PENDING, note="PENDING: nodes that the job needs are not available (ReqNodeNotAvail)"
                ),
                "4713": Gone(EndReason.WALLTIME, None, "TIMEOUT (TimeLimit)"),
            },
        ),
        (
            "23.11",
            {
                "4711": Alive(Phase.RUNNING, "n0001"),
                "4712": Alive(
                    Phase.PENDING,
                    note="REQUEUE_HOLD: the start failed; the job was put back and is held"
                    " (launch failed requeued held)",
                ),
                "4713": Alive(Phase.ENDING, "n0002", None, "STAGE_OUT"),
                "4714": Alive(Phase.RUNNING, "n0003", NOW),
            },
        ),
        (
            "24.11",
            {
                "4711": Alive(Phase.RUNNING, "n0001", Instant(NOW + 3_598_000)),
                "4712": Alive(Phase.RUNNING, "n0002", Instant(NOW + 3_600_000), "POWER_UP_NODE"),
                "4713": Alive(Phase.RUNNING, "n0003", Instant(NOW + 3_600_000), "EXPEDITING"),
                "4714": Gone(EndReason.FAILED, None, "RECONFIG_FAIL"),
                "4715": Doubt(DoubtReason.MALFORMED, "the state is 'A_NEW_STATE', which is not known"),
            },
        ),
    ],
)
def test_queues_of_other_versions(version: str, expected: dict[str, Observation]) -> None:
    listing = parse_queue(recorded(version, "queue.txt"))
    assert listing.bad == 0
    assert said(listing) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (
            "20.11",
            {
                "4711": Gone(EndReason.FINISHED, 0, "COMPLETED"),
                "4712": Gone(EndReason.CANCELLED, 0, "CANCELLED"),
                "4713": Gone(EndReason.WALLTIME, 0, "TIMEOUT"),
                "4714": Gone(EndReason.FAILED, 3, "FAILED"),
                "4715": Gone(EndReason.NODE_FAILED, 1, "NODE_FAIL"),
            },
        ),
        (
            "23.11",
            {
                "4711": Gone(EndReason.PREEMPTED, 0, "PREEMPTED"),
                "4712": Gone(EndReason.OUT_OF_MEMORY, 253, "OUT_OF_MEMORY"),
                "4713": Alive(Phase.RUNNING, "n0002"),
                "4714": Doubt(DoubtReason.STALE, "the state is REVOKED"),
            },
        ),
        (
            "24.11",
            {
                "4711": Gone(EndReason.CANCELLED, 143, "CANCELLED"),
                "4712": Alive(Phase.PENDING, note="PENDING"),
                "4713": Gone(EndReason.WALLTIME, 0, "DEADLINE"),
            },
        ),
    ],
)
def test_accounting(version: str, expected: dict[str, Observation]) -> None:
    listing = parse_accounting(recorded(version, "accounting.txt"))
    assert listing.bad == 0
    assert said(listing) == expected


@pytest.mark.parametrize(
    ("version", "name", "attempt", "expected"),
    [
        ("20.11", "job_running", 1, Alive(Phase.RUNNING, "n1")),
        ("22.05", "job_running", 1, Alive(Phase.RUNNING, "n1")),
        ("22.05", "job_failed", 2, Gone(EndReason.FAILED, 3, "FAILED")),
        ("22.05", "job_held", 3, Alive(Phase.PENDING, note="PENDING: the job is held by its owner (JobHeldUser)")),
        ("22.05", "job_completing", 4, Alive(Phase.ENDING, "n1", None, "COMPLETING")),
        (
            "22.05",
            "job_pending",
            6,
            Alive(Phase.PENDING, note="PENDING: jobs of higher priority go first (Priority)"),
        ),
        ("23.11", "job_running", 1, Alive(Phase.RUNNING, "n1")),
        ("23.11", "job_out_of_memory", 1, Gone(EndReason.OUT_OF_MEMORY, 253, "OUT_OF_MEMORY (OutOfMemory)")),
        ("24.11", "job_configuring", 1, Alive(Phase.RUNNING, "n1", None, "CONFIGURING")),
    ],
)
def test_details(version: str, name: str, attempt: int, expected: Observation) -> None:
    row = parse_details(recorded(version, f"{name}.txt"))
    assert row.carries(tag(attempt))
    assert row.observation(NOW) == expected


def test_details_of_somebody_elses_job_are_not_ours() -> None:
    row = parse_details(recorded("22.05", "job_evil.txt").replace("\n", " "))
    assert not any(row.carries(tag(attempt)) for attempt in range(10))


def test_a_site_that_rewrites_names_leaves_the_comment() -> None:
    text = recorded("22.05", "job_running.txt").replace(f"JobName={tag(1)}", "JobName=jupyter")
    assert parse_details(text).carries(tag(1))


def test_the_number_of_a_submitted_job() -> None:
    assert parse_submitted(recorded("22.05", "submitted.txt")) == "1"
    assert parse_submitted("4711;cluster\n") == "4711"


def test_partitions() -> None:
    batch, devel = parse_partitions(recorded("22.05", "partitions.txt"))
    assert batch == PartitionInfo("batch", True, 3600, 600, 4, 3, 16, 1000)
    assert (devel.name, devel.default_s, devel.limit_s, devel.idle) == ("devel", None, 600, 0)


def test_reservations() -> None:
    assert parse_reservations(recorded("22.05", "reservations_none.txt")) == ()
    assert parse_reservations(recorded("22.05", "reservations.txt")) == ("course",)


def test_associations() -> None:
    assert parse_associations(recorded("24.11", "associations.txt")) == (
        Association("project", "", ("normal", "long"), "normal"),
        Association("project", "gpu", ("gpu",), "gpu"),
    )


@pytest.mark.parametrize("why", ["partition", "nodes", "time", "reservation", "memory", "option"])
def test_what_sbatch_clearly_refuses_is_refused(why: str) -> None:
    assert isinstance(failure(Kind.SUBMIT, "sbatch", 1, recorded("22.05", f"refused_{why}.err")), Refused)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (Kind.SUBMIT, recorded("22.05", "no_controller_submit.err"), Unreachable),
        (Kind.QUESTION, recorded("22.05", "no_controller_queue.err"), Unreachable),
        (
            Kind.SUBMIT,
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            Unanswered,
        ),
        (
            Kind.SUBMIT,
            "sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received",
            Unanswered,
        ),
        (Kind.SUBMIT, "sbatch: error: Batch job submission failed: something nobody has seen before", Unanswered),
        (Kind.SUBMIT, "", Unanswered),
        (Kind.SUBMIT, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", Overloaded),
        (Kind.QUESTION, "slurm_load_jobs error: Socket timed out on send/recv operation", Unreachable),
        (Kind.QUESTION, "bash: squeue: command not found", Refused),
    ],
)
def test_failures_by_what_can_have_happened(kind: Kind, text: str, expected: type[PortError]) -> None:
    assert type(failure(kind, "sbatch", 1, text)) is expected


def test_a_user_that_cannot_be_resolved_is_not_a_user_without_jobs() -> None:
    """squeue ends with status 0 then, and prints nothing where the jobs should be."""
    assert failed_silently("squeue", recorded("22.05", "queue_unknown_user.err"))
    assert not failed_silently("squeue", "Welcome to the cluster\n")


def test_a_listing_that_is_cut_is_no_listing() -> None:
    """Wherever it is cut: within a row, or so that rows are missing that were promised by nothing."""
    whole = recorded("22.05", "queue.txt")
    rows = whole.split("\x1e\n")
    for end in range(1, len(whole)):
        try:
            listing = parse_queue(whole[:end])
        except Strange:
            continue
        # Only cuts at the end of a row cannot be seen in the text; the exit status tells about those.
        assert whole[:end].endswith("\x1e\n")
        assert len(listing.rows) < len(rows)
