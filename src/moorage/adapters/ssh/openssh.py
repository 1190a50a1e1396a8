"""
The way in by OpenSSH: masters that stay, and a forward for each endpoint, added over their control sockets.

A master is `ssh -N` with a configuration that is generated of checked values and nothing else: no user's or system's
file is read, host keys are those of the configuration, and what the far side asks for (agent, X11, remote forwards)
is off. It notices a dead connection itself (5 s, three misses) and ends; its end is the event that we wait for.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import sys
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from attrs import define, field

from moorage.core.model import Endpoint, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Overloaded, PortError, Refused, Unauthorised, Unreachable
from moorage.ports.system import Handle

from . import mux
from .hosts import Hosts, LoginConfig, destination
from .plugin import OpensshConfig

_log = logging.getLogger(__name__)

CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
"""The first is 1.7 times as fast as the default; the others for servers that do not have it."""

IDLE_S = 60.0
"""A forward that no stream uses goes after this time; probes come more often than that."""

# Dies with its parent, so that a killed relay leaves no connection behind. Linux, prctl(2): PR_SET_PDEATHSIG.
_STAGE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


class OpensshDialer:
    """
    Streams through login nodes.

    Args:
        directory: Ours alone (0700): configuration, known hosts and control sockets.
    """

    def __init__(
        self, system: SystemName, config: OpensshConfig, directory: Path, timeouts: Timeouts, seed: int
    ) -> None:
        self._system, self._config, self._directory, self._timeouts = system, config, directory, timeouts
        self._hosts = Hosts(config.nodes, Random(seed))  # noqa: S311 - order and jitter
        self._masters: list[_Master] = []
        self._turn = asyncio.Lock()
        self._number = 0
        self._prepared = False

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        host, port, path = destination(self._system, endpoint)
        about = f"{self._system}, job {job.job:.60}"
        try:
            async with asyncio.timeout(2 * self._timeouts.connect_s):
                place = (path, mux.STREAM_LOCAL) if path else (host, port)
                return await (await self._master(place)).stream(place)
        except _Never as error:
            raise Refused(f"{about}: the login node does not permit forwarding there") from error
        except mux.ChannelRefused as error:
            raise Unreachable(f"{about}: nobody listens there, or the login node cannot reach it") from error
        except (mux.MuxError, OSError) as error:
            raise Unreachable(f"{about}: {error}") from error
        except TimeoutError:
            raise Unreachable(f"{about}: no stream in {2 * self._timeouts.connect_s:g} s") from None

    async def close(self) -> None:
        masters, self._masters = self._masters, []
        for master in masters:
            await master.close()

    async def _master(self, place: "_Place") -> "_Master":
        """The one with a forward to `place`, or room for one; a new one if there is none. All share one connect."""
        if master := self._roomy(place):
            return master
        async with self._turn:
            if master := self._roomy(place):
                return master
            if not self._prepared:
                await self._prepare()
            for dead in [each for each in self._masters if not each.alive]:
                self._masters.remove(dead)
                await dead.close()
            master = await self._connect()
            self._masters.append(master)
            return master

    def _roomy(self, place: "_Place") -> "_Master | None":
        """Of several with room the fullest: the others can empty."""
        alive = [each for each in self._masters if each.alive]
        roomy = [each for each in alive if len(each.forwards) < self._config.forwards]
        with_forward = (each for each in alive if place in each.forwards)
        return next(with_forward, None) or max(roomy, key=lambda each: len(each.forwards), default=None)

    async def _prepare(self) -> None:
        """Write the files, and end masters of a relay that is no more."""
        for file in await asyncio.to_thread(lambda: list(self._directory.glob("m[0-9]*"))):
            await mux.terminate(file)
        await asyncio.to_thread(self._write_files)
        self._prepared = True

    def _write_files(self) -> None:
        for file in [*self._directory.glob("m[0-9]*"), *self._directory.glob("f[0-9]*")]:
            file.unlink(missing_ok=True)
        _write(self._directory / "known_hosts", self._config.known_hosts())
        _write(self._directory / "ssh_config", client_config(self._config, self._timeouts.connect_s))

    async def _connect(self) -> "_Master":
        """Try the login nodes that are due, in order."""
        now = asyncio.get_running_loop().time
        if why := self._hosts.closed(now()):
            raise Unauthorised(f"{self._system}: no login before the pause is over; {why}")
        last: PortError = Unreachable(f"{self._system}: all login nodes failed a moment ago")
        for node in self._hosts.due(now()):
            try:
                self._number += 1
                master = await _Master.start(
                    self._config.program, self._directory, self._number, node, self._timeouts.connect_s
                )
            except Unauthorised as error:
                # A key that one node does not accept is one failed login, not one on each of them.
                for each in self._config.nodes:
                    self._hosts.unauthorised(each, now(), self._timeouts.auth_pause_s, error.note)
                raise
            except PortError as error:
                _log.warning("%s: %s", self._system, error.note)
                self._hosts.failed(node, now(), error.note)
                last = error
            else:
                self._hosts.good(node)
                return master
        raise last


_Place = tuple[str, int]
"""Host and port, or the path of a socket and `STREAM_LOCAL`."""


class _Never(mux.ChannelRefused):
    """It is not permitted, and will not be."""


@define(eq=False)
class _Forward:
    """
    A unix socket of ours that leads to a place.

    Args:
        doubted: A stream ended without a byte: perhaps nobody listens there.
    """

    name: str
    ready: bool = False
    streams: int = 0
    doubted: bool = False
    turn: asyncio.Lock = field(factory=asyncio.Lock)
    idle: asyncio.TimerHandle | None = None


class _Master:
    """One connection to a login node, as a process."""

    def __init__(self, process: Process, file: Path, node: str) -> None:
        self.node = node
        self.forwards: dict[_Place, _Forward] = {}
        self._process, self._file = process, file
        self._control = mux.Control(file)
        self._told: deque[str] = deque(maxlen=50)
        self._refusals: deque[str] = deque(maxlen=50)
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    @classmethod
    async def start(cls, program: str, directory: Path, number: int, node: str, connect_s: float) -> "_Master":
        """
        A master that is logged in.

        Raises:
            Unauthorised: The login node does not accept our key.
            Refused: Its host key is not one of those in the configuration.
            Unreachable, Overloaded: No connection.
        """
        argv = [program, "-F", "ssh_config", "-N", "-M", "-S", f"m{number}", "--", node]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _STAGE, str(os.getpid()), *argv),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            cwd=directory,  # so that no path of ours has to be quoted, or fits into a socket's address
            env=_environment(),
            start_new_session=True,
        )
        master = cls(process, directory / f"m{number}", node)
        try:
            async with asyncio.timeout(2 * connect_s):
                await master._logged_in()
        except TimeoutError:
            await master.close()
            raise Unreachable(f"{node}: no login in {2 * connect_s:g} s") from None
        except BaseException:
            await master.close()
            raise
        return master

    async def stream(self, place: _Place) -> tuple[StreamReader, StreamWriter]:
        """
        A stream to a place. If nobody listens there it ends at once; the next one then finds out, and raises.

        Raises:
            ChannelRefused, MuxError: As `mux.try_channel`.
        """
        forward = self.forwards.get(place)
        if forward is None:
            self._count += 1
            forward = self.forwards[place] = _Forward(f"f{self._count}-{self._file.name}")
        forward.streams += 1
        if forward.idle is not None:
            forward.idle.cancel()
            forward.idle = None
        try:
            if forward.doubted and place[1] != mux.STREAM_LOCAL:
                await self._find_out(place)
                forward.doubted = False
            async with forward.turn:
                if not forward.ready:
                    await self._control.open_forward(forward.name, *place)
                    forward.ready = True
            made = mux.connect(self._file.parent / forward.name)
        except BaseException:
            self._left(place, forward, True)
            raise
        watched = _Watched(fileno=made.detach())
        watched.left = lambda heard: self._left(place, forward, not heard)
        return await asyncio.open_unix_connection(sock=watched)

    async def _find_out(self, place: _Place) -> None:
        self._refusals.clear()
        try:
            await mux.try_channel(self._file, *place)
        except mux.ChannelRefused as error:
            for _ in range(10):  # the reason comes on stderr, perhaps a little later
                if self._refusals:
                    break
                await asyncio.sleep(0.01)
            if self._refusals and all("prohibited" in line for line in self._refusals):
                raise _Never(str(error)) from error
            raise

    def _left(self, place: _Place, forward: _Forward, doubted: bool) -> None:
        """A stream has ended; the forward goes a while after its last one."""
        forward.streams -= 1
        forward.doubted = forward.doubted or doubted
        if not forward.streams and self.alive:
            loop = asyncio.get_running_loop()
            forward.idle = loop.call_later(IDLE_S, lambda: self._forget(place, forward))

    def _forget(self, place: _Place, forward: _Forward) -> None:
        if self.forwards.get(place) is forward:
            del self.forwards[place]
        task = asyncio.get_running_loop().create_task(self._remove(place, forward))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remove(self, place: _Place, forward: _Forward) -> None:
        if forward.ready and self.alive:
            with contextlib.suppress(mux.MuxError):
                await self._control.close_forward(forward.name, *place)
        (self._file.parent / forward.name).unlink(missing_ok=True)

    async def close(self) -> None:
        """End the process; its streams end with it."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(3):
                await self._process.wait()
        except TimeoutError:  # a stopped process takes no TERM
            self._process.kill()
            await self._process.wait()
        await self._listening
        for place, forward in list(self.forwards.items()):
            if forward.idle is not None:
                forward.idle.cancel()
            self._forget(place, forward)
        await asyncio.gather(*self._tasks)
        self._control.close()
        self._file.unlink(missing_ok=True)

    async def _logged_in(self) -> None:
        """Wait for the control socket: the master makes it after the login."""
        while True:
            if not self.alive:
                await self._listening
                raise self._reason()
            try:
                await mux.check(self._file)
                return
            except (mux.MuxError, TimeoutError):
                await asyncio.sleep(0.01)

    async def _listen(self) -> None:
        """What the master has to say, until it ends."""
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            text = "".join(char for char in line.decode("utf-8", "replace").strip() if char.isprintable())[:300]
            self._told.append(text)
            if "open failed" in text:
                self._refusals.append(text)
        await self._process.wait()

    def _reason(self) -> PortError:
        """Why the login came to nothing. Source: OpenSSH 9.2p1, messages of ssh(1)."""
        told = "\n".join(self._told)
        note = f"{self.node}: {self._told[-1] if self._told else 'ssh ended without a word'}"
        if re.search(r"Host key verification failed|IDENTIFICATION HAS CHANGED|host key .* known|no hostkey alg", told):
            return Refused(f"{self.node} shows a host key that is not configured; nothing was sent to it")
        if re.search(r"Permission denied|Too many authentication failures|No more authentication", told):
            return Unauthorised(f"{self.node} does not accept our key")
        if re.search(r"no matching (host key|key exchange|cipher|MAC)", told):
            return Refused(note)
        if "kex_exchange_identification" in told or "Connection reset" in told or "Connection closed" in told:
            return Overloaded(note)
        return Unreachable(note)


class _Watched(socket.socket):
    """Tells when it is closed, and whether anything was ever heard on it."""

    left: Callable[[bool], None] | None = None
    heard = False

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        if data:
            self.heard = True
        return data

    def close(self) -> None:
        left, self.left = self.left, None
        super().close()
        if left is not None:
            left(self.heard)


# Files -------------------------------------------------------------------------------------------------------


def client_config(config: LoginConfig, connect_s: float) -> str:
    """
    The whole configuration of `ssh`. Every value has a grammar without blanks, quotes, `%` and leading `-`.

    Source: ssh_config(5), OpenSSH 9.2.
    """
    lines = []
    for node in config.nodes:
        lines += [f"Host {node}", f"  Port {config.port}", f"  User {config.user}"]
        if config.jump:
            lines.append("  ProxyJump " + ",".join(jump.host for jump in config.jump))
        lines.append("  ControlPersist no")
    for jump in config.jump:
        lines += [f"Host {jump.host}", f"  Port {jump.port}", f"  User {jump.user or config.user}"]
    lines += ["Host *", *("  " + line for line in _options(config, connect_s))]
    return "\n".join(lines) + "\n"


def _options(config: LoginConfig, connect_s: float) -> Iterator[str]:
    yield from ("BatchMode yes", "PreferredAuthentications publickey", "PasswordAuthentication no")
    yield from ("KbdInteractiveAuthentication no", "HostbasedAuthentication no", "GSSAPIAuthentication no")
    yield from ("StrictHostKeyChecking yes", "UserKnownHostsFile known_hosts", "GlobalKnownHostsFile none")
    yield from ("UpdateHostKeys no", "VerifyHostKeyDNS no", "CheckHostIP no", "CanonicalizeHostname no")
    yield from ("ForwardAgent no", "ForwardX11 no", "Tunnel no", "PermitLocalCommand no", "ClearAllForwardings no")
    yield from (f"Ciphers {CIPHERS}", "Compression no", "TCPKeepAlive yes")
    yield from ("ServerAliveInterval 5", "ServerAliveCountMax 3", f"ConnectTimeout {max(1, round(connect_s))}")
    yield from ("ConnectionAttempts 1", "StreamLocalBindUnlink yes", "StreamLocalBindMask 0177", "EscapeChar none")
    if config.key_file:
        yield f"IdentityFile {config.key_file}"
    if config.certificate_file:
        yield f"CertificateFile {config.certificate_file}"
    if config.agent:
        yield "IdentityAgent SSH_AUTH_SOCK"
    else:
        yield from ("IdentityAgent none", "IdentitiesOnly yes")
    if not config.key_file:
        yield "IdentityFile none"


def _environment() -> dict[str, str]:
    """What ssh needs; whatever else we were given may hold secrets."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "SSH_AUTH_SOCK") if name in os.environ} | {
        "LC_ALL": "C"
    }


def _write(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    with os.fdopen(os.open(file, flags, 0o600), "w") as opened:
        opened.write(text)
