"""`moorage sim`: scenarios from the command line, and simulated sites that serve."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from moorage.cli import Exit, run
from moorage.simulator.report import Broken, Result

SCENARIO = """\
name: an-hour
lasts: 1 h
systems: {alpha: {nodes: 8}, beta: {nodes: 4}}
arrivals: [{kind: burst, people: 6, within: 10 min}]
stays: {median: 20 min, walltime: 1 h}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> str:
    file = tmp_path / "an-hour.yaml"
    file.write_text(SCENARIO)
    return str(file)


def told(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_the_shipped_scenarios_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "run", "--json"]) == Exit.FINE
    names = [each["name"] for each in told(capsys)["scenarios"]]
    assert {"quiet-day", "workshop-morning", "login-node-reboot"} <= set(names)
    assert run(["sim", "run"]) == Exit.FINE
    assert "workshop-morning" in capsys.readouterr().out


def test_a_run_says_what_came_of_it(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "run", scenario, "--json"]) == Exit.FINE
    said = told(capsys)
    assert said["sessions"]["asked"] == 6
    assert said["sessions"]["ready"] == 6
    assert sum(said["sessions"]["ended"].values()) == 6
    assert said["wait"]["median_s"] <= said["wait"]["p95_s"] <= said["wait"]["max_s"]
    assert said["invariants"]["checked"] > 0
    assert said["virtual_s"] >= 3600 > said["real_s"]
    assert said["broken"] is None
    assert run(["sim", "run", scenario]) == Exit.FINE
    shown = capsys.readouterr().out
    assert re.search(r"sessions asked for +6", shown)
    assert said["digest"] in shown


def test_the_same_seed_gives_the_same_digest_also_elsewhere(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process, in processes of their own, and under another hash seed and time zone."""
    assert run(["sim", "run", scenario, "--digest", "--seed", "4"]) == Exit.FINE
    one = capsys.readouterr().out
    assert re.fullmatch(r"4 [0-9a-f]{32}\n", one)
    assert run(["sim", "run", scenario, "--digest", "--seed", "3", "--seeds", "3", "--jobs", "2"]) == Exit.FINE
    several = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in several] == ["3", "4", "5"]
    assert several[1] == one.strip()
    assert len({line.split()[1] for line in several}) == 3
    elsewhere = subprocess.run(
        [sys.executable, "-m", "moorage.cli", "sim", "run", scenario, "--digest", "--seed", "4"],
        env={**os.environ, "PYTHONHASHSEED": "7", "TZ": "Pacific/Chatham"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert elsewhere.stdout == one


def test_several_seeds_have_a_summary(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "run", scenario, "--seeds", "2", "--jobs", "1", "--faults", "light", "--json"]) == Exit.FINE
    said = told(capsys)
    assert [each["seed"] for each in said["runs"]] == [0, 1]
    assert (said["summary"]["runs"], said["summary"]["broken"], said["summary"]["asked"]) == (2, 0, 12)
    assert said["summary"]["faults_fired"] == sum(sum(each["faults_fired"].values()) for each in said["runs"]) > 0


def test_the_trace_is_written(scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "trace.txt"
    assert run(["sim", "run", scenario, "--trace", str(file), "--digest"]) == Exit.FINE
    lines = file.read_text().splitlines()
    assert len(lines) > 100
    capsys.readouterr()
    assert run(["sim", "run", scenario, "--trace", str(file), "--seeds", "2"]) == Exit.USAGE


@pytest.mark.parametrize("level", ["none", "light"])
def test_what_goes_wrong_can_be_chosen(scenario: str, level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "run", scenario, "--faults", level, "--json"]) == Exit.FINE
    shown = capsys.readouterr()
    assert shown.err == "", "simulated trouble is no news for a terminal"
    said = json.loads(shown.out)
    assert said["faults"] == level
    assert (sum(said["faults_fired"].values()) == 0) == (level == "none")


def test_mistakes_in_scenarios_and_faults_are_told_with_their_places(
    scenario: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(SCENARIO.replace("people: 6", "peple: 6"))
    assert run(["sim", "run", str(wrong)]) == Exit.WRONG
    column = SCENARIO.splitlines()[3].index("people") + 1
    assert f'{wrong}:4:{column}: arrivals[0].peple: found the unknown key "peple"' in capsys.readouterr().err
    assert run(["sim", "run", "no-such-scenario"]) == Exit.WRONG
    faults = tmp_path / "faults.yaml"
    faults.write_text("faults: {submit: 2}\n")
    assert run(["sim", "run", scenario, "--faults", str(faults), "--seeds", "2"]) == Exit.WRONG
    assert str(faults) in capsys.readouterr().err


def test_a_broken_invariant_is_told_with_its_story(
    scenario: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from moorage.simulator import run as module

    original = module.run_scenario

    def broken(*args: Any, **kwargs: Any) -> Result:
        story = ("10 submit", "20 submit again")
        return evolve(original(*args, **kwargs), broken=Broken("never_two_live_jobs", "two jobs live", 754.0, story))

    monkeypatch.setattr(module, "run_scenario", broken)
    assert run(["sim", "run", scenario, "--seed", "9", "--faults", "none"]) == Exit.WRONG
    shown = capsys.readouterr().out
    assert "Broken with seed 9: never two live jobs, at 0:12:34\n  two jobs live\n" in shown
    assert "\n  | 10 submit\n  | 20 submit again\n" in shown
    assert f"again: moorage sim run {scenario} --seed 9 --faults none" in shown, "the very words that were typed"
    assert run(["sim", "run", scenario, "--json"]) == Exit.WRONG
    assert told(capsys)["broken"]["invariant"] == "never_two_live_jobs"


def test_a_terminal_shows_the_run_while_it_lasts() -> None:
    """The picture is drawn by a thread of its own: the simulation's may not look at a clock."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "moorage.cli", "sim", "run", "quiet-day", "--seed", "1"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env={**os.environ, "COLUMNS": "100", "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # Linux says so when the other end of a terminal is closed
                break
            drawn += piece
            if not piece:
                break
        os.close(ours)
        assert process.stdout is not None
        assert "sessions asked for" in process.stdout.read()
        assert process.wait(60) == Exit.FINE
    assert b"of 12:00:00" in drawn
    assert b"READY" in drawn


def test_ctrl_c_ends_a_run_of_many_seeds_and_its_processes(scenario: str) -> None:
    program = [sys.executable, "-m", "moorage.cli", "sim", "run", scenario, "--seeds", "100000", "--jobs", "2"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    try:
        children = _until_children(process)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == Exit.INTERRUPTED
    finally:
        process.kill()
        process.wait()
    for child in children:
        _until_gone(child)


def _until_gone(pid: int) -> None:
    """Workers are ended before the command; Python's tracker of resources notices its end a moment later."""
    for _ in range(400):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return  # over, and nobody's but init's
        except FileNotFoundError:
            return
        time.sleep(0.05)  # another process ends; there is no pretend time for it
    raise AssertionError(f"process {pid} goes on")


def _until_children(process: "subprocess.Popen[bytes]") -> list[int]:
    """The worker processes, once both are there."""
    file = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for _ in range(600):
        children = [int(pid) for pid in file.read_text().split()]
        if len(children) >= 3:  # two workers and the tracker of resources
            return children
        time.sleep(0.05)  # other processes start; there is no pretend time for it
    raise AssertionError("no workers")


def test_a_simulated_login_node_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    options = ["--execute", "virtual", "--directory", str(tmp_path / "node")]
    with subprocess.Popen(
        [sys.executable, "-m", "moorage.cli", "sim", "serve", "ssh", *options],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = []
            while not said or said[-1] not in ("", "ready"):
                said.append(process.stdout.readline().strip())
            assert said[0].startswith("ssh://127.0.0.1:")
            assert said[1].startswith("host-key: ssh-")
            assert f"directory: {tmp_path / 'node'}" in said
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait(30) == Exit.FINE
    assert (tmp_path / "node" / "host_key").exists()
