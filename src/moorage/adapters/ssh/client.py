"""
Commands and files on a login node, over a connection of its own for each account.

paramiko works in threads; the rest of the package does not. Every call therefore runs in a thread of a pool, has a
deadline, and is ended from outside by closing what it waits on. Commands are lists of words that become literals of
the account's shell; no value of a person is ever among them.

Source: paramiko 3.5 to 5.1; reference of measurements: a socket of our own with TCP_NODELAY is 24 times faster.
"""

import asyncio
import contextlib
import logging
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import paramiko
from attrs import define, field, frozen
from paramiko.ssh_exception import AuthenticationException, ChannelException, SSHException

from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Malformed, Overloaded, PortError, Refused, Unanswered, Unauthorised, Unreachable

from .hosts import Hosts, LoginConfig, refuse_expired
from .translate import shell_line

ANSWER_LIMIT = 32 << 20
"""Bytes of one answer; ten thousand jobs of squeue are 2 MB."""

ERROR_LIMIT = 16_384
CONNECTS_PER_HOST = 4
"""At the same time, of this process. sshd drops some of ten that are not logged in yet (MaxStartups)."""

CHANNELS = 6
"""Of one connection at once. sshd's MaxSessions is 10, and one of ours is for files."""

IDLE_S = 300.0
"""A connection that nobody used for so long is closed with the next call of anybody."""

SHARE = 0.8
"""Of a deadline of ours that a call may take: the caller's own is not to come first, for it says less."""

UNACKNOWLEDGED_MS = 20_000
"""After this time without an acknowledgement the kernel ends a connection. Linux, tcp(7): TCP_USER_TIMEOUT."""

CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
"""The first is the fastest in paramiko; what it would also agree to (CBC, 3DES) is not taken."""

AHEAD = 262_144
"""Bytes that are read at once; eight packets of a download."""

Result = TypeVar("Result")

# paramiko logs with tracebacks what we raise as errors of the port.
_QUIET = logging.getLogger("moorage.adapters.ssh.paramiko")
_QUIET.setLevel(logging.CRITICAL)


@frozen
class Answer:
    """What a command printed, and its status; a signal that ended it is a status above 128."""

    status: int
    out: str
    err: str


@define(eq=False)
class Call:
    """What a call in a thread waits on, so that whoever gives it up can end it. Thread-safe."""

    begun: bool = False
    """Something was sent that may have an effect."""
    _closers: list[Callable[[], object]] = field(init=False, factory=list)
    _ended: bool = field(init=False, default=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def holds(self, close: Callable[[], object]) -> None:
        with self._lock:
            if not self._ended:
                self._closers.append(close)
                return
        close()

    def end(self) -> None:
        with self._lock:
            self._ended, closers = True, self._closers
            self._closers = []
        for close in closers:
            with contextlib.suppress(OSError, EOFError, SSHException):
                close()


@define(eq=False)
class Connection:
    """An authenticated transport, those it goes through, and a file channel on it once it is needed."""

    transport: Any
    through: tuple[Any, ...]
    used_at: float
    files: Any = None
    lock: threading.Lock = field(factory=threading.Lock)

    @property
    def alive(self) -> bool:
        return bool(self.transport.is_active() and self.transport.is_authenticated())

    def close(self) -> None:
        for transport in (self.transport, *reversed(self.through)):
            transport.close()


@define(eq=False)
class Login:
    """
    One account on the login nodes of one system. Holds at most one connection, made when needed.

    Args:
        name: Of the system, for messages.
        key_file: Private key of this account; `None` takes the keys of the agent.
    """

    name: str
    config: LoginConfig
    account: str
    key_file: str | None
    timeouts: Timeouts
    threads: ThreadPoolExecutor
    seed: int = 0
    connection: Connection | None = field(init=False, default=None)
    hosts: Hosts = field(init=False)
    _turn: asyncio.Lock = field(init=False, factory=asyncio.Lock)
    _channels: asyncio.Semaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.hosts = Hosts(self.config.nodes, random.Random(self.seed))  # noqa: S311 (jitter)
        self._channels = asyncio.Semaphore(CHANNELS)

    async def run(
        self, command: Sequence[str], *, stdin: bytes = b"", deadline_s: float | None = None, limit: int = ANSWER_LIMIT
    ) -> Answer:
        """
        Run a command and wait for its end.

        Raises:
            Unreachable, Overloaded, Unauthorised, Refused: It was not started.
            Unanswered: It may have run: the connection was lost or the deadline passed.
            Malformed: It printed more than `limit` bytes.
        """
        seconds = SHARE * (self.timeouts.call_s if deadline_s is None else deadline_s)
        line = shell_line(command)
        program = next((word for word in command if "=" not in word and word not in ("env", "-u")), "a command")
        async with self._channels:
            connection = await self._connected()
            return await self._in_thread(
                lambda call: _execute(connection.transport, line, stdin, limit, seconds, call), seconds, program
            )

    async def files(self, work: Callable[[Any], Result], what: str, deadline_s: float | None = None) -> Result:
        """
        Do something with an SFTP client; only `OSError` of the far side comes through.

        Raises:
            Unreachable, Overloaded, Unauthorised, Refused: Nothing was done.
            Unanswered: It may have been done in part.
        """
        seconds = SHARE * (self.timeouts.call_s if deadline_s is None else deadline_s)
        async with self._channels:
            connection = await self._connected()
            return await self._in_thread(lambda call: _with_files(connection, work, seconds, call), seconds, what)

    async def close(self) -> None:
        """Close the connection; running calls end as unanswered."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await asyncio.get_running_loop().run_in_executor(self.threads, connection.close)

    def close_if_idle(self, now: float) -> None:
        """Called by others' calls, so that a thousand accounts do not keep a thousand connections."""
        connection = self.connection
        if connection is not None and now - connection.used_at > IDLE_S and not self._channels.locked():
            self.connection = None
            self.threads.submit(connection.close)

    # Connecting

    async def _connected(self) -> Connection:
        async with self._turn:
            if self.connection is not None and self.connection.alive:
                self.connection.used_at = time.monotonic()
                return self.connection
            if self.connection is not None:
                await self.close()
            self.connection = await self._connect()
            return self.connection

    async def _connect(self) -> Connection:
        """Try the login nodes that are due, in order; the last error if none lets us in."""
        now = time.monotonic()
        if why := self.hosts.closed(now):
            raise Unauthorised(f"{self.name}: no login before the pause is over; {why}")
        refuse_expired(self.config, time.time())
        last: PortError = Unreachable(f"{self.name}: all login nodes failed a moment ago")
        for host in self.hosts.due(now):
            try:
                connection = await self._in_thread(
                    lambda call, host=host: _open(self, host, call),  # type: ignore[misc]
                    2 * self.timeouts.connect_s,
                    f"logging in at {host}",
                )
            except Unauthorised as error:
                # One key that is not accepted is one failed login, not one on each node (T24).
                for each in self.config.nodes:
                    self.hosts.unauthorised(each, time.monotonic(), self.timeouts.auth_pause_s, error.note)
                raise
            except Unanswered as error:
                last = Unreachable(error.note)
                self.hosts.failed(host, time.monotonic(), error.note)
            except PortError as error:
                last = error
                self.hosts.failed(host, time.monotonic(), error.note)
            else:
                self.hosts.good(host)
                return connection
        raise last

    # Threads

    async def _in_thread(self, work: Callable[[Call], Result], seconds: float, what: str) -> Result:
        """Run in a thread; when the deadline passes or the caller gives up, the call is ended from here."""
        call, began = Call(), time.monotonic()
        future = asyncio.get_running_loop().run_in_executor(self.threads, work, call)
        try:
            # The thread keeps to the deadline itself; this is for one that hangs where it cannot be told.
            done, _ = await asyncio.wait([future], timeout=seconds + 1)
            if done:
                return future.result()
        except SSHException as error:
            raise self._lost(call, what, str(error)) from error
        except EOFError as error:
            raise self._lost(call, what, "the connection ended") from error
        except TimeoutError as error:
            self._suspect()
            raise self._lost(call, what, "no answer in time") from error
        except asyncio.CancelledError:
            # A caller that has lost patience tells as much about the connection as a deadline.
            if time.monotonic() - began > seconds / 2:
                self._suspect()
            raise
        finally:
            if not future.done():
                future.add_done_callback(lambda done: done.cancelled() or done.exception())
                call.end()
        self._suspect()
        raise self._lost(call, what, "no answer in time")

    def _lost(self, call: Call, what: str, why: str) -> PortError:
        note = f"{self.name}: {what}: {why[:200]}"
        return Unanswered(note) if call.begun else Unreachable(note)

    def _suspect(self) -> None:
        """A connection on which something was not answered in time is not used again."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self.threads.submit(connection.close)


# In threads --------------------------------------------------------------------------------------------------


def _execute(transport: Any, line: str, stdin: bytes, limit: int, seconds: float, call: Call) -> Answer:
    until = time.monotonic() + seconds
    channel = _channel(transport, seconds)
    call.holds(channel.close)
    with contextlib.closing(channel):
        watchdog = threading.Timer(seconds, channel.close)  # `exec_command` waits without a limit of its own
        watchdog.daemon = True
        watchdog.start()
        try:
            call.begun = True
            channel.exec_command(line)
            if stdin:
                channel.settimeout(seconds)
                channel.sendall(stdin)
            channel.shutdown_write()
            out, err = _read(channel, limit, until)
        except OSError as error:
            if time.monotonic() >= until:
                raise TimeoutError from error
            raise EOFError from error
        finally:
            watchdog.cancel()
        if not channel.status_event.wait(max(0.0, until - time.monotonic())) or channel.exit_status < 0:
            if time.monotonic() >= until:
                raise TimeoutError
            raise EOFError
        return Answer(channel.exit_status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


def _channel(transport: Any, seconds: float) -> Any:
    try:
        return transport.open_session(timeout=seconds)
    except ChannelException as error:
        raise Overloaded(f"the login node opens no more sessions on this connection: {error}") from error
    except SSHException as error:
        # paramiko says it in no other way. Nothing moves on this connection, so it is not to be used again.
        if "Timeout" in str(error):
            raise TimeoutError from error
        raise
    except OSError as error:
        raise EOFError from error


def _read(channel: Any, limit: int, until: float) -> tuple[bytes, bytes]:
    out, err = bytearray(), bytearray()
    while True:
        # Errors are read between pieces of the output, or after it: they are short, and bounded by the window.
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(65_536)
        del err[ERROR_LIMIT:]
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        channel.settimeout(min(left, 0.5))
        try:
            piece = channel.recv(65_536)
        except TimeoutError:
            continue
        if not piece:
            break
        out += piece
        if len(out) > limit:
            raise Malformed(f"a command printed more than {limit} bytes")
    while piece := channel.recv_stderr(65_536):
        err += piece
        del err[ERROR_LIMIT:]
    return bytes(out), bytes(err)


def _with_files(connection: Connection, work: Callable[[Any], Result], seconds: float, call: Call) -> Result:
    # paramiko's SFTP client mixes up the answers of two threads.
    if not connection.lock.acquire(timeout=seconds):
        raise TimeoutError
    try:
        if connection.files is None or connection.files.get_channel().closed:
            channel = _channel(connection.transport, seconds)
            call.holds(channel.close)
            channel.settimeout(seconds)
            channel.invoke_subsystem("sftp")
            connection.files = paramiko.SFTPClient(channel)
        channel = connection.files.get_channel()
        channel.settimeout(seconds)
        call.holds(channel.close)
        call.begun = True
        return work(connection.files)
    except TimeoutError:
        raise
    except OSError as error:
        # What the far side says about a file passes; the end of the connection is something else.
        if connection.alive and not (connection.files and connection.files.get_channel().closed):
            raise
        raise EOFError from error
    finally:
        connection.lock.release()


def _open(login: Login, host: str, call: Call) -> Connection:
    """Connect, through the jump hosts, and log in."""
    config, seconds = login.config, login.timeouts.connect_s
    hops = [(jump.host, jump.port, jump.user or login.account) for jump in config.jump]
    hops.append((host, config.port, login.account))
    opened: list[Any] = []
    try:
        with _place(f"{hops[0][0]}:{hops[0][1]}", seconds):
            for hop_host, port, user in hops:
                sock = _socket(hop_host, port, opened, seconds)
                opened.append(_transport(login, sock, hop_host, user, call))
    except BaseException:
        for transport in reversed(opened):
            transport.close()
        raise
    return Connection(opened[-1], tuple(opened[:-1]), time.monotonic())


def _socket(host: str, port: int, opened: Sequence[Any], seconds: float) -> Any:
    if opened:
        return opened[-1].open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=seconds)
    try:
        made = socket.create_connection((host, port), timeout=seconds)
    except OSError as error:
        raise Unreachable(f"{host}:{port} cannot be reached: {error.strerror or error}") from error
    sock = ReadingAhead(made.family, made.type, made.proto, made.detach())
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    return sock


class ReadingAhead(socket.socket):
    """
    Takes what is there and hands it out in the sizes that it is asked for.

    paramiko reads a packet in two pieces at least, and each is two system calls with a turn for the other threads.
    """

    _data, _at = b"", 0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        if self._at == len(self._data):
            self._data, self._at = super().recv(max(size, AHEAD), flags), 0
        piece = self._data[self._at : self._at + size]
        self._at += len(piece)
        if self._at == len(self._data):
            self._data, self._at = b"", 0
        return piece


def _transport(login: Login, sock: Any, host: str, user: str, call: Call) -> Any:
    """An authenticated transport over a socket, to a host that has shown a pinned key."""
    pinned = login.config.keys_of(host)
    seconds = login.timeouts.connect_s
    try:
        transport = paramiko.Transport(sock, strict_kex=True)
    except BaseException:
        sock.close()
        raise
    call.holds(transport.close)
    transport.set_log_channel(_QUIET.name)
    transport.banner_timeout = transport.handshake_timeout = transport.auth_timeout = seconds
    try:
        algorithms = _algorithms(pinned, transport.get_security_options().key_types)
        if not algorithms:
            raise Refused(f"no host key of a kind that can be used is configured for {host}")
        transport.get_security_options().key_types = algorithms
        known = transport.get_security_options().ciphers
        transport.get_security_options().ciphers = [name for name in CIPHERS if name in known]
        _shake_hands(transport, host, seconds)
        shown = transport.get_remote_server_key()
        if (shown.get_name(), shown.get_base64()) not in pinned:
            raise Refused(
                f"{host} shows a host key that is not configured ({shown.fingerprint}); nothing was sent to it"
            )
        _authenticate(transport, login, host, user)
        # Its answers are not counted; but with something to acknowledge, the kernel notices a dead way.
        transport.set_keepalive(10)
    except BaseException:
        transport.close()
        raise
    return transport


def _shake_hands(transport: Any, host: str, seconds: float) -> None:
    try:
        transport.start_client(timeout=seconds)
        transport.get_remote_server_key()  # raises if the time passed before the handshake was through
    except SSHException as error:
        if "no acceptable host key" in str(error):
            raise Refused(f"{host} has no host key of a kind that is configured") from error
        raise Overloaded(f"{host} ended the handshake: {error}", retry_after_s=5.0) from error
    except (EOFError, OSError) as error:
        # sshd drops connections like this when too many begin at once, or as a penalty.
        raise Overloaded(f"{host} dropped the connection before the login", retry_after_s=5.0) from error


def _authenticate(transport: Any, login: Login, host: str, user: str) -> None:
    """One key file is one try; an agent's keys are tried in turn on the same connection."""
    refused: AuthenticationException | None = None
    with _keys(login) as keys:
        for key in keys:
            try:
                if not transport.auth_publickey(user, key):
                    return
                raise Unauthorised(f"{host} wants more than a key from {user}")
            except AuthenticationException as error:
                refused = error
            except (SSHException, EOFError, OSError) as error:
                raise Overloaded(f"{host} ended the login of {user}: {error}", retry_after_s=5.0) from error
    if refused is None:
        raise Unauthorised(f"the agent has no key for {user} at {host}")
    raise Unauthorised(f"{host} does not accept the key of {user}") from refused


@contextlib.contextmanager
def _keys(login: Login) -> Iterator[Sequence[Any]]:
    """The keys of the account; those of an agent sign as long as the context lasts."""
    if login.key_file is None:
        agent = paramiko.Agent()
        try:
            yield agent.get_keys()
        finally:
            agent.close()
        return
    try:
        key = paramiko.PKey.from_path(login.key_file)
        if login.config.certificate_file:
            key.load_certificate(login.config.certificate_file)
    except (OSError, SSHException, ValueError, TypeError, paramiko.pkey.UnknownKeyType) as error:
        raise Unauthorised(f"the key file of {login.account} cannot be read: {type(error).__name__}") from error
    yield (key,)


def _algorithms(pinned: Sequence[tuple[str, str]], known: Sequence[str]) -> tuple[str, ...]:
    """Signature algorithms for the pinned kinds of keys, in paramiko's order of preference."""
    kinds = {kind for kind, _ in pinned}
    if "ssh-rsa" in kinds:
        kinds = (kinds - {"ssh-rsa"}) | {"rsa-sha2-512", "rsa-sha2-256"}
    return tuple(name for name in known if name in kinds)


_places: Mapping[str, threading.BoundedSemaphore] = {}
_places_lock = threading.Lock()


@contextlib.contextmanager
def _place(host: str, seconds: float) -> Iterator[None]:
    """One of the few places for connecting to a host at the same time; shared by all systems of the process."""
    with _places_lock:
        assert isinstance(_places, dict)
        place = _places.setdefault(host, threading.BoundedSemaphore(CONNECTS_PER_HOST))
    if not place.acquire(timeout=seconds):
        raise Unreachable(f"{host}: too many connects are under way")
    try:
        yield
    finally:
        place.release()


# Files -------------------------------------------------------------------------------------------------------


def make_private_directory(files: Any, path: str) -> None:
    """Have a directory that nobody else can enter; again is harmless. Its parent has to exist."""
    try:
        files.mkdir(path, mode=0o700)
    except OSError:
        found = files.lstat(path)  # the reason why it could not be made, if it is not there
        if not stat.S_ISDIR(found.st_mode or 0):
            raise
        if (found.st_mode or 0) & 0o077:
            files.chmod(path, 0o700)


def put_new(files: Any, path: str, content: bytes, mode: int = 0o600) -> None:
    """Write a file that was not there before; its mode is right before the first byte is in it."""
    with files.open(path, "wxb") as file:
        file.chmod(mode)
        file.set_pipelined(True)
        file.write(content)


def read_tail(files: Any, path: str, limit: int) -> bytes | None:
    """The last bytes of a regular file; `None` if there is none. Links, pipes and directories are not files."""
    try:
        found = files.lstat(path)
        if not stat.S_ISREG(found.st_mode or 0):
            return None
        with files.open(path, "rb") as file:
            size = file.stat().st_size or 0
            file.seek(max(0, size - limit))
            content: bytes = file.read(min(limit, size))
            return content
    except FileNotFoundError:
        return None
