"""The truth about sessions. What is not in the store has not been decided."""

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.model import Instant, Session, SessionId, SessionKey


@frozen
class Stored:
    """A session and its version: 1 after its creation, one more with every event."""

    session: Session
    version: int


@frozen
class Logged:
    """One entry of a session's log. `event` is `None` for the creation (version 1)."""

    version: int
    at: Instant
    event: Event | None


class Store(Protocol):
    """
    Sessions with their event logs. Every method may raise `StoreFailed`.

    Safe against several writers: the version check is the fence.
    """

    async def load(self, session: SessionId) -> Stored | None:
        """The session as last saved."""
        ...

    async def save(
        self, session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None = None
    ) -> int:
        """
        Save the session and the event that led to it, in one durable transaction.

        Args:
            event: `None` to create the session, with `expected` 0.
            expected: The version that the session was loaded with.
            limits: Checked in the same transaction if given: the session takes a place (it leaves `Waiting`).

        Returns:
            The new version, `expected + 1`.

        Raises:
            StaleVersion: Somebody else saved in between; nothing was saved.
            LimitReached: There is no place; nothing was saved.
            StoreFailed: Nothing was saved, or it is found by its version later.
        """
        ...

    async def unfinished(self) -> Sequence[Stored]:
        """Every session that is not over, oldest first."""
        ...

    async def latest(self, key: SessionKey) -> Stored | None:
        """The session of this key that was created last."""
        ...

    async def log(self, session: SessionId, after: int = 0, limit: int = 1000) -> Sequence[Logged]:
        """Entries with a version greater than `after`, in order, at most `limit`."""
        ...

    async def close(self) -> None:
        """Give back files and connections."""
        ...
