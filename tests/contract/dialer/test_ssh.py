"""What every dialer promises (`moorage.ports.dialer`), through a real sshd where it needs one."""

import asyncio
import hashlib
import os
import subprocess
import time
from asyncio import StreamReader, StreamWriter
from pathlib import Path

import pytest
from attrs import evolve
from tests.contract.dialer.ssh_world import JOB, KINDS, TIMEOUTS, Site, dialled, listening
from tests.servers import sshd
from tests.servers.wire import Wire

from moorage.adapters.ssh.hosts import JumpConfig
from moorage.core.model import Endpoint
from moorage.ports.dialer import Dialer
from moorage.ports.errors import Overloaded, PortError, Refused, Unauthorised, Unreachable

MIB = 1 << 20
SSH = ("openssh", "paramiko")


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, server: sshd.Sshd, tmp_path: Path) -> Site:
    return make(request.param, server, tmp_path)


@pytest.fixture(params=SSH)
def ssh_site(request: pytest.FixtureRequest, server: sshd.Sshd, tmp_path: Path) -> Site:
    return make(request.param, server, tmp_path)


def make(kind: str, server: sshd.Sshd, tmp_path: Path) -> Site:
    directory = tmp_path / "site"
    directory.mkdir(mode=0o700)
    return Site(kind, server, directory)


# Streams -----------------------------------------------------------------------------------------------------


async def test_bytes_go_both_ways_and_each_half_ends_by_itself(site: Site) -> None:
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint) as (reader, writer):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b" and goodbye")
        writer.write_eof()
        assert await reader.read() == b" and goodbye"


async def test_the_far_side_may_end_first(site: Site) -> None:
    heard = asyncio.get_running_loop().create_future()

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        writer.write(b"that is all")
        writer.write_eof()
        heard.set_result(await reader.read())

    async with listening(serve) as endpoint, site.open() as dialer, dialled(dialer, endpoint) as (reader, writer):
        assert await reader.read() == b"that is all"
        writer.write(b"but I go on")
        writer.write_eof()
        assert await asyncio.wait_for(heard, 10) == b"but I go on"


async def test_64_mib_arrive_unchanged_both_ways(site: Site) -> None:
    block = os.urandom(MIB)
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint) as (reader, writer):

        async def send() -> None:
            for number in range(64):
                writer.write(number.to_bytes(8, "big") + block[8:])
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        received = hashlib.sha256()
        while piece := await reader.read(MIB):
            received.update(piece)
        await sending
    sent = hashlib.sha256(b"".join(number.to_bytes(8, "big") + block[8:] for number in range(64)))
    assert received.digest() == sent.digest()


async def test_small_messages_do_not_wait_for_more(
    server: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """paramiko's pump rests between the pieces of a download, and only there."""
    monkeypatch.setattr("moorage.adapters.ssh.pump.GATHER_S", 5.0)
    site = make("paramiko", server, tmp_path)
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint) as (reader, writer):
        async with asyncio.timeout(4):
            for _ in range(20):
                writer.write(bytes(1000))
                assert await reader.readexactly(1000) == bytes(1000)


async def test_a_reader_that_stalls_stops_the_sender(site: Site) -> None:
    """The sender gets no further than the windows and buffers on the way; another stream goes on."""
    sent = 0

    async def serve(_reader: StreamReader, writer: StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(MIB))
            await writer.drain()
            sent += 1

    async with (
        listening(serve) as flood,
        listening() as calm,
        site.open() as dialer,
        dialled(dialer, flood),
        dialled(dialer, calm) as (reader, writer),
    ):
        marks = [-1, 0]
        while marks[-1] != marks[-2]:
            await asyncio.sleep(0.5)
            marks.append(sent)
        assert marks[-1] < 64
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"


async def test_a_stream_that_we_abort_ends_at_the_far_side(site: Site) -> None:
    ended = asyncio.get_running_loop().create_future()

    async def serve(reader: StreamReader, _writer: StreamWriter) -> None:
        try:
            ended.set_result(await reader.read())
        except ConnectionError:
            ended.set_result(b"reset")

    async with listening(serve) as endpoint, site.open() as dialer:
        _, writer = await dialer.dial(endpoint, JOB)
        writer.transport.abort()
        assert await asyncio.wait_for(ended, 10) in (b"", b"reset")


async def test_a_unix_socket_on_the_far_side(site: Site, tmp_path: Path) -> None:
    async with listening(socket=tmp_path / "gate.sock") as endpoint, site.open() as dialer:
        for _ in range(2):
            async with dialled(dialer, endpoint) as (reader, writer):
                writer.write(b"hello")
                assert await reader.readexactly(5) == b"hello"


async def test_forty_streams_at_once(site: Site) -> None:
    async with listening() as endpoint, site.open() as dialer:

        async def one(number: int) -> None:
            async with dialled(dialer, endpoint) as (reader, writer):
                writer.write(number.to_bytes(8, "big"))
                assert int.from_bytes(await reader.readexactly(8), "big") == number

        await asyncio.gather(*(one(number) for number in range(40)))


async def dial_twice(dialer: Dialer, endpoint: Endpoint) -> None:
    """OpenSSH accepts before it knows: the first stream may end at once instead, and then the next dial raises."""
    async with dialled(dialer, endpoint) as (reader, _):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    await dialer.dial(endpoint, JOB)


def new_key(file: Path) -> str:
    """A key pair; the public half."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", file], check=True)
    return file.with_suffix(".pub").read_text()


# Errors ------------------------------------------------------------------------------------------------------


async def test_nobody_listens_there_yet(site: Site) -> None:
    """F-T5."""
    async with listening() as endpoint:
        pass
    async with site.open() as dialer:
        with pytest.raises(Unreachable, match="4711"):
            await dial_twice(dialer, endpoint)


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint("-oProxyCommand=touch /tmp/bait", 22),
        Endpoint("node one", 22),
        Endpoint("node\nHost evil", 22),
        Endpoint('node"', 22),
        Endpoint("n\u00f6de", 22),
        Endpoint("node", 0),
        Endpoint("node", 70_000),
        Endpoint("", 0, "relative.sock"),
        Endpoint("", 0, "/tmp/with\nnewline"),
        Endpoint("", 0, "/" + "x" * 200),
    ],
)
async def test_what_cannot_be_an_endpoint_is_refused_before_anything_is_done(site: Site, endpoint: Endpoint) -> None:
    """T7."""
    async with site.open() as dialer:
        with pytest.raises(Refused):
            await dialer.dial(endpoint, JOB)


async def test_forwarding_that_is_not_permitted_is_refused_for_good(tmp_path: Path) -> None:
    """F-T5."""
    with sshd.server(AllowTcpForwarding="no") as server:
        for kind in SSH:
            (tmp_path / kind).mkdir(mode=0o700)
            async with Site(kind, server, tmp_path / kind).open() as dialer:
                with pytest.raises(Refused, match="permit"):
                    await dial_twice(dialer, Endpoint("localhost", 9))


async def test_an_unknown_host_key_is_refused_and_never_learnt(ssh_site: Site, tmp_path: Path) -> None:
    """F-T3, T22."""
    key = " ".join(new_key(tmp_path / "other").split()[:2])
    async with ssh_site.but(host_keys=(key,)).open() as dialer:
        for _ in range(2):
            with pytest.raises(PortError, match=r"host key|a moment ago"):
                await dialer.dial(Endpoint("localhost", 9), JOB)
    assert ssh_site.sshd.host_key.split()[1] not in "".join(
        file.read_text() for file in ssh_site.directory.iterdir() if file.is_file()
    )


async def test_a_key_that_is_not_accepted_is_tried_once(ssh_site: Site, tmp_path: Path) -> None:
    """Three sessions, two names of the host, one failed login; another key there still works (F-T2, T24)."""
    key = tmp_path / "revoked"
    new_key(key)
    wire = Wire(ssh_site.sshd.port)
    async with wire.open(), listening() as endpoint:
        revoked = ssh_site.but(key_file=str(key), hosts=("127.0.0.1", "localhost"), port=wire.port)
        async with revoked.open() as dialer:
            for _ in range(3):
                with pytest.raises(Unauthorised):
                    await dialer.dial(endpoint, JOB)
        assert wire.connects == 1
        good = evolve(ssh_site, directory=tmp_path / "good")
        good.directory.mkdir(mode=0o700)
        async with good.open() as dialer, dialled(dialer, endpoint) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"


async def test_a_key_that_may_only_forward_to_one_place_is_enough(tmp_path: Path) -> None:
    """T23: what a site should give a gateway. Whoever stole it has no shell, no files and no other destination."""
    new_key(tmp_path / "key")
    async with listening() as endpoint:
        rights = f'restrict,port-forwarding,permitopen="localhost:{endpoint.port}",command="/bin/false"'
        (tmp_path / "authorized").write_text(f"{rights} {(tmp_path / 'key.pub').read_text()}")
        with sshd.server(AuthorizedKeysFile=str(tmp_path / "authorized"), PermitListen="none") as server:
            for kind in SSH:
                (tmp_path / kind).mkdir(mode=0o700)
                site = Site(kind, server, tmp_path / kind).but(key_file=str(tmp_path / "key"))
                async with site.open() as dialer:
                    async with dialled(dialer, endpoint) as (reader, writer):
                        writer.write(b"x")
                        assert await reader.readexactly(1) == b"x"
                    with pytest.raises(Refused, match="permit"):
                        await dial_twice(dialer, Endpoint("localhost", server.port))


async def test_a_login_node_that_is_down_is_passed_over(ssh_site: Site) -> None:
    """Both names are tried; the one that answers is kept (F-T1)."""
    async with listening() as endpoint, ssh_site.but(hosts=("nowhere.invalid", "127.0.0.1")).open() as dialer:
        for _ in range(3):
            async with dialled(dialer, endpoint):
                pass


async def test_a_login_node_that_refuses_connections_is_unreachable_and_left_alone_for_a_moment(ssh_site: Site) -> None:
    """F-T1, F-T4, I27."""
    wire = Wire(1)
    async with wire.open(), ssh_site.but(port=wire.port).open() as dialer:
        for _ in range(20):
            with pytest.raises((Unreachable, Overloaded)):
                await dialer.dial(Endpoint("localhost", 9), JOB)
        assert wire.connects <= 3


async def test_through_a_jump_host(ssh_site: Site) -> None:
    """The same server is both; the second connection is made inside the first."""
    jump = JumpConfig(host="localhost", port=ssh_site.sshd.port)
    async with (
        listening() as endpoint,
        ssh_site.but(jump=(jump,)).open() as dialer,
        dialled(dialer, endpoint) as (reader, writer),
    ):
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"


# A bad line --------------------------------------------------------------------------------------------------


async def test_a_connection_that_is_cut_ends_its_streams_and_is_made_anew(ssh_site: Site) -> None:
    """F-T7."""
    wire = Wire(ssh_site.sshd.port)
    async with wire.open(), listening() as endpoint, ssh_site.but(port=wire.port).open() as dialer:
        async with dialled(dialer, endpoint) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            wire.cut()
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await asyncio.wait_for(reader.readexactly(1), 10)
        wire.heal()
        began = time.monotonic()
        while True:
            try:
                async with dialled(dialer, endpoint):
                    break
            except (Unreachable, Overloaded):
                await asyncio.sleep(0.1)
            assert time.monotonic() - began < 20
        assert wire.connects <= 6


async def test_a_connection_that_stops_moving_is_given_up_by_itself(ssh_site: Site) -> None:
    """Keep-alives without an answer: the streams end, though the TCP connection stays (F-T6)."""
    wire = Wire(ssh_site.sshd.port)
    async with (
        wire.open(),
        listening() as endpoint,
        ssh_site.but(port=wire.port).open() as dialer,
        dialled(dialer, endpoint) as (reader, writer),
    ):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        wire.stall()
        assert await asyncio.wait_for(reader.read(), 30) == b""


async def test_many_sessions_that_lose_their_login_node_make_one_connection(ssh_site: Site) -> None:
    """F-T9."""
    wire = Wire(ssh_site.sshd.port)
    async with wire.open(), listening() as endpoint, ssh_site.but(port=wire.port).open() as dialer:

        async def one() -> None:
            async with dialled(dialer, endpoint) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"

        await asyncio.gather(*(one() for _ in range(50)))
        assert wire.connects == 1


async def test_a_dial_that_is_given_up_leaves_nothing(ssh_site: Site) -> None:
    wire = Wire(ssh_site.sshd.port)
    site = evolve(ssh_site, timeouts=evolve(TIMEOUTS, connect_s=1))
    async with wire.open(), listening() as endpoint, site.but(port=wire.port).open() as dialer:
        wire.stall()
        with pytest.raises((Unreachable, Overloaded)):
            await dialer.dial(endpoint, JOB)
        with pytest.raises((TimeoutError, Unreachable)):
            await asyncio.wait_for(dialer.dial(endpoint, JOB), 0.2)
