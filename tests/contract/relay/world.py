"""Jobs that are reached through a relay: the real launcher with a small lab, a vault in memory."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import aiohttp
from attrs import define, field
from tests.unit.launcher.job import Job

from moorage.adapters.ssh.direct import DirectDialer
from moorage.core.model import Endpoint, Instant, Owner, SessionId, SessionKey, SessionSpec, SystemName, tag_of
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.dialer import Dialer
from moorage.ports.tunnels import ProbeResult, Tunnels
from moorage.relay.client import InProcessRelay
from moorage.relay.server import Settings

HERE = SystemName("here")
LAB = Path(__file__).with_name("http_lab.py")
QUICK = Timeouts(connect_s=3, probe_s=2, probe_fresh_s=0.5, repair_s=0.5)
"""Probes soon enough for a test to wait for one."""


def settings(**changes: object) -> Settings:
    return Settings(timeouts={HERE: QUICK}, **changes)  # type: ignore[arg-type]


@define
class MemoryVault:
    """Gate secrets by session and attempt."""

    secrets: dict[tuple[SessionId, int], Secret] = field(factory=dict)

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        return self.secrets[session, attempt]


@define
class Place:
    """Starts jobs below a directory, and says what a relay has to know about them."""

    directory: Path
    vault: MemoryVault = field(factory=MemoryVault)
    jobs: list[Job] = field(factory=list)

    def spec(self, number: int = 1) -> SessionSpec:
        session = SessionId("s" + str(number).rjust(25, "a"))
        return SessionSpec(session, SessionKey("hub", Owner("alice")), HERE, Instant(0), 0)

    async def job(self, spec: SessionSpec, attempt: int = 1, **changes: object) -> Job:
        """A running job of a session; its gate waits to be asked."""
        directory = self.directory / f"job{len(self.jobs)}"
        directory.mkdir()
        job = Job(directory, sys.executable, tag_of(spec, attempt))
        self.jobs.append(job)
        self.vault.secrets[spec.id, attempt] = job.key
        command = (sys.executable, "-B", str(LAB), "{socket}")
        await asyncio.to_thread(lambda: job.start(**{"command": command, "attempt": attempt, **changes}))
        return job

    def end(self) -> None:
        for job in self.jobs:
            job.end()


def endpoint_of(job: Job) -> Endpoint:
    told = job.endpoint()
    if "socket" in told:
        return Endpoint(told["node"], 0, f"{told['directory']}/{told['socket']}", told["nonce"])
    return Endpoint(told["host"], told["port"], "", told["nonce"])


def direct() -> dict[SystemName, Dialer]:
    return {HERE: DirectDialer(HERE, "", loopback=True, connect_s=5)}


@contextlib.asynccontextmanager
async def relay(place: Place, dialers: Mapping[SystemName, Dialer] | None = None) -> AsyncIterator[InProcessRelay]:
    """A relay in this process, in the place's own directory."""
    made = InProcessRelay(place.directory / "relay", dialers or direct(), place.vault, settings())
    try:
        yield made
    finally:
        await made.aclose()


async def until_good(tunnels: Tunnels, session: SessionId, seconds: float = 30) -> ProbeResult:
    """The first good probe; each bad one says why."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        result = await tunnels.probe(session)
        if result.good:
            return result
        assert loop.time() < deadline, result.note
        await asyncio.sleep(0.05)


async def get(address: str, path: str = "/hello", seconds: float = 20) -> bytes:
    """What a browser gets there, on a connection of its own."""
    limit = aiohttp.ClientTimeout(total=seconds)
    async with aiohttp.ClientSession(timeout=limit) as client, client.get(address + path) as answer:
        return await answer.read()
