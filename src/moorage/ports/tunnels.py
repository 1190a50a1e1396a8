"""Paths from the Hub's machine to the jobs; answered by the relay."""

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen, validators

from moorage.core.model import Endpoint, JobId, Route, SessionId, SessionSpec


@frozen
class PathReport:
    """
    What the relay knows about one path by itself.

    Args:
        good_age_s: Seconds since a request last went end to end; `None` if none ever did.
        lost: The relay knows that nothing gets through now.

    Raises:
        TypeError: From something of another type: a broken relay must not end the check of all paths.
    """

    good_age_s: float | None = field(validator=validators.optional(validators.instance_of((int, float))))
    lost: bool = field(default=False, validator=validators.instance_of(bool))
    note: str = field(default="", validator=validators.instance_of(str))


@frozen
class ProbeResult:
    """
    Whether a request went end to end and the far side proved that it is this session's launcher.

    Args:
        proven: The far side proved itself; if the probe is not good, only its lab does not answer yet.
    """

    good: bool
    note: str = ""
    proven: bool = False


class Tunnels(Protocol):
    """At most one path per session."""

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        """
        Have a listener that leads to `endpoint`, and have the job's launcher start its lab as soon as it is reached.

        `spec`, `attempt` and `job` make the handle of the job (`ports.system.Handle`), which a dialer that goes
        through the job's system needs.

        After a normal return there is one, at an address that no other session has had within the quarantine time.
        Again with the same endpoint returns the same route; with another endpoint the old path is gone. After an error
        there may be one.
        """
        ...

    async def probe(self, session: SessionId) -> ProbeResult:
        """Send one request through the very address that `open` returned, with a deadline."""
        ...

    async def close(self, session: SessionId) -> None:
        """Have no listener; again is harmless. After an error there may still be one."""
        ...

    async def list(self) -> Mapping[SessionId, PathReport]:
        """Every path there is. One call for all sessions."""
        ...
