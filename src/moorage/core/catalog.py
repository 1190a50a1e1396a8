"""
What a user may choose, and whether what was chosen may be had.

`choices` makes the tree that the form shows; `validate` checks a submitted form against the same tree. So what is not
offered cannot be had, and a forged form gains nothing. Everything a decision needs is an argument: the operator's
catalogue, the user, the time, and the systems that take nobody now.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from functools import cached_property
from typing import Protocol, TypeVar

from attrs import define, evolve, field, frozen

from .model import Instant, SystemName
from .plan import Problem

LEAST_WALLTIME_S = 60
LONGEST_WALLTIME_S = 31_536_000
"""A year, where the operator names no limit; the launch plan allows no more."""

USUAL_WALLTIME_S = 7_200


# Who -------------------------------------------------------------------------------------------------------------


@frozen
class User:
    """
    Who asks.

    Args:
        attributes: What the login said about the person, such as entitlements; each may have several values.
    """

    name: str
    groups: frozenset[str] = frozenset()
    attributes: Mapping[str, tuple[str, ...]] = field(factory=dict)


@frozen
class Audience:
    """
    Who may use something. Without any rule: everybody. Otherwise one rule that fits is enough.

    Args:
        attributes: Values of an attribute of which the user must have one.
    """

    groups: tuple[str, ...] | None = None
    users: tuple[str, ...] | None = None
    attributes: Mapping[str, tuple[str, ...]] | None = None

    def admits(self, user: User) -> bool:
        if self.groups is None and self.users is None and self.attributes is None:
            return True
        if user.name in (self.users or ()) or not user.groups.isdisjoint(self.groups or ()):
            return True
        wanted = (self.attributes or {}).items()
        return any(not set(values).isdisjoint(user.attributes.get(name, ())) for name, values in wanted)


EVERYBODY = Audience()


@frozen
class Right:
    """
    How accounts are read from an attribute of the user: "max1,juwels_booster,hpcproj" by the form
    "{account},{system}_{partition},{project}".

    A placeholder takes the text up to the next literal character of the form; a value that does not fit is no right.
    Placeholders that the form does not have mean "any".

    Args:
        systems: Our names for theirs; a name that is not in here is taken in lower case.
    """

    attribute: str
    form: str
    systems: Mapping[str, SystemName] = field(factory=dict)

    def read(self, value: str) -> "Grant | None":
        found: dict[str, str] = {}
        rest = value
        for literal, name in self._parts:
            if not rest.startswith(literal):
                return None
            rest = rest[len(literal) :]
            end = self._end_of(name, rest)
            if end < 1 or name in found:
                return None
            found[name], rest = rest[:end], rest[end:]
        if rest != self._last or not all(map(_plain, found.values())):
            return None
        theirs = found.get("system", "")
        return Grant(
            self.systems.get(theirs, SystemName(theirs.lower())),
            found.get("account", ""),
            found.get("project", ""),
            found.get("partition", ""),
        )

    def _end_of(self, name: str, rest: str) -> int:
        following = self._following[name]
        return rest.find(following) if following else len(rest)

    @cached_property
    def _parts(self) -> tuple[tuple[str, str], ...]:
        """Each placeholder with the literal text before it."""
        return tuple(_PLACEHOLDER.findall(self.form))

    @cached_property
    def _last(self) -> str:
        """The literal text at the end."""
        return self.form[sum(len(literal) + len(name) + 2 for literal, name in self._parts) :]

    @cached_property
    def _following(self) -> Mapping[str, str]:
        literals = [literal for literal, _ in self._parts[1:]] + [self._last]
        return {name: literal for (_, name), literal in zip(self._parts, literals, strict=True)}


_PLACEHOLDER = re.compile(r"([^{}]*)\{(account|project|system|partition)\}")
RIGHT_FORM = r"[^{}]{0,40}(?:\{(?:account|project|system|partition)\}[^{}]{0,40}){1,4}"
"""Forms of a `Right` that can be read; `{system}` is in it, each placeholder once, and between two stands a literal."""


def right_form_problem(form: str) -> str:
    """What is missing in the form of a `Right`; "" if nothing is."""
    names = [name for _, name in _PLACEHOLDER.findall(form)]
    if "system" not in names or len(set(names)) < len(names) or "}{" in form:
        return "{system}, and each of {account}, {project}, {partition} at most once, with a character between two"
    return ""


def _plain(text: str) -> bool:
    """Whether a name from an attribute can be an account, a project or a partition of a launch plan."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@+:-]{0,63}", text) is not None


@frozen
class Grant:
    """One line of what a user may use, read from an attribute; "" means any."""

    system: SystemName
    account: str = ""
    project: str = ""
    partition: str = ""


def grants_of(rights: Iterable[Right], user: User) -> tuple[Grant, ...]:
    """Everything that the user's attributes give, in order, each once."""
    read = (right.read(value) for right in rights for value in user.attributes.get(right.attribute, ()))
    return tuple(dict.fromkeys(grant for grant in read if grant is not None))


# What there is ---------------------------------------------------------------------------------------------------


@frozen
class ResourceRange:
    """What may be asked for of one resource. Walltime is in seconds, memory in MiB, the rest are counts."""

    least: int
    most: int
    default: int


@frozen
class Window:
    """A time, begin included, end not; `None` is open."""

    begins: Instant | None = None
    ends: Instant | None = None
    notice: str = ""

    def holds(self, now: Instant) -> bool:
        return (self.begins is None or self.begins <= now) and not self.over(now)

    def over(self, now: Instant) -> bool:
        return self.ends is not None and self.ends <= now


@frozen
class Reservation:
    """Nodes set aside for a time; `partitions` in which it can be used, `None` for all."""

    description: str = ""
    window: Window = Window()
    partitions: tuple[str, ...] | None = None
    audience: Audience = EVERYBODY


def _walltime() -> Mapping[str, ResourceRange]:
    return {"walltime_s": ResourceRange(LEAST_WALLTIME_S, LONGEST_WALLTIME_S, USUAL_WALLTIME_S)}


@frozen
class Partition:
    """
    A part of a system.

    Args:
        login: Jobs run on a login node and do not queue.
        resources: By the names in `RESOURCES`; what is not there cannot be chosen.
    """

    description: str = ""
    login: bool = False
    resources: Mapping[str, ResourceRange] = field(factory=_walltime)
    audience: Audience = EVERYBODY


RESOURCES = ("nodes", "cores", "memory_mib", "gpus", "walltime_s")
"""What of a system can be counted, as the form and the launch plan call it. `cores` to `gpus` are per node."""


@frozen
class Account:
    """A user name on the system that acts for the person."""

    description: str = ""
    audience: Audience = EVERYBODY


@frozen
class Project:
    """What the batch system charges. `accounts` and `partitions` with which it can be used, `None` for all."""

    description: str = ""
    accounts: tuple[str, ...] | None = None
    partitions: tuple[str, ...] | None = None
    audience: Audience = EVERYBODY


@frozen
class SystemOffer:
    """
    A system as the catalogue knows it.

    Args:
        by_rights: Only who has an account, configured or by an attribute, may use it.
    """

    description: str = ""
    notice: str = ""
    partitions: Mapping[str, Partition] = field(factory=dict)
    accounts: Mapping[str, Account] = field(factory=dict)
    projects: Mapping[str, Project] = field(factory=dict)
    reservations: Mapping[str, Reservation] = field(factory=dict)
    maintenance: tuple[Window, ...] = ()
    audience: Audience = EVERYBODY
    by_rights: bool = False


@frozen
class Extra:
    """A kernel or an extension to tick: what it adds to the start. `systems` that have it, `None` for all."""

    description: str = ""
    ticked: bool = False
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    args: tuple[str, ...] = ()
    systems: tuple[SystemName, ...] | None = None
    audience: Audience = EVERYBODY


@frozen
class Start:
    """
    How a service is started.

    Args:
        command: Program and arguments; `{socket}` or `{port}` stands where the lab is told what to listen on.
        setup: Programs to run before, each with its arguments; the first that fails ends the job.
        listen: "unix" or "tcp", see `core.plan.Lab`.
    """

    command: tuple[str, ...]
    modules: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(factory=dict)
    setup: tuple[tuple[str, ...], ...] = ()
    listen: str = "unix"
    probe_path: str = "/api"
    directory: str = "~"


@frozen
class Place:
    """A service on one system: how it is started there, and in which partitions; `None` for all."""

    start: Start
    partitions: tuple[str, ...] | None = None


@frozen
class Service:
    """Something that can be started. `places` has an entry for every system that offers it."""

    places: Mapping[SystemName, Place]
    kind: str = "jupyterlab"
    version: str = ""
    description: str = ""
    deprecated: str = ""
    default: bool = False
    kernels: Mapping[str, Extra] = field(factory=dict)
    extensions: Mapping[str, Extra] = field(factory=dict)
    audience: Audience = EVERYBODY


@frozen
class Catalog:
    """Everything that can be chosen, for everybody."""

    systems: Mapping[SystemName, SystemOffer]
    services: Mapping[str, Service]
    rights: tuple[Right, ...] = ()
    notice: str = ""


# The tree of one user --------------------------------------------------------------------------------------------


class Lack(Enum):
    """Why something that exists cannot be had now: a closed list, the key for texts in other languages."""

    NOT_FOR_YOU = "not_for_you"
    MAINTENANCE = "maintenance"
    CLOSED = "closed"
    NO_ACCOUNT = "no_account"
    NO_PROJECT = "no_project"
    NO_PARTITION = "no_partition"
    NO_SYSTEM = "no_system"
    NOT_IN_PROJECT = "not_in_project"
    NOT_HERE = "not_here"
    NOT_YET = "not_yet"
    OVER = "over"


_SENTENCES = {
    Lack.NOT_FOR_YOU: "it is open to other groups only",
    Lack.MAINTENANCE: "it is under maintenance",
    Lack.CLOSED: "it takes no new sessions now",
    Lack.NO_ACCOUNT: "you have no account there",
    Lack.NO_PROJECT: "no project can be charged",
    Lack.NO_PARTITION: "no partition is open to you",
    Lack.NO_SYSTEM: "no system offers it to you now",
    Lack.NOT_IN_PROJECT: "the project may not use it",
    Lack.NOT_HERE: "this system does not have it",
    Lack.NOT_YET: "it has not begun",
    Lack.OVER: "it is over",
}


@frozen
class WhyNot:
    """Why something cannot be had. `note` is the operator's text, `until` when it ends, if that is known."""

    lack: Lack
    note: str = ""
    until: Instant | None = None

    def __str__(self) -> str:
        sentence = _SENTENCES[self.lack]
        return f"{sentence}: {self.note}" if self.note else sentence


@frozen
class ReservationChoice:
    name: str
    description: str
    why_not: WhyNot | None = None


@frozen
class PartitionChoice:
    """`resources` by the names in `RESOURCES`."""

    name: str
    description: str
    login: bool
    why_not: WhyNot | None
    resources: Mapping[str, ResourceRange]
    reservations: tuple[ReservationChoice, ...]


@frozen
class ProjectChoice:
    name: str
    description: str
    why_not: WhyNot | None
    partitions: tuple[PartitionChoice, ...]


@frozen
class AccountChoice:
    name: str
    description: str
    why_not: WhyNot | None
    projects: tuple[ProjectChoice, ...]


@frozen
class SystemChoice:
    """`planned` are maintenance windows that have not begun."""

    name: SystemName
    description: str
    notice: str
    planned: tuple[Window, ...]
    why_not: WhyNot | None
    accounts: tuple[AccountChoice, ...]


@frozen
class ExtraChoice:
    """A kernel or an extension; `ticked` unless the user says otherwise."""

    name: str
    description: str
    ticked: bool
    why_not: WhyNot | None = None


@frozen
class PlaceChoice:
    """A service on one system. `partitions` narrows those of the system; `None` does not."""

    name: SystemName
    why_not: WhyNot | None
    partitions: tuple[str, ...] | None
    kernels: tuple[ExtraChoice, ...]
    extensions: tuple[ExtraChoice, ...]


@frozen
class ServiceChoice:
    """`deprecated` is why it should not be used any more, or ""."""

    name: str
    kind: str
    version: str
    description: str
    deprecated: str
    default: bool
    why_not: WhyNot | None
    places: tuple[PlaceChoice, ...]


@frozen
class Choices:
    """
    Everything that one user can see: services with the systems that offer them, and systems with what is below.

    Systems stand beside the services and not below each, because a catalogue of 50 services on 20 systems would hold
    every partition 50 times.
    """

    services: tuple[ServiceChoice, ...]
    systems: tuple[SystemChoice, ...]
    notice: str = ""


def choices(catalog: Catalog, user: User, now: Instant, closed: Mapping[SystemName, str] | None = None) -> Choices:
    """
    The tree of what the user can see; what cannot be had says why.

    Args:
        closed: Systems that take nobody now, with a text for users (drained, could not be set up).
    """
    granted: dict[SystemName, list[Grant]] = {}
    for grant in grants_of(catalog.rights, user):
        granted.setdefault(grant.system, []).append(grant)
    shut = closed or {}
    systems = tuple(
        _system(name, offer, user, granted.get(name, []), now, shut.get(name))
        for name, offer in catalog.systems.items()
    )
    lacks = {system.name: system.why_not for system in systems}
    services = tuple(_service(name, service, user, lacks) for name, service in catalog.services.items())
    return Choices(services, systems, catalog.notice)


def _service(name: str, service: Service, user: User, lacks: Mapping[SystemName, WhyNot | None]) -> ServiceChoice:
    kernels, extensions = _Extras(service.kernels, user), _Extras(service.extensions, user)
    places = tuple(
        PlaceChoice(system, lacks[system], place.partitions, kernels.on(system), extensions.on(system))
        for system, place in service.places.items()
        if system in lacks
    )
    why_not = _unless(service.audience.admits(user), Lack.NOT_FOR_YOU) or _unless(_any_open(places), Lack.NO_SYSTEM)
    return ServiceChoice(
        name,
        service.kind,
        service.version,
        service.description,
        service.deprecated,
        service.default,
        why_not,
        places,
    )


@define
class _Extras:
    """Kernels or extensions for one user; made once and shared by all systems that have the same ones."""

    extras: Mapping[str, Extra]
    user: User
    made: dict[tuple[bool, ...], tuple[ExtraChoice, ...]] = field(factory=dict)

    def on(self, system: SystemName) -> tuple[ExtraChoice, ...]:
        there = tuple(extra.systems is None or system in extra.systems for extra in self.extras.values())
        if there not in self.made:
            self.made[there] = _extras(self.extras, system, self.user)
        return self.made[there]


def _extras(extras: Mapping[str, Extra], system: SystemName, user: User) -> tuple[ExtraChoice, ...]:
    return tuple(
        ExtraChoice(
            name,
            extra.description,
            extra.ticked,
            _unless(extra.systems is None or system in extra.systems, Lack.NOT_HERE)
            or _unless(extra.audience.admits(user), Lack.NOT_FOR_YOU),
        )
        for name, extra in extras.items()
    )


def _system(
    name: SystemName, offer: SystemOffer, user: User, grants: list[Grant], now: Instant, shut: str | None
) -> SystemChoice:
    accounts = tuple(_accounts(offer, user, grants, now))
    running = next((window for window in offer.maintenance if window.holds(now)), None)
    why_not = (
        _unless(offer.audience.admits(user), Lack.NOT_FOR_YOU)
        or (WhyNot(Lack.MAINTENANCE, running.notice, running.ends) if running else None)
        or (WhyNot(Lack.CLOSED, shut) if shut is not None else None)
        or _unless(bool(accounts), Lack.NO_ACCOUNT)
        # With a single way down, what is missing below is the whole story.
        or (None if _any_open(accounts) else _only_lack(accounts) or WhyNot(Lack.NO_ACCOUNT))
    )
    planned = tuple(each for each in offer.maintenance if each.begins is not None and each.begins > now)
    return SystemChoice(name, offer.description, offer.notice, planned, why_not, accounts)


def _only_lack(accounts: tuple[AccountChoice, ...]) -> WhyNot | None:
    return accounts[0].why_not if len(accounts) == 1 else None


Ways = dict[str, dict[str, set[str] | None]]
"""Accounts, their projects, and the batch partitions of each; `None` for all."""


def _accounts(offer: SystemOffer, user: User, grants: list[Grant], now: Instant) -> Iterator[AccountChoice]:
    parts = _Parts(offer, user, now)
    for account, ways in _ways(offer, user, grants).items():
        projects = tuple(_project(project, offer, only, parts) for project, only in ways.items())
        why_not = _unless(bool(projects), Lack.NO_PROJECT)
        if projects and not _any_open(projects):
            why_not = projects[0].why_not
        known = offer.accounts.get(account, Account())
        yield AccountChoice(account, known.description, why_not, projects)


def _ways(offer: SystemOffer, user: User, grants: list[Grant]) -> Ways:
    """Configured accounts and projects that are open to the user, and those that the user's attributes name."""
    ways: Ways = {}
    for grant in grants:
        projects = ways.setdefault(grant.account, {})
        if not grant.partition or projects.get(grant.project, set()) is None:
            projects[grant.project] = None
        else:
            projects[grant.project] = (projects.get(grant.project) or set()) | {grant.partition}
    accounts = [name for name, account in offer.accounts.items() if account.audience.admits(user)]
    if not offer.accounts and not grants and not offer.by_rights:
        accounts = [""]  # nothing to choose: the system maps people to accounts by itself
    for account in accounts:
        ways.setdefault(account, {}).update(_configured_projects(offer, account, user))
    return ways


def _configured_projects(offer: SystemOffer, account: str, user: User) -> dict[str, set[str] | None]:
    if not offer.projects:
        return {"": None}
    return {
        name: None if project.partitions is None else set(project.partitions)
        for name, project in offer.projects.items()
        if project.audience.admits(user) and (project.accounts is None or account in project.accounts)
    }


def _project(name: str, offer: SystemOffer, only: set[str] | None, parts: "_Parts") -> ProjectChoice:
    partitions = parts.of(only)
    why_not = None if _any_open(partitions) else WhyNot(Lack.NO_PARTITION)
    return ProjectChoice(name, offer.projects.get(name, Project()).description, why_not, partitions)


@define
class _Parts:
    """The partitions of one system for one user; made once and shared by all projects that may use the same ones."""

    offer: SystemOffer
    user: User
    now: Instant
    made: dict[frozenset[str] | None, tuple[PartitionChoice, ...]] = field(factory=dict)

    def of(self, only: set[str] | None) -> tuple[PartitionChoice, ...]:
        key = None if only is None else frozenset(only)
        if key not in self.made:
            # A system without partitions has one, which has no name.
            partitions = self.offer.partitions or {"": Partition()}
            self.made[key] = tuple(self._partition(name, each, key) for name, each in partitions.items())
        return self.made[key]

    def _partition(self, name: str, partition: Partition, only: frozenset[str] | None) -> PartitionChoice:
        # Login nodes are nobody's quota: a project that is bound to some partitions may use them all the same.
        belongs = only is None or name in only or partition.login
        why_not = _unless(partition.audience.admits(self.user), Lack.NOT_FOR_YOU) or _unless(
            belongs, Lack.NOT_IN_PROJECT
        )
        reservations = () if partition.login else tuple(self._reservations(name))
        return PartitionChoice(name, partition.description, partition.login, why_not, partition.resources, reservations)

    def _reservations(self, partition: str) -> Iterator[ReservationChoice]:
        for name, each in self.offer.reservations.items():
            if each.partitions is not None and partition not in each.partitions:
                continue
            window = each.window
            why_not = _unless(each.audience.admits(self.user), Lack.NOT_FOR_YOU)
            if why_not is None and window.over(self.now):
                why_not = WhyNot(Lack.OVER)
            elif why_not is None and not window.holds(self.now):
                why_not = WhyNot(Lack.NOT_YET, until=window.begins)
            yield ReservationChoice(name, each.description, why_not)


class _Choosable(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def why_not(self) -> WhyNot | None: ...


def _unless(fine: bool, lack: Lack) -> WhyNot | None:
    return None if fine else WhyNot(lack)


def _any_open(alternatives: Sequence[_Choosable]) -> bool:
    return any(each.why_not is None for each in alternatives)


# What was chosen -------------------------------------------------------------------------------------------------


@frozen
class SessionOptions:
    """
    A choice that may be had; only `validate` and `fit` make one. "" and `None` leave a matter to the system.

    `login` is a fact about the partition, not a choice.
    """

    service: str
    system: SystemName
    account: str
    project: str
    partition: str
    login: bool
    walltime_s: int
    nodes: int = 1
    cores: int | None = None
    memory_mib: int | None = None
    gpus: int | None = None
    reservation: str = ""
    kernels: tuple[str, ...] = ()
    extensions: tuple[str, ...] = ()


FIELDS = (
    *("service", "system", "account", "project", "partition"),
    *RESOURCES,
    *("reservation", "kernels", "extensions"),
)
"""Fields of a form, each after those it depends on."""

MOST_TICKED = 100


def validate(tree: Choices, asked: Mapping[str, object]) -> SessionOptions | tuple[Problem, ...]:
    """
    The options that a submitted form asks for, or everything that is wrong with it.

    A field that is missing or `None` means what the form proposes by itself; so does "", unless an alternative has
    no name. Numbers may be texts of digits.

    Args:
        asked: Anything that came over the network as JSON or form data.
    """
    fitted = fit(tree, asked)
    if fitted.problems or fitted.options is None:
        return fitted.problems
    return fitted.options


@frozen
class Fitted:
    """The nearest options that may be had (`None` if nothing may), and what had to be changed for that."""

    options: SessionOptions | None
    problems: tuple[Problem, ...]


def fit(tree: Choices, asked: Mapping[str, object]) -> Fitted:
    """
    As `validate`, but each wrong field is replaced by what the form proposes: for presets and links, which may be
    older than the catalogue.
    """
    reader = _Reader(asked)
    reader.refuse_unknown()
    systems = {each.name: each for each in tree.systems}
    service = reader.one("service", tree.services, lambda each: each.default)
    place = reader.one("system", service.places) if service else None
    account = reader.one("account", systems[place.name].accounts) if place else None
    project = reader.one("project", account.projects) if account else None
    partition = reader.one("partition", _narrowed(project.partitions, place.partitions)) if place and project else None
    if not (service and place and account and project and partition):
        return Fitted(None, tuple(reader.problems))
    amounts = {name: reader.amount(name, partition.resources.get(name)) for name in RESOURCES}
    options = SessionOptions(
        service=service.name,
        system=place.name,
        account=account.name,
        project=project.name,
        partition=partition.name,
        login=partition.login,
        walltime_s=amounts["walltime_s"] or USUAL_WALLTIME_S,
        nodes=amounts["nodes"] or 1,
        cores=amounts["cores"],
        memory_mib=amounts["memory_mib"],
        gpus=amounts["gpus"],
        reservation=reader.reservation(partition.reservations),
        kernels=reader.ticked("kernels", place.kernels),
        extensions=reader.ticked("extensions", place.extensions),
    )
    return Fitted(options, tuple(reader.problems))


def _narrowed(partitions: tuple[PartitionChoice, ...], only: tuple[str, ...] | None) -> tuple[PartitionChoice, ...]:
    if only is None:
        return partitions
    return tuple(
        each if each.name in only or each.why_not is not None else evolve(each, why_not=WhyNot(Lack.NOT_HERE))
        for each in partitions
    )


Alternative = TypeVar("Alternative", bound=_Choosable)


@define
class _Reader:
    """Reads one field after the other; what is wrong is noted and replaced by what the form proposes."""

    asked: Mapping[str, object]
    problems: list[Problem] = field(factory=list)

    def note(self, name: str, wrong: str, right: str) -> None:
        self.problems.append(Problem(name, wrong, right))

    def refuse_unknown(self) -> None:
        unknown = [name for name in self.asked if name not in FIELDS]
        if unknown:
            # Names come from outside: they are counted, not repeated.
            self.note("form", f"has {len(unknown)} unknown fields", "only " + ", ".join(FIELDS))

    def value(self, name: str) -> object:
        value = self.asked.get(name)
        return None if value == "" else value

    def one(
        self, name: str, alternatives: Sequence[Alternative], preferred: Callable[[Alternative], bool] = lambda _: False
    ) -> Alternative | None:
        """The alternative asked for, else the preferred one, else the first that can be had."""
        open_ones = [each for each in alternatives if each.why_not is None]
        proposed = next((each for each in open_ones if preferred(each)), open_ones[0] if open_ones else None)
        value = self.asked.get(name)
        # "" is what a form sends for nothing chosen, and also the name of the project that is no project.
        if value is None or (value == "" and all(each.name for each in alternatives)):
            if proposed is None:
                self.note(name, "cannot be had", _lacking(alternatives))
            return proposed
        found = next((each for each in alternatives if each.name == value), None)
        if found is None:
            self.note(name, "is not one of those that are offered", _names(open_ones))
        elif found.why_not is not None:
            self.note(name, f"cannot be had: {found.why_not}", _names(open_ones))
        else:
            return found
        return proposed

    def amount(self, name: str, limits: ResourceRange | None) -> int | None:
        value = self.value(name)
        if limits is None:
            if value is not None and not (name == "nodes" and _whole(value) == 1):
                self.note(name, "cannot be chosen in this partition", "no value")
            return None
        if value is None:
            return limits.default
        number = _whole(value)
        if number is None or not limits.least <= number <= limits.most:
            wrong = "is no whole number" if number is None else "is out of range"
            self.note(name, wrong, f"a whole number from {limits.least} to {limits.most}")
            return limits.default
        return number

    def reservation(self, alternatives: Sequence[ReservationChoice]) -> str:
        """None is proposed: a reservation is for those who know of it."""
        if self.value("reservation") is None:
            return ""
        found = self.one("reservation", alternatives)
        wrong = bool(self.problems) and self.problems[-1].field == "reservation"
        return "" if found is None or wrong else found.name

    def ticked(self, name: str, alternatives: Sequence[ExtraChoice]) -> tuple[str, ...]:
        """Names in the order of the catalogue. An empty list is a choice, a missing field is not."""
        value = self.value(name)
        open_ones = {each.name: each for each in alternatives if each.why_not is None}
        if value is None:
            return tuple(each.name for each in open_ones.values() if each.ticked)
        wished = [value] if isinstance(value, str) else value
        if not isinstance(wished, list | tuple) or len(wished) > MOST_TICKED:
            self.note(name, "is no list", f"a list of at most {MOST_TICKED} names")
            return tuple(each.name for each in open_ones.values() if each.ticked)
        wrong = [each for each in wished if not isinstance(each, str) or each not in open_ones]
        if wrong:
            self.note(name, f"has {len(wrong)} names that are not offered", _names(list(open_ones.values())))
        return tuple(each for each in open_ones if each in wished)


def _whole(value: object) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _names(alternatives: Sequence[_Choosable]) -> str:
    names = [each.name or "none" for each in alternatives[:20]]
    more = f" and {len(alternatives) - 20} more" if len(alternatives) > 20 else ""
    return "one of " + ", ".join(names) + more if names else "nothing: none can be had"


def _lacking(alternatives: Sequence[_Choosable]) -> str:
    lacks = [f"{each.name or 'it'}: {each.why_not}" for each in alternatives[:5]]
    return "one that can be had (" + "; ".join(lacks) + ")" if lacks else "one that is configured; there is none"
