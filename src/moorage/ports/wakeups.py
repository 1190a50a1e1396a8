"""Who looks at which session when. Carries session ids only; the store is the truth and rebuilds a lost queue."""

from collections.abc import Awaitable, Callable
from typing import Protocol

from moorage.core.model import Instant, SessionId


class Wakeups(Protocol):
    """
    Planned wake-ups, at least once each, by anybody who runs a handler.

    Shaped so that a queue in a database fits behind it: ids in, ids out, nothing kept by the caller.
    """

    async def wake(self, session: SessionId, not_before: Instant) -> None:
        """
        Have `session` handled at `not_before` or a little later. A newer call for the same session replaces an older
        one that has not been handled; after an error the old one may still be there.
        """
        ...

    async def run(self, handler: Callable[[SessionId], Awaitable[None]]) -> None:
        """Hand out due sessions until cancelled. An exception of the handler is a bug and ends the run."""
        ...
