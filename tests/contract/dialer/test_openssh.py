"""What is OpenSSH's own: masters that end with us, further ones, stale sockets, and what others can see of it."""

import asyncio
import contextlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from attrs import evolve
from tests.contract.dialer.ssh_world import JOB, SITE, TIMEOUTS, Site, dialled, listening
from tests.servers import sshd
from tests.servers.wire import Wire
from tests.unit.launcher.job import eventually

from moorage.adapters.ssh import mux
from moorage.adapters.ssh.hosts import JumpConfig, LoginConfig
from moorage.adapters.ssh.openssh import OpensshDialer, client_config
from moorage.adapters.ssh.plugin import OpensshConfig
from moorage.core.model import Endpoint
from moorage.ports.errors import PortError

KEY = "ssh-ed25519 " + "A" * 68


@pytest.fixture
def site(server: sshd.Sshd, tmp_path: Path) -> Site:
    directory = tmp_path / "site"
    directory.mkdir(mode=0o700)
    return Site("openssh", server, directory)


def masters(site: Site) -> list[int]:
    """Processes of `ssh` that work in the site's directory."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if os.readlink(f"/proc/{name}/cwd") == str(site.directory) and words[0].endswith(b"ssh"):
                found.append(int(name))
    return found


async def test_a_further_master_is_made_when_one_has_enough_sessions(site: Site) -> None:
    async with contextlib.AsyncExitStack() as stack:
        dialer = await stack.enter_async_context(site.but(forwards=2).open())
        for _ in range(5):
            endpoint = await stack.enter_async_context(listening())
            for _ in range(2):  # a second stream of a session goes where its first one went
                reader, writer = await stack.enter_async_context(dialled(dialer, endpoint))
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
        assert len(masters(site)) == 3
    assert masters(site) == []


async def test_nobody_waits_for_a_further_master(site: Site) -> None:
    """It logs in while the first one takes a few more, and the next sessions are its own."""
    async with contextlib.AsyncExitStack() as stack:
        dialer = await stack.enter_async_context(site.but(forwards=4).open())
        assert isinstance(dialer, OpensshDialer)
        for number in range(8):
            endpoint = await stack.enter_async_context(listening())
            reader, writer = await stack.enter_async_context(dialled(dialer, endpoint))
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            if number == 4:
                assert dialer._further is not None
                await dialer._further
        assert [len(master.places) for master in dialer._masters] == [5, 3]


async def test_a_master_that_is_killed_is_replaced(site: Site) -> None:
    """F-T13."""
    async with listening() as endpoint, site.open() as dialer:
        async with dialled(dialer, endpoint) as (reader, _):
            os.kill(masters(site)[0], signal.SIGKILL)
            with contextlib.suppress(ConnectionResetError):  # as the kernel likes it
                assert await asyncio.wait_for(reader.read(), 5) == b""
        for _ in range(100):
            try:
                async with dialled(dialer, endpoint) as (reader, writer):
                    writer.write(b"x")
                    assert await reader.readexactly(1) == b"x"
                break
            except PortError:
                await asyncio.sleep(0.05)
        assert len(masters(site)) == 1


async def test_a_dialer_ends_the_master_and_the_sockets_of_one_that_was_killed(site: Site) -> None:
    """The relay was killed: what it left is of another epoch, whether a process is behind it or not (F-T13)."""
    process, file = await an_old_master(site)
    stale = site.directory / "m8"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale))
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint):
        assert await asyncio.wait_for(process.wait(), 5) is not None
        assert not stale.exists()
        assert not file.exists()
        assert len(masters(site)) == 1


async def an_old_master(site: Site) -> tuple[asyncio.subprocess.Process, Path]:
    known = site.directory / "old_known_hosts"
    known.write_text(f"[127.0.0.1]:{site.sshd.port} {site.sshd.host_key}\n")
    file = site.directory / "m7"
    words = ["-F", "none", "-N", "-M", "-S", str(file), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
    words += ["-i", str(site.sshd.key_file), "-p", str(site.sshd.port), f"{site.sshd.user}@127.0.0.1"]
    process = await asyncio.create_subprocess_exec("ssh", *words, stderr=subprocess.DEVNULL)
    await asyncio.to_thread(eventually, file.exists, "the old master")
    return process, file


async def test_masters_end_when_the_process_that_made_them_is_killed(site: Site, tmp_path: Path) -> None:
    code = (
        "import asyncio, pickle, sys\n"
        "from moorage.core.model import Endpoint\n"
        "from tests.contract.dialer.ssh_world import JOB\n"
        "async def main(site, port):\n"
        "    reader, writer = await site.dialer().dial(Endpoint('localhost', port), JOB)\n"
        "    print('up', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main(pickle.loads(bytes.fromhex(sys.argv[1])), int(sys.argv[2])))\n"
    )
    plain = pickle.dumps(evolve(site, sshd=evolve(site.sshd, process=None)))  # type: ignore[arg-type]
    root = Path(__file__).parents[3]
    async with listening() as endpoint:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code, plain.hex(), str(endpoint.port)),
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}"},
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"up\n"
        assert len(masters(site)) == 1
        process.kill()
        await process.communicate()
        await asyncio.to_thread(eventually, lambda: not masters(site), "the master to end")


async def test_a_master_that_hangs_is_killed_and_replaced(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped: nothing ends, sockets accept until their queues are full, and no keep-alive is sent any more."""
    monkeypatch.setattr("moorage.adapters.ssh.openssh.PING_S", 0.2)
    monkeypatch.setattr("moorage.adapters.ssh.openssh.SILENT_S", 0.5)
    async with listening() as endpoint, site.open() as dialer:
        async with dialled(dialer, endpoint) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            (hung,) = masters(site)
            os.kill(hung, signal.SIGSTOP)
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await asyncio.to_thread(eventually, lambda: hung not in masters(site), "the old master to end")
        async with dialled(dialer, endpoint) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
        assert len(masters(site)) == 1


async def test_dials_at_a_master_that_hangs_hold_up_nobody(site: Site) -> None:
    """More than its sockets' queues take: each gives up in its time, and the loop goes on meanwhile."""
    quick = evolve(site, timeouts=evolve(TIMEOUTS, connect_s=2))
    async with listening() as endpoint, quick.open() as dialer:
        async with dialled(dialer, endpoint):
            os.kill(masters(site)[0], signal.SIGSTOP)
        lags = asyncio.create_task(longest_lag(2))

        async def one() -> None:
            with contextlib.suppress(PortError):
                async with dialled(dialer, endpoint):
                    pass

        await asyncio.gather(*(one() for _ in range(300)))
        assert await lags < 3  # a blocking connect would wait for ever
        os.kill(masters(site)[0], signal.SIGKILL)


async def longest_lag(seconds: float) -> float:
    """How long at most the event loop kept somebody waiting who wanted to wait 10 ms."""
    loop = asyncio.get_running_loop()
    end, longest = loop.time() + seconds, 0.0
    while (began := loop.time()) < end:
        await asyncio.sleep(0.01)
        longest = max(longest, loop.time() - began - 0.01)
    return longest


async def test_the_way_back_sends_small_messages_at_once(site: Site) -> None:
    """sshd sets TCP_NODELAY with the first command of a connection, so each connection has one."""
    commands = site.directory / "commands"
    with sshd.server(ForceCommand=f"echo $SSH_ORIGINAL_COMMAND >> {commands}") as server:
        async with listening() as endpoint, evolve(site, sshd=server).open() as dialer, dialled(dialer, endpoint):
            await asyncio.to_thread(eventually, commands.exists, "the command")
    assert commands.read_text() == "true\n"


async def test_a_gateway_that_permits_no_command_is_as_good(site: Site) -> None:
    with sshd.server(MaxSessions="0") as server:
        async with listening() as endpoint, evolve(site, sshd=server).open() as dialer:
            for _ in range(3):
                async with dialled(dialer, endpoint) as (reader, writer):
                    writer.write(b"x")
                    assert await reader.readexactly(1) == b"x"
                await asyncio.sleep(0.1)


async def test_a_client_without_socks_on_a_unix_socket_gets_forwards(site: Site, tmp_path: Path) -> None:
    program = tmp_path / "old_ssh"
    program.write_text('#!/bin/sh\nexec /usr/bin/ssh "$1" "$2" "$3" "$4" "$5" "$6" "$9" "${10}"\n')
    program.chmod(0o755)
    async with listening() as endpoint, site.but(program=str(program)).open() as dialer:
        for _ in range(2):
            async with dialled(dialer, endpoint) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                assert [file.name for file in site.directory.glob("[df][0-9]*")] == ["f1-m1"]


async def test_forwards_are_removed_when_nobody_uses_them(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unix sockets of the far side have one each; ports have none, and leave nothing either."""
    monkeypatch.setattr("moorage.adapters.ssh.openssh.IDLE_S", 0.1)
    async with (
        listening() as port,
        listening(socket=tmp_path / "gate.sock") as gate,
        site.open() as dialer,
    ):
        for endpoint, forwards in ((port, 0), (gate, 1)):
            async with dialled(dialer, endpoint):
                assert len(list(site.directory.glob("f*"))) == forwards
            await asyncio.to_thread(eventually, lambda: not list(site.directory.glob("f*")), "the forward to go")
            async with dialled(dialer, endpoint) as (reader, writer):
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
    assert sorted(file.name for file in site.directory.iterdir()) == ["known_hosts", "ssh_config"]


async def test_the_login_storm_of_a_rebooted_node_is_one_connection_at_a_time(site: Site) -> None:
    """Two hundred sessions ask while the node is away, and when it is back one connect serves all (F-T9, I27)."""
    wire = Wire(site.sshd.port)
    wire.cut()
    async with wire.open(), listening() as endpoint, site.but(port=wire.port).open() as dialer:

        async def session() -> float:
            began = time.monotonic()
            while True:
                try:
                    async with dialled(dialer, endpoint) as (reader, writer):
                        writer.write(b"x")
                        assert await reader.readexactly(1) == b"x"
                        return time.monotonic() - began
                except PortError:
                    await asyncio.sleep(0.2)

        sessions = [asyncio.create_task(session()) for _ in range(200)]
        await asyncio.sleep(2)
        before = wire.connects
        wire.heal()
        healed = time.monotonic()
        await asyncio.gather(*sessions)
        assert before <= 8  # the pauses double to two seconds
        assert wire.connects <= before + 2
        assert time.monotonic() - healed < 15


# What can be seen and reached --------------------------------------------------------------------------------


async def test_its_command_line_is_fixed_and_its_environment_small(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """T7, T17, I49."""
    monkeypatch.setenv("JUPYTERHUB_API_TOKEN", "canary-of-the-hub")
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint):
        (pid,) = masters(site)
        words, environment = about_process(pid)
        ours = ["-N", "-M", "-S", "m1", "-D", "/proc/self/cwd/d1"]
        assert words == ["/usr/bin/ssh", "-F", "ssh_config", *ours, "--", "127.0.0.1"]
        assert "canary" not in environment
    assert [file.name for file in site.directory.iterdir() if file.stat().st_mode & 0o077] == []


def about_process(pid: int) -> tuple[list[str], str]:
    words = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
    return words, Path(f"/proc/{pid}/environ").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_reaches_none_of_its_sockets(site: Site) -> None:
    """T1, I50."""
    async with listening() as endpoint, site.open() as dialer, dialled(dialer, endpoint):
        for directory in list(site.directory.parents)[:3]:
            with contextlib.suppress(PermissionError):
                directory.chmod(directory.stat().st_mode | 0o055)
        python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
        code = "import socket, sys\nsocket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        for file in site.directory.glob("[dfm][0-9]*"):
            asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", "-c", code, str(file)]
            process = await asyncio.create_subprocess_exec(*asked, stderr=subprocess.PIPE)
            _, told = await process.communicate()
            assert b"PermissionError" in told


async def test_a_long_directory_is_no_matter(site: Site) -> None:
    directory = site.directory / ("d" * 100) / ("e" * 60)
    directory.mkdir(parents=True)
    async with (
        listening() as endpoint,
        evolve(site, directory=directory).open() as dialer,
        dialled(dialer, endpoint) as (reader, writer),
    ):
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"


def test_the_generated_configuration_reads_no_other_and_grants_nothing() -> None:
    login = LoginConfig(
        hosts=("login[01-02].site",), user="gate", key_file="/k", host_keys=(KEY,), jump=(JumpConfig(host="door"),)
    )
    lines = client_config(login, 10).splitlines()
    assert lines[:5] == ["Host login01.site", "  Port 22", "  User gate", "  ProxyJump door", "  ControlPersist no"]
    for wanted in (
        "StrictHostKeyChecking yes",
        "GlobalKnownHostsFile none",
        "ForwardAgent no",
        "PermitLocalCommand no",
        "IdentitiesOnly yes",
        "ServerAliveInterval 5",
        "ServerAliveCountMax 3",
    ):
        assert "  " + wanted in lines
    assert not [line for line in lines if "Include" in line or "ProxyCommand" in line]


async def test_something_else_at_the_control_socket_is_no_master(tmp_path: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"\xff" * 64)
        writer.close()

    async with listening(nonsense, tmp_path / "m1"):
        with pytest.raises(mux.MuxError):
            await mux.check(tmp_path / "m1")
        with pytest.raises(mux.MuxError):
            await mux.try_channel(tmp_path / "m1", "localhost", 9)
    with pytest.raises(mux.MuxError):
        await mux.check(tmp_path / "m1")


async def test_a_master_has_as_long_to_answer_as_it_is_given(tmp_path: Path) -> None:
    """So that one on a machine that swaps is not replaced before its time."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with listening(slow, tmp_path / "m1"):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await mux.check(tmp_path / "m1", 0.2)
        assert 0.2 <= time.monotonic() - began < 4


async def test_without_the_program_it_is_an_error_of_the_port(site: Site) -> None:
    config = site.but(program="/no/such/ssh").config(OpensshConfig)
    dialer = OpensshDialer(SITE, config, site.directory, TIMEOUTS, 1)
    with pytest.raises(PortError):
        await dialer.dial(Endpoint("localhost", 9), JOB)
    await dialer.close()
