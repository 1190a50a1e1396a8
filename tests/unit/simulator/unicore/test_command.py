"""`main_serve`, the site as a command: what it prints, how it stops, and what it leaves behind."""

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moorage.simulator.servers.unicore import ConfigError, main_serve
from moorage.simulator.servers.unicore.server import command_config

Start = Callable[..., "Command"]


class Command:
    """A started command: its process, its base URL and the second line, if there is one."""

    def __init__(self, directory: Path, arguments: dict[str, Any]) -> None:
        code = "import json, pathlib, sys; from moorage.simulator.servers.unicore import main_serve\n"
        code += "more = json.loads(sys.argv[1])\n"
        code += "for name in ('config', 'faults'):\n    more[name] = more.get(name) and pathlib.Path(more[name])\n"
        code += "main_serve(**more)"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, json.dumps(arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        self.authority = self.process.stdout.readline().strip().removeprefix("CA: ") if arguments.get("tls") else None

    def ask(self, path: str, body: object = None, user: str = "demouser:test123", method: str | None = None) -> Any:
        url = path if path.startswith("http") else self.url + path
        headers = {
            "Authorization": "Basic " + base64.b64encode(user.encode()).decode(),
            "Accept": "application/json",
            "Content-Type": "application/json",
        }
        data = None if body is None else json.dumps(body).encode()
        context = ssl.create_default_context(cafile=self.authority) if self.authority else None
        wish = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(wish, timeout=20, context=context) as reply:
            text = reply.read()
            return json.loads(text) if text else reply.headers

    def until(self, job: str, status: str) -> None:
        deadline = time.monotonic() + 20
        while self.ask(job)["status"] != status:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.stdout.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made = []
    directory = tmp_path / "temporary"
    directory.mkdir()

    def make(**arguments: Any) -> Command:
        made.append(Command(directory, arguments))
        return made[-1]

    yield make
    for command in made:
        command.end()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_stops_with_nothing_left(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    command = start()
    assert command.url.startswith("http://127.0.0.1:")
    assert command.url.endswith("/DEMO-SITE/rest/core")
    script = "trap '' TERM; setsid sleep 12345 & echo $! > child; echo $$ > self; sleep 12345"
    job = command.ask("/jobs", {"Executable": "bash job.sh", "Imports": [{"To": "job.sh", "Data": script}]})["Location"]
    command.until(job, "RUNNING")
    directory = Path(command.ask(command.ask(job)["_links"]["workingDirectory"]["href"])["mountPoint"])
    deadline = time.monotonic() + 10
    while not (directory / "self").exists() or not (directory / "self").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = [int((directory / name).read_text()) for name in ("child", "self")]
    assert all(Path(f"/proc/{pid}").exists() for pid in processes)
    assert command.end(number) == 0
    assert not any(_alive(pid) for pid in processes)
    assert list((tmp_path / "temporary").iterdir()) == []


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_options_choose_users_name_execution_and_tls(start: Start) -> None:
    command = start(site="ELSEWHERE", users=["ada:love:lace"], execute="virtual", tls=True)
    assert command.url.startswith("https://127.0.0.1:")
    assert "/ELSEWHERE/" in command.url
    client = command.ask("", user="ada:love:lace")["client"]
    assert (client["role"]["selected"], client["xlogin"]["UID"]) == ("user", "ada")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        command.ask("")
    wish = {"Executable": "not a program", "Environment": {"SIM_RUNTIME_S": "0", "SIM_EXIT_CODE": "4"}}
    job = command.ask("/jobs", wish, user="ada:love:lace")["Location"]
    deadline = time.monotonic() + 20
    while (found := command.ask(job, user="ada:love:lace"))["status"] != "FAILED":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert found["exitCode"] == "4"


def test_files_configure_sites_and_faults(start: Start, tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text(
        "sites:\n- name: ONE\n  partitions: [{name: fast, nodes: 2, resources: {Nodes: 1-2}}]\n"
        "- name: TWO\n  users: [{name: bob, password: b}]\n"
    )
    (tmp_path / "faults.yaml").write_text("faults: [{fault: F-U8, times: 1, on: [list]}]\n")
    command = start(config=str(tmp_path / "site.yaml"), faults=str(tmp_path / "faults.yaml"))
    factory = command.ask("/factories/default_target_system_factory")
    assert list(factory["resources"]) == ["fast"]
    two = command.url.replace("/ONE/", "/TWO/")
    assert command.ask(two, user="bob:b")["server"]["siteName"] == "TWO"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        command.ask("/jobs")
    assert command.ask("/jobs")["jobs"] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"site": "a/b"}, "name"),
        ({"users": ["nocolon"]}, "NAME:PASSWORD"),
        ({"execute": "magic"}, "execute"),
        ({"config": Path("/nonexistent.yaml")}, "nonexistent"),
    ],
)
def test_what_is_wrong_is_named_before_anything_starts(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        main_serve(**arguments)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "mapping"),
        ("colour: red", "unknown key colour"),
        ("partitions: [{nodes: many}]", r"partitions\[0\]\.nodes: int is expected"),
        ("sites: [{}, {users: 3}]", r"sites\[1\]\.users"),
        ("execute: maybe", "execute"),
        ("timing: sometimes", "timing"),
        ("a: [", "while parsing"),
    ],
)
def test_a_wrong_file_names_the_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        command_config(0, None, (), path, None, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[{fault: F-U99}]", "F-U99"),
        ("[{fault: F-U1, variant: sometimes}]", "sometimes"),
        ("[{do: dance}]", "do"),
        ("[{do: hang, on: [everything]}]", "on"),
        ("[{do: hang, probability: 2}]", "probability"),
        ('[{do: answer, headers: {A: "b\\r\\nc"}}]', "control"),
        ("faults: 3", "list"),
    ],
)
def test_a_wrong_fault_is_named(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "faults.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        main_serve(faults=path)


# What outlives the server -------------------------------------------------------------------------------------


COUNTS = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo $i >> count; sleep 0.05; done"


def counted(directory: Path) -> list[int]:
    return [int(line) for line in (directory / "count").read_text().split()]


def grows(directory: Path) -> None:
    before, deadline = len(counted(directory)), time.monotonic() + 10
    while len(counted(directory)) < before + 3:
        assert time.monotonic() < deadline, "the job counts no more"
        time.sleep(0.05)


def test_jobs_outlive_a_server_that_was_killed(start: Start, tmp_path: Path) -> None:
    """On nodes and on the login node: nobody notices but those who ask the server while it is away."""
    config = tmp_path / "site.yaml"
    sites = tmp_path / "sites"
    config.write_text(
        json.dumps({"keep": True, "timing": "fast", "partitions": [{"nodes": 2}], "directory": str(sites)})
    )
    command = start(config=str(config))
    wishes = [
        {"Executable": COUNTS, "Name": "node", "Tags": ["one"]},
        {"Executable": COUNTS, "Job type": "ON_LOGIN_NODE"},
        {"Executable": "sh -c 'sleep 0.5; exit 7'"},
        {"Executable": "echo waited > count", "Resources": {"Nodes": "2"}},
    ]
    jobs = [command.ask("/jobs", wish)["Location"] for wish in wishes]
    for job, status in zip(jobs, ("RUNNING", "RUNNING", "RUNNING", "QUEUED"), strict=True):
        command.until(job, status)
    before = [command.ask(job) for job in jobs]
    directories = [sites / "DEMO-SITE" / "UNICORE_Jobs" / "demouser" / job.rpartition("/")[2] for job in jobs]
    port = int(command.url.split(":")[2].split("/")[0])
    command.end(signal.SIGKILL)
    grows(directories[0])
    time.sleep(0.6)  # the third job ends while nobody looks

    command = start(config=str(config), port=port)
    command.until(jobs[2], "FAILED")
    assert command.ask(jobs[2])["exitCode"] == "7"
    after = [command.ask(job) for job in jobs]
    for name in ("status", "name", "tags", "submissionTime", "batchSystemID", "queue", "terminationTime"):
        assert after[0][name] == before[0][name]
        assert after[1][name] == before[1][name]
    for directory in directories[:2]:
        grows(directory)
        assert counted(directory) == list(range(1, len(counted(directory)) + 1)), "one and the same run"
    assert command.ask(jobs[3])["status"] == "QUEUED", "both nodes are not free"
    # Ended by hand, nothing is left and the node is free for who waited.
    command.ask(f"{jobs[0]}/actions/abort", {})
    command.until(jobs[0], "FAILED")
    command.until(jobs[3], "SUCCESSFUL")
    quiet = len(counted(directories[0]))
    command.ask(jobs[1], method="DELETE")
    deadline = time.monotonic() + 10
    while directories[1].exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(counted(directories[0])) == quiet
    assert command.end() == 0
    assert list((sites / "DEMO-SITE" / "KEPT").iterdir()) == []


def test_a_server_that_is_told_to_stop_ends_what_it_has_from_an_earlier_one(start: Start, tmp_path: Path) -> None:
    config = tmp_path / "site.yaml"
    config.write_text(json.dumps({"keep": True, "timing": "fast", "directory": str(tmp_path / "sites")}))
    command = start(config=str(config))
    job = command.ask("/jobs", {"Executable": COUNTS})["Location"]
    command.until(job, "RUNNING")
    directory = tmp_path / "sites" / "DEMO-SITE" / "UNICORE_Jobs" / "demouser" / job.rpartition("/")[2]
    command.end(signal.SIGKILL)
    command = start(config=str(config))
    grows(directory)
    assert command.end() == 0
    quiet = len(counted(directory))
    time.sleep(0.3)
    assert len(counted(directory)) == quiet


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"execute": "virtual", "directory": "/tmp/x"}, "keep: found execute: virtual, expected process"),
        ({}, "keep: found no directory"),
    ],
)
def test_what_cannot_be_kept_is_refused(tmp_path: Path, keys: dict[str, str], told: str) -> None:
    config = tmp_path / "site.yaml"
    config.write_text(json.dumps({"keep": True, **keys}))
    with pytest.raises(ConfigError, match=told):
        command_config(0, None, (), config, None, False)
