"""
What the launchers of running jobs say about themselves: boot steps, and the last lines of the lab.

A report is one remote call, so it is asked for only while somebody looks at a page, never twice at once, and not more
often than it is worth. What is known is answered at once; a newer report makes the pages look again.
"""

import asyncio
import logging
import time

from attrs import define, evolve, field, frozen

from moorage.core.model import Connecting, Degraded, Ready, Session, SessionId, Starting
from moorage.ports.errors import PortError, StoreError
from moorage.ports.sessions import JobReport

from .changes import Changes
from .service import Service

log = logging.getLogger(__name__)

BOOTING_S = 3.0
"""While a lab comes up, every few seconds tells something."""
RUNNING_S = 60.0
READING_S = 5.0
"""For a page that shows nothing but this session."""
MOST_AT_ONCE = 8
MOST_KEPT = 2_000
LINE_CHARS = 200


@frozen
class Kept:
    """A report, and when it was asked for, on the monotonic clock."""

    report: JobReport | None
    asked_at: float


@define(eq=False)
class Reports:
    """The last report of each session that somebody looks at."""

    changes: Changes
    _kept: dict[SessionId, Kept] = field(factory=dict)
    _asking: dict[SessionId, "asyncio.Task[None]"] = field(factory=dict)

    def of(self, service: Service, session: Session, reading: bool = False) -> JobReport | None:
        """
        What is known now. If that is old, it is asked for anew and the owner's pages are told of what is new.

        Args:
            reading: Somebody has the page of this very session open.
        """
        state = session.state
        if not isinstance(state, Starting | Connecting | Ready | Degraded):
            self._kept.pop(session.id, None)
            return None
        kept = self._kept.get(session.id)
        worth_s = BOOTING_S if isinstance(state, Starting | Connecting) else READING_S if reading else RUNNING_S
        old = kept is None or time.monotonic() - kept.asked_at >= worth_s
        if old and session.id not in self._asking and len(self._asking) < MOST_AT_ONCE:
            task = asyncio.ensure_future(self._ask(service, session))
            self._asking[session.id] = task
            task.add_done_callback(lambda _task: self._asking.pop(session.id, None))
        return kept.report if kept is not None else None

    async def _ask(self, service: Service, session: Session) -> None:
        before = self._kept.pop(session.id, Kept(None, 0.0))
        now = evolve(before, asked_at=time.monotonic())
        self._keep(session.id, now)
        try:
            report = await service.sessions.job_report(session.id)
        except (PortError, StoreError, KeyError) as error:
            log.debug("session %s: no report of its launcher: %s", session.id, error)
            return
        except Exception:
            log.exception("session %s: its launcher's report", session.id)
            return
        if report != before.report:
            self._keep(session.id, evolve(now, report=report))
            self.changes.tell(session.spec.key.owner)

    def _keep(self, session: SessionId, kept: Kept) -> None:
        self._kept[session] = kept
        while len(self._kept) > MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def last_line(lines: tuple[str, ...] | list[str]) -> str:
    """The last line that says something, as it may be shown in a table."""
    for line in reversed(lines):
        shown = "".join(char for char in line if char.isprintable()).strip()
        if shown:
            return shown[:LINE_CHARS]
    return ""
