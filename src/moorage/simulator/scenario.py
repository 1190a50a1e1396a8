"""
Scenarios: which systems there are, who comes when and stays how long, and what goes wrong.

Read with the machinery of the configuration: frozen classes, every mistake at once with its file and line.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from attrs import field, frozen, validators

from moorage.config import Kinds, Misfit, Seconds, Text, Words, doc
from moorage.config.classes import shape_of
from moorage.config.document import read
from moorage.config.model import Name, TimeoutOverrides
from moorage.config.problems import Report
from moorage.config.shapes import Definitions, Place
from moorage.core.limits import Limits
from moorage.core.timeouts import Timeouts

from .faults import CATALOGUE
from .storms import STORMS, describe

SHIPPED = Path(__file__).parent / "scenarios"
"""Scenarios that come with the package, found by their name."""

# Without the type these would be checks of whole numbers only.
_positive: Any = validators.gt(0)
_natural: Any = validators.ge(0)
_some: Any = validators.min_len(1)
_share: Any = validators.and_(_natural, validators.le(1))

KindName = Annotated[
    str,
    Words(
        {
            **{kind.id: "every place at which it strikes" for kind in CATALOGUE},
            **{kind.name: kind.says for kind in CATALOGUE},
        }
    ),
]
StormName = Annotated[str, Words({name: describe(name) for name in STORMS})]
Rates = Mapping[KindName, float]
ScenarioName = Annotated[str, Text(r"[a-z0-9][a-z0-9-]{0,60}", "a name of lower-case letters, digits and hyphens")]

_rates = validators.deep_mapping(key_validator=validators.instance_of(str), value_validator=_share)


@frozen(kw_only=True)
class SystemScenario:
    """A simulated system."""

    nodes: int = field(default=64, validator=validators.ge(1), metadata=doc("nodes that jobs can have"))
    boot: Seconds = field(default=12.0, validator=_positive, metadata=doc("from a job's start to its launcher, median"))
    lab: Seconds = field(default=4.0, validator=_positive, metadata=doc("from the first admission to the lab, median"))
    answers_after: Seconds = field(default=0.06, validator=_positive, metadata=doc("how long a call takes at most"))
    schedules_every: Seconds = field(default=1.0, validator=_positive, metadata=doc("from a change to the next pass"))
    max_walltime: Seconds = field(default=86_400.0, validator=_positive, metadata=doc("longest walltime of a job"))
    pushes: bool = field(default=False, metadata=doc("whether it also calls when something happened to a job"))
    weight: float = field(default=1.0, validator=_natural, metadata=doc("how many of the people choose it, relatively"))
    timeouts: TimeoutOverrides = field(factory=dict, metadata=doc("durations that differ on this system"))


@frozen(kw_only=True)
class Burst:
    """Many come at once."""

    kind: Literal["burst"] = field(metadata=doc("burst: many come at once"))
    people: int = field(validator=validators.ge(1), metadata=doc("how many"))
    at: Seconds = field(default=0.0, validator=_natural, metadata=doc("when the first may come"))
    within: Seconds = field(default=600.0, validator=_positive, metadata=doc("in how long a time all of them come"))


@frozen(kw_only=True)
class Poisson:
    """People come independently of each other."""

    kind: Literal["poisson"] = field(metadata=doc("poisson: people come independently of each other"))
    per_hour: float = field(validator=_positive, metadata=doc("how many in an hour, on average"))
    begins: Seconds = field(default=0.0, validator=_natural, metadata=doc("from when on"))
    lasts: Seconds | None = field(default=None, metadata=doc("for how long; without it, to the end"))


@frozen(kw_only=True)
class WorkingDay:
    """A day's people: most in the morning, a second wave after lunch."""

    kind: Literal["working-day"] = field(metadata=doc("working-day: most in the morning, a second wave after lunch"))
    people: int = field(validator=validators.ge(1), metadata=doc("how many in the whole day"))
    begins: Seconds = field(default=0.0, validator=_natural, metadata=doc("when the day begins"))
    lasts: Seconds = field(default=36_000.0, validator=_positive, metadata=doc("how long the day is"))


@frozen(kw_only=True)
class Stays:
    """How long sessions are used."""

    median: Seconds = field(default=5_400.0, validator=_positive, metadata=doc("half of them are used longer"))
    spread: float = field(default=1.8, validator=validators.ge(1), metadata=doc("two thirds are within this factor"))
    left_open: float = field(default=0.2, validator=_share, metadata=doc("share that nobody stops: the walltime does"))
    walltime: Seconds = field(default=14_400.0, validator=_positive, metadata=doc("walltime that is asked for"))
    patience: Seconds = field(default=7_200.0, validator=_positive, metadata=doc("how long people wait for a start"))


@frozen(kw_only=True)
class Storm:
    """A whole schedule of trouble with a name."""

    name: StormName = field(metadata=doc("which one"))
    at: Seconds = field(metadata=doc("when it begins"))


@frozen(kw_only=True)
class Scenario:
    """A day, or an hour, in the life of an installation."""

    name: ScenarioName = field(metadata=doc("its name"))
    description: str = field(default="", metadata=doc("what it shows"))
    lasts: Seconds = field(validator=_positive, metadata=doc("how long people come and things go wrong"))
    systems: Mapping[Name, SystemScenario] = field(validator=_some, metadata=doc("the systems there are"))
    arrivals: tuple[Burst | Poisson | WorkingDay, ...] = field(validator=_some, metadata=doc("who comes when"))
    stays: Stays = field(factory=Stays, metadata=doc("how long sessions are used"))
    limits: Limits = field(factory=Limits, metadata=doc("sessions that may be held at once"))
    faults: Rates = field(factory=dict, validator=_rates, metadata=doc("probability of a fault per opportunity"))
    storms: tuple[Storm, ...] = field(default=(), metadata=doc("schedules of trouble"))

    def __attrs_post_init__(self) -> None:
        for storm in self.storms:
            if storm.at > self.lasts:
                raise Misfit("storms", f"beginnings before the end at {self.lasts:g} s")
        if not any(system.weight for system in self.systems.values()):
            raise Misfit("systems", "at least one with a weight above 0")

    def timeouts(self, name: str) -> Timeouts:
        """The table of one system."""
        overrides = self.systems[name].timeouts  # type: ignore[index]  # names are strings in scenarios
        return Timeouts().override({f"{key}_s": value for key, value in overrides.items()})


@frozen(kw_only=True)
class FaultFile:
    """What goes wrong, apart from a scenario."""

    faults: Rates = field(factory=dict, validator=_rates, metadata=doc("probability of a fault per opportunity"))
    storms: tuple[Storm, ...] = field(default=(), metadata=doc("schedules of trouble"))


def shipped() -> list[str]:
    """Names of the scenarios that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def load(path_or_name: str | Path) -> Scenario:
    """
    Read a scenario from a file, or one that comes with the package by its name.

    Raises:
        ConfigError: With all mistakes, each with its file and line; also if there is no such scenario.
    """
    path = Path(path_or_name)
    if not path.exists() and re.fullmatch(r"[a-z0-9-]+", str(path_or_name)):
        path = SHIPPED / f"{path_or_name}.yaml"
    scenario = _read(path, Scenario)
    assert isinstance(scenario, Scenario)
    return scenario


def load_faults(path: str | Path) -> FaultFile:
    """Read what goes wrong from a file. Raises `ConfigError`."""
    found = _read(Path(path), FaultFile)
    assert isinstance(found, FaultFile)
    return found


def _read(path: Path, cls: type) -> Any:
    report = Report()
    tree = read(path, report)
    value = shape_of(cls).read(tree, Place(report, Kinds()))
    report.close()
    return value


def schema() -> dict[str, Any]:
    """JSON Schema of scenarios, for editors."""
    definitions = Definitions(Kinds())
    root = shape_of(Scenario).schema(definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions.schemas}


__all__ = ["Scenario", "load", "load_faults", "schema", "shipped"]
