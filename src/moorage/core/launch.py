"""
From what was chosen to what a job runs.

What a user chose travels in a session as pairs of texts, because the machine and the store have no use for more. Their
keys are defined here and nowhere else: `pairs_of` writes them, `plan_of` reads them. `LaunchPlan` checks every value
that comes out, so nothing here has to trust what comes in.
"""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import field, frozen

from .catalog import Extra, Service, SessionOptions, Start
from .model import SessionSpec, Tag
from .plan import GatePort, Lab, LaunchLimits, LaunchPlan, PlanError, Problem, Resources

ACCOUNT = "account"
"""User name on the system that acts for the person. Not in the plan: adapters ask for it with `account_of`."""
PROJECT = "project"
RESERVATION = "reservation"
LOGIN = "login"
"""There with the value "yes" if the partition is a login node's: the job does not go through the queue."""
CORES, MEMORY, GPUS = "cores", "memory_mib", "gpus"
KERNEL, EXTENSION = "kernel", "extension"
"""One pair for each that was ticked."""
ARGUMENT = "arg"
"""One pair for each option of the lab, in order."""
VARIABLE = "env."
"""Followed by the name of an environment variable that is no secret."""

_SINGLE = (ACCOUNT, PROJECT, RESERVATION, LOGIN, CORES, MEMORY, GPUS)
_MANY = (KERNEL, EXTENSION, ARGUMENT)
_LONGEST_OWNER = 255


def pairs_of(
    options: SessionOptions, args: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> tuple[tuple[str, str], ...]:
    """
    The options of a `SessionSpec`, without those that have fields of their own there.

    Args:
        args: Options for the lab.
        environment: Variables of the lab that everybody on the node may read.
    """
    numbers = ((CORES, options.cores), (MEMORY, options.memory_mib), (GPUS, options.gpus))
    single = (
        (ACCOUNT, options.account),
        (PROJECT, options.project),
        (RESERVATION, options.reservation),
        (LOGIN, "yes" if options.login else ""),
        *((key, "" if number is None else str(number)) for key, number in numbers),
    )
    return (
        *(pair for pair in single if pair[1]),
        *((KERNEL, name) for name in options.kernels),
        *((EXTENSION, name) for name in options.extensions),
        *((ARGUMENT, argument) for argument in args),
        *((VARIABLE + name, value) for name, value in (environment or {}).items()),
    )


def account_of(spec: SessionSpec) -> str:
    """The account on the system that was chosen, "" if there was nothing to choose."""
    return next((value for key, value in spec.options if key == ACCOUNT), "")


def on_login_node(spec: SessionSpec) -> bool:
    """Whether the job runs on a login node instead of going through the queue."""
    return (LOGIN, "yes") in spec.options


# The plan --------------------------------------------------------------------------------------------------------


def plan_of(
    tag: Tag, attempt: int, spec: SessionSpec, service: Service, gate: GatePort, callback: str = ""
) -> LaunchPlan:
    """
    The plan of one attempt.

    Args:
        service: What `spec.service` names in the configuration that the session started with.
        gate: Where launchers listen on the system.
        callback: A URL for the launcher's reports, or "".

    Raises:
        PlanError: With every wrong field. The service is not offered on the system, or an option cannot be.
    """
    place = service.places.get(spec.system)
    if place is None:
        raise PlanError((Problem("service", "is not offered on this system", "a service that is"),))
    asked = _Asked.read(spec.options)
    start, extras = place.start, tuple(asked.extras(service))
    resources = asked.resources(spec)
    if asked.problems:
        raise PlanError(tuple(asked.problems))
    return _plan(
        start,
        extras,
        tag=str(tag),
        attempt=attempt,
        owner=_visible(spec.key.owner),
        service=spec.service,
        args=asked.many[ARGUMENT],
        environment=asked.environment,
        walltime_s=spec.walltime_s,
        callback=callback,
        resources=resources,
        gate=gate,
        limits=LaunchLimits(admission_s=min(86_400, max(1, math.ceil(spec.timeouts.admission_s)))),
    )


def _plan(
    start: Start,
    extras: Iterable[Extra],
    *,
    tag: str,
    attempt: int = 0,
    owner: str = "",
    service: str = "jupyterlab",
    args: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    walltime_s: int = 0,
    callback: str = "",
    resources: Resources | None = None,
    gate: GatePort | None = None,
    limits: LaunchLimits | None = None,
) -> LaunchPlan:
    """Later ones win: the service's own variables, then those of what was ticked, then those of the start."""
    modules, variables = [*start.modules], {**start.environment}
    options: list[str] = []
    for extra in extras:
        modules += [module for module in extra.modules if module not in modules]
        variables |= extra.environment
        options += extra.args
    variables |= environment or {}
    return LaunchPlan(
        tag=tag,
        attempt=attempt,
        owner=owner,
        command=start.command,
        service=service,
        args=(*options, *args),
        modules=tuple(modules),
        # A shell has to read these, so their words are quoted; they are the operator's.
        setup=tuple(shlex.join(words) for words in start.setup),
        environment=tuple(variables.items()),
        directory=start.directory,
        walltime_s=walltime_s,
        callback=callback,
        resources=resources or Resources(),
        gate=gate or GatePort(),
        lab=Lab(start.listen, start.probe_path),
        limits=limits or LaunchLimits(),
    )


def _visible(owner: str) -> str:
    """The name as far as a line of text can show it; nothing depends on it."""
    return "".join(char if char.isprintable() else "?" for char in owner)[:_LONGEST_OWNER]


@frozen
class _Asked:
    """The option pairs of a session, sorted by what they are."""

    single: dict[str, str] = field(factory=dict)
    many: dict[str, list[str]] = field(factory=lambda: {key: [] for key in _MANY})
    environment: dict[str, str] = field(factory=dict)
    problems: list[Problem] = field(factory=list)

    @classmethod
    def read(cls, pairs: Iterable[tuple[str, str]]) -> "_Asked":
        asked = cls()
        for key, value in pairs:
            asked.take(key, value)
        return asked

    def take(self, key: str, value: str) -> None:
        if key in _MANY:
            self.many[key].append(value)
        elif key.startswith(VARIABLE):
            self.environment[key.removeprefix(VARIABLE)] = value
        elif key not in _SINGLE:
            self.problems.append(Problem("options", "has an unknown key", "one of " + ", ".join((*_SINGLE, *_MANY))))
        elif key in self.single:
            self.problems.append(Problem(f"options.{key}", "is there twice", "once"))
        else:
            self.single[key] = value

    def extras(self, service: Service) -> Iterator[Extra]:
        """What was ticked. Something that is not configured any more is a problem: the user would miss it."""
        for key, known in ((KERNEL, service.kernels), (EXTENSION, service.extensions)):
            for name in self.many[key]:
                if name in known:
                    yield known[name]
                else:
                    self.problems.append(Problem(f"options.{key}", "is not configured", "one that is"))

    def resources(self, spec: SessionSpec) -> Resources:
        login = self.single.get(LOGIN) == "yes"
        return Resources(
            nodes=spec.nodes,
            cores=self._number(CORES),
            memory_mib=self._number(MEMORY),
            gpus=self._number(GPUS),
            account=self.single.get(PROJECT, ""),
            # A login node is no queue that a batch system knows.
            partition="" if login else spec.partition,
            reservation=self.single.get(RESERVATION, ""),
        )

    def _number(self, key: str) -> int | None:
        text = self.single.get(key)
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,12}", text):
            self.problems.append(Problem(f"options.{key}", "is no whole number", "a whole number"))
            return None
        return int(text)


# What an operator wrote ------------------------------------------------------------------------------------------


def start_problems(start: Start, extras: Iterable[Extra] = ()) -> tuple[Problem, ...]:
    """Why no plan could be made from this start, whatever users choose; empty if it can."""
    try:
        _plan(start, extras, tag="m")
    except PlanError as error:
        return error.problems
    return ()


def gate_problems(gate: GatePort) -> tuple[Problem, ...]:
    """Why launchers could not listen there; empty if they can."""
    try:
        _plan(Start(("lab", "{socket}")), (), tag="m", gate=gate)
    except PlanError as error:
        return error.problems
    return ()
