"""A TCP connection that can be bad: a proxy on 127.0.0.1 that cuts, stalls, refuses, delays, or stops after N bytes."""

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def closing(server: asyncio.Server) -> AsyncIterator[None]:
    """
    At the end accept no more, and close the server once what it has accepted is known to its protocol.

    A server of Python 3.11 that is closed between accepting a connection and making its transport fails at the latter
    without a word, and leaves the connection open until it is collected.
    """
    try:
        yield
    finally:
        for listener in server.sockets:
            asyncio.get_running_loop().remove_reader(listener.fileno())
        for _ in range(5):
            await asyncio.sleep(0)
        server.close()


class Wire:
    """
    Between a client and a port.

    Attributes:
        port: Where to connect instead.
        delay_s: How much later every byte arrives, in each direction; half the round trip that it adds.
        limit: A connection is cut after so many bytes from the far side; `None` for never.
        bytes_per_s: No more than that from the far side, for each connection; `None` for as fast as it goes.
        connects: How many connections were made.
    """

    def __init__(self, target: int, delay_s: float = 0.0, limit: int | None = None) -> None:
        self.target, self.delay_s, self.limit = target, delay_s, limit
        self.port = self.connects = 0
        self.bytes_per_s: float | None = None
        self._refusing = False
        self._moving = asyncio.Event()
        self._moving.set()
        self._writers: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Reset every connection, and each new one."""
        self._refusing = True
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        """No byte moves any more; connections stay, new ones are accepted."""
        self._moving.clear()

    def heal(self) -> None:
        """New connections work again; stalled ones go on."""
        self._refusing = False
        self._moving.set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator["Wire"]:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        try:
            async with closing(server):
                yield self
        finally:
            for writer in self._writers:
                writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._connected(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connected(self, reader: StreamReader, writer: StreamWriter) -> None:
        self.connects += 1
        both = {writer}
        try:
            if self._refusing:
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
            both.add(far_writer)
            self._writers.add(far_writer)
            await asyncio.gather(
                self._move(reader, far_writer, None, False), self._move(far_reader, writer, self.limit, True)
            )
        except (OSError, asyncio.CancelledError):
            pass  # cancelled by `open`: streams of Python 3.11 log a task that ends so
        finally:
            for each in both:
                each.transport.abort()
            self._writers -= both

    async def _move(self, reader: StreamReader, writer: StreamWriter, left: int | None, inwards: bool) -> None:
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(16 if self.bytes_per_s else 1000)
        sending = asyncio.create_task(self._send(pieces, writer, left, inwards))
        try:
            clock = asyncio.get_running_loop().time
            while piece := await reader.read(1024 if self.bytes_per_s and inwards else 65_536):
                await self._moving.wait()
                await pieces.put((clock() + self.delay_s, piece))
            await pieces.put((clock() + self.delay_s, b""))
            await sending
        finally:
            sending.cancel()

    async def _send(
        self, pieces: "asyncio.Queue[tuple[float, bytes]]", writer: StreamWriter, left: int | None, inwards: bool
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, piece = await pieces.get()
            if (wait := due - clock()) > 0:
                await asyncio.sleep(wait)
            await self._moving.wait()
            if not piece:
                writer.write_eof()
                return
            if left is not None:
                piece, left = piece[:left], left - len(piece)
            if self.bytes_per_s and inwards:
                await self._trickle(writer, piece)
            else:
                writer.write(piece)
                await writer.drain()
            if left is not None and left <= 0:
                writer.close()
                raise ConnectionResetError("enough")

    async def _trickle(self, writer: StreamWriter, piece: bytes) -> None:
        assert self.bytes_per_s is not None
        for start in range(0, len(piece), 256):
            writer.write(part := piece[start : start + 256])
            await writer.drain()
            await asyncio.sleep(len(part) / self.bytes_per_s)
