"""
The simulated world: systems, relay, Hub, store, users, and the real runner between them, in virtual time.

    world = World(Seeded(7), plan)
    broken = world.run([Crowd(world, world.source.stream("users"), visits).come()], duration_ms=3_600_000)

Everything that a process can lose is made anew when it is killed and started again; everything else outlives it.
"""

import asyncio
import gc
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from attrs import define, field, frozen

from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.machine import Decision
from moorage.core.model import (
    NEVER,
    Desired,
    Ended,
    Instant,
    Owner,
    Ready,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    State,
    Stopping,
    SystemName,
    Tag,
    deployment_tag,
)
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.performing import SystemEntry
from moorage.ports.errors import StoreError
from moorage.ports.sessions import StartRequest
from moorage.ports.system import System
from moorage.runner import Ports, Runner

from .batch import BatchSystem, JobRequest, Node, Partition, Preempt, Settings
from .calls import Life, Road
from .choices import SimChoices, Source, between, chance
from .clock import EPOCH_MS, SimClock
from .crashes import Boundary, Crash, crash_points
from .credentials import Safe, SimCredentials, SimVault
from .faults import Decider, Faults, Kind, Quiet
from .guard import guarded
from .hub import HubSide, SimHub
from .invariants import LOOK_MS, Broken, Invariants, Saved, pending, remains
from .loop import Runaway, Stalled, VirtualLoop, virtual_loop
from .site import Habits, Site, SiteJob, Watching
from .store import Shelf, SimStore
from .systems import Gates, Happenings, PushingSystem, SimSystem
from .tunnels import Relay, SimTunnels
from .wakeups import SimWakeups

TICK_MS = 15_000
"""How often what happens to a whole process or network has an opportunity."""

RESTART_MS = (200, 20_000)
"""From a process's death to its next start."""


MakeSystem = Callable[[Site, Road, SimClock, Gates, Happenings], System]
"""From the true site, the way to it, the clock of the process, the gate secrets, and what happens to new jobs."""


@frozen
class SystemPlan:
    """
    One system of a world.

    Args:
        account: Everybody acts through one account, as behind a gateway; else each user has their own.
        pushes: The system also calls.
    """

    name: SystemName
    nodes: int = 16
    cores: int = 48
    timeouts: Timeouts = field(factory=Timeouts)
    habits: Habits = field(factory=Habits)
    latency_ms: tuple[int, int] = (5, 60)
    pushes: bool = False
    schedule_ms: int = 1_000
    max_walltime_s: int = 86_400
    calls: int = 16
    make: "MakeSystem | None" = None
    """Makes the system as a process has it, instead of the usual double: for an adapter that is under test."""


@frozen
class WorldPlan:
    """Everything about a world that is not chance."""

    systems: tuple[SystemPlan, ...] = (SystemPlan(SystemName("alpha")),)
    limits: Limits = field(factory=Limits)
    deployment: str = "sim"
    keep_trace: bool = False
    check: bool = True
    store_takes_time: bool = True
    crowd: int = 100
    """How many come at once in the storm S5."""


@define(eq=False)
class Process:
    """One run of the process under test."""

    life: Life
    runner: Runner
    road: Road
    clock: SimClock
    started_ms: int
    """Of the loop's time."""


class World:
    """
    One world.

    Args:
        source: All chance.
        plan: Everything else.
        decider: What decides when a fault fires.
        crash: A boundary at which the first process is to be killed.
    """

    def __init__(
        self,
        source: Source,
        plan: WorldPlan | None = None,
        decider: Decider | None = None,
        crash: Crash | None = None,
        loop: VirtualLoop | None = None,
    ) -> None:
        self.plan = plan or WorldPlan()
        self.loop = loop or VirtualLoop()
        self.source = source
        self.faults = Faults(decider or Quiet(), source.stream("faults"), self.now)
        self.boundary = Boundary(crash)
        self.happenings = Happenings(self.faults, source.stream("happenings"))
        self.sites = {plan.name: self._site(plan) for plan in self.plan.systems}
        self.relay = Relay(self.sites, self.faults, self.now)
        self.hub = HubSide()
        self.safe = Safe(source.stream("secrets").integer(0, 2**31 - 1))
        self.shelf = Shelf()
        self.choices = SimChoices(source.stream("choices"))
        self.calls: dict[str, int] = {}
        self.processes: list[Process] = []
        self.crashes = 0
        self.settling = False
        self.pushing: dict[SystemName, PushingSystem] = {}
        self.trace: list[str] = []
        self._hash = hashlib.blake2b(digest_size=16)
        self._started = asyncio.Event()
        self._neighbours: set[tuple[SystemName, str]] = set()
        self._waiting: dict[SessionId, list[tuple[tuple[type[State], ...], asyncio.Future[type[State]]]]] = {}
        self.watchers: list[Callable[[Session | None, Event | None, Session, Instant], None]] = []
        self._tasks: dict[asyncio.Task[Any], None] = {}
        self._road_source = source.stream("roads")
        self._life_source = source.stream("lives")
        self.invariants = Invariants(self) if self.plan.check else None
        self.shelf.committed = self._committed
        self.broken: Broken | None = None

    # Time and trace ---------------------------------------------------------------------------------------------------

    def now(self) -> Instant:
        """The world's own clock; processes may have others."""
        return Instant(EPOCH_MS + self.loop.now_ms)

    def note(self, line: str) -> None:
        """One line of the story."""
        text = f"{self.loop.now_ms} {line}"
        self._hash.update(text.encode())
        if self.plan.keep_trace:
            self.trace.append(text)

    @property
    def digest(self) -> str:
        """Of everything that happened so far: equal for equal runs, anywhere."""
        return self._hash.hexdigest()

    def _committed(
        self, before: Session | None, event: Event | None, decision: Decision, at: Instant, session: Session
    ) -> None:
        name = "Started" if event is None else type(event).__name__
        self.note(f"{session.id} {name} {type(session.state).__name__} {session.attempt} {len(session.residue)}")
        waiting = self._waiting.get(session.id)
        if waiting:
            for states, reached in waiting:
                if isinstance(session.state, states) and not reached.done():
                    reached.set_result(type(session.state))
        for watcher in self.watchers:
            watcher(before, event, session, at)
        if self.invariants is not None:
            self.invariants.decided(Saved(before, event, decision, at, session))

    # Making -----------------------------------------------------------------------------------------------------------

    def _site(self, plan: SystemPlan) -> Site:
        nodes = [Node(f"{plan.name}-n{number:04d}", plan.cores) for number in range(plan.nodes)]
        partition = Partition(
            "batch",
            tuple(node.name for node in nodes),
            max_walltime_ms=plan.max_walltime_s * 1000,
            preempt=Preempt.CANCEL,
        )
        settings = Settings(schedule_delay_ms=plan.schedule_ms, requeue_delay_ms=30_000)
        watching = Watching(
            created=self._job_created,
            ended=self._job_ended,
            admitted=self._job_admitted,
            removed=self._job_removed,
            meddled=self._job_meddled,
            moved=self._job_moved,
        )
        source = self.source.stream(f"site/{plan.name}")
        return Site(
            plan.name, BatchSystem(nodes, [partition], settings), source, self._timer, self.now, plan.habits, watching
        )

    def later(self, at: int, then: Callable[[], object]) -> None:
        """Have something done at an instant, unless the world is healed by then."""
        self._timer(at, lambda: None if self.faults.healed else then())

    def _timer(self, at: int, then: Callable[[], object]) -> object:
        return self.loop.call_at_ms(max(self.loop.now_ms, at - EPOCH_MS), then)

    def _job_created(self, job: SiteJob) -> None:
        if job.session is None:
            return
        self.note(f"job {job.id} created for {job.session} attempt {job.attempt}")
        self._neighbour(job)
        if self.invariants is not None:
            self.invariants.job_created(job)

    def _job_ended(self, job: SiteJob) -> None:
        self.note(f"job {job.id} over")

    def _job_admitted(self, job: SiteJob) -> None:
        self.note(f"job {job.id} admitted")
        if self.invariants is not None:
            self.invariants.job_admitted(job)

    def _job_removed(self, job: SiteJob) -> None:
        if self.invariants is not None:
            self.invariants.job_removed(job)

    def _job_meddled(self, job: SiteJob) -> None:
        self.report("others_are_left_alone", f"the end of job {job.id} of another deployment was asked for", None)

    def _neighbour(self, job: SiteJob) -> None:
        """Under each account of ours another deployment has a job, which waits for ever and is none of our business."""
        site = self.sites[SystemName(job.id.rpartition(".")[0])]
        if (site.name, job.account) in self._neighbours:
            return
        self._neighbours.add((site.name, job.account))
        number = len(self._neighbours)
        tag = Tag(f"{deployment_tag('other')}{'z' * 22}{number:04d}0001")
        partition = site.batch.partitions()[0].name
        request = JobRequest(tag, job.account, partition, walltime_ms=60_000, begin_at=NEVER)
        site.submit(tag, job.account, request, Secret(""), self.now(), foreign=True)

    def _job_moved(self, job: SiteJob) -> None:
        system = self.pushing.get(SystemName(job.id.rpartition(".")[0]))
        if system is None:
            return
        kinds = [kind.lie for kind in self.faults.happens("push", "push")]
        if "lost" not in kinds:
            system.push(job.id)
        for kind in kinds:
            if kind == "twice":
                system.push(job.id)
            if kind == "forged":
                system.push(type(job.id)("nobody.0"))

    # Processes --------------------------------------------------------------------------------------------------------

    @property
    def process(self) -> Process | None:
        """The process that works now, if one does."""
        for process in self.processes:
            if process.life.alive:
                return process
        return None

    async def start_process(self, rate: float = 1.0) -> Process:
        """Start the process under test; it takes up what the store holds."""
        while True:
            process = self._new_process(rate)
            self.processes.append(process)
            if self.invariants is not None:
                self.invariants.more_processes()
            try:
                await process.runner.__aenter__()
            except StoreError:
                await self._bury(process)
                await self.sleep(1_000)
                continue
            self.note(f"process {process.life.number} started")
            self.disturb()
            self._started.set()
            return process

    def _new_process(self, rate: float) -> Process:
        life = Life(len(self.processes) + 1)
        clock = SimClock(self.loop, rate)
        # Latencies are one stream for all processes: a second one must not repeat the first one's luck.
        road = Road(
            self.loop, life, self.faults, self._road_source, self.boundary, lambda: self.kill(life), calls=self.calls
        )
        road.store_takes_time = self.plan.store_takes_time
        road.trace = self.note
        credentials, vault = SimCredentials(self.safe, road), SimVault(self.safe, road)

        async def gates(tag: Tag, spec: SessionSpec) -> Secret:
            return self.safe.gates[spec.id, int(tag[-4:])]

        entries = {}
        for plan in self.plan.systems:
            make: MakeSystem = plan.make or (PushingSystem if plan.pushes else SimSystem)
            system = make(self.sites[plan.name], self._way(road, plan), clock, gates, self.happenings)
            if isinstance(system, PushingSystem):
                self.pushing[plan.name] = system
            entries[plan.name] = SystemEntry(system, plan.timeouts, calls=plan.calls)
        ports = Ports(
            store=SimStore(self.shelf, road),
            wakeups=SimWakeups(self.loop, clock, life),
            clock=clock,
            choices=self.choices,
            hub=SimHub(self.hub, road),
            tunnels=SimTunnels(self.relay, road),
            credentials=credentials,
            vault=vault,
            systems=entries,
        )
        return Process(life, Runner(ports, self.plan.limits, self.plan.deployment), road, clock, self.loop.now_ms)

    def _way(self, road: Road, plan: SystemPlan) -> Road:
        if plan.latency_ms == road.latency_ms:
            return road
        return Road(
            road.loop,
            road.life,
            road.faults,
            road.source,
            road.boundary,
            road.kill,
            plan.latency_ms,
            calls=road.calls,
            trace=road.trace,
        )

    def kill(self, life: Life) -> None:
        """End a process as `kill -9` does; another one is started in a while."""
        if not life.alive:
            return
        life.alive = False
        self.crashes += 1
        self.disturb()
        if self.invariants is not None:
            self.invariants.crashes_since += 1
        self.note(f"process {life.number} killed")
        process = next(process for process in self.processes if process.life is life)
        process.runner.closing = True  # what still runs of it decides nothing any more
        if self.process is None:
            self._started.clear()
        self.spawn(self._replace(process))

    async def _replace(self, process: Process) -> None:
        await self._bury(process)
        if self.process is None:
            pause = self._life_source.integer(*RESTART_MS, "restart after")
            await self.sleep(min(pause, 200) if self.settling else pause)
            if self.process is None:
                await self.start_process()

    async def _bury(self, process: Process) -> None:
        process.life.alive = False
        if process.life.resumed is not None and not process.life.resumed.done():
            process.life.resumed.set_result(None)
        await process.runner.close()

    async def alive(self) -> Runner:
        """The runner of a living process; waits for one."""
        while self.process is None or not self._started.is_set():
            self._started.clear()
            await self._started.wait()
        return self.process.runner

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """A task of the world, not of a process."""
        task = self.loop.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and task.exception() is not None:
            self.loop.call_exception_handler({"message": "a task of the world died", "exception": task.exception()})

    async def sleep(self, milliseconds: int) -> None:
        await asyncio.sleep(milliseconds / 1000)

    # What happens to everything ---------------------------------------------------------------------------------------

    async def weather(self) -> None:
        """What happens to processes and networks as a whole."""
        source = self.source.stream("weather")
        while not self.faults.healed:
            await self.sleep(TICK_MS)
            for port, verb in (("process", "tick"), ("net", "login node"), ("net", "relay"), ("user", "cull")):
                for kind in self.faults.happens(port, verb):
                    self.note(f"fault {kind.name}")
                    await self._happens(kind, source)

    async def _happens(self, kind: Kind, source: Source) -> None:
        match kind.lie:
            case "kill":
                points = list(crash_points())
                self.boundary.arm(points[source.integer(0, len(points) - 1, "where it dies")])
                self.later(self.now() + 2 * TICK_MS, self._kill_anyway)
            case "stall":
                self._skip(source.integer(60_000, 3_600_000, "suspended for"))
            case "blocked":
                self._skip(10_000)
            case "paused":
                self.spawn(self._pause(source.integer(1_000, 300_000, "paused for")))
            case "twin":
                self.spawn(self._twin(source.integer(10_000, 300_000, "two for")))
            case "login node":
                site = list(self.sites.values())[source.integer(0, len(self.sites) - 1, "which system")]
                self.reboot_login_node(site, source.integer(20_000, 300_000, "down for"))
            case "relay":
                self.relay.restart()
            case "cull":
                await self.cull(source)

    def _kill_anyway(self) -> None:
        """Nothing came to the boundary at which it was to die."""
        process = self.process
        if self.boundary.armed is not None and process is not None:
            self.boundary.armed = None
            self.kill(process.life)

    def _skip(self, milliseconds: int) -> None:
        self.loop.skip(milliseconds)
        self.disturb()

    def disturb(self) -> None:
        """Decisions come late for a while, and nobody is to blame."""
        if self.invariants is not None:
            self.invariants.disturbed_at = self.loop.now_ms

    def reboot_login_node(self, site: Site, milliseconds: int) -> None:
        """The way in is down: streams are cut, calls are refused."""
        until = self.loop.now_ms + EPOCH_MS + milliseconds
        site.down_until = max(site.down_until, until)
        self.cut_off(site, until)
        for path in self.relay.paths.values():
            if path.system == site.name:
                path.cut = True

    def cut_off(self, site: Site, until: int) -> None:
        """Nothing gets to the system: calls and new paths are refused."""
        self.faults.window("F-U1.submit", site.name, until)
        self.faults.window("F-T1.open", site.name, until)

    async def only_one_process(self) -> None:
        """Whoever runs twice is ended; one goes on, or a new one with a right clock begins."""
        for process in self.processes:
            if process.life.alive:
                await self._bury(process)
        self._started.clear()
        await self.start_process()

    async def _pause(self, milliseconds: int) -> None:
        process = self.process
        if process is None or process.life.resumed is not None:
            return
        process.life.resumed = self.loop.create_future()
        await self.sleep(milliseconds)
        self.disturb()
        resumed, process.life.resumed = process.life.resumed, None
        if resumed is not None and not resumed.done():
            resumed.set_result(None)

    async def _twin(self, milliseconds: int) -> None:
        """A second process on the same store, by mistake, for a while."""
        if len([process for process in self.processes if process.life.alive]) > 1:
            return
        twin = await self.start_process()
        await self.sleep(milliseconds)
        if twin.life.alive:
            self.note(f"process {twin.life.number} ends")
            await self._bury(twin)
            if self.process is None:
                self._started.clear()
                await self.start_process()

    async def cull(self, source: Source) -> None:
        """The idle culler stops half of everybody at once."""
        for id_ in list(self.shelf.open):
            if chance(source, 0.5, "culled"):
                self.spawn(self.stop(id_, "culler"))

    # What users do ----------------------------------------------------------------------------------------------------

    async def start(self, request: StartRequest) -> SessionId:
        """A start on behalf of a user, again until some process has taken it."""
        while True:
            runner = await self.alive()
            self.choices.who = f"{request.key.hub}/{request.key.owner}/{request.key.name}"
            last = self.shelf.keys.get(request.key)
            ending = last is not None and isinstance(self.shelf.sessions[last].session.state, Stopping | Ended)
            try:
                session = await runner.start(request)
                if session == last and ending:
                    self.report("a_start_is_never_lost", "a start got a session that was ending already", session)
                return session
            except (StoreError, asyncio.CancelledError):
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # it is we who are given up, not the process
                await self.sleep(1_000)

    async def until(self, session: SessionId, states: tuple[type[State], ...], patience_ms: int) -> type[State] | None:
        """Which of the states the session reaches first; `None` if it takes too long."""
        stored = self.shelf.sessions[session]
        if isinstance(stored.session.state, states):
            return type(stored.session.state)
        reached: asyncio.Future[type[State]] = self.loop.create_future()
        self._waiting.setdefault(session, []).append((states, reached))
        timer = self.loop.call_at_ms(self.loop.now_ms + patience_ms, reached.cancel)
        try:
            return await reached
        except asyncio.CancelledError:
            if not reached.cancelled():
                raise
            return None
        finally:
            timer.cancel()
            self._waiting.get(session, [])[:] = [
                each for each in self._waiting.get(session, []) if each[1] is not reached
            ]

    def report(self, invariant: str, sentence: str, session: SessionId | None) -> None:
        """Somebody outside has seen that an invariant is broken."""
        if self.invariants is not None:
            self.invariants.broken(invariant, sentence, session)

    async def stop(self, session: SessionId, by: str = "user") -> None:
        """A stop on behalf of somebody, again until it is durable."""
        while True:
            stored = self.shelf.sessions.get(session)
            if stored is None or isinstance(stored.session.state, Ended):
                return
            runner = await self.alive()
            asking = asyncio.ensure_future(runner.stop(session, by))
            dead = asyncio.ensure_future(self._dead(runner))
            await asyncio.wait([asking, dead], return_when=asyncio.FIRST_COMPLETED)
            dead.cancel()
            if asking.done() and asking.exception() is None:
                return
            asking.cancel()
            await self.sleep(1_000)

    async def _dead(self, runner: Runner) -> None:
        while not runner.closing:
            await self.sleep(2_000)

    # A whole life -----------------------------------------------------------------------------------------------------

    def run(self, doings: Sequence[Coroutine[Any, Any, Any]], duration_ms: int, settle: bool = True) -> Broken | None:
        """
        Live through the whole life of this world, once; what did not hold, or `None`.

        Nothing of the outside gets in meanwhile (`guard.py`), and nothing of the world runs afterwards.

        Args:
            doings: What people do; they go on until they are done or the world is healed and at rest.
            duration_ms: When it is healed: until then things go wrong, afterwards they have to come right.
            settle: `False` ends it there, without the question whether everything comes to rest.
        """
        with guarded(), _seldom_collected(), self._listening(), virtual_loop(self.loop):
            try:
                self.loop.run_until_complete(self._live(doings, duration_ms, settle))
            except Stalled:
                if self.broken is None:
                    raise
            except Runaway as error:
                self.report("total", f"it runs in a circle: {error}", None)
            finally:
                # Of a broken world much is still under way, and none of it is of interest.
                for process in self.processes:
                    process.life.alive, process.runner.closing = False, True
        return self.broken

    async def _live(self, doings: Sequence[Coroutine[Any, Any, Any]], duration_ms: int, settle: bool) -> None:
        await self.start_process()
        self.spawn(self.weather())
        self.spawn(self._look())
        tasks = [self.spawn(doing) for doing in doings]
        await self.sleep(max(0, duration_ms - self.loop.now_ms))
        self.heal()
        if settle:
            await self.settle()
            for task in tasks:
                task.cancel()
            await self.stop_everything()
        await self.end()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """
        Hear what the runner calls critical, which is a bug, and let nothing of it out.

        What it warns of is the simulated trouble itself: thousands of lines that nobody has to read.
        """
        logger = logging.getLogger("moorage")
        propagate, level, ear = logger.propagate, logger.level, self.invariants.ear if self.invariants else None
        logger.propagate = False
        logger.setLevel(logging.CRITICAL)
        if ear is not None:
            logger.addHandler(ear)
        try:
            yield
        finally:
            if ear is not None:
                logger.removeHandler(ear)
            logger.propagate = propagate
            logger.setLevel(level)

    async def _look(self) -> None:
        """Now and then, look at everything."""
        while True:
            await self.sleep(LOOK_MS)
            if self.invariants is not None:
                self.invariants.look()

    async def settle(self, limit_ms: int = 3 * 3_600_000) -> None:
        """Wait until nothing is on its way any more, or say in one sentence what still is."""
        await self._until_none("settle", pending, limit_ms)

    async def stop_everything(self, limit_ms: int = 3 * 3_600_000) -> None:
        """Everybody goes home; afterwards nothing of any session is left anywhere."""
        self.settling = True
        while waiting := [id_ for id_ in self.shelf.open if _is_wanted(self.shelf.sessions[id_].session)]:
            await asyncio.gather(*(self.stop(id_, "the end") for id_ in waiting))
        await self._until_none("cleanup_complete", remains, limit_ms)

    async def _until_none(self, invariant: str, what: Callable[["World"], Iterator[str]], limit_ms: int) -> None:
        until = self.loop.now_ms + limit_ms
        while (sentence := next(what(self), None)) is not None:
            if self.loop.now_ms > until:
                self.report(invariant, f"{(limit_ms + 500) // 1000} s after healing {sentence}", None)
                return
            await self.sleep(2_000)

    async def end(self) -> None:
        """Processes end as they should."""
        self.settling = True
        for process in self.processes:
            if process.life.alive:
                await self._bury(process)
        if self.invariants is not None:
            self.invariants.look()

    # The end ----------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.note("healed")
        self.faults.heal()
        self.boundary.armed = None
        now = self.now()
        for site in self.sites.values():
            site.slow_ms, site.calls_per_s = 0, None
            site.advance(now)
            site.heal(now)
        self.relay.heal()
        for process in self.processes:
            resumed = process.life.resumed
            if resumed is not None and not resumed.done():
                resumed.set_result(None)
        if self.invariants is not None:
            self.invariants.healed_at = self.loop.now_ms

    def session_counts(self) -> Mapping[str, int]:
        """How many sessions are in which state."""
        counts: Counter[str] = Counter()
        for stored in self.shelf.sessions.values():
            counts[type(stored.session.state).__name__] += 1
        return counts

    def ready(self) -> int:
        return sum(isinstance(stored.session.state, Ready) for stored in self.shelf.sessions.values())


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A world makes many objects and few circles of them; looking for those so often is an eighth of its time."""
    usual = gc.get_threshold()
    gc.set_threshold(50 * usual[0], *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _is_wanted(session: Session) -> bool:
    return session.desired is Desired.UP and not isinstance(session.state, Stopping | Ended)


def a_request(owner: str, system: str, name: str = "", walltime_s: int = 7200, hub: str = "hub") -> StartRequest:
    """A start as the Hub asks for it."""
    return StartRequest(SessionKey(hub, Owner(owner), name), SystemName(system), walltime_s=walltime_s)


__all__ = ["SystemPlan", "World", "WorldPlan", "a_request", "between"]
