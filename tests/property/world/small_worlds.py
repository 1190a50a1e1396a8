"""Small worlds for tests: a few sessions, some minutes, everything else from a seed."""

import asyncio
from collections.abc import Sequence

from attrs import evolve, frozen

from moorage.core.limits import Limits
from moorage.core.model import Owner, SessionKey, SystemName
from moorage.core.timeouts import Timeouts
from moorage.ports.sessions import StartRequest
from moorage.simulator.choices import Seeded, Source, chance, pick
from moorage.simulator.crashes import Crash, crash_points
from moorage.simulator.faults import Decider, Quiet, Rates, Swarm
from moorage.simulator.storms import STORMS
from moorage.simulator.users import NAMES, Crowd, Visit
from moorage.simulator.world import SystemPlan, World, WorldPlan

MOST_CALLBACKS = 600_000
"""A hundred times what such a world needs."""


@frozen
class Small:
    """What happens in a small world, besides faults."""

    plan: WorldPlan
    visits: tuple[Visit, ...]
    lasts_ms: int
    storm: str = ""


def small(seed: int, sessions: int = 4) -> Small:
    """A small world, other systems and people for every seed."""
    source = Seeded(seed, "small")
    names = ("alpha", "beta")[: 1 + chance(source, 0.4)]
    factor = pick(source, (1.0, 1.0, 1.0, 0.5, 2.0))
    systems = tuple(
        SystemPlan(
            SystemName(name),
            nodes=source.integer(1, 4),
            timeouts=Timeouts().scaled(factor),
            pushes=chance(source, 0.3),
            latency_ms=pick(source, ((5, 60), (1, 5), (50, 900))),
        )
        for name in names
    )
    limits = Limits(in_all=source.integer(2, 8), per_user=source.integer(1, 4), per_group={"g": source.integer(1, 4)})
    lasts_ms = source.integer(8, 25) * 60_000
    count = source.integer(2, sessions + 1)
    visits = tuple(_visit(source, names, lasts_ms) for _ in range(count))
    storm = pick(source, ("S1", "S2", "S3", "S4", "S7", "S8")) if chance(source, 0.05) else ""
    return Small(WorldPlan(systems, limits, keep_trace=True, crowd=5), visits, lasts_ms, storm)


def _visit(source: Source, names: Sequence[str], lasts_ms: int) -> Visit:
    owner = Owner(f"user{source.integer(0, 2)}")
    key = SessionKey(pick(source, ("hub", "hub", "hub2")), owner, pick(source, NAMES[:4]))
    groups = ("g",) if chance(source, 0.5) else ()
    request = StartRequest(key, SystemName(pick(source, names)), groups, walltime_s=source.integer(120, 7_200))
    # Some stay long after it is healed: what is never mended has to show before they stop and take it along.
    stays_ms = None if chance(source, 0.2) else source.integer(1_000, 2 * lasts_ms)
    return Visit(source.integer(0, lasts_ms // 2), request, stays_ms, source.integer(60_000, 3_600_000))


def live(
    seed: int,
    decider: Decider | None = None,
    crash: Crash | None = None,
    world: Small | None = None,
    settle: bool = True,
) -> World:
    """
    Live through a small world.

    Args:
        decider: What decides about faults; without it, a swarm from the seed.

    Returns:
        The world at its end; `world.broken` says what did not hold.
    """
    chosen = small(seed) if world is None else world
    source = Seeded(seed)
    decide = Swarm(source.stream("swarm")) if decider is None else decider
    made = World(source, chosen.plan, decide, crash)
    made.loop.most_callbacks = MOST_CALLBACKS
    doings = [Crowd(made, source.stream("users"), chosen.visits).come()]
    if chosen.storm:
        doings.append(_storm(made, chosen.storm, chosen.lasts_ms))
    made.run(doings, chosen.lasts_ms, settle)
    return made


async def _storm(world: World, name: str, lasts_ms: int) -> None:
    await world.sleep(lasts_ms // 4)
    await asyncio.ensure_future(STORMS[name](world, world.source.stream("storm")))


def check(world: World, seed: int) -> None:
    """The world held; otherwise its story, and how to see it again."""
    broken = world.broken
    if broken is None:
        return
    about = [line for line in world.trace if not broken.session or broken.session in line or "fault" in line]
    story = "\n".join(about[-40:])
    raise AssertionError(f"seed {seed}: {broken}\n{story}")


def quiet(seed: int, crash: Crash | None = None, world: Small | None = None) -> World:
    """The same world with no fault but a crash."""
    chosen = small(seed) if world is None else world
    return live(seed, Quiet(), crash, evolve(chosen, storm=""))


def crowded(seed: int) -> World:
    """
    More people than nodes, one process that dies somewhere, a requeue now and then, and nothing else that goes wrong.

    What a process has to know about those who wait in the queue shows here at once; where much goes wrong it is often
    healed by chance.
    """
    source = Seeded(seed, "crowded")
    points = list(crash_points())
    point = points[source.integer(0, len(points) - 1, "where it dies")]
    crash = Crash(point.effect, point.position, source.integer(0, 4, "at which of them"))
    alpha = SystemName("alpha")
    visits = tuple(
        Visit(
            source.integer(0, 60_000),
            StartRequest(SessionKey("hub", Owner(f"user{number}")), alpha, walltime_s=source.integer(120, 900)),
            None if chance(source, 0.3) else source.integer(60_000, 600_000),
        )
        for number in range(4)
    )
    # Half of them give up after some minutes in the queue, which has to be known after the restart, too.
    timeouts = evolve(Timeouts(), queued_s=pick(source, (Timeouts().queued_s, 420)))
    limits = Limits(in_all=pick(source, (2, 100)))
    systems = (SystemPlan(alpha, nodes=1, timeouts=timeouts, pushes=chance(source, 0.3)),)
    plan = WorldPlan(systems, limits, keep_trace=True)
    requeues = Rates(Seeded(seed, "requeues"), {"F-S2.requeue": pick(source, (0.0, 0.5))})
    return live(seed, requeues, crash, Small(plan, visits, 1_200_000))
