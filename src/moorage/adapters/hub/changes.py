"""Who is told that something about somebody's sessions changed."""

import asyncio
from collections import defaultdict

from attrs import define, field

from moorage.core.model import Owner


@define(eq=False)
class Changes:
    """
    Who is told that something about somebody's sessions changed. Carries no content: listeners look for themselves.

    A listener that is slow sees one change instead of many, so nothing piles up.
    """

    _listeners: dict[Owner | None, set[asyncio.Event]] = field(factory=lambda: defaultdict(set))

    def listen(self, owner: Owner | None) -> asyncio.Event:
        """Set at every change of the owner's sessions; of everybody's for `None`. Give it back with `leave`."""
        event = asyncio.Event()
        self._listeners[owner].add(event)
        return event

    def leave(self, owner: Owner | None, event: asyncio.Event) -> None:
        self._listeners[owner].discard(event)
        if not self._listeners[owner]:
            del self._listeners[owner]

    def tell(self, owner: Owner) -> None:
        for who in (owner, None):
            for event in self._listeners.get(who, ()):
                event.set()
