"""
Every row F-U1 to F-U26 of the fault table, at the wire: what the adapter makes of it.

The adapter's part of each reaction is a typed error or observation; what follows from it is the machine's.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import attrs
import pytest
from aiohttp import web
from tests.contract.system.suite import SystemCase, a_spec
from tests.contract.system.unicore_world import ALICE, DN, QUICK, World, world

from moorage.adapters.unicore import translate
from moorage.adapters.unicore.config import OwnerToken
from moorage.adapters.unicore.system import UnicoreSystem
from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    JobId,
    Observation,
    Owner,
    Phase,
    Sighting,
    Tag,
    tag_of,
)
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.credentials import Token
from moorage.ports.errors import (
    Malformed,
    Overloaded,
    PortError,
    Unanswered,
    Unauthorised,
    Unreachable,
)
from moorage.ports.system import Handle

HASTY = attrs.evolve(QUICK, submit_s=0.4, call_s=0.4, connect_s=0.4)


@pytest.fixture
def timeouts() -> Timeouts:
    return QUICK


@pytest.fixture
async def unicore(tmp_path: Path, timeouts: Timeouts) -> AsyncIterator[World]:
    async with world(tmp_path, execute="virtual", timeouts=timeouts) as made:
        yield made


hasty = pytest.mark.parametrize("timeouts", [HASTY], ids=["hasty"])


async def submit(system: UnicoreSystem, attempt: int = 1) -> Handle:
    spec = a_spec(SystemCase(system=system))
    tag = tag_of(spec, attempt)
    return Handle(ALICE, tag, await system.submit(tag, spec))


async def observe(system: UnicoreSystem, job: Handle) -> Observation:
    return (await system.observe([job]))[job.job]


async def until(ask: Callable[[], Awaitable[object]], true: Callable[[object], bool]) -> object:
    for _ in range(400):
        said = await ask()
        if true(said):
            return said
        await asyncio.sleep(0.01)
    pytest.fail(f"it never came true; the last answer was {said!r}")


def is_phase(phase: Phase) -> Callable[[object], bool]:
    return lambda said: isinstance(said, Alive) and said.phase is phase


async def running(system: UnicoreSystem) -> Handle:
    job = await submit(system)
    await until(lambda: observe(system, job), is_phase(Phase.RUNNING))
    return job


async def failed_submit(system: UnicoreSystem, error: type[PortError]) -> tuple[Tag, PortError]:
    spec = a_spec(SystemCase(system=system))
    tag = tag_of(spec, 1)
    with pytest.raises(error) as caught:
        await system.submit(tag, spec)
    assert type(caught.value) is error
    return tag, caught.value


async def jobs_with(unicore: World, tag: Tag) -> list[str]:
    """What really is there, by the site's own books."""
    return [job.id for job in unicore.site.site.jobs.values() if tag in job.tags]


# Submit ------------------------------------------------------------------------------------------------------


async def test_f_u1_a_refused_connection_means_that_nothing_happened(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U1", "until_s": 0.3})
    system = unicore.make()
    await asyncio.sleep(0.05)
    await failed_submit(system, Unreachable)
    await asyncio.sleep(0.4)
    assert (await running(system)).job


async def test_f_u1_a_name_that_is_not_known_means_that_nothing_happened(unicore: World) -> None:
    system = unicore.make(url="http://nowhere.invalid/DEMO-SITE/rest/core")
    await failed_submit(system, Unreachable)


async def test_f_u1_a_connection_that_is_reset_tells_nothing_about_the_request(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U1", "variant": "reset", "times": 1})
    tag, _ = await failed_submit(unicore.make(), Unanswered)
    assert await jobs_with(unicore, tag) == []


async def test_f_u1_a_stranger_behind_the_name_gets_nothing(tmp_path: Path) -> None:
    async with world(tmp_path, tls=True, execute="virtual") as unicore:
        unicore.site.faults.add({"fault": "F-U1", "variant": "tls"})
        await asyncio.sleep(0.05)
        _, error = await failed_submit(unicore.make(), Unreachable)
        assert "certificate" in error.note
        assert unicore.site.requests == 0


@hasty
@pytest.mark.parametrize("variant", ["hang", "drop"])
async def test_f_u2_an_answer_that_never_comes_is_looked_up_and_absent(unicore: World, variant: str) -> None:
    unicore.site.faults.add({"fault": "F-U2", "variant": variant, "times": 1})
    system = unicore.make()
    tag, _ = await failed_submit(system, Unanswered)
    assert await system.find(tag, ALICE) == ()


@hasty
@pytest.mark.parametrize("variant", ["hang", "drop"])
async def test_f_u3_a_job_whose_answer_was_lost_is_found(unicore: World, variant: str) -> None:
    unicore.site.faults.add({"fault": "F-U3", "variant": variant, "times": 1})
    system = unicore.make()
    tag, _ = await failed_submit(system, Unanswered)
    assert [seen.job for seen in await system.find(tag, ALICE)] == await jobs_with(unicore, tag) != []


@hasty
async def test_f_u4_an_answer_that_comes_late_changes_nothing(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U4", "delay_s": 0.6, "times": 1})
    system = unicore.make()
    tag, _ = await failed_submit(system, Unanswered)
    await asyncio.sleep(0.4)
    assert len(await system.find(tag, ALICE)) == 1


@pytest.mark.parametrize("variant", ["missing", "foreign"])
async def test_f_u5_a_job_without_a_proper_address_is_ambiguous(unicore: World, variant: str) -> None:
    unicore.site.faults.add({"fault": "F-U5", "variant": variant, "times": 1})
    system = unicore.make()
    tag, _ = await failed_submit(system, Malformed)
    assert [seen.job for seen in await system.find(tag, ALICE)] == await jobs_with(unicore, tag)


async def test_f_u6_a_500_to_a_submit_that_worked_is_looked_up(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U6", "times": 1})
    system = unicore.make()
    tag, _ = await failed_submit(system, Unanswered)
    assert len(await system.find(tag, ALICE)) == 1


async def test_f_u7_submission_switched_off_is_said_in_the_sites_words(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U7", "times": 1})
    system = unicore.make()
    tag, error = await failed_submit(system, Unreachable)
    assert "Job submission is currently disabled" in error.note
    assert await jobs_with(unicore, tag) == []


# Credentials -------------------------------------------------------------------------------------------------


def with_tokens(unicore: World, life_s: float = 300) -> UnicoreSystem:
    """The adapter with tokens of the owner, which the site trusts: a new one each time."""

    def give(owner: Owner) -> Token:
        now = unicore.clock.now()
        text = unicore.site.site.key.token(DN, now / 1000, int(life_s), {"n": str(unicore.issuer.asked)})
        return Token(Secret(text), type(now)(int(now + life_s * 1000)))

    unicore.issuer.give = give
    return unicore.make(credentials=OwnerToken())


@pytest.mark.parametrize("variant", ["403", "401"])
async def test_f_u8_refused_credentials_are_renewed_once(unicore: World, variant: str) -> None:
    system = with_tokens(unicore)
    job = await running(system)
    asked = unicore.issuer.asked
    unicore.site.faults.add({"fault": "F-U8", "variant": variant, "times": 1})
    assert isinstance(await observe(system, job), Alive)
    assert unicore.issuer.asked == asked + 1


@pytest.mark.parametrize("variant", ["403", "401"])
async def test_f_u8_an_expired_login_is_doubt_and_a_stop_says_what_it_waits_for(unicore: World, variant: str) -> None:
    system = with_tokens(unicore)
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U8", "variant": variant})
    said = await observe(system, job)
    assert isinstance(said, Doubt)
    assert said.reason is DoubtReason.UNAUTHORISED
    for call in (system.cancel(job), system.read(job, "endpoint.json"), system.find(job.tag, ALICE)):
        with pytest.raises(Unauthorised):
            await call
    unicore.site.faults.clear()
    assert isinstance(await system.cancel(job), Alive | Gone)


async def test_f_u9_nobodys_empty_list_is_no_absence(unicore: World) -> None:
    system = unicore.make()
    job = await submit(system)
    unicore.site.faults.add({"fault": "F-U9"})
    with pytest.raises(Unauthorised, match="anonymous"):
        await system.find(job.tag, ALICE)
    unicore.site.faults.clear()
    unicore.site.faults.add({"fault": "F-U9", "times": 1})
    assert len(await system.find(job.tag, ALICE)) == 1


async def test_f_u10_a_forgotten_session_costs_one_more_request(unicore: World) -> None:
    system = unicore.make()
    job = await running(system)
    before = unicore.site.requests
    unicore.site.faults.add({"fault": "F-U10", "times": 1})
    assert isinstance(await observe(system, job), Alive)
    assert unicore.site.requests == before + 2


# Answers that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["none", "seconds", "zero", "negative", "absurd", "past"])
async def test_f_u11_patience_is_asked_for_within_reason(unicore: World, variant: str) -> None:
    system = unicore.make()
    unicore.site.faults.add({"fault": "F-U11", "variant": variant})
    _, error = await failed_submit(system, Overloaded)
    if variant == "none":
        assert error.retry_after_s is None
    else:
        assert error.retry_after_s is not None
        assert 0 <= error.retry_after_s <= 86_400
    with pytest.raises(Overloaded):
        await system.observe([Handle(ALICE, Tag("m0"), JobId("abc"))])


@hasty
@pytest.mark.parametrize("variant", ["dribble", "late"])
async def test_f_u12_a_slow_answer_meets_a_deadline_for_all_of_it(unicore: World, variant: str) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U12", "variant": variant})
    begin = time.monotonic()
    with pytest.raises(Unanswered):
        await system.observe([job] * 1)
    with pytest.raises(Unanswered):
        await system.find(job.tag, ALICE)
    assert time.monotonic() - begin < 2
    unicore.site.faults.clear()
    said = [observe(system, job) for _ in range(20)]  # no place was lost
    assert all(isinstance(each, Alive) for each in await asyncio.gather(*said))


GARBAGE = {
    "html": DoubtReason.MALFORMED,
    "empty": DoubtReason.MALFORMED,
    "truncated": DoubtReason.MALFORMED,
    "types": DoubtReason.MALFORMED,
    "deep": DoubtReason.MALFORMED,
    "huge": DoubtReason.MALFORMED,
    "nul": DoubtReason.MALFORMED,
    "duplicate": DoubtReason.MALFORMED,
    "nan": DoubtReason.MALFORMED,
    "short": DoubtReason.UNANSWERED,
}


@pytest.mark.parametrize(("variant", "reason"), GARBAGE.items())
async def test_f_u13_garbage_is_doubt_about_one_job(unicore: World, variant: str, reason: DoubtReason) -> None:
    system = unicore.make()
    job, other = await running(system), await running(system)
    rule = {"fault": "F-U13", "variant": variant, "match": f"/jobs/{job.job}", "size": 20_000_000}
    unicore.site.faults.add(rule)
    said = await system.observe([job, other])
    spoilt = said[job.job]
    assert isinstance(spoilt, Doubt)
    assert spoilt.reason is reason
    assert isinstance(said[other.job], Alive)


@pytest.mark.parametrize("variant", GARBAGE)
async def test_f_u13_garbage_is_never_an_absence(unicore: World, variant: str) -> None:
    system = unicore.make()
    job = await submit(system)
    unicore.site.faults.add({"fault": "F-U13", "variant": variant, "on": ["list"], "size": 20_000_000})
    with pytest.raises((Malformed, Unanswered)):
        await system.find(job.tag, ALICE)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_f_u14_credentials_do_not_follow_a_redirect(unicore: World, status: int) -> None:
    visits = []

    async def elsewhere(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.append(await reader.read(1000))
        writer.close()

    server = await asyncio.start_server(elsewhere, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        system = unicore.make()
        job = await submit(system)
        rule = {"fault": "F-U14", "status": status, "location": f"http://127.0.0.1:{port}/X/rest/core/jobs"}
        unicore.site.faults.add(rule)
        await failed_submit(system, Malformed)
        said = await observe(system, job)
        assert isinstance(said, Doubt)
        assert said.reason is DoubtReason.MALFORMED
        assert visits == []


# Following ---------------------------------------------------------------------------------------------------


async def test_f_u15_a_job_that_is_not_there_for_a_while_is_doubt(unicore: World) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U15"})
    for _ in range(3):
        said = await observe(system, job)
        assert isinstance(said, Doubt)
        assert said.reason is DoubtReason.NOT_LISTED
    unicore.site.faults.clear()
    assert isinstance(await observe(system, job), Alive)


async def test_f_u16_a_status_that_flaps_is_told_as_it_is(unicore: World) -> None:
    """Each reading is handed on with its own word; that one terminal reading is not enough is the machine's rule."""
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U16"})
    said = [await observe(system, job) for _ in range(5)]
    assert [each.phase if isinstance(each, Alive) else type(each) for each in said] == [
        Phase.RUNNING,
        Phase.PENDING,
        Phase.RUNNING,
        Gone,
        Phase.RUNNING,
    ]


@pytest.mark.parametrize(("variant", "reason"), [("failed", EndReason.FAILED), ("successful", EndReason.FINISHED)])
async def test_f_u17_an_end_that_is_none_is_only_a_reading(unicore: World, variant: str, reason: EndReason) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U17", "variant": variant, "times": 1})
    said = await observe(system, job)
    assert isinstance(said, Gone)
    assert said.reason is reason
    assert isinstance(await observe(system, job), Alive)


@pytest.mark.parametrize("variant", ["STAGINGIN", "READY"])
async def test_f_u18_a_job_that_is_stuck_is_started_again_and_then_given_up(unicore: World, variant: str) -> None:
    unicore.site.faults.add({"fault": "F-U18", "variant": variant})
    unicore.site.faults.add({"do": "delay", "on": ["start"], "delay_s": 0})
    system = unicore.make()
    job = await submit(system)
    await asyncio.sleep(0.2)
    assert is_phase(Phase.PENDING)(await observe(system, job))
    unicore.clock.ahead_s += 120
    said = await observe(system, job)
    assert isinstance(said, Alive)
    assert "2 min" in said.note
    assert variant in said.note
    assert unicore.site.faults.ledger["delay", "start"] == 1
    unicore.clock.ahead_s += 1000
    await observe(system, job)
    gone = await until(lambda: observe(system, job), lambda said: isinstance(said, Gone))
    assert isinstance(gone, Gone)
    assert gone.reason is EndReason.FAILED
    assert "given up" in gone.note


# Notifications -----------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def receiver(unicore: World) -> AsyncIterator[tuple[UnicoreSystem, list[bool], list[JobId]]]:
    """The adapter with a receiver: what it thought of each notification, and which jobs it named."""
    verdicts: list[bool] = []
    named: list[JobId] = []

    async def notified(request: web.Request) -> web.Response:
        body = await request.content.read(100_000)
        token = request.headers["Authorization"].removeprefix("Bearer ")
        verdicts.append(await system.notified(token, body))
        return web.Response(status=204)

    async def listen() -> None:
        async for job in system.watch():
            named.append(job)

    runner = web.ServerRunner(web.Server(notified))  # type: ignore[arg-type]
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    system = unicore.make(notify_url=f"http://127.0.0.1:{port}/told")
    listening = asyncio.create_task(listen())
    try:
        yield system, verdicts, named
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await runner.cleanup()


async def soon(true: Callable[[], bool]) -> None:
    async def ask() -> bool:
        return true()

    await until(ask, bool)


async def test_f_u19_notifications_name_their_job(unicore: World) -> None:
    async with receiver(unicore) as (system, verdicts, named):
        job = await submit(system)
        await soon(lambda: len(verdicts) >= 1)
        await system.cancel(job)
        await soon(lambda: len(verdicts) >= 2)
        assert all(verdicts)
        await soon(lambda: job.job in named)


@pytest.mark.parametrize(
    ("variant", "believed"),
    [("duplicate", True), ("stranger", True), ("unknown", True), ("forge", False), ("huge", False)],
)
async def test_f_u19_hints_may_be_wrong_and_forgeries_are_none(unicore: World, variant: str, believed: bool) -> None:
    """A wrong hint names a job that is then asked about; what the notification said about it goes no further."""
    unicore.site.faults.add({"fault": "F-U19", "variant": variant, "size": 200_000})
    async with receiver(unicore) as (system, verdicts, named):
        job = await submit(system)
        await soon(lambda: bool(verdicts))
        assert set(verdicts) == {believed}
        await asyncio.sleep(0.05)
        assert bool(named) == believed
        if variant == "unknown":
            assert set(named) == {JobId("0000000000x")}
        assert is_phase(Phase.RUNNING)(await until(lambda: observe(system, job), is_phase(Phase.RUNNING)))


@pytest.mark.parametrize("variant", ["lose", "hold"])
async def test_f_u19_lost_and_late_notifications_change_nothing(unicore: World, variant: str) -> None:
    unicore.site.faults.add({"fault": "F-U19", "variant": variant})
    async with receiver(unicore) as (system, _, _named):
        job = await running(system)
        await system.cancel(job)
        assert isinstance(await until(lambda: observe(system, job), lambda said: isinstance(said, Gone)), Gone)


async def test_f_u20_a_notification_may_come_before_the_answer(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U20", "delay_s": 0.5})
    async with receiver(unicore) as (system, _, named):
        submitting = asyncio.create_task(submit(system))
        await soon(lambda: bool(named))
        assert not submitting.done()
        assert (await submitting).job in named


# Cancelling and listings -------------------------------------------------------------------------------------


@hasty
@pytest.mark.parametrize("variant", ["before", "after"])
async def test_f_u21_a_cancel_without_answer_is_repeated_until_there_is_evidence(unicore: World, variant: str) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U21", "variant": variant, "times": 1})
    with pytest.raises(Unanswered):
        await system.cancel(job)
    assert isinstance(await until(lambda: system.cancel(job), lambda said: isinstance(said, Gone)), Gone)


async def test_f_u21_a_cancel_of_a_job_that_is_not_there_is_doubt(unicore: World) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U21", "variant": "404", "times": 1})
    said = await system.cancel(job)
    assert isinstance(said, Doubt)
    assert said.reason is DoubtReason.NOT_LISTED


async def test_f_u21_a_refused_cancel_is_an_error_as_long_as_the_job_lives(unicore: World) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U21", "variant": "409"})
    with pytest.raises(Unreachable):
        await system.cancel(job)
    unicore.site.faults.clear()
    await until(lambda: system.cancel(job), lambda said: isinstance(said, Gone))
    unicore.site.faults.add({"fault": "F-U21", "variant": "409"})
    assert isinstance(await system.cancel(job), Gone)


async def test_f_u21_a_cancel_that_does_nothing_is_never_called_an_end(unicore: World) -> None:
    system = unicore.make()
    job = await running(system)
    unicore.site.faults.add({"fault": "F-U21", "variant": "ignored"})
    for _ in range(3):
        assert isinstance(await system.cancel(job), Alive)
    assert is_phase(Phase.RUNNING)(await observe(system, job))


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translate, "LISTING_PAGE", 3)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("variant", ["lost-page", "ignore-tags"])
async def test_f_u22_a_listing_is_read_to_its_end(unicore: World, variant: str) -> None:
    system = unicore.make()
    jobs = [await submit(system) for _ in range(7)]
    unicore.site.faults.add({"fault": "F-U22", "variant": variant})
    seen = await system.find(Tag(jobs[0].tag[:9]), ALICE)
    assert {each.job for each in seen} == {job.job for job in jobs}
    assert [each.job for each in await system.find(jobs[3].tag, ALICE)] == [jobs[3].job]


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("variant", ["changing", "forget"])
async def test_f_u22_a_listing_with_holes_is_no_listing(unicore: World, variant: str) -> None:
    system = unicore.make()
    jobs = [await submit(system) for _ in range(7)]
    unicore.site.faults.add({"fault": "F-U22", "variant": variant})
    with pytest.raises((Malformed, Unanswered)):
        await system.find(Tag(jobs[0].tag[:9]), ALICE)


async def test_f_u22_a_job_that_one_listing_forgets_is_not_absent(unicore: World) -> None:
    system = unicore.make()
    job = await submit(system)
    unicore.site.faults.add({"fault": "F-U22", "variant": "forget", "times": 1})
    assert await system.find(job.tag, ALICE) == (Sighting(job.job, job.tag, True),)


# The rest ----------------------------------------------------------------------------------------------------


async def test_f_u23_files_that_do_not_arrive_end_the_job_with_the_sites_cause(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U23", "variant": "staging"})
    system = unicore.make()
    job = await submit(system)
    gone = await until(lambda: observe(system, job), lambda said: isinstance(said, Gone))
    assert isinstance(gone, Gone)
    assert gone.reason is EndReason.FAILED
    assert "quota" in gone.note


async def test_f_u24_a_record_that_would_end_under_a_living_job_is_prolonged(unicore: World) -> None:
    unicore.site.faults.add({"fault": "F-U24", "lifetime_s": 60})
    system = unicore.make()
    job = await running(system)
    assert unicore.site.site.jobs[job.job].ends_at > time.time() + 86_400


async def test_f_u24_a_life_that_is_not_prolonged_is_reported(tmp_path: Path) -> None:
    async with world(tmp_path, execute="virtual", longest_lifetime_s=120) as unicore:
        unicore.site.faults.add({"fault": "F-U24", "lifetime_s": 60})
        system = unicore.make()
        job = await running(system)
        said = await observe(system, job)
        assert isinstance(said, Alive)
        assert "did not grant longer" in said.note


@pytest.mark.parametrize("variant", ["expired", "other"])
async def test_f_u25_a_certificate_that_is_not_accepted_stops_everything(tmp_path: Path, variant: str) -> None:
    async with world(tmp_path, tls=True, execute="virtual") as unicore:
        job = await submit(unicore.make())
        unicore.site.faults.add({"fault": "F-U25", "variant": variant})
        await asyncio.sleep(0.05)
        before, system = unicore.site.requests, unicore.make()
        for call in (system.observe([job]), system.cancel(job), system.find(job.tag, ALICE)):
            with pytest.raises(Unreachable, match="certificate"):
                await call
        assert unicore.site.requests == before


async def test_f_u26_an_older_view_never_ends_anything(unicore: World) -> None:
    system = unicore.make()
    job = await submit(system)
    unicore.site.faults.add({"fault": "F-U26"})
    for _ in range(30):
        assert isinstance(await observe(system, job), Alive | Doubt)
        await asyncio.sleep(0.01)
    assert is_phase(Phase.RUNNING)(await until(lambda: observe(system, job), is_phase(Phase.RUNNING)))
