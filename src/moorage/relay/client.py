"""The `Tunnels` port: spoken to a relay process that is started when it is needed, or answered in this process."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from asyncio import Future, StreamReader, StreamWriter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from moorage.core.model import Endpoint, JobId, Route, SessionId, SessionSpec, SystemName
from moorage.ports.dialer import Dialer
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unreachable
from moorage.ports.tunnels import PathReport, ProbeResult

from . import sockets
from .control import PROTOCOL, raised
from .gate import Gates
from .process import CONTROL_NAME, LOG_NAME, directory_of
from .server import Details, Relay, Settings
from .target import from_data, target_of

_log = logging.getLogger(__name__)

ANSWER_LIMIT = 1 << 26
"""Bytes of one answer; `details` of ten thousand paths has about 8 MB."""
START_S = 20.0
"""For a relay to answer after it was started: Python, the configuration, its paths."""
HUNG_S = 20.0
"""A relay that has left a call unanswered has so long to say hello; nothing that is well takes that long."""


class RelayTunnels:
    """
    The relay of a deployment, behind its control socket.

    One connection, made when it is needed and again when it was lost; calls run side by side on it. A relay that is
    not there is started, and one that hangs is ended: it serves nobody, and keeps the lock from another one.

    Args:
        command: Starts the relay as a process in the foreground; `None` if somebody else sees to it, and to its end.
        call_s: Deadline of a call, probes apart.
    """

    def __init__(self, state_directory: Path, command: Sequence[str] | None, call_s: float = 10.0) -> None:
        self._state, self._command, self._call_s = state_directory, command, call_s
        self._connecting = asyncio.Lock()
        self._line: _Line | None = None
        self._looking: asyncio.Task[None] | None = None

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        target = target_of(spec, attempt, job, endpoint).as_data()
        address = await self._call("open", target=target)
        if not isinstance(address, str):
            raise Malformed("the relay answered with no address")
        return Route(address)

    async def probe(self, session: SessionId) -> ProbeResult:
        answer = await self._call("probe", session=session)
        return _understood(lambda: ProbeResult(bool(answer["good"]), str(answer["note"]), answer.get("proven") is True))

    async def close(self, session: SessionId) -> None:
        await self._call("close", session=session)

    async def list(self) -> Mapping[SessionId, PathReport]:
        answer = await self._call("list")
        return _understood(lambda: {SessionId(session): PathReport(**report) for session, report in answer.items()})

    async def details(self) -> Mapping[SessionId, Details]:
        """Every path with its numbers, for people."""
        answer = await self._call("details")
        return _understood(lambda: {SessionId(session): _details(data) for session, data in answer.items()})

    async def stop_relay(self) -> None:
        """End the relay; paths come back, at their addresses, with the next one."""
        await self._call("stop")

    async def aclose(self) -> None:
        """Leave the relay alone. It goes on."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
        if self._line is not None:
            await self._line.close()
            self._line = None

    async def _call(self, verb: str, **arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._call_s + (START_S if self._line is None else 0)):
                line = await self._connected()
                return await line.call(verb, arguments)
        except TimeoutError:
            self._look_whether_it_hangs()
            raise Unanswered(f"the relay did not answer `{verb}`") from None

    def _look_whether_it_hangs(self) -> None:
        if self._command is None or self._line is None or (self._looking is not None and not self._looking.done()):
            return
        self._looking = asyncio.create_task(_end_if_it_hangs(self._line))

    async def _connected(self) -> "_Line":
        async with self._connecting:
            if self._line is not None and not self._line.lost:
                return self._line
            if self._line is not None:
                await self._line.close()
                self._line = None
            self._line = await ensure_running(self._state, self._command)
            return self._line


async def ensure_running(state_directory: Path, command: Sequence[str] | None) -> "_Line":
    """
    A connection to the relay of a deployment; one is started if there is none.

    Several may try that at the same time: only one gets the lock, all find it.

    Raises:
        Unreachable: None came up in time; its log says why.
        Refused: It speaks another protocol, or its directory is not ours.
    """
    directory = directory_of(state_directory)
    try:
        sockets.private_directory(directory)
    except (sockets.NotOurs, OSError) as error:
        raise Refused(f"the relay's directory cannot be used: {error}") from error
    try:
        return await _greeted(directory, command is not None)
    except TimeoutError:
        if command is None:
            raise Unanswered(f"the relay does not say hello in {START_S:g} s") from None
    except OSError:
        if command is None:
            raise Unreachable("the relay is not running") from None
    await asyncio.to_thread(start, command, directory)
    for _ in range(int(START_S / 0.05)):
        try:
            return await _greeted(directory, True)
        except OSError:
            await asyncio.sleep(0.05)
    raise Unreachable(f"the relay did not come up in {START_S:g} s; see {directory / LOG_NAME}")


# A stage between us and the relay, so that it is nobody's child: it outlives us, and leaves no zombie.
_DETACH = "import os, sys; os.fork() and os._exit(0); os.setsid(); os.execv(sys.argv[1], sys.argv[1:])"


def start(command: Sequence[str], directory: Path) -> None:
    """Start a process that outlives this one and writes its log into the directory. Returns before it is ready."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    log = os.open(directory / LOG_NAME, flags, 0o600)
    try:
        subprocess.run(  # noqa: S603 - the command is the composition root's
            [sys.executable, "-I", "-S", "-c", _DETACH, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=True,
            timeout=START_S,
        )
    finally:
        os.close(log)


async def _greeted(directory: Path, ours_to_end: bool) -> "_Line":
    """A connection to a relay that said hello; one that hangs is ended, if it is `ours_to_end`: `TimeoutError`."""
    stream = sockets.connect(directory / CONTROL_NAME)
    pid, uid, _ = struct.unpack("3i", stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    reader, writer = await asyncio.open_unix_connection(sock=stream, limit=ANSWER_LIMIT)
    line = _Line(reader, writer, pid if uid == os.getuid() else 0)
    try:
        async with asyncio.timeout(START_S):
            await line.hello()
    except BaseException as error:
        if ours_to_end and isinstance(error, TimeoutError):
            line.end_relay()
        await line.close()
        raise
    return line


async def _end_if_it_hangs(line: "_Line") -> None:
    """A call may be unanswered because of what it asks for; a greeting is not."""
    with contextlib.suppress(PortError):  # it has ended by itself
        try:
            async with asyncio.timeout(HUNG_S):
                await line.hello()
        except TimeoutError:
            line.end_relay()


class _Line:
    """
    A connection to the control socket; answers find their calls by number.

    Args:
        pid: Of the process that listens there, if it is of our user and where we can see it; otherwise 0.
    """

    def __init__(self, reader: StreamReader, writer: StreamWriter, pid: int) -> None:
        self.lost = False
        self._pid = pid
        self._writer, self._number = writer, 0
        self._calls: dict[int, Future[Any]] = {}
        self._reading = asyncio.create_task(self._read(reader))

    async def call(self, verb: str, arguments: Mapping[str, Any]) -> Any:
        if self.lost:
            raise Unreachable("the relay has closed its control socket")
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        try:
            text = json.dumps({"id": number, "do": verb, **arguments}, separators=(",", ":"))
            self._writer.write(text.encode("ascii") + b"\n")
            return await answer
        finally:
            self._calls.pop(number, None)

    async def hello(self) -> None:
        await self.call("hello", {"protocol": PROTOCOL})

    def end_relay(self) -> None:
        """Kill the process at the other end; as long as the connection is there, the number is its own."""
        if self._pid <= 1 or self.lost:
            return
        _log.warning("relay %s does not answer and is ended; open connections with it", self._pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.transport.abort()
        await asyncio.wait([self._reading])

    async def _read(self, reader: StreamReader) -> None:
        try:
            while text := await reader.readline():
                self._take(json.loads(text))
        except (ValueError, OSError, AttributeError) as error:
            _log.warning("the relay's control socket is unusable: %s", type(error).__name__)
        finally:
            self.lost = True
            self._writer.close()
            for call in self._calls.values():
                if not call.done():
                    call.set_exception(Unanswered("the relay closed its control socket"))

    def _take(self, message: Mapping[str, Any]) -> None:
        call = self._calls.get(message.get("id", 0))
        if call is None or call.done():
            return
        match message:
            case {"ok": answer}:
                call.set_result(answer)
            case {"error": [str(kind), str(note)]}:
                call.set_exception(raised(kind, note))
            case _:
                call.set_exception(Malformed("the relay's answer is none"))


_Told = TypeVar("_Told")


def _understood(read: Callable[[], _Told]) -> _Told:
    try:
        return read()
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise Malformed("the relay's answer is not what it should be") from error


def _details(data: Mapping[str, Any]) -> Details:
    told = {**data, "target": from_data(data["target"]), "report": PathReport(**data["report"])}
    return Details(**told)


class InProcessRelay:
    """
    The same relay inside this process: for tests, simulations, and whoever needs no process of its own.

    Args:
        directory: Ours alone, for its ledger and sockets.
    """

    def __init__(
        self, directory: Path, dialers: Mapping[SystemName, Dialer], vault: Gates, settings: Settings | None = None
    ) -> None:
        sockets.private_directory(directory)
        self.relay = Relay(directory, dialers, vault, settings)

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        return await self.relay.open(target_of(spec, attempt, job, endpoint))

    async def probe(self, session: SessionId) -> ProbeResult:
        return await self.relay.probe(session)

    async def close(self, session: SessionId) -> None:
        await self.relay.close(session)

    async def list(self) -> Mapping[SessionId, PathReport]:
        return await self.relay.list()

    async def details(self) -> Mapping[SessionId, Details]:
        """Every path with its numbers, for people."""
        return self.relay.details()

    async def aclose(self) -> None:
        """End every path; the dialers stay."""
        await self.relay.aclose()
