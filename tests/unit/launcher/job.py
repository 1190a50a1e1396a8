"""A job directory, the real launcher in it as a process of some Python, and a client that goes through its gate."""

import itertools
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from moorage.core.gate import Answer, Purpose, Request, check_answer, check_document, request
from moorage.core.plan import (
    LAUNCHER_NAME,
    PLAN_NAME,
    SECRET_NAME,
    GatePort,
    LaunchLimits,
    LaunchPlan,
    LaunchSecrets,
    render,
)
from moorage.core.secret import Secret
from moorage.launcher import source

ECHO_LAB = Path(__file__).with_name("echo_lab.py")
TAG = "m0moorage" + "a" * 26 + "0001"


def eventually(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until it is true; what looks into a report that is not written yet is not true yet."""
    deadline = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < deadline, f"gave up waiting for {what}"
        time.sleep(0.02)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except FileNotFoundError:
        return False


def read_line(stream: socket.socket) -> bytes:
    """One line and not a byte more; what there was, if the stream ends."""
    line = b""
    while not line.endswith(b"\n"):
        try:
            byte = stream.recv(1)
        except ConnectionError:
            break
        if not byte:
            break
        line += byte
    return line


def read_all(stream: socket.socket) -> bytes:
    data = b""
    while more := stream.recv(65536):
        data += more
    return data


class Job:
    """One job directory and the launcher that runs in it."""

    eventually = staticmethod(eventually)
    read_line = staticmethod(read_line)
    read_all = staticmethod(read_all)

    def __init__(self, directory: Path, python: str, tag: str = TAG) -> None:
        self.directory, self.python, self.tag = directory, python, tag
        self.key = Secret(os.urandom(32).hex())
        self.canary = "canary" + os.urandom(12).hex()
        self.environment = dict(os.environ)
        self.secrets = {"LAB_TOKEN": self.canary}
        self.process: subprocess.Popen[bytes] | None = None
        self._counter = itertools.count(int(time.time() * 1e6))
        self.plan = LaunchPlan(
            tag=tag,
            attempt=1,
            owner="alice",
            command=(python, "-B", str(ECHO_LAB), "--sock={socket}"),
            directory=".",
            gate=GatePort(interface="127.0.0.1", host="127.0.0.1"),
            limits=LaunchLimits(status_s=1, stop_s=3),
        )

    def configure(self, **changes: Any) -> "Job":
        limits = changes.pop("limits", {})
        self.plan = attrs.evolve(self.plan, limits=attrs.evolve(self.plan.limits, **limits), **changes)
        return self

    def write_files(self) -> None:
        rendered = render(
            self.plan, LaunchSecrets(self.key, tuple((name, Secret(value)) for name, value in self.secrets.items()))
        )
        self.directory.mkdir(exist_ok=True)
        (self.directory / LAUNCHER_NAME).write_text(source())
        (self.directory / PLAN_NAME).write_text(rendered.plan)
        secret = self.directory / SECRET_NAME
        secret.touch(mode=0o600)
        secret.write_text(rendered.secret.reveal())

    def launch(self) -> "Job":
        command = [self.python, "-I", "-S", LAUNCHER_NAME, PLAN_NAME]
        with (self.directory / "stdout").open("wb") as out, (self.directory / "stderr").open("wb") as err:
            self.process = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self.environment,
                stdout=out,
                stderr=err,
                stdin=subprocess.DEVNULL,
                preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests may run below nohup
            )
        return self

    def start(self, **changes: Any) -> "Job":
        self.configure(**changes).write_files()
        self.launch()
        self.endpoint()
        return self

    def endpoint(self) -> dict[str, Any]:
        path = self.directory / "endpoint.json"
        eventually(lambda: path.exists() or self.ended(), "endpoint.json")
        assert path.exists(), self.stderr()
        return dict(check_document(self.key, "endpoint", self.tag, path.read_text()))

    def status(self) -> dict[str, Any]:
        return dict(check_document(self.key, "status", self.tag, (self.directory / "status.json").read_text()))

    def stderr(self) -> str:
        return (self.directory / "stderr").read_text()

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def wait(self, seconds: float = 20) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def connect(self) -> socket.socket:
        where = self.endpoint()
        if "socket" in where:
            stream = socket.socket(socket.AF_UNIX)
            stream.settimeout(20)
            stream.connect(str(self.directory / where["socket"]))
            return stream
        return socket.create_connection((where["host"], where["port"]), timeout=20)

    def request(self, purpose: Purpose, **changes: Any) -> Request:
        words = {
            "secret": self.key,
            "tag": self.tag,
            "nonce": self.endpoint()["nonce"],
            "counter": next(self._counter),
            "challenge": os.urandom(16).hex(),
        }
        return request(purpose=purpose, **(words | changes))

    def ask(self, purpose: Purpose) -> Answer:
        asked = self.request(purpose)
        with self.connect() as stream:
            stream.sendall(asked.line)
            answer = check_answer(self.key, asked, read_line(stream))
            assert stream.recv(1) == b""
        return answer

    def stream(self, early: bytes = b"") -> socket.socket:
        """A proven stream; `early` follows the line at once."""
        asked = self.request(Purpose.STREAM)
        stream = self.connect()
        stream.sendall(asked.line + early)
        answer = check_answer(self.key, asked, read_line(stream))
        assert answer.verdict.value == "ok", answer
        return stream

    def get(self, path: str) -> bytes:
        with self.stream(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()) as stream:
            return read_all(stream)

    def serving(self) -> "Job":
        """Admit, and wait for the lab."""
        self.ask(Purpose.ADMIT)
        eventually(lambda: self.ask(Purpose.PROBE).http == 200, "the lab to serve")
        return self

    def files(self) -> dict[str, bytes]:
        names = (path for path in self.directory.rglob("*") if path.is_file())
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in names}

    def end(self) -> None:
        """Whatever the test did with it, it is gone afterwards."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
