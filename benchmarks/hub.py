"""
moorage inside a real JupyterHub, beside what the Hub needs by itself, its own local spawner, and batchspawner on a
real Slurm, in the same run.

    python benchmarks/hub.py [--only FIGURE] [--starts 100] [--sessions 1000] [--restart 500] [--rounds 3] [--no-lab]

Every Hub is a process with the real proxy in front of it. moorage works as in production: the spawner, the runner with
its store, the UNICORE adapter, a relay of its own; the site is simulated behind real sockets. Where hundreds of
sessions are needed, its jobs are gates and stub labs in one process, because as many launchers would measure this
machine; the times until ready are those of real processes. Spawners take turns, so that all of them meet the same
machine. batchspawner needs root and Debian's munge, slurmctld, slurmd and slurm-client, and is left out without them.

The last line is JSON. Ratios are ours to the other one's: more is better for starts, less for everything else.
"""

# What blocks here does so while nothing is measured, and what is waited for has no event in this process.
# ruff: noqa: ASYNC110, ASYNC240

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import signal
import sqlite3
import stat
import statistics
import sys
import tempfile
import time
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "src")]

import hubworld  # noqa: E402
from hubworld import Hub, cpu_s, end_relay, first_line, free_port, hub, pss_mib  # noqa: E402

from moorage.core.model import parse_tag  # noqa: E402

OTHERS_S = 0.1
"""Between two requests of somebody else while starts are measured."""

SETTLED_S = 120.0
"""For what is left to be removed after the last kill, at most."""

STOPS = 0.4
"""Stops per second beside one start."""

AT_ONCE = 50
"""Starts at once where many servers are needed and their starting is not measured."""

Figures = dict[str, float]


def say(what: str, **of: float | str) -> None:
    """One row of the table."""
    words = [f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in of.items()]
    print(f"{what:<44} {'   '.join(word.replace('_', ' ') for word in words)}", flush=True)


# Worlds ----------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def alone(directory: Path) -> AsyncIterator[Hub]:
    """The Hub with a spawner that starts nothing: one stub in a process of its own is everybody's lab."""
    directory.mkdir(mode=0o700)
    port = free_port()
    with hubworld.process([sys.executable, HERE / "hubworld.py", "lab", str(port)], directory / "lab.log") as lab:
        first_line(lab)
        async with hub(directory, hubworld.nothing(f"http://127.0.0.1:{port}")) as running:
            yield running


@contextlib.asynccontextmanager
async def ours(directory: Path, crowd: bool = True) -> AsyncIterator[Hub]:
    """The Hub with moorage and one simulated UNICORE site, whose jobs are in one process, or real ones."""
    directory.mkdir(mode=0o700)
    config = hubworld.site_config(directory, processes=not crowd)
    command = [sys.executable, HERE / "hubworld.py", "crowd", config, directory / "jobs"]
    if not crowd:
        command = [sys.executable, "-m", "moorage.demo.site", "unicore", config]
    with hubworld.process(command, directory / "site.log") as site:
        port = free_port()
        told = {"notify_url": f"http://127.0.0.1:{port}/hub/moorage/notify/bench"}
        settings = hubworld.moorage_file(directory, first_line(site), told)
        try:
            async with hub(directory, settings, port, MOORAGE_SIMULATION="1") as running:
                yield running
        finally:
            await asyncio.to_thread(end_relay, directory)


async def local(directory: Path, stack: contextlib.AsyncExitStack, command: list[str]) -> Hub:
    directory.mkdir(mode=0o700)
    running: Hub = await stack.enter_async_context(hub(directory, hubworld.local(directory, command)))
    return running


async def batchspawner(directory: Path, stack: contextlib.AsyncExitStack) -> Hub | None:
    """batchspawner on a private Slurm; `None`, and why, where there can be none."""
    try:
        import batchspawner  # noqa: F401
        from tests.servers.slurm import NotInstalled, cluster
    except ImportError as error:
        say("batchspawner on a real Slurm", left_out=str(error))
        return None
    try:
        slurm = stack.enter_context(cluster())
    except NotInstalled as error:
        say("batchspawner on a real Slurm", left_out=str(error))
        return None
    directory.mkdir(mode=0o755)
    stub = directory / "stub"
    stub.write_text(f"#!{sys.executable} -S\n" + hubworld.STUB.replace("sys.argv[1]", "PORT").replace("\n", PORT, 1))
    stub.chmod(stub.stat().st_mode | stat.S_IXUSR)
    settings = hubworld.batch(directory, stub, slurm.programs)
    running: Hub = await stack.enter_async_context(hub(directory, settings))
    return running


PORT = "\nimport os, urllib.parse\nPORT = urllib.parse.urlsplit(os.environ['JUPYTERHUB_SERVICE_URL']).port\n"


# Figures ---------------------------------------------------------------------------------------------------------


async def burst(running: Hub, count: int, **options: str) -> tuple[float, float, float]:
    """
    Starts per second when all are asked for at once; the longest that another request took; the Hub's CPU each.

    Between the other requests is a pause: one after the other they would be the load themselves. The Hub alone answers
    a dozen of them, one that waits for a site now and then two hundred, each 8 ms of its one thread.
    """
    stalls: list[float] = []

    async def others() -> None:
        while True:
            began = time.perf_counter()
            await running.api("GET", "user")
            stalls.append(time.perf_counter() - began)
            await asyncio.sleep(OTHERS_S)

    users = [f"u{number}" for number in range(count)]
    watching = asyncio.create_task(others())
    began, cpu = time.perf_counter(), cpu_s(running.pid)
    await asyncio.gather(*(running.spawn(user, **options) for user in users))
    took = time.perf_counter() - began
    watching.cancel()
    used = (cpu_s(running.pid) - cpu) / count
    await running.stop_all(users)
    return count / took, max(stalls, default=0), used


async def starts(directory: Path, wanted: argparse.Namespace) -> Figures:
    """Starts per second and stalls, then how a few starts at once go beside spawners that start processes."""
    found: dict[str, list[tuple[float, float, float]]] = {"alone": [], "moorage": []}
    async with alone(directory / "alone") as bare, ours(directory / "moorage") as moored:
        for running in (bare, moored):
            await running.have([f"u{number}" for number in range(wanted.starts)])
        for _ in range(wanted.rounds):
            found["alone"].append(await burst(bare, wanted.starts))
            found["moorage"].append(await burst(moored, wanted.starts, service="stub", partition="login"))
    middle = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in found.items()}
    (rate, stall, cpu), (our_rate, our_stall, our_cpu) = middle["alone"], middle["moorage"]
    say(f"starts/s, {wanted.starts} at once", Hub_alone=rate, moorage=our_rate)
    say("  the Hub's processor time for each, ms", Hub_alone=1000 * cpu, moorage=1000 * our_cpu)
    say("  longest stall of another request, s", Hub_alone=stall, moorage=our_stall)
    return {"starts_vs_hub_alone": round(our_rate / rate, 3), "stall_vs_hub_alone": round(our_stall / stall, 3)}


async def peers(directory: Path, wanted: argparse.Namespace) -> Figures:
    """Stub labs that are processes: the local spawner, batchspawner on a real Slurm, moorage on a simulated site."""
    async with contextlib.AsyncExitStack() as stack:
        stub = directory / "lab.py"
        stub.write_text(hubworld.STUB.replace("\n", PORT, 1).replace("int(sys.argv[1])", "PORT"))
        command = [sys.executable, "-S", "-E", str(stub)]
        hubs: dict[str, tuple[Hub | None, dict[str, str]]] = {
            "local spawner": (await local(directory / "local", stack, command), {}),
            "moorage, UNICORE site": (
                await stack.enter_async_context(ours(directory / "moorage", crowd=False)),
                {"service": "stub", "partition": "login"},
            ),
            "batchspawner, Slurm": (await batchspawner(directory / "batch", stack), {}),
        }
        for name, (running, options) in hubs.items():
            if running is not None:
                await running.have([f"u{number}" for number in (*range(wanted.peers), 100, 101, 102)])
                one = [await running.spawn(f"u{number}", **options) for number in range(100, 103)]
                await running.stop_all([f"u{number}" for number in range(100, 103)])
                rate, stall, _ = await burst(running, wanted.peers, **options)
                say(f"stub processes: {name}", ready_s=statistics.median(one), starts_per_s=rate, stall_s=stall)
    return {}


async def ready(directory: Path, wanted: argparse.Namespace) -> Figures:
    """One start at a time: a stub on a site without queue; then JupyterLab, beside the Hub's own local spawner."""
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(ours(directory / "ready", crowd=False))
        stub = functools.partial(running.spawn, service="stub")
        await running.have([f"u{number}" for number in range(30)])
        await stub("u0", partition="login")  # the relay is started by the first
        login = [await stub(f"u{number}", partition="login") for number in range(1, 8)]
        nodes = [await stub(f"u{number}", partition="batch") for number in range(8, 15)]
        say("stub lab on a UNICORE site, ready, s", login_node=statistics.median(login), nodes=statistics.median(nodes))
        await running.stop_all([f"u{number}" for number in range(15)])
        figures = {"ready_s": round(statistics.median([*login, *nodes]), 3)}
        if not wanted.no_lab:
            root = ["--allow-root"] if os.geteuid() == 0 else []
            command = [sys.executable, "-m", "jupyterhub.singleuser", *root]
            plain = await local(directory / "local", stack, command)
            await plain.have([f"u{number}" for number in range(20, 24)])
            labs: dict[str, list[float]] = {"local": [], "moorage": []}
            for number in range(20, 24):
                user = f"u{number}"
                labs["local"].append(await plain.spawn(user))
                await plain.stop_all([user])
                labs["moorage"].append(await running.spawn(user, service="lab", partition="login"))
                await running.stop_all([user])
            # The first of each warms the files; the fastest was disturbed least.
            best = {name: min(times[1:]) for name, times in labs.items()}
            ratio = best["moorage"] / best["local"]
            say("real JupyterLab, ready, s", local_spawner=best["local"], moorage=best["moorage"], ratio=ratio)
            figures["lab_ready_vs_local_spawner"] = round(ratio, 3)
    return figures


async def many(running: Hub, count: int, **options: str) -> list[str]:
    """As many servers as that, some at once."""
    users = [f"u{number}" for number in range(count)]
    await running.have(users)
    for first in range(0, count, AT_ONCE):
        await asyncio.gather(*(running.spawn(user, **options) for user in users[first : first + AT_ONCE]))
    return users


async def memory(directory: Path, wanted: argparse.Namespace) -> Figures:
    """The Hub's process with a thousand servers that run, one Hub after the other."""
    found: dict[str, tuple[float, float]] = {}
    for name, world, options in (
        ("alone", alone, {}),
        ("moorage", ours, {"service": "stub", "partition": "login"}),
    ):
        async with world(directory / name) as running:  # type: ignore[operator]
            empty = pss_mib(running.pid)
            await many(running, wanted.sessions, **options)
            await asyncio.sleep(2)
            found[name] = (empty, pss_mib(running.pid))
    (empty, full), (our_empty, our_full) = found["alone"], found["moorage"]
    say(f"Hub with {wanted.sessions} sessions, MiB", Hub_alone=full, moorage=our_full, ratio=our_full / full)
    say("  before the first", Hub_alone=empty, moorage=our_empty)
    return {"memory_vs_hub_alone": round(our_full / full, 3)}


async def restart(directory: Path, wanted: argparse.Namespace) -> Figures:
    """The Hub is killed and started again while every session has a stream that is open and used."""
    async with ours(directory / "restart") as running:
        users = await many(running, wanted.restart, service="stub", partition="login")
        streams = await asyncio.gather(*(Stream.open(running, user) for user in users))
        jobs = int((directory / "restart" / "jobs").read_text())
        await asyncio.to_thread(running.kill)
        began = time.perf_counter()
        async with asyncio.timeout(120):
            await running.start_again()
            answering = time.perf_counter() - began
            while await running.servers("ready") < len(users):
                await asyncio.sleep(0.1)
        took = time.perf_counter() - began
        await asyncio.sleep(5)  # whatever would start a job or cut a stream has had its chance
        still = sum(await asyncio.gather(*(stream.works() for stream in streams)))
        new = int((directory / "restart" / "jobs").read_text()) - jobs
        lost = len(users) - await running.servers("ready")
        for stream in streams:
            stream.writer.close()
    say(f"Hub killed with {len(users)} sessions, s", answers=answering, all_ready=took)
    say("  afterwards", new_jobs=str(new), streams_cut=str(len(users) - still), lost=str(lost))
    return {
        "restart_ready_s": round(took, 2),
        "restart_new_jobs": new,
        "restart_streams_cut": len(users) - still,
    }


async def kills(directory: Path, wanted: argparse.Namespace) -> Figures:
    """The Hub is killed again and again under a start per second, with stops among them; what is left in the end."""
    home = directory / "kills"
    async with ours(home) as running:
        await running.have([f"u{number}" for number in range(wanted.users)])
        crowd = [Somebody(running, f"u{number}") for number in range(wanted.users)]
        clicking = asyncio.create_task(click(crowd, random.Random(wanted.kills)))
        for _ in range(wanted.kills):
            await asyncio.sleep(wanted.between)
            await asyncio.to_thread(running.kill)
            await running.start_again()
        await asyncio.sleep(wanted.between)
        clicking.cancel()
        await asyncio.wait([clicking])
        cut = sum([await each.is_cut() for each in crowd])
        deadline = time.monotonic() + SETTLED_S
        while True:
            starts, jobs = jobs_of_the_site(home / "jobs.log")
            going, over = sessions_in_the_store(home)
            nobodys, lost = jobs - going, going - jobs
            settled = not nobodys and not lost and await running.servers("ready") == len(going)
            if settled or time.monotonic() > deadline:
                break
            await asyncio.sleep(1)
    again = sum(count > 1 for count in starts.values())
    sessions = {"started": str(len(starts)), "ready": str(len(going - lost)), "ended": str(over)}
    say(f"Hub killed {wanted.kills} times, {wanted.users} people", **sessions)
    say("  afterwards", jobs_of_nobody=str(len(nobodys)), without_job=str(len(lost)), started_twice=str(again))
    say("  streams cut that nobody had stopped", streams=str(cut))
    named = {"jobs_of_nobody": len(nobodys), "without_job": len(lost), "started_twice": again, "streams_cut": cut}
    return {f"kills_{name}": value for name, value in named.items()}


class Somebody:
    """A person who starts a server, has a stream to it, and stops it; one after the other."""

    def __init__(self, running: Hub, name: str) -> None:
        self.running, self.name = running, name
        self.turn = asyncio.Lock()
        self.stream: Stream | None = None

    async def click(self, start: bool) -> None:
        """Nothing comes of it while the Hub is away, or what comes of it is never told."""
        with contextlib.suppress(aiohttp.ClientError, OSError, EOFError, TimeoutError, RuntimeError):
            async with asyncio.timeout(30), self.turn:
                await (self._start() if start else self._stop())

    async def _start(self) -> None:
        options = {"service": "stub", "partition": "login"}
        status, _ = await self.running.api("POST", f"users/{self.name}/server", json=options)
        if status == 201 and self.stream is None:
            self.stream = await Stream.open(self.running, self.name)

    async def _stop(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            stream.writer.close()
        await self.running.api("DELETE", f"users/{self.name}/server")

    async def is_cut(self) -> bool:
        async with self.turn:
            if self.stream is None:
                return False
            works = await self.stream.works()
            self.stream.writer.close()
            return not works


async def click(crowd: list[Somebody], chance: random.Random) -> None:
    """A start per second, and now and then a stop; what has begun goes on when this is cancelled."""
    clicks: set[asyncio.Task[None]] = set()
    while True:
        wishes = [True, False] if chance.random() < STOPS else [True]
        for start in wishes:
            task = asyncio.create_task(chance.choice(crowd).click(start))
            clicks.add(task)
            task.add_done_callback(clicks.discard)
        await asyncio.sleep(1)


def jobs_of_the_site(file: Path) -> tuple[Tally[str], set[str]]:
    """How many jobs each session had, by the site's own record, and the sessions whose job runs."""
    starts, running = Tally[str](), Tally[str]()
    for line in file.read_text().splitlines():
        what, tag = line.split()
        named = parse_tag(tag)
        assert named is not None
        starts[named[0]] += what == "start"
        running[named[0]] += 1 if what == "start" else -1
    return starts, {session for session, count in running.items() if count}


def sessions_in_the_store(directory: Path) -> tuple[set[str], int]:
    """The sessions of which something is left, and how many are over."""
    with contextlib.closing(sqlite3.connect(directory / ".moorage" / "moorage.sqlite")) as database:
        rows = database.execute("select id, finished from moorage_heads").fetchall()
    return {session for session, finished in rows if not finished}, sum(finished for _, finished in rows)


class Stream:
    """A connection of a browser through the proxy to a lab, upgraded as a WebSocket is, to an echo."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, running: Hub, user: str) -> "Stream":
        reader, writer = await asyncio.open_connection("127.0.0.1", running.public_port)
        line = f"GET /user/{user}/echo HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        writer.write(line.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        if b" 101 " not in head:
            raise RuntimeError(f"no stream to the lab of {user}: {head[:100]!r}")
        stream = cls(reader, writer)
        if not await stream.works():
            raise RuntimeError(f"no echo from the lab of {user}")
        return stream

    async def works(self) -> bool:
        """Whether bytes still come back."""
        try:
            self.writer.write(b"are you there?")
            return await asyncio.wait_for(self.reader.readexactly(14), 30) == b"are you there?"
        except (OSError, EOFError, TimeoutError):
            return False


async def polls(directory: Path, wanted: argparse.Namespace) -> Figures:
    """`poll()` of the spawner with ten thousand sessions in the runner; no system is asked."""
    sys.path.insert(0, str(HERE.parent / "tests" / "unit" / "adapters" / "hub"))
    import stubworld
    from attrs import evolve

    from moorage.adapters.hub.service import registry
    from moorage.adapters.hub.spawner import MoorageSpawner
    from moorage.core.machine import begin
    from moorage.core.model import Endpoint, Instant, Job, JobId, Owner, Ready, Route, SessionKey, SessionSpec

    stubworld.labs.append("http://127.0.0.1:9")
    times: list[float] = []
    async with stubworld.compose(directory / "moorage.yaml", Silent()) as service:
        world = stubworld.worlds[-1]
        calls = Counting(world.system)
        world.runner.ports.systems["alpha"] = evolve(world.runner.ports.systems["alpha"], system=calls)
        far = Instant(1 << 61)
        ready_state = Ready(Job(JobId("j")), Endpoint("n1", 1), Route("http://127.0.0.1:1"), Instant(0), far)
        registry.provide(service)
        spawner = MoorageSpawner()
        ids = []
        for number in range(wanted.polls):
            key = SessionKey("hub", Owner(f"p{number}"))
            id_ = world.runner.ports.choices.session_id()
            spec = SessionSpec(id_, key, stubworld.SystemName("alpha"), asked_at=Instant(0), seed=0, deployment="test")
            world.runner._adopt(evolve(begin(spec).session, state=ready_state), 1)
            ids.append(spec.id)
        before = calls.count
        for session in ids:
            spawner.session_id = session
            began = time.perf_counter()
            assert await spawner.poll() is None
            times.append((time.perf_counter() - began) * 1000)
        assert calls.count == before, "poll() asked the system"
        registry.withdraw()
    times.sort()
    p99 = times[int(0.99 * len(times))]
    say(f"poll() with {wanted.polls} sessions, ms", p50=times[len(times) // 2], p99=p99, longest=times[-1])
    return {"poll_p99_ms": round(p99, 4)}


async def form(directory: Path, wanted: argparse.Namespace) -> Figures:
    """The whole form page over HTTP: 20 systems with 200 partitions and 40 projects each, 50 services."""
    big = directory / "form"
    big.mkdir(mode=0o700)
    partitions = {
        f"p{part}": {"description": f"Partition {part}", "max_walltime": "24h", "nodes": {"min": 1, "max": 100}}
        for part in range(10)
    }
    projects = {f"project{number}": {"description": f"Project {number}"} for number in range(40)}
    systems = {
        f"s{number}": {
            "kind": "unicore",
            "description": f"System {number}",
            "options": {"url": f"https://127.0.0.1:9/S{number}/rest/core"},
            "partitions": partitions,
            "projects": projects,
        }
        for number in range(20)
    }
    kernels = {f"k{number}": {"description": f"Kernel {number}"} for number in range(5)}
    services = {
        f"v{number}": {"description": f"Service {number}", "command": ["lab", "{socket}"], "kernels": kernels}
        for number in range(50)
    }
    document = {"deployment": "bench", "systems": systems, "services": services}
    (big / "moorage.yaml").write_text(yaml.safe_dump(document))
    took: list[float] = []
    async with hub(big, hubworld.moorage_settings(big)) as running, hubworld.browser(running, "u1") as browser:
        for _ in range(11):
            began = time.perf_counter()
            async with browser.get("/hub/spawn/u1") as answer:
                text = await answer.text()
                assert answer.status == 200, text[:300]
                assert "Partition 9" in text, "this is no form"
            took.append((time.perf_counter() - began) * 1000)
    p50 = statistics.median(took[1:])
    say("form page, 20 systems, 50 services, ms", p50=p50, first=took[0], KiB=float(len(text) / 1024))
    return {"form_ms": round(p50, 1)}


class Silent:
    """A Hub that is told and does nothing."""

    async def report(self, *_: Any) -> None: ...

    async def publish(self, *_: Any) -> None: ...

    async def withdraw(self, *_: Any) -> None: ...


class Counting:
    """A system that counts what it is asked."""

    def __init__(self, system: Any) -> None:
        self.system, self.count = system, 0

    def __getattr__(self, name: str) -> Any:
        self.count += 1
        return getattr(self.system, name)


FIGURES: dict[str, Callable[[Path, argparse.Namespace], Awaitable[Figures]]] = {
    "form": form,
    "polls": polls,
    "starts": starts,
    "ready": ready,
    "restart": restart,
    "kills": kills,
    "memory": memory,
    "peers": peers,
}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FIGURES, action="append", help="this figure; may be given several times")
    parser.add_argument("--starts", type=int, default=100, help="starts at once")
    parser.add_argument("--rounds", type=int, default=3, help="of the starts; the median counts")
    parser.add_argument("--peers", type=int, default=20, help="starts at once beside spawners that start processes")
    parser.add_argument("--sessions", type=int, default=1000, help="sessions for the memory, at most 1000")
    parser.add_argument("--restart", type=int, default=500, help="sessions at the restart, at most 1000")
    parser.add_argument("--kills", type=int, default=3, help="kills of the Hub under load")
    parser.add_argument("--between", type=float, default=10, help="seconds from one start of the Hub to its next kill")
    parser.add_argument("--users", type=int, default=25, help="people who start and stop meanwhile")
    parser.add_argument("--polls", type=int, default=10_000, help="sessions that are polled")
    parser.add_argument("--no-lab", action="store_true", help="leave out real JupyterLabs")
    wanted = parser.parse_args()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)  # whoever ends us leaves nothing behind
    figures: Figures = {}
    for name in wanted.only or FIGURES:
        with tempfile.TemporaryDirectory(prefix=f"moorage-bench-{name}-") as directory:
            Path(directory).chmod(0o755 if name == "peers" else 0o700)
            try:
                async with asyncio.timeout(300 + wanted.kills * (wanted.between + 30)):
                    figures |= await FIGURES[name](Path(directory), wanted)
            except Exception:
                for log in sorted(Path(directory).rglob("*.log")):
                    sys.stderr.write(f"--- {log.name}\n{log.read_text(errors='replace')[-2000:]}\n")
                raise
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main())
