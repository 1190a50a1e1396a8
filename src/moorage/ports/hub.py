"""JupyterHub, which asks for sessions and is told about them."""

from typing import Protocol

from moorage.core.model import Route, SessionSpec
from moorage.core.progress import Progress


class Hub(Protocol):
    """What the machine tells the Hub."""

    async def report(self, spec: SessionSpec, progress: Progress) -> None:
        """Show how far the session is. May be dropped; never blocks the session."""
        ...

    async def publish(self, spec: SessionSpec, route: Route) -> None:
        """After a normal return the Hub leads the user to `route`. Again is harmless."""
        ...

    async def withdraw(self, spec: SessionSpec) -> None:
        """After a normal return the Hub leads nobody to an address of this session. Again is harmless."""
        ...
