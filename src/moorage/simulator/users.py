"""People: they start, wait, work, stop, change their minds, lose patience, and do things twice."""

import asyncio
from collections.abc import Mapping, Sequence

from attrs import field, frozen

from moorage.core.model import Ended, Ready, SessionId, Stopping
from moorage.ports.errors import StoreError
from moorage.ports.sessions import StartRequest
from moorage.runner import Runner

from .choices import Source, between, chance
from .world import World

NAMES = ("", "lab", "Lab", "a%2Fb", "ünï-cødé", "x" * 255, "café", "..", "a b", "'; --", "LAB", "1")
"""Server names as people and attackers choose them; all of them are different sessions."""


@frozen
class Visit:
    """
    One session as its user means it.

    Args:
        at_ms: When it is asked for.
        stays_ms: How long it is used once it is ready; `None`: never stopped, the walltime ends it.
        patience_ms: How long its user waits for it.
    """

    at_ms: int
    request: StartRequest
    stays_ms: int | None = 3_600_000
    patience_ms: int = 3_600_000
    groups: tuple[str, ...] = ()


@frozen
class Crowd:
    """Everybody who comes, and where their chances come from."""

    world: World
    source: Source
    visits: Sequence[Visit]
    sessions: dict[int, SessionId] = field(factory=dict)

    async def come(self) -> None:
        """Everybody comes in their time; returns when all have gone."""
        tasks = [self.world.spawn(self._visit(number, visit)) for number, visit in enumerate(self.visits)]
        if tasks:
            await asyncio.wait(tasks)

    async def _visit(self, number: int, visit: Visit) -> None:
        world = self.world
        key = visit.request.key
        # A stream for each visit: more visitors do not change the chances of this one.
        source = self.source.stream(f"{key.hub}/{key.owner}/{key.name}/{visit.at_ms}")
        await world.sleep(max(0, visit.at_ms - world.loop.now_ms))
        if world.faults.healed:
            return
        habits = [kind.lie for kind in world.faults.happens("user", "start")]
        if "gives up waiting" in habits:
            await self._give_up_early(visit, source)
        if "twice" in habits:
            both = [asyncio.ensure_future(world.start(visit.request)) for _ in range(2)]
            await asyncio.wait(both)
            session = both[0].result()
        else:
            session = await world.start(visit.request)
        self.sessions[number] = session
        if "stop early" in habits or "removed" in habits:
            await world.sleep(int(between(source, 0, 90_000, "changes their mind after")))
            await world.stop(session, "user" if "stop early" in habits else "policy")
            return
        if world.faults.happens("user", "follow"):
            world.spawn(self._follow(session, source))
        state = await world.until(session, (Ready, Stopping, Ended), visit.patience_ms)
        if state is Ready:
            await self._work(session, visit, source)
        elif state is None:
            await world.stop(session, "impatience")

    async def _work(self, session: SessionId, visit: Visit, source: Source) -> None:
        world = self.world
        if visit.stays_ms is None:
            return
        await world.until(session, (Stopping, Ended), visit.stays_ms)
        await world.stop(session)
        if "again" in [kind.lie for kind in world.faults.happens("user", "stop")]:
            again = await world.start(visit.request)
            await world.sleep(int(between(source, 1_000, 300_000, "the second one is used for")))
            await world.stop(again)

    async def _give_up_early(self, visit: Visit, source: Source) -> None:
        """A start whose caller goes away before it returns: the session comes into being, or there is none."""
        runner = await self.world.alive()
        self.world.choices.who = f"{visit.request.key.hub}/{visit.request.key.owner}/{visit.request.key.name}"
        starting = asyncio.ensure_future(runner.start(visit.request))
        await self.world.sleep(int(between(source, 0, 100, "gone after")))
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)

    async def _follow(self, session: SessionId, source: Source) -> None:
        """Watches the progress, goes away, comes back and wants to go on where it was."""
        position = 0
        for _ in range(3):
            runner = await self.world.alive()
            position = await self._watch(runner, session, position, source)
            await self.world.sleep(int(between(source, 0, 30_000, "comes back after")))

    async def _watch(self, runner: Runner, session: SessionId, position: int, source: Source) -> int:
        seen = position

        async def watch() -> None:
            nonlocal seen
            async for step in runner.follow(session, seen):
                if step.position != seen + 1:
                    self.world.report("follow_leaves_no_gap", f"position {step.position} follows {seen}", session)
                seen = step.position
                if chance(source, 0.05, "goes away"):
                    return

        watching = asyncio.ensure_future(watch())
        await asyncio.wait([watching], timeout=300)
        watching.cancel()
        result = (await asyncio.gather(watching, return_exceptions=True))[0]
        if isinstance(result, Exception) and not isinstance(result, StoreError | KeyError):
            raise result
        return seen


__all__: Sequence[str] = ("NAMES", "Crowd", "Mapping", "Visit")
