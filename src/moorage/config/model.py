"""What can be configured. Keys of `moorage.yaml` are the fields of these classes."""

import enum
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import attrs
from attrs import field, frozen, validators

from moorage.core.limits import Limits
from moorage.core.model import SystemName
from moorage.core.timeouts import HORIZON_S, Timeouts

from .classes import shape_of
from .fields import Misfit, Seconds, SecretRef, Text, Words, doc

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


class PartitionKind(enum.Enum):
    """Whether jobs of the partition go through the queue."""

    BATCH = "batch"
    LOGIN = "login"


@frozen(kw_only=True)
class PartitionConfig:
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
    gpus: Range | None = field(default=None, metadata=doc("graphics processors on each node"))
    groups: tuple[GroupName, ...] | None = field(
        default=None, metadata=doc("who may use it, by group; without it, everybody who may use the system")
    )

    def __attrs_post_init__(self) -> None:
        default, longest = self.default_walltime, self.max_walltime
        if default is not None and longest is not None and default > longest:
            raise Misfit("default_walltime", "at most max_walltime")


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
class SystemConfig:
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
    groups: tuple[GroupName, ...] | None = field(
        default=None, metadata=doc("who may use it, by group; without it, everybody")
    )


@frozen(kw_only=True)
class ServiceConfig:
    """What can be started: a version of JupyterLab or something else that speaks HTTP."""

    description: str = field(default="", metadata=doc("shown to users"))
    command: tuple[Word, ...] = field(
        validator=_some, metadata=doc("the program and its arguments, one item each; no shell reads them")
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
    default: bool = field(default=False, metadata=doc("what the form proposes; at most one service"))


@frozen(kw_only=True)
class StoreConfig:
    """Where sessions are recorded."""

    url: StoreUrl = field(default="sqlite:///moorage.sqlite", metadata=doc("address of the database"))
    password: SecretRef | None = field(default=None, metadata=doc("the database's password, as a reference"))


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
    store: StoreConfig = field(factory=StoreConfig, metadata=doc("where sessions are recorded"))
    timeouts: TimeoutOverrides = field(
        factory=dict, validator=_durations, metadata=doc("durations that differ on all systems")
    )
    plugins: tuple[Distribution, ...] = field(
        default=(), metadata=doc("distributions whose plugins may be loaded; no other is imported")
    )

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
