"""Starting: once for each name, durable, and no gap whoever gives up waiting."""

import asyncio

import pytest
from tests.unit.runner.doubles import (
    FULL_DISK,
    UNSAID,
    A,
    World,
    expecting,
    first,
    hang,
    in_virtual_time,
    now_s,
    raising,
    request,
    slow,
    wait_for,
)

from moorage.core.limits import Limits
from moorage.core.model import Ended, Ready, SessionId, Submitting, SystemName, Waiting, Why
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Refused, StoreFailed, Unreachable


@in_virtual_time
async def test_a_session_becomes_ready_and_ends_without_a_trace() -> None:
    """The normal day: one job, one path, one address; then none of them."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        found = await wait_for(runner, session, Ready)
        assert found.attempt == 1
        assert len(world.site.living) == 1
        await asyncio.sleep(1)
        assert list(world.hub.routes) == list(world.relay.paths) == [session]
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        assert world.site.living == []
        assert world.hub.routes == {}
        assert world.relay.paths == {}
        await asyncio.sleep(600)
        assert world.safe.gates == {}
        assert [job.removed for job in world.site.jobs.values()] == [True]
        assert runner.live == {}
        assert runner.keys == {}


@in_virtual_time
async def test_fifty_starts_of_one_name_are_one_session() -> None:
    world = World()
    async with world.runner() as runner:
        ids = await asyncio.gather(*(runner.start(request()) for _ in range(50)))
        assert len(set(ids)) == 1
        await wait_for(runner, ids[0], Ready)
        assert await runner.start(request()) == ids[0]
        assert len(world.site.jobs) == 1


@in_virtual_time
async def test_other_names_and_owners_are_other_sessions() -> None:
    world = World()
    async with world.runner() as runner:
        ids = [await runner.start(each) for each in (request(), request(name="b"), request("bob"))]
        assert len(set(ids)) == 3


@in_virtual_time
async def test_an_unknown_system_is_refused_and_the_known_ones_are_named() -> None:
    async with World().runner() as runner:
        with pytest.raises(Refused, match="alpha, beta"):
            await runner.start(request(system=SystemName("gamma")))
        assert runner.live == {}


@in_virtual_time
async def test_a_start_during_a_stop_waits_for_its_end_and_then_runs() -> None:
    world = World()
    async with world.runner() as runner:
        old = await runner.start(request())
        await wait_for(runner, old, Ready)
        world.site.scripts["cancel"] = first(*[raising(Unreachable("away"))] * 5)
        await runner.stop(old)
        new = await runner.start(request())
        assert new != old
        assert await runner.start(request()) == new
        await asyncio.sleep(2)
        waiting = (await runner.get(new)).session.state
        assert isinstance(waiting, Waiting)
        assert waiting.why is Why.STOP_RUNNING
        assert len(world.site.living) == 1
        (first_job,) = world.site.living
        ended = await wait_for(runner, old, Ended)
        assert first_job not in world.site.living
        ready = await wait_for(runner, new, Ready)
        assert isinstance(ended.state, Ended)
        assert isinstance(ready.state, Ready)
        assert ready.state.since > ended.state.at


@pytest.mark.parametrize("turns", range(12))
def test_a_caller_who_gives_up_leaves_no_gap(turns: int) -> None:
    """Cancelled after any number of turns of the loop, the start is still either complete or was never begun."""

    @in_virtual_time
    async def story() -> None:
        world = World()
        async with world.runner() as runner:
            caller = asyncio.ensure_future(runner.start(request()))
            for _ in range(turns):
                await asyncio.sleep(0.001)
            caller.cancel()
            await asyncio.gather(caller, return_exceptions=True)
            begun = bool(runner.live)
            await asyncio.sleep(60)
            assert len(world.site.living) == begun
            session = await runner.start(request())
            await wait_for(runner, session, Ready)
            assert len(world.site.jobs) == 1
            if begun:
                stopper = asyncio.ensure_future(runner.stop(session))
                for _ in range(turns):
                    await asyncio.sleep(0.001)
                stopper.cancel()
                await asyncio.gather(stopper, return_exceptions=True)
                if turns:
                    await wait_for(runner, session, Ended)
                    assert world.site.living == []

    story()


@in_virtual_time
async def test_a_start_that_cannot_be_saved_starts_nothing_and_can_be_repeated() -> None:
    world = World()
    world.store.scripts["save"] = first(FULL_DISK)
    async with world.runner() as runner:
        outcomes = await asyncio.gather(*(runner.start(request()) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(each, StoreFailed) for each in outcomes)
        assert runner.live == {}
        await asyncio.sleep(60)
        assert world.site.jobs == {}
        await wait_for(runner, await runner.start(request()), Ready)


@in_virtual_time
async def test_a_start_that_was_saved_without_a_word_is_started() -> None:
    world = World()
    world.store.scripts["save"] = first(UNSAID)
    world.store.scripts["load"] = first(FULL_DISK, FULL_DISK)
    async with world.runner() as runner:
        session = await runner.start(request())
        assert list(world.store.sessions) == [session]
        await wait_for(runner, session, Ready)


@in_virtual_time
async def test_what_only_a_bug_can_raise_reaches_the_caller() -> None:
    """Loud, and nobody is left waiting."""
    world = World()
    world.store.scripts["save"] = first(raising(TypeError("not a store's error")))
    with expecting("a part of the runner died"):
        async with world.runner() as runner:
            with pytest.raises(TypeError):
                await asyncio.wait_for(runner.start(request()), 5)
            assert runner.live == {}


@in_virtual_time
async def test_a_stop_that_comes_before_the_first_wake_up_is_planned() -> None:
    """A queue of wake-ups that takes its time: meanwhile the session may have ended, and admission goes on."""
    world = World()
    async with world.runner() as runner:
        plain = runner.ports.wakeups.wake

        async def wake(session: SessionId, at: object) -> None:
            await asyncio.sleep(1)
            await plain(session, at)  # type: ignore[arg-type]

        runner.ports.wakeups.wake = wake  # type: ignore[method-assign, assignment]
        session = await runner.start(request())
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        await asyncio.sleep(5)
        await wait_for(runner, await runner.start(request("bob")), Ready)
    assert world.site.count("submit") == 1


@in_virtual_time
async def test_maintenance_holds_starts_and_tells_why() -> None:
    doors = {"reason": "cooling"}
    world = World(entry={"closed": lambda _now: doors.get("reason")})
    async with world.runner() as runner:
        session = await runner.start(request())
        await asyncio.sleep(30)
        view = await runner.get(session)
        assert "cooling" in view.progress.text
        del doors["reason"]
        at = now_s()
        await wait_for(runner, session, Ready)
        assert now_s() - at < 5


@in_virtual_time
async def test_the_place_in_line_is_shown_to_those_who_wait_for_a_limit() -> None:
    world = World(limits=Limits(of_system={A: 1}))
    async with world.runner() as runner:
        ids = []
        for name in ("a", "b", "c"):
            ids.append(await runner.start(request(name)))
            await asyncio.sleep(1.5)
        assert [(await runner.get(each)).place for each in ids] == [None, 1, 2]
        await runner.stop(ids[0])
        await wait_for(runner, ids[1], Ready)
        assert (await runner.get(ids[2])).place == 1


@in_virtual_time
async def test_slow_saves_hold_up_no_other_session() -> None:
    world = World()
    async with world.runner() as runner:
        other = await runner.start(request("bob"))
        await wait_for(runner, other, Ready)
        await asyncio.sleep(1)
        world.store.scripts["save"] = first(slow(5))
        start = asyncio.ensure_future(runner.start(request()))
        await asyncio.sleep(0.1)
        at = now_s()
        await runner.stop(other)
        assert now_s() - at < 1
        await start


@in_virtual_time
async def test_a_submit_that_nobody_makes_any_more_is_taken_up() -> None:
    """Another process took the session over for a while: what we remember of it is old, and no answer will come."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        live = runner.live[session]
        old = next(stored for stored in world.store.history if isinstance(stored.session.state, Submitting))
        live.session, live.version = old.session, old.version
        assert isinstance((await runner.get(session)).session.state, Submitting)
        await wait_for(runner, session, Ready, within_s=240)
        assert world.site.count("submit") == 1


@in_virtual_time
async def test_a_submit_that_waits_for_its_turn_is_left_alone() -> None:
    """However long it waits: to look it up now and make another one would be two jobs once its turn has come."""
    world = World(entry={"calls": 1}, timeouts=Timeouts(submit_s=100, call_s=5))
    world.site.scripts["submit"] = first(*[hang] * 4)
    async with world.runner() as runner:
        for number in range(5):
            await runner.start(request(f"user{number}"))
        await asyncio.sleep(399)
        last = runner.live[list(runner.live)[-1]]
        assert last.session is not None
        assert isinstance(last.session.state, Submitting)
        await wait_for(runner, last.id, Ready)
        assert world.site.count("submit") >= 5


@in_virtual_time
async def test_a_watcher_with_a_bug_changes_nothing() -> None:
    """Those who look on are told after everything has been set going, and what they raise is loud only."""

    def watcher(*_told: object) -> None:
        raise ValueError("a bug")

    world = World(watchers=[watcher])
    with expecting("a watcher failed with a bug"):
        async with world.runner() as runner:
            session = await runner.start(request())
            await wait_for(runner, session, Ready)
            await runner.stop(session)
            await wait_for(runner, session, Ended)
            assert world.site.living == []
