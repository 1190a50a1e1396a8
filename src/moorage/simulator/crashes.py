"""
Where a process can be killed: five positions around each effect, made from the alphabet of effects.

A new effect without an entry in `CALLS` fails a test, so nobody can add one that is never crashed at.
"""

from collections.abc import Iterator, Mapping
from enum import Enum
from typing import get_args

from attrs import define, frozen

from moorage.core.effects import (
    Cancel,
    CloseTunnel,
    Effect,
    Find,
    OpenTunnel,
    Probe,
    Publish,
    ReadEndpoint,
    ReadLog,
    Remove,
    Report,
    Revoke,
    Submit,
    Withdraw,
)
from moorage.core.events import (
    CancelAnswered,
    EffectFailed,
    EndpointRead,
    Event,
    Found,
    LogRead,
    Probed,
    Published,
    Removed,
    Revoked,
    Submitted,
    TunnelClosed,
    TunnelOpened,
    Withdrawn,
)


class Position(Enum):
    """The five positions, by the letters of the specification."""

    BEFORE_INTENT = "a"
    BEFORE_CALL = "b"
    AFTER_CALL = "c"
    AFTER_EFFECT = "d"
    BEFORE_RESULT = "e"


CALLS: Mapping[type[Effect], tuple[str, type[Event] | None]] = {
    Submit: ("system.submit", Submitted),
    Find: ("system.find", Found),
    Cancel: ("system.cancel", CancelAnswered),
    ReadEndpoint: ("system.read", EndpointRead),
    ReadLog: ("system.read", LogRead),
    Remove: ("system.remove", Removed),
    OpenTunnel: ("tunnels.open", TunnelOpened),
    Probe: ("tunnels.probe", Probed),
    CloseTunnel: ("tunnels.close", TunnelClosed),
    Publish: ("hub.publish", Published),
    Withdraw: ("hub.withdraw", Withdrawn),
    Revoke: ("credentials.revoke", Revoked),
    Report: ("hub.report", None),
}
"""Which call an effect is, and the event of its good answer; a report has none."""


@frozen
class Crash:
    """Kill the process at this position of the n-th effect of this kind (0 is the first)."""

    effect: str
    position: Position
    nth: int = 0

    def __str__(self) -> str:
        return f"{self.effect}.{self.position.value}#{self.nth}"


def crash_points() -> Iterator[Crash]:
    """Every position of every effect there is."""
    for effect in get_args(Effect):
        for position in Position:
            if position is Position.BEFORE_RESULT and CALLS[effect][1] is None:
                continue  # no result, no position before it
            yield Crash(effect.__name__, position)


@define
class Boundary:
    """The kill that is armed, if any, and how far its counting is."""

    armed: Crash | None = None
    seen: int = 0
    hit: bool = False

    def arm(self, crash: Crash) -> None:
        self.armed, self.seen = crash, 0

    def at(self, effect: str) -> Position | None:
        """The position to kill at during this call, if it is the one."""
        armed = self.armed
        if (
            armed is None
            or armed.effect != effect
            or armed.position in (Position.BEFORE_INTENT, Position.BEFORE_RESULT)
        ):
            return None
        return armed.position if self._counts() else None

    def before_intent(self, effects: tuple[Effect, ...]) -> bool:
        """Whether to kill before these intents are saved."""
        armed = self.armed
        if armed is None or armed.position is not Position.BEFORE_INTENT:
            return False
        return any(type(effect).__name__ == armed.effect for effect in effects) and self._counts()

    def before_result(self, event: Event | None) -> bool:
        """Whether to kill before this answer is saved."""
        armed = self.armed
        if armed is None or armed.position is not Position.BEFORE_RESULT or event is None:
            return False
        return answers(event) == armed.effect and self._counts()

    def _counts(self) -> bool:
        assert self.armed is not None
        self.seen += 1
        if self.seen <= self.armed.nth:
            return False
        self.armed, self.hit = None, True
        return True


def answers(event: Event) -> str | None:
    """The effect that an event answers, if it answers one."""
    if isinstance(event, EffectFailed):
        return type(event.effect).__name__
    return _ANSWERS.get(type(event))


_ANSWERS: Mapping[type[Event], str] = {
    event: effect.__name__ for effect, (_, event) in CALLS.items() if event is not None
}
