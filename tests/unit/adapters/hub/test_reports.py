"""What launchers say is asked for while somebody looks, not more often, and shown as text."""

import asyncio
from typing import Any

import pytest
from attrs import evolve
from stubworld import QUICK, until

from moorage.adapters.hub import reports as module
from moorage.adapters.hub.changes import Changes
from moorage.adapters.hub.reports import Reports, last_line
from moorage.adapters.hub.rows import report_row, session_row
from moorage.adapters.hub.texts import Texts
from moorage.core.model import (
    Endpoint,
    Instant,
    Job,
    JobId,
    Owner,
    Queued,
    Ready,
    Route,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    Starting,
    SystemName,
)
from moorage.ports.errors import Unreachable
from moorage.ports.sessions import JobReport

SPEC = SessionSpec(
    SessionId("a" * 26), SessionKey("hub", Owner("alice")), SystemName("alpha"), Instant(0), 1, timeouts=QUICK
)
JOB = Job(JobId("1"), "n1")
BOOTING = Session(SPEC, state=Starting(JOB, Instant(0), Instant(9)))
READY = evolve(BOOTING, state=Ready(JOB, Endpoint("n1", 1), Route("http://127.0.0.1:1"), Instant(0), Instant(9)))
REPORT = JobReport("serving", (("launcher", 1), ("lab-serving", 2)), 60, None, ("one", "<b>two</b>\x1b[31m", "  "))


class Service:
    """Answers with what it is told, and counts."""

    def __init__(self, said: Any) -> None:
        self.said, self.asked, self.free = said, 0, asyncio.Event()
        self.free.set()
        self.sessions = self

    async def job_report(self, session: SessionId) -> JobReport | None:
        self.asked += 1
        await self.free.wait()
        if isinstance(self.said, Exception):
            raise self.said
        said: JobReport | None = self.said
        return said


async def test_the_first_look_asks_and_the_next_one_sees() -> None:
    """The page is drawn at once; when the report is there, its owner's pages look again."""
    service, changes = Service(REPORT), Changes()
    reports, told = Reports(changes), changes.listen(Owner("alice"))
    assert reports.of(service, BOOTING) is None  # type: ignore[arg-type]
    await asyncio.wait_for(told.wait(), 5)
    assert reports.of(service, BOOTING) is REPORT  # type: ignore[arg-type]
    assert service.asked == 1


async def test_a_hundred_looks_are_one_question() -> None:
    service = Service(REPORT)
    service.free.clear()
    reports = Reports(Changes())
    for _ in range(100):
        reports.of(service, READY)  # type: ignore[arg-type]
        await asyncio.sleep(0)
    service.free.set()
    await until(lambda: not reports._asking)
    for _ in range(100):
        reports.of(service, READY)  # type: ignore[arg-type]
    assert service.asked == 1


async def test_many_sessions_are_asked_a_few_at_a_time() -> None:
    service = Service(REPORT)
    service.free.clear()
    reports = Reports(Changes())
    for number in range(100):
        reports.of(service, evolve(READY, spec=evolve(SPEC, id=SessionId(f"{number:026d}"))))  # type: ignore[arg-type]
        await asyncio.sleep(0)
    assert service.asked == module.MOST_AT_ONCE
    service.free.set()
    await until(lambda: not reports._asking)


@pytest.mark.parametrize("error", [Unreachable("the site is away"), KeyError("gone"), ZeroDivisionError("a bug")])
async def test_a_system_that_does_not_answer_leaves_what_was_known(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BOOTING_S", 0.0)
    service = Service(REPORT)
    reports = Reports(Changes())
    reports.of(service, BOOTING)  # type: ignore[arg-type]
    await until(lambda: not reports._asking)
    service.said = error
    assert reports.of(service, BOOTING) is REPORT  # type: ignore[arg-type]
    await until(lambda: not reports._asking)
    assert reports.of(service, BOOTING) is REPORT  # type: ignore[arg-type]
    await until(lambda: not reports._asking)


async def test_a_session_without_a_running_job_is_not_asked_about() -> None:
    service = Service(REPORT)
    reports = Reports(Changes())
    assert reports.of(service, evolve(BOOTING, state=Queued(JOB, Instant(0)))) is None  # type: ignore[arg-type]
    assert service.asked == 0


async def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_KEPT", 3)
    service = Service(REPORT)
    reports = Reports(Changes())
    for number in range(10):
        reports.of(service, evolve(READY, spec=evolve(SPEC, id=SessionId(f"{number:026d}"))))  # type: ignore[arg-type]
        await until(lambda: not reports._asking)
    assert len(reports._kept) == 3


def test_rows_show_the_last_line_that_says_something() -> None:
    """Control characters are gone, the rest is text for `textContent`; a megabyte is not sent."""
    assert session_row(READY, Texts("en"), REPORT)["line"] == "<b>two</b>[31m"
    assert session_row(READY, Texts("en"))["line"] == ""
    assert len(last_line(["x" * 1_000_000])) == module.LINE_CHARS
    assert last_line(["", "\x00"]) == ""


def test_boot_steps_are_told_in_the_language_of_the_page() -> None:
    """The launcher's own by our texts, a site's as the site names them; a flood of them is cut."""
    shown = report_row(evolve(REPORT, steps=(("launcher", 1), ("loading modules", 2))), Texts("de"))
    assert [step["text"] for step in shown["steps"]] == ["das Startprogramm läuft", "loading modules"]
    flood = report_row(evolve(REPORT, steps=tuple((f"step {n}", n) for n in range(10_000))), Texts("en"))
    assert len(flood["steps"]) == 50
    assert report_row(None, Texts("en")) == {"steps": [], "log": ""}
