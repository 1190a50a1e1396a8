"""The store moves on by itself, fails, saves without saying so, forgets: what is decided stays right."""

import asyncio
from itertools import pairwise

import pytest
from tests.unit.runner.doubles import (
    ADA,
    EPOCH_MS,
    FULL_DISK,
    UNSAID,
    World,
    first,
    hang,
    in_virtual_time,
    now_s,
    raising,
    request,
    slow,
    wait_for,
    wait_until,
)

from moorage.core.events import StopAsked, Woke
from moorage.core.machine import begin, step
from moorage.core.model import Ended, Instant, Ready, SessionId, Stopping, Submitting, Waiting
from moorage.ports.errors import StoreFailed


def moved_on(world: World, session: SessionId, event: object) -> None:
    """Another process handles an event of the session."""
    stored = world.store.sessions[session]
    at = Instant(EPOCH_MS + round(now_s() * 1000))
    world.store.put(step(stored.session, event, at).session, event, at, stored.version, None)  # type: ignore[arg-type]


def replayed(world: World, session: SessionId) -> object:
    past = begin(world.store.sessions[session].session.spec).session
    for entry in world.store.logs[session]:
        if entry.event is not None:
            past = step(past, entry.event, entry.at).session
    return past


@in_virtual_time
async def test_what_another_process_decided_is_loaded_and_decided_upon() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.sleep(5)
        moved_on(world, session, StopAsked("another process"))
        runner.post(session, Woke())
        runner.post(session, StopAsked())
        ended = await wait_for(runner, session, Ended)
        assert isinstance(ended.state, Ended)
        assert "another process" in ended.state.evidence.note
        assert replayed(world, session) == world.store.sessions[session].session


@in_virtual_time
async def test_a_name_stays_taken_while_its_session_is_loaded_anew() -> None:
    """A load that takes its time must not make a second session of the same name possible."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await asyncio.sleep(5)
        world.store.scripts["save"] = first(UNSAID)
        world.store.scripts["load"] = slow(20)
        world.relay.lost.add(session)  # something to save
        await wait_until(lambda: world.store.running["load"] > 0)
        assert await runner.start(request()) == session
        await asyncio.sleep(60)
        assert len(world.store.sessions) == 1
        assert len(world.site.jobs) == 1


@in_virtual_time
@pytest.mark.parametrize("failures", [1, 3, 12])
async def test_a_store_that_fails_for_a_while_loses_nothing(failures: int) -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        world.store.scripts["save"] = first(*[FULL_DISK] * failures)
        await wait_for(runner, session, Ready)
        assert len(world.site.jobs) == 1
        assert replayed(world, session) == world.store.sessions[session].session
        saves = [at for verb, at, event in world.store.calls if verb == "save" and event is not None]
        apart = [later - earlier for earlier, later in pairwise(saves[:failures])]
        assert all(0.25 <= each <= 6 for each in apart)


@in_virtual_time
async def test_a_submit_is_not_made_before_its_intent_is_durable() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        world.store.scripts["save"] = FULL_DISK
        await asyncio.sleep(300)
        assert world.site.calls == []
        assert world.safe.gates == {}
        world.store.scripts.clear()
        await wait_for(runner, session, Ready)
        assert world.site.count("submit") == 1


@pytest.mark.parametrize("number", range(1, 14))
def test_any_save_may_succeed_without_a_word(number: int) -> None:
    """What follows from it is done once: nobody but this process knows that it is to be done."""

    @in_virtual_time
    async def story() -> None:
        world = World()
        count = 0

        async def unsaid(act: object) -> object:
            nonlocal count
            count += 1
            answer = act()  # type: ignore[operator]
            if count == number:
                raise StoreFailed("the connection broke after the commit")
            return answer

        async with world.runner() as runner:
            world.store.scripts["save"] = unsaid
            session = await runner.start(request())
            await wait_for(runner, session, Ready, within_s=60)
            assert len(world.site.jobs) == 1
            await asyncio.sleep(2)
            await runner.stop(session)
            await wait_for(runner, session, Ended, within_s=60)
            assert world.site.living == []
            assert world.relay.paths == {}
            await asyncio.sleep(60)
            assert replayed(world, session) == world.store.sessions[session].session
            assert world.store.sessions[session].session.over

    story()


@in_virtual_time
async def test_a_stop_that_was_saved_without_a_word_gives_the_submit_up() -> None:
    world = World()
    async with world.runner() as runner:
        world.site.scripts["submit"] = first(hang)
        session = await runner.start(request())
        await wait_until(lambda: world.site.count("submit") == 1)
        world.store.scripts["save"] = first(UNSAID)
        await runner.stop(session)
        assert isinstance((await runner.get(session)).session.state, Stopping)
        await wait_for(runner, session, Ended, within_s=90)
        assert world.site.running["submit"] == 0


@in_virtual_time
async def test_a_record_that_disappears_frees_its_name_and_its_place() -> None:
    """A store that was set back under a running process."""
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        del world.store.sessions[session], world.store.logs[session]
        runner.post(session, StopAsked())
        await wait_until(lambda: session not in runner.live)
        assert runner.keys == {}
        assert runner.taken.in_all == 0
        again = await runner.start(request())
        assert again != session
        await wait_for(runner, again, Ready)


@in_virtual_time
async def test_a_start_of_the_process_says_that_the_store_fails() -> None:
    world = World()
    world.store.scripts["unfinished"] = raising(StoreFailed("away"))
    with pytest.raises(StoreFailed):
        async with world.runner():
            pass


@pytest.mark.parametrize("seconds", [0.03, 0.05, 0.07, 0.09, 0.11, 0.13, 0.15, 0.17, 0.2, 0.25, 0.3, 5])
def test_a_restart_at_any_time_neither_loses_nor_doubles_a_session(seconds: float) -> None:
    @in_virtual_time
    async def story() -> None:
        world = World()
        async with world.runner() as runner:
            start = asyncio.ensure_future(runner.start(request()))
            await asyncio.sleep(seconds)
        await asyncio.gather(start, return_exceptions=True)
        async with world.runner() as runner:
            session = await runner.start(request())
            await wait_for(runner, session, Ready, within_s=300)
            assert len(world.site.living) == 1
            assert len(world.store.sessions) == 1
            await runner.stop(session)
            await wait_for(runner, session, Ended, within_s=300)
            assert world.site.living == []

    story()


@in_virtual_time
async def test_after_a_restart_each_session_is_taken_up_where_it_was() -> None:
    world = World()
    async with world.runner() as runner:
        ready = await runner.start(request("a"))
        await wait_for(runner, ready, Ready)
        world.site.scripts["submit"] = hang
        hanging = await runner.start(request("b"))
        await wait_for(runner, hanging, Submitting)
        queued = await runner.start(request("c", name="x"))
        await wait_for(runner, queued, Submitting, Waiting)
    world.site.scripts.clear()
    jobs = set(world.site.jobs)
    async with world.runner() as runner:
        at = now_s()
        await wait_for(runner, ready, Ready)
        assert now_s() - at < 15
        for session in (hanging, queued):
            await wait_for(runner, session, Ready, within_s=300)
        assert jobs < set(world.site.jobs)
        assert len(world.site.living) == 3
        assert world.site.jobs[next(iter(jobs))].owner == "a" != ADA
