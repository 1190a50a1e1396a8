"""
A small world for a real JupyterHub: the real runner, store, vault and clock; systems whose jobs are entries in a
dictionary; one HTTP server in place of all labs.
"""

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from attrs import define, field

from moorage.adapters.hub.service import Service
from moorage.adapters.local.clock import LocalClock, SystemChoices
from moorage.adapters.local.store import SqlStore
from moorage.adapters.local.vault import LocalVault
from moorage.adapters.local.wakeups import LocalWakeups
from moorage.core.catalog import (
    Audience,
    Catalog,
    Extra,
    Partition,
    Place,
    ResourceRange,
    Start,
    SystemOffer,
    User,
    choices,
)
from moorage.core.catalog import Service as Offered
from moorage.core.limits import Limits
from moorage.core.model import (
    Alive,
    Endpoint,
    EndReason,
    Gone,
    JobId,
    Observation,
    Owner,
    Phase,
    Route,
    SessionId,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    tag_of,
)
from moorage.core.timeouts import Timeouts
from moorage.performing import SystemEntry
from moorage.ports.errors import Refused
from moorage.ports.hub import Hub
from moorage.ports.system import Handle
from moorage.ports.tunnels import PathReport, ProbeResult
from moorage.runner import Ports, Runner
from moorage.simulator.site import endpoint_report

QUICK = Timeouts().override(
    {
        "status_first_s": 0.02,
        "status_starting_s": 0.05,
        "status_queued_s": 0.1,
        "confirm_s": 0.1,
        "backoff_base_s": 0.05,
        "horizon_s": 0.5,
    }
)


@define(eq=False)
class StubJob:
    tag: Tag
    owner: Owner
    said: Observation
    report: bytes
    log: bytes = b""


@define(eq=False)
class StubSystem:
    """Jobs run at once, unless told to queue, to be refused, or to fail with a log."""

    vault: LocalVault
    queueing: bool = False
    refusing: str = ""
    failing: bytes = b""
    submitted: int = 0
    jobs: dict[JobId, StubJob] = field(factory=dict)

    def account(self, owner: Owner) -> str:
        return owner

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        if self.refusing:
            raise Refused(self.refusing)
        self.submitted += 1
        job = JobId(f"job-{self.submitted}")  # before the next one comes
        attempt = int(tag[-4:])
        assert tag == tag_of(spec, attempt)
        secret = await self.vault.gate(spec.id, attempt)
        endpoint = Endpoint("n1", 4000, "", secrets.token_hex(16))
        said: Observation = Alive(Phase.PENDING if self.queueing else Phase.RUNNING, "n1")
        if self.failing:
            said = Gone(EndReason.FAILED, 3, "the prolog failed")
        self.jobs[job] = StubJob(tag, spec.key.owner, said, endpoint_report(secret, tag, endpoint), self.failing)
        return job

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        found = [(job, each) for job, each in self.jobs.items() if each.tag.startswith(tag) and each.owner == owner]
        return tuple(Sighting(job, each.tag, isinstance(each.said, Alive)) for job, each in found)

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        return {handle.job: self.jobs[handle.job].said for handle in jobs if handle.job in self.jobs}

    async def cancel(self, job: Handle) -> Observation:
        return self.end(job.job)

    def end(self, job: JobId) -> Observation:
        """The job is over, whoever ended it."""
        self.jobs[job].said = Gone(EndReason.CANCELLED)
        return self.jobs[job].said

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        found = self.jobs[job.job]
        if name == "endpoint.json":
            return found.report if isinstance(found.said, Alive) and found.said.phase is Phase.RUNNING else None
        return found.log or None

    async def remove(self, job: Handle) -> None:
        self.jobs.pop(job.job, None)

    def run_all(self) -> None:
        """Nodes become free."""
        self.queueing = False
        for job in self.jobs.values():
            if isinstance(job.said, Alive):
                job.said = Alive(Phase.RUNNING, "n1")

    @property
    def alive(self) -> int:
        return sum(isinstance(job.said, Alive) for job in self.jobs.values())


@define(eq=False)
class StubTunnels:
    """Every path leads to the one server that stands for all labs."""

    address: str
    system: StubSystem
    paths: dict[SessionId, tuple[JobId, Route]] = field(factory=dict)

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        self.paths[spec.id] = (job, Route(self.address))
        return self.paths[spec.id][1]

    async def probe(self, session: SessionId) -> ProbeResult:
        job = self.paths[session][0] if session in self.paths else None
        return ProbeResult(job in self.system.jobs and isinstance(self.system.jobs[job].said, Alive))

    async def close(self, session: SessionId) -> None:
        self.paths.pop(session, None)

    async def list(self) -> Mapping[SessionId, PathReport]:
        return {session: PathReport(0.0) for session in self.paths}


@define(eq=False)
class StubWorld:
    """What tests look at and turn."""

    system: StubSystem
    tunnels: StubTunnels
    runner: Runner
    service: Service
    hub: Hub


worlds: list[StubWorld] = []
"""The worlds composed in this process, the newest last."""
labs: list[str] = []
lab_answers = {"status": 200}


@asynccontextmanager
async def compose(config_file: Path, hub: Hub) -> AsyncIterator[Service]:
    """A service whose state lies beside `config_file`."""
    directory = config_file.parent
    vault = LocalVault(directory / "vault")
    store = await SqlStore.open(directory / "moorage.sqlite")
    clock = LocalClock(await store.newest())
    system = StubSystem(vault)
    tunnels = StubTunnels(labs[-1], system)
    entry = SystemEntry(system, QUICK)
    ports = Ports(
        store, LocalWakeups(clock), clock, SystemChoices(), hub, tunnels, vault, vault, {SystemName("alpha"): entry}
    )
    runner = Runner(ports, Limits(per_user=100), "test")
    service = Service("hub", runner, vault, store, lambda user: choices(CATALOG, user, clock.now()), clock, directory)
    if worlds:  # the world outlives the Hub
        system.jobs, tunnels.paths = worlds[-1].system.jobs, worlds[-1].tunnels.paths
    try:
        async with runner:
            worlds.append(StubWorld(system, tunnels, runner, service, hub))
            yield service
    finally:
        await store.close()
        vault.close()


async def start_lab() -> web.AppRunner:
    """The server that stands for all labs; it outlives Hubs."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=lab_answers["status"], text=f"lab of {request.path}")

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    labs.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
    return runner


def _time(most: int = 86_400) -> dict[str, ResourceRange]:
    return {"walltime_s": ResourceRange(600, most, 3_600), "nodes": ResourceRange(1, 4, 1)}


CATALOG = Catalog(
    systems={
        SystemName("alpha"): SystemOffer(
            "A test system",
            partitions={
                "batch": Partition("Compute nodes", resources=_time()),
                "login": Partition("Login nodes", login=True, resources={"walltime_s": ResourceRange(600, 7200, 3600)}),
                "secret": Partition("For staff", audience=Audience(groups=("staff",)), resources=_time()),
            },
        )
    },
    services={
        "jupyterlab": Offered(
            {SystemName("alpha"): Place(Start(("lab", "{socket}")))},
            description="JupyterLab",
            default=True,
            kernels={"julia": Extra("Julia", ticked=True), "r": Extra("R")},
        )
    },
)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def until(condition: object, seconds: float = 10) -> None:
    """Wait until `condition()` holds."""
    assert callable(condition)
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 (anything may make it true)
            await asyncio.sleep(0.01)


def person(name: str) -> User:
    return User(name)


# A Hub --------------------------------------------------------------------------------------------------------------


Start = Callable[..., Awaitable["Hub"]]


@define(eq=False)
class Hub:
    """A running Hub and a client with an administrator's token."""

    app: Any
    url: str
    client: aiohttp.ClientSession

    @property
    def world(self) -> StubWorld:
        return worlds[-1]

    async def api(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, f"{self.url}/hub/api/{path}", **more) as answer:
            text = await answer.text()
            try:
                return answer.status, await answer.json(content_type=None)
            except ValueError:
                return answer.status, text

    def spawner(self, user: str, server: str = "") -> Any:
        from jupyterhub import orm

        return self.app.users[orm.User.find(self.app.db, user)].spawners[server]

    def live(self) -> list[Any]:
        return [live.session for live in self.world.runner.live.values() if live.session is not None]


async def stop_hub(hub: Hub, harsh: bool = False) -> None:
    """End the Hub: as on SIGTERM, or `harsh` as if it were killed, with no word to the database."""
    from moorage.adapters.hub.embedding import _tasks

    if hub.client.closed:
        return
    await hub.client.close()
    for callback in hub.app._periodic_callbacks.values():
        callback.stop()
    hub.app.metrics_collector.stop() if hasattr(hub.app.metrics_collector, "stop") else None
    for task in list(_tasks):
        task.cancel()
    await asyncio.gather(*_tasks, return_exceptions=True)
    for user in list(hub.app.users.values()):
        for spawner in user.spawners.values():
            spawner.stop_polling()
            if spawner._spawn_future is not None:
                spawner._spawn_future.cancel()
    if not harsh:
        await hub.app.cleanup()
    else:
        await _close_client_of_hub()
    hub.app.http_server.stop()
    await hub.app.http_server.close_all_connections()
    hub.app.db.close()


async def _close_client_of_hub() -> None:
    """JupyterHub 6 has a client of its own; version 5 has that of tornado, which closes with its loop."""
    try:
        from jupyterhub.httpclient import JupyterHubHTTPClient
    except ImportError:
        return
    if JupyterHubHTTPClient.initialized():
        await JupyterHubHTTPClient.instance().close()
