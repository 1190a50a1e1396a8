"""The relay as a process of its own: started on demand, found again, alone, back at its addresses after its end."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from tests.contract.relay.world import Place, direct, endpoint_of, get, settings, until_good
from tests.unit.launcher.job import Job, eventually

from moorage.core.model import JobId, Route
from moorage.ports.errors import Malformed, Refused, Unanswered, Unreachable
from moorage.relay import sockets
from moorage.relay.client import RelayTunnels
from moorage.relay.process import CONTROL_NAME, LOCK_NAME, LOG_NAME, directory_of, main

JOB = JobId("4711")
ROOT = Path(__file__).parents[3]
HUB = """
import asyncio, pathlib, sys
from moorage.relay.client import RelayTunnels
async def main():
    tunnels = RelayTunnels(pathlib.Path(sys.argv[1]), None)
    print(len(await tunnels.list()), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


class Deployment:
    """A state directory and the relay processes that were started for it."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.state = place.directory / "state"
        self.state.mkdir(mode=0o700)
        self.command = [sys.executable, "-m", "tests.contract.relay.relay_process", str(self.state)]
        self.keep_secrets()

    @property
    def relay_directory(self) -> Path:
        return directory_of(self.state)

    def keep_secrets(self) -> None:
        secrets = {
            f"{session} {attempt}": secret.reveal() for (session, attempt), secret in self.place.vault.secrets.items()
        }
        (self.state / "vault.json").touch(mode=0o600)
        (self.state / "vault.json").write_text(json.dumps(secrets))

    def pids(self) -> list[int]:
        """Processes that hold the lock's file open: the relay, whoever started it."""
        lock = str(self.relay_directory / LOCK_NAME)
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if lock in open_files(pid)]

    def started(self) -> list[int]:
        """Every process that is the relay or is about to be: those that lose the race for the lock come up late."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if str(self.state).encode() in Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        def gone() -> bool:
            pids = self.started()
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return not pids

        eventually(gone, "the relay to be gone")

    def log(self) -> str:
        return (self.relay_directory / LOG_NAME).read_text()


def open_files(pid: int) -> list[str]:
    found = []
    with contextlib.suppress(OSError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


@pytest.fixture
def deployment(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
    made = Deployment(place)
    yield made
    made.kill()


@pytest.fixture
async def tunnels(deployment: Deployment) -> AsyncIterator[RelayTunnels]:
    made = RelayTunnels(deployment.state, deployment.command)
    yield made
    await made.aclose()


async def opened(deployment: Deployment, tunnels: RelayTunnels, number: int = 1) -> tuple[Job, Route]:
    spec = deployment.place.spec(number)
    job = await deployment.place.job(spec)
    deployment.keep_secrets()
    route = await tunnels.open(spec, 1, JOB, endpoint_of(job))
    await until_good(tunnels, spec.id)
    return job, route


async def test_it_is_started_on_demand_and_found_again(deployment: Deployment, tunnels: RelayTunnels) -> None:
    _, route = await opened(deployment, tunnels)
    first = deployment.pids()
    other = RelayTunnels(deployment.state, deployment.command)
    assert (await other.list()).keys() == {deployment.place.spec().id}
    assert (await other.details())[deployment.place.spec().id].address == route.address
    await other.aclose()
    assert deployment.pids() == first
    assert len(first) == 1
    assert os.getsid(first[0]) != os.getsid(0)


async def test_many_that_start_it_at_once_get_one(deployment: Deployment) -> None:
    clients = [RelayTunnels(deployment.state, deployment.command) for _ in range(4)]
    await asyncio.gather(*(client.list() for client in clients))
    assert len(deployment.pids()) == 1
    for client in clients:
        await client.aclose()
    await asyncio.to_thread(eventually, lambda: deployment.started() == deployment.pids(), "the others to end")


async def test_killed_and_started_again_it_has_every_path_at_its_address(
    deployment: Deployment, tunnels: RelayTunnels
) -> None:
    """The next call of anybody starts it; nobody opens a path anew, and the labs are the same (F-T14)."""
    made = [await opened(deployment, tunnels, number) for number in (1, 2, 3)]
    pids = [await get(route.address, "/pid") for _, route in made]
    deployment.kill()
    began = time.monotonic()
    assert len(await tunnels_again(tunnels)) == 3
    assert [await get(route.address, "/pid") for _, route in made] == pids
    assert time.monotonic() - began < 15  # on a busy machine; a second or two otherwise


async def tunnels_again(tunnels: RelayTunnels) -> object:
    """The call that was under way when the relay died may be lost; the next one is not."""
    with contextlib.suppress(Unanswered, Unreachable):
        return await tunnels.list()
    return await tunnels.list()


async def test_a_client_that_is_killed_cuts_no_stream(deployment: Deployment, tunnels: RelayTunnels) -> None:
    """The Hub's process ends as it likes: a WebSocket through the relay does not notice."""
    _, route = await opened(deployment, tunnels)
    async with aiohttp.ClientSession() as client, client.ws_connect(route.address + "/socket") as websocket:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", HUB, str(deployment.state), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"1\n"
        process.kill()
        await process.communicate()
        await tunnels.aclose()
        await websocket.send_str("still there")
        assert (await websocket.receive(timeout=10)).data == "still there"


async def test_a_relay_that_was_told_to_stop_leaves_its_paths_to_the_next(
    deployment: Deployment, tunnels: RelayTunnels
) -> None:
    _, route = await opened(deployment, tunnels)
    await tunnels.stop_relay()
    await asyncio.to_thread(eventually, lambda: not deployment.pids(), "the relay to end")
    assert len(await tunnels_again(tunnels)) == 1  # type: ignore[arg-type]
    assert await get(route.address) == b"hello"


async def test_a_relay_that_nobody_needs_ends(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client is enough to keep it, and so is a path; the next one who needs a relay starts one."""
    monkeypatch.setattr("moorage.relay.process.WATCH_S", 0.05)
    monkeypatch.setattr("moorage.relay.process.USELESS_S", 0.4)
    spec = place.spec()
    job = await place.job(spec)
    running = asyncio.create_task(main(tmp_path, direct(), place.vault, settings()))
    await asyncio.to_thread(eventually, (tmp_path / "relay" / CONTROL_NAME).exists, "the control socket")
    tunnels = RelayTunnels(tmp_path, None)
    await tunnels.list()
    await asyncio.sleep(0.8)
    await tunnels.open(spec, 1, JOB, endpoint_of(job))
    await tunnels.aclose()
    await asyncio.sleep(0.8)
    assert not running.done()
    await tunnels.close(spec.id)
    await tunnels.aclose()
    await asyncio.wait_for(running, 10)


async def test_a_relay_that_hangs_is_replaced(
    deployment: Deployment, tunnels: RelayTunnels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped for good (I28): ended after a call without an answer; the next one has every path at its address."""
    _, route = await opened(deployment, tunnels)
    lab, (hung,) = await get(route.address, "/pid"), deployment.pids()
    os.kill(hung, signal.SIGSTOP)
    monkeypatch.setattr("moorage.relay.client.HUNG_S", 0.5)
    tunnels._call_s = 0.5
    with pytest.raises(Unanswered):
        await tunnels.list()
    await asyncio.to_thread(eventually, lambda: not _lives(hung), "the relay to be ended")
    tunnels._call_s = 10
    assert len(await tunnels_again(tunnels)) == 1  # type: ignore[arg-type]
    assert await get(route.address, "/pid") == lab


async def test_a_relay_that_hangs_is_replaced_by_whoever_comes_new(
    deployment: Deployment, tunnels: RelayTunnels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub that was restarted has never heard of it, and finds nobody who says hello."""
    _, route = await opened(deployment, tunnels)
    (hung,) = deployment.pids()
    os.kill(hung, signal.SIGSTOP)
    hub = RelayTunnels(deployment.state, deployment.command)
    with monkeypatch.context() as patience:
        patience.setattr("moorage.relay.client.START_S", 0.5)
        with contextlib.suppress(Unanswered, Unreachable):  # no time is left for the other one to start
            await hub.list()
    assert not _lives(hung)
    assert len(await hub.list()) == 1
    assert await get(route.address) == b"hello"
    await hub.aclose()


async def test_somebody_who_only_looks_ends_no_relay(
    deployment: Deployment, tunnels: RelayTunnels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`moorage tunnels` says that there is no answer; whoever sees to the relay sees to its end."""
    await tunnels.list()
    (pid,) = deployment.pids()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr("moorage.relay.client.START_S", 0.2)
    looking = RelayTunnels(deployment.state, None)
    with pytest.raises(Unanswered, match="hello"):
        await looking.list()
    os.kill(pid, signal.SIGCONT)
    assert await tunnels.list() == {}
    assert deployment.pids() == [pid]


async def test_a_call_that_takes_long_ends_no_relay(
    deployment: Deployment, tunnels: RelayTunnels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks for may hang, a file system say; whether the relay does, is asked."""
    await tunnels.list()
    before = deployment.pids()
    monkeypatch.setattr("moorage.relay.client.HUNG_S", 5.0)
    tunnels._call_s = -1.0  # over before it is answered
    with pytest.raises(Unanswered):
        await tunnels.list()
    assert tunnels._looking is not None
    await tunnels._looking
    tunnels._call_s = 10
    assert await tunnels.list() == {}
    assert deployment.pids() == before


async def test_a_relay_whose_directory_was_removed_ends(deployment: Deployment, tunnels: RelayTunnels) -> None:
    await tunnels.list()
    pids = deployment.pids()
    shutil.rmtree(deployment.relay_directory)
    await asyncio.to_thread(eventually, lambda: not any(map(_lives, pids)), "the relay to end")


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_long_state_directory_still_has_a_control_socket(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "src")]))
    place.directory = place.directory / ("d" * 100) / ("e" * 100)
    place.directory.mkdir(parents=True)
    deployment = Deployment(place)
    tunnels = RelayTunnels(deployment.state, deployment.command)
    try:
        assert await tunnels.list() == {}
    finally:
        await tunnels.aclose()
        deployment.kill()


# Whom it lets in ---------------------------------------------------------------------------------------------


async def test_its_files_are_the_owners_alone_and_hold_no_secret(deployment: Deployment, tunnels: RelayTunnels) -> None:
    """T17, I49."""
    job, _ = await opened(deployment, tunnels)
    files = sorted(deployment.relay_directory.rglob("*"))
    assert {CONTROL_NAME, LOG_NAME, "paths.sqlite"} <= {file.name for file in files}
    assert deployment.relay_directory.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in files if file.stat().st_mode & 0o077] == []
    text = b"".join(file.read_bytes() for file in files if file.is_file())
    (pid,) = deployment.pids()
    text += about_process(pid)
    key = job.key.reveal()
    for form in (key, key.upper(), key[:16], key[-16:]):
        assert form.encode() not in text
    assert bytes.fromhex(key) not in text


def about_process(pid: int) -> bytes:
    """What the process list can show of it."""
    return Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()


async def test_a_directory_that_others_can_enter_is_refused(deployment: Deployment, tunnels: RelayTunnels) -> None:
    """F-T10."""
    deployment.relay_directory.mkdir(mode=0o755)
    deployment.relay_directory.chmod(0o755)
    with pytest.raises(Refused, match="755"):
        await tunnels.list()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_cannot_reach_the_control_socket(deployment: Deployment, tunnels: RelayTunnels) -> None:
    """Not even where the directories above are open to all (I50)."""
    await tunnels.list()
    for directory in (deployment.state, deployment.state.parent):
        directory.chmod(0o755)
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    code = "import socket, sys\nsocket.socket(socket.AF_UNIX).connect(sys.argv[1])"
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", "-c", code]
    process = await asyncio.create_subprocess_exec(
        *asked, str(deployment.relay_directory / CONTROL_NAME), stderr=subprocess.PIPE
    )
    _, told = await process.communicate()
    assert process.returncode == 1
    assert b"PermissionError" in told


# What is said there ------------------------------------------------------------------------------------------


async def speak(deployment: Deployment, *lines: bytes) -> bytes:
    """What the relay answers to lines of our own."""
    stream = sockets.connect(deployment.relay_directory / CONTROL_NAME)
    reader, writer = await asyncio.open_unix_connection(sock=stream)
    for line in lines:
        writer.write(line + b"\n")
    writer.write_eof()
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


async def test_another_protocol_is_refused_and_nonsense_harms_nobody(
    deployment: Deployment, tunnels: RelayTunnels
) -> None:
    await tunnels.list()
    refused = json.loads(await speak(deployment, b'{"id": 1, "do": "hello", "protocol": 99}'))
    assert refused["error"] == ["refused", "this relay speaks protocol 1"]
    hello = b'{"id": 1, "do": "hello", "protocol": 1}'
    assert b'"refused"' in (await speak(deployment, hello, b'{"id": 2, "do": "open", "target": {"session": 7}}'))
    for nonsense in (b"\xff\x00", b"[]", b"{" * 50_000, b"x" * 100_000):
        await speak(deployment, nonsense)
    assert await tunnels.list() == {}


@pytest.mark.parametrize(
    ("answer", "error"), [(b"", Unreachable), (b"nonsense\n", Unanswered), (b'{"id": 1}\n', Malformed)]
)
async def test_whoever_answers_in_its_place_is_an_error_of_the_port(
    deployment: Deployment, answer: bytes, error: type[Exception]
) -> None:
    directory = deployment.relay_directory
    directory.mkdir(mode=0o700)

    def stand_in() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / CONTROL_NAME))
    listener.listen()
    answering = asyncio.get_running_loop().run_in_executor(None, stand_in)
    tunnels = RelayTunnels(deployment.state, None)
    with pytest.raises((error, Unanswered, Unreachable)):
        await tunnels.list()
    await tunnels.aclose()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    await answering


async def test_without_a_command_a_relay_that_is_not_there_is_unreachable(deployment: Deployment) -> None:
    tunnels = RelayTunnels(deployment.state, None)
    with pytest.raises(Unreachable, match="not running"):
        await tunnels.list()
