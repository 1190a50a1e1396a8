"""One session's life told step by step, for examples."""

from typing import Any, TypeVar

from attrs import evolve

from moorage.core import events
from moorage.core.effects import Effect
from moorage.core.machine import Decision, begin, step
from moorage.core.model import (
    Alive,
    Endpoint,
    Instant,
    JobId,
    Owner,
    Phase,
    Route,
    SessionId,
    SessionKey,
    SessionSpec,
    State,
    SystemName,
)

START = Instant(1_700_000_000_000)
JOB = JobId("4711")
ENDPOINT = Endpoint("n17", 4000, nonce="first")
ROUTE = Route("http://127.0.0.1:20001")

Kind = TypeVar("Kind")


def a_spec(**changes: Any) -> SessionSpec:
    spec = SessionSpec(
        id=SessionId("b" * 26),
        key=SessionKey("hub", Owner("ada")),
        system=SystemName("juniper"),
        asked_at=START,
        seed=11,
        walltime_s=0,
    )
    return evolve(spec, **changes)


class Life:
    """A session and its clock. `take` hands it an event; `asked`: all effects so far; `new`: of the last event."""

    def __init__(self, **spec: Any) -> None:
        self.now = START
        self.decision: Decision = begin(a_spec(**spec))
        self.asked: list[Effect] = list(self.decision.effects)
        self.in_vain = 0

    @property
    def state(self) -> Any:
        return self.decision.session.state

    @property
    def new(self) -> list[Effect]:
        return list(self.decision.effects)

    def take(self, event: events.Event, after_s: float = 0) -> State:
        self.now = Instant(self.now + int(after_s * 1000))
        self.decision = step(self.decision.session, event, self.now)
        self.asked += self.decision.effects
        return self.decision.session.state

    def last(self, kind: type[Kind]) -> Kind:
        """The newest effect of a kind."""
        return next(effect for effect in reversed(self.asked) if isinstance(effect, kind))

    def kinds(self) -> set[str]:
        return {type(effect).__name__ for effect in self.new}

    def wake(self, after_s: float | None = None) -> State:
        """Time passes, to the planned wake-up if not told how much."""
        if after_s is None:
            self.in_vain = self.in_vain + 1 if self.decision.wake_at <= self.now else 0
            assert self.in_vain < 100, "it wants to be woken again and again, and no time passes"
            self.now = Instant(max(self.now, self.decision.wake_at))
            return self.take(events.Woke())
        return self.take(events.Woke(), after_s)

    # To a state by the usual way.

    def queued(self) -> "Life":
        self.take(events.Admitted())
        self.take(events.Submitted(1, JOB))
        return self

    def starting(self) -> "Life":
        self.queued().take(events.Observed(JOB, self.now, Alive(Phase.RUNNING, "n17")))
        return self

    def connecting(self) -> "Life":
        self.starting().take(events.EndpointRead(1, JOB, ENDPOINT))
        return self

    def ready(self) -> "Life":
        self.connecting().take(events.TunnelOpened(self.state.asked, ROUTE))
        self.take(events.Probed(self.state.asked, good=True))
        self.take(events.Published(ROUTE))
        return self

    def degraded(self) -> "Life":
        self.ready().take(events.PathDoubted("cut"))
        return self

    def seen(self, *, after_s: float = 1, **changes: Any) -> State:
        """A reading of the job; without words of its own, running on its node."""
        observation = changes.pop("observation", None) or Alive(Phase.RUNNING, "n17", **changes)
        self.now = Instant(self.now + int(after_s * 1000))
        return self.take(events.Observed(JOB, self.now, observation))
