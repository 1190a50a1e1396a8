"""Who knocks is let in: also when there was nothing left to let anybody in with, or the door closed meanwhile."""

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from moorage.relay import door
from moorage.relay.door import Door


class Poor(socket.socket):
    """Has no descriptor for the first connections."""

    lacking = 0

    def accept(self) -> tuple[socket.socket, object]:  # type: ignore[override]
        if self.lacking:
            self.lacking -= 1
            raise OSError(errno.EMFILE, "too many open files")
        return super().accept()


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


@pytest.fixture
def listening() -> Iterator[Poor]:
    with Poor() as made:
        made.bind(("127.0.0.1", 0))
        made.listen()
        made.setblocking(False)
        yield made


async def heard(listening: socket.socket) -> bytes:
    reader, writer = await asyncio.open_connection(*listening.getsockname())
    try:
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_everybody_is_let_in(listening: Poor) -> None:
    opened = Door(listening, Greeter)
    assert await asyncio.gather(*(heard(listening) for _ in range(20))) == [b"hello"] * 20
    opened.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        listening.getsockname()


async def test_without_descriptors_they_wait_and_nobody_spins(listening: Poor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RETRY_S", 0.05)
    listening.lacking = 3
    opened = Door(listening, Greeter)
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await heard(listening) == b"hello"
    assert loop.time() - began > 0.12
    opened.close()


async def test_one_that_closes_while_it_waits_stays_closed(listening: Poor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "RETRY_S", 0.05)
    listening.lacking = 1
    opened = Door(listening, Greeter)
    with socket.create_connection(listening.getsockname()):
        await asyncio.sleep(0.02)
        assert not listening.lacking
        opened.close()
        await asyncio.sleep(0.1)


async def test_who_was_let_in_before_the_end_is_served(listening: Poor) -> None:
    opened = Door(listening, Greeter)
    with socket.create_connection(listening.getsockname()) as client:
        client.setblocking(False)
        opened._accept()
        opened.close()
        assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 16), 5) == b"hello"
