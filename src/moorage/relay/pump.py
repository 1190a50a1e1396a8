"""Moving bytes between a listener's connection and a proven stream: back-pressure and half-close kept, nothing read."""

import asyncio
from asyncio import StreamReader, StreamWriter, Transport
from collections.abc import Callable
from typing import Self, cast

from attrs import define


@define(eq=False)
class Meter:
    """What went through a path. `active_at` is on the loop's clock; `None` before the first byte."""

    connections: int = 0
    open: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    active_at: float | None = None


class Near(asyncio.Protocol):
    """
    A connection to a session's listener.

    It is not read before there is a stream to write to: what a client sends meanwhile stays in the kernel, which
    makes the client wait.
    """

    transport: Transport

    def __init__(self, accepted: Callable[["Near"], None], left: Callable[["Near"], None], meter: Meter) -> None:
        self.meter = meter
        self.gone = self.ended = False
        self.stream: Stream | None = None
        self.patience: asyncio.TimerHandle | None = None
        self._accepted, self._left = accepted, left

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(Transport, transport)
        self.transport.pause_reading()
        self._accepted(self)

    def join(self, stream: "Stream") -> None:
        """Move bytes between this connection and a stream until both have ended."""
        self._settle()
        self.stream, stream.near = stream, self
        self.meter.connections += 1
        self.meter.open += 1
        if stream.early:
            self.meter.bytes_out += len(stream.early)
            self.transport.write(stream.early)
            stream.early = b""
        stream.transport.resume_reading()
        self.transport.resume_reading()

    def _settle(self) -> None:
        """It waits for nothing any more."""
        if self.patience is not None:
            self.patience.cancel()
            self.patience = None

    def drop(self) -> None:
        """End the connection without a word."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.stream is not None:
            self.meter.bytes_in += len(data)
            self.meter.active_at = self.stream.clock()
            self.stream.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        return self.stream is not None and self.stream.finish()

    def finish(self) -> bool:
        """The stream will send no more: pass it on. True while the other direction may go on."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        return not self.ended

    def pause_writing(self) -> None:
        if self.stream is not None:
            self.stream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.stream is not None:
            self.stream.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._settle()
        if self.stream is not None:
            self.meter.open -= 1
            _end(self.stream.transport, error)
        self._left(self)


class Stream(asyncio.Protocol):
    """
    A proven stream to a job: in stock until a connection is joined to it.

    Args:
        writer: Kept, because it closes its transport when it is collected.
        lost: Told when the stream has ended before or after it was used; the argument is the error that cut it.
    """

    def __init__(self, writer: StreamWriter, lost: Callable[["Stream", Exception | None], None]) -> None:
        self.transport = cast(Transport, writer.transport)
        self.near: Near | None = None
        self.early = b""
        self.ended = False
        self.clock = asyncio.get_running_loop().time
        self.writer, self._lost = writer, lost

    @classmethod
    async def take(
        cls, reader: StreamReader, writer: StreamWriter, lost: Callable[["Stream", Exception | None], None]
    ) -> Self:
        """Take a stream over from its reader and writer; what they had read already is not lost."""
        stream = cls(writer, lost)
        stream.ended = reader.at_eof()
        stream.transport.set_protocol(stream)
        reader.feed_eof()  # nobody feeds it any more, so that reading it to its end does not wait
        stream.early = await reader.read()
        stream.transport.resume_reading()  # the reader may have paused it
        return stream

    @property
    def usable(self) -> bool:
        return not self.ended and not self.transport.is_closing()

    def data_received(self, data: bytes) -> None:
        if self.near is None:
            self.early += data
            self.transport.pause_reading()
            return
        meter = self.near.meter
        meter.bytes_out += len(data)
        meter.active_at = self.clock()
        self.near.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        goes_on = self.near is not None and self.near.finish()
        # Over TLS there is no half of a connection: it closes, and asyncio complains about whoever wants it to go on.
        return goes_on and self.transport.can_write_eof()

    def finish(self) -> bool:
        """The connection will send no more: pass it on. True while the other direction may go on."""
        if not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        return not self.ended

    def pause_writing(self) -> None:
        if self.near is not None:
            self.near.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.near is not None:
            self.near.transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        if self.near is not None:
            _end(self.near.transport, error)
        self._lost(self, error)


def _end(transport: Transport, error: Exception | None) -> None:
    """The other side is gone: what it sent is still delivered, unless it was cut."""
    if error is not None:
        transport.abort()
    else:
        transport.close()
