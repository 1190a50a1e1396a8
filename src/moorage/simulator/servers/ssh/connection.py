"""One connection to the simulated login node: login, channels, commands, forwards."""

import contextlib
import logging
import os
import shlex
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import paramiko
from attrs import define, field
from paramiko.common import (
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MSG_CHANNEL_REQUEST,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_CONNECT_FAILED,
    OPEN_FAILED_UNKNOWN_CHANNEL_TYPE,
    OPEN_SUCCEEDED,
    cMSG_CHANNEL_OPEN,
    cMSG_CHANNEL_OPEN_FAILURE,
    cMSG_CHANNEL_OPEN_SUCCESS,
)

from . import commands
from .cluster import MARKER, Cluster
from .config import Account, NodeConfig
from .faults import Faults, Rule
from .files import Files

# paramiko logs every connection that ends early with a traceback; here they are ordinary.
_QUIET = logging.getLogger("moorage.simulator.ssh")
_QUIET.setLevel(logging.CRITICAL)

_PIECE = 65_536
_FORWARDS = ("direct-tcpip", "direct-streamlocal@openssh.com")
_CONNECT_S = 5.0
"""For connecting to a node; compute networks are near."""


@define(eq=False)
class Node:
    """
    What all connections of a server share.

    Args:
        keys: Authorized keys by account, each as type and base64 text.
        homes: One directory per account.
        environment: Of commands, without what depends on the account.
        spawned: Called with each thread, for the server to wait for at its end.
    """

    config: NodeConfig
    cluster: Cluster
    faults: Faults
    keys: Mapping[str, frozenset[tuple[str, str]]]
    homes: Path
    environment: Mapping[str, str]
    threads: "set[threading.Thread]" = field(factory=set)
    stopping: threading.Event = field(factory=threading.Event)
    counted: dict[str, int] = field(factory=dict)
    """How often things happened: connections, logins, refused logins, commands by name, forwards."""
    denied: Callable[[str], None] = field(default=lambda address: None)
    connected: "set[Any]" = field(factory=set)
    """Transports that are up."""
    _lock: threading.Lock = field(factory=threading.Lock)

    def count(self, what: str) -> None:
        with self._lock:
            self.counted[what] = self.counted.get(what, 0) + 1

    def spawn(self, work: Callable[..., None], *arguments: Any, name: str) -> None:
        """Run in a thread that the server waits for."""

        def run() -> None:
            try:
                work(*arguments)
            finally:
                with self._lock:
                    self.threads.discard(threading.current_thread())

        thread = threading.Thread(target=run, name=f"sim-ssh {name}", daemon=True)
        with self._lock:
            self.threads.add(thread)
        thread.start()

    def drop_connections(self) -> None:
        """End every connection at once; the listener stays."""
        for transport in list(self.connected):
            transport.close()

    def account(self, name: str) -> Account | None:
        return next((each for each in self.config.everybody() if each.name == name), None)

    def environment_of(self, account: Account) -> dict[str, str]:
        return {
            **self.environment,
            "HOME": str(self.homes / account.name),
            "USER": account.name,
            "LOGNAME": account.name,
        }

    def address_of(self, host: str) -> str:
        """Names of compute nodes are this machine, and so is its own name."""
        prefix, count = self.config.nodes.prefix, self.config.nodes.count
        number = host.removeprefix(prefix)
        is_node = host.startswith(prefix) and number.isdecimal() and 1 <= int(number) <= count
        own = (socket.gethostname(), socket.gethostname().split(".")[0], "localhost")
        return "127.0.0.1" if is_node or host in own else host


class Server(paramiko.ServerInterface):  # type: ignore[misc]  # paramiko has no types
    """What sshd decides about one connection."""

    def __init__(self, node: Node, address: str) -> None:
        self.node = node
        self.address = address
        self.account: Account | None = None
        self.transport: Any = None
        self.tries = 0
        self.sessions: list[Any] = []

    def home(self) -> Path:
        assert self.account is not None
        return self.node.homes / self.account.name

    # Login

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        node = self.node
        account = node.account(username)
        good = (key.get_name(), key.get_base64()) in node.keys.get(username, frozenset())
        if account is None or not good or node.faults.draw("login"):
            self.tries += 1
            node.count("refused logins")
            node.denied(self.address)
            if self.tries >= node.config.limits.auth_tries:
                self.transport.close()
            return int(AUTH_FAILED)
        self.account = account
        return int(AUTH_SUCCESSFUL)

    # Channels

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return int(OPEN_FAILED_UNKNOWN_CHANNEL_TYPE)
        faults = self.node.faults.draw("session")
        if any(rule.do == "unasked" for rule in faults):
            self.node.spawn(_ask_unasked, self.transport, name="unasked")
        self.sessions = [number for number in self.sessions if number in self.transport.open_channels()]
        if len(self.sessions) >= self.node.config.limits.sessions or any(rule.do == "refuse" for rule in faults):
            # MaxSessions: sshd says "open failed" with this reason (serverloop.c).
            return int(OPEN_FAILED_CONNECT_FAILED)
        self.sessions.append(chanid)
        return int(OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        line = command.decode("utf-8", "surrogateescape")
        self.transport.soon(lambda: self.node.spawn(self._run, channel, line, name="exec"))
        return True

    def check_channel_shell_request(self, channel: Any) -> bool:
        self.transport.soon(lambda: self.node.spawn(self._run, channel, "exec /bin/sh", name="shell"))
        return True

    def check_channel_pty_request(self, *_arguments: Any) -> bool:
        return False

    def _run(self, channel: Any, line: str) -> None:
        assert self.account is not None
        try:
            run_line(self.node, self.account, channel, line)
        except (OSError, EOFError, paramiko.SSHException):
            pass  # the client has gone
        finally:
            close_quietly(channel)


def close_quietly(channel: Any) -> None:
    """Close a channel whose connection may have gone."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        channel.close()


class Transport(paramiko.Transport):  # type: ignore[misc]  # paramiko has no types
    """paramiko's server side, with forwards that are opened beside the connection's thread."""

    def __init__(self, sock: Any, node: Node) -> None:
        super().__init__(sock)
        self.set_log_channel(_QUIET.name)
        self.node = node
        self._soon: list[Callable[[], None]] = []
        # What a request starts begins after its answer was sent, or its output would come first.
        self._channel_handler_table = {
            **paramiko.Transport._channel_handler_table,
            MSG_CHANNEL_REQUEST: self._on_request,
        }

    def soon(self, work: Callable[[], None]) -> None:
        self._soon.append(work)

    def open_channels(self) -> set[int]:
        return {channel.chanid for channel in self._channels.values() if not channel.closed}

    def _on_request(self, channel: Any, message: Any) -> None:
        channel._handle_request(message)
        works, self._soon = self._soon, []
        for work in works:
            work()

    def _parse_channel_open(self, message: Any) -> None:
        kind = message.get_text()
        if kind not in _FORWARDS:
            message.rewind()
            super()._parse_channel_open(message)
            return
        chanid, window, packet = message.get_int(), message.get_int(), message.get_int()
        host = message.get_text()
        port = message.get_int() if kind == "direct-tcpip" else 0
        if not self.is_authenticated():
            self.close()
            return
        self.node.spawn(self._forward, chanid, window, packet, host, port, name="forward")

    def _forward(self, chanid: int, window: int, packet: int, host: str, port: int) -> None:
        """Connect, answer, and move bytes until both directions have ended. `host` is a path if `port` is 0."""
        node = self.node
        node.count("forwards")
        faults = {rule.do for rule in node.faults.draw("forward")}
        sock = None
        if not node.config.forwards or "forbid" in faults:
            self._refuse(chanid, OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED, "open failed")
            return
        try:
            if "refuse" in faults:
                raise ConnectionRefusedError
            sock = _connect(node.address_of(host) if port else host, port)
        except (OSError, UnicodeError):
            self._refuse(chanid, OPEN_FAILED_CONNECT_FAILED, "Connection refused")
            return
        with sock:
            try:
                channel = self._accept(chanid, window, packet)
            except (OSError, EOFError, paramiko.SSHException):
                return
            if "close" not in faults:
                back = threading.Thread(target=_pump_back, args=(sock, channel), name="sim-ssh back", daemon=True)
                back.start()
                _pump_there(channel, sock)
                back.join()
            close_quietly(channel)

    def _accept(self, chanid: int, window: int, packet: int) -> Any:
        """The same that paramiko does for a channel it accepts. Source: paramiko 5.1, `_parse_channel_open`."""
        with self.lock:
            mine = self._next_channel()
            channel = paramiko.Channel(mine)
            self._channels.put(mine, channel)
            self.channels_seen[mine] = True
            channel._set_transport(self)
            channel._set_window(self.default_window_size, self.default_max_packet_size)
            channel._set_remote_channel(chanid, window, packet)
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN_SUCCESS)
        for number in (chanid, mine, self.default_window_size, self.default_max_packet_size):
            message.add_int(number)
        self._send_user_message(message)
        return channel

    def _refuse(self, chanid: int, reason: int, text: str) -> None:
        message = paramiko.Message()
        message.add_byte(cMSG_CHANNEL_OPEN_FAILURE)
        message.add_int(chanid)
        message.add_int(reason)
        message.add_string(text)
        message.add_string("")
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            self._send_user_message(message)


def _connect(host: str, port: int) -> socket.socket:
    if port:
        sock = socket.create_connection((host, port), timeout=_CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(_CONNECT_S)
        try:
            sock.connect(host)
        except BaseException:
            sock.close()
            raise
    sock.settimeout(None)
    return sock


def _pump_there(channel: Any, sock: socket.socket) -> None:
    """From the client to the node; the end of one direction leaves the other open."""
    try:
        while data := channel.recv(_PIECE):
            sock.sendall(data)
        # A connection that died is no end of a direction.
        sock.shutdown(socket.SHUT_WR if channel.transport.is_active() and not channel.closed else socket.SHUT_RDWR)
    except (OSError, EOFError):
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _pump_back(sock: socket.socket, channel: Any) -> None:
    try:
        while data := sock.recv(_PIECE):
            channel.sendall(data)
        channel.shutdown_write()
    except (OSError, EOFError, paramiko.SSHException):
        close_quietly(channel)


# Commands ----------------------------------------------------------------------------------------------------


def run_line(node: Node, account: Account, channel: Any, line: str) -> None:
    """Run what a client asked for, with exit status, and close nothing."""
    if node.config.greeting:
        channel.sendall(node.config.greeting.encode())
    words = _literal_words(line)
    if words is not None:
        environment = node.environment_of(account)
        rest = _apply_env(words, environment)
        program = commands.program_of(rest[0]) if rest else None
        if program is not None:
            called = commands.Called(
                program, tuple(rest[1:]), account, node.homes / account.name, environment, lambda: _all_of(channel)
            )
            _run_simulated(node, called, channel)
            return
    node.count("exec")
    if not any(rule.do == "hang" for rule in node.faults.draw("exec")):
        _run_real(node, account, channel, line)
    else:
        _hang(node, channel)


def _literal_words(line: str) -> list[str] | None:
    """The words of a line in which the shell would have nothing to do; `None` if it has."""
    try:
        words = shlex.split(line)
    except ValueError:
        return None
    return words if words and " ".join(map(shlex.quote, words)) == line.strip() else None


def _apply_env(words: list[str], environment: dict[str, str]) -> list[str]:
    """Take ``env -u NAME NAME=VALUE`` off the front, as env(1) does."""
    if words[:1] != ["env"]:
        return words
    words = words[1:]
    while words:
        if words[0] == "-u" and len(words) > 1:
            environment.pop(words[1], None)
            words = words[2:]
        elif "=" in words[0] and not words[0].startswith("-"):
            name, _, value = words[0].partition("=")
            environment[name] = value
            words = words[1:]
        else:
            break
    return words


def _run_simulated(node: Node, called: commands.Called, channel: Any) -> None:
    printed = simulate(node, called)
    if printed is None:
        _hang(node, channel)
        return
    if isinstance(printed, Disconnected):
        channel.transport.close()
        return
    _send(channel, printed)


class Disconnected:
    """Instead of an answer the connection ends."""


def simulate(node: Node, called: commands.Called) -> "commands.Printed | Disconnected | None":
    """A Slurm command with the faults that are in force; `None` if it never answers."""
    node.count(called.program)
    rules = node.faults.draw(called.program)
    for rule in rules:
        if rule.do == "hang":
            return None
        if rule.do == "delay":
            node.stopping.wait(rule.delay_s)
        if rule.do == "disconnect":
            return Disconnected()
        if rule.do == "fail":
            return commands.Printed(rule.status, err=rule.text + "\n")
        if rule.do == "pretend":
            return commands.Printed()
    printed = commands.run(node.cluster, _changed(called, rules))
    for rule in rules:
        if rule.do == "disconnect-after":
            return Disconnected()
        printed = _spoiled(rule, printed)
    return printed


def _changed(called: commands.Called, rules: Iterable[Rule]) -> commands.Called:
    arguments, hidden = list(called.arguments), called.hide_younger_s
    for rule in rules:
        if rule.do == "columns":
            arguments = [word for word in arguments if not word.startswith("--format")]
        if rule.do in ("late", "forget"):
            hidden = max(hidden, rule.delay_s if rule.do == "late" else 1e9)
    return commands.Called(
        *(called.program, tuple(arguments), called.account, called.directory, called.environment, called.stdin, hidden)
    )


def _spoiled(rule: Rule, printed: commands.Printed) -> commands.Printed:
    match rule.do:
        case "fail-after":
            return commands.Printed(rule.status, err=rule.text + "\n")
        case "silent":
            return commands.Printed(printed.status)
        case "print":
            return commands.Printed(printed.status, f"{rule.text}\n{printed.out}", printed.err)
        case "cut":
            return commands.Printed(printed.status, printed.out[: len(printed.out) // 2], printed.err)
        case _:
            return printed


def _send(channel: Any, printed: commands.Printed) -> None:
    channel.sendall(printed.out.encode("utf-8", "surrogateescape"))
    channel.sendall_stderr(printed.err.encode("utf-8", "surrogateescape"))
    channel.send_exit_status(printed.status)


def _all_of(channel: Any, most: int = 4 << 20) -> bytes:
    text = b""
    while len(text) < most and (piece := channel.recv(_PIECE)):
        text += piece
    return text


def _hang(node: Node, channel: Any) -> None:
    while not node.stopping.wait(0.05) and channel.transport.is_active() and not channel.closed:
        pass


def _run_real(node: Node, account: Account, channel: Any, line: str) -> None:
    home = node.homes / account.name
    environment = node.environment_of(account) | {MARKER: f"{node.cluster.marker}-exec-"}
    with subprocess.Popen(  # noqa: S603 (running what is asked for is what a login node is for)
        ["/bin/sh", "-c", line],
        cwd=home,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        node.spawn(_feed, channel, process, name="stdin")
        errors = threading.Thread(target=_copy, args=(process.stderr, channel.sendall_stderr), daemon=True)
        errors.start()
        _copy(process.stdout, channel.sendall)
        errors.join()
        status = process.wait()
        channel.send_exit_status(128 - status if status < 0 else status)


def _feed(channel: Any, process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin
    with contextlib.suppress(OSError, ValueError, EOFError):
        while data := channel.recv(_PIECE):
            process.stdin.write(data)
            process.stdin.flush()
        process.stdin.close()


def _copy(pipe: Any, send: Callable[[bytes], None]) -> None:
    """Until the end of the pipe, also when the client has gone, so that the process is not held up."""
    gone = False
    with contextlib.suppress(ValueError):
        while data := os.read(pipe.fileno(), _PIECE):
            if not gone:
                try:
                    send(data)
                except (OSError, EOFError):
                    gone = True


def _ask_unasked(transport: Any) -> None:
    """F-T17: what a hostile server may send to a client."""
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        transport.global_request("hostkeys-00@openssh.com", wait=False)
        transport.global_request("tcpip-forward", ("127.0.0.1", 1), wait=False)
        for number, kind in enumerate(("forwarded-tcpip", "auth-agent@openssh.com", "x11", "session")):
            message = paramiko.Message()
            message.add_byte(cMSG_CHANNEL_OPEN)
            message.add_string(kind)
            for value in (900 + number, 2 << 20, 32_768):
                message.add_int(value)
            for host, port in (("127.0.0.1", 1), ("127.0.0.1", 2)):
                message.add_string(host)
                message.add_int(port)
            transport._send_user_message(message)


# The socket under a connection -------------------------------------------------------------------------------


class FaultySocket:
    """A socket under paramiko that stalls, cuts or slows what the server sends, as the rules for streams say."""

    def __init__(self, sock: socket.socket, node: Node) -> None:
        self._sock = sock
        self._node = node
        self._sent = 0

    def send(self, data: bytes) -> int:
        for rule in self._node.faults.in_force("stream"):
            if rule.do == "slow":
                data = data[: max(1, int(rule.bytes_per_s / 20))]
                self._node.stopping.wait(len(data) / rule.bytes_per_s)
            elif self._sent + len(data) > rule.after_bytes:
                self._node.faults.count(rule)
                if rule.do == "cut-stream":
                    with contextlib.suppress(OSError):
                        self._sock.send(data[: max(0, rule.after_bytes - self._sent)])
                        self._sock.shutdown(socket.SHUT_RDWR)
                    raise EOFError
                self._stall(rule)
        count = self._sock.send(data)
        self._sent += count
        return count

    def _stall(self, rule: Rule) -> None:
        """Neither a byte nor an end, until the server stops, the other side leaves or the rules are cleared."""
        while not self._node.stopping.wait(0.02):
            if not self._node.faults.holds(rule):
                return
            if self._sock.fileno() < 0:
                raise EOFError

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def serve_connection(node: Node, sock: socket.socket, address: str, host_key: Any, begun: Callable[[], None]) -> None:
    """
    One connection from its banner to its end.

    Args:
        begun: Called when the login is over, well or not: then it no longer counts against MaxStartups.
    """
    faults = {rule.do for rule in node.faults.draw("connect")}
    server, largest = Server(node, address), node.config.largest_file
    transport = None
    try:
        if "refuse" in faults:
            return
        if "drop" in faults:
            sock.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
            return
        transport = server.transport = Transport(FaultySocket(sock, node), node)
        node.connected.add(transport)
        transport.local_version = "SSH-2.0-OpenSSH_9.2p1_simulated"
        transport.add_server_key(_other_key() if "other-key" in faults else host_key)
        transport.set_subsystem_handler("sftp", paramiko.SFTPServer, Files, server.home, node.faults, largest)
        transport.start_server(server=server, event=threading.Event())
        if not _logged_in(node, transport):
            return
        node.count("logins")
        begun()
        # paramiko closes a channel that nobody refers to.
        channels: list[Any] = []
        while transport.is_active() and not node.stopping.is_set():
            opened = transport.accept(0.5)
            channels = [each for each in (*channels, opened) if each is not None and not each.closed]
    except (OSError, EOFError, paramiko.SSHException):
        pass  # the client has gone, or speaks no SSH
    finally:
        begun()
        if transport is not None:
            node.connected.discard(transport)
            transport.close()
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def _logged_in(node: Node, transport: Any) -> bool:
    until = time.monotonic() + node.config.limits.login_grace_s
    while transport.is_active() and time.monotonic() < until and not node.stopping.is_set():
        if transport.is_authenticated():
            return True
        time.sleep(0.002)
    return False


def _other_key() -> Any:
    return paramiko.ECDSAKey.generate()
