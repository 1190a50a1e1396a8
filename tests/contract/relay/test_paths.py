"""A path through the relay to the real launcher: what it carries, what it proves, what it never does."""

import asyncio
import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import attrs
import pytest
from tests.contract.relay.world import HERE, Place, endpoint_of, get, relay, until_good
from tests.servers.wire import Wire, closing
from tests.unit.launcher.job import ECHO_LAB

from moorage.adapters.ssh.direct import DirectDialer
from moorage.core.gate import Purpose
from moorage.core.model import Endpoint, JobId, Route, SessionId
from moorage.ports.errors import Refused
from moorage.ports.system import Handle
from moorage.relay.client import InProcessRelay

MIB = 1 << 20
JOB = JobId("4711")


async def opened(place: Place, tunnels: InProcessRelay, number: int = 1) -> Route:
    """A session whose lab answers."""
    spec = place.spec(number)
    job = await place.job(spec)
    route = await tunnels.open(spec, 1, JOB, endpoint_of(job))
    await until_good(tunnels, spec.id)
    return route


async def test_opening_a_path_starts_the_lab_and_leads_to_it(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    assert await get(route.address) == b"hello"
    report = (await tunnels.list())[place.spec().id]
    assert report.good_age_s is not None
    assert (report.good_age_s < 5, report.lost) == (True, False)


async def test_a_connection_made_at_once_waits_for_the_lab(place: Place, tunnels: InProcessRelay) -> None:
    spec = place.spec()
    route = await tunnels.open(spec, 1, JOB, endpoint_of(await place.job(spec)))
    assert await get(route.address) == b"hello"


async def test_64_mib_arrive_unchanged_in_both_directions(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    sent = os.urandom(MIB) * 64
    async with aiohttp.ClientSession() as client:
        async with client.post(route.address + "/sum", data=io.BytesIO(sent)) as answer:
            assert await answer.text() == hashlib.sha256(sent).hexdigest()
        async with client.get(f"{route.address}/bytes/{64 * MIB}") as answer:
            received = hashlib.sha256()
            async for piece in answer.content.iter_any():
                received.update(piece)
    assert received.hexdigest() == hashlib.sha256(bytes(range(256)) * (64 * MIB // 256)).hexdigest()
    details = (await tunnels.details())[place.spec().id]
    assert details.bytes_in > 64 * MIB
    assert details.bytes_out > 64 * MIB


async def test_a_websocket_is_untouched(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    async with aiohttp.ClientSession() as client, client.ws_connect(route.address + "/socket") as websocket:
        for size in (1, 125, 126, 70_000):
            message = os.urandom(size)
            await websocket.send_bytes(message)
            assert await websocket.receive_bytes() == message


async def test_a_client_that_ends_its_half_still_gets_the_answer(place: Place, tunnels: InProcessRelay) -> None:
    """A lab that echoes until the end of what it hears, and only then ends its own half."""
    spec = place.spec()
    job = await place.job(spec, command=(sys.executable, "-B", str(ECHO_LAB), "--sock={socket}"))
    route = await tunnels.open(spec, 1, JOB, endpoint_of(job))
    host, port = route.address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    sent = os.urandom(3 * MIB)
    writer.write(b"RAW\n" + sent)
    writer.write_eof()
    assert await reader.read() == sent
    writer.close()
    await writer.wait_closed()


async def test_a_reader_that_stalls_holds_the_lab_and_not_the_memory(place: Place, tunnels: InProcessRelay) -> None:
    """F-T8."""
    route = await opened(place, tunnels)
    async with aiohttp.ClientSession() as client, client.get(f"{route.address}/bytes/{1 << 30}") as answer:
        await answer.content.readany()
        moved = [0, 1]
        while moved[-1] != moved[-2]:
            await asyncio.sleep(0.2)
            moved.append((await tunnels.details())[place.spec().id].bytes_out)
        assert moved[-1] < 64 * MIB
        assert await get(route.address) == b"hello"  # others go on


async def test_opening_again_gives_the_same_address(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    endpoint = endpoint_of(place.jobs[0])
    assert await tunnels.open(place.spec(), 1, JOB, endpoint) == route
    assert (await tunnels.list()).keys() == {place.spec().id}


async def test_a_requeued_job_is_followed_at_the_same_address(place: Place, tunnels: InProcessRelay) -> None:
    """The job runs anew elsewhere, as the same attempt: the old way is gone, the address stays (F-S2)."""
    route = await opened(place, tunnels)
    first = await get(route.address, "/pid")
    place.jobs[0].end()
    second = await place.job(place.spec())
    assert await tunnels.open(place.spec(), 1, JOB, endpoint_of(second)) == route
    await until_good(tunnels, place.spec().id)
    assert await get(route.address, "/pid") != first


async def test_sessions_are_kept_apart(place: Place, tunnels: InProcessRelay) -> None:
    """I24, I25."""
    routes = [await opened(place, tunnels, number) for number in (1, 2)]
    pids = [await get(route.address, "/pid") for route in routes]
    assert len(set(pids)) == 2


async def test_after_closing_nothing_listens_and_the_address_rests(place: Place, tunnels: InProcessRelay) -> None:
    """I21, I24."""
    route = await opened(place, tunnels)
    await tunnels.close(place.spec().id)
    await tunnels.close(place.spec().id)  # again is harmless
    with pytest.raises(aiohttp.ClientConnectorError):
        await get(route.address)
    assert not await tunnels.list()
    port = int(route.address.rpartition(":")[2])
    other, same = SessionId("b" * 26), place.spec().id
    assert not tunnels.relay._ledger.is_free(port, other)
    assert tunnels.relay._ledger.is_free(port, same)


async def test_it_listens_on_loopback_only(place: Place, tunnels: InProcessRelay) -> None:
    """T1."""
    route = await opened(place, tunnels)
    port = int(route.address.rpartition(":")[2])
    assert listening_addresses(port) == {"0100007F"}


def listening_addresses(port: int) -> set[str]:
    """As in proc(5), /proc/net/tcp: hexadecimal, here of a little-endian machine."""
    lines = (Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()).splitlines()
    words = [line.split() for line in lines]
    return {each[1].partition(":")[0] for each in words if each[3] == "0A" and each[1].endswith(f":{port:04X}")}


# Who is at the other end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 200 OK\r\n\r\n", b"moorage/1 ok lab=serving " + b"0" * 64 + b"\n"])
async def test_somebody_elses_listener_gets_no_byte_of_a_user(place: Place, says: bytes) -> None:
    """The job's port was taken over: not ready, and the request never leaves the relay (F-T11, T4, I22, I25)."""
    heard: list[bytes] = []
    visits: list[asyncio.Task[None] | None] = []

    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            heard.append(await reader.readline())
            writer.write(says)
            heard.append(await reader.read())
        writer.transport.abort()

    server = await asyncio.start_server(stranger, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    spec = place.spec()
    job = await place.job(spec)
    async with closing(server):
        async with relay(place) as tunnels:
            route = await tunnels.open(spec, 1, JOB, attrs.evolve(endpoint_of(job), port=port))
            result = await tunnels.probe(spec.id)
            with pytest.raises(aiohttp.ClientError):
                await get(route.address, "/secret-path")
            assert (result.good, (await tunnels.list())[spec.id].lost) == (False, True)
        await asyncio.sleep(0.05)
        await asyncio.gather(*(visit for visit in visits if visit))
    assert heard
    assert "secret-path" not in repr(heard)
    assert job.key.reveal() not in repr(heard)


async def test_another_run_of_the_same_job_is_not_taken_for_this_one(place: Place, tunnels: InProcessRelay) -> None:
    """T4, I25."""
    spec = place.spec()
    job = await place.job(spec)
    wrong = attrs.evolve(endpoint_of(job), nonce="0" * 32)
    await tunnels.open(spec, 1, JOB, wrong)
    result = await tunnels.probe(spec.id)
    assert not result.good
    assert "launcher" in result.note


async def test_a_revoked_secret_opens_nothing(place: Place, tunnels: InProcessRelay) -> None:
    spec = place.spec()
    job = await place.job(spec)
    place.vault.secrets.clear()
    with pytest.raises(Refused, match="revoked"):
        await tunnels.open(spec, 1, JOB, endpoint_of(job))


async def test_an_unknown_system_is_refused(place: Place, tunnels: InProcessRelay) -> None:
    spec = attrs.evolve(place.spec(), system="elsewhere")
    with pytest.raises(Refused, match="elsewhere"):
        await tunnels.open(spec, 1, JOB, Endpoint("127.0.0.1", 1, "", "0" * 32))


async def test_a_counter_that_the_launcher_finds_too_old_is_raised(place: Place, tunnels: InProcessRelay) -> None:
    """A clock that was set back: the launcher says from where to count."""
    spec = place.spec()
    job = await place.job(spec)
    for _ in range(3):
        await asyncio.to_thread(job.ask, Purpose.PROBE)
    tunnels.relay._counter.wall_s = lambda: 0.000_001
    await tunnels.open(spec, 1, JOB, endpoint_of(job))
    await until_good(tunnels, spec.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_of_this_machine_gets_nothing_at_the_listener(place: Place, tunnels: InProcessRelay) -> None:
    """T1, I50."""
    route = await opened(place, tunnels)
    port = int(route.address.rpartition(":")[2])
    attempt = (
        "import socket, sys\n"
        "with socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=20) as there:\n"
        "    try:\n"
        "        there.sendall(b'GET /hello HTTP/1.1\\r\\nHost: lab\\r\\n\\r\\n')\n"
        "        print(len(there.recv(100)))\n"
        "    except ConnectionError:\n"
        "        print(0)\n"
    )
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", "-c", attempt, str(port)]
    process = await asyncio.create_subprocess_exec(*asked, stdout=subprocess.PIPE)
    out, _ = await process.communicate()
    assert (process.returncode, out) == (0, b"0\n")
    assert await get(route.address) == b"hello"


# Loss and repair ---------------------------------------------------------------------------------------------


async def test_a_path_that_was_lost_comes_back_by_itself_and_the_job_lives(place: Place) -> None:
    """The way is cut and healed; the same lab answers again, and nobody opened anything (F-T7, I26)."""
    spec = place.spec()
    async with relay(place) as tunnels:
        job = await place.job(spec)
        wire = Wire(endpoint_of(job).port)
        async with wire.open():
            route = await tunnels.open(spec, 1, JOB, attrs.evolve(endpoint_of(job), port=wire.port))
            await until_good(tunnels, spec.id)
            before = await get(route.address, "/pid")
            async with aiohttp.ClientSession() as client, client.ws_connect(route.address + "/socket") as websocket:
                wire.cut()
                assert (await websocket.receive(timeout=10)).type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
            await until_lost(tunnels, spec.id)
            wire.heal()
            await until_good(tunnels, spec.id, 5)
            assert await get(route.address, "/pid") == before


async def test_a_path_on_which_nothing_moves_any_more_is_noticed(place: Place) -> None:
    """Half open: connections stay, bytes do not pass. The probe's deadline tells (F-T6, F-S4, I23)."""
    spec = place.spec()
    async with relay(place) as tunnels:
        job = await place.job(spec)
        wire = Wire(endpoint_of(job).port)
        async with wire.open():
            route = await tunnels.open(spec, 1, JOB, attrs.evolve(endpoint_of(job), port=wire.port))
            await until_good(tunnels, spec.id)
            wire.stall()
            await until_lost(tunnels, spec.id)
            wire.heal()
            await until_good(tunnels, spec.id, 5)
            assert await get(route.address) == b"hello"


async def until_lost(tunnels: InProcessRelay, session: SessionId) -> None:
    async with asyncio.timeout(20):
        while not (await tunnels.list())[session].lost:  # noqa: ASYNC110 - the port tells when it is asked
            await asyncio.sleep(0.05)


@attrs.define
class Crowding:
    """The direct way, on which streams made so far can be crowded."""

    dialer: DirectDialer
    made: list[StreamWriter] = attrs.field(factory=list)
    crowding: bool = False

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        reader, writer = await self.dialer.dial(endpoint, job)
        self.made.append(writer)
        return reader, writer

    def crowded(self, writer: StreamWriter) -> bool:
        return self.crowding and writer in self.made[:-1]

    async def close(self) -> None:
        await self.dialer.close()


async def test_a_crowded_stream_in_stock_is_replaced_before_it_is_used(place: Place) -> None:
    """Another connection into the system is quiet now: whoever comes is to have that one."""
    dialer = Crowding(DirectDialer(HERE, "", loopback=True, connect_s=5))
    async with relay(place, {HERE: dialer}) as tunnels:
        route = await opened(place, tunnels)
        session = place.spec().id
        for _ in range(2):  # whoever had to wait has one kept
            assert await get(route.address) == b"hello"
        deadline = asyncio.get_running_loop().time() + 10
        while not (stock := (await tunnels.details())[session].stock):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        kept = dialer.made[-stock:]
        dialer.crowding = True
        dialer.made.append(kept[0])  # the last one made is none of the stock's
        assert await get(route.address) == b"hello"
        assert all(writer.transport.is_closing() for writer in kept)


def in_threads() -> bool:
    """Whether a download is moved in a thread now."""
    return any(thread.name == "bulk" for thread in threading.enumerate())


@contextlib.asynccontextmanager
async def begun(route: Route) -> AsyncIterator[aiohttp.ClientResponse]:
    """A download without an end that goes on in a thread."""
    async with aiohttp.ClientSession() as client, client.get(f"{route.address}/bytes/{1 << 40}") as answer:
        async with asyncio.timeout(20):
            while not in_threads():
                assert await answer.content.readany()
        yield answer


async def rest(answer: aiohttp.ClientResponse) -> None:
    """Read to the end."""
    async with asyncio.timeout(20):
        while await answer.content.readany():
            pass


async def idle() -> None:
    async with asyncio.timeout(10):
        while in_threads():  # noqa: ASYNC110 - threads tell when they are asked
            await asyncio.sleep(0.02)


async def test_a_download_that_nobody_wants_any_more_ends(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    session = place.spec().id
    async with begun(route) as answer:
        before = (await tunnels.details())[session]
        for _ in range(20):
            assert await answer.content.readany()
        assert (await tunnels.details())[session].bytes_out > before.bytes_out  # also while it is on its way
        answer.close()
        await idle()
        assert await get(route.address) == b"hello"
    async with asyncio.timeout(10):
        while (await tunnels.details())[session].open:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


async def test_a_download_whose_job_dies_is_cut(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    async with begun(route) as answer:
        place.end()
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await rest(answer)
        await idle()


async def test_closing_a_path_ends_its_download(place: Place, tunnels: InProcessRelay) -> None:
    route = await opened(place, tunnels)
    async with begun(route) as answer:
        await tunnels.close(place.spec().id)
        with pytest.raises((aiohttp.ClientError, ConnectionError)):
            await rest(answer)
        await idle()


async def test_a_reader_that_stalls_in_a_download_keeps_no_thread_and_loses_no_byte(
    place: Place, tunnels: InProcessRelay
) -> None:
    route = await opened(place, tunnels)
    size = 256 * MIB
    async with aiohttp.ClientSession() as client, client.get(f"{route.address}/bytes/{size}") as answer:
        received, count = hashlib.sha256(), 0
        stalls = 2
        while piece := await answer.content.readany():
            received.update(piece)
            count += len(piece)
            if stalls and in_threads():
                stalls -= 1
                await idle()
    assert (stalls, count) == (0, size)
    assert received.hexdigest() == hashlib.sha256(bytes(range(256)) * (size // 256)).hexdigest()
