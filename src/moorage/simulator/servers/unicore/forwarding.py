"""Port forwarding below a job: after the 101 a connection is raw bytes to a port or a unix socket."""

import asyncio
import os
from pathlib import Path
from typing import cast

from aiohttp import web

protocol_name = "UNICORE-Socket-Forwarding"
connect_s = 10.0


class Taken(web.Response):
    """Returned to aiohttp when its connection belongs to a tunnel or is gone: there is nothing left to write."""

    async def prepare(self, request: web.BaseRequest) -> None:
        raise ConnectionResetError


def take_over(request: web.BaseRequest) -> "Half":
    """
    Answer 101 and take the connection away from aiohttp, which speaks HTTP and WebSocket only.

    True afterwards: nothing more is read from the client until the returned half is joined to another.
    """
    handler = request.protocol
    transport = cast(asyncio.Transport, request.transport)
    transport.pause_reading()
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol_name.encode() + b"\r\n\r\n"
    )
    half = Half()
    transport.set_protocol(half)
    half.connection_made(transport)
    # aiohttp forgets the connection: its timers and its list of connections to close.
    handler.transport = None
    handler.connection_lost(None)
    return half


class Half(asyncio.Protocol):
    """One side of a tunnel. Either side's end ends both; a slow side holds back the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._other: Half | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def join(self, other: "Half") -> None:
        self._other, other._other = other, self
        for half in (self, other):
            assert half._transport is not None
            if half.closed.done():
                self.close()
                other.close()
                return
            half._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.write(data)

    def eof_received(self) -> bool:
        return False  # the transport closes, and with it the other side

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        if self._other is not None:
            self._other.close()

    def pause_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other._transport is not None:
            self._other._transport.resume_reading()

    def close(self) -> None:
        """Close after what is already buffered has been written."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


async def tunnel(client: Half, host: str, port: int, socket_file: Path | None) -> None:
    """
    Connect the taken connection to a service, and return when both sides are closed.

    A service that does not listen closes the client's side: the server has said 101 before it knows.
    """
    loop = asyncio.get_running_loop()
    directory: int | None = None
    try:
        async with asyncio.timeout(connect_s):
            if socket_file is not None:
                # A socket's path may have 107 characters at most; by way of the directory it is short.
                directory = os.open(socket_file.parent, os.O_PATH | os.O_DIRECTORY)
                short = f"/proc/self/fd/{directory}/{socket_file.name}"
                _, service = await loop.create_unix_connection(_paused_half, short)
            else:
                _, service = await loop.create_connection(_paused_half, host, port)
    except (OSError, TimeoutError):
        client.close()
        return
    except asyncio.CancelledError:
        client.abort()
        raise
    finally:
        if directory is not None:
            os.close(directory)
    client.join(service)
    try:
        await asyncio.wait((client.closed, service.closed))
    except asyncio.CancelledError:
        client.abort()
        service.abort()
        raise


class _PausedHalf(Half):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast(asyncio.Transport, transport).pause_reading()


def _paused_half() -> Half:
    return _PausedHalf()
