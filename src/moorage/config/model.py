"""What can be configured. Keys of `moorage.yaml` are the fields of these classes."""

import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import attrs
from attrs import field, frozen, validators

from moorage.core.catalog import RIGHT_FORM, Extra, Start, right_form_problem
from moorage.core.launch import gate_problems, start_problems
from moorage.core.limits import Limits
from moorage.core.model import SystemName
from moorage.core.plan import GatePort, PlanError
from moorage.core.timeouts import HORIZON_S, Timeouts

from .classes import shape_of
from .fields import Bytes, Misfit, Seconds, SecretRef, Text, Words, doc

_one_or_more = validators.ge(1)
_some: Callable[[Any, Any, Any], None] = validators.min_len(1)
_positive = validators.gt(0)

Deployment = Annotated[str, Text(r"[a-z0-9]{1,8}", "1 to 8 lower-case letters or digits")]
Name = Annotated[
    SystemName, Text(r"[a-z][a-z0-9_-]{0,31}", "a name of lower-case letters, digits, _ and -, at most 32")
]
PartitionName = Annotated[
    str, Text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a name of letters, digits, _, . and -, at most 64")
]
ServiceName = Annotated[
    str, Text(r"[a-z0-9][a-z0-9_.-]{0,63}", "a name of lower-case letters, digits, _, . and -, at most 64")
]
AccountName = Annotated[
    str,
    Text(
        r"[A-Za-z0-9_][A-Za-z0-9_.@+:-]{0,63}",
        "a name of letters, digits and _ . @ + : -, at most 64, that does not begin with a punctuation mark",
    ),
]
ExtraName = Annotated[
    str, Text(r"[a-z0-9][a-z0-9_.+-]{0,63}", "a name of lower-case letters, digits, _, ., + and -, at most 64")
]
UserName = Annotated[str, Text(r"[^\x00-\x1f\x7f]{1,255}", "a user's name", 255)]
AttributeName = Annotated[str, Text(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}", "the name of an attribute of users")]
RightForm = Annotated[
    str,
    Text(RIGHT_FORM, 'a form such as "{account},{system}_{partition},{project}", with text between two placeholders'),
]
ProbePath = Annotated[
    str, Text(r"/[A-Za-z0-9._~/%@+=&?-]{0,1023}", "a path of URL characters that begins with /", 1024)
]
PortRange = Annotated[str, Text(r"[0-9]{1,5}-[0-9]{1,5}", 'two ports, the lower one first, such as "20000-20999"')]
GroupName = Annotated[str, Text(r"[^\s\x00]{1,200}", "a group name without blanks", 200)]
Variable = Annotated[
    str, Text(r"[A-Za-z_][A-Za-z0-9_]{0,127}", "the name of an environment variable (letters, digits, _)")
]
Word = Annotated[str, Text(r"[\s\S]+", "a text that is not empty", 4096)]
# "*" is refused with the rest: a pattern that matches everything would open every host to a tunnel.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
Destination = Annotated[
    str,
    Text(
        rf"\.?{_LABEL}(?:\.{_LABEL}){{0,20}}",
        'a host name such as "node1.cluster" or a suffix such as ".cluster"; wildcards are not allowed',
        253,
    ),
]
Moment = Annotated[
    str,
    Text(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(?::[0-9]{2})?(?:Z|[+-][0-9]{2}:[0-9]{2})",
        "a time with its offset from UTC, such as 2026-12-01T08:00+01:00",
        30,
    ),
]
Distribution = Annotated[
    str,
    Text(
        r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?(?:==[A-Za-z0-9.+!_-]{1,60})?",
        'the name of an installed distribution, such as "moorage-example" or "moorage-example==1.2"',
        200,
    ),
]
StoreUrl = Annotated[
    str,
    Text(
        # The password is looked for in the places where SQLAlchemy would find it.
        r"(?:sqlite|postgresql)(?:\+[a-z0-9]{1,20})?://(?![^\s]*[Pp]assword=)(?:[^\s:@/]*@)?[^\s@]*",
        "a database address, sqlite:///file or postgresql://user@host/name, with no password in it; "
        "the password stands beside it: password: {file: /path}",
        2000,
        private=True,
    ),
]
TimeoutName = Annotated[
    str,
    Words({each.name.removesuffix("_s"): str(each.metadata["doc"]) for each in attrs.fields(Timeouts)}),
]
TimeoutOverrides = Mapping[TimeoutName, Seconds]

_durations = validators.deep_mapping(key_validator=validators.instance_of(str), value_validator=_positive)


@frozen(kw_only=True)
class AudienceConfig:
    """Who may use something. Without any of the three keys: everybody who gets that far."""

    groups: tuple[GroupName, ...] | None = field(
        default=None, metadata=doc("who may use it, by group; without groups, users and attributes, everybody")
    )
    users: tuple[UserName, ...] | None = field(
        default=None, metadata=doc("who may use it, by name, besides the groups")
    )
    attributes: Mapping[AttributeName, tuple[Word, ...]] | None = field(
        default=None,
        metadata=doc("who may use it, by attribute of the login: for each, the values of which one is enough"),
    )


@frozen(kw_only=True)
class Range:
    """What users may ask for of one resource."""

    min: int = field(default=1, validator=validators.ge(0), metadata=doc("least that can be asked for"))
    max: int = field(validator=validators.ge(0), metadata=doc("most that can be asked for"))
    default: int | None = field(
        default=None,
        validator=validators.optional(validators.ge(0)),
        metadata=doc("what the form proposes; without it, the least"),
    )

    def __attrs_post_init__(self) -> None:
        if self.max < self.min:
            raise Misfit("max", f"at least the value of min, {self.min}")
        if self.default is not None and not self.min <= self.default <= self.max:
            raise Misfit("default", f"a value from {self.min} to {self.max}, as min and max say")


@frozen(kw_only=True)
class SizeRange:
    """What users may ask for of memory."""

    min: Bytes = field(default=2**20, validator=validators.ge(2**20), metadata=doc("least that can be asked for"))
    max: Bytes = field(validator=validators.ge(2**20), metadata=doc("most that can be asked for"))
    default: Bytes | None = field(
        default=None,
        validator=validators.optional(validators.ge(2**20)),
        metadata=doc("what the form proposes; without it, the least"),
    )

    def __attrs_post_init__(self) -> None:
        if self.max < self.min:
            raise Misfit("max", "at least the value of min")
        if self.default is not None and not self.min <= self.default <= self.max:
            raise Misfit("default", "a value between min and max")


class PartitionKind(enum.Enum):
    """Whether jobs of the partition go through the queue."""

    BATCH = "batch"
    LOGIN = "login"


@frozen(kw_only=True)
class PartitionConfig(AudienceConfig):
    """A part of a system with its own limits."""

    description: str = field(default="", metadata=doc("shown to users"))
    kind: PartitionKind = field(
        default=PartitionKind.BATCH, metadata=doc("batch: jobs wait in a queue; login: they run on a login node")
    )
    max_walltime: Seconds | None = field(
        default=None,
        validator=validators.optional(_positive),
        metadata=doc("longest session; without it, what the system allows"),
    )
    default_walltime: Seconds | None = field(
        default=None, validator=validators.optional(_positive), metadata=doc("what the form proposes")
    )
    nodes: Range | None = field(default=None, metadata=doc("nodes of a session"))
    cores: Range | None = field(default=None, metadata=doc("processor cores on each node"))
    memory: SizeRange | None = field(default=None, metadata=doc("memory on each node"))
    gpus: Range | None = field(default=None, metadata=doc("graphics processors on each node"))

    def __attrs_post_init__(self) -> None:
        if self.nodes is not None and self.nodes.min < 1:
            raise Misfit("nodes", "a range that begins with 1 or more")
        default, longest = self.default_walltime, self.max_walltime
        if default is not None and longest is not None and default > longest:
            raise Misfit("default_walltime", "at most max_walltime")


@frozen(kw_only=True)
class AccountConfig(AudienceConfig):
    """A user name on a system that acts for people."""

    description: str = field(default="", metadata=doc("shown to users"))


@frozen(kw_only=True)
class ProjectConfig(AudienceConfig):
    """What the batch system charges; Slurm calls it an account."""

    description: str = field(default="", metadata=doc("shown to users"))
    accounts: tuple[AccountName, ...] | None = field(
        default=None, metadata=doc("accounts of the system that can charge it; without it, all")
    )
    partitions: tuple[PartitionName, ...] | None = field(
        default=None, metadata=doc("batch partitions in which it can be charged; without it, all")
    )


@frozen(kw_only=True)
class ReservationConfig(AudienceConfig):
    """Nodes that are set aside for some people for a time."""

    description: str = field(default="", metadata=doc("shown to users"))
    from_: Moment | None = field(default=None, metadata=doc("begin, with the offset from UTC; without it, long ago"))
    until: Moment | None = field(default=None, metadata=doc("end, with the offset from UTC; without it, never"))
    partitions: tuple[PartitionName, ...] | None = field(
        default=None, metadata=doc("partitions in which it can be used; without it, all")
    )

    def __attrs_post_init__(self) -> None:
        begin, end = self.begins_at, self.ends_at
        if begin is not None and end is not None and end <= begin:
            raise Misfit("until", "a time after the begin")

    @property
    def begins_at(self) -> float | None:
        """Seconds since 1970, UTC."""
        return None if self.from_ is None else _seconds_at("from", self.from_)

    @property
    def ends_at(self) -> float | None:
        """Seconds since 1970, UTC."""
        return None if self.until is None else _seconds_at("until", self.until)


class ListenKind(enum.Enum):
    """What listens on a TCP port or on a unix socket."""

    TCP = "tcp"
    UNIX = "unix"


@frozen(kw_only=True)
class GateConfig:
    """Where the launcher of a job listens for streams from the Hub's side."""

    listen: ListenKind = field(
        default=ListenKind.TCP, metadata=doc("tcp: a port of the node; unix: a socket in the job's directory")
    )
    interface: str = field(
        default="0.0.0.0",  # noqa: S104 - the gate guards it
        metadata=doc("address or network interface of the node, for tcp; without it, all"),
    )
    ports: PortRange | None = field(default=None, metadata=doc("ports to take one of, for tcp; without it, any"))
    host: str = field(
        default="{hostname}",
        metadata=doc("name of the node as the login node resolves it: {hostname}, {fqdn} and {address} are replaced"),
    )

    def __attrs_post_init__(self) -> None:
        try:
            self.as_port()
        except PlanError as error:
            raise Misfit("ports" if "port" in error.problems[0].field else "", str(error)) from error

    def as_port(self) -> GatePort:
        """As the launch plan has it."""
        first, _, last = (self.ports or "0-0").partition("-")
        gate = GatePort(self.listen.value, self.interface, int(first), int(last), self.host)
        problems = gate_problems(gate)
        if problems:
            raise PlanError(problems)
        return gate


@frozen(kw_only=True)
class RightConfig:
    """How accounts on systems are read from an attribute that the login gives."""

    attribute: AttributeName = field(metadata=doc("name of the attribute; each of its values is one right"))
    form: RightForm = field(
        metadata=doc("what a value looks like; {system} is in it, {account}, {project} and {partition} may be")
    )
    systems: Mapping[AttributeName, Name] = field(
        factory=dict, metadata=doc("our names of systems for theirs, where they differ")
    )

    def __attrs_post_init__(self) -> None:
        if problem := right_form_problem(self.form):
            raise Misfit("form", problem)


@frozen(kw_only=True)
class MaintenanceConfig:
    """A time in which a system takes no new sessions."""

    from_: Moment = field(metadata=doc("begin, with the offset from UTC"))
    until: Moment = field(metadata=doc("end, with the offset from UTC"))
    notice: str = field(default="", metadata=doc("shown to users"))

    def __attrs_post_init__(self) -> None:
        begin, end = _seconds_at("from", self.from_), _seconds_at("until", self.until)
        if end <= begin:
            raise Misfit("until", "a time after the begin")

    @property
    def begins_at(self) -> float:
        """Seconds since 1970, UTC."""
        return _seconds_at("from", self.from_)

    @property
    def ends_at(self) -> float:
        """Seconds since 1970, UTC."""
        return _seconds_at("until", self.until)


def _seconds_at(key: str, moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).timestamp()
    except (ValueError, OverflowError) as error:
        raise Misfit(key, "a day and a time that exist") from error


@frozen(kw_only=True)
class SystemLimits:
    """How much of a system moorage uses at once."""

    sessions: int | None = field(
        default=None,
        validator=validators.optional(validators.ge(0)),
        metadata=doc("sessions held on this system; without it, limits.per_system"),
    )
    starts_in_flight: int = field(
        default=16, validator=_one_or_more, metadata=doc("calls to this system that run at the same time")
    )
    queue: int = field(
        default=1000, validator=_one_or_more, metadata=doc("calls that may wait; beyond that they are refused")
    )


@frozen(kw_only=True)
class TunnelConfig:
    """How the Hub's proxy reaches the labs of a system."""

    __kinds__: ClassVar[str] = "tunnels"

    kind: str = field(metadata=doc("one of the kinds that plugins bring; see `moorage plugins`"))
    options: Any = field(metadata=doc("what this kind wants to know"))


@frozen(kw_only=True)
class SystemConfig(AudienceConfig):
    """A place that runs jobs."""

    __kinds__: ClassVar[str] = "systems"

    kind: str = field(metadata=doc("one of the kinds that plugins bring; see `moorage plugins`"))
    description: str = field(default="", metadata=doc("shown to users"))
    notice: str = field(default="", metadata=doc("free text shown to users beside the system"))
    options: Any = field(metadata=doc("what this kind wants to know"))
    partitions: Mapping[PartitionName, PartitionConfig] = field(
        factory=dict, metadata=doc("the parts that users may choose, by the system's own names")
    )
    tunnel: TunnelConfig | None = field(
        default=None, metadata=doc("how its labs are reached; without it, as the kind of system does by itself")
    )
    limits: SystemLimits = field(factory=SystemLimits, metadata=doc("how much of it is used at once"))
    timeouts: TimeoutOverrides = field(
        factory=dict, validator=_durations, metadata=doc("durations that differ on this system")
    )
    maintenance: tuple[MaintenanceConfig, ...] = field(
        default=(), metadata=doc("times in which it takes no new sessions")
    )
    destinations: tuple[Destination, ...] = field(
        default=(),
        metadata=doc("hosts that a tunnel may reach besides the job's own node: names, or suffixes like .cluster"),
    )
    accounts: Mapping[AccountName, AccountConfig] = field(
        factory=dict, metadata=doc("user names on the system to choose from; without it, as people are mapped there")
    )
    projects: Mapping[AccountName, ProjectConfig] = field(
        factory=dict, metadata=doc("what can be charged; without it, what the system takes by itself")
    )
    reservations: Mapping[AccountName, ReservationConfig] = field(
        factory=dict, metadata=doc("reservations that users may choose, by the system's own names")
    )
    by_rights: bool = field(
        default=False, metadata=doc("only who has an account, listed here or by an attribute (rights), may use it")
    )
    token: SecretRef | None = field(
        default=None,
        metadata=doc("a token for everybody at this system, as a reference; without it, people act with their own"),
    )
    gate: GateConfig = field(factory=GateConfig, metadata=doc("where launchers listen on this system"))

    def __attrs_post_init__(self) -> None:
        if not self.partitions:
            return
        parts: list[tuple[str, ProjectConfig | ReservationConfig]] = [
            *(("projects", each) for each in self.projects.values()),
            *(("reservations", each) for each in self.reservations.values()),
        ]
        for key, each in parts:
            for partition in each.partitions or ():
                if partition not in self.partitions:
                    raise Misfit(key, f"partitions of this system only, not {partition!r}")
        for project in self.projects.values():
            for account in project.accounts or ():
                if account not in self.accounts:
                    raise Misfit("projects", f"accounts of this system only, not {account!r}")


@frozen(kw_only=True)
class ExtraConfig(AudienceConfig):
    """A kernel or an extension that users may tick."""

    description: str = field(default="", metadata=doc("shown to users"))
    ticked: bool = field(default=False, metadata=doc("ticked until the user says otherwise"))
    modules: tuple[Word, ...] = field(default=(), metadata=doc("environment modules to load for it"))
    environment: Mapping[Variable, str] = field(factory=dict, metadata=doc("environment variables for it"))
    args: tuple[Word, ...] = field(default=(), metadata=doc("options for the lab, such as --LabApp.news_url=None"))
    systems: tuple[Name, ...] | None = field(default=None, metadata=doc("systems that have it; without it, all"))


@frozen(kw_only=True)
class PlaceConfig:
    """What is different about a service on one system; what is left out is as the service says."""

    command: tuple[Word, ...] | None = field(
        default=None, validator=validators.optional(_some), metadata=doc("the program and its arguments there")
    )
    modules: tuple[Word, ...] | None = field(default=None, metadata=doc("environment modules to load there"))
    environment: Mapping[Variable, str] = field(
        factory=dict, metadata=doc("environment variables there, besides those of the service")
    )
    pre_start: tuple[tuple[Word, ...], ...] | None = field(
        default=None, metadata=doc("programs to run before, there, each a list like command")
    )
    directory: str | None = field(default=None, metadata=doc("where it starts there"))
    partitions: tuple[PartitionName, ...] | None = field(
        default=None, metadata=doc("partitions that offer it; without it, all")
    )


@frozen(kw_only=True)
class ServiceConfig(AudienceConfig):
    """What can be started: a version of JupyterLab or something else that speaks HTTP."""

    description: str = field(default="", metadata=doc("shown to users"))
    kind: ServiceName = field(default="jupyterlab", metadata=doc("what it is; versions of one kind stand together"))
    version: str = field(default="", metadata=doc("shown beside the kind"))
    command: tuple[Word, ...] = field(
        validator=_some,
        metadata=doc(
            "the program and its arguments, one item each; no shell reads them. {socket} or {port} stands where the "
            "lab is told what to listen on"
        ),
    )
    listen: ListenKind = field(
        default=ListenKind.UNIX,
        metadata=doc("unix: the lab listens on the socket {socket}, which nobody else can use; tcp: on {port}"),
    )
    probe_path: ProbePath = field(
        default="/api", metadata=doc("address below the lab at which any answer below 500 means that it lives")
    )
    directory: str = field(
        default="~", metadata=doc("where it starts: ~, . (the job's directory), or a path below ~/ or /")
    )
    modules: tuple[Word, ...] = field(default=(), metadata=doc("environment modules to load before"))
    environment: Mapping[Variable, str] = field(
        factory=dict, metadata=doc("environment variables; everybody on the node can read them: no secrets")
    )
    pre_start: tuple[tuple[Word, ...], ...] = field(
        default=(),
        validator=validators.deep_iterable(_some),
        metadata=doc("programs to run before, each a list like command"),
    )
    deprecated: bool = field(default=False, metadata=doc("still offered, with a warning"))
    instead: str = field(default="", metadata=doc("what to use instead of a deprecated service; shown to users"))
    default: bool = field(default=False, metadata=doc("what the form proposes; at most one service"))
    kernels: Mapping[ExtraName, ExtraConfig] = field(factory=dict, metadata=doc("kernels to tick"))
    extensions: Mapping[ExtraName, ExtraConfig] = field(factory=dict, metadata=doc("extensions to tick"))
    systems: Mapping[Name, PlaceConfig] | None = field(
        default=None, metadata=doc("systems that offer it, each with what is different there; without it, all")
    )

    def __attrs_post_init__(self) -> None:
        _check_start("", self.start_on(None), self._extras)
        for name, place in (self.systems or {}).items():
            _check_start(f"systems.{name}: ", self.start_on(place), self._extras)

    @property
    def _extras(self) -> tuple[ExtraConfig, ...]:
        return (*self.kernels.values(), *self.extensions.values())

    def start_on(self, place: PlaceConfig | None) -> Start:
        """How it is started there."""
        there = place or PlaceConfig()
        return Start(
            command=self.command if there.command is None else there.command,
            modules=self.modules if there.modules is None else there.modules,
            environment={**self.environment, **there.environment},
            setup=self.pre_start if there.pre_start is None else there.pre_start,
            listen=self.listen.value,
            probe_path=self.probe_path,
            directory=self.directory if there.directory is None else there.directory,
        )


def _check_start(prefix: str, start: Start, extras: tuple[ExtraConfig, ...]) -> None:
    """Refuse now what no launch plan could hold, instead of at the first start."""
    added = [Extra(modules=extra.modules, environment=extra.environment, args=extra.args) for extra in extras]
    for problem in start_problems(start, added):
        key = problem.field.partition("[")[0].partition(".")[0]
        keys = {"setup": "pre_start", "lab": "probe_path", "args": "extensions"}
        where = "" if problem.field == key else f"{problem.field}: "
        expected = f"{where}{problem.right} (it {problem.wrong})"
        raise Misfit("systems" if prefix else keys.get(key, key), f"{prefix}{expected}")


@frozen(kw_only=True)
class StoreConfig:
    """Where sessions are recorded."""

    url: StoreUrl = field(default="sqlite:///moorage.sqlite", metadata=doc("address of the database"))
    password: SecretRef | None = field(default=None, metadata=doc("the database's password, as a reference"))
    keep_days: int = field(
        default=90,
        validator=validators.ge(0),
        metadata=doc("days for which a session that is over is kept, with history and end of log; 0: for ever"),
    )


@frozen(kw_only=True)
class RelayConfig:
    """The process through which the Hub's proxy reaches the labs."""

    ports: PortRange = field(
        default="18000-32000",
        metadata=doc("TCP ports of 127.0.0.1, one for each session; below those of outgoing connections"),
    )
    users: tuple[UserName, ...] = field(
        default=(), metadata=doc("users of this machine who may connect besides moorage's own and root: the proxy's")
    )

    def __attrs_post_init__(self) -> None:
        first, _, last = self.ports.partition("-")
        if not 0 < int(first) <= int(last) < 65_536:
            raise Misfit("ports", 'two ports, the lower one first, such as "20000-20999"')


def _one_default(_instance: object, _attribute: object, services: Mapping[str, ServiceConfig]) -> None:
    default = [name for name, service in services.items() if service.default]
    if len(default) > 1:
        raise Misfit("services", f"at most one with default: true, not {' and '.join(default[:5])}")


@frozen(kw_only=True)
class Config:
    """Everything an operator decides about moorage."""

    deployment: Deployment = field(
        metadata=doc("name of this installation; the first part of every job name, so never change it")
    )
    systems: Mapping[Name, SystemConfig] = field(validator=_some, metadata=doc("places that run jobs, by name"))
    services: Mapping[ServiceName, ServiceConfig] = field(
        factory=dict, validator=_one_default, metadata=doc("what can be started, by name")
    )
    limits: Limits = field(factory=Limits, metadata=doc("sessions that may be held at once"))
    relay: RelayConfig = field(factory=RelayConfig, metadata=doc("the process through which labs are reached"))
    store: StoreConfig = field(factory=StoreConfig, metadata=doc("where sessions are recorded"))
    timeouts: TimeoutOverrides = field(
        factory=dict, validator=_durations, metadata=doc("durations that differ on all systems")
    )
    rights: tuple[RightConfig, ...] = field(
        default=(), metadata=doc("attributes of the login that say who has which account where")
    )
    notice: str = field(default="", metadata=doc("free text shown to users above everything"))
    directory: str = field(
        default=".moorage", metadata=doc("folder for what moorage keeps; relative to the file's own folder")
    )
    plugins: tuple[Distribution, ...] = field(
        default=(), metadata=doc("distributions whose plugins may be loaded; no other is imported")
    )

    def __attrs_post_init__(self) -> None:
        for name, service in self.services.items():
            named = [*(service.systems or ()), *(each for extra in service._extras for each in extra.systems or ())]
            for system in named:
                if system not in self.systems:
                    raise Misfit("services", f"systems of this file only in {name!r}, not {system!r}")
            for system, place in (service.systems or {}).items():
                parts = self.systems[system].partitions
                for partition in place.partitions or ():
                    if partition not in parts:
                        raise Misfit("services", f"partitions of {system!r} only in {name!r}, not {partition!r}")
        for right in self.rights:
            for system in right.systems.values():
                if system not in self.systems:
                    raise Misfit("rights", f"systems of this file only, not {system!r}")

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON form, in hex: the same for files that mean the same."""
        shown = shape_of(Config).show(self)
        canonical = json.dumps(shown, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def timeouts_for(self, system: SystemName) -> Timeouts:
        """The table for one system: defaults, what its kind needs, then what is configured for all, then for it."""
        chosen = self.systems[system]
        overrides = {**self.timeouts, **chosen.timeouts}
        kind = {"horizon_s": HORIZON_S[chosen.kind]} if chosen.kind in HORIZON_S else {}
        return Timeouts().override({**kind, **{f"{name}_s": value for name, value in overrides.items()}})
