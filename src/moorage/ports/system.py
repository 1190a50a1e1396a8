"""A place that runs jobs."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from attrs import frozen

from moorage.core.model import JobId, Observation, Owner, SessionSpec, Sighting, Tag


@frozen
class Handle:
    """A job and on whose behalf to speak about it."""

    owner: Owner
    tag: Tag
    job: JobId


class System(Protocol):
    """
    One system. Every method may raise any `PortError`; the docstrings say what else is true then.

    Methods hold nothing between calls: any process may make the next one. They may be cancelled at any await; what
    was asked may then have happened.
    """

    def account(self, owner: Owner) -> str:
        """
        The account on the system that acts for this person. No IO.

        Lookups on behalf of people with the same account see the same jobs, so one of them is enough.
        """
        ...

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        """
        Create the job of one attempt; it carries `tag` wherever the system can show it again.

        After a normal return there is exactly one job more, and `find(tag)` shows it at the latest after the system's
        visibility horizon. After `Refused`, `Unreachable`, `Overloaded`, `Unauthorised` there is none. After
        `Unanswered`, `Malformed` or a cancellation there may be one.
        """
        ...

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        """
        Every job whose tag begins with `tag`, living or not, as far as `owner`'s account can see.

        The answer is complete (all pages) and was given to checked credentials; if either is not certain it raises.
        An empty answer is therefore evidence of absence, for jobs created a visibility horizon ago.
        """
        ...

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        """
        Ask about all living jobs of the system at once.

        Args:
            jobs: At least one, without duplicates.

        Returns:
            At most one entry per job asked for; a missing one is doubt. `Gone` only if the system said so about this
            very job; a job missing from a listing is `Doubt(NOT_LISTED)`. One bad entry never spoils the others.

        Raises:
            PortError: Nothing is known about any of them.
        """
        ...

    async def cancel(self, job: Handle) -> Observation:
        """
        Ask for the end of a job; again is harmless.

        Returns:
            What the system says about the job afterwards: `Alive` if it will end, `Gone` if it is over. Neither
            promises anything about later readings.
        """
        ...

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        """
        The last `limit` bytes of a file in the job's directory; `None` if there is no such file (yet).

        Args:
            name: One of the names the launcher writes; never a path.
        """
        ...

    async def remove(self, job: Handle) -> None:
        """Remove the directory of a job that is over and, where the system keeps one, its record. Again is harmless."""
        ...


@runtime_checkable
class Pushing(Protocol):
    """A system that can also call. Pushes are hints: they make the observer ask earlier and carry no news."""

    def watch(self) -> AsyncIterator[JobId]:
        """Jobs that something happened to. May lose, repeat, reorder and invent; ends or raises at any time."""
        ...


@frozen
class Load:
    """How full a partition is: its nodes, those that are free now, and whether it takes jobs at all."""

    nodes: int
    free: int
    is_up: bool = True


@runtime_checkable
class Measured(Protocol):
    """A system that also tells how full it is. For people who choose; nothing is decided by it."""

    async def load(self, owner: Owner) -> Mapping[str, Load]:
        """By partition, as the person's account sees it. May raise any `PortError`."""
        ...
