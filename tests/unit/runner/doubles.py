"""
A small world for the real runner: a site, a relay, a Hub, a store and a safe, each a few lines of working memory.

What goes wrong is a script: `site.scripts["submit"] = lost_answer` makes every submit do its work and then say nothing.
The same doubles run in virtual time (`in_virtual_time`) and, for tests with real files, on an ordinary loop.
"""

import asyncio
import functools
import hashlib
import hmac
import json
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from attrs import define, evolve, field

from moorage.adapters.local.wakeups import LocalWakeups
from moorage.core.admission import Taken, takes_place
from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.model import (
    Alive,
    Endpoint,
    EndReason,
    Gone,
    Instant,
    JobId,
    Observation,
    Owner,
    Phase,
    Route,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
)
from moorage.core.plan import ENDPOINT_NAME, LOG_NAME, STATUS_NAME
from moorage.core.progress import Progress
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.performing import SystemEntry
from moorage.ports.credentials import Token
from moorage.ports.errors import LimitReached, StaleVersion, StoreFailed
from moorage.ports.sessions import StartRequest
from moorage.ports.store import Logged, Store, Stored
from moorage.ports.system import Handle
from moorage.ports.tunnels import PathReport, ProbeResult
from moorage.runner import Ports, Runner, Watcher
from moorage.simulator.loop import virtual_loop

A, B = SystemName("alpha"), SystemName("beta")
ADA = Owner("ada")
EPOCH_MS = 1_767_225_600_000
MOST_CALLBACKS = 3_000_000
"""A test that needs more goes in a circle."""

Act = Callable[[], Any]
Script = Callable[[Act], Awaitable[Any]]
"""What a call does instead; `act` is what it would have done and what it would have answered."""


# Scripts ----------------------------------------------------------------------------------------------------------


async def hang(_act: Act) -> Any:
    """Nothing happens, for ever."""
    await asyncio.get_running_loop().create_future()


async def lost_answer(act: Act) -> Any:
    """It happens, and nobody hears of it."""
    act()
    await asyncio.get_running_loop().create_future()


def raising(error: BaseException, *, after: bool = False) -> Script:
    async def script(act: Act) -> Any:
        if after:
            act()
        raise error

    return script


def answering(value: object) -> Script:
    async def script(_act: Act) -> Any:
        return value

    return script


def slow(seconds: float) -> Script:
    async def script(act: Act) -> Any:
        answer = act()
        await asyncio.sleep(seconds)
        return answer

    return script


def first(*scripts: Script) -> Script:
    """Each for one call, then everything is as usual."""
    left = deque(scripts)

    async def script(act: Act) -> Any:
        return await left.popleft()(act) if left else act()

    return script


@define(eq=False)
class Party:
    """Somebody who is called: counts, takes time, and follows scripts."""

    latency_s: float = 0.01
    scripts: dict[str, Script] = field(factory=dict)
    calls: list[tuple[str, float, Any]] = field(factory=list)
    running: Counter[str] = field(factory=Counter)
    most: Counter[str] = field(factory=Counter)

    async def call(self, verb: str, act: Act, about: object = None) -> Any:
        self.calls.append((verb, asyncio.get_running_loop().time(), about))
        self.running[verb] += 1
        self.most[verb] = max(self.most[verb], self.running[verb])
        try:
            await asyncio.sleep(self.latency_s)
            script = self.scripts.get(verb)
            return act() if script is None else await script(act)
        finally:
            self.running[verb] -= 1

    def times(self, verb: str) -> list[float]:
        """When it was called."""
        return [at for name, at, _ in self.calls if name == verb]

    def count(self, verb: str) -> int:
        return len(self.times(verb))


# The doubles ------------------------------------------------------------------------------------------------------


@define
class Job:
    id: JobId
    tag: Tag
    owner: Owner
    said: Observation
    removed: bool = False

    @property
    def alive(self) -> bool:
        return isinstance(self.said, Alive)


@define(eq=False)
class Site(Party):
    """The port `System`: jobs run on node `n1` as soon as they are submitted, and end when they are cancelled."""

    name: str = "alpha"
    safe: "Safe" = field(factory=lambda: Safe())
    jobs: dict[JobId, Job] = field(factory=dict)
    starts: bool = True
    hidden: set[JobId] = field(factory=set)
    """Jobs that no lookup and no listing shows."""
    status: Mapping[str, Any] | None = None
    host: str = "n1"
    account_of: Callable[[Owner], Any] = lambda owner: owner

    def account(self, owner: Owner) -> str:
        account: str = self.account_of(owner)
        return account

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        return await self.call("submit", lambda: self.create(tag, spec.key.owner), tag)

    def create(self, tag: Tag, owner: Owner = ADA) -> JobId:
        """A job that is there, whoever asked for it."""
        job = JobId(f"{self.name}-{len(self.jobs) + 1}")
        said = Alive(Phase.RUNNING, node="n1") if self.starts else Alive(Phase.PENDING)
        self.jobs[job] = Job(job, tag, owner, said)
        return job

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        def act() -> tuple[Sighting, ...]:
            shown = [job for job in self.jobs.values() if job.owner == owner and job.id not in self.hidden]
            return tuple(Sighting(job.id, job.tag, job.alive) for job in shown if job.tag.startswith(tag))

        return await self.call("find", act, tag)

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        def act() -> dict[JobId, Observation]:
            asked = [self.jobs[handle.job] for handle in jobs if handle.job in self.jobs]
            return {job.id: job.said for job in asked if job.id not in self.hidden}

        return await self.call("observe", act, tuple(handle.job for handle in jobs))

    async def cancel(self, job: Handle) -> Observation:
        return await self.call("cancel", lambda: self.end(job.job, EndReason.CANCELLED), job.job)

    def end(self, job: JobId, reason: EndReason) -> Observation:
        if self.jobs[job].alive:
            self.jobs[job].said = Gone(reason)
        return self.jobs[job].said

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        return await self.call("read", lambda: self.file(job, name), name)

    def file(self, job: Handle, name: str) -> bytes | None:
        if name == LOG_NAME:
            return b"the last words\n"
        said: dict[str, Any] | None = None
        if name == ENDPOINT_NAME and self.jobs[job.job].alive:
            said = {"host": self.host, "port": 5000, "nonce": hashlib.md5(job.job.encode()).hexdigest()}
        if name == STATUS_NAME and self.status is not None:
            said = dict(self.status)
        if said is None:
            return None
        kind = "endpoint" if name == ENDPOINT_NAME else "status"
        return proven(self.safe.by_tag(job.tag), kind, job.tag, said)

    async def remove(self, job: Handle) -> None:
        def act() -> None:
            self.jobs[job.job].removed = True

        await self.call("remove", act, job.job)

    @property
    def living(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.alive]


def proven(secret: Secret, kind: str, tag: str, said: Mapping[str, Any]) -> bytes:
    """A report as the launcher writes it (decision record "Launch plan and gate")."""
    document = {**said, "kind": kind, "tag": tag}
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    key = bytes.fromhex(secret.reveal())
    document["mac"] = hmac.new(key, b"document\n" + body.encode(), hashlib.sha256).hexdigest()
    return json.dumps(document).encode()


@define(eq=False)
class PushingSite(Site):
    """A site that also calls."""

    pushes: "asyncio.Queue[object]" = field(factory=asyncio.Queue)

    async def watch(self) -> AsyncIterator[JobId]:
        self.calls.append(("watch", asyncio.get_running_loop().time(), None))
        while True:
            pushed = await self.pushes.get()
            if isinstance(pushed, BaseException):
                raise pushed
            if pushed is None:
                return
            yield JobId(pushed) if isinstance(pushed, str) else pushed  # type: ignore[misc]


@define(eq=False)
class Relay(Party):
    """The port `Tunnels`."""

    paths: dict[SessionId, Endpoint] = field(factory=dict)
    age_s: dict[SessionId, float | None] = field(factory=dict)
    lost: set[SessionId] = field(factory=set)
    good: bool = True

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        def act() -> Route:
            self.paths[spec.id] = endpoint
            return Route(f"http://127.0.0.1/{spec.id}/{endpoint.nonce}")

        return await self.call("open", act, spec.id)

    async def probe(self, session: SessionId) -> ProbeResult:
        return await self.call("probe", lambda: ProbeResult(self.good and session in self.paths), session)

    async def close(self, session: SessionId) -> None:
        await self.call("close", lambda: self.paths.pop(session, None), session)

    async def list(self) -> Mapping[SessionId, PathReport]:
        def act() -> dict[SessionId, PathReport]:
            return {id_: PathReport(self.age_s.get(id_, 1.0), id_ in self.lost, "cut") for id_ in self.paths}

        return await self.call("list", act)


@define(eq=False)
class HubPage(Party):
    """The port `Hub`."""

    reports: list[tuple[SessionId, Progress]] = field(factory=list)
    routes: dict[SessionId, Route] = field(factory=dict)

    async def report(self, spec: SessionSpec, progress: Progress) -> None:
        await self.call("report", lambda: self.reports.append((spec.id, progress)))

    async def publish(self, spec: SessionSpec, route: Route) -> None:
        await self.call("publish", lambda: self.routes.__setitem__(spec.id, route))

    async def withdraw(self, spec: SessionSpec) -> None:
        await self.call("withdraw", lambda: self.routes.pop(spec.id, None))


@define(eq=False)
class Safe(Party):
    """The ports `Credentials` and `Vault`."""

    gates: dict[tuple[SessionId, int], Secret] = field(factory=dict)

    async def token(self, owner: Owner, system: SystemName) -> Token:
        return Token(Secret("token"))

    async def issue(self, spec: SessionSpec, attempt: int) -> None:
        secret = Secret(hashlib.sha256(f"{spec.id}/{attempt}".encode()).hexdigest())
        await self.call("issue", lambda: self.gates.__setitem__((spec.id, attempt), secret), (spec.id, attempt))

    async def revoke(self, session: SessionId) -> None:
        def act() -> None:
            for key in [key for key in self.gates if key[0] == session]:
                del self.gates[key]

        await self.call("revoke", act, session)

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        return await self.call("gate", lambda: self.gates[session, attempt])

    async def environment(self, session: SessionId) -> Mapping[str, Secret]:
        return {}

    async def keep(self, key: SessionKey, environment: Mapping[str, Secret]) -> None:
        """Nothing is kept."""

    def by_tag(self, tag: Tag) -> Secret:
        return next(secret for (id_, attempt), secret in self.gates.items() if tag.endswith(f"{id_}{attempt:04d}"))


@define(eq=False)
class Shelf(Party):
    """The port `Store`. Scripts are those of `save`, `load`, `log` and `unfinished`."""

    sessions: dict[SessionId, Stored] = field(factory=dict)
    logs: dict[SessionId, list[Logged]] = field(factory=dict)
    history: list[Stored] = field(factory=list)
    held_elsewhere: int = 0
    """Places that another process holds on `alpha`."""

    async def load(self, session: SessionId) -> Stored | None:
        return await self.call("load", lambda: self.sessions.get(session), session)

    async def save(
        self, session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None = None
    ) -> int:
        return await self.call("save", lambda: self.put(session, event, at, expected, limits), event)

    def put(self, session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None) -> int:
        stored = self.sessions.get(session.id)
        if (0 if stored is None else stored.version) != expected:
            raise StaleVersion("moved on")
        if limits is not None:
            taken = Taken(each.session for each in self.sessions.values() if takes_place(each.session))
            taken.systems[A] += self.held_elsewhere
            if taken.reached(session, limits) is not None:
                raise LimitReached("no place")
        self.sessions[session.id] = Stored(session, expected + 1)
        self.history.append(self.sessions[session.id])
        self.logs.setdefault(session.id, []).append(Logged(expected + 1, at, event))
        return expected + 1

    async def unfinished(self) -> Sequence[Stored]:
        return await self.call("unfinished", lambda: [each for each in self.sessions.values() if not each.session.over])

    async def latest(self, key: SessionKey) -> Stored | None:
        found = [each for each in self.sessions.values() if each.session.spec.key == key]
        return found[-1] if found else None

    async def log(self, session: SessionId, after: int = 0, limit: int = 1000) -> Sequence[Logged]:
        entries = self.logs.get(session, [])
        return await self.call("log", lambda: [each for each in entries if each.version > after][:limit])

    async def close(self) -> None:
        """Nothing to give back."""


class LoopClock:
    """The port `Clock` on the time of the loop, virtual or not."""

    def now(self) -> Instant:
        return Instant(EPOCH_MS + round(asyncio.get_running_loop().time() * 1000))

    async def sleep_until(self, at: Instant) -> None:
        left_ms = at - self.now()
        await asyncio.sleep(max(0, min(left_ms, 10**10)) / 1000)


class Counting:
    """The port `Choices`: numbers in a row."""

    def __init__(self) -> None:
        self._number = 0

    def seed(self) -> int:
        self._number += 1
        return self._number * 0x9E3779B97F4A7C15 % 2**64

    def session_id(self) -> SessionId:
        self._number += 1
        digest = hashlib.sha256(str(self._number).encode()).hexdigest()
        return SessionId("".join("abcdefghijklmnop"[int(digit, 16)] for digit in digest[:26]))


# The world --------------------------------------------------------------------------------------------------------

FULL_DISK = raising(StoreFailed("the disk is full"))
UNSAID = raising(StoreFailed("the connection broke after the commit"), after=True)


@define(eq=False)
class World:
    """One deployment: everything that outlives a runner, and how to get one."""

    timeouts: Timeouts = field(factory=Timeouts)
    limits: Limits = field(factory=Limits)
    entry: Mapping[str, Any] = field(factory=dict)
    """Fields of the entries of both systems: `calls`, `queue`, `closed`."""
    safe: Safe = field(factory=Safe)
    hub: HubPage = field(factory=HubPage)
    relay: Relay = field(factory=Relay)
    store: Shelf = field(factory=Shelf)
    choices: Counting = field(factory=Counting)
    sites: dict[SystemName, Site] = field(factory=dict)
    watchers: list[Watcher] = field(factory=list)
    other_store: Store | None = None
    """Used instead of `store` if given."""

    def __attrs_post_init__(self) -> None:
        for name in (A, B):
            self.sites.setdefault(name, Site(name=name, safe=self.safe))
            self.sites[name].safe = self.safe

    @property
    def site(self) -> Site:
        return self.sites[A]

    def ports(self) -> Ports:
        clock = LoopClock()
        return Ports(
            store=self.other_store or self.store,
            wakeups=LocalWakeups(clock),
            clock=clock,
            choices=self.choices,
            hub=self.hub,
            tunnels=self.relay,
            credentials=self.safe,
            vault=self.safe,
            systems={name: SystemEntry(site, self.timeouts, **self.entry) for name, site in self.sites.items()},
        )

    @asynccontextmanager
    async def runner(self) -> AsyncIterator[Runner]:
        """A runner over this world; afterwards nothing of it is left."""
        async with Runner(self.ports(), self.limits, watchers=self.watchers) as runner:
            yield runner
        assert not runner.tasks
        assert not runner.performing.tasks


def request(owner: str = "ada", name: str = "", system: SystemName = A, **fields: Any) -> StartRequest:
    return StartRequest(SessionKey("hub", Owner(owner), name), system, **fields)


async def wait_for(runner: Runner, session: SessionId, *states: type, within_s: float = 3_600) -> Session:
    """The session once it is in one of these states; a sentence if it does not come there."""
    deadline, pause_s = asyncio.get_running_loop().time() + within_s, 0.01
    while True:
        found = (await runner.get(session)).session
        if isinstance(found.state, states):
            return found
        left_s = deadline - asyncio.get_running_loop().time()
        assert left_s > 0, f"still {found.state}, wanted {states}"
        await asyncio.sleep(pause_s)
        pause_s = min(1.05 * pause_s, 0.25)


async def wait_until(true: Callable[[], bool], within_s: float = 3_600) -> None:
    deadline, pause_s = asyncio.get_running_loop().time() + within_s, 0.01
    while not true():
        assert asyncio.get_running_loop().time() < deadline, "it did not become true"
        await asyncio.sleep(pause_s)
        pause_s = min(1.05 * pause_s, 0.25)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class _Critical(logging.Handler):
    """Collects what is loud: a part that died, a bug."""

    def __init__(self) -> None:
        super().__init__(logging.CRITICAL)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() != "an adapter raised what it may not":
            self.said.append(f"{record.getMessage()}: {record.exc_info and record.exc_info[1]!r}")


_loud = _Critical()


@contextmanager
def expecting(message: str) -> Iterator[None]:
    """Something loud happens here, and is meant to."""
    before = len(_loud.said)
    yield
    new = _loud.said[before:]
    assert new
    assert all(message in said for said in new), new
    del _loud.said[before:]


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test on a loop whose clock moves instead of waiting. Afterwards nothing has died and nothing is left over."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        _loud.said.clear()
        logging.getLogger("moorage").addHandler(_loud)
        try:
            with virtual_loop() as loop:
                loop.most_callbacks = MOST_CALLBACKS
                loop.run_until_complete(test(*args, **kwargs))
                left = [task for task in asyncio.all_tasks(loop) if not task.done()]
                assert left == [], "tasks are left over"
                assert loop.failures == []
        finally:
            logging.getLogger("moorage").removeHandler(_loud)
        assert _loud.said == []

    return run


__all__ = ["A", "B", "Job", "World", "evolve", "in_virtual_time"]
