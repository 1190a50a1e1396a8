"""Every process on the way is killed or stopped under load: noticed, repaired, and nothing of it left in the kernel."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from attrs import frozen
from tests.contract.dialer.ssh_world import Site
from tests.contract.relay.world import HERE, Place, endpoint_of, get, relay, until_good
from tests.servers import sshd
from tests.unit.launcher.job import eventually

from moorage.core.model import JobId, Route
from moorage.relay.client import InProcessRelay

JOB = JobId("4711")


@frozen
class World:
    """Two sessions through one login node: the first one is busy, the second one looks on."""

    place: Place
    site: Site
    tunnels: InProcessRelay
    routes: tuple[Route, ...]

    def masters(self) -> list[int]:
        return [pid for pid in children(os.getpid()) if command(pid).startswith(b"/usr/bin/ssh\0")]

    def connections(self) -> list[int]:
        """Processes of sshd that serve a connection, and not their privileged halves' other children."""
        return [pid for pid in children(self.site.sshd.process.pid) if command(pid).startswith(b"sshd: ")]

    def launchers(self) -> list[int]:
        return [job.process.pid for job in self.place.jobs if job.process is not None]

    def kernel(self) -> dict[str, int]:
        """What a leak would show in: descriptors, processes and sockets, here and at the far ends."""
        jobs = [job.process.pid for job in self.place.jobs if job.process and job.process.poll() is None]
        return {
            "descriptors": len(os.listdir("/proc/self/fd")),
            "masters": len(self.masters()),
            "connections": len(self.connections()),
            "files": len(list(self.site.directory.iterdir())),
            "jobs": sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in jobs),
        }

    def quiet(self) -> None:
        """Nobody is connected and nothing is kept: what is there now is there to stay."""
        for path in self.tunnels.relay._paths.values():
            path._wanted = 0
            path._shrink()


@pytest.fixture
async def world(
    place: Place, server: sshd.Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("moorage.adapters.ssh.openssh.PING_S", 0.5)
    monkeypatch.setattr("moorage.adapters.ssh.openssh.SILENT_S", 1.0)
    for name in ("IDLE_S", "BULK_KEPT_S", "EMPTY_S"):  # the further connection beside a download ends soon after it
        monkeypatch.setattr(f"moorage.adapters.ssh.openssh.{name}", 1.0)
    directory = tmp_path / "site"
    directory.mkdir(mode=0o700)
    site = Site("openssh", server, directory)
    async with site.open() as dialer, relay(place, {HERE: dialer}) as tunnels:
        routes = []
        for number in (1, 2):
            spec = place.spec(number)
            job = await place.job(spec)
            routes.append(await tunnels.open(spec, 1, JOB, endpoint_of(job)))
            await until_good(tunnels, spec.id)
        yield World(place, site, tunnels, tuple(routes))


def children(parent: int) -> list[int]:
    found = []
    for task in os.listdir(f"/proc/{parent}/task"):
        with contextlib.suppress(OSError):
            found += list(map(int, Path(f"/proc/{parent}/task/{task}/children").read_text().split()))
    return [pid for each in found for pid in (each, *(children(each) if os.path.exists(f"/proc/{each}/task") else []))]


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@contextlib.asynccontextmanager
async def load(route: Route) -> AsyncIterator[None]:
    """A download without an end and a WebSocket that is talked to; whether they are cut is no matter here."""

    async def download(client: aiohttp.ClientSession) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with client.get(f"{route.address}/bytes/{1 << 34}") as answer:
                async for _ in answer.content.iter_any():
                    await asyncio.sleep(0.01)

    async def talk(client: aiohttp.ClientSession) -> None:
        with contextlib.suppress(aiohttp.ClientError, ConnectionError):
            async with client.ws_connect(route.address + "/socket") as websocket:
                while not websocket.closed:
                    await websocket.send_str("hello")
                    await websocket.receive()
                    await asyncio.sleep(0.01)

    async with aiohttp.ClientSession() as client:
        tasks = [asyncio.create_task(download(client)), asyncio.create_task(talk(client))]
        await asyncio.sleep(0.3)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def comes_back(route: Route, seconds: float) -> None:
    """A person who reloads the page gets an answer within this time."""
    end = time.monotonic() + seconds
    while True:
        try:
            assert await get(route.address, seconds=seconds) == b"hello"
            return
        except (aiohttp.ClientError, TimeoutError):
            assert time.monotonic() < end, "the path does not come back"
            await asyncio.sleep(0.1)


def kill_master(world: World) -> None:
    os.kill(world.masters()[0], signal.SIGKILL)


def stop_master(world: World) -> None:
    os.kill(world.masters()[0], signal.SIGSTOP)


def kill_connection(world: World) -> None:
    for pid in world.connections():
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("act", [kill_master, stop_master, kill_connection])
async def test_the_way_is_made_anew_and_leaves_nothing(world: World, act: Callable[[World], None]) -> None:
    """Between relay and login node: both sessions are back within seconds, their jobs live, no kernel holds more."""
    world.quiet()
    await asyncio.sleep(0.3)
    before = world.kernel()
    pids = [await get(route.address, "/pid") for route in world.routes]
    async with load(world.routes[0]):
        act(world)
        for route in world.routes:
            await comes_back(route, 20)
    assert [await get(route.address, "/pid") for route in world.routes] == pids

    def settled() -> bool:
        world.quiet()
        after = world.kernel()
        return all(after[name] <= before[name] + 1 for name in before)  # one for a probe that is under way

    await settles(settled)
    assert len(world.masters()) == 1


async def settles(condition: Callable[[], bool], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - kernels tell when they are asked
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("who", ["master", "connection", "launcher"])
async def test_what_hangs_for_a_moment_cuts_nobody(world: World, who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty WebSockets beside a download: what is said meanwhile arrives when it goes on, in order and once."""
    monkeypatch.setattr("moorage.adapters.ssh.openssh.SILENT_S", 20.0)
    async with load(world.routes[0]), aiohttp.ClientSession() as client, contextlib.AsyncExitStack() as stack:
        talks = [
            await stack.enter_async_context(client.ws_connect(world.routes[number % 2].address + "/socket"))
            for number in range(20)
        ]
        pids = {"master": world.masters, "connection": world.connections, "launcher": world.launchers}[who]()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            for talk in talks:
                for word in ("one", "two"):
                    await talk.send_str(word)
            await asyncio.sleep(1)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        for talk in talks:
            assert [(await talk.receive(timeout=20)).data for _ in range(2)] == ["one", "two"]


async def test_a_launcher_that_hangs_is_lost_and_found_again(world: World) -> None:
    """Stopped and continued, as a node that swaps: lost meanwhile, the other session is not, nobody ends the job."""
    spec, job = world.place.spec(1), world.place.jobs[0]
    async with load(world.routes[0]):
        job.signal(signal.SIGSTOP)
        await settles(lambda: world.tunnels.relay._paths[spec.id].report().lost)
        assert await get(world.routes[1].address) == b"hello"
        job.signal(signal.SIGCONT)
        await until_good(world.tunnels, spec.id, 10)
        await comes_back(world.routes[0], 10)
    assert not job.ended()


async def test_a_launcher_that_is_killed_takes_its_lab_with_it_and_nothing_else(world: World) -> None:
    spec, job = world.place.spec(1), world.place.jobs[0]
    lab = int(await get(world.routes[0].address, "/pid"))
    async with load(world.routes[0]):
        job.signal(signal.SIGKILL)
        await settles(lambda: world.tunnels.relay._paths[spec.id].report().lost)
    with pytest.raises(aiohttp.ClientError):
        await get(world.routes[0].address)
    assert await get(world.routes[1].address) == b"hello"
    await asyncio.to_thread(eventually, lambda: not command(lab), "the lab to end")


async def test_a_lab_that_is_killed_is_told_of(world: World) -> None:
    """The path leads to its launcher, which says what has become of the lab, and ends."""
    job = world.place.jobs[0]
    lab = int(await get(world.routes[0].address, "/pid"))
    async with load(world.routes[0]):
        os.kill(lab, signal.SIGKILL)
        assert await asyncio.to_thread(job.wait) == 128 + signal.SIGKILL
    assert job.status()["lab_signal"] == signal.SIGKILL
    assert not (await world.tunnels.probe(world.place.spec(1).id)).good
    assert (await world.tunnels.probe(world.place.spec(2).id)).good


async def test_a_lab_that_hangs_is_no_path(world: World) -> None:
    spec = world.place.spec(1)
    lab = int(await get(world.routes[0].address, "/pid"))
    os.kill(lab, signal.SIGSTOP)
    try:
        assert not (await world.tunnels.probe(spec.id)).good
        assert await get(world.routes[1].address) == b"hello"
    finally:
        os.kill(lab, signal.SIGCONT)
    await until_good(world.tunnels, spec.id, 20)


# Another user of the machine ---------------------------------------------------------------------------------

STRANGER = """
import json, os, socket, sys
ports, files = json.load(sys.stdin)
found = []
for port in ports:
    with socket.socket() as there:
        there.settimeout(3)
        try:
            there.connect(("127.0.0.1", port))
            there.sendall(b"GET /hello HTTP/1.1\\r\\nHost: lab\\r\\n\\r\\n")
            if there.recv(100):
                found.append(port)
        except OSError:
            pass
for name in files:
    try:
        with socket.socket(socket.AF_UNIX) as there:
            there.connect(name)
        found.append(name)
    except OSError:
        pass
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
        found.append(name)
    except OSError:
        pass
print(json.dumps(found))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_gets_nothing_at_any_port_socket_or_file(world: World) -> None:
    """T1 to T3, T17, I50: on both ends, while it is in use, and wherever permissions of the directories above lead."""
    everybody = [os.getpid(), *children(os.getpid())]
    for directory in (world.place.directory, *world.place.directory.parents[:2]):
        directory.chmod(0o755)
    for job in world.place.jobs:
        job.directory.chmod(0o755)  # what our adapters make is 0700; the files have to hold by themselves
    public = {"plan.json", "moorage_launcher.py", "stdout", "stderr"}  # written by the test itself, and no secret
    files = [str(file) for file in world.place.directory.rglob("*") if file.name not in public and not file.is_dir()]
    ports = sorted({port for pid in everybody for port in listening_ports(pid)} - {world.site.sshd.port})
    assert len(ports) >= 4  # two listeners, two gates
    assert len(files) >= 10
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-I", "-c", STRANGER]
    async with load(world.routes[0]):
        process = await asyncio.create_subprocess_exec(*asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        told, _ = await process.communicate(json.dumps([ports, files]).encode())
    assert json.loads(told) == []
    assert await get(world.routes[1].address) == b"hello"


def listening_ports(pid: int) -> list[int]:
    """TCP ports of any address on which a process listens. Source: proc(5), /proc/net/tcp."""
    sockets = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    rows = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    return [int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
