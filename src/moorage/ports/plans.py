"""What a job shall run. Asked by adapters of systems when they submit; the composition root answers."""

from typing import Protocol

from moorage.core.model import SessionSpec, Tag
from moorage.core.plan import Rendered


class Plans(Protocol):
    """Launch plans, made from the session, the configuration it started with, and its secrets."""

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        """
        The files and directives of one attempt: the same for the same attempt, except for their order.

        Raises:
            Refused: The options do not make a valid plan, or the service is no longer configured; names every field.
            Unreachable: Its secrets cannot be read now.
        """
        ...
