"""
How fast the simulated UNICORE site answers, and whether five thousand jobs slow it down.

The site runs in a process of its own on one processor core, the client beside it on another if there is one: raw
sockets that send bytes made beforehand, so that the figure is the site's. Printed are requests per second of the wall
clock and of the site's processor time; under load from elsewhere the second is the steadier one.

    python benchmarks/unicore_site.py [--seconds 4] [--jobs 5000]
"""

import argparse
import asyncio
import base64
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from attrs import define, field, frozen

CONNECTIONS = 32
CREDENTIAL = "Basic " + base64.b64encode(b"demouser:test123").decode()
CONFIG = {
    "execute": "virtual",
    "virtual_runtime_s": 100_000,
    "partitions": [{"name": "batch", "nodes": 100_000}],
    # One sbatch after the other is what a real site does; here the jobs only have to be there.
    "timing": {"submit_s": 0, "directory_s": 0, "staging_s": 0, "queue_s": 0},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    arguments.add_argument("--jobs", type=int, default=5000)
    chosen = arguments.parse_args()
    with site() as running:
        figures = asyncio.run(measure(running, chosen.seconds, chosen.jobs))
    print(json.dumps(figures))


@frozen
class Site:
    """A running site: its base URL and its process."""

    url: str
    pid: int

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def processor_s(self) -> float:
        """User and system time of the process so far."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def site() -> Iterator[Site]:
    """The site's process on the last core, this one on the others; both as before afterwards."""
    cores = sorted(os.sched_getaffinity(0))
    serve = "import pathlib, sys; from moorage.simulator.servers.unicore import main_serve; "
    serve += "main_serve(config=pathlib.Path(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as directory:
        config = Path(directory, "site.json")
        config.write_text(json.dumps(CONFIG))
        process = subprocess.Popen([sys.executable, "-c", serve, str(config)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            os.sched_setaffinity(process.pid, cores[-1:])
            os.sched_setaffinity(0, cores[:-1] or cores)
            yield Site(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(300)  # it removes five thousand directories
            process.stdout.close()
            os.sched_setaffinity(0, cores)


async def measure(site: Site, seconds: float, jobs: int) -> dict[str, float]:
    job = (await submit(site, 1))[0]
    session = await open_session(site)
    requests = {
        "status, three fields": f"/jobs/{job}?fields=status,statusMessage,exitCode",
        "job, everything": f"/jobs/{job}",
        "core": "",
        "list of one job": "/jobs?tags=one",
    }
    print(f"{'request':24} {'per s, wall':>12} {'per s, processor':>18}")
    rates = {}
    for name, path in requests.items():
        rates[name] = await throughput(site, request(site, "GET", path, session), seconds)
        print(f"{name:24} {rates[name][0]:12.0f} {rates[name][1]:18.0f}")
    status = request(site, "GET", requests["status, three fields"], session)
    alone = await latencies(site, status, seconds)
    made = [job, *await submit(site, jobs - 1)]
    session = await open_session(site)  # submissions without one have pushed the first out of its place
    status = request(site, "GET", requests["status, three fields"], session)
    await running_all(site, session, made)
    crowded = await latencies(site, status, seconds)
    crowd = await throughput(site, status, seconds)
    print(f"{f'status among {jobs} jobs':24} {crowd[0]:12.0f} {crowd[1]:18.0f}")
    print(f"\n{'one status request, ms':24} {'median':>12} {'mean':>10} {'99 %':>10}")
    for name, values in (("one job", alone), (f"{jobs} jobs", crowded)):
        last = statistics.quantiles(values, n=100)[98]
        shown = (1e3 * value for value in (statistics.median(values), statistics.mean(values), last))
        print("{:24} {:12.3f} {:10.3f} {:10.3f}".format(name, *shown))
    wall, processor = rates["status, three fields"]
    return {
        "site_requests_per_s": round(wall),
        "site_requests_per_processor_s": round(processor),
        "slowdown_5000_jobs": round(statistics.median(crowded) / statistics.median(alone), 3),
        "slowdown_5000_jobs_mean": round(statistics.mean(crowded) / statistics.mean(alone), 3),
        "slowdown_5000_jobs_processor": round(processor / crowd[1], 3),
        "jobs": jobs,
    }


def request(site: Site, method: str, path: str, session: str | None = None, body: bytes = b"") -> bytes:
    """The bytes of one request, with the headers that pyunicore sends."""
    host, port = site.address
    lines = [
        f"{method} {site.path}{path} HTTP/1.1",
        f"Host: {host}:{port}",
        "Accept: application/json",
        "Content-Type: application/json",
        f"Authorization: {CREDENTIAL}",
    ]
    if session:
        lines.append(f"X-UNICORE-SecuritySession: {session}")
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@define(eq=False)
class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last one is complete, until `until`."""

    requests: Iterator[bytes]
    until: float = float("inf")
    answers: int = 0
    heads: list[bytes] = field(factory=list)
    times: list[float] = field(factory=list)
    running: int = 0
    failure: str | None = None
    transport: asyncio.Transport = field(init=False)
    _buffer: bytes = b""
    _sent_at: float = 0.0
    done: "asyncio.Future[None]" = field(factory=lambda: asyncio.get_running_loop().create_future(), init=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._next()

    def _next(self) -> None:
        self._sent_at = time.perf_counter()
        following = next(self.requests, None) if self._sent_at < self.until else None
        if following is None:
            self.transport.close()
        else:
            self.transport.write(following)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self.times.append(time.perf_counter() - self._sent_at)
        self.answers += 1
        self.heads = [head] if self.until < float("inf") else [*self.heads, head]
        if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 201")):
            self.failure = head.decode()
        self.running += rest == b'{"status":"RUNNING"}'
        self._buffer = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def run(site: Site, connections: Sequence[Connection]) -> None:
    """Until every connection has come to its end; an answer that is no success is an error."""
    loop = asyncio.get_running_loop()
    for connection in connections:
        await loop.create_connection(lambda connection=connection: connection, *site.address)
    await asyncio.gather(*(connection.done for connection in connections))
    for connection in connections:
        if connection.failure:
            raise SystemExit(f"the site answered {connection.failure}")


def again(request: bytes) -> Iterator[bytes]:
    while True:
        yield request


async def throughput(site: Site, request: bytes, seconds: float) -> tuple[float, float]:
    """Requests per second of the wall clock and of the site's processor time."""
    before, since = site.processor_s(), time.perf_counter()
    connections = [Connection(again(request), since + seconds) for _ in range(CONNECTIONS)]
    await run(site, connections)
    took, processor_s = time.perf_counter() - since, site.processor_s() - before
    answers = sum(connection.answers for connection in connections)
    return answers / took, answers / processor_s


async def latencies(site: Site, request: bytes, seconds: float) -> list[float]:
    """Of requests one after the other on one connection; at most 20,000 of them."""
    connection = Connection(again(request), time.perf_counter() + seconds)
    await run(site, [connection])
    return connection.times[-20_000:]


async def submit(site: Site, number: int) -> list[str]:
    """So many jobs; their ids."""
    description = json.dumps({"Executable": "sleep 1", "Tags": ["one"] if number == 1 else ["many"]}).encode()
    wishes = iter([request(site, "POST", "/jobs", None, description)] * number)
    connections = [Connection(wishes) for _ in range(min(number, CONNECTIONS))]
    await run(site, connections)
    found = [head for connection in connections for head in connection.heads]
    return [head.partition(b"Location: ")[2].split(b"\r\n")[0].rsplit(b"/", 1)[1].decode() for head in found]


async def open_session(site: Site) -> str:
    connection = Connection(iter([request(site, "GET", "")]))
    await run(site, [connection])
    return connection.heads[0].partition(b"X-UNICORE-SecuritySession: ")[2].split(b"\r\n")[0].decode()


async def running_all(site: Site, session: str, jobs: Sequence[str]) -> None:
    """Returns when all jobs run, so that nothing but the requests that are measured is left to do."""
    for _ in range(100):
        wishes = iter([request(site, "GET", f"/jobs/{job}?fields=status", session) for job in jobs])
        connections = [Connection(wishes) for _ in range(CONNECTIONS)]
        await run(site, connections)
        if sum(connection.running for connection in connections) == len(jobs):
            return
        await asyncio.sleep(2)
    raise SystemExit("the jobs do not come to run")


if __name__ == "__main__":
    main()
