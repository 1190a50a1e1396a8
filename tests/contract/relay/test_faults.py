"""What goes wrong between the relay and a job (F-T*), through real sockets, and what comes of it."""

import asyncio
import contextlib
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import attrs
import pytest
from tests.contract.relay.world import Place, direct, endpoint_of, get, relay, settings, until_good
from tests.servers.wire import Wire, closing

from moorage.core.model import Endpoint, JobId, Route
from moorage.ports.errors import Overloaded
from moorage.relay import sockets
from moorage.relay.client import InProcessRelay

JOB = JobId("4711")
KIB = 1024


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """This process has opened all that it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in taken:
            os.close(descriptor)


async def through(place: Place, tunnels: InProcessRelay, wire: Wire, number: int = 1) -> Route:
    """A path of a session that leads through the wire, which is open."""
    spec = place.spec(number)
    endpoint = endpoint_of(place.jobs[number - 1])
    return await tunnels.open(spec, 1, JOB, attrs.evolve(endpoint, port=wire.port))


@pytest.mark.parametrize("limit", [0, 1])
async def test_a_stream_that_is_cut_before_the_proof_is_no_path(place: Place, limit: int) -> None:
    """After none or one byte (F-T7): a bad probe; and good again when the line is."""
    spec = place.spec()
    job = await place.job(spec)
    wire = Wire(endpoint_of(job).port, limit=limit)
    async with wire.open(), relay(place) as tunnels:
        await through(place, tunnels, wire)
        assert not (await tunnels.probe(spec.id)).good
        wire.limit = None
        await until_good(tunnels, spec.id, 10)


@pytest.mark.parametrize("limit", [65_535, (8 << 20) + 1])
async def test_a_stream_that_is_cut_in_the_middle_ends_and_the_next_request_works(place: Place, limit: int) -> None:
    """A download, and a frame of a WebSocket (F-T7): each ends, short of what was announced, and nothing else does."""
    spec = place.spec()
    job = await place.job(spec)
    wire = Wire(endpoint_of(job).port)
    async with wire.open(), relay(place) as tunnels:
        route = await through(place, tunnels, wire)
        await until_good(tunnels, spec.id)
        for stock in list(tunnels.relay._paths[spec.id]._stock):
            stock.transport.abort()  # the next stream has the limit
        wire.limit = limit
        async with aiohttp.ClientSession() as client:
            with pytest.raises(aiohttp.ClientPayloadError):
                async with client.get(f"{route.address}/bytes/{16 << 20}") as answer:
                    await answer.read()
            async with client.ws_connect(route.address + "/socket") as websocket:
                with contextlib.suppress(ConnectionError):  # cut while it is sent, because the answer comes meanwhile
                    while True:
                        await websocket.send_bytes(bytes(1 << 20))
                        if (said := await websocket.receive(timeout=20)).type is not aiohttp.WSMsgType.BINARY:
                            assert said.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
                            break
        wire.limit = None
        await until_good(tunnels, spec.id, 10)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    assert await get(route.address) == b"hello"
                    break


async def test_a_slow_line_is_slow_for_its_own_session_only(place: Place) -> None:
    """4 kB/s with 0.2 s each way (F-T8): the path is good, nothing piles up, and others are as quick as ever."""
    slow, quick = place.spec(1), place.spec(2)
    job = await place.job(slow)
    await place.job(quick)
    wire = Wire(endpoint_of(job).port, delay_s=0.2)
    wire.bytes_per_s = 4096
    async with wire.open(), relay(place) as tunnels:
        route = await through(place, tunnels, wire)
        other = await tunnels.open(quick, 1, JOB, endpoint_of(place.jobs[1]))
        await until_good(tunnels, slow.id)
        await until_good(tunnels, quick.id)
        async with aiohttp.ClientSession() as client, client.get(f"{route.address}/bytes/{1 << 30}") as answer:
            await answer.content.readany()
            async with asyncio.timeout(10):
                assert len(await get(other.address, f"/bytes/{16 << 20}")) == 16 << 20
            assert (await tunnels.details())[slow.id].bytes_out < 256 * KIB
            assert (await tunnels.probe(slow.id)).good


async def test_a_port_that_was_taken_meanwhile_is_not_shared(place: Place) -> None:
    """Somebody else listens at the old address when the relay comes back: it takes another one (F-T10)."""
    spec = place.spec()
    job = await place.job(spec)
    async with relay(place) as tunnels:
        route = await tunnels.open(spec, 1, JOB, endpoint_of(job))
    port = int(route.address.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        async with relay(place) as tunnels:
            await tunnels.relay.rebuild()
            again = (await tunnels.details())[spec.id].address
            assert again != route.address
            await until_good(tunnels, spec.id)
            assert await get(again) == b"hello"
            assert (await tunnels.open(spec, 1, JOB, endpoint_of(job))).address == again


async def test_a_socket_file_that_is_there_already_is_replaced(place: Place) -> None:
    """Of a relay that was killed, or a plain file (F-T10); the directory is ours alone, so it is nobody else's."""
    spec = place.spec()
    job = await place.job(spec)
    made = InProcessRelay(place.directory / "relay", direct(), place.vault, settings(unix=True))
    file = place.directory / "relay" / f"{spec.id}.sock"
    file.write_text("not a socket")
    try:
        await made.open(spec, 1, JOB, endpoint_of(job))
        await until_good(made, spec.id)
    finally:
        await made.aclose()


def test_a_directory_that_is_a_link_is_refused(tmp_path: Path) -> None:
    """Whoever made it could lead it elsewhere (F-T10)."""
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(sockets.NotOurs):
        sockets.private_directory(tmp_path / "link")


async def test_a_firewall_that_accepts_and_closes_is_no_path(place: Place) -> None:
    """F-T12, I22: connected is not ready, and what comes in meanwhile is closed, not kept."""

    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    spec = place.spec()
    await place.job(spec)
    server = await asyncio.start_server(close, "127.0.0.1", 0)
    endpoint = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1], "", "0" * 32)
    async with closing(server), relay(place) as tunnels:
        route = await tunnels.open(spec, 1, JOB, endpoint)
        assert not (await tunnels.probe(spec.id)).good
        assert (await tunnels.list())[spec.id].good_age_s is None
        with pytest.raises(aiohttp.ClientError):
            await get(route.address)


async def test_without_descriptors_new_paths_are_refused_and_old_ones_serve(place: Place) -> None:
    """F-T15: the cause is told, and it ends with the shortage."""
    old, new = place.spec(1), place.spec(2)
    for spec in (old, new):
        await place.job(spec)
    async with relay(place) as tunnels:
        route = await tunnels.open(old, 1, JOB, endpoint_of(place.jobs[0]))
        endpoint = endpoint_of(place.jobs[1])
        await until_good(tunnels, old.id)
        async with aiohttp.ClientSession() as client, client.ws_connect(route.address + "/socket") as websocket:
            with no_descriptors():
                with pytest.raises(Overloaded, match="descriptors"):
                    await tunnels.open(new, 1, JOB, endpoint)
                await websocket.send_str("still there")
                assert (await websocket.receive(timeout=10)).data == "still there"
            await tunnels.open(new, 1, JOB, endpoint)
            await until_good(tunnels, new.id)
            await until_good(tunnels, old.id)
