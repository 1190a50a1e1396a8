"""Limits under races, with several processes, and across restarts."""

import asyncio
from typing import Any

from tests.unit.runner.doubles import (
    FULL_DISK,
    UNSAID,
    A,
    Act,
    B,
    World,
    first,
    hang,
    in_virtual_time,
    now_s,
    request,
    wait_for,
    wait_until,
)

from moorage.core.admission import Taken, takes_place
from moorage.core.events import Held, PathDoubted, Woke
from moorage.core.limits import Limits
from moorage.core.model import Ended, Ready, Waiting, Why
from moorage.runner import Runner


def holds(world: World) -> int:
    return sum(takes_place(each.session) for each in world.store.sessions.values())


def agrees(runner: Runner, world: World) -> bool:
    """Whether the tally of the process is what the store says."""
    said = Taken(each.session for each in world.store.sessions.values() if takes_place(each.session))
    own = runner.taken
    tallies = ((said.owners, own.owners), (said.systems, own.systems), (said.groups, own.groups))
    return said.in_all == own.in_all and all(+a == +b for a, b in tallies)


@in_virtual_time
async def test_a_hundred_starts_at_once_take_the_seven_places_there_are() -> None:
    world = World(limits=Limits(of_system={A: 7}, per_group={"course": 5}))
    async with world.runner() as runner:
        ids = await asyncio.gather(
            *(runner.start(request(f"user{n}", groups=("course",) if n % 2 else ())) for n in range(100))
        )
        most = 0
        for _ in range(600):
            await asyncio.sleep(0.1)
            most = max(most, holds(world), len(world.site.living))
        assert most == 7
        ready = [each for each in ids if isinstance((await runner.get(each)).session.state, Ready)]
        assert len(ready) == 7
        for each in ready[:3]:
            await runner.stop(each)
        await wait_until(lambda: len(world.site.living) == 7, 300)
        await asyncio.sleep(30)
        assert holds(world) == 7
        assert agrees(runner, world)


@in_virtual_time
async def test_places_of_another_process_are_respected_without_asking_all_the_time() -> None:
    world = World(limits=Limits(of_system={A: 3}))
    world.store.held_elsewhere = 2
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{n}")) for n in range(3)]
        await asyncio.sleep(60)
        assert len(world.site.living) == 1
        await wait_until(lambda: not runner.admitting, 2)
        assert agrees(runner, world)
        saves = world.store.count("save")
        await asyncio.sleep(60)
        assert world.store.count("save") - saves <= 2 * 61, "asked more often than once a second"
        world.store.held_elsewhere = 0
        for each in ids:
            await wait_for(runner, each, Ready, within_s=60)


@in_virtual_time
async def test_a_place_is_given_back_whatever_becomes_of_an_admission() -> None:
    """A stop that comes between the admission and its save, and a save that is not confirmed."""
    world = World(limits=Limits(of_system={A: 1}))
    async with world.runner() as runner:
        world.store.latency_s = 0.5
        one = await runner.start(request("a"))
        await asyncio.sleep(0.1)
        await runner.stop(one)
        await wait_for(runner, one, Ended)
        two = await runner.start(request("b"))
        world.store.scripts["save"] = first(UNSAID)
        await wait_for(runner, two, Ready)
        await asyncio.sleep(5)
        assert agrees(runner, world)
        assert not runner.admitting


@in_virtual_time
async def test_after_a_restart_the_places_are_still_taken() -> None:
    world = World(limits=Limits(of_system={A: 2}))
    async with world.runner() as runner:
        for name in "abc":
            await runner.start(request(name))
        await wait_until(lambda: len(world.site.living) == 2)
    async with world.runner() as runner:
        await asyncio.sleep(60)
        assert len(world.site.living) == 2
        assert agrees(runner, world)
        waiting = [each for each in world.store.sessions.values() if isinstance(each.session.state, Waiting)]
        assert [each.session.state.why for each in waiting] == [Why.LIMIT]  # type: ignore[union-attr]


@in_virtual_time
async def test_who_waits_for_a_full_system_holds_up_nobody_on_another_one() -> None:
    world = World(limits=Limits(of_system={A: 0}))
    async with world.runner() as runner:
        for n in range(50):
            await runner.start(request(f"user{n}"))
        at = now_s()
        await wait_for(runner, await runner.start(request("eve", system=B)), Ready)
        assert now_s() - at < 3


@in_virtual_time
async def test_hanging_submits_keep_their_places_until_they_are_answered() -> None:
    world = World(limits=Limits(of_system={A: 2}))
    world.site.scripts["submit"] = first(hang, hang)
    async with world.runner() as runner:
        ids = [await runner.start(request(f"user{n}")) for n in range(4)]
        await asyncio.sleep(100)
        assert world.site.count("submit") == 2
        for each in ids[:2]:
            await runner.stop(each)
        for each in ids[2:]:
            await wait_for(runner, each, Ready, within_s=120)
        assert agrees(runner, world)


@in_virtual_time
async def test_what_comes_again_and_again_does_not_pile_up_while_the_store_is_away() -> None:
    """Whoever waits is looked at every second; what they are told is saved once the store takes it again."""
    world = World(limits=Limits(in_all=1))
    async with world.runner() as runner:
        ready = await runner.start(request("ada"))
        await wait_for(runner, ready, Ready)
        waits = await runner.start(request("bob"))
        world.store.scripts["save"] = FULL_DISK
        runner.post(waits, Held(Why.BREAKER))  # cannot be saved, so that what follows has to wait
        longest = 0
        for second in range(300):
            await asyncio.sleep(1)
            runner.post(waits, Woke())
            runner.post(waits, PathDoubted(f"for {second} s"))
            longest = max(longest, *(len(live.mailbox) for live in runner.live.values()))
        assert longest <= 3
        world.store.scripts.clear()
        await asyncio.sleep(30)
        state = (await runner.get(waits)).session.state
        assert isinstance(state, Waiting)
        assert state.why is Why.LIMIT


@in_virtual_time
async def test_telling_somebody_why_they_wait_has_nobody_looked_at_again() -> None:
    """With three hundred who wait, each of three hundred saves would be three hundred looks."""
    looks = saves = 0

    async def spread_out(act: Act) -> Any:
        nonlocal saves
        saves += 1
        await asyncio.sleep(0.001 * saves)
        return act()

    def closed(_now: object) -> str | None:
        nonlocal looks
        looks += 1
        return None

    world = World(limits=Limits(in_all=1), entry={"closed": closed})
    async with world.runner() as runner:
        ready = await runner.start(request("ada"))
        await wait_for(runner, ready, Ready)
        world.store.scripts["save"] = spread_out
        looks = 0
        await asyncio.gather(*(runner.start(request(f"user{n}")) for n in range(50)))
        await asyncio.sleep(10)
        waiting = [live.session for live in runner.live.values() if live.session is not None]
        assert sum(isinstance(each.state, Waiting) and each.state.why is Why.LIMIT for each in waiting) == 50
        # One for each who came, and one a second.
        assert looks <= (50 + 11) * len(world.sites)
