"""
A process with the real runner on a SQLite store and the real adapter of a UNICORE site; killed by `test_kill_9.py`.

Called with a directory and the site's address. Each line on standard input is a wish (JSON with a number), and each
line on standard output says that one was granted: what is said there must hold whatever happens next. The relay and the
Hub are directories of files, because theirs outlive this process, too.
"""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import frozen
from tests.unit.runner.doubles import proven

from moorage.adapters.local.clock import LocalClock, SystemChoices
from moorage.adapters.local.store import SqlStore
from moorage.adapters.local.vault import LocalVault
from moorage.adapters.local.wakeups import LocalWakeups
from moorage.adapters.unicore.config import BasicLogin, UnicoreConfig
from moorage.adapters.unicore.system import UnicoreSystem, build
from moorage.config.fields import SecretRef
from moorage.core.limits import Limits
from moorage.core.model import (
    Endpoint,
    JobId,
    Observation,
    Owner,
    Phase,
    Route,
    SessionId,
    SessionKey,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    parse_tag,
)
from moorage.core.plan import ENDPOINT_NAME, LaunchPlan, LaunchSecrets, Rendered, render
from moorage.core.progress import Progress
from moorage.core.timeouts import Timeouts
from moorage.performing import SystemEntry
from moorage.ports.sessions import StartRequest
from moorage.ports.system import Handle
from moorage.ports.tunnels import PathReport, ProbeResult
from moorage.runner import Ports, Runner

SITE = SystemName("site")
LAB = "lab"
"""The host that every launcher names; the operator allows it."""

TIMEOUTS = Timeouts(
    connect_s=1,
    call_s=2,
    submit_s=4,
    horizon_s=3,
    confirm_s=0.3,
    lookup_s=0.5,
    status_first_s=0.05,
    status_starting_s=0.3,
    status_queued_s=0.5,
    status_ready_s=2,
    sweep_s=2,
    repair_s=0.5,
    residue_cap_s=1,
    backoff_base_s=0.1,
    backoff_cap_s=0.5,
    probe_fresh_s=1,
    probe_stale_s=10,
)


@frozen
class Plans:
    """The port `Plans`: a lab that nobody starts, since the jobs of this site only pass time."""

    vault: LocalVault

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        named = parse_tag(tag)
        assert named is not None
        plan = LaunchPlan(
            tag=tag,
            attempt=named[1],
            owner=spec.key.owner,
            command=("/bin/true", "{socket}"),
            walltime_s=spec.walltime_s,
        )
        return render(plan, LaunchSecrets(await self.vault.gate(*named)))


@frozen
class WithLaunchers:
    """The adapter, and what the launcher in each running job would have written."""

    inner: UnicoreSystem
    vault: LocalVault

    def account(self, owner: Owner) -> str:
        return self.inner.account(owner)

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        return await self.inner.submit(tag, spec)

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        return await self.inner.find(tag, owner)

    async def observe(self, jobs: Any) -> Mapping[JobId, Observation]:
        return await self.inner.observe(jobs)

    async def cancel(self, job: Handle) -> Observation:
        return await self.inner.cancel(job)

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        if name != ENDPOINT_NAME:
            return await self.inner.read(job, name, limit)
        observed = (await self.inner.observe([job])).get(job.job)
        if getattr(observed, "phase", None) is not Phase.RUNNING:
            return None
        named = parse_tag(job.tag)
        assert named is not None
        nonce = job.job[-36:].replace("-", "").rjust(32, "0").lower()
        said = {"host": LAB, "port": 5000, "nonce": nonce}
        return proven(await self.vault.gate(*named), "endpoint", job.tag, said)

    async def remove(self, job: Handle) -> None:
        await self.inner.remove(job)


@frozen
class FileRelay:
    """The port `Tunnels`: a path is a file."""

    directory: Path

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        (self.directory / spec.id).write_text(job)
        return Route(f"http://127.0.0.1:1/{spec.id}/{endpoint.nonce}")

    async def probe(self, session: SessionId) -> ProbeResult:
        return ProbeResult((self.directory / session).exists())

    async def close(self, session: SessionId) -> None:
        (self.directory / session).unlink(missing_ok=True)

    async def list(self) -> Mapping[SessionId, PathReport]:
        return {SessionId(path.name): PathReport(0.1) for path in self.directory.iterdir()}


@frozen
class FileHub:
    """The port `Hub`: an address is a file."""

    directory: Path

    async def report(self, spec: SessionSpec, progress: Progress) -> None:
        """Nobody looks."""

    async def publish(self, spec: SessionSpec, route: Route) -> None:
        (self.directory / spec.id).write_text(route.address)

    async def withdraw(self, spec: SessionSpec) -> None:
        (self.directory / spec.id).unlink(missing_ok=True)


@asynccontextmanager
async def running(directory: Path, url: str) -> AsyncIterator[Runner]:
    """The runner of this deployment."""
    store = await SqlStore.open(directory / "state" / "moorage.sqlite")
    vault = LocalVault(directory / "vault")
    clock = LocalClock(await store.newest())
    login = BasicLogin(kind="basic", username="alice", password=SecretRef(file=str(directory / "password")))
    context = {"clock": clock, "credentials": vault, "timeouts": TIMEOUTS, "simulation": True, "plans": Plans(vault)}
    system = build(SITE, UnicoreConfig(url=url, credentials=login, connections=16), **context)
    ports = Ports(
        store=store,
        wakeups=LocalWakeups(clock),
        clock=clock,
        choices=SystemChoices(),
        hub=FileHub(directory / "routes"),
        tunnels=FileRelay(directory / "paths"),
        credentials=vault,
        vault=vault,
        systems={SITE: SystemEntry(WithLaunchers(system, vault), TIMEOUTS, destinations=(LAB,))},
    )
    try:
        async with Runner(ports, Limits(per_user=100), "killed") as runner:
            yield runner
    finally:
        await system.close()
        vault.close()
        await store.close()


async def grant(runner: Runner, wish: dict[str, Any]) -> None:
    """One wish, and a line once it is granted."""
    said: dict[str, Any] = {"number": wish["number"]}
    if wish["do"] == "start":
        key = SessionKey("hub", Owner(wish["owner"]), wish["name"])
        said["session"] = await runner.start(StartRequest(key, SITE, walltime_s=3_600))
    if wish["do"] == "stop":
        await runner.stop(SessionId(wish["session"]))
    # One write per line: a line is there whole or not at all.
    sys.stdout.write(json.dumps(said) + "\n")
    sys.stdout.flush()


async def main(directory: Path, url: str) -> None:
    async with running(directory, url) as runner:
        sys.stdout.write('{"number": 0}\n')
        sys.stdout.flush()
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        wishes: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(grant(runner, json.loads(line)))
            wishes.add(task)
            task.add_done_callback(wishes.discard)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
