"""
The composition root: from a configuration to a runner that works.

Nothing else knows which adapter stands behind which port. A system that cannot be set up is told and closed, and the
others go on; a configuration that is wrong changes nothing.
"""

import asyncio
import inspect
import json
import logging
import os
import pwd
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, evolve, field, frozen

from moorage.adapters.local import tokens
from moorage.adapters.local.clock import LocalClock, SystemChoices
from moorage.adapters.local.safety import private_directory
from moorage.adapters.local.vault import LocalVault, TokenSource
from moorage.adapters.local.wakeups import LocalWakeups
from moorage.config import Config, ConfigError, Kinds, SecretRef, SystemConfig, catalog_of, load, unsupported
from moorage.core import launch
from moorage.core.catalog import Catalog, Choices, SessionOptions, User, Window, choices
from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.machine import Decision
from moorage.core.model import (
    Instant,
    JobId,
    Observation,
    Owner,
    Session,
    SessionKey,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    parse_tag,
)
from moorage.core.plan import GatePort, LaunchPlan, LaunchSecrets, PlanError, Rendered, render
from moorage.core.secret import Secret
from moorage.performing import Kind, SystemEntry
from moorage.plugins import PluginFailed, Plugins, load_plugins, told
from moorage.ports.clock import Clock
from moorage.ports.credentials import Token, Vault
from moorage.ports.dialer import Dialer
from moorage.ports.errors import PortError, Refused, StoreError, StoreFailed, Unauthorised, Unreachable
from moorage.ports.hub import Hub
from moorage.ports.sessions import StartRequest
from moorage.ports.system import Handle, Load, Measured, System
from moorage.ports.tunnels import Tunnels
from moorage.runner import Ports, Runner, Watcher

if TYPE_CHECKING:
    from moorage.adapters.hub.service import Service
    from moorage.adapters.local.store import SqlStore
    from moorage.relay.client import RelayTunnels
    from moorage.relay.server import Settings

log = logging.getLogger(__name__)

STORE_FILE = "sqlite:///moorage.sqlite"
MOST_GENERATIONS = 32
"""Configurations kept for sessions that started with them; older sessions that still wait get the oldest one."""


# Configuration ---------------------------------------------------------------------------------------------------


def kinds_of(plugins: Plugins) -> Kinds:
    """The classes of options that the plugins bring."""
    return Kinds(
        {name: kind.config_class for name, kind in plugins.systems.items()},
        {name: kind.config_class for name, kind in plugins.tunnels.items()},
    )


def read_config(path: Path) -> tuple[Config, Plugins]:
    """
    A configuration with the plugins that it allows.

    Raises:
        ConfigError: With every mistake.
    """
    loaded: list[Plugins] = []

    def kinds_for(allowed: tuple[str, ...]) -> Kinds:
        loaded.append(load_plugins(allowed, vet=unsupported))
        return kinds_of(loaded[0])

    config = load(path, kinds_for)
    return config, loaded[0]


def state_directory(path: Path, config: Config) -> Path:
    """
    The private folder of a deployment; made if it is not there.

    Raises:
        StoreFailed: It is not ours alone, or cannot be made.
    """
    beside = path if path.is_dir() else path.parent
    try:
        return private_directory(beside / Path(config.directory).expanduser())
    except OSError as error:
        raise StoreFailed(f"the folder {config.directory!r} cannot be used: {error}") from error


def store_address(config: Config, directory: Path) -> str:
    """Address of the database; a file with a relative name is in the folder of the deployment."""
    kind, _, file = config.store.url.partition(":///")
    if kind.startswith("sqlite") and not file.startswith("/"):
        return f"{kind}:///{directory / file}"
    return config.store.url


def read_secret(reference: SecretRef) -> Secret:
    """
    What the reference leads to.

    Raises:
        Unreachable: It is not there or cannot be read.
    """
    try:
        text = os.environ[reference.env] if reference.env else Path(reference.file or "").read_text("utf-8")
    except (KeyError, OSError, UnicodeDecodeError) as error:
        place = f"the variable {reference.env}" if reference.env else f"the file {reference.file}"
        raise Unreachable(f"{place} cannot be read ({type(error).__name__})") from error
    return Secret(text.strip())


def limits_of(config: Config) -> Limits:
    """The limits, with those that systems name themselves."""
    own = {str(name): each.limits.sessions for name, each in config.systems.items() if each.limits.sessions is not None}
    return evolve(config.limits, of_system={**own, **config.limits.of_system})


# Launch plans ----------------------------------------------------------------------------------------------------


@frozen
class _Generation:
    """What launch plans are made of, from one reading of the configuration on."""

    since: Instant
    catalog: Catalog
    gates: Mapping[SystemName, GatePort]


@define(eq=False)
class ConfiguredPlans:
    """Implements the port `Plans`: each session is launched by the configuration that it started with."""

    vault: Vault
    plugins: Plugins
    callback: str = ""
    generations: list[_Generation] = field(factory=list)

    def add(self, since: Instant, config: Config, catalog: Catalog) -> None:
        """Sessions asked for from now on are launched by this configuration."""
        gates = {name: system.gate.as_port() for name, system in config.systems.items()}
        self.generations.append(_Generation(since, catalog, gates))
        del self.generations[:-MOST_GENERATIONS]

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        """See `Plans.rendered`."""
        parsed = parse_tag(tag)
        assert parsed is not None, "the tag is the machine's"
        plan = self.plan(tag, parsed[1], spec)
        try:
            gate = await self.vault.gate(spec.id, parsed[1])
        except KeyError as error:
            raise Refused(f"session {spec.id}: the secrets of attempt {parsed[1]} were revoked") from error
        environment = await self.vault.environment(spec.id)
        # A secret variable wins over one of the configuration: the Hub knows better which server this is.
        plain = tuple(pair for pair in plan.environment if pair[0] not in environment)
        try:
            if plain != plan.environment:  # a plan checks itself each time that it is made
                plan = evolve(plan, environment=plain)
            return render(plan, LaunchSecrets(gate, tuple(environment.items())))
        except PlanError as error:
            raise Refused(f"session {spec.id}: {_one_line(error)}") from error

    def plan(self, tag: Tag, attempt: int, spec: SessionSpec) -> LaunchPlan:
        """The plan, after every plugin had its say. Raises `Refused`."""
        generation = self._generation(spec.asked_at)
        service = generation.catalog.services.get(spec.service)
        if service is None:
            raise Refused(f"session {spec.id}: there is no service {spec.service!r}")
        gate = generation.gates.get(spec.system, GatePort())
        try:
            plan = launch.plan_of(tag, attempt, spec, service, gate, self.callback)
            return self.plugins.change_plan(plan, spec)
        except PlanError as error:
            raise Refused(f"session {spec.id}: {_one_line(error)}") from error
        except PluginFailed as error:
            raise Refused(f"session {spec.id}: {error}") from error

    def _generation(self, asked_at: Instant) -> _Generation:
        older = [each for each in self.generations if each.since <= asked_at]
        return older[-1] if older else self.generations[0]


def _one_line(error: PlanError) -> str:
    return "; ".join(str(problem) for problem in error.problems[:5])


# Systems and ways to them ----------------------------------------------------------------------------------------


@frozen
class Absent:
    """
    Stands for a system that could not be set up, or that is not configured any more.

    Nothing is known about its jobs, which is doubt and no end: sessions go on, and end when the system is back.
    """

    name: SystemName
    reason: str

    def account(self, owner: Owner) -> str:
        return str(owner)

    def _away(self) -> Unreachable:
        return Unreachable(f"{self.name}: {self.reason}")

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        raise self._away()

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        raise self._away()

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        raise self._away()

    async def cancel(self, job: Handle) -> Observation:
        raise self._away()

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        raise self._away()

    async def remove(self, job: Handle) -> None:
        raise self._away()


@frozen
class Context:
    """What factories of plugins are called with, besides name and options."""

    clock: Clock
    choices: SystemChoices
    credentials: LocalVault
    plans: ConfiguredPlans
    directory: Path
    deployment: str
    simulation: bool

    def of(self, name: SystemName, config: Config) -> dict[str, Any]:
        """By keyword, for one system; makes its private folder."""
        return {
            "clock": self.clock,
            "choices": self.choices,
            "credentials": self.credentials,
            "plans": self.plans,
            "timeouts": config.timeouts_for(name),
            "directory": private_directory(self.directory / "systems" / name),
            "deployment": self.deployment,
            "simulation": self.simulation,
        }


def make_system(name: SystemName, config: Config, plugins: Plugins, context: Context) -> System:
    """The adapter of one system. Raises whatever the plugin raises."""
    system = config.systems[name]
    made: Any = plugins.systems[system.kind].factory(name, system.options, **context.of(name, config))
    for verb in ("account", "submit", "find", "observe", "cancel", "read", "remove"):
        if not callable(getattr(made, verb, None)):
            raise TypeError(f"the factory of kind {system.kind!r} made a {type(made).__name__} without {verb}()")
    return made  # type: ignore[no-any-return]  # checked by hand just now


def make_dialer(name: SystemName, config: Config, plugins: Plugins, context: Context) -> Dialer:
    """
    The way to the jobs of one system: as its `tunnel` says, else the tunnel kind with the name of its own kind.

    Raises whatever the plugin raises, and `Refused` if there is none.
    """
    system = config.systems[name]
    kind, options = (system.tunnel.kind, system.tunnel.options) if system.tunnel else (system.kind, system.options)
    if kind not in plugins.tunnels:
        raise Refused(f"systems.{name}: a system of kind {system.kind!r} needs a tunnel")
    if not isinstance(options, plugins.tunnels[kind].config_class):
        raise Refused(f"systems.{name}: the tunnel kind {kind!r} needs options of its own")
    made: Any = plugins.tunnels[kind].factory(name, options, **context.of(name, config))
    for verb in ("dial", "close"):
        if not callable(getattr(made, verb, None)):
            raise TypeError(f"the factory of tunnel kind {kind!r} made a {type(made).__name__} without {verb}()")
    return made  # type: ignore[no-any-return]  # checked by hand just now


def make_dialers(config: Config, plugins: Plugins, context: Context) -> dict[SystemName, Dialer]:
    """All ways; a system whose way cannot be made is left out and told."""
    made: dict[SystemName, Dialer] = {}
    for name in config.systems:
        try:
            made[name] = make_dialer(name, config, plugins, context)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; it concerns this system only
            log.error("no way to system %s: %s", name, _for_people(error))
    return made


def _for_people(error: BaseException) -> str:
    """Our own errors are sentences; of others the class belongs to what they say."""
    return str(error) if isinstance(error, Refused | Unreachable | Unauthorised) else told(error)


# Closed systems --------------------------------------------------------------------------------------------------


@define(eq=False)
class Doors:
    """
    Which systems take no new sessions, and why: drained or under maintenance by an administrator's word, or absent.

    The administrator's words survive a restart.
    """

    file: Path
    drained: set[SystemName] = field(factory=set)
    maintained: set[SystemName] = field(factory=set)
    absent: dict[SystemName, str] = field(factory=dict)

    @classmethod
    def load(cls, directory: Path) -> "Doors":
        doors = cls(directory / "doors.json")
        with suppress(FileNotFoundError, ValueError, AttributeError, TypeError):
            said = json.loads(doors.file.read_text("utf-8"))
            doors.drained = {SystemName(str(name)) for name in said.get("drained", ())}
            doors.maintained = {SystemName(str(name)) for name in said.get("maintenance", ())}
        return doors

    def set(self, names: "set[SystemName]", system: SystemName, on: bool) -> None:
        """Change one of the two sets and write both down."""
        (names.add if on else names.discard)(system)
        new = self.file.with_suffix(".new")
        new.write_text(
            json.dumps({"drained": sorted(self.drained), "maintenance": sorted(self.maintained)}) + "\n", "utf-8"
        )
        new.replace(self.file)

    def why(self, system: SystemName) -> str | None:
        """Why the door is closed; `None` if it is open."""
        if system in self.absent:
            return self.absent[system]
        if system in self.maintained:
            return "maintenance"
        return "it takes no new sessions at the moment" if system in self.drained else None

    def closed(self) -> dict[SystemName, str]:
        """All closed doors, for the choice tree."""
        names = [*self.absent, *self.maintained, *self.drained]
        return {name: self.why(name) or "" for name in names}


# The whole -------------------------------------------------------------------------------------------------------


@define(eq=False)
class Deployment:
    """
    Everything that works, and the means to change it. Made by `compose`; implements the Hub adapter's `Operations`.

    Args:
        config: As last read.
        made_from: What the adapters, the store and the plugins were made from when the process started.
        entries: The systems as the runner has them; replaced one by one when the configuration changes.
    """

    path: Path
    directory: Path
    config: Config
    made_from: Config
    catalog: Catalog
    plugins: Plugins
    ports: Ports
    runner: Runner
    store: "SqlStore"
    vault: LocalVault
    plans: ConfiguredPlans
    doors: Doors
    entries: dict[SystemName, SystemEntry]

    # What the Hub and the command line ask

    def choices(self, user: User) -> Choices:
        """What a person may start now."""
        return choices(self.catalog, user, self.ports.clock.now(), self.doors.closed())

    def request(self, key: SessionKey, user: User, options: SessionOptions, args: Sequence[str] = ()) -> StartRequest:
        """The start that a valid choice means."""
        return StartRequest(
            key=key,
            system=options.system,
            groups=tuple(sorted(user.groups)),
            service=options.service,
            partition=options.partition,
            walltime_s=options.walltime_s,
            nodes=options.nodes,
            options=launch.pairs_of(options, args),
        )

    # What administrators do

    def systems(self) -> Sequence[Mapping[str, Any]]:
        """See `Operations.systems`."""
        return [self._row(name) for name in self.entries]

    def _row(self, name: SystemName) -> Mapping[str, Any]:
        now = self.ports.clock.now()
        lanes = {kind: lane for (system, kind), lane in self.runner.performing.lanes.items() if system == name}
        submit = lanes.get(Kind.SUBMIT)
        counted = {str(outcome): count for lane in lanes.values() for outcome, count in lane.counted.items()}
        system = self.config.systems.get(name)
        observer = self.runner.observing.observers.get(name)
        answered_at = observer.answered_at if observer is not None else None
        return {
            "name": str(name),
            "kind": system.kind if system else "",
            "breaker": "open" if submit is not None and submit.blocked(now) else "closed",
            "calls": sum(lane.running for lane in lanes.values()),
            "waiting": sum(lane.waiting for lane in lanes.values()),
            "outcomes": counted,
            "observed_s": None if answered_at is None else max(0, now - answered_at) / 1000,
            "failed": observer.failed if observer is not None else "",
            "drained": name in self.doors.drained,
            "maintenance": name in self.doors.maintained,
            "closed": self.entries[name].closed(now) or "",
        }

    async def tunnels(self) -> Sequence[Mapping[str, Any]]:
        """See `Operations.tunnels`."""
        reports = await self.ports.tunnels.list()
        return [
            {"session": str(session), "good_age_s": each.good_age_s, "lost": each.lost, "note": each.note}
            for session, each in reports.items()
        ]

    async def load(self, system: SystemName, owner: Owner) -> Mapping[str, Load] | None:
        """See `Operations.load`."""
        entry = self.entries.get(system)
        if entry is None or not isinstance(entry.system, Measured):
            return None
        # Outside the lanes: what fails here says nothing about jobs, and must open no breaker.
        return await self.runner.performing.call(entry.timeouts.call_s, partial(entry.system.load, owner))

    async def drain(self, system: SystemName, on: bool) -> None:
        """See `Operations.drain`."""
        await asyncio.to_thread(self.doors.set, self.doors.drained, system, on)

    async def maintenance(self, system: SystemName, on: bool) -> None:
        """See `Operations.maintenance`."""
        await asyncio.to_thread(self.doors.set, self.doors.maintained, system, on)

    async def notified(self, system: SystemName, token: str, body: bytes) -> bool:
        """See `Operations.notified`."""
        take = getattr(self.entries[system].system, "notified", None)
        if take is None:
            raise KeyError(system)
        return bool(await take(token, body))

    async def reload(self) -> str:
        """
        Read the configuration again.

        A wrong one changes nothing (I42). A right one is for sessions that are asked for from now on: choices,
        services, limits, timeouts, destinations and maintenance. Systems that were added or reached otherwise than
        before need a restart, because sessions live on the adapters that are there; they are named in the answer.

        Returns:
            What is wrong, or what needs a restart; "" if all is done.
        """
        try:
            config, _ = await asyncio.to_thread(read_config, self.path)
        except ConfigError as error:
            log.error("the configuration was not reloaded: %s", error)
            return str(error)
        if config.deployment != self.made_from.deployment:
            return "deployment: it names every job and cannot change"
        fixed = ("directory", "store", "plugins")
        later = [key for key in fixed if getattr(config, key) != getattr(self.made_from, key)]
        later += [f"systems.{name}" for name in config.systems if not self._same_adapter(name, config)]
        self._use(config)
        log.info("the configuration was reloaded; its digest is %s", config.digest)
        return f"after a restart: {', '.join(later)}" if later else ""

    def _same_adapter(self, name: SystemName, config: Config) -> bool:
        old, new = self.made_from.systems.get(name), config.systems[name]
        return old is not None and (old.kind, old.options, old.tunnel) == (new.kind, new.options, new.tunnel)

    def _use(self, config: Config) -> None:
        known = {name: system for name, system in config.systems.items() if name in self.entries}
        catalog = catalog_of(config)
        for name, entry in self.entries.items():
            if name not in known:
                self.doors.absent[name] = "it is not configured any more"
                continue
            if not isinstance(entry.system, Absent):
                self.doors.absent.pop(name, None)
            self.entries[name] = _entry(entry.system, name, config, catalog, self.doors)
        # What was added has no adapter yet, so it is not offered.
        self.config, self.catalog = config, evolve(catalog, systems={name: catalog.systems[name] for name in known})
        self.plans.add(self.ports.clock.now(), config, catalog)
        self.runner.limits = limits_of(config)


def _entry(system: System, name: SystemName, config: Config, catalog: Catalog, doors: Doors) -> SystemEntry:
    chosen, windows = config.systems[name], catalog.systems[name].maintenance
    return SystemEntry(
        system=system,
        timeouts=config.timeouts_for(name),
        destinations=chosen.destinations,
        calls=chosen.limits.starts_in_flight,
        queue=chosen.limits.queue,
        closed=lambda now: doors.why(name) or _maintenance(windows, now),
    )


def _maintenance(windows: tuple[Window, ...], now: Instant) -> str | None:
    running = next((window for window in windows if window.holds(now)), None)
    return None if running is None else f"maintenance: {running.notice}".removesuffix(": ")


OwnerTokens = Callable[[Owner, SystemName], Awaitable[Token]]
"""Where the token of a person at a system comes from, if the configuration names none."""


@frozen
class Apart:
    """
    A deployment for one run, beside the one that the configuration describes.

    Both may work at the same time: sessions, tags and files are apart, so neither takes the other's jobs for strays.
    Its relay is in this process and ends with it.
    """

    deployment: str
    directory: Path


@asynccontextmanager
async def compose(
    path: Path,
    hub: Hub,
    *,
    simulation: bool = False,
    owner_tokens: OwnerTokens | None = None,
    tunnels: Tunnels | None = None,
    apart: Apart | None = None,
    watchers: Iterable[Watcher] = (),
) -> AsyncIterator[Deployment]:
    """
    A deployment that works inside the context; sessions stay as they are when it is left.

    Args:
        simulation: Sites may show certificates that nobody signed. For demonstrations and tests only.
        tunnels: Instead of the relay.

    Raises:
        ConfigError: The configuration is wrong.
        StoreFailed: The store, or the folder of the deployment, cannot be used.
    """
    async with AsyncExitStack() as stack:
        world = await _world(path, simulation, owner_tokens, apart, stack)
        config, plugins, context = world.config, world.plugins, world.context
        await asyncio.to_thread(_load_modules, config)
        store = await _store(config, context, apart)
        stack.push_async_callback(store.close)
        clock = LocalClock(await store.newest())
        context = evolve(context, clock=clock)
        doors = await asyncio.to_thread(Doors.load, context.directory)
        entries = await _entries(world, doors)
        for name, entry in entries.items():
            stack.push_async_callback(_close, name, entry.system)
        for stored in await store.unfinished():
            _stand_in(stored.session.spec.system, entries, doors)
        if tunnels is None:
            tunnels = await stack.enter_async_context(_relay(path, config, plugins, context, apart))
        ports = Ports(
            store=store,
            wakeups=LocalWakeups(clock),
            clock=clock,
            choices=context.choices,
            hub=hub,
            tunnels=tunnels,
            credentials=context.credentials,
            vault=context.credentials,
            systems=entries,
        )
        runner = Runner(ports, limits_of(config), context.deployment, [*_observers(plugins), *watchers])
        await stack.enter_async_context(runner)
        deployment = Deployment(
            path=path,
            directory=context.directory,
            config=config,
            made_from=config,
            catalog=world.catalog,
            plugins=plugins,
            ports=ports,
            runner=runner,
            store=store,
            vault=context.credentials,
            plans=context.plans,
            doors=doors,
            entries=entries,
        )
        stack.push_async_callback(_cancelled, asyncio.create_task(_prune(deployment)))
        yield deployment


PRUNE_S = 6 * 3600


async def _prune(deployment: Deployment) -> None:
    """Forget what has been over for longer than the configuration of the moment says; for ever, now and then."""
    while True:
        days = deployment.config.store.keep_days
        if days:
            try:
                gone = await pruned(deployment.store, Instant(deployment.ports.clock.now() - days * 86_400_000))
                if gone:
                    log.info("%s sessions that were over for %s days are forgotten", gone, days)
            except StoreError as error:
                log.warning("old sessions are not forgotten yet: %s", error)
        await asyncio.sleep(PRUNE_S)


async def pruned(store: "SqlStore", before: Instant) -> int:
    """Forget all of them, a few at a time; how many there were."""
    gone = last = await store.prune(before)
    while last:
        await asyncio.sleep(0.1)
        last = await store.prune(before)
        gone += last
    return gone


async def _cancelled(task: "asyncio.Task[None]") -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@frozen
class _World:
    """What the Hub's process and the relay's have in common."""

    config: Config
    catalog: Catalog
    plugins: Plugins
    context: Context


async def _world(
    path: Path, simulation: bool, owner_tokens: OwnerTokens | None, apart: Apart | None, stack: AsyncExitStack
) -> _World:
    config, plugins = await asyncio.to_thread(read_config, path)
    directory = apart.directory if apart else await asyncio.to_thread(state_directory, path, config)
    people = PeopleTokens(directory / "tokens", owner_tokens)
    vault = LocalVault(directory / "vault", token_sources(config, people))
    stack.callback(vault.close)
    plans, catalog = ConfiguredPlans(vault, plugins), catalog_of(config)
    plans.add(Instant(0), config, catalog)
    deployment = apart.deployment if apart else config.deployment
    context = Context(LocalClock(), SystemChoices(), vault, plans, directory, deployment, simulation)
    return _World(config, catalog, plugins, context)


_MODULES = {
    "unicore": "moorage.adapters.unicore.system",
    "slurm": "moorage.adapters.ssh.slurm",
    "ssh-host": "moorage.adapters.ssh.host",
}
"""What the factories of our own kinds load."""


def _load_modules(config: Config) -> None:
    """
    Load what `compose` is about to import: SQLAlchemy, HTTP clients, paramiko. It takes a second, and in a thread the
    Hub answers meanwhile. What cannot be loaded, whoever needs it will say.
    """
    kinds = {system.kind for system in config.systems.values()}
    adapters = [module for kind, module in _MODULES.items() if kind in kinds]
    for module in ("moorage.adapters.local.store", "moorage.relay.client", *adapters):
        with suppress(ImportError):
            import_module(module)


async def _store(config: Config, context: Context, apart: Apart | None) -> "SqlStore":
    # SQLAlchemy takes a second to load; the relay and most commands do without.
    from moorage.adapters.local.store import SqlStore

    if apart is not None:
        return await SqlStore.open(context.directory / "moorage.sqlite")
    password = None if config.store.password is None else read_secret(config.store.password)
    return await SqlStore.open(store_address(config, context.directory), password)


def _stand_in(name: SystemName, entries: dict[SystemName, SystemEntry], doors: Doors) -> None:
    """Have an entry for a system that sessions of the store are on, also if it is not configured any more."""
    if name not in entries:
        doors.absent[name] = "it is not configured any more"
        entries[name] = SystemEntry(Absent(name, doors.absent[name]), closed=lambda _now: doors.why(name))


def _observers(plugins: Plugins) -> list[Watcher]:
    return [_observing(plugins)] if plugins.in_use else []


def _observing(plugins: Plugins) -> Watcher:
    def watch(_before: Session | None, _event: Event | None, decision: Decision, _now: Instant) -> None:
        plugins.observe(decision)

    return watch


async def _entries(world: _World, doors: Doors) -> dict[SystemName, SystemEntry]:
    """Every configured system; one that cannot be set up is there, closed, and says so."""
    entries: dict[SystemName, SystemEntry] = {}
    config, plugins, context = world.config, world.plugins, world.context
    for name in config.systems:
        await asyncio.sleep(0)  # there may be many, and the Hub has others to answer
        system: System
        try:
            system = make_system(name, config, plugins, context)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - a plugin may raise anything; it concerns this system only
            log.error("system %s cannot be set up: %s", name, _for_people(error))
            doors.absent[name] = "it could not be set up"
            system = Absent(name, _for_people(error))
        entries[name] = _entry(system, name, config, world.catalog, doors)
    return entries


CLOSE_S = 10.0


async def _close(name: SystemName, system: System) -> None:
    """Give back what the adapter holds, if it knows how; one that fails or hangs does not keep the others open."""
    close = getattr(system, "close", None)
    if close is None:
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            outcome = close()
            if inspect.isawaitable(outcome):
                await outcome
    except asyncio.CancelledError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin may raise anything; it concerns this system only
        log.error("system %s was not closed: %s", name, told(error))


# Tokens ----------------------------------------------------------------------------------------------------------


@frozen
class PeopleTokens:
    """
    Tokens of people, as their logins gave them.

    The relay is a process of its own and needs them for ways that act for their owners (UNICORE's forwarding), so each
    token that passes through the Hub's process is left in a private file, which the relay reads.

    Args:
        origin: Where tokens come from; `None` in a process that only reads what another one left.
    """

    directory: Path
    origin: OwnerTokens | None = None

    async def token(self, owner: Owner, system: SystemName) -> Token:
        """See `Credentials.token`."""
        file = self.directory / sha256(f"{system}\0{owner}".encode("utf-8", "surrogatepass")).hexdigest()
        if self.origin is None:
            return await asyncio.to_thread(self._read, file, owner)
        token = await self.origin(owner, system)
        await asyncio.to_thread(self._leave, file, token)
        return token

    def _read(self, file: Path, owner: Owner) -> Token:
        try:
            said = json.loads(file.read_text("utf-8"))
            return Token(Secret(said["token"]), said["expires_at"])
        except FileNotFoundError as error:
            raise Unauthorised(f"there is no token of {owner}: a login is needed") from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unreachable(f"the token of {owner} cannot be read ({type(error).__name__})") from error

    def _leave(self, file: Path, token: Token) -> None:
        """Whole or not at all, readable for us only from the first byte on; what is there already is not written."""
        text = json.dumps({"token": token.secret.reveal(), "expires_at": token.expires_at})
        try:
            private_directory(self.directory)
            with suppress(FileNotFoundError):
                if file.read_text("utf-8") == text:
                    return
            new = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as opened:
                opened.write(text)
            new.replace(file)
        except OSError as error:
            # The Hub's own calls have their token; only the relay goes without.
            log.warning("a token could not be left for the relay: %s", error)


def token_sources(config: Config, people: PeopleTokens) -> dict[SystemName, TokenSource]:
    """Where tokens come from, by system: the configuration's for everybody, else the person's own."""
    return {
        name: _configured_token(system) if system.token is not None else _own_token(people, name)
        for name, system in config.systems.items()
    }


def _configured_token(system: SystemConfig) -> TokenSource:
    reference = system.token
    assert reference is not None, "asked for systems with a token only"
    if reference.file is not None:
        return tokens.from_file(Path(reference.file))

    async def source(_owner: Owner) -> Token:
        return Token(read_secret(reference))

    return source


def _own_token(people: PeopleTokens, name: SystemName) -> TokenSource:
    return lambda owner: people.token(owner, name)


# The relay -------------------------------------------------------------------------------------------------------


def relay_command(path: Path, simulation: bool = False) -> list[str]:
    """What starts the relay's process of a deployment."""
    command = [sys.executable, "-m", "moorage.cli", "relay", "--config", str(path.resolve())]
    return [*command, "--simulation"] if simulation else command


def relay_settings(config: Config) -> "Settings":
    """
    How the relay listens.

    Raises:
        Refused: A user that may connect is not known on this machine.
    """
    from moorage.relay.server import Settings

    first, _, last = config.relay.ports.partition("-")
    timeouts = {name: config.timeouts_for(name) for name in config.systems}
    return Settings((int(first), int(last)), frozenset(map(_uid, config.relay.users)), timeouts=timeouts)


def _uid(user: str) -> int:
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise Refused(f"relay.users: there is no user {user!r} on this machine") from error


async def run_relay(path: Path, *, simulation: bool = False) -> None:
    """
    Be the relay of a deployment until it is told to end.

    Raises:
        ConfigError, StoreFailed: As `compose` does.
        moorage.relay.process.AlreadyRunning: There is one.
    """
    from moorage.relay import process

    async with AsyncExitStack() as stack:
        world = await _world(path, simulation, None, None, stack)
        directory = world.context.directory
        dialers = make_dialers(world.config, world.plugins, world.context)
        settings = relay_settings(world.config)
        control = directory / "relay" / process.CONTROL_NAME
        for tries_left in reversed(range(100)):
            try:
                if not control.exists():
                    await asyncio.to_thread(_note_ways, directory, world.config)
                await process.main(directory, dialers, world.context.credentials, settings)
                return
            except process.AlreadyRunning:
                # One that is ending takes its socket away first and its lock last.
                if control.exists() or not tries_left:
                    raise
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _relay(
    path: Path, config: Config, plugins: Plugins, context: Context, apart: Apart | None
) -> AsyncIterator[Tunnels]:
    """The relay's process, started when it is needed and left alone at the end; or one inside, for a run apart."""
    from moorage.relay.client import InProcessRelay, RelayTunnels

    if apart is None:
        tunnels = RelayTunnels(context.directory, relay_command(path, context.simulation))
        try:
            await _have_new_ways(tunnels, context.directory, config)
            yield tunnels
        finally:
            await tunnels.aclose()
        return
    dialers = make_dialers(config, plugins, context)
    inside = InProcessRelay(context.directory / "relay", dialers, context.credentials, relay_settings(config))
    try:
        yield inside
    finally:
        await inside.aclose()
        for dialer in dialers.values():
            await dialer.close()


WAYS_NAME = "ways"


def _ways(config: Config) -> str:
    """Names how all systems are reached; a relay that was started with another one knows other ways."""
    ways = [(name, each.kind, repr(each.options), repr(each.tunnel)) for name, each in sorted(config.systems.items())]
    return sha256(repr((ways, config.relay)).encode("utf-8", "surrogatepass")).hexdigest()


def _note_ways(directory: Path, config: Config) -> None:
    private_directory(directory / "relay")
    (directory / "relay" / WAYS_NAME).write_text(_ways(config))


async def _have_new_ways(tunnels: "RelayTunnels", directory: Path, config: Config) -> None:
    """
    End a relay that was started with other ways to the systems; the next call starts a new one.

    Its streams are cut once, which labs and browsers survive; its paths come back at their addresses.
    """
    noted, control = directory / "relay" / WAYS_NAME, directory / "relay" / "control.sock"
    try:
        if noted.read_text() == _ways(config) or not control.exists():
            return
        log.warning("the relay knows other ways than the configuration; it is started anew")
        await tunnels.stop_relay()
        await tunnels.aclose()
    except (OSError, PortError) as error:
        log.info("no relay to start anew: %s", type(error).__name__)
        return
    for _ in range(100):
        if not control.exists():
            return
        await asyncio.sleep(0.05)


# The Hub's side --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def hub_service(path: Path, hub: Hub) -> "AsyncIterator[Service]":
    """What the Hub's adapter works with; named in its configuration as `moorage.bootstrap:hub_service`."""
    from moorage.adapters.hub.service import Service

    simulation = os.environ.get("MOORAGE_SIMULATION") == "1"
    owner_tokens: OwnerTokens | None = getattr(hub, "token", None)
    async with compose(path, hub, simulation=simulation, owner_tokens=owner_tokens) as deployment:
        yield Service(
            hub=deployment.config.deployment,
            sessions=deployment.runner,
            vault=deployment.vault,
            store=deployment.store,
            choices=deployment.choices,
            clock=deployment.ports.clock,
            directory=deployment.directory,
            operations=deployment,
        )
