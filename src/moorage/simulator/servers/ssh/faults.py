"""
What goes wrong, as data: rules that match commands, connections, files and forwards.

A rule is a mapping. `fault` takes a row of the catalogue below (with `variant` where it has several) and every other
key overrides; or `do` says directly what happens:

    do           one of `verdicts`
    on           where: names of Slurm commands, or exec connect login session sftp forward stream cluster, or *
    skip, times  let so many matching things pass first; fire at most so often
    probability  0 to 1, drawn from the seeded generator
    since_s, until_s   window, in seconds since the rule was added
    ...          arguments of the verdict: text status delay_s after_bytes bytes_per_s

    faults: [{fault: F-S8, times: 3}, {do: fail, on: [squeue], text: "...", status: 1}]
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cattrs
import yaml
from attrs import Factory, define, field, frozen, validators
from cattrs.errors import BaseValidationError

from .config import ConfigError, told

verdicts: Mapping[str, str] = {
    "fail": "a command does nothing, prints `text` to standard error and ends with `status`",
    "fail-after": "the same after the command has done its work",
    "print": "a command prints `text` before its output",
    "silent": "a command does its work and prints nothing",
    "pretend": "a command does nothing, prints nothing and ends with 0",
    "cut": "of a command's output only the first half arrives",
    "columns": "squeue prints its default columns, whatever it was asked for",
    "late": "squeue does not show jobs younger than `delay_s`",
    "forget": "squeue and scontrol do not know any job",
    "hang": "a command is not answered",
    "delay": "a command waits for `delay_s`",
    "disconnect": "the connection ends before a command is run",
    "disconnect-after": "the command is run, and the connection ends before its answer",
    "refuse": "a connection is closed at once, or a channel or forward is not opened",
    "drop": "a connection ends during the key exchange",
    "deny": "a login with a good key fails",
    "other-key": "the server shows another host key",
    "stall": "after `after_bytes` nothing moves on the connection any more, and it stays open",
    "cut-stream": "after `after_bytes` the connection ends",
    "slow": "`bytes_per_s` move on the connection",
    "forbid": "a forward is not permitted",
    "close": "a forward is accepted and closed at once",
    "unasked": "the server opens channels and sends requests that nobody asked for",
    "requeue": "jobs that run for `delay_s` are put back into the queue",
    "node-fail": "nodes fail whose jobs run for `delay_s`",
    "freeze": "processes of jobs that run for `delay_s` stop without ending",
    "walltime": "jobs get a walltime of `delay_s`",
    "configure": "jobs configure for `delay_s`",
    "complete": "jobs need `delay_s` to end",
    "deaf": "SIGTERM does not reach jobs",
    "hold": "jobs are held when they are submitted",
}

_SLURM = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr")
places = frozenset((*_SLURM, "exec", "connect", "login", "session", "sftp", "forward", "stream", "cluster", "*"))

_TIMED_OUT = "Unable to contact slurm controller (connect failure)"


def _fail(on: Sequence[str], text: str, status: int = 1, do: str = "fail") -> dict[str, Any]:
    return {"do": do, "on": list(on), "text": text, "status": status}


_QUESTIONS = ("squeue", "scontrol", "sinfo", "sacct")

catalogue: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "F-S2": {"requeue": {"do": "requeue", "on": ["cluster"], "delay_s": 1.0, "times": 1}},
    "F-S4": {
        "node-fail": {"do": "node-fail", "on": ["cluster"], "delay_s": 1.0, "times": 1},
        "freeze": {"do": "freeze", "on": ["cluster"], "delay_s": 1.0, "times": 1},
    },
    "F-S5": {"walltime": {"do": "walltime", "on": ["cluster"], "delay_s": 2.0}},
    "F-S6": {"configure": {"do": "configure", "on": ["cluster"], "delay_s": 86_400.0}},
    "F-S7": {"complete": {"do": "complete", "on": ["cluster"], "delay_s": 3_600.0}},
    "F-S8": {
        "connect": _fail(_QUESTIONS, f"slurm_load_jobs error: {_TIMED_OUT}"),
        "timeout": _fail(_QUESTIONS, "slurm_load_jobs error: Socket timed out on send/recv operation"),
        "standby": _fail(_QUESTIONS, "slurm_load_jobs error: Slurm backup controller in standby mode"),
        "forget": {"do": "forget", "on": ["squeue", "scontrol"]},
        "hang": {"do": "hang", "on": list(_QUESTIONS)},
        "submit-timeout": _fail(
            ["sbatch"],
            "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
            do="fail-after",
        ),
        "submit-connect": _fail(["sbatch"], f"sbatch: error: Batch job submission failed: {_TIMED_OUT}"),
    },
    "F-S10": {
        "warning": {"do": "print", "on": ["sbatch"], "text": "sbatch: Warning: the project has little budget left"},
        "silent": {"do": "silent", "on": ["sbatch"]},
        "pretend": {"do": "pretend", "on": ["sbatch"]},
        "fail-after": _fail(["sbatch"], "sbatch: error: slurm_receive_msg: no answer", do="fail-after"),
    },
    "F-S11": {
        "cut": {"do": "cut", "on": ["squeue"]},
        "columns": {"do": "columns", "on": ["squeue"]},
        "greeting": {"do": "print", "on": ["squeue"], "text": "Willkommen auf dem Rechner"},
        "late": {"do": "late", "on": ["squeue"], "delay_s": 60.0},
    },
    "F-S12": {
        "queue": {"do": "forget", "on": ["squeue"]},
        "accounting": {"do": "late", "on": ["sacct"], "delay_s": 60.0},
    },
    "F-S13": {"hold": {"do": "hold", "on": ["cluster"]}},
    "F-S15": {"deaf": {"do": "deaf", "on": ["cluster"]}},
    "F-T1": {"refuse": {"do": "refuse", "on": ["connect"]}},
    "F-T2": {"deny": {"do": "deny", "on": ["login"]}},
    "F-T3": {"other-key": {"do": "other-key", "on": ["connect"]}},
    "F-T4": {"banner": {"do": "refuse", "on": ["connect"]}, "exchange": {"do": "drop", "on": ["connect"]}},
    "F-T5": {
        "forbid": {"do": "forbid", "on": ["forward"]},
        "refuse": {"do": "refuse", "on": ["forward"]},
        "sessions": {"do": "refuse", "on": ["session"]},
    },
    "F-T6": {"stall": {"do": "stall", "on": ["stream"], "after_bytes": 20_000}},
    "F-T7": {"cut": {"do": "cut-stream", "on": ["stream"], "after_bytes": 65_535}},
    "F-T8": {"slow": {"do": "slow", "on": ["stream"], "bytes_per_s": 1_000.0}},
    "F-T12": {"close": {"do": "close", "on": ["forward"]}},
    "F-T17": {"unasked": {"do": "unasked", "on": ["session"]}},
}
"""
The rows of the table of faults that a login node can show; the first variant is the default.

F-S1 (a queue for days) is a full cluster, F-S3 (preemption) is a partition with `preempt`, F-S9 (ids used again) and
F-S14 (arrays) are for parsers; F-T9 is a server that ends and begins again, F-T10 to F-T16 except F-T12 happen on the
other side.
"""


def _known(_rule: object, _attribute: object, places_: Sequence[str]) -> None:
    if unknown := [place for place in places_ if place not in places]:
        raise ValueError(f"on: {unknown[0]!r:.40} is none of {', '.join(sorted(places))}")


@frozen
class Rule:
    do: str = field(validator=validators.in_(tuple(verdicts)))
    on: Sequence[str] = field(default=("*",), validator=_known)
    fault: str = ""
    skip: int = 0
    times: int | None = None
    probability: float = field(default=1.0, validator=[validators.ge(0), validators.le(1)])
    since_s: float = 0.0
    until_s: float | None = None
    text: str = ""
    status: int = 1
    delay_s: float = 1.0
    after_bytes: int = 0
    bytes_per_s: float = 1_000.0


def rule_of(data: Mapping[str, Any]) -> Rule:
    """
    A rule from plain data.

    Raises:
        ConfigError: Names what is wrong.
    """
    values = dict(data)
    fault, variant = str(values.get("fault", "")), values.pop("variant", None)
    if fault:
        if fault not in catalogue:
            raise ConfigError(f"fault: {fault!r:.20} is none of {', '.join(catalogue)}")
        variants = catalogue[fault]
        if variant is not None and variant not in variants:
            raise ConfigError(f"variant: {fault} has {', '.join(variants)}")
        values = {**variants[variant or next(iter(variants))], **values}
    try:
        return cattrs.Converter(forbid_extra_keys=True).structure(values, Rule)
    except (BaseValidationError, TypeError, ValueError) as error:
        raise ConfigError(told(error)) from error


def load(path: Path) -> tuple[list[Rule], int]:
    """Rules and the seed from a YAML or JSON file: ``{faults: [...], seed: 0}``."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [rule_of(each) for each in data["faults"]], int(data.get("seed", 0))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


@define(eq=False)
class Faults:
    """The rules in force, and how often each fired. Thread-safe."""

    seed: int = 0
    now: Callable[[], float] = time.monotonic
    fired: Counter[str] = Factory(Counter)
    _rules: list[tuple[Rule, float, list[int]]] = field(init=False, factory=list)
    _random: random.Random = field(init=False)
    _lock: threading.Lock = field(init=False, factory=threading.Lock)

    def __attrs_post_init__(self) -> None:
        self._random = random.Random(self.seed)  # noqa: S311 (chance, not a secret)

    def add(self, *rules: Rule | Mapping[str, Any]) -> None:
        with self._lock:
            for rule in rules:
                made = rule if isinstance(rule, Rule) else rule_of(rule)
                self._rules.append((made, self.now(), [0, 0]))

    def clear(self) -> None:
        """The world is healed."""
        with self._lock:
            self._rules.clear()

    def draw(self, place: str, *more: str) -> tuple[Rule, ...]:
        """The rules that fire for something that happens at these places now."""
        with self._lock:
            return tuple(rule for rule, since, seen in self._rules if self._fires(rule, since, seen, (place, *more)))

    def in_force(self, place: str) -> tuple[Rule, ...]:
        """The rules for a place, without firing them."""
        with self._lock:
            return tuple(
                rule
                for rule, since, seen in self._rules
                if self._matches(rule, since, (place,)) and (rule.times is None or seen[1] < rule.times)
            )

    def holds(self, rule: Rule) -> bool:
        """Whether the rule is there and in its window, however often it fired."""
        with self._lock:
            return any(each is rule and self._matches(rule, since, rule.on) for each, since, _ in self._rules)

    def left(self, rule: Rule) -> int:
        """How often a rule may still fire."""
        with self._lock:
            return next(((rule.times or 0) - seen[1] for each, _, seen in self._rules if each is rule), 0)

    def count(self, rule: Rule) -> None:
        """A rule that was found by `in_force` has had its effect once."""
        with self._lock:
            for each, _, seen in self._rules:
                if each is rule:
                    seen[1] += 1
                    self.fired[rule.fault or rule.do] += 1

    def _matches(self, rule: Rule, since: float, where: Iterable[str]) -> bool:
        age = self.now() - since
        in_window = rule.since_s <= age and (rule.until_s is None or age < rule.until_s)
        return in_window and any(place.partition(".")[0] in rule.on or "*" in rule.on for place in where)

    def _fires(self, rule: Rule, since: float, seen: list[int], where: Iterable[str]) -> bool:
        if not self._matches(rule, since, where):
            return False
        seen[0] += 1
        if seen[0] <= rule.skip or (rule.times is not None and seen[1] >= rule.times):
            return False
        if rule.probability < 1 and self._random.random() >= rule.probability:
            return False
        seen[1] += 1
        self.fired[rule.fault or rule.do] += 1
        return True
