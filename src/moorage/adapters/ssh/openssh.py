"""
The way in by OpenSSH: masters that stay, and streams through sockets of theirs in a directory of ours.

A port of the far side is reached through the one socket on which a master speaks SOCKS; a unix socket there by a
forward of its own, added and removed over the master's control socket. A master is `ssh -N` with a configuration that
is generated of checked values and nothing else: no user's or system's file is read, host keys are those of the
configuration, and what the far side asks for (agent, X11, remote forwards) is off. It notices a dead connection itself
(5 s, three misses) and ends; its end is the event that we wait for.
"""

import asyncio
import contextlib
import logging
import os
import re
import socket
import struct
import sys
import time
from asyncio import StreamReader, StreamWriter
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from random import Random
from typing import Any

from attrs import define, field

from moorage.core.model import Endpoint, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Overloaded, PortError, Refused, Unauthorised, Unreachable
from moorage.ports.system import Handle

from . import mux
from .hosts import Hosts, LoginConfig, destination, refuse_expired
from .plugin import OpensshConfig

_log = logging.getLogger(__name__)

CIPHERS = "aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com"
"""The first is 1.7 times as fast as the default; the others for servers that do not have it."""

IDLE_S = 60.0
"""A place that no stream uses is forgotten after this time, with its forward; probes come more often than that."""

PING_S, SILENT_S = 5.0, 10.0
"""How often a master is asked whether it is alive, and when one that says nothing is killed: its keep-alives notice a
connection that hangs, and nothing but this a process that does."""

COMMAND_S = 60.0
"""For the start-up files of an account."""

BULK_BYTES, BULK_S = 2 << 20, 0.5
"""A stream that moves so much (OpenSSH's window) in so short a time may have others wait behind it."""

BULK_KEPT_S = 60.0
"""So long after that its session is expected to do it again, and others are led elsewhere."""

SPARE = 3
"""Masters beyond those that the number of sessions asks for, so that downloads have others for themselves."""

SPARE_PAUSE_S = 30.0
"""Between two logins for that reason: a login node that refuses a further connection is not to hear of it all day."""

EMPTY_S = 600.0
"""A master that leads nowhere ends after this time, unless it is the last one."""

BUSY_S = 0.005
"""Until the next try on a socket whose queue is full, when hundreds of sessions come back at once."""

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
        self._further: asyncio.Task[None] | None = None
        self._spare_at = -SPARE_PAUSE_S
        self._bulk: dict[_Place, float] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._number = 0
        self._prepared = False

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        host, port, path = destination(self._system, endpoint)
        about = f"{self._system}, job {job.job:.60}"
        try:
            async with asyncio.timeout(2 * self._timeouts.connect_s):
                place = (path, mux.STREAM_LOCAL) if path else (host, port)
                try:
                    return await (await self._master(place)).stream(place)
                except _Gone:  # killed a moment ago, and nobody has told us yet
                    return await (await self._master(place)).stream(place)
        except _Never as error:
            raise Refused(f"{about}: the login node does not permit forwarding there") from error
        except mux.ChannelRefused as error:
            raise Unreachable(f"{about}: nobody listens there, or the login node cannot reach it") from error
        except TimeoutError:  # before OSError, of which it is one
            raise Unreachable(f"{about}: no stream in {2 * self._timeouts.connect_s:g} s") from None
        except (mux.MuxError, OSError) as error:
            raise Unreachable(f"{about}: {error}") from error

    def crowded(self, writer: StreamWriter) -> bool:
        """
        Whether a stream of ours that nobody uses yet shares its connection with somebody's bulk, while another one
        would not.
        """
        now, descriptor = asyncio.get_running_loop().time(), writer.get_extra_info("socket").fileno()
        crowded = (each for each in self._masters if each.crowded(now))
        place = next((each.streams[descriptor] for each in crowded if descriptor in each.streams), None)
        if place is None or self._moves_bulk(place, now):
            return False
        better = self._roomy(place, self._config.forwards)
        return better is not None and not better.crowded(now)

    async def close(self) -> None:
        if self._further is not None:
            self._further.cancel()
            await asyncio.wait([self._further])
        masters, self._masters = self._masters, []
        for master in masters:
            await master.close()
        await asyncio.gather(*self._closing)

    async def _master(self, place: "_Place") -> "_Master":
        """
        One that has room for `place`; a new one if there is none. All share one connect.

        While a further one logs in, the others take some more than they should, so that nobody waits for it.
        """
        most = self._config.forwards
        for dead in [each for each in self._masters if not each.alive]:
            self._leave(dead)
        if master := self._roomy(place, most):
            return master
        if master := self._roomy(place, most + most // 4):
            self._log_in_further(False)
            return master
        return await self._made(place, False)

    def _log_in_further(self, spare: bool) -> None:
        if self._further is None or self._further.done():
            self._further = asyncio.create_task(self._one_more(spare))

    async def _one_more(self, spare: bool) -> None:
        with contextlib.suppress(PortError):  # the log has it; the next session tries again
            await self._made(None, spare)

    async def _made(self, place: "_Place | None", spare: bool) -> "_Master":
        async with self._turn:
            if not spare and (master := self._roomy(place, self._config.forwards)):
                return master
            if not self._prepared:
                await self._prepare()
            if self._closing:
                await asyncio.wait(self._closing)  # first the old connection's end, then another one
            master = await self._connect()
            master.moves_bulk, master.is_empty = self._moved_bulk, self._emptied
            self._masters.append(master)
            return master

    def _roomy(self, place: "_Place | None", most: int) -> "_Master | None":
        """
        Of several with room the fullest, so that the others can empty and end.

        Whoever moves bulk goes where bulk is moved; everybody else where it is not, as far as that can be had.
        """
        now = asyncio.get_running_loop().time()
        roomy = [each for each in self._masters if each.alive and (place in each.places or len(each.places) < most)]
        suits = self._moves_bulk(place, now)
        fit = [each for each in roomy if each.crowded(now) == suits]
        return max(fit or roomy, key=lambda each: (len(each.places), place in each.places), default=None)

    # Bulk ---------------------------------------------------------------------------------------------------

    def _moves_bulk(self, place: "_Place | None", now: float) -> bool:
        return place is not None and now - self._bulk.get(place, -BULK_KEPT_S) < BULK_KEPT_S

    def _moved_bulk(self, master: "_Master", place: "_Place") -> None:
        """What is under way of a download goes before everything else on its connection: have another for the rest."""
        now = asyncio.get_running_loop().time()
        if place not in self._bulk:
            self._bulk = {each: at for each, at in self._bulk.items() if now - at < BULK_KEPT_S}
        self._bulk[place] = now
        alive, most = [each for each in self._masters if each.alive], self._config.forwards
        if now - self._spare_at < SPARE_PAUSE_S or any(
            not each.crowded(now) and len(each.places) < most for each in alive
        ):
            return
        places = {each for other in alive for each in other.places}
        if len(places) > 1 and len(alive) < -(-len(places) // most) + SPARE:
            self._spare_at = now
            self._log_in_further(True)

    def _emptied(self, master: "_Master") -> None:
        """Close one that leads nowhere any more, unless it is the only one."""
        if master in self._masters and any(each.alive for each in self._masters if each is not master):
            self._leave(master)

    def _leave(self, master: "_Master") -> None:
        self._masters.remove(master)
        self._closing.add(closing := asyncio.create_task(master.close()))
        closing.add_done_callback(self._closing.discard)

    async def _prepare(self) -> None:
        """Write the files, and end masters of a relay that is no more."""
        for file in await asyncio.to_thread(lambda: list(self._directory.glob("m[0-9]*"))):
            await mux.terminate(file)
        await asyncio.to_thread(self._write_files)
        self._prepared = True

    def _write_files(self) -> None:
        for file in self._directory.glob("[dfm][0-9]*"):
            file.unlink(missing_ok=True)
        _write(self._directory / "known_hosts", self._config.known_hosts())
        _write(self._directory / "ssh_config", client_config(self._config, self._timeouts.connect_s))

    async def _connect(self) -> "_Master":
        """Try the login nodes that are due, in order."""
        now = asyncio.get_running_loop().time
        if why := self._hosts.closed(now()):
            raise Unauthorised(f"{self._system}: no login before the pause is over; {why}")
        refuse_expired(self._config, time.time())
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


class _Gone(mux.MuxError):
    """The master does not listen any more."""


@define(eq=False)
class _Used:
    """
    A place that streams lead to.

    Args:
        doubted: A stream ended without a byte: perhaps nobody listens there.
        forward: The unix socket of ours that leads there, for a place which SOCKS has no words for.
        ready: The master listens on it.
    """

    forward: str
    ready: bool = False
    streams: int = 0
    doubted: bool = False
    turn: asyncio.Lock = field(factory=asyncio.Lock)
    idle: asyncio.TimerHandle | None = None


class _Master:
    """One connection to a login node, as a process."""

    moves_bulk: Callable[["_Master", _Place], None]
    """Told what a stream leads to that has moved much in a short time."""
    is_empty: Callable[["_Master"], None]
    """Told when it has led nowhere for long."""

    def __init__(self, process: Process, directory: Path, number: int, node: str) -> None:
        self.node = node
        self.places: dict[_Place, _Used] = {}
        self.streams: dict[int, _Place] = {}
        self._bulk_at = -BULK_KEPT_S
        self._empty: asyncio.TimerHandle | None = None
        self._process, self._file, self._socks = process, directory / f"m{number}", directory / f"d{number}"
        self._control = mux.Control(self._file)
        self._told: deque[str] = deque(maxlen=50)
        self._refusals: deque[str] = deque(maxlen=50)
        self._count = 0
        self._gone = self._speaks_socks = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening = asyncio.create_task(self._listen())

    @property
    def alive(self) -> bool:
        return self._process.returncode is None and not self._gone

    def crowded(self, now: float) -> bool:
        """Whether somebody has moved bulk through it a short while ago."""
        return now - self._bulk_at < BULK_KEPT_S

    @classmethod
    async def start(cls, program: str, directory: Path, number: int, node: str, connect_s: float) -> "_Master":
        """
        A master that is logged in.

        Raises:
            Unauthorised: The login node does not accept our key.
            Refused: Its host key is not one of those in the configuration.
            Unreachable, Overloaded: No connection.
        """
        # A path for -D has to be absolute, and is short enough for a socket whatever our directory is.
        argv = [program, "-F", "ssh_config", "-N", "-M", "-S", f"m{number}", "-D", f"/proc/self/cwd/d{number}"]
        argv += ["--", node]
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _STAGE, str(os.getpid()), *argv),
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            cwd=directory,  # so that no path of ours has to be quoted, or fits into a socket's address
            env=_environment(),
            start_new_session=True,
        )
        master = cls(process, directory, number, node)
        try:
            async with asyncio.timeout(2 * connect_s):
                await master._logged_in()
            master._spawn(master._watch())
            master._spawn(master._hurry())
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
        used = self.places.get(place)
        if used is None:
            self._count += 1
            needs_forward = place[1] == mux.STREAM_LOCAL or not self._speaks_socks
            used = self.places[place] = _Used(f"f{self._count}-{self._file.name}" if needs_forward else "")
        if self._empty is not None:
            self._empty.cancel()
            self._empty = None
        used.streams += 1
        if used.idle is not None:
            used.idle.cancel()
            used.idle = None
        try:
            if used.doubted and place[1] != mux.STREAM_LOCAL:
                await self._find_out(place)
                used.doubted = False
            if used.forward:
                async with used.turn:
                    if not used.ready:
                        await self._control.open_forward(used.forward, *place)
                        used.ready = True
                made = await self._connected(self._file.parent / used.forward)
            else:
                made = await self._connected(self._socks)
                made.greeting, made.prelude = _socks(*place), SOCKS_ANSWER
        except BaseException:
            self._left(place, used, True)
            raise
        self.streams[descriptor := made.fileno()] = place

        def left(heard: bool) -> None:
            self.streams.pop(descriptor, None)
            self._left(place, used, not heard)

        made.left, made.moves_bulk = left, lambda: self._moved_bulk(place)
        opened = await asyncio.open_unix_connection(sock=made)
        # Whoever dials speaks first, and at once, so the request for the place goes along; if not, it goes alone.
        asyncio.get_running_loop().call_soon(made.greet)
        return opened

    def _moved_bulk(self, place: _Place) -> None:
        self._bulk_at = asyncio.get_running_loop().time()
        self.moves_bulk(self, place)

    async def _connected(self, file: Path) -> "_Watched":
        """Connected to a socket of the master's."""
        while True:
            try:
                made = mux.connect(file)
                break
            except BlockingIOError:
                await asyncio.sleep(BUSY_S)
            except (ConnectionRefusedError, FileNotFoundError) as error:
                self.give_up()
                raise _Gone("the master does not listen any more") from error
        return _Watched(socket.AF_UNIX, socket.SOCK_STREAM, 0, made.detach())

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

    def _left(self, place: _Place, used: _Used, doubted: bool) -> None:
        """A stream has ended; its place is kept a while after the last one."""
        used.streams -= 1
        used.doubted = used.doubted or doubted
        if not used.streams and self.alive:
            loop = asyncio.get_running_loop()
            used.idle = loop.call_later(IDLE_S, lambda: self._forget(place, used))

    def _forget(self, place: _Place, used: _Used) -> None:
        if self.places.get(place) is used:
            del self.places[place]
        if not self.places and self._empty is None:
            self._empty = asyncio.get_running_loop().call_later(EMPTY_S, self.is_empty, self)
        if used.forward:
            self._spawn(self._remove(place, used))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _remove(self, place: _Place, used: _Used) -> None:
        if used.ready and self.alive:
            with contextlib.suppress(mux.MuxError):
                await self._control.close_forward(used.forward, *place)
        (self._file.parent / used.forward).unlink(missing_ok=True)

    async def _hurry(self) -> None:
        """
        Have the far side send small messages at once.

        sshd leaves its socket to Nagle's algorithm until the first command of a connection, whatever that is: it
        keeps back an answer while an earlier small message is under way, which costs a round trip or the 40 ms of a
        delayed acknowledgement. Where commands are not permitted it stays so. Source: OpenSSH 9.2p1, session.c
        `do_exec_no_pty`, packet.c `ssh_packet_set_interactive`.
        """
        with contextlib.suppress(mux.MuxError, TimeoutError):
            async with asyncio.timeout(COMMAND_S):
                await mux.run(self._file, "true")

    async def _watch(self) -> None:
        """Kill a master that does not answer; then its streams end, and the next dial makes another."""
        while self.alive:
            await asyncio.sleep(PING_S)
            try:
                await mux.check(self._file, SILENT_S)
            except (TimeoutError, mux.MuxError) as error:
                if self.alive:
                    _log.warning("%s: the master does not answer (%s), and is replaced", self.node, error or "hung")
                    self.give_up()
                return

    def give_up(self) -> None:
        """End the process without asking; what it held ends, and nobody is sent to it any more."""
        self._gone = True
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """End the process; its streams end with it."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
        try:
            async with asyncio.timeout(3):
                await self._process.wait()
        except TimeoutError:  # a stopped process takes no TERM
            self._process.kill()
            await self._process.wait()
        await self._listening
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for used in self.places.values():
            if used.idle is not None:
                used.idle.cancel()
        if self._empty is not None:
            self._empty.cancel()
        self.places.clear()
        self._control.close()
        for file in [self._file, self._socks, *self._file.parent.glob(f"f*-{self._file.name}")]:
            file.unlink(missing_ok=True)

    async def _logged_in(self) -> None:
        """Wait for the control socket: the master makes it after the login."""
        while True:
            if not self.alive:
                await self._listening
                raise self._reason()
            try:
                await mux.check(self._file)
                # Made before the control socket; a client that cannot do it has said so, and gets forwards only.
                self._speaks_socks = self._socks.exists()
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
    """
    Says `greeting` before everything else, and leaves out the first `prelude` bytes that it hears: what SOCKS answers
    says nothing yet. Tells when it is closed, and if it heard anything else; and when it moves much.
    """

    left: Callable[[bool], None] | None = None
    moves_bulk: Callable[[], None] | None = None
    heard = False
    greeting = b""
    prelude = 0
    _moved, _since = 0, 0.0

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        data = super().recv(size, flags)
        if self.prelude and data:
            skipped = min(self.prelude, len(data))
            self.prelude, data = self.prelude - skipped, data[skipped:]
            if not data:
                raise BlockingIOError
        if data:
            self.heard = True
            self._count(len(data))
        return data

    def send(self, data: Any, flags: int = 0, /) -> int:
        if self.greeting:
            size = super().send(self.greeting + bytes(data), flags) - len(self.greeting)
            assert size >= 0, "the first bytes on a socket, so there is room for them"
            self.greeting = b""
        else:
            size = super().send(data, flags)
        self._count(size)
        return size

    def greet(self) -> None:
        """Say it now, if nothing was sent yet."""
        if self.greeting and self.fileno() >= 0:
            with contextlib.suppress(OSError):  # whoever reads finds out
                self.send(b"")

    def _count(self, size: int) -> None:
        self._moved += size
        if self._moved > BULK_BYTES:
            now = time.monotonic()
            if now - self._since < BULK_S and self.moves_bulk is not None:
                self.moves_bulk()
            self._moved, self._since = 0, now

    def close(self) -> None:
        left, self.left, self.moves_bulk = self.left, None, None
        super().close()
        if left is not None:
            left(self.heard)


SOCKS_ANSWER = 8
"""Bytes. The master sends them before it has asked the far side, so they are always the same."""


def _socks(host: str, port: int) -> bytes:
    """
    The request for a port of a host that the far side resolves; what follows it at once is for whoever is there.

    Source: SOCKS 4A (Ying-Da Lee, "SOCKS 4A: A Simple Extension to SOCKS 4 Protocol").
    """
    return struct.pack(">BBHI", 4, 1, port, 1) + b"\0" + host.encode("ascii") + b"\0"


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
