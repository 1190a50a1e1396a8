"""Moving bytes between a listener's connection and a proven stream: back-pressure and half-close kept, nothing read."""

import asyncio
from asyncio import StreamReader, StreamWriter, Transport
from collections.abc import Callable
from typing import Self, cast

from attrs import define

from . import bulk
from .bulk import Bulk


@define(eq=False)
class Meter:
    """What went through a path. `active_at` is on the loop's clock; `None` before the first byte."""

    connections: int = 0
    open: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    active_at: float | None = None
    bulks: set[Bulk] | None = None

    @property
    def all_out(self) -> int:
        """Bytes to the connections, with those that are moved elsewhere."""
        return self.bytes_out + sum(each.moved for each in self.bulks or ())


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
        self.congested = False
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
        """
        The stream will send no more: pass it on. True while the other direction may go on.

        If that has ended before, both connections close now, which says the same.
        """
        if not self.ended and not self.transport.is_closing() and self.transport.can_write_eof():
            self.transport.write_eof()
        return not self.ended

    def pause_writing(self) -> None:
        self.congested = True
        if self.stream is not None:
            self.stream.transport.pause_reading()

    def resume_writing(self) -> None:
        self.congested = False
        if self.stream is not None:
            self.stream.go_on()

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
        self._recent, self._since = 0, 0.0
        self._waits = False
        """For its turn in a thread, or for the end of that: nobody reads it here."""
        self._drains: Near | None = None
        self._bulk: Bulk | None = None
        self._cut: OSError | None = None

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
        meter.active_at = now = self.clock()
        self.near.transport.write(data)
        self._recent += len(data)
        if self._recent > bulk.BYTES:
            quick, self._recent, self._since = now - self._since < bulk.SECONDS, 0, now
            if quick and _plain(self.transport) and _plain(self.near.transport):
                self._waits = True
                self.transport.pause_reading()
                self._become_bulk(self.near)

    def _become_bulk(self, near: "Near") -> None:
        """Go on in a thread, once the connection has taken what it was given."""
        if self.transport.is_closing() or near.transport.is_closing():
            return
        if near.transport.get_write_buffer_size():
            near.transport.set_write_buffer_limits(high=0)  # then we hear of it when nothing is left
            self._drains = near
            return
        loop = asyncio.get_running_loop()
        ends = [each.get_extra_info("socket").fileno() for each in (self.transport, near.transport)]
        self._bulk = Bulk.begin(loop, ends[0], ends[1], lambda ended, cut: self._moved(near, ended, cut))
        if self._bulk is None:
            self._waits = False
            self.transport.resume_reading()
            return
        near.meter.bulks = {self._bulk, *(near.meter.bulks or ())}

    def _moved(self, near: "Near", ended: Bulk, cut: OSError | None) -> None:
        """The thread has ended; what comes now comes here again."""
        meter = near.meter
        meter.bulks = (meter.bulks or set()) - {ended}
        meter.bytes_out += ended.moved
        meter.active_at = self._since = self.clock()
        self._bulk, self._waits = None, False
        if cut is not None:
            self._cut = cut
            self.transport.abort()
            return
        if ended.rest and not near.transport.is_closing():
            meter.bytes_out += len(ended.rest)
            near.transport.write(ended.rest)
        if not near.congested:
            self.transport.resume_reading()

    def eof_received(self) -> bool:
        self.ended = True
        goes_on = self.near is not None and self.near.finish()
        # Over TLS there is no half of a connection: it closes, and asyncio complains about whoever wants it to go on.
        return goes_on and self.transport.can_write_eof()

    def go_on(self) -> None:
        """The connection takes more now."""
        near, self._drains = self._drains, None
        if near is not None:
            near.transport.set_write_buffer_limits()
            self._become_bulk(near)
        elif not self._waits:
            self.transport.resume_reading()

    def finish(self) -> bool:
        """The connection will send no more: pass it on. True while the other direction may go on."""
        if not self.ended and not self.transport.is_closing() and self.transport.can_write_eof():
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
        if self._bulk is not None:
            self._bulk.end()
        if self.near is not None:
            _end(self.near.transport, error or self._cut)
        self._lost(self, error or self._cut)


def _plain(transport: Transport) -> bool:
    """Whether what goes through it is what is on its socket."""
    return bool(transport.get_extra_info("socket")) and transport.get_extra_info("sslcontext") is None


def _end(transport: Transport, error: Exception | None) -> None:
    """The other side is gone: what it sent is still delivered, unless it was cut."""
    if error is not None:
        transport.abort()
    else:
        transport.close()
