"""A download in a thread: every byte, in order, and whose end is found by whom."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator

import pytest
from attrs import field, frozen

from moorage.relay import bulk
from moorage.relay.bulk import Bulk

Outcome = tuple[int, OSError | None]


@frozen
class Line:
    """A job writes into `job`, which a bulk moves from `source` to `sink`, where a `client` reads."""

    job: socket.socket
    source: socket.socket
    sink: socket.socket
    client: socket.socket
    ended: "asyncio.Future[Outcome]" = field(factory=lambda: asyncio.get_running_loop().create_future())

    def begin(self) -> Bulk | None:
        def back(one: Bulk, cut: OSError | None) -> None:
            self.ended.set_result((one.moved, cut))

        return Bulk.begin(asyncio.get_running_loop(), self.source.fileno(), self.sink.fileno(), back)

    async def outcome(self) -> Outcome:
        return await asyncio.wait_for(self.ended, 10)


@pytest.fixture
def made() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def line(stack: contextlib.ExitStack) -> Line:
    ends = [*socket.socketpair(), *socket.socketpair()]
    for each in ends:
        stack.enter_context(each)
        each.setblocking(False)
    return Line(*ends)


async def test_every_byte_arrives_and_the_end_is_left_for_the_owner(made: contextlib.ExitStack) -> None:
    way, loop = line(made), asyncio.get_running_loop()
    sent = os.urandom(8 << 20)
    assert way.begin() is not None

    async def write() -> None:
        await loop.sock_sendall(way.job, sent)
        way.job.close()

    writing = asyncio.create_task(write())
    heard = bytearray()
    while len(heard) < len(sent):
        heard += await asyncio.wait_for(loop.sock_recv(way.client, 1 << 20), 10)
    await writing
    assert heard == sent
    assert await way.outcome() == (len(sent), None)
    assert way.source.recv(1) == b""
    way.sink.send(b"still open")
    assert way.client.recv(20) == b"still open"


async def test_one_that_is_quiet_goes_back(made: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "QUIET_S", 0.02)
    way = line(made)
    way.job.send(b"x")
    assert way.begin() is not None
    assert await way.outcome() == (1, None)
    way.job.send(b"for the owner")
    assert way.source.recv(20) == b"for the owner"


async def test_one_goes_back_now_and_then_anyway(made: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "TURN_S", 0.0)
    way = line(made)
    way.job.send(b"x")
    assert way.begin() is not None
    assert await way.outcome() == (0, None)
    assert way.source.recv(1) == b"x"


async def test_a_connection_that_is_gone_is_told(made: contextlib.ExitStack) -> None:
    way = line(made)
    way.client.close()
    way.job.send(b"x")
    assert way.begin() is not None
    _, cut = await way.outcome()
    assert isinstance(cut, BrokenPipeError)


async def test_a_job_that_is_cut_is_told(made: contextlib.ExitStack) -> None:
    """A unix socket that is closed with bytes unread resets its peer."""
    way = line(made)
    way.source.send(b"never read")
    way.job.close()
    assert way.begin() is not None
    _, cut = await way.outcome()
    assert isinstance(cut, ConnectionResetError)


async def test_one_whose_reader_stalls_can_be_ended(
    made: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "QUIET_S", 10.0)
    way, loop = line(made), asyncio.get_running_loop()
    running = way.begin()
    assert running is not None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.2):
            await loop.sock_sendall(way.job, bytes(8 << 20))
    assert not way.ended.done()
    running.end()
    await way.outcome()
    assert way.client.fileno() >= 0


async def test_what_a_stalled_reader_does_not_take_goes_back(
    made: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that he keeps no thread; the owner of his connection waits for him."""
    monkeypatch.setattr(bulk, "QUIET_S", 0.02)
    way, loop = line(made), asyncio.get_running_loop()
    sent = os.urandom(4 << 20)
    running = way.begin()
    assert running is not None
    writing = asyncio.create_task(loop.sock_sendall(way.job, sent))
    moved, cut = await way.outcome()
    assert (cut, running.rest != b"") == (None, True)
    heard = bytearray()
    while len(heard) < moved:
        heard += way.client.recv(1 << 20)
    rest = bytearray(running.rest)
    while len(rest) < len(sent) - moved:
        rest += await loop.sock_recv(way.source, 1 << 20)
    await writing
    assert heard + rest == sent


async def test_there_are_a_few_at_a_time(made: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_slots", threading.BoundedSemaphore(1))
    first, second = line(made), line(made)
    running = first.begin()
    assert running is not None
    assert second.begin() is None
    running.end()
    await first.outcome()
    again = second.begin()
    assert again is not None
    again.end()
    await second.outcome()
