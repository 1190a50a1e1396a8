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
