"""What people see: progress, coalesced and never in the way; and what the launcher says of itself, if it is proven."""

import asyncio
from typing import Any

import pytest
from tests.unit.runner.doubles import (
    World,
    answering,
    first,
    hang,
    in_virtual_time,
    proven,
    raising,
    request,
    slow,
    wait_for,
)

from moorage.core.model import Ended, JobId, Queued, Ready
from moorage.core.secret import Secret
from moorage.ports.errors import Malformed, Unreachable
from moorage.ports.sessions import JobReport

SAID: dict[str, Any] = {
    "state": "serving",
    "steps": [["bound", 10], ["served", 900]],
    "walltime_left_s": 3_600,
    "exit_code": None,
    "log": ["first", "second"],
}


@in_virtual_time
async def test_the_hub_is_told_every_state_in_order() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.sleep(1)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        await asyncio.sleep(1)
    states = [progress.state for _, progress in world.hub.reports]
    assert states == sorted(states, key=list(dict.fromkeys(states)).index)
    assert {"ready", "ended"} <= set(states)


@in_virtual_time
async def test_a_hub_that_is_slow_is_told_only_the_latest() -> None:
    world = World()
    world.hub.scripts["report"] = first(slow(20))
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready, within_s=5)
        await asyncio.sleep(30)
        assert [progress.state for _, progress in world.hub.reports] == ["waiting", "ready"]
        assert world.hub.most["report"] == 1


@in_virtual_time
@pytest.mark.parametrize("script", [hang, raising(Unreachable("away")), raising(ZeroDivisionError("oops"))])
async def test_a_hub_that_takes_no_reports_holds_up_nothing(script: Any) -> None:
    world = World()
    world.hub.scripts["report"] = script
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready, within_s=5)
        await runner.stop(session)
        await wait_for(runner, session, Ended, within_s=15)
        await asyncio.sleep(200)
        assert runner.performing.reports == {}


@in_virtual_time
async def test_an_address_is_never_published_after_it_was_withdrawn() -> None:
    """The publication is slow, the withdrawal is not: it waits for its turn."""
    world = World()
    world.hub.scripts["publish"] = slow_before
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        await asyncio.sleep(60)
        assert world.hub.routes == {}


async def slow_before(act: Any) -> Any:
    await asyncio.sleep(8)
    return act()


@in_virtual_time
async def test_the_launchers_report_is_given_if_it_is_proven() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        assert await runner.job_report(session) is None
        await wait_for(runner, session, Ready)
        assert await runner.job_report(session) is None
        world.site.status = SAID
        expected = JobReport("serving", (("bound", 10), ("served", 900)), 3_600, None, ("first", "second"))
        assert await runner.job_report(session) == expected
        world.site.status = {**SAID, "state": "ended", "walltime_left_s": None, "exit_code": 137}
        report = await runner.job_report(session)
        assert report is not None
        assert (report.state, report.left_s, report.exit_code) == ("ended", None, 137)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        assert await runner.job_report(session) is None


@in_virtual_time
@pytest.mark.parametrize(
    "said",
    [
        {key: value for key, value in SAID.items() if key != "exit_code"},
        {**SAID, "steps": 5},
        {**SAID, "steps": [["bound"]]},
        {**SAID, "exit_code": "?"},
        {**SAID, "exit_code": float("inf")},
        {**SAID, "log": None},
    ],
)
async def test_a_proven_report_with_nonsense_in_it_is_malformed(said: dict[str, Any]) -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.status = said
        with pytest.raises(Malformed):
            await runner.job_report(session)


@in_virtual_time
async def test_a_report_that_is_not_proven_or_of_another_job_is_malformed() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        other = await runner.start(request("bob"))
        await wait_for(runner, session, Ready)
        await wait_for(runner, other, Ready)
        tag, others = (world.site.jobs[JobId(f"alpha-{number}")].tag for number in (1, 2))
        of_another = proven(world.safe.by_tag(others), "status", others, SAID)
        of_a_stranger = proven(Secret("0" * 64), "status", tag, SAID)
        for report in (of_another, of_a_stranger, b"{}", b"\xff", "a text"):
            world.site.scripts["read"] = answering(report)
            with pytest.raises(Malformed):
                await runner.job_report(session)


@in_virtual_time
async def test_a_secret_that_is_gone_makes_reports_worthless_and_ends_nobody() -> None:
    world = World()
    world.site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        world.site.status = SAID
        kept = dict(world.safe.gates)
        read = world.site.file(_handle(world), "status.json")
        world.site.scripts["read"] = answering(read)
        world.safe.gates.clear()
        with pytest.raises(Malformed, match="is gone"):
            await runner.job_report(session)
        world.safe.gates.update(kept)
        assert await runner.job_report(session) is not None


def _handle(world: World) -> Any:
    from moorage.ports.system import Handle

    job = world.site.jobs[JobId("alpha-1")]
    return Handle(job.owner, job.tag, job.id)


@in_virtual_time
async def test_the_log_of_a_launcher_that_never_came_so_far_is_its_stderr() -> None:
    from moorage.core.model import EndReason

    world = World()
    world.site.starts = False

    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        world.site.scripts["read"] = first(answering(None), answering(b"python3: not found \xff"))
        world.site.end(JobId("alpha-1"), EndReason.FAILED)
        ended = await wait_for(runner, session, Ended)
        assert isinstance(ended.state, Ended)
        assert ended.state.evidence.log.startswith("python3: not found")


@in_virtual_time
async def test_a_job_that_left_no_words_ends_all_the_same() -> None:
    from moorage.core.model import EndReason

    world = World()
    world.site.starts = False
    world.site.scripts["read"] = answering(b"")
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        world.site.end(JobId("alpha-1"), EndReason.FAILED)
        ended = await wait_for(runner, session, Ended)
        assert isinstance(ended.state, Ended)
        assert ended.state.evidence.log == ""
