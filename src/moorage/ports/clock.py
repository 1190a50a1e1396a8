"""Time and chance. Nothing else in the package reads a clock or draws a number."""

from typing import Protocol

from moorage.core.model import Instant, SessionId


class Clock(Protocol):
    """A clock that never runs backwards, also across restarts of the process: wall-clock jumps do not reach us."""

    def now(self) -> Instant:
        """Milliseconds; about those since 1970, UTC."""
        ...

    async def sleep_until(self, at: Instant) -> None:
        """Return at `at` or a little later; at once if it is past."""
        ...


class Choices(Protocol):
    """The one source of randomness."""

    def seed(self) -> int:
        """64 random bits."""
        ...

    def session_id(self) -> SessionId:
        """A new id: 26 lower-case base32 characters from 128 random bits (the last one has two zero bits)."""
        ...
