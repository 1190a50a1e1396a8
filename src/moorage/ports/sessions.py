"""The driving port: what the Hub adapter, the command line and tests call."""

from collections.abc import AsyncIterator
from typing import Protocol

from attrs import frozen

from moorage.core.model import Instant, Session, SessionId, SessionKey, SystemName
from moorage.core.progress import Progress


@frozen
class StartRequest:
    """What a start is asked with; the fields are those of `SessionSpec`."""

    key: SessionKey
    system: SystemName
    groups: tuple[str, ...] = ()
    service: str = "jupyterlab"
    partition: str = ""
    walltime_s: int = 7200
    nodes: int = 1
    options: tuple[tuple[str, str], ...] = ()


@frozen
class View:
    """A session as it is now. `place` is its place in line, 1 is next; `None` if it does not wait for a limit."""

    session: Session
    version: int
    progress: Progress
    place: int | None = None


@frozen
class Step:
    """One entry of a session's history. `position` is what to pass to `follow` to go on after it."""

    position: int
    at: Instant
    event: str
    progress: Progress


@frozen
class JobReport:
    """
    What the launcher of a job said about itself, proven to be its own words. The texts in it are foreign.

    Args:
        state: What the lab does: waiting, starting, serving, stopping, ended.
        steps: Boot steps so far, each with its time in milliseconds on the node's clock; the newest is last.
        left_s: Seconds of walltime that were left, if there is a limit.
        log: The last lines of the lab, without secrets.
    """

    state: str
    steps: tuple[tuple[str, int], ...] = ()
    left_s: int | None = None
    exit_code: int | None = None
    log: tuple[str, ...] = ()


class Sessions(Protocol):
    """Start, stop, follow and get. Cancelling a caller changes nothing about the session."""

    async def start(self, request: StartRequest) -> SessionId:
        """
        Ask for a session.

        After a normal return it is durable. A key has one session at a time: if one is up or coming up, its id is
        returned and nothing is started; if one is stopping, the new one waits for its end.

        Raises:
            Refused: No such system.
            StoreFailed: Nothing was started.
        """
        ...

    async def stop(self, session: SessionId, by: str = "user") -> None:
        """
        Ask for the end of a session; again is harmless. Returns when the wish is durable, not when it is done.

        Raises:
            KeyError: There is no such session.
        """
        ...

    async def get(self, session: SessionId) -> View:
        """
        The session as it is now. No remote call.

        Raises:
            KeyError: There is no such session.
        """
        ...

    def follow(self, session: SessionId, after: int = 0) -> AsyncIterator[Step]:
        """
        Every step after position `after`, and then each new one as it happens; ends after `Ended`.

        Raises:
            KeyError: There is no such session.
        """
        ...

    async def job_report(self, session: SessionId) -> JobReport | None:
        """
        The launcher's last report; `None` if there is no job, or no report yet.

        One remote call: for a page that somebody looks at, at a bounded rate, never for a decision.

        Raises:
            KeyError: There is no such session.
            PortError: The system does not answer, or the report is not believed.
        """
        ...
