"""While a job starts, what it waits for is looked for again and again without a decision for every look."""

import asyncio
from itertools import pairwise

from tests.unit.runner.doubles import Act, World, answering, in_virtual_time, now_s, request, wait_for, wait_until

from moorage.core.events import EndpointRead, Probed, Woke
from moorage.core.model import Connecting, Ended, EndReason, Ready, Route, Starting
from moorage.ports.tunnels import ProbeResult


def events(world: World, kind: type) -> int:
    return sum(isinstance(about, kind) for verb, _, about in world.store.calls if verb == "save")


@in_virtual_time
async def test_a_launcher_that_takes_its_time_costs_looks_and_no_decisions() -> None:
    world = World()
    world.site.scripts["read"] = answering(None)
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Starting)
        began = now_s()
        await asyncio.sleep(20)
        assert world.site.count("read") > 20
        assert events(world, EndpointRead) == 0
        del world.site.scripts["read"]
        await wait_for(runner, session, Ready, within_s=6)
        looks = [at - began for at in world.site.times("read")]
        assert looks[1] - looks[0] < 0.1, "at first often"
        assert 4 <= looks[-1] - looks[-2] <= 6, "then ever more rarely"
        assert (events(world, EndpointRead), events(world, Woke)) == (1, 0)


@in_virtual_time
async def test_a_lab_that_takes_its_time_is_probed_without_decisions_and_its_user_told_once() -> None:
    world = World()
    world.relay.scripts["probe"] = answering(ProbeResult(False, "the lab is starting", proven=True))
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Connecting)
        await asyncio.sleep(20)
        assert world.relay.count("probe") > 20
        assert (events(world, Probed), events(world, Woke)) == (0, 0)
        assert [progress.text for _, progress in world.hub.reports][-1] == "connecting: waiting for the lab"
        del world.relay.scripts["probe"]
        await wait_for(runner, session, Ready, within_s=6)
        assert world.relay.count("open") == 1


@in_virtual_time
async def test_patience_ends_with_one_calls_time_and_begins_anew() -> None:
    """So that a state is never without a time at which something is done for it."""
    world = World()
    world.site.scripts["read"] = answering(None)
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Starting)
        await asyncio.sleep(100)
        assert 2 <= events(world, EndpointRead) <= 3
        assert max(later - at for at, later in pairwise(world.site.times("read"))) <= 6


@in_virtual_time
async def test_patience_ends_with_the_state_that_it_is_for() -> None:
    """A stop, or the end of the job, is not waited out by looks that nobody wants any more."""
    for stopped in (True, False):
        world = World()
        world.site.scripts["read"] = answering(None)
        async with world.runner() as runner:
            session = await runner.start(request())
            await wait_for(runner, session, Starting)
            await asyncio.sleep(3)
            if stopped:
                await runner.stop(session)
            else:
                world.site.end(next(iter(world.site.jobs)), EndReason.FAILED)
            await wait_until(lambda world=world: world.site.count("remove") == 1, 30)  # type: ignore[misc]
            await wait_for(runner, session, Ended)
            looks = [about for verb, _, about in world.site.calls if verb == "read"].count("endpoint.json")
            await asyncio.sleep(60)
            assert [about for verb, _, about in world.site.calls if verb == "read"].count("endpoint.json") == looks


@in_virtual_time
async def test_a_path_that_breaks_while_the_lab_starts_is_made_anew() -> None:
    world = World()
    probes = [ProbeResult(False, "the lab is starting", proven=True)] * 3 + [ProbeResult(False, "cut")]

    async def script(act: Act) -> object:
        return probes.pop(0) if probes else act()

    world.relay.scripts["probe"] = script
    async with world.runner() as runner:
        session = await runner.start(request())
        ready = await wait_for(runner, session, Ready, within_s=10)
        assert isinstance(ready.state, Ready)
        assert isinstance(ready.state.route, Route)
        assert world.relay.count("open") == 2
