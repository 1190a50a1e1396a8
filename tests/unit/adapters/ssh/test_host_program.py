"""The program that runs on a host: old Pythons read it, and it looks at processes as it says."""

import ast
import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

TAG = "m0000demo" + os.urandom(12).hex() + "0001"
"""Of this process alone: jobs are found by it among all processes of the machine, also those of other test runs."""


def program() -> str:
    return files("moorage.adapters.ssh").joinpath("host_program.py").read_text()


def run(verb: str, base: Path, tag: str = TAG, job: str = "", seconds: str = "0") -> Any:
    words = [sys.executable, "-I", "-", verb, str(base), tag, job, seconds]
    done = subprocess.run(words, input=program(), capture_output=True, text=True, timeout=20, check=True)
    return json.loads(done.stdout)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / TAG).mkdir(mode=0o700)
    return tmp_path


def test_python_3_6_reads_it() -> None:
    ast.parse(program(), feature_version=(3, 6))


def test_what_is_no_job_directory_is_not_listed(base: Path) -> None:
    for name in ("x", "m", "M0000demo", "m0000demo evil", "m" * 80, ".m0"):
        (base / name).mkdir()
    (base / "m0000file").write_text("")
    tags = [job["tag"] for job in run("list", base, "m")["jobs"] if job["job"]]
    assert tags == []
    assert run("list", base / "nowhere", "m") == {"jobs": []}


def test_the_exit_code_is_kept(base: Path) -> None:
    (base / TAG / "start.sh").write_text("exit 7\n")
    job = run("start", base)["job"]
    told = {"alive": True}
    while told["alive"]:
        (told,) = run("list", base)["jobs"]
    expected = {"tag": TAG, "job": job, "alive": False, "code": 7, "cancelled": False, "same_boot": True}
    assert told == expected


def test_starting_again_starts_nothing(base: Path) -> None:
    (base / TAG / "start.sh").write_text("echo run >>count; exec sleep 60\n")
    job = run("start", base)["job"]
    assert run("start", base)["job"] == job
    assert run("cancel", base, TAG, job, "-1")["jobs"][0]["cancelled"]
    while run("list", base)["jobs"][0]["alive"]:  # killed, and soon gone, before the next test has the same tag
        pass
    run("clean", base)
    assert (base / TAG / "count").read_text() == "run\n"


def test_a_number_that_is_used_again_is_not_the_job(base: Path) -> None:
    """This very process has the number, but another start time; and one of another boot is over."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    for job in (f"{os.getpid()}.1.{boot}", f"{os.getpid()}.1.00000000"):
        (base / TAG / "job.id").write_text(job)
        (told,) = run("list", base)["jobs"]
        assert (told["job"], told["alive"], told["same_boot"]) == (job, False, job.endswith(boot))
        run("cancel", base, TAG, job, "0")  # this process is not told to end


def test_a_job_id_that_was_written_by_somebody_else_is_none(base: Path) -> None:
    for text in ("", "1", "-1.1.00000000", "1.1.zzzzzzzz", "../../x", "1.1.00000000\n1.1.00000000"):
        (base / TAG / "job.id").write_text(text)
        assert run("list", base)["jobs"][0]["job"] == ""
