"""A circuit breaker for one kind of call to one system: pure data, time is an argument."""

from attrs import evolve, frozen

from .backoff import full_jitter_ms
from .model import FailureKind, Instant

IN_A_ROW = 5
WINDOW = 20
SHARE = 0.5

_OUTAGE = frozenset({FailureKind.UNREACHABLE, FailureKind.UNANSWERED, FailureKind.MALFORMED})
"""What says something about the system. Credentials, policy and "not so fast" do not."""


@frozen
class Breaker:
    """
    Opens after five failures in a row, or when half of the last twenty calls failed; then one call at a time tries.

    Args:
        recent: Outcomes of the last calls, oldest first; `True` is a success.
        open_until: Not before then the next call; `None` if closed.
        opened: How often in a row it opened; the pause doubles with it, from 1 s to a minute, with full jitter.
        trying: A half-open call is under way, since then.
    """

    seed: int = 0
    recent: tuple[bool, ...] = ()
    open_until: Instant | None = None
    opened: int = 0
    trying: Instant | None = None

    def places(self, now: Instant, patience_ms: int = 120_000) -> int | None:
        """How many calls may start now: `None` for any number, 0 while open, 1 when half-open."""
        if self.open_until is None:
            return None
        if now < self.open_until:
            return 0
        # A half-open call whose end nobody told us about must not keep the system closed for ever.
        return 0 if self.trying is not None and now < self.trying + patience_ms else 1

    def started(self, now: Instant) -> "Breaker":
        """A call starts; matters only when half-open."""
        return self if self.open_until is None else evolve(self, trying=now)

    def succeeded(self) -> "Breaker":
        """The system answered: closed."""
        return Breaker(self.seed, (*self.recent, True)[-WINDOW:]) if self.open_until is None else Breaker(self.seed)

    def failed(self, kind: FailureKind, now: Instant) -> "Breaker":
        """A call failed."""
        if kind not in _OUTAGE:
            return evolve(self, trying=None)
        recent = (*self.recent, False)[-WINDOW:]
        if self.open_until is not None or _too_bad(recent):
            opened = self.opened + 1
            pause_ms = 1000 + full_jitter_ms(1, 60, opened, self.seed)
            return Breaker(self.seed, recent, Instant(now + pause_ms), opened)
        return Breaker(self.seed, recent)


def _too_bad(recent: tuple[bool, ...]) -> bool:
    if len(recent) >= IN_A_ROW and not any(recent[-IN_A_ROW:]):
        return True
    return len(recent) == WINDOW and recent.count(False) >= WINDOW * SHARE
