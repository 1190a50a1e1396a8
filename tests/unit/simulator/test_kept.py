"""What a killed login node leaves to the next one: when it is written, and what is made up for at a start."""

import os
import pickle
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from moorage.simulator.batch import BatchSystem, JobRequest, State
from moorage.simulator.servers.ssh import ManualClock, NodeConfig, Nodes, Timing
from moorage.simulator.servers.ssh.cluster import MARKER, Cluster, Work, marked
from moorage.simulator.servers.ssh.cluster import _batch as new_batch
from moorage.simulator.servers.ssh.kept import KILLED, CannotGoOn, Kept
from moorage.simulator.servers.ssh.kept import State as KeptState

CONFIG = NodeConfig(keep=True, timing=Timing.fast())
LAB_MS = 60_000
LAB = JobRequest("lab", "ada", "batch", walltime_ms=LAB_MS, term_ms=None)
NOON = ManualClock().now()


def a_state(batch: BatchSystem, tmp_path: Path, script: str = "exit 0") -> KeptState:
    (tmp_path / "script").write_text(f"#!/bin/sh\n{script}\n")
    work = Work(tmp_path / "script", ("/bin/sh",), (), tmp_path, "out", "", False, dict(os.environ))
    return KeptState(f"mark{os.getpid()}", batch, {1: work})


def kept_in(tmp_path: Path) -> Kept:
    kept = Kept(tmp_path / "kept")
    assert kept.load() is None
    return kept


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def test_only_what_has_changed_is_written(tmp_path: Path) -> None:
    """Time that passes is no change, and neither is a question."""
    kept, batch, file = kept_in(tmp_path), new_batch(CONFIG), tmp_path / "kept" / "state"

    def is_written() -> bool:
        os.utime(file, (0, 0))
        kept.save(a_state(batch, tmp_path))
        return file.stat().st_mtime != 0

    batch.submit(LAB, NOON)
    kept.save(a_state(batch, tmp_path))
    assert file.stat().st_mode & 0o777 == 0o600
    batch.advance(NOON + 100)
    assert is_written()
    batch.advance(NOON + 2000)
    batch.expected_start(1)
    assert not is_written()
    batch.submit(evolve(LAB, hold=True), NOON + 2000)
    assert is_written()


def test_another_version_is_told(tmp_path: Path) -> None:
    kept = kept_in(tmp_path)
    descriptor = os.open(tmp_path / "kept" / "state", os.O_WRONLY | os.O_CREAT, 0o600)
    with open(descriptor, "wb") as file:
        pickle.dump(("0.0", a_state(new_batch(CONFIG), tmp_path)), file)
    with pytest.raises(CannotGoOn, match="another version"):
        kept.load()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["/bin/sh", "-c", "exit 7"], 7),
        (["/bin/sh", "-c", "kill -9 $$"], KILLED),
        (["/bin/sh", "-c", "kill -TERM $PPID; sleep 0.1; exit 4"], 4),
        (["/nonexistent"], 127),
    ],
)
def test_a_wrapper_keeps_the_exit_code(tmp_path: Path, command: list[str], code: int) -> None:
    kept = kept_in(tmp_path)
    assert not kept.has_begun("1-0")
    subprocess.run(kept.wrapped("1-0", command), check=False, stderr=subprocess.DEVNULL)
    assert kept.has_begun("1-0")
    assert kept.code("1-0") == code


def test_a_run_without_a_code_was_killed(tmp_path: Path) -> None:
    """Also one whose code was about to be written."""
    kept = kept_in(tmp_path)
    assert kept.code("1-0") == KILLED
    (tmp_path / "kept" / "1-0").touch()
    assert kept.code("1-0") == KILLED


def test_a_process_with_the_number_of_a_wrapper_is_not_taken_for_it(tmp_path: Path) -> None:
    assert kept_in(tmp_path).leader("1-0", iter([os.getpid()])) is None


def test_a_run_that_was_decided_on_and_not_begun_begins(tmp_path: Path) -> None:
    """The server was killed between writing down that it runs and starting it."""
    batch = new_batch(CONFIG)
    batch.submit(LAB, NOON)
    batch.advance(NOON + 100)
    kept_in(tmp_path).save(a_state(batch, tmp_path, "echo once >>began; exit 3"))
    cluster = Cluster(CONFIG, tmp_path, ManualClock(NOON + 200))
    try:
        until(lambda: cluster.call(lambda batch, now: batch.accounting()[0].state) is State.FAILED)
        assert cluster.call(lambda batch, now: batch.accounting()[0].exit_code) == 3
        assert (tmp_path / "began").read_text() == "once\n"
    finally:
        cluster.close()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(("text", "code"), [("7\n", 7), ("", KILLED)])
def test_a_run_that_ended_without_a_server_has_ended_and_the_next_begins(tmp_path: Path, text: str, code: int) -> None:
    """That its walltime went by makes no timeout of it, and takes no time from what waited."""
    config = evolve(CONFIG, nodes=Nodes(1, 1))
    batch = new_batch(config)
    for _ in range(2):
        batch.submit(LAB, NOON)
    batch.advance(NOON + 100)
    kept_in(tmp_path).save(a_state(batch, tmp_path))
    (tmp_path / "kept" / "1-0.begun").touch()
    if text:
        (tmp_path / "kept" / "1-0").write_text(text)
    later = NOON + 3_600_000
    cluster = Cluster(config, tmp_path, ManualClock(later))
    try:
        cluster.advance(0.1)
        first, second = cluster.call(lambda batch, now: batch.jobs())
        assert (first.state, first.exit_code, first.end_at) == (State.FAILED, code, later)
        assert second.state is State.RUNNING
        assert later + LAB_MS <= (second.limit_at or 0) <= later + LAB_MS + 100
    finally:
        cluster.close()


def test_what_was_to_be_killed_is_killed_and_what_people_started_is_not(tmp_path: Path) -> None:
    """The server was killed between writing down that a job is over and ending its processes."""
    batch = new_batch(CONFIG)
    batch.submit(LAB, NOON)
    batch.advance(NOON + 100)
    batch.cancel(1, NOON + 200)
    batch.advance(NOON + 60_000)
    state = a_state(batch, tmp_path)
    kept_in(tmp_path).save(state)
    left, own = (
        subprocess.Popen(["sleep", "1000"], env={**os.environ, MARKER: f"{state.marker}-{part}-"})
        for part in ("1-0", "exec")
    )
    try:
        cluster = Cluster(CONFIG, tmp_path, ManualClock(NOON + 70_000))
        try:
            assert left.wait(10) == -9
            assert list(marked(state.marker)) == [own.pid]
            assert cluster.call(lambda batch, now: batch.accounting()[0].state) is State.CANCELLED
        finally:
            cluster.close()
        assert own.wait(10) == -9
    finally:
        for process in (left, own):
            process.kill()
            process.wait()
