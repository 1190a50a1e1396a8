"""Slurm's words and ours: every state, every hostile text."""

import shlex
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.adapters.ssh.translate import (
    EVIDENCE,
    Commands,
    Listing,
    Strange,
    evidence,
    is_number,
    parse_accounting,
    parse_associations,
    parse_details,
    parse_partitions,
    parse_queue,
    parse_reservations,
    parse_span,
    parse_submitted,
    shell_line,
)
from moorage.core.model import Alive, Doubt, EndReason, Gone, Phase, Tag

TAG = Tag("m0000demoabcdefghijklmnopqrstuvwxyz0001")
US, RS = "\x1f", "\x1e"

# squeue(1), "JOB STATE CODES", all versions from 20.11 to 24.11.
STATES = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "COMPLETING", "CONFIGURING"),
    *("DEADLINE", "EXPEDITING", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PENDING", "POWER_UP_NODE", "PREEMPTED", "RECONFIG_FAIL"),
    *("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING", "RESV_DEL_HOLD"),
    *("REVOKED", "RUNNING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT"),
    *("STOPPED", "SUSPENDED", "TIMEOUT", "UPDATE_DB"),
)


def row(*fields: str) -> str:
    return US.join(fields) + RS + "\n"


def a_row(number: str = "7", state: str = "RUNNING", comment: str = TAG, name: str = TAG) -> str:
    return row(number, state, "alice", "batch", "1:00", "n1", "None", comment, name)


def test_every_state_of_slurm_is_in_the_table() -> None:
    assert set(STATES) == set(EVIDENCE)


@pytest.mark.parametrize("state", STATES)
def test_only_final_states_end_a_job(state: str) -> None:
    said = evidence(state, node="n1")
    final = isinstance(EVIDENCE[state], EndReason)
    assert isinstance(said, Gone) == final
    assert state not in ("COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING") or isinstance(said, Alive)


def test_a_job_that_configures_for_ever_runs_the_boot_clock() -> None:
    assert evidence("CONFIGURING", node="n1") == Alive(Phase.RUNNING, "n1", None, "CONFIGURING")


@given(st.text(max_size=40))
def test_an_unknown_state_is_doubt(state: str) -> None:
    if state not in EVIDENCE:
        assert isinstance(evidence(state), Doubt)


@given(st.text(max_size=300))
@settings(max_examples=300)
def test_any_text_is_parsed_or_refused_as_strange(text: str) -> None:
    for parse in (
        *(parse_submitted, parse_queue, parse_accounting, parse_details, parse_partitions),
        *(parse_reservations, parse_associations, parse_span),
    ):
        try:
            parse(text)  # type: ignore[operator]  # they differ in what they give
        except Strange:
            continue


@given(
    st.text(max_size=60).filter(lambda text: RS not in text), st.text(max_size=60).filter(lambda text: RS not in text)
)
def test_names_of_other_jobs_never_hide_ours(comment: str, name: str) -> None:
    """Whatever somebody calls a job or writes beside it, rows before and behind stay what they are."""
    listing = parse_queue(a_row("1") + a_row("2", "PENDING", comment, name) + a_row("3"))
    assert [row.id for row in listing.rows if row.carries(TAG)] >= ["1", "3"]
    assert listing.bad == 0
    for each in listing.rows:
        if each.id == "2":
            assert each.state == "PENDING"


@given(st.lists(st.sampled_from([RS, US, "\n", "7", "RUNNING", TAG, "x", " "]), max_size=40).map("".join))
def test_a_name_with_our_own_separators_makes_no_row_of_ours(name: str) -> None:
    """The worst somebody can do is to forge rows of the own account; a tag of 128 random bits has to be known."""
    text = a_row("1") + a_row("2", "PENDING", "(null)", name) + a_row("3")
    try:
        listing = parse_queue(text)
    except Strange:
        return
    assert {"1", "3"} <= {row.id for row in listing.rows} or listing.bad


def test_a_row_of_another_form_is_counted_and_spoils_no_other() -> None:
    listing = parse_queue(a_row("1") + row("2", "RUNNING", "alice") + a_row("3"))
    assert ([each.id for each in listing.rows], listing.bad) == (["1", "3"], 1)


@pytest.mark.parametrize(
    "text",
    [
        "Welcome to the cluster\n",
        "Welcome to the cluster\n" + a_row()[:-1],
        a_row() + "squeue: warning\n",
        a_row().replace(RS, ""),
        "             JOBID PARTITION     NAME     USER ST\n                 7     batch      lab    alice  R\n",
        row("JOBID", "STATE", "USER"),
    ],
)
def test_a_listing_of_another_form_is_strange(text: str) -> None:
    with pytest.raises(Strange):
        parse_queue(text)


def test_an_empty_queue_is_an_empty_listing() -> None:
    assert parse_queue("") == Listing(())


def test_a_greeting_before_the_rows_is_not_taken_for_a_job() -> None:
    """The first row is lost with it, so the listing says that it is not complete."""
    assert parse_queue("Welcome\n" + a_row("1") + a_row("2")).bad == 1


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "0\n", "-1\n", "7 \n", " 7\n", "7\n7\n", "7;\n", "7;a b\n", "Submitted batch job 7\n", "7\r\n"),
        *("sbatch: warning\n7\n", "7\nsbatch: warning\n", "7;x;y\n", "٧\n", "1_2\n", "9" * 30 + "\n"),
    ],
)
def test_an_answer_of_sbatch_that_is_no_number_is_strange(text: str) -> None:
    with pytest.raises(Strange):
        parse_submitted(text)


@pytest.mark.parametrize("number", ["9_1", "9_[1-3]", "10+0", "", "0", "7;x", "seven", "-7"])
def test_elements_of_arrays_and_parts_of_jobs_are_no_jobs_of_ours(number: str) -> None:
    assert not is_number(number)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("0:07", 7), ("10:00", 600), ("1:00:00", 3600), ("1-00:00:00", 86_400), ("365-23:59:59", 31_622_399)),
        *(("UNLIMITED", None), ("NOT_SET", None), ("INVALID", None), ("-0:07", 0), ("", None)),
    ],
)
def test_spans(text: str, seconds: int | None) -> None:
    assert parse_span(text) == seconds


def test_a_command_is_the_same_words_behind_every_shell() -> None:
    """What a shell makes of the line is the list that was given, in sh and in bash."""
    words = ("printf", "%s\\n", *Commands("/opt/slurm/bin/").queue("alice"), "it's", "$HOME", "`id`", "a  b", "*")
    for shell in ("/bin/sh", "/bin/bash"):
        done = subprocess.run([shell, "-c", shell_line(words)], capture_output=True, text=True, check=True)
        assert done.stdout == "".join(f"{word}\n" for word in words[2:])


def test_nothing_of_a_person_is_in_a_command_line() -> None:
    """Names, projects and options are in the script and in plan.json; the line holds constants, numbers and the tag."""
    directives = (("job-name", TAG), ("comment", TAG), ("account", "secret-project"), ("time", "60"))
    line = shell_line(Commands().submit(f"./.moorage/{TAG}", directives))
    assert "secret-project" not in line
    assert shlex.split(line)[-1] == f"./.moorage/{TAG}/start.sh"
    # What would win over a directive is taken out of the environment.
    assert {"SBATCH_JOB_NAME", "SBATCH_COMMENT", "SBATCH_ACCOUNT", "SBATCH_TIMELIMIT"} <= set(shlex.split(line))
