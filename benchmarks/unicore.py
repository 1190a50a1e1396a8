"""
What the UNICORE adapter costs: requests and connections of one session's life, and how it holds with a thousand.

    python benchmarks/unicore.py [--sessions 1000] [--seconds 4] [--no-pyunicore]

1. One life: submit with its files, to RUNNING, read a file, end it, clean up. Counted by a proxy between client and
   site, for the adapter and for pyunicore, blocking and asyncio, doing the same with three uploads. The adapter is told
   of RUNNING by a notification, as in production; the certificate that verifies these is fetched once per process and
   shown as the first life's.
2. A thousand sessions at a site that answers in 100 ms, against bare aiohttp with as many connections; alternating, so
   that load from elsewhere meets both. The longest time the event loop did nothing else is taken meanwhile.
3. Two sites, one of which hangs for ever: how long the other one's answers take, with and without.

The site runs in a process of its own on another core where there is one. Rates and stalls say something on a machine
that does nothing else; the processor time of a request says what the adapter itself costs.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from aiohttp import web
from unicore_site import CONNECTIONS, CREDENTIAL, Site, open_session, request, site, submit, throughput

from moorage.adapters.unicore.config import BasicLogin, UnicoreConfig
from moorage.adapters.unicore.system import UnicoreSystem, build
from moorage.config.fields import SecretRef
from moorage.core.model import (
    Alive,
    Instant,
    JobId,
    Owner,
    Phase,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
    Tag,
    tag_of,
)
from moorage.core.plan import PLAN_NAME, LaunchPlan, LaunchSecrets, Rendered, render
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.credentials import Token
from moorage.ports.system import Handle

OWNER = Owner("demouser")
LIVES = 3
ANSWER_S = 0.1
POOL = 32
"""Connections: the adapter's default."""
TICK_S = 0.002


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sessions", type=int, default=1000)
    arguments.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    arguments.add_argument("--no-pyunicore", action="store_true", help="leave out the clients' own lives (20 s)")
    chosen = arguments.parse_args()
    with site() as running:
        figures = asyncio.run(lives(running, chosen.no_pyunicore))
        figures["site_requests_per_s"] = round(asyncio.run(speed_of_site(running, chosen.seconds)))
        figures |= asyncio.run(many(running, chosen.sessions, chosen.seconds))
    with site() as good, site() as bad:
        figures |= asyncio.run(beside_a_hanging_one(good, bad))
    print(json.dumps(figures))


# A client of the adapter -------------------------------------------------------------------------------------


class WallClock:
    def now(self) -> Instant:
        return Instant(int(time.time() * 1000))

    async def sleep_until(self, at: Instant) -> None:
        await asyncio.sleep(max(0.0, (at - self.now()) / 1000))


class NoTokens:
    async def token(self, owner: Owner, system: SystemName) -> Token:
        raise AssertionError(owner)


class OnePlan:
    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        plan = LaunchPlan(tag=tag, attempt=1, owner=spec.key.owner, command=("lab", "{socket}"), walltime_s=3600)
        return render(plan, LaunchSecrets(Secret("5e" * 32)))


@contextlib.asynccontextmanager
async def adapter(url: str, **changes: Any) -> AsyncIterator[UnicoreSystem]:
    os.environ["BENCHMARK_PASSWORD"] = "test123"
    login = BasicLogin(kind="basic", username="demouser", password=SecretRef(env="BENCHMARK_PASSWORD"))
    config = UnicoreConfig(url=url, credentials=login, connections=POOL, **changes)
    context = {"clock": WallClock(), "credentials": NoTokens(), "plans": OnePlan()}
    system = build(SystemName("bench"), config, timeouts=Timeouts(call_s=30), simulation=True, **context)
    try:
        yield system
    finally:
        await system.close()


def spec(number: int) -> SessionSpec:
    letters = "".join("abcdefghijklmnopqrstuvwxyz"[number // 26**place % 26] for place in range(26))
    key = SessionKey("hub", OWNER)
    return SessionSpec(SessionId(letters), key, SystemName("bench"), Instant(0), 0)


async def submitted(system: UnicoreSystem, number: int) -> Handle:
    tag = tag_of(spec(number), 1)
    return Handle(OWNER, tag, await system.submit(tag, spec(number)))


# 1. One life -------------------------------------------------------------------------------------------------


class Counter:
    """A proxy in a thread of its own that counts connections and requests on their way to the site."""

    def __init__(self, site: Site) -> None:
        self._target = site.address
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.connections = self.requests = 0
        server = asyncio.run_coroutine_threadsafe(asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop)
        self._server = server.result()
        parts = urlsplit(site.url)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(parts._replace(netloc=f"127.0.0.1:{port}"))
        self.alias = site.url

    def reset(self) -> None:
        self.connections = self.requests = 0

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        serving = asyncio.all_tasks() - {asyncio.current_task()}
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        site_reader, site_writer = await asyncio.open_connection(*self._target)
        back = asyncio.ensure_future(_copy(site_reader, writer))
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                # A request line begins a write of the client: none of them pipelines.
                self.requests += data.startswith((b"GET ", b"POST ", b"PUT ", b"DELETE "))
                site_writer.write(data)
                await site_writer.drain()
        site_writer.close()
        back.cancel()
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def lives(site: Site, no_pyunicore: bool) -> dict[str, Any]:
    counter = Counter(site)
    try:
        rows = [("moorage, first life of a process", *(await our_lives(counter, 1))[0])]
        later = (await our_lives(counter, 1 + LIVES))[1:]
        rows.append(("moorage", *map(statistics.mean, zip(*later, strict=True))))
        if not no_pyunicore:
            rows.append(("pyunicore, blocking", *await asyncio.to_thread(counted, counter, blocking_life)))
            counter.reset()
            await asyncio_life(counter.url)
            rows.append(("pyunicore, asyncio", counter.requests, counter.connections))
    finally:
        counter.close()
    print(f"{'one life':36} {'requests':>10} {'connections':>12}")
    for name, requests, connections in rows:
        print(f"{name:36} {requests:10.1f} {connections:12.1f}")
    figures: dict[str, Any] = {"requests_per_life": round(rows[1][1], 2), "connections_per_life": round(rows[1][2], 2)}
    if not no_pyunicore:
        figures |= {"pyunicore_requests": rows[2][1], "pyunicore_connections": rows[2][2]}
        figures |= {"pyunicore_aio_requests": rows[3][1], "pyunicore_aio_connections": rows[3][2]}
    return figures


def counted(counter: Counter, life: Callable[[str], None]) -> tuple[int, int]:
    counter.reset()
    life(counter.url)
    return counter.requests, counter.connections


async def our_lives(counter: Counter, number: int) -> list[tuple[int, int]]:
    """
    Lives one after the other in one process. The connection is the process's, not the life's: it is counted for the
    first one, and a later life is said to have one although it opens none.
    """
    found = []
    async with receiver() as (port, take), watched(counter, port) as system:
        take(system)
        for life in range(number):
            counter.reset()
            await our_life(system, int(time.time() * 1000) % 10**9 * 10 + life)
            found.append((counter.requests, max(1, counter.connections)))
    return found


def watched(counter: Counter, port: int) -> contextlib.AbstractAsyncContextManager[UnicoreSystem]:
    # Notifications name jobs by the site's own address, not by the proxy's.
    return adapter(counter.url, aliases=(counter.alias,), notify_url=f"http://127.0.0.1:{port}/told")


async def our_life(system: UnicoreSystem, number: int) -> None:
    hints = system.watch()
    told = asyncio.ensure_future(anext(hints))
    await asyncio.sleep(0)
    job = await submitted(system, number)
    while await told != job.job or STATES[job.job] != "RUNNING":  # of another job, or of this one waiting
        told = asyncio.ensure_future(anext(hints))
    said = (await system.observe([job]))[job.job]
    assert isinstance(said, Alive), said
    assert (said.phase, bool(said.node)) == (Phase.RUNNING, True), said
    assert await system.read(job, PLAN_NAME)
    await system.cancel(job)
    await system.remove(job)
    await hints.aclose()  # type: ignore[attr-defined]


STATES: dict[JobId, str] = {}
"""What the last notification said. The adapter does not tell; the benchmark looks so that it asks once, not early."""


@contextlib.asynccontextmanager
async def receiver() -> AsyncIterator[tuple[int, Callable[[UnicoreSystem], None]]]:
    systems: list[UnicoreSystem] = []

    async def notified(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        said = json.loads(body)
        STATES[JobId(said["href"].rsplit("/", 1)[1])] = said.get("status", "")
        await systems[0].notified(request.headers["Authorization"].removeprefix("Bearer "), body)
        return web.Response(status=204)

    runner = web.ServerRunner(web.Server(notified))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    try:
        yield port, systems.append
    finally:
        await runner.cleanup()


THEIR_JOB = {"Executable": "sleep 100"}


@contextlib.contextmanager
def three_files() -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as directory:
        before = os.getcwd()
        os.chdir(directory)
        try:
            for name in ("one", "two", "three"):
                Path(name).write_text(name)
            yield ["one", "two", "three"]
        finally:
            os.chdir(before)


def blocking_life(url: str) -> None:
    from pyunicore.client import Client, JobStatus
    from pyunicore.credentials import UsernamePassword

    with three_files() as files:
        job = Client(UsernamePassword("demouser", "test123"), url).new_job(dict(THEIR_JOB), inputs=files)
    job.poll(JobStatus.RUNNING)
    file = job.working_dir.stat("one")
    with file.raw() as stream:
        stream.read()
    job.abort()
    job.delete()


async def asyncio_life(url: str) -> None:
    from pyunicore.aio.client import Client, JobStatus
    from pyunicore.credentials import UsernamePassword

    async with Client(UsernamePassword("demouser", "test123"), url) as client:
        await client.assert_authentication()
        with three_files() as files:
            job = await client.new_job(dict(THEIR_JOB), inputs=files)
        await job.poll(JobStatus.RUNNING)
        file = await (await job.working_dir).stat("one")
        async with file.raw() as stream:
            await stream.aread()
        await job.abort()
        await job.delete()


# 2. A thousand sessions --------------------------------------------------------------------------------------


async def speed_of_site(site: Site, seconds: float) -> float:
    """The simulated site by itself; `benchmarks/unicore_site.py` says more."""
    job = (await submit(site, 1))[0]
    session = await open_session(site)
    path = f"/jobs/{job}?fields=status,statusMessage,exitCode"
    rates = await throughput(site, request(site, "GET", path, session), seconds)
    print(f"\nthe simulated site alone: {rates[0]:.0f} requests/s on {CONNECTIONS} connections")
    return rates[0]


async def many(site: Site, sessions: int, seconds: float) -> dict[str, float]:
    async with adapter(site.url) as system:
        jobs = await in_parts([lambda number=number: submitted(system, number) for number in range(sessions)])
        await settled(system, jobs)
        await fault(site, {"do": "delay", "on": ["status"], "delay_s": ANSWER_S})
        ours: list[float] = []
        bare: list[float] = []
        stalls: list[float] = []
        processor: dict[str, float] = {"ours": 0.0, "bare": 0.0}
        for _ in range(3):
            since, begun = time.process_time(), time.perf_counter()
            bare.append(await bare_rate(site, jobs, seconds))
            processor["bare"] += (time.process_time() - since) / (bare[-1] * (time.perf_counter() - begun)) / 3
            since, begun = time.process_time(), time.perf_counter()
            async with stall() as longest:
                ours.append(await our_rate(system, jobs, seconds))
            processor["ours"] += (time.process_time() - since) / (ours[-1] * (time.perf_counter() - begun)) / 3
            stalls.append(longest())
    ratio = statistics.median(ours) / statistics.median(bare)
    print(f"\n{sessions} sessions, answers in {ANSWER_S * 1000:.0f} ms, {POOL} connections")
    print(f"{'bare aiohttp':36} {statistics.median(bare):10.0f} requests/s")
    print(f"{'moorage':36} {statistics.median(ours):10.0f} requests/s, {ratio:.2f} of it")
    ours_ms, bare_ms = processor["ours"] * 1e3, processor["bare"] * 1e3
    print(f"{'processor time of a request':36} {ours_ms:10.2f} ms; bare {bare_ms:.2f} ms")
    print(f"{'longest stall of the loop':36} {max(stalls) * 1000:10.1f} ms")
    return {
        "ratio_to_aiohttp": round(ratio, 3),
        "stall_ms": round(max(stalls) * 1000, 1),
        "our_requests_per_s": round(statistics.median(ours)),
        "aiohttp_requests_per_s": round(statistics.median(bare)),
        "processor_ms_per_request": round(ours_ms, 3),
        "aiohttp_processor_ms_per_request": round(bare_ms, 3),
        "sessions": sessions,
    }


async def in_parts(calls: Sequence[Callable[[], Awaitable[Handle]]]) -> list[Handle]:
    found: list[Handle] = []
    for start in range(0, len(calls), 50):
        found += await asyncio.gather(*(call() for call in calls[start : start + 50]))
    return found


async def settled(system: UnicoreSystem, jobs: Sequence[Handle]) -> None:
    """Returns when all run and their details are known."""
    for _ in range(200):
        said = await system.observe(jobs)
        if all(isinstance(each, Alive) and each.phase is Phase.RUNNING and each.node for each in said.values()):
            return
        await asyncio.sleep(0.2)
    raise SystemExit("the jobs do not come to run")


async def our_rate(system: UnicoreSystem, jobs: Sequence[Handle], seconds: float) -> float:
    """Status calls per second, as the runner makes them: all jobs in one call."""
    since, asked = time.perf_counter(), 0
    while time.perf_counter() < since + seconds:
        said = await system.observe(jobs)
        assert all(isinstance(each, Alive) for each in said.values())
        asked += len(said)
    return asked / (time.perf_counter() - since)


async def bare_rate(site: Site, jobs: Sequence[Handle], seconds: float) -> float:
    """The same requests with nothing around them but aiohttp and JSON."""
    session_id = await open_session(site)
    headers = {"Accept": "application/json", "Authorization": CREDENTIAL, "X-UNICORE-SecuritySession": session_id}
    fields = "?fields=status,statusMessage,exitCode,batchSystemID,submissionTime,terminationTime"
    connector = aiohttp.TCPConnector(limit=POOL)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(job: Handle) -> None:
            async with session.get(f"{site.url}/jobs/{job.job}{fields}") as answer:
                assert json.loads(await answer.read())["status"] == "RUNNING"

        since, asked = time.perf_counter(), 0
        while time.perf_counter() < since + seconds:
            await asyncio.gather(*map(ask, jobs))
            asked += len(jobs)
        return asked / (time.perf_counter() - since)


@contextlib.asynccontextmanager
async def stall() -> AsyncIterator[Callable[[], float]]:
    """The longest time by which a timer of this loop came late."""
    late = [0.0]

    async def tick() -> None:
        while True:
            due = time.perf_counter() + TICK_S
            await asyncio.sleep(TICK_S)
            late[0] = max(late[0], time.perf_counter() - due)

    task = asyncio.ensure_future(tick())
    try:
        yield lambda: late[0]
    finally:
        task.cancel()


async def fault(site: Site, rule: dict[str, Any]) -> None:
    root = urlsplit(site.url)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{root.scheme}://{root.netloc}/-/faults", json=rule) as answer,
    ):
        assert answer.status == 200, await answer.text()


# 3. One site hangs -------------------------------------------------------------------------------------------


async def beside_a_hanging_one(good: Site, bad: Site) -> dict[str, float]:
    """Latencies of single status calls at the good site, in turns without and with 200 sessions at the bad one."""
    async with adapter(good.url) as fine, adapter(bad.url) as hanging:
        job = await submitted(fine, 1)
        await settled(fine, [job])
        theirs = [await submitted(hanging, number) for number in range(200)]
        await settled(hanging, theirs)
        await fault(good, {"do": "delay", "on": ["status"], "delay_s": 0.02})
        await fault(bad, {"do": "hang", "on": ["status", "submit"]})
        alone: list[float] = []
        beside: list[float] = []
        for _ in range(3):
            alone += await latencies(fine, job)
            asking = asyncio.ensure_future(hanging.observe(theirs))
            starting = [asyncio.ensure_future(submitted(hanging, 1000 + number)) for number in range(20)]
            await asyncio.sleep(0.2)
            beside += await latencies(fine, job)
            for task in (asking, *starting):
                task.cancel()
            await asyncio.gather(asking, *starting, return_exceptions=True)
    slowdown = statistics.median(beside) / statistics.median(alone)
    print(f"\n{'a status call, ms':36} {'median':>10} {'99 %':>10}")
    for name, values in (("alone", alone), ("beside a site that hangs", beside)):
        last = statistics.quantiles(values, n=100)[98]
        print(f"{name:36} {statistics.median(values) * 1000:10.2f} {last * 1000:10.2f}")
    return {"other_site_slowdown": round(slowdown, 3)}


async def latencies(system: UnicoreSystem, job: Handle) -> list[float]:
    found = []
    for _ in range(100):
        since = time.perf_counter()
        assert isinstance((await system.observe([job]))[job.job], Alive)
        found.append(time.perf_counter() - since)
    return found


if __name__ == "__main__":
    main()
