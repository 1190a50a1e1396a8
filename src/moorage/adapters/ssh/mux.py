"""
OpenSSH's control protocol, version 4, spoken to a master directly: no process per forward.

A forward listens on a unix socket of ours and leads to a port or a unix socket of the far side. It accepts before it
knows whether anybody listens there, and its streams just end if nobody does; so `try_channel` asks in another way
that has an answer.

Source: OpenSSH 9.2p1, PROTOCOL.mux and mux.c.
"""

import array
import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import Final

VERSION: Final = 4
_LOCAL_FORWARD: Final = 1
STREAM_LOCAL: Final = 0xFFFFFFFE
"""The "port" of a unix socket, whose path then is the host: (unsigned)-2."""
MESSAGE_LIMIT: Final = 65_536
PATH_LIMIT: Final = 107
"""Bytes of a unix socket's path (unix(7)); a longer one is reached by its directory's descriptor."""


class _Say(IntEnum):
    HELLO = 0x00000001
    NEW_SESSION = 0x10000002
    ALIVE_CHECK = 0x10000004
    TERMINATE = 0x10000005
    OPEN_FORWARD = 0x10000006
    CLOSE_FORWARD = 0x10000007
    NEW_STDIO_FORWARD = 0x10000008


class _Hear(IntEnum):
    OK = 0x80000001
    PERMISSION_DENIED = 0x80000002
    FAILURE = 0x80000003
    ALIVE = 0x80000005
    SESSION_OPENED = 0x80000006


class MuxError(Exception):
    """The master is not there, not ours, or does not speak the protocol."""


class ChannelRefused(MuxError):
    """The master is well; the far side did not open the channel."""


async def try_channel(file: Path, host: str, port: int) -> None:
    """
    Open a channel to a port of the far side, as `ssh -W` does, and close it again.

    Not for streams: the master ends such a channel as soon as the far side ends its half.

    Raises:
        ChannelRefused: Nobody listens there, or it is not permitted; the master tells which on its stderr only.
        MuxError: The master is gone.
    """
    with _connected(file) as control, contextlib.ExitStack() as opened:
        ours, theirs = map(opened.enter_context, socket.socketpair())
        try:
            control.send(_hello() + _framed(_Say.NEW_STDIO_FORWARD, 0, "", host, port))
            _hand_over(control, theirs.fileno(), 2)
            answers = _Answers(control)
            await answers.hello()
            kind, text = await answers.next()
        except OSError as error:
            raise MuxError(f"the master is gone: {error.strerror or error}") from error
        ours.close()
        if kind != _Hear.SESSION_OPENED:
            raise ChannelRefused(text)


async def run(file: Path, command: str) -> None:
    """
    Run a constant command at the far side, with nothing to read and nobody to read it, until it ends.

    Raises:
        ChannelRefused: Commands are not permitted there.
        MuxError: The master is gone.
    """
    no_terminal_nor_x11_nor_agent_nor_subsystem = (0, 0, 0, 0)
    with _connected(file) as control, contextlib.ExitStack() as opened:
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        opened.callback(os.close, nothing)
        try:
            words = (*no_terminal_nor_x11_nor_agent_nor_subsystem, 0xFFFFFFFF, "", command)
            control.send(_hello() + _framed(_Say.NEW_SESSION, 0, "", *words))
            _hand_over(control, nothing, 3)
            answers = _Answers(control)
            await answers.hello()
            kind, text = await answers.next()
            if kind != _Hear.SESSION_OPENED:
                raise ChannelRefused(text)
            await answers.next()
        except OSError as error:
            raise MuxError(f"the master is gone: {error.strerror or error}") from error


def _hand_over(control: socket.socket, descriptor: int, times: int) -> None:
    """A descriptor for each of input, output and errors, as far as the request has them."""
    for _ in range(times):
        control.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))])


async def check(file: Path, seconds: float = 5.0) -> int:
    """The process id of the master there; `MuxError` if there is none, `TimeoutError` if it says nothing so long."""
    async with asyncio.timeout(seconds):
        return int(await _ask(file, _Say.ALIVE_CHECK, 0))


async def terminate(file: Path) -> None:
    """Have the master at `file` end; one that is not there is no error."""
    with contextlib.suppress(MuxError, TimeoutError):
        async with asyncio.timeout(5):
            await _ask(file, _Say.TERMINATE, 0)


class Control:
    """A control connection that is kept, for adding and removing forwards. One request at a time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._socket: socket.socket | None = None
        self._answers: _Answers | None = None
        self._turn = asyncio.Lock()

    async def open_forward(self, listen: str, host: str, port: int) -> None:
        """Have the master listen on a unix socket (a name in its directory) for a port or socket of the far side."""
        await self._ask(_Say.OPEN_FORWARD, 0, _LOCAL_FORWARD, listen, STREAM_LOCAL, host, port)

    async def close_forward(self, listen: str, host: str, port: int) -> None:
        """The opposite of `open_forward`, with the same words. The socket's file stays; streams go on."""
        await self._ask(_Say.CLOSE_FORWARD, 0, _LOCAL_FORWARD, listen, STREAM_LOCAL, host, port)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _ask(self, verb: _Say, *words: int | str) -> None:
        async with self._turn:
            try:
                if self._socket is None or self._answers is None:
                    self._socket = _connected(self._file)
                    self._answers = _Answers(self._socket)
                    self._socket.send(_hello())
                    await self._answers.hello()
                self._socket.send(_framed(verb, *words))
                kind, text = await self._answers.next()
            except OSError as error:
                self.close()
                raise MuxError(f"the master is gone: {error.strerror or error}") from error
            except BaseException:  # an answer that is still to come would be taken for that of the next request
                self.close()
                raise
        if kind != _Hear.OK:
            raise MuxError(text or "the master refused")


def connect(file: Path) -> socket.socket:
    """
    Connected to the unix socket there, whatever the length of its path (`sockaddr_un` holds 107 bytes).

    Raises:
        BlockingIOError: Its queue is full. To wait for room could be for ever, if the process there is stopped.
    """
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        with _short(file) as address:
            made.connect(address)
    except BaseException:
        made.close()
        raise
    return made


async def _ask(file: Path, verb: _Say, *words: int | str) -> str:
    with _connected(file) as control:
        control.send(_hello() + _framed(verb, *words))
        answers = _Answers(control)
        try:
            await answers.hello()
            kind, text = await answers.next()
        except OSError as error:
            raise MuxError(f"the master is gone: {error.strerror or error}") from error
    if kind not in (_Hear.OK, _Hear.ALIVE):
        raise MuxError(text or "the master refused")
    return text


def _connected(file: Path) -> socket.socket:
    try:
        return connect(file)
    except OSError as error:
        raise MuxError(f"no master listens: {error.strerror}") from error


@contextlib.contextmanager
def _short(file: Path) -> Iterator[str]:
    if len(os.fsencode(file)) <= PATH_LIMIT:
        yield str(file)
        return
    directory = os.open(file.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{file.name}"
    finally:
        os.close(directory)


# Messages ----------------------------------------------------------------------------------------------------


def _framed(*words: int | str) -> bytes:
    """Numbers as uint32, texts with their length before them, and the length of all that before it."""
    body = b"".join(
        struct.pack(">I", word) if isinstance(word, int) else struct.pack(">I", len(word.encode())) + word.encode()
        for word in words
    )
    return struct.pack(">I", len(body)) + body


def _hello() -> bytes:
    return _framed(_Say.HELLO, VERSION)


class _Answers:
    """Reads messages of the master, and not a byte more than it has to."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._data = control, b""

    async def hello(self) -> None:
        message = await self._message()
        if len(message) < 8 or struct.unpack_from(">II", message) != (_Say.HELLO, VERSION):
            raise MuxError("the master speaks another version of the control protocol")

    async def next(self) -> tuple[int, str]:
        """Its kind, and what it says: the reason of a refusal, the process id of a master that is alive."""
        message = await self._message()
        if len(message) < 8:
            raise MuxError("the master sent a short message")
        kind, _request = struct.unpack_from(">II", message)
        if kind == _Hear.ALIVE:
            return kind, str(struct.unpack_from(">I", message, 8)[0])
        if kind in (_Hear.FAILURE, _Hear.PERMISSION_DENIED):
            return kind, message[12:].decode("utf-8", "replace")[:200]
        return kind, ""

    async def _message(self) -> bytes:
        (size,) = struct.unpack(">I", await self._exactly(4))
        if size > MESSAGE_LIMIT:
            raise MuxError("the master sent a message that is too long")
        return await self._exactly(size)

    async def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            more = await asyncio.get_running_loop().sock_recv(self._control, 4096)
            if not more:
                raise MuxError("the master closed the control connection")
            self._data += more
        piece, self._data = self._data[:size], self._data[size:]
        return piece
