"""The UNICORE dialer: streams through the port forwarding of the simulated site, over real sockets."""

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from aiohttp import WSMsgType, web
from tests.contract.system.suite import GATE_SECRET, PlansOfSleepers, SystemCase, a_spec
from tests.contract.system.unicore_world import ALICE, BOB, DN, QUICK, World, world

from moorage.adapters.unicore.config import OwnerToken
from moorage.adapters.unicore.dialer import UnicoreDialer
from moorage.core.gate import LabState, Purpose, Verdict, check_answer, check_document, request
from moorage.core.model import Alive, Endpoint, JobId, Phase, Tag, tag_of
from moorage.core.plan import ENDPOINT_NAME, GatePort
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Refused, Unauthorised, Unreachable
from moorage.ports.system import Handle

MIB = 1024 * 1024
Stream = tuple[StreamReader, StreamWriter]


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
async def unicore(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, tls=request.param, timeouts=attrs.evolve(QUICK, call_s=5)) as made:
        yield made


@pytest.fixture
async def job(unicore: World) -> Handle:
    return await running_job(unicore)


async def running_job(unicore: World) -> Handle:
    system = unicore.make()
    spec = a_spec(SystemCase(system=system))
    tag = tag_of(spec, 1)
    job = Handle(ALICE, tag, await system.submit(tag, spec))
    for _ in range(500):
        said = (await system.observe([job]))[job.job]
        if isinstance(said, Alive) and said.phase is Phase.RUNNING:
            return job
        await asyncio.sleep(0.02)
    pytest.fail("the job never ran")


@contextlib.asynccontextmanager
async def dialled(
    dialer: UnicoreDialer, endpoint: Endpoint, job: Handle
) -> AsyncIterator[tuple[StreamReader, StreamWriter]]:
    reader, writer = await dialer.dial(endpoint, job)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def echo(reader: StreamReader, writer: StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def echo_port() -> AsyncIterator[Endpoint]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield Endpoint("localhost", server.sockets[0].getsockname()[1])


async def test_64_mib_arrive_unchanged_both_ways(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer()
    block = os.urandom(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    async with echo_port() as endpoint, dialled(dialer, endpoint, job) as (reader, writer):

        async def send() -> None:
            for number in range(64):
                piece = number.to_bytes(8, "big") + block[8:]
                sent.update(piece)
                writer.write(piece)
                await writer.drain()

        sending = asyncio.create_task(send())
        left = 64 * MIB
        while left:
            piece = await reader.read(min(left, MIB))
            assert piece
            received.update(piece)
            left -= len(piece)
        await sending
    assert sent.digest() == received.digest()


async def test_a_websocket_through_the_stream(unicore: World, job: Handle) -> None:
    """A real WebSocket server in the place of the lab; the client's frames are written by hand."""

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            if message.type == WSMsgType.TEXT:
                await ws.send_str("echo:" + message.data)
        return ws

    app = web.Application()
    app.router.add_get("/ws", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    listener = socket.create_server(("127.0.0.1", 0))
    await web.SockSite(runner, listener).start()
    endpoint = Endpoint("localhost", listener.getsockname()[1])
    try:
        async with dialled(unicore.make_dialer(), endpoint, job) as (reader, writer):
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                f"GET /ws HTTP/1.1\r\nHost: lab\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101")
            for text in (b"first", b"second"):
                mask = os.urandom(4)
                masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(text))
                writer.write(bytes([0x81, 0x80 | len(text)]) + mask + masked)
                first, length = await reader.readexactly(2)
                assert first == 0x81
                assert await reader.readexactly(length) == b"echo:" + text
    finally:
        await runner.cleanup()


async def test_a_socket_in_the_jobs_directory(unicore: World, job: Handle) -> None:
    directory = unicore.site.site.jobs[job.job].directory
    assert directory is not None
    server = await asyncio.start_unix_server(echo, str(directory / "gate.sock"))
    async with server:
        endpoint = Endpoint("", 0, "gate.sock")
        async with dialled(unicore.make_dialer(), endpoint, job) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"


async def test_what_the_far_side_says_first_is_not_lost(unicore: World, job: Handle) -> None:
    """pyunicore's own forwarder reads the head through a buffer that swallows what comes right behind it."""

    async def greet(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"welcome")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        endpoint = Endpoint("localhost", server.sockets[0].getsockname()[1])
        async with dialled(unicore.make_dialer(), endpoint, job) as (reader, _):
            assert await reader.read() == b"welcome"


async def test_a_port_where_nobody_listens_is_a_stream_that_ends(unicore: World, job: Handle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    try:
        async with dialled(unicore.make_dialer(), Endpoint("localhost", port), job) as (reader, _):
            assert await reader.read() == b""
    except Unreachable:
        pass


async def test_streams_of_one_job_are_independent(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer()
    async with contextlib.AsyncExitStack() as stack:
        endpoint = await stack.enter_async_context(echo_port())
        streams = [await stack.enter_async_context(dialled(dialer, endpoint, job)) for _ in range(6)]
        streams[0][1].transport.abort()
        for number, (_, writer) in enumerate(streams[1:]):
            writer.write(b"%d" % number)
        assert [await reader.readexactly(1) for reader, _ in streams[1:]] == [b"0", b"1", b"2", b"3", b"4"]


async def test_dials_share_one_security_session(unicore: World, job: Handle) -> None:
    """Each upgrade without a session makes the server throw out the oldest one of all users."""
    dialer = unicore.make_dialer()
    sessions = unicore.site.site.access
    async with echo_port() as endpoint:
        async with dialled(dialer, endpoint, job):
            before = sessions.session_count()
        for _ in range(7):
            async with dialled(dialer, endpoint, job) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
    assert sessions.session_count() == before


async def test_a_forgotten_session_costs_one_more_try(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer()
    async with echo_port() as endpoint:
        async with dialled(dialer, endpoint, job):
            pass
        unicore.site.faults.add({"fault": "F-U10", "times": 1})
        async with dialled(dialer, endpoint, job) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"


@pytest.mark.parametrize("kind", ["unix", "tcp"])
async def test_to_the_gate_of_a_real_launcher(unicore: World, kind: str) -> None:
    """The job's own report leads to its gate, and the far side proves that it is this job's launcher."""
    system = unicore.make()
    system.plans = PlansOfSleepers(gate=GatePort(kind=kind, host="localhost" if kind == "tcp" else "{hostname}"))
    spec = a_spec(SystemCase(system=system))
    tag = tag_of(spec, 1)
    job = Handle(ALICE, tag, await system.submit(tag, spec))
    report = None
    for _ in range(500):
        said = (await system.observe([job]))[job.job]
        if isinstance(said, Alive) and said.phase is Phase.RUNNING:
            report = await system.read(job, ENDPOINT_NAME)
            if report:
                break
        await asyncio.sleep(0.02)
    assert report
    place = check_document(GATE_SECRET, "endpoint", tag, report)
    endpoint = Endpoint(str(place.get("host") or ""), int(place.get("port") or 0), str(place.get("socket") or ""))
    asked = request(GATE_SECRET, Purpose.PROBE, tag, str(place["nonce"]), time.time_ns() // 1000, os.urandom(16).hex())
    async with dialled(unicore.make_dialer(), endpoint, job) as (reader, writer):
        writer.write(asked.line)
        answer = check_answer(GATE_SECRET, asked, await reader.readline())
    assert (answer.verdict, answer.lab) == (Verdict.OK, LabState.WAITING)
    await system.cancel(job)


# What does not work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint("", 0, "../other/private/gate.sock"),
        Endpoint("", 0, "/etc/passwd"),
        Endpoint("", 0, "a&port=22"),
        Endpoint("n1&port=22", 80),
        Endpoint("n1\r\nX: y", 80),
        Endpoint("-n1", 80),
        Endpoint("n1", 0),
        Endpoint("n1", 70_000),
        Endpoint("", 80),
    ],
    ids=repr,
)
async def test_an_endpoint_cannot_steer_the_request(tmp_path: Path, endpoint: Endpoint) -> None:
    async with world(tmp_path, execute="virtual") as unicore:
        with pytest.raises(Refused):
            await unicore.make_dialer().dial(endpoint, Handle(ALICE, Tag("m0"), JobId("abc")))
        assert unicore.site.requests == 0


async def test_a_job_nobody_knows_and_one_of_somebody_else(unicore: World, job: Handle) -> None:
    endpoint = Endpoint("localhost", 1)
    with pytest.raises(Unreachable):
        await unicore.make_dialer().dial(endpoint, Handle(ALICE, Tag("m0"), JobId("0000000000x")))
    stranger = unicore.make_dialer(credentials=OwnerToken())
    unicore.issuer.give = lambda owner: Token(Secret(token_of(unicore, "CN=Somebody Else")))
    with pytest.raises(Unauthorised):
        await stranger.dial(endpoint, Handle(BOB, job.tag, job.job))


def token_of(unicore: World, dn: str) -> str:
    return unicore.site.site.key.token(dn, unicore.clock.now() / 1000, 300, {})


async def test_refused_credentials_are_not_shown_again_for_a_while(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer()
    unicore.site.faults.add({"fault": "F-U8", "on": ["forward"]})
    endpoint = Endpoint("localhost", 1)
    with pytest.raises(Unauthorised):
        await dialer.dial(endpoint, job)
    unicore.site.faults.clear()
    before = unicore.site.requests
    with pytest.raises(Unauthorised, match="not tried again yet"):
        await dialer.dial(endpoint, job)
    assert unicore.site.requests == before
    unicore.clock.ahead_s += 1000
    async with echo_port() as listening, dialled(dialer, listening, job) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"


async def test_a_new_token_is_fetched_for_a_refused_one(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer(credentials=OwnerToken())
    unicore.issuer.give = lambda owner: Token(Secret(token_of(unicore, DN if unicore.issuer.asked > 1 else "CN=Old")))
    async with echo_port() as endpoint, dialled(dialer, endpoint, job) as (reader, writer):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"


@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ({"do": "hang"}, Unreachable),
        ({"do": "drop"}, Unreachable),
        ({"do": "answer", "status": 500, "message": "Job BSSID is null"}, Unreachable),
        ({"do": "answer", "status": 503}, Unreachable),
        ({"do": "answer", "status": 404}, Unreachable),
        ({"do": "answer", "status": 200, "message": "Nothing to see here yet."}, Refused),
        ({"do": "redirect"}, Unreachable),
        ({"do": "answer", "status": 405}, Refused),
    ],
    ids=lambda value: str(value.get("status", value["do"])) if isinstance(value, dict) else "",
)
async def test_why_there_is_no_stream(tmp_path: Path, rule: dict[str, object], error: type[Exception]) -> None:
    hasty = attrs.evolve(QUICK, connect_s=0.3, call_s=0.3)
    async with world(tmp_path, execute="virtual", timeouts=hasty) as unicore:
        job = await running_job(unicore)
        unicore.site.faults.add({"on": ["forward"], **rule})
        with pytest.raises(error):
            await unicore.make_dialer().dial(Endpoint("localhost", 1), job)


async def test_a_stranger_behind_the_sites_name_learns_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, tls=True, execute="virtual") as unicore:
        job = await running_job(unicore)
        unicore.site.faults.add({"fault": "F-U25", "variant": "other"})
        await asyncio.sleep(0.05)
        before = unicore.site.requests
        with pytest.raises(Unreachable, match="certificate"):
            await unicore.make_dialer().dial(Endpoint("localhost", 1), job)
        assert unicore.site.requests == before


async def test_close_ends_the_streams(unicore: World, job: Handle) -> None:
    dialer = unicore.make_dialer()
    async with echo_port() as endpoint:
        reader, writer = await dialer.dial(endpoint, job)
        await dialer.close()
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        assert writer.is_closing()
