"""Downloads have a connection for themselves: who is led where, and how many logins that may cost."""

import asyncio
import contextlib
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.contract.dialer.ssh_world import JOB, Site, dialled, listening
from tests.servers import sshd
from tests.unit.launcher.job import eventually

from moorage.adapters.ssh import openssh
from moorage.adapters.ssh.openssh import OpensshDialer
from moorage.core.model import Endpoint
from moorage.ports.dialer import Lanes

MUCH = 16 << 20


@pytest.fixture
async def dialer(server: sshd.Sshd, tmp_path: Path) -> AsyncIterator[OpensshDialer]:
    async with Site("openssh", server, tmp_path).open() as made:
        assert isinstance(made, OpensshDialer)
        assert isinstance(made, Lanes)
        yield made


async def pours(_reader: StreamReader, writer: StreamWriter) -> None:
    for _ in range(MUCH >> 16):
        writer.write(bytes(65_536))
        await writer.drain()
    writer.close()
    await writer.wait_closed()  # what is under way arrives


async def download(dialer: OpensshDialer, endpoint: Endpoint) -> None:
    async with dialled(dialer, endpoint) as (reader, _):
        size = 0
        while data := await reader.read(262_144):
            size += len(data)
        assert size == MUCH


async def master_of(dialer: OpensshDialer, endpoint: Endpoint) -> int:
    """The number of the master that a new stream to `endpoint` goes through."""
    _, writer = await dialer.dial(endpoint, JOB)
    descriptor = writer.get_extra_info("socket").fileno()
    (number,) = [number for number, each in enumerate(dialer._masters) if descriptor in each.streams]
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return number


async def further(dialer: OpensshDialer) -> None:
    """Until a further master has logged in."""
    await asyncio.to_thread(eventually, lambda: dialer._further is not None, "a further login")
    assert dialer._further is not None
    await dialer._further


async def test_others_are_led_past_a_download(dialer: OpensshDialer) -> None:
    """A second connection logs in beside it; from then on whoever moves little goes there."""
    async with listening(pours) as large, listening() as small, dialled(dialer, small) as (_, in_stock):
        assert not dialer.crowded(in_stock)
        async with dialled(dialer, large) as (_, of_the_same):
            await download(dialer, large)
            await further(dialer)
            assert dialer.crowded(in_stock)
            assert not dialer.crowded(of_the_same)
        for _ in range(2):
            assert await master_of(dialer, small) == 1
            assert await master_of(dialer, large) == 0
        async with dialled(dialer, small) as (reader, writer):
            assert not dialer.crowded(writer)
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"


async def test_bulk_is_forgotten(dialer: OpensshDialer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute after it both connections are as good as any."""
    monkeypatch.setattr(openssh, "BULK_KEPT_S", 0.5)
    async with listening(pours) as large, listening() as small, dialled(dialer, small) as (_, in_stock):
        await download(dialer, large)
        await further(dialer)
        await asyncio.sleep(0.6)
        assert not dialer.crowded(in_stock)
        assert await master_of(dialer, small) == 0


async def test_a_session_alone_needs_no_second_connection(dialer: OpensshDialer) -> None:
    async with listening(pours) as large:
        await download(dialer, large)
        assert dialer._further is None
        assert len(dialer._masters) == 1


async def test_downloads_everywhere_cost_few_logins(dialer: OpensshDialer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds the connections that there are crowded; there are never more than three for that reason."""
    monkeypatch.setattr(openssh, "SPARE_PAUSE_S", 0.0)
    async with contextlib.AsyncExitStack() as stack:
        places = [await stack.enter_async_context(listening(pours)) for _ in range(7)]
        for place in places:
            await download(dialer, place)
            if dialer._further is not None:
                await dialer._further
        assert len(dialer._masters) == 1 + openssh.SPARE


async def test_a_login_that_fails_is_not_tried_with_every_piece(
    dialer: OpensshDialer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login node may allow no further connection of this account; what there is goes on."""
    async with listening(pours) as large, listening() as small, dialled(dialer, small) as (reader, writer):
        tries = []

        async def refused() -> openssh._Master:
            tries.append(1)
            raise openssh.Unreachable("no further connection")

        monkeypatch.setattr(dialer, "_connect", refused)
        await download(dialer, large)
        await download(dialer, large)
        assert tries == [1]
        assert not dialer.crowded(writer)  # there is nothing better
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"


async def test_a_connection_that_leads_nowhere_ends(dialer: OpensshDialer, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but one, which is there for whoever comes next."""
    monkeypatch.setattr(openssh, "IDLE_S", 0.1)
    monkeypatch.setattr(openssh, "EMPTY_S", 0.2)
    async with listening(pours) as large, listening() as small:
        async with dialled(dialer, small):
            await download(dialer, large)
            await further(dialer)
            await master_of(dialer, small)
        await asyncio.to_thread(eventually, lambda: len(dialer._masters) == 1, "the spare one to end")
        await asyncio.sleep(0.5)
        assert len(dialer._masters) == 1
        assert await master_of(dialer, small) == 0
