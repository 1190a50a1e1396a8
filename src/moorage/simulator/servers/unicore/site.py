"""One UNICORE/X: everything it keeps, and what can be done with it, without a word of HTTP."""

import asyncio
import contextlib
import datetime
import secrets
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from attrs import define, field

from . import files
from .access import Access, Caller, ServerKey, compact
from .answers import Failure
from .clock import Clock, RealClock
from .config import SiteConfig, User
from .description import tags_of
from .execution import BatchSystem, LoginNodes, Runner, Work
from .faults import Faults
from .jobs import Job, Processor
from .kept import Shelf
from .notifications import Notifier
from .processes import ProcessRunner
from .virtual import Outcome, VirtualRunner

_digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
longest_fetch = 256 * 1024 * 1024


def new_id() -> str:
    """Base 62 of a random 64-bit number. Source: UNICORE-EU/use, Utilities.newUniqueID."""
    number, text = secrets.randbits(64), ""
    while number or not text:
        number, digit = divmod(number, 62)
        text = _digits[digit] + text
    return text


@define(eq=False)
class Resource:
    """What every resource has. `ends_at` None never ends."""

    id: str
    owner: str
    ends_at: float | None = None
    tags: list[str] = field(factory=list)
    acl: list[str] = field(factory=list)


@define(eq=False)
class Storage(Resource):
    """A storage; `job` for a working directory, else `root`, below which `personal` ones have one per account."""

    root: Path | None = None
    personal: bool = False
    job: Job | None = None
    umask: str = "77"
    description: str = ""
    metadata: dict[str, dict[str, Any]] = field(factory=dict)

    @property
    def status(self) -> str:
        if self.job is None or self.job.directory is not None:
            return "READY"
        return "ERROR" if self.job.done else "INITIALIZING"


@define(eq=False)
class TargetSystem(Resource):
    """What a user's jobs hang below. Its status is INITIALIZING for the first 0.2 s."""

    ready_at: float = 0.0


@define(eq=False)
class Transfer(Resource):
    """A server-to-server transfer."""

    storage: str = ""
    is_export: bool = False
    source: str = ""
    target: str = ""
    protocol: str = "BFT"
    status: str = "CREATED"
    message: str = "UNKNOWN"
    moved: int = 0
    size: int = -1
    task: "asyncio.Task[None] | None" = None


@define(eq=False)
class ByteTransfer(Resource):
    """One file a client sends or fetches over `/rest/files/ID`; knowing the id is the permission."""

    storage: str = ""
    is_export: bool = False
    file: str = ""
    path: Path = Path()
    append: bool = False
    moved: int = 0


class Site:
    """
    The state of one simulated UNICORE/X. Call `open` in a running event loop, `close` at the end.

    `external` is the configured external URL of the site, `https://host:port/NAME`.
    """

    def __init__(
        self,
        config: SiteConfig,
        directory: Path,
        external: str = "https://localhost/SITE",
        faults: Faults | None = None,
        clock: Clock | None = None,
        decide: Callable[[Work], Outcome] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or RealClock()
        self.faults = faults or Faults(self.clock)
        self.directory = directory.resolve()
        self.external = external
        self.key = ServerKey(config.name, self.clock.now())
        self.access = Access(config, self.key, self.clock)
        runner: Runner = (
            ProcessRunner(self.directory / "HOME", config.timing.kill_s)
            if config.execute == "process"
            else VirtualRunner(self.clock, config.virtual_runtime_s, decide)
        )
        self.batch = BatchSystem(config.partitions, runner, self.clock, config.timing)
        self.login = LoginNodes(runner)
        self.jobs: dict[str, Job] = {}
        self.targets: dict[str, TargetSystem] = {}
        self.storages: dict[str, Storage] = {}
        self.transfers: dict[str, Transfer] = {}
        self.byte_transfers: dict[str, ByteTransfer] = {}
        self.submission_enabled = True
        self.submission_message = ""
        self.reachable = True  # False: the gateway answers 503 in the site's place
        self.up_since = self.clock.now()
        self.neighbours: Callable[[str], Site | None] = lambda name: None
        self.notifier = Notifier(self)
        self.processor = Processor(self)
        self.tunnels: set[asyncio.Task[None]] = set()
        self.shelf = Shelf(self.directory / "KEPT") if config.keep else None
        self._loops: list[asyncio.Task[None]] = []
        self._target_of: dict[str, str] = {}

    @property
    def external_base(self) -> str:
        return f"{self.external}/rest/core"

    def open(self) -> None:
        for name in self.config.storages:
            root = self.directory / name
            root.mkdir(parents=True, exist_ok=True)
            personal = name == "HOME"
            text = "User's home" if personal else f"{name} file system"
            self.storages[name] = Storage(
                name, self.key.dn, root=root, personal=personal, description=text, acl=["read:ROLE:user"]
            )
        if self.shelf is not None:
            self.shelf.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._go_on(self.shelf)
            self.batch.begins = lambda work: self.keep(self.jobs.get(work.job_id))
        self._loops = [
            asyncio.create_task(self.processor.watch(), name="batch listing"),
            asyncio.create_task(self.processor.expire(), name="expiry"),
        ]

    async def close(self) -> None:
        """True afterwards: no process of a job is left, no task of the site runs."""
        tasks = [*self._loops, *self.tunnels, *(t.task for t in self.transfers.values() if t.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.processor.close()
        await self.login.close()
        await self.batch.close()
        await self.notifier.close()
        if self.shelf is not None:
            self.shelf.clear()

    # --- what outlives the process -------------------------------------------------------------------

    def keep(self, resource: object) -> None:
        """A job is kept as it is now for the next start, if this site keeps any."""
        if self.shelf is not None and isinstance(resource, Job) and resource.id in self.jobs:
            run_id = resource.run_id or ""
            self.shelf.put(resource, self.batch.entry(run_id), self.login.work(run_id))

    def _go_on(self, shelf: Shelf) -> None:
        for kept in shelf.jobs():
            job = kept.job
            job.allocation = self.jobs.get(kept.allocation or "")
            self._have(job)
            if job.site_id not in self.targets:
                self.targets[job.site_id] = TargetSystem(job.site_id, job.owner)
                self._target_of.setdefault(job.owner, job.site_id)
            self.processor.go_on(job, kept.entry, kept.work)

    def _have(self, job: Job) -> None:
        self.jobs[job.id] = job
        uspace = f"{job.id}-uspace"
        self.storages[uspace] = Storage(uspace, job.owner, ends_at=job.ends_at, job=job)

    # --- jobs ----------------------------------------------------------------------------------------

    def submit(
        self,
        caller: Caller,
        description: dict[str, Any],
        target: TargetSystem | None = None,
        allocation: Job | None = None,
    ) -> Job:
        """Accept a description unread. The first job of a user makes a target system."""
        if not self.submission_enabled:
            raise Failure(503, self.submission_message)
        if len(self.jobs) >= self.config.most_jobs:
            raise Failure(500, "Could not submit job: java.lang.Exception: too many jobs")
        now = self.clock.now()
        lifetime_s = self.faults.lifetime() or self.config.job_lifetime_s
        target = target or self._own_target(caller.dn)
        job = Job(
            id=new_id(),
            owner=compact(caller.dn),
            uid=caller.uid or "nobody",
            group=caller.group or "NONE",
            client=caller.dn,
            queues=None if caller.queues is None else tuple(caller.queues),
            submitted=description,
            preferences=dict(caller.session.preferences) if caller.session else {},
            bearer=caller.identity.bearer,
            submitted_at=now,
            ends_at=now + lifetime_s,
            site_id=target.id,
            tags=tags_of(description),
            allocation=allocation,
        )
        self._have(job)
        self.processor.begin(job)
        self.keep(job)
        return job

    def delete_job(self, job: Job) -> None:
        """Out of the books at once; the run and the directory follow. No notification is sent."""
        self.jobs.pop(job.id, None)
        self.storages.pop(f"{job.id}-uspace", None)
        self.processor.destroy(job)
        if self.shelf is not None:
            self.shelf.drop(job.id)

    def job_directory(self, job: Job) -> Path:
        return self.directory / "UNICORE_Jobs" / job.uid / job.id

    def _own_target(self, dn: str) -> TargetSystem:
        known = self.targets.get(self._target_of.get(compact(dn), ""))
        return known or self.new_target(dn, None)

    def new_target(self, dn: str, ends_at: float | None) -> TargetSystem:
        target = TargetSystem(new_id(), compact(dn), ends_at, ready_at=self.clock.now() + 0.2)
        self.targets[target.id] = target
        self._target_of.setdefault(compact(dn), target.id)
        if self._target_of[compact(dn)] not in self.targets:
            self._target_of[compact(dn)] = target.id
        return target

    # --- files ---------------------------------------------------------------------------------------

    def root(self, storage: Storage, uids: Sequence[str], uid: str) -> Path:
        """
        The directory a storage shows somebody.

        Raises:
            Failure: 403 for another account's directory; 500 for a directory that is not there yet,
                which the real server leaves undefined.
        """
        if storage.job is not None:
            if storage.job.uid not in uids:
                raise Failure(403)
            if storage.job.directory is None:
                raise Failure(500, f"java.lang.IllegalStateException: Storage {storage.id} is not ready")
            return storage.job.directory
        assert storage.root is not None
        if not storage.personal:
            return storage.root
        home = storage.root / uid
        home.mkdir(parents=True, exist_ok=True)
        return home

    def find_file(self, url: str, uid: str) -> tuple[Storage, Path] | None:
        """The storage and the path a UNICORE storage URL names on this gateway; None for foreign ones."""
        _, found, rest = url.partition("/rest/core/storages/")
        if not found:
            return None
        # A protocol may stand before the URL: `BFT:https://gateway/SITE/rest/core/...`.
        name = urlsplit(url[max(url.find("http"), 0) :]).path.strip("/").split("/", 1)[0]
        site = self.neighbours(name) or self
        storage_id, _, path = rest.partition("/files")
        storage = site.storages.get(storage_id)
        if storage is None:
            raise Failure(404, f"java.io.FileNotFoundException: storage {storage_id[:50]}")
        return storage, files.inside(site.root(storage, (uid,), uid), files.decode(path))

    async def fetch(self, source: str, uid: str, owner: str) -> bytes:
        """The content of an import. Raises `Failure`, `OSError` or `ValueError` when it cannot be had."""
        found = self.find_file(source, uid)
        if found is not None:
            return await asyncio.to_thread(found[1].read_bytes)
        scheme = source.partition(":")[0].lower()
        if scheme in ("http", "https"):
            return await self._download(source)
        if scheme in ("file", "link"):
            path = files.inside(self.directory, files.normal(urlsplit(source).path))
            return await asyncio.to_thread(path.read_bytes)
        raise ValueError(f"Could not create file import: Protocol '{scheme.upper()[:20]}' is not available.")

    async def _download(self, url: str) -> bytes:
        data = bytearray()
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=120)) as client,
                client.get(url, ssl=False) as reply,
            ):
                if reply.status >= 400:
                    raise ValueError(f"HTTP {reply.status} {reply.reason}")
                async for piece in reply.content.iter_any():
                    data += piece
                    if len(data) > longest_fetch:
                        raise ValueError("file is too large")
        except (aiohttp.ClientError, TimeoutError) as error:
            raise ValueError(f"{type(error).__name__}") from error
        return bytes(data)

    async def export(self, job: Job, source: str, target: str) -> None:
        assert job.directory is not None
        found = self.find_file(target, job.uid)
        if found is None:
            raise ValueError(f"Protocol '{target.partition(':')[0].upper()[:20]}' is not available.")
        data = await asyncio.to_thread(files.inside(job.directory, files.normal(source)).read_bytes)
        found[1].parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(found[1].write_bytes, data)

    def start_transfer(self, transfer: Transfer, uid: str) -> None:
        self.transfers[transfer.id] = transfer
        transfer.task = asyncio.create_task(self._transfer(transfer, uid), name=f"transfer {transfer.id}")

    async def _transfer(self, transfer: Transfer, uid: str) -> None:
        transfer.status = "RUNNING"
        await self.clock.sleep(self.config.timing.step_s)
        try:
            data = await self.fetch(transfer.source, uid, transfer.owner)
            found = self.find_file(transfer.target, uid)
            if found is None:
                raise ValueError("Protocol of the target is not available.")
            transfer.size = len(data)
            found[1].parent.mkdir(parents=True, exist_ok=True)
            await asyncio.to_thread(found[1].write_bytes, data)
        except (Failure, OSError, ValueError) as error:
            transfer.status, transfer.message = "FAILED", f"NOT_SUCCESSFUL {error}"[:500]
            return
        transfer.moved, transfer.status, transfer.message = len(data), "DONE", "SUCCESSFUL"

    # --- small things --------------------------------------------------------------------------------

    def uids(self, caller: Caller) -> Sequence[str]:
        user = caller.identity.user
        return () if user is None else tuple(user.uids) or (user.name,)

    def user_named(self, name: str) -> User | None:
        return next((user for user in self.config.users if user.name == name), None)

    def parse_moment(self, text: str) -> float | None:
        """`HH:mm` (the next such time), `yyyy-MM-dd HH:mm` (both in the server's zone) or ISO with zone."""
        now = datetime.datetime.fromtimestamp(self.clock.now()).astimezone()
        with contextlib.suppress(ValueError, OverflowError):
            clock = datetime.datetime.strptime(text, "%H:%M")  # noqa: DTZ007 - only hour and minute are used
            at = now.replace(hour=clock.hour, minute=clock.minute, second=0, microsecond=0)
            return (at if at > now else at + datetime.timedelta(days=1)).timestamp()
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.datetime.strptime(text, "%Y-%m-%d %H:%M").astimezone().timestamp()
        with contextlib.suppress(ValueError, OverflowError):
            return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()
        return None
