"""What a run of a scenario comes to: counts, times, faults, and the story of a broken invariant."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from moorage.core.events import Event
from moorage.core.model import Connecting, Ended, Instant, Queued, Ready, Session, SessionId, Starting, SystemName


@frozen
class Times:
    """Seconds: median, 95th percentile, longest; `None` if there was nothing to measure."""

    count: int = 0
    median: float | None = None
    p95: float | None = None
    longest: float | None = None

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Times":
        ordered = sorted(seconds)
        if not ordered:
            return cls()
        last = len(ordered) - 1
        return cls(len(ordered), ordered[last // 2], ordered[-(-last * 95 // 100)], ordered[-1])

    def as_dict(self) -> dict[str, float | int | None]:
        return {"count": self.count, "median_s": self.median, "p95_s": self.p95, "max_s": self.longest}


@frozen
class Snapshot:
    """How a run is going, for people who watch it."""

    virtual_s: float
    lasts_s: float
    asked: int
    states: Mapping[str, int]
    systems: Mapping[str, Mapping[str, int]]
    faults_fired: int
    checked: int
    healed: bool
    broken: str = ""
    """The invariant that did not hold; a shorter story of it is being looked for."""


@frozen
class Broken:
    """An invariant that did not hold: which, in one sentence, when, and the shortest story found that shows it."""

    invariant: str
    sentence: str
    at_s: float = 0.0
    story: tuple[str, ...] = ()


@define
class Tally:
    """Counts while a run goes on."""

    asked: int = 0
    ready: int = 0
    causes: Counter[str] = field(factory=Counter)
    places: dict[str, Counter[str]] = field(factory=dict)
    waits: list[float] = field(factory=list)
    """From the wish to the job running: limits, breakers and the queue."""
    starts: list[float] = field(factory=list)
    """From the job running to the lab ready."""
    ready_s: float = 0.0
    _began_at: dict[SessionId, Instant] = field(factory=dict)
    _ready_at: dict[SessionId, Instant] = field(factory=dict)

    def watch(self, before: Session | None, _event: Event | None, session: Session, at: Instant) -> None:
        """A session was saved."""
        state, old = session.state, None if before is None else before.state
        places = self.places.setdefault(session.spec.system, Counter())
        name, past = type(state).__name__, type(old).__name__
        if name != past:
            places[name] += 1
            if before is not None:
                places[past] -= 1
        if before is None:
            self.asked += 1
        elif isinstance(state, Starting) and isinstance(old, Queued) and session.id not in self._began_at:
            self._began_at[session.id] = at
            self.waits.append((at - session.spec.asked_at) / 1000)
        elif isinstance(state, Ready) and isinstance(old, Connecting) and session.id not in self._ready_at:
            self.ready += 1
            self._ready_at[session.id] = at
            self.starts.append((at - self._began_at.get(session.id, at)) / 1000)
        elif isinstance(state, Ended) and not isinstance(old, Ended):
            self.causes[state.cause.value] += 1
            if session.id in self._ready_at:
                self.ready_s += (at - self._ready_at.pop(session.id)) / 1000
            self._began_at.pop(session.id, None)


@frozen
class Result:
    """
    One run of one scenario with one seed.

    Args:
        digest: Of everything that happened: the same for the same scenario and seed, on any machine.
        calls: Calls to systems, by system and verb.
        trace: What happened, a line each; empty unless it was asked for or an invariant broke.
    """

    scenario: str
    seed: int
    faults_from: str
    asked: int
    ready: int
    causes: Mapping[str, int]
    waits: Times
    starts: Times
    session_hours: float
    calls: Mapping[str, int]
    fired: Mapping[str, int]
    crashes: int
    checked: int
    invariants: Sequence[str]
    virtual_s: float
    real_s: float
    cpu_s: float
    callbacks: int
    digest: str
    broken: Broken | None = None
    trace: list[str] = field(factory=list)

    @property
    def remote_calls(self) -> int:
        return sum(self.calls.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for `--json`."""
        per_hour = self.remote_calls / self.session_hours if self.session_hours else None
        broken = None
        if self.broken is not None:
            broken = {
                "invariant": self.broken.invariant,
                "sentence": self.broken.sentence,
                "at_s": self.broken.at_s,
                "story": list(self.broken.story),
            }
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "faults": self.faults_from,
            "sessions": {"asked": self.asked, "ready": self.ready, "ended": dict(sorted(self.causes.items()))},
            "wait": self.waits.as_dict(),
            "start": self.starts.as_dict(),
            "session_hours": round(self.session_hours, 3),
            "remote_calls": {
                "total": self.remote_calls,
                "per_session_hour": None if per_hour is None else round(per_hour, 2),
                "by_call": dict(sorted(self.calls.items())),
            },
            "faults_fired": dict(sorted(self.fired.items())),
            "crashes": self.crashes,
            "invariants": {"checked": self.checked, "names": list(self.invariants)},
            "virtual_s": self.virtual_s,
            "real_s": round(self.real_s, 3),
            "cpu_s": round(self.cpu_s, 3),
            "callbacks": self.callbacks,
            "digest": self.digest,
            "broken": broken,
        }


__all__ = ["Broken", "Result", "Snapshot", "SystemName", "Tally", "Times"]
