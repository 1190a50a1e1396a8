"""Cases 114 to 122: bytes to the job through an HTTP upgrade, to a port and to a unix socket."""

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

import pytest
import pyunicore.client
import pyunicore.forwarder
from aiohttp import web
from pyunicore.credentials import UsernamePassword

ECHO = """
import os, socket, sys, threading
inet, unix = socket.socket(), socket.socket(socket.AF_UNIX)
inet.bind(("127.0.0.1", 0))
unix.bind("echo.sock")
def serve(listener):
    listener.listen()
    while True:
        stream = listener.accept()[0]
        threading.Thread(target=echo, args=(stream,), daemon=True).start()
def echo(stream):
    while True:
        data = stream.recv(65536)
        if data == b"quit":
            break
        if not data:
            open("closed", "a").write("x")
            break
        stream.sendall(data)
    stream.close()
threading.Thread(target=serve, args=(unix,), daemon=True).start()
open("port.tmp", "w").write(str(inet.getsockname()[1]))
os.rename("port.tmp", "port")
serve(inet)
"""
UPGRADE = {"Connection": "Upgrade", "Upgrade": "UNICORE-Socket-Forwarding"}
JOB = {"Executable": "python3 echo.py", "Imports": [{"To": "echo.py", "Data": ECHO}]}


async def _echo_job(api: Any) -> tuple[str, str]:
    """A running job with echo servers, and the port of the one."""
    job = await api.submit(JOB)

    async def port() -> str | None:
        reply = await api.read(f"{api.directory(job)}/files/port")
        return reply.body.decode() if reply.status == 200 else None

    await api.until(job, "RUNNING")
    return job, await api.eventually(port)


async def _upgrade(
    api: Any, url: str, headers: dict[str, str] | None = None
) -> tuple[str, asyncio.StreamReader, asyncio.StreamWriter]:
    """The head of the answer to an upgrade request, written as pyunicore writes it, and the stream after it."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, ssl=_context(api, parts.scheme))
    lines = [f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}"]
    sent = {**UPGRADE, "Accept": "application/json", "Authorization": api.user.authorization, **(headers or {})}
    lines += [f"{name}: {value}" for name, value in sent.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), api.limit_s)
    return head.decode(), reader, writer


def _context(api: Any, scheme: str) -> ssl.SSLContext | None:
    """As the test's other requests verify the server."""
    if scheme != "https":
        return None
    if isinstance(api.tls, ssl.SSLContext):
        return api.tls
    return ssl.create_default_context() if api.tls else ssl._create_unverified_context()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


@pytest.mark.parametrize("place", ["port={port}", "port={port}&host=localhost", "file=echo.sock", "file=/echo.sock"])
async def test_114_bytes_go_both_ways(api: Any, place: str) -> None:
    job, port = await _echo_job(api)
    head, reader, writer = await _upgrade(api, f"{job}/forward-port?{place.format(port=port)}")
    assert head.startswith("HTTP/1.1 101 ")
    assert "\r\nUpgrade: UNICORE-Socket-Forwarding\r\n" in head
    for message in (b"hello", bytes(range(256)) * 100):
        writer.write(message)
        assert await asyncio.wait_for(reader.readexactly(len(message)), api.limit_s) == message
    await _close(writer)


async def test_114_eight_mebibytes_arrive_whole(api: Any, control: Any) -> None:
    """More than any buffer holds, so a slow reader holds back the writer."""
    job, port = await _echo_job(api)
    _, reader, writer = await _upgrade(api, f"{job}/forward-port?port={port}")
    block, blocks = os.urandom(1 << 20), 8
    sent, received = hashlib.sha256(block * blocks), hashlib.sha256()

    async def send() -> None:
        for _ in range(blocks):
            writer.write(block)
            await writer.drain()

    async def receive() -> None:
        left = blocks * len(block)
        while left:
            data = await reader.read(65_536)
            assert data
            received.update(data)
            left -= len(data)

    await asyncio.wait_for(asyncio.gather(send(), receive()), api.limit_s)
    assert received.digest() == sent.digest()
    await _close(writer)


@pytest.mark.parametrize("headers", [{}, {"Connection": "Upgrade", "Upgrade": "websocket"}])
async def test_115_without_the_upgrade_there_is_nothing_to_see(api: Any, headers: dict[str, str]) -> None:
    job, port = await _echo_job(api)
    document = await api.document(f"{job}/forward-port?port={port}", headers=headers)
    assert set(document) == {"status"}


async def test_116_a_job_that_is_not_submitted_cannot_be_reached(api: Any) -> None:
    job, _ = await api.ready_directory()
    head, _, writer = await _upgrade(api, f"{job}/forward-port?port=80")
    assert head.startswith("HTTP/1.1 500 ")
    await _close(writer)


async def test_117_an_unknown_session_is_432(api: Any) -> None:
    job, port = await _echo_job(api)
    session = {"X-UNICORE-SecuritySession": "00000000-0000-0000-0000-000000000000"}
    head, _, writer = await _upgrade(api, f"{job}/forward-port?port={port}", session)
    assert head.startswith("HTTP/1.1 432 ")
    await _close(writer)


@pytest.mark.parametrize("query", ["", "port=x", "port=-1", "port=70000", "host=localhost", "port=80&loginNode=none"])
async def test_118_an_address_is_needed(api: Any, query: str) -> None:
    job, _ = await _echo_job(api)
    head, _, writer = await _upgrade(api, f"{job}/forward-port?{query}")
    assert head.startswith("HTTP/1.1 500 ")
    await _close(writer)


async def test_119_a_stranger_is_403(api: Any, stranger: Any) -> None:
    job, port = await _echo_job(api)
    url = f"{job}/forward-port?port={port}"
    head, _, writer = await _upgrade(api, url, {"Authorization": stranger.authorization})
    assert head.startswith("HTTP/1.1 403 ")
    await _close(writer)


async def test_119_a_reader_of_the_job_may(api: Any, stranger: Any) -> None:
    job, port = await _echo_job(api)
    name = (await api.document(by=stranger))["client"]["dn"].replace(", ", ",")
    await api.put(job, {"acl": [f"read:DN:{name}"]})
    url = f"{job}/forward-port?port={port}"
    head, _, writer = await _upgrade(api, url, {"Authorization": stranger.authorization})
    assert head.startswith("HTTP/1.1 101 ")
    await _close(writer)


async def test_120_the_end_of_one_side_is_the_end_of_the_other(api: Any) -> None:
    job, port = await _echo_job(api)
    _, reader, writer = await _upgrade(api, f"{job}/forward-port?port={port}")
    await _close(writer)

    async def seen() -> bool:
        return bool((await api.read(f"{api.directory(job)}/files/closed")).status == 200)

    await api.eventually(seen)
    _, reader, writer = await _upgrade(api, f"{job}/forward-port?port={port}")
    writer.write(b"quit")
    assert await asyncio.wait_for(reader.read(), api.limit_s) == b""
    await _close(writer)


async def test_120_a_service_that_does_not_listen_is_101_and_the_end(api: Any, control: Any) -> None:
    """The server has answered before the connection is made."""
    job, _ = await _echo_job(api)
    for place in ("port=1", "file=nothing.sock"):
        head, reader, writer = await _upgrade(api, f"{job}/forward-port?{place}")
        assert head.startswith("HTTP/1.1 101 ")
        assert await asyncio.wait_for(reader.read(), api.limit_s) == b""
        await _close(writer)


async def test_120_a_socket_outside_the_directory_is_refused(api: Any, control: Any) -> None:
    job, _ = await _echo_job(api)
    head, _, writer = await _upgrade(api, f"{job}/forward-port?file=../../other/echo.sock")
    assert head.startswith("HTTP/1.1 403 ")
    await _close(writer)


async def test_121_connections_are_independent(api: Any) -> None:
    job, port = await _echo_job(api)
    url = f"{job}/forward-port?port={port}"
    streams = [await _upgrade(api, url) for _ in range(3)]
    for number, (_, _, writer) in enumerate(streams):
        writer.write(b"stream %d" % number)
    await _close(streams[1][2])
    for number in (0, 2):
        assert await asyncio.wait_for(streams[number][1].readexactly(8), api.limit_s) == b"stream %d" % number
        await _close(streams[number][2])


@pytest.mark.filterwarnings("ignore:ssl.PROTOCOL_TLS is deprecated")  # pyunicore's own
@pytest.mark.parametrize("options", [{"tls": True}])
async def test_122_a_websocket_through_pyunicores_tunnel(api: Any) -> None:
    """The server of the WebSocket runs beside the site: the nodes of the simulated system are this machine."""
    if api.control is None:
        pytest.skip("the WebSocket server must be where the job is")
    job, _ = await _echo_job(api)
    runner = web.ServerRunner(web.Server(_websocket_echo))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        answer = await asyncio.to_thread(_talk, api, job, runner.addresses[0][1])
        assert answer == b"\x81\x05olleh"
    finally:
        await runner.cleanup()


async def _websocket_echo(request: web.BaseRequest) -> web.StreamResponse:
    """Says every text backwards."""
    stream = web.WebSocketResponse()
    await stream.prepare(request)
    async for message in stream:
        await stream.send_str(message.data[::-1])
    return stream


def _talk(api: Any, job: str, port: int) -> bytes:
    """One text frame through a tunnel; the answer's frame."""
    transport = pyunicore.client.Transport(UsernamePassword(api.user.name, api.user.password))
    tunnel: socket.socket = pyunicore.forwarder.open_tunnel(pyunicore.client.Job(transport, job), port)
    with tunnel:
        tunnel.settimeout(20)
        key = base64.b64encode(bytes(16)).decode()
        handshake = "GET / HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        handshake += f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        tunnel.sendall(handshake.encode())
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += tunnel.recv(1)
        assert head.startswith(b"HTTP/1.1 101 ")
        tunnel.sendall(b"\x81\x85\0\0\0\0hello")  # a masked text frame whose mask is zero
        frame = b""
        while len(frame) < 7:
            frame += tunnel.recv(7 - len(frame))
        return frame
