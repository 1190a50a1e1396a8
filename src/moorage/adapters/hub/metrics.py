"""
Figures for Prometheus, shown by the Hub's own `/hub/metrics` beside the Hub's.

Labels are bounded: systems are configured, states and causes are closed lists. No label names a person or a session.
"""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from moorage.core.model import Cause, Session, SessionSpec
from moorage.core.progress import progress_of

from .service import Service

SESSIONS = Gauge("moorage_sessions", "Sessions that are not over, by system and state.", ["system", "state"])
READY = Histogram(
    "moorage_ready_seconds",
    "From asking for a session to a probe through its path, queue included.",
    ["system"],
    buckets=(0.5, 1, 2, 5, 10, 20, 40, 60, 120, 300, 600, 1800, 3600, 4 * 3600, 24 * 3600),
)
ENDED = Counter("moorage_ended_total", "Sessions that ended, by system and cause.", ["system", "cause"])
RESIDUE = Gauge("moorage_residue", "Things that are left of sessions and still being removed, by kind.", ["kind"])
BREAKER = Gauge("moorage_breaker_open", "1 while a system takes no jobs because it failed too often.", ["system"])
CALLS = Gauge("moorage_calls", "Calls to a system that run now, or wait for a place.", ["system", "what"])


def became_ready(spec: SessionSpec, now: int) -> None:
    """A session was published."""
    READY.labels(spec.system).observe(max(0, now - spec.asked_at) / 1000)


def ended(spec: SessionSpec, cause: Cause) -> None:
    ENDED.labels(spec.system, cause.value).inc()


def refresh(service: Service, sessions: Iterable[Session]) -> None:
    """Count the sessions that are not over, and look at the systems of this moment."""
    _count(sessions)
    for row in service.operations.systems() if service.operations else ():
        name = str(row["name"])
        BREAKER.labels(name).set(row.get("breaker") == "open")
        CALLS.labels(name, "running").set(row.get("calls", 0))
        CALLS.labels(name, "waiting").set(row.get("waiting", 0))


def _count(sessions: Iterable[Session]) -> None:
    states, kinds = Tally[tuple[str, str]](), Tally[str]()
    for session in sessions:
        states[str(session.spec.system), progress_of(session.state).state] += 1
        kinds.update(left.kind.value for left in session.residue)
    # A combination that is gone would otherwise keep its last value.
    SESSIONS.clear()
    RESIDUE.clear()
    for labels, count in states.items():
        SESSIONS.labels(*labels).set(count)
    for kind, count in kinds.items():
        RESIDUE.labels(kind).set(count)
