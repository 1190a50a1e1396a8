"""Stops: durable, again harmless, ahead of everything; and the end of the runner itself."""

import asyncio

import pytest
from tests.unit.runner.doubles import (
    FULL_DISK,
    A,
    World,
    expecting,
    first,
    hang,
    in_virtual_time,
    lost_answer,
    now_s,
    raising,
    request,
    wait_for,
    wait_until,
)

from moorage.core.events import EffectFailed, Observed, StopAsked, StraySeen, Submitted
from moorage.core.limits import Limits
from moorage.core.model import (
    Alive,
    Cause,
    Desired,
    Ended,
    FailureKind,
    JobId,
    Phase,
    Queued,
    Ready,
    SessionId,
    Stopping,
    Submitting,
    Waiting,
)
from moorage.ports.errors import StoreFailed, Unreachable


@in_virtual_time
async def test_a_stop_is_durable_when_it_returns() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.scripts["cancel"] = hang
        await runner.stop(session, by="the culler")
        assert world.store.sessions[session].session.desired is Desired.DOWN
    # Another process, which was never told, goes on with it.
    world.site.scripts.clear()
    async with world.runner() as runner:
        ended = await wait_for(runner, session, Ended)
        assert isinstance(ended.state, Ended)
        assert ended.state.cause is Cause.STOPPED
        assert "the culler" in ended.state.evidence.note
        assert world.site.living == []


@in_virtual_time
async def test_stopping_again_is_harmless_also_after_the_end() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.gather(*(runner.stop(session) for _ in range(10)))
        await wait_for(runner, session, Ended)
        await asyncio.sleep(600)
        version = (await runner.get(session)).version
        await runner.stop(session)
        await runner.stop(session)
        after = await runner.get(session)
        assert isinstance(after.session.state, Ended)
        assert after.version <= version + 1  # that it was asked for may be noted, once
        assert runner.live == {}
        assert runner.keys == {}


@in_virtual_time
async def test_nobody_knows_this_session() -> None:
    async with World().runner() as runner:
        nobody = SessionId("a" * 26)
        for asked in (runner.stop(nobody), runner.get(nobody), runner.job_report(nobody)):
            with pytest.raises(KeyError):
                await asked
        with pytest.raises(KeyError):
            async for _ in runner.follow(nobody):
                pass
        assert runner.live == {}


@in_virtual_time
async def test_a_stop_overtakes_a_submit_that_waits_for_a_place() -> None:
    """What the system has not been asked yet it is never asked: no job, no lookup."""
    world = World(entry={"calls": 1})
    world.site.scripts["submit"] = first(hang)
    async with world.runner() as runner:
        blocker = await runner.start(request("bob"))
        await wait_until(lambda: world.site.count("submit") == 1)
        session = await runner.start(request())
        await wait_for(runner, session, Submitting)
        at = now_s()
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        assert now_s() - at < 1
        assert world.site.count("submit") == 1
        failed = [entry.event for entry in world.store.logs[session] if isinstance(entry.event, EffectFailed)]
        assert [each.failure.kind for each in failed] == [FailureKind.UNREACHABLE]
        await runner.stop(blocker)


@in_virtual_time
async def test_a_stop_overtakes_a_submit_before_its_first_step() -> None:
    """Also when the secret of the attempt is still being made."""
    world = World()
    world.safe.latency_s = 5
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Submitting)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        await asyncio.sleep(120)
        assert world.site.count("submit") == 0
        assert world.safe.gates == {}, "the secret was made after its revocation"


@in_virtual_time
async def test_a_stop_overtakes_a_submit_that_the_system_has_been_asked() -> None:
    """The answer is given up, the job is found by its tag and cancelled."""
    world = World()
    world.site.scripts["submit"] = lost_answer
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_until(lambda: len(world.site.jobs) == 1)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        assert world.site.living == []
        assert not any(isinstance(entry.event, Submitted) for entry in world.store.logs[session])


@in_virtual_time
async def test_a_stop_takes_no_place_so_no_limit_can_refuse_it() -> None:
    """A session that waits again and still has a job to remove, while others have taken every place."""
    world = World(limits=Limits(of_system={A: 1}))
    world.site.scripts["submit"] = first(raising(Unreachable("away")))
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_until(lambda: world.site.count("submit") == 1)
        await wait_for(runner, session, Waiting)
        # The system was wrong: there is a job of this attempt, and the sweep tells of it.
        tag = next(tag for verb, _, tag in world.site.calls if verb == "submit")
        world.store.held_elsewhere = 1
        world.site.scripts["cancel"] = raising(Unreachable("away"))
        job = world.site.create(tag)
        runner.post(session, StraySeen(1, job))
        await asyncio.sleep(5)
        assert isinstance((await runner.get(session)).session.state, Waiting)
        await asyncio.wait_for(runner.stop(session), 10)
        assert isinstance((await runner.get(session)).session.state, Stopping)
        world.site.scripts.clear()
        await wait_for(runner, session, Ended)
        assert world.site.living == []


@in_virtual_time
async def test_closing_leaves_the_sessions_as_they_are_and_no_task() -> None:
    world = World()
    async with world.runner() as runner:
        ids = [await runner.start(request(name)) for name in "abc"]
        for session in ids:
            await wait_for(runner, session, Ready)
        world.relay.scripts["probe"] = hang
        world.site.scripts["observe"] = hang
        await asyncio.sleep(700)
    assert len(world.site.living) == 3
    await asyncio.sleep(3_600)
    count = len(world.site.calls)
    await asyncio.sleep(3_600)
    assert len(world.site.calls) == count


@in_virtual_time
async def test_those_who_wait_when_the_runner_closes_are_told() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        world.store.scripts["save"] = hang
        stop = asyncio.ensure_future(runner.stop(session))
        start = asyncio.ensure_future(runner.start(request("bob")))
        again = asyncio.ensure_future(runner.start(request("bob")))
        await asyncio.sleep(1)
    outcomes = await asyncio.wait_for(asyncio.gather(stop, start, again, return_exceptions=True), 5)
    assert [type(each) for each in outcomes] == [StoreFailed] * 3
    for late in (runner.stop(session), runner.start(request("eve"))):
        with pytest.raises(StoreFailed):
            await asyncio.wait_for(late, 5)


@in_virtual_time
async def test_closing_twice_is_harmless() -> None:
    async with World().runner() as runner:
        await runner.close()
        await runner.close()


@in_virtual_time
async def test_a_full_disk_does_not_hold_up_a_stop() -> None:
    """The job is cancelled, the path closed and the address withdrawn, each once, before anything can be saved."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.sleep(1)
        world.store.scripts["save"] = FULL_DISK
        stop = asyncio.ensure_future(runner.stop(session))
        await asyncio.sleep(60)
        assert not stop.done()
        assert world.site.living == []
        assert world.relay.paths == {}
        assert world.hub.routes == {}
        assert world.site.count("cancel") == world.relay.count("close") == world.hub.count("withdraw") == 1
        assert world.safe.count("revoke") == 1
        assert isinstance((await runner.get(session)).session.state, Ready), "what is not saved is not decided"
        world.store.scripts.clear()
        await stop
        await wait_for(runner, session, Ended)


@in_virtual_time
async def test_a_stop_behind_an_event_that_cannot_be_saved_is_carried_out_too() -> None:
    """On a full disk something else usually comes first and waits to be saved; the stop must not wait behind it."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.sleep(1)
        world.store.scripts["save"] = FULL_DISK
        await asyncio.sleep(600)  # the next probe is due: a wake-up that is not saved
        stop = asyncio.ensure_future(runner.stop(session))
        await asyncio.sleep(30)
        assert world.site.living == []
        assert world.relay.paths == {}
        assert world.site.count("cancel") == 1
        world.store.scripts.clear()
        await stop
        events = [type(entry.event) for entry in world.store.logs[session]]
        assert events.count(StopAsked) == 1
        await wait_for(runner, session, Ended)


@in_virtual_time
async def test_a_bug_met_by_one_event_does_not_keep_the_others_waiting() -> None:
    """Who caused it is told, and the stop behind it is carried out."""
    world = World()
    with expecting("a part of the runner died"):
        async with world.runner() as runner:
            session = await runner.start(request())
            await wait_for(runner, session, Ready)
            await asyncio.sleep(1)
            world.store.scripts["save"] = first(raising(TypeError("a bug")))
            outcomes = await asyncio.wait_for(
                asyncio.gather(*(runner.stop(session, by) for by in "ab"), return_exceptions=True), 5
            )
            assert [type(each) for each in outcomes] == [TypeError, type(None)]
            await wait_for(runner, session, Ended)


@in_virtual_time
async def test_of_readings_that_wait_only_the_newest_of_each_job_is_handled() -> None:
    world = World()
    world.site.starts = False
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Queued)
        world.store.latency_s = 1
        job, other = JobId("alpha-1"), JobId("alpha-2")
        for number in range(5):
            for each in (job, other):
                alive = Alive(Phase.PENDING, note=f"place {9 - number}")
                runner.post(session, Observed(each, runner.ports.clock.now(), alive))
        assert len(runner.live[session].mailbox) == 2
        await asyncio.sleep(5)
        said = [entry.event for entry in world.store.logs[session] if isinstance(entry.event, Observed)]
        assert [each.observation.note for each in said if each.observation.note] == ["place 5"]


@in_virtual_time
async def test_a_session_that_is_being_created_is_known_once_it_is_saved() -> None:
    world = World()
    world.store.latency_s = 1
    async with world.runner() as runner:
        start = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0.5)
        session = next(iter(runner.live))
        stop = asyncio.ensure_future(runner.stop(session))
        assert (await runner.get(session)).version >= 1
        await stop
        assert await start == session
        await wait_for(runner, session, Ended)
        assert world.site.count("submit") == 0
        assert [type(entry.event) for entry in world.store.logs[session]] == [type(None), StopAsked]


@in_virtual_time
async def test_a_stop_of_a_session_that_cannot_be_created_is_told() -> None:
    world = World()
    world.store.latency_s = 1
    world.store.scripts["save"] = FULL_DISK
    async with world.runner() as runner:
        start = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0.5)
        session = next(iter(runner.live))
        stop = asyncio.ensure_future(runner.stop(session))
        outcomes = await asyncio.wait_for(asyncio.gather(start, stop, return_exceptions=True), 5)
        assert [type(each) for each in outcomes] == [StoreFailed] * 2
        assert runner.live == {}
