"""The simulated login node as a whole: listener, keys, directories, and the command that serves."""

import base64
import contextlib
import json
import os
import random
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import paramiko
from attrs import define, evolve, field
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from . import commands
from .cluster import Clock, Cluster, RunningClock, kill_marked
from .config import Account, NodeConfig, load
from .connection import Disconnected, Node, serve_connection, simulate
from .faults import Faults, Rule
from .faults import load as load_faults
from .kept import alone


@define(eq=False)
class Running:
    """A login node that serves. Everything here may be used from any thread."""

    config: NodeConfig
    host: str
    port: int
    host_key: str
    """As in known_hosts, without the host: ``ssh-ed25519 AAAA…``."""
    directory: Path
    key_file: Path | None
    """A private key that every account accepts, if the server was given none."""
    cluster: Cluster
    faults: Faults
    node: Node

    @property
    def homes(self) -> Path:
        """One home directory per account."""
        return self.directory / "homes"

    @property
    def destinations(self) -> tuple[str, ...]:
        """What launchers on this machine call their node: it is not the name that the batch system tells."""
        return (socket.gethostname().split(".")[0],)

    @property
    def counted(self) -> Mapping[str, int]:
        """Connections, logins, refused logins, commands by name, forwards, since the start."""
        return dict(self.node.counted)

    def advance(self, seconds: float) -> None:
        """Move the time of a virtual cluster that stands still."""
        self.cluster.advance(seconds)


@contextlib.contextmanager
def serve(
    config: NodeConfig | None = None,
    *,
    port: int = 0,
    host_key: Path | None = None,
    authorized_keys: Path | None = None,
    directory: Path | None = None,
    faults: Iterable[Rule | Mapping[str, Any]] = (),
    seed: int = 0,
    clock: Clock | None = None,
) -> Iterator[Running]:
    """
    Serve on 127.0.0.1 while the context lasts; afterwards no process, thread or file is left.

    With `NodeConfig.keep` a server in the directory of one that was killed goes on with its jobs.

    Args:
        host_key: File with a private key, made if it is not there; without it one in the directory.
        authorized_keys: Public keys that are good for every account; without it a key is made (`Running.key_file`).
        directory: Kept afterwards; without it a temporary one, which goes away.
        clock: `ManualClock()` for a virtual cluster that a test moves; otherwise time runs.

    Raises:
        OSError: The port is taken, or a file cannot be read or written.
        ValueError: A key file holds no key; or nothing can be kept in this directory (`NodeConfig.keep`).
    """
    config = config or NodeConfig()
    if config.keep and directory is None:
        raise ValueError("keep: only a directory that is named can be found again")
    with contextlib.ExitStack() as stack:
        if directory is None:
            directory = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="sim-ssh-", ignore_cleanup_errors=True))
            )
        _make_directories(config, directory)
        if config.keep:
            stack.enter_context(alone(directory))
        key = _host_key(host_key, directory)
        key_file, keys = _keys(config, authorized_keys, directory)
        listener = stack.enter_context(socket.create_server(("127.0.0.1", port), backlog=200))
        trouble = Faults(seed)
        trouble.add(*faults)
        time_ = clock or RunningClock(config.speed if config.execute == "virtual" else 1.0)
        cluster = Cluster(config, directory / "spool", time_, faults=trouble)
        stack.callback(cluster.close)
        environment = _environment(config, directory)
        node = Node(config, cluster, trouble, keys, directory / "homes", environment)
        control = stack.enter_context(_control_socket(directory))
        _write_programs(directory)
        stack.callback(_stop, node, (listener, control))
        acceptor = _Acceptor(node, listener, key, seed)
        node.denied = acceptor.deny
        node.spawn(acceptor.run, name="accept")
        node.spawn(_serve_programs, node, control, name="programs")
        host, bound = listener.getsockname()
        line = f"{key.get_name()} {key.get_base64()}"
        yield Running(config, host, bound, line, directory, key_file, cluster, trouble, node)


def _stop(node: Node, listeners: Sequence[socket.socket]) -> None:
    """End every thread, then every process that a command left; the cluster ends its own."""
    node.stopping.set()
    for listener in listeners:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    until = time.monotonic() + 10
    while node.threads and time.monotonic() < until:
        # Each time, because a command may have been about to start.
        kill_marked(f"{node.cluster.marker}-exec-")
        for thread in list(node.threads):
            thread.join(0.05)
    kill_marked(f"{node.cluster.marker}-exec-")


@define(eq=False)
class _Acceptor:
    """Accepts connections as sshd does: it drops some when too many are not logged in, and avoids who failed."""

    node: Node
    listener: socket.socket
    host_key: Any
    seed: int
    waiting: int = 0
    avoided: dict[str, float] = field(factory=dict)
    _lock: threading.Lock = field(factory=threading.Lock)

    def run(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311 (chance, not a secret)
        while not self.node.stopping.is_set():
            try:
                sock, address = self.listener.accept()
            except OSError:
                if not self.node.stopping.is_set():
                    time.sleep(0.05)  # out of descriptors: others may close some
                continue
            self.node.count("connections")
            if self._dropped(chance) or self.avoided.get(address[0], 0.0) > time.monotonic():
                self.node.count("dropped connections")
                sock.close()
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.waiting += 1
            self.node.spawn(
                serve_connection, self.node, sock, address[0], self.host_key, self._once(), name="connection"
            )

    def deny(self, address: str) -> None:
        """PerSourcePenalties: an address that failed to log in is not let in for a while."""
        if self.node.config.limits.penalty_s:
            self.avoided[address] = time.monotonic() + self.node.config.limits.penalty_s

    def _dropped(self, chance: random.Random) -> bool:
        """MaxStartups. Source: sshd_config(5); sshd.c, `drop_connection`."""
        first, rate, last = self.node.config.limits.startups
        if self.waiting < first:
            return False
        if self.waiting >= last or rate == 100:
            return True
        odds = rate + (100 - rate) * (self.waiting - first) / (last - first)
        return chance.uniform(0, 100) < odds

    def _once(self) -> Any:
        done: list[bool] = []

        def begun() -> None:
            with self._lock:
                if not done:
                    done.append(True)
                    self.waiting -= 1

        return begun


# Files -------------------------------------------------------------------------------------------------------


def _make_directories(config: NodeConfig, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("homes", "spool", "bin"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    for account in config.everybody():
        (directory / "homes" / account.name).mkdir(mode=0o700, exist_ok=True)


def _environment(config: NodeConfig, directory: Path) -> dict[str, str]:
    # What this Python has installed beside it, jobs have too: the JupyterLab of a demonstration.
    own = f"{directory / 'bin'}:{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    given = dict(config.environment)
    path = given.pop("PATH", "")
    return {
        "PATH": f"{path}:{own}" if path else own,
        "SHELL": "/bin/sh",
        "LANG": os.environ.get("LANG", "C.UTF-8"),
        "SIM_CONTROL": str(directory / "control"),
        **given,
    }


def _host_key(path: Path | None, directory: Path) -> Any:
    path = path or directory / "host_key"
    if not path.exists():
        _write_key(path)
    return _private_key(path)


def _private_key(path: Path) -> Any:
    try:
        return paramiko.PKey.from_path(str(path))
    except (paramiko.SSHException, ValueError, TypeError) as error:
        raise ValueError(f"{path} holds no private key that can be used: {error}") from error


def _write_key(path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(number, "wb") as file:
        file.write(key.private_bytes(*form))
    path.with_name(path.name + ".pub").write_bytes(public + b"\n")


def _keys(
    config: NodeConfig, authorized: Path | None, directory: Path
) -> tuple[Path | None, dict[str, frozenset[tuple[str, str]]]]:
    made = None
    if authorized is None and not any(account.keys for account in config.everybody()):
        made = directory / "id_ed25519"
        if not made.exists():
            _write_key(made)
        authorized = made.with_name(made.name + ".pub")
    shared = authorized.read_text(encoding="utf-8").splitlines() if authorized else []
    found = {account.name: _parsed_keys((*shared, *account.keys)) for account in config.everybody()}
    return made, found


def _parsed_keys(lines: Iterable[str]) -> frozenset[tuple[str, str]]:
    """Kind and base64 text of each line of authorized_keys; options before them are not simulated, so refused."""
    keys = []
    for line in lines:
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            base64.b64decode(words[1], validate=True)
            keys.append((words[0], words[1]))
        except (IndexError, ValueError) as error:
            raise ValueError("authorized keys: a line is no plain public key") from error
    return frozenset(keys)


# Slurm's commands for scripts ------------------------------------------------------------------------------------

_PROGRAM = """\
#!{python} -IS
# Asks the simulated login node; see moorage.simulator.servers.ssh.server.
import json, os, socket, sys
name = os.path.basename(sys.argv[0])
stdin = "" if sys.stdin is None or sys.stdin.isatty() or name != "sbatch" or len(sys.argv) > 1 else sys.stdin.read()
asked = dict(program=name, arguments=sys.argv[1:], directory=os.getcwd(), environment=dict(os.environ), stdin=stdin)
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(os.environ["SIM_CONTROL"])
    sock.sendall(json.dumps(asked).encode() + b"\\n")
    answer = json.loads(sock.makefile("rb").read())
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.exit(answer["status"])
"""


def _write_programs(directory: Path) -> None:
    for name in sorted(commands.PROGRAMS):
        path = directory / "bin" / name
        path.write_text(_PROGRAM.format(python=sys.executable), encoding="utf-8")
        path.chmod(stat.S_IRWXU)


@contextlib.contextmanager
def _control_socket(directory: Path) -> Iterator[socket.socket]:
    path = directory / "control"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        # A path in a deep directory may be too long for a socket's name; a relative one is short.
        listener.bind(os.path.relpath(path) if len(str(path)) > 100 else str(path))
        path.chmod(0o600)
        listener.listen(64)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def _serve_programs(node: Node, listener: socket.socket) -> None:
    while not node.stopping.is_set():
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        node.spawn(_answer_program, node, sock, name="program")


def _answer_program(node: Node, sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        sock.settimeout(30)
        asked = json.loads(sock.makefile("rb").readline(16 << 20))
        environment = dict(asked["environment"])
        account = node.account(environment.get("USER", "")) or Account("nobody")
        called = commands.Called(
            asked["program"],
            tuple(asked["arguments"]),
            account,
            Path(asked["directory"]),
            environment,
            lambda: asked["stdin"].encode(),
        )
        printed = simulate(node, called)
        if isinstance(printed, commands.Printed):
            answer = {"status": printed.status, "out": printed.out, "err": printed.err}
            sock.sendall(json.dumps(answer).encode())
        elif not isinstance(printed, Disconnected):
            node.stopping.wait(3600)


# The command -------------------------------------------------------------------------------------------------


def main_serve(
    *,
    port: int = 0,
    host_key: Path | None = None,
    authorized_keys: Path | None = None,
    config: Path | None = None,
    execute: str | None = None,
    faults: Path | None = None,
    directory: Path | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM.

    The first line on standard output is the address, ``ssh://127.0.0.1:PORT``. The lines after it are words with
    their values, ``host-key: …``, ``key: …`` (if one was made), ``accounts: …``, ``directory: …``,
    ``destinations: …``, and ``ready``.

    Raises:
        ConfigError, OSError, ValueError: Before anything was started, naming what is wrong.
    """
    site = load(config) if config else NodeConfig()
    if execute:
        site = evolve(site, execute=execute)
    rules, seed = load_faults(faults) if faults else ([], 0)
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with serve(
            site,
            port=port,
            host_key=host_key,
            authorized_keys=authorized_keys,
            directory=directory,
            faults=rules,
            seed=seed,
        ) as running:
            sys.stdout.write(announcement(running))
            sys.stdout.flush()
            stop.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def announcement(running: Running) -> str:
    """What `main_serve` prints."""
    lines = [
        f"ssh://{running.host}:{running.port}",
        f"host-key: {running.host_key}",
        *([f"key: {running.key_file}"] if running.key_file else []),
        f"accounts: {' '.join(account.name for account in running.config.everybody())}",
        f"directory: {running.directory}",
        f"destinations: {' '.join(running.destinations)}",
        "ready",
    ]
    return "".join(line + "\n" for line in lines)
