"""Following: every step from any position, in order, without gaps, also across a restart."""

import asyncio

from tests.unit.runner.doubles import World, in_virtual_time, request, wait_for

from moorage.core.model import Ended, Ready, SessionId
from moorage.ports.sessions import Step
from moorage.runner import Runner


async def followed(runner: Runner, session: SessionId, after: int = 0) -> list[Step]:
    return [step async for step in runner.follow(session, after)]


@in_virtual_time
async def test_a_follower_sees_every_step_as_it_happens_and_the_end() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        follower = asyncio.ensure_future(followed(runner, session))
        await wait_for(runner, session, Ready)
        await asyncio.sleep(1)
        await runner.stop(session)
        steps = await asyncio.wait_for(follower, 300)
        states = [step.progress.state for step in steps]
        assert [step.position for step in steps] == list(range(1, len(steps) + 1))
        assert steps[0].event == "Started"
        order = ["waiting", "submitting", "queued", "starting", "connecting", "ready", "stopping", "ended"]
        assert list(dict.fromkeys(states)) == order


@in_virtual_time
async def test_following_from_any_position_gives_the_rest() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        await runner.stop(session)
        await wait_for(runner, session, Ended)
        whole = await followed(runner, session)
        for after in range(len(whole) + 3):
            assert await asyncio.wait_for(followed(runner, session, after), 5) == whole[after:]


@in_virtual_time
async def test_a_follower_goes_on_in_another_process() -> None:
    world = World()
    seen: list[Step] = []
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        async for step in runner.follow(session):
            seen.append(step)
            if step.progress.state == "ready":
                break
    async with world.runner() as runner:
        rest = asyncio.ensure_future(followed(runner, session, seen[-1].position))
        await asyncio.sleep(10)
        await runner.stop(session)
        steps = seen + await asyncio.wait_for(rest, 300)
        assert [step.position for step in steps] == list(range(1, len(steps) + 1))
        assert steps == (await followed(runner, session))[: len(steps)]
        assert "Resumed" in [step.event for step in steps]


@in_virtual_time
async def test_many_followers_and_those_who_leave() -> None:
    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        followers = [asyncio.ensure_future(followed(runner, session)) for _ in range(20)]
        await wait_for(runner, session, Ready)
        assert len(runner.live[session].followers) == 20
        for follower in followers[:19]:
            follower.cancel()
        await asyncio.gather(*followers[:19], return_exceptions=True)
        assert len(runner.live[session].followers) == 1
        await runner.stop(session)
        steps = await asyncio.wait_for(followers[19], 300)
        assert steps[-1].progress.state == "ended"


@in_virtual_time
async def test_an_ended_session_whose_files_are_still_there_is_followed_to_its_end_only() -> None:
    """What is left over may take days; who follows a session wants to know that it is over."""
    from tests.unit.runner.doubles import raising

    from moorage.ports.errors import Unreachable

    world = World()
    async with world.runner() as runner:
        session = await runner.start(request())
        await wait_for(runner, session, Ready)
        world.site.scripts["remove"] = raising(Unreachable("away"))
        await runner.stop(session)
        steps = await asyncio.wait_for(followed(runner, session), 600)
        assert steps[-1].progress.state == "ended"
        assert runner.live[session].session is not None
        assert not runner.live[session].session.over
