"""Run a scenario: build its world, let its people come, heal, settle, and say what came of it."""

import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from attrs import define, evolve, frozen

from moorage.core.model import Owner, SessionKey, SystemName
from moorage.ports.sessions import StartRequest

from .choices import Seeded, Source, chance, exponential, pick, spread
from .faults import CATALOGUE, Decider, Faults, Fired, Quiet, Rates, Script, Swarm
from .guard import guarded
from .invariants import DECISIONS, LOOKS
from .invariants import Broken as InvariantBroken
from .report import Broken, Result, Snapshot, Tally, Times
from .scenario import Burst, Poisson, Scenario, Storm, WorkingDay, load_faults
from .site import Habits
from .storms import STORMS
from .story import story_of
from .users import NAMES, Crowd, Visit
from .world import SystemPlan, World, WorldPlan

Item = TypeVar("Item")
OnProgress = Callable[[Snapshot], None]

LIGHT = 0.003
"""Probability per opportunity of every kind of fault under `light`."""

STORY_LINES = 60
SHRINK_RUNS = 60
SHRINK_CPU_S = 120.0
"""Most further runs, and seconds of processor time, in the search for a shorter story."""

AFTERWARDS_MS = 600_000
"""A run of that search ends so long after the first one broke: what breaks later is another story."""


def run_scenario(
    scenario: Scenario,
    seed: int,
    faults: str | Path | None = None,
    on_progress: OnProgress | None = None,
    keep_trace: bool = True,
) -> Result:
    """
    Run a scenario once.

    Args:
        faults: "none", "light", "storm", or a file of faults; without it, what the scenario itself says.
        on_progress: Called about once a virtual minute.
        keep_trace: Whether the result carries what happened, line by line.
    """
    run = _Run(scenario, seed, _trouble(scenario, seed, faults))
    latest: list[Snapshot] = []

    def watch(snapshot: Snapshot) -> None:
        latest[:] = [snapshot]
        if on_progress is not None:
            on_progress(snapshot)

    result = run.once(keep_trace, None if on_progress is None else watch)
    if result.broken is None:
        return result
    if on_progress is not None and latest:
        on_progress(evolve(latest[0], broken=result.broken.invariant))
    return evolve(result, broken=evolve(result.broken, story=tuple(run.story(result.broken))))


@frozen
class Trouble:
    """What goes wrong in a run, and what people call it."""

    name: str
    decider: Callable[[Source], Decider]
    storms: tuple[Storm, ...] = ()


def _trouble(scenario: Scenario, seed: int, faults: str | Path | None) -> Trouble:
    match faults:
        case None:
            return Trouble("scenario", lambda source: Rates(source, scenario.faults), scenario.storms)
        case "none":
            return Trouble("none", lambda _source: Quiet())
        case "light":
            rates = {kind.name: LIGHT * kind.share for kind in CATALOGUE}
            return Trouble("light", lambda source: Rates(source, rates))
        case "storm":
            source = Seeded(seed, "storms")
            names = [pick(source, sorted(STORMS), "storm") for _ in range(2)]
            times = sorted(source.fraction("begins") * scenario.lasts * 0.8 for _ in names)
            storms = tuple(Storm(name=name, at=at) for name, at in zip(names, times, strict=True))
            return Trouble("storm", lambda source: Swarm(source, scale=0.2), storms)
        case _:
            found = load_faults(faults)
            return Trouble(str(faults), lambda source: Rates(source, found.faults), found.storms)


@frozen
class _Run:
    """One scenario with one seed and one kind of trouble."""

    scenario: Scenario
    seed: int
    trouble: Trouble

    def once(
        self,
        keep_trace: bool = False,
        on_progress: OnProgress | None = None,
        decider: Decider | None = None,
        visits: Sequence[Visit] | None = None,
        fired: list[Fired] | None = None,
        until_ms: int | None = None,
    ) -> Result:
        """
        One run.

        Args:
            decider: Decides about faults, instead of what the trouble says.
            visits: Who comes, instead of what the scenario says.
            fired: Gets the faults that fired.
            until_ms: Ends there, if that is before the end, without the question whether all comes to rest.
        """
        began, cpu = time.perf_counter(), time.process_time()
        source = Seeded(self.seed)
        tally = Tally()
        with guarded():
            decide = self.trouble.decider(source.stream("swarm")) if decider is None else decider
            world = World(source, self._plan(keep_trace), decide)
            world.watchers.append(tally.watch)
            crowd = Crowd(world, source.stream("users"), visits_of(self.scenario, source) if visits is None else visits)
            doings = [crowd.come(), *self._storms(world)]
            if on_progress is not None:
                doings.append(self._progress(world, tally, on_progress))
            lasts_ms = int(self.scenario.lasts * 1000)
            ends_ms = lasts_ms if until_ms is None else min(until_ms, lasts_ms)
            broken = _told(world.run(doings, ends_ms, settle=ends_ms == lasts_ms))
            if fired is not None:
                fired.extend(world.faults.fired)
        result = self._result(world, tally, broken)
        return evolve(result, real_s=time.perf_counter() - began, cpu_s=time.process_time() - cpu)

    def _plan(self, keep_trace: bool) -> WorldPlan:
        systems = []
        for name, system in self.scenario.systems.items():
            habits = Habits(boot_ms=int(system.boot * 1000), lab_ms=int(system.lab * 1000))
            longest = max(2, int(system.answers_after * 1000))
            systems.append(
                SystemPlan(
                    name,
                    system.nodes,
                    timeouts=self.scenario.timeouts(name),
                    habits=habits,
                    latency_ms=(longest // 10 + 1, longest),
                    pushes=system.pushes,
                    schedule_ms=int(system.schedules_every * 1000),
                    max_walltime_s=int(system.max_walltime),
                )
            )
        return WorldPlan(tuple(systems), self.scenario.limits, keep_trace=keep_trace, store_takes_time=False)

    def _storms(self, world: World) -> list[Coroutine[Any, Any, None]]:
        async def storm(each: Storm) -> None:
            await world.sleep(int(each.at * 1000))
            world.note(f"storm {each.name}")
            await STORMS[each.name](world, world.source.stream(f"storm/{each.name}/{each.at}"))

        return [storm(each) for each in self.trouble.storms]

    async def _progress(self, world: World, tally: Tally, on_progress: OnProgress) -> None:
        while True:
            on_progress(self._snapshot(world, tally))
            await world.sleep(60_000)

    def _snapshot(self, world: World, tally: Tally) -> Snapshot:
        systems = {name: {state: n for state, n in places.items() if n} for name, places in tally.places.items()}
        states: dict[str, int] = {}
        for places in systems.values():
            for state, count in places.items():
                states[state] = states.get(state, 0) + count
        return Snapshot(
            world.loop.now_ms / 1000,
            self.scenario.lasts,
            tally.asked,
            states,
            systems,
            sum(world.faults.ledger.values()),
            0 if world.invariants is None else world.invariants.count,
            world.faults.healed,
        )

    def _result(self, world: World, tally: Tally, broken: Broken | None) -> Result:
        names = set(world.sites)
        calls = {key: count for key, count in world.calls.items() if key.partition(".")[0] in names}
        checks = world.invariants
        return Result(
            scenario=self.scenario.name,
            seed=self.seed,
            faults_from=self.trouble.name,
            asked=tally.asked,
            ready=tally.ready,
            causes=dict(tally.causes),
            waits=Times.of(tally.waits),
            starts=Times.of(tally.starts),
            session_hours=tally.ready_s / 3600,
            calls=calls,
            fired=dict(world.faults.ledger),
            crashes=world.crashes,
            checked=0 if checks is None else checks.count,
            invariants=[check.__name__ for check in (*DECISIONS, *LOOKS)] + sorted(checks.checked if checks else ()),
            virtual_s=world.loop.now_ms / 1000 if broken is None else broken.at_s,
            real_s=0.0,
            cpu_s=0.0,
            callbacks=world.loop.callbacks,
            digest=world.digest,
            broken=broken,
            trace=world.trace,
        )

    # A shorter story --------------------------------------------------------------------------------------------------

    def story(self, broken: Broken) -> list[str]:
        """
        What happened to the session whose invariant broke, in the shortest run found that breaks the same.

        People are dropped by halves, then faults, as long as the same invariant still breaks.
        """
        until_ms = int(broken.at_s * 1000) + AFTERWARDS_MS
        best = self.once(keep_trace=True, until_ms=until_ms)
        search = _Search(broken.invariant, best, SHRINK_RUNS, time.process_time() + SHRINK_CPU_S)
        visits = search.fewer(
            visits_of(self.scenario, Seeded(self.seed)),
            lambda part: self.once(True, visits=part, until_ms=until_ms),
        )
        # Other people make other opportunities; so the faults are taken from the run that is left.
        fired: list[Fired] = []
        self.once(keep_trace=True, visits=visits, fired=fired, until_ms=until_ms)
        search.fewer(
            [(each.name, each.opportunity) for each in fired],
            lambda part: self.once(True, decider=Script(frozenset(part)), visits=visits, until_ms=until_ms),
        )
        return story_of(search.best.trace)


@define
class _Search:
    """Looks for a shorter run that breaks the same invariant."""

    invariant: str
    best: Result
    runs: int
    until_cpu_s: float

    def fewer(self, items: Sequence[Item], again: Callable[[Sequence[Item]], Result]) -> Sequence[Item]:
        """What is left after parts were dropped, halves first, as long as the same invariant breaks."""
        step = (len(items) + 1) // 2
        while step:
            for start in range(0, len(items), step):
                if self.runs == 0 or time.process_time() > self.until_cpu_s:
                    return items
                self.runs -= 1
                part = [*items[:start], *items[start + step :]]
                result = again(part)
                if _name(result) == self.invariant:
                    items, self.best = part, result
                    break
            else:
                step //= 2
        return items


def _name(result: Result) -> str:
    return "" if result.broken is None else result.broken.invariant


def _told(found: InvariantBroken | None) -> Broken | None:
    if found is None:
        return None
    about = f"session {found.session}: " if found.session else ""
    return Broken(found.invariant, f"{about}{found.sentence}", found.at_ms / 1000)


# Who comes ------------------------------------------------------------------------------------------------------------


def visits_of(scenario: Scenario, source: Source) -> list[Visit]:
    """Everybody who comes, in the order of their coming."""
    times: list[float] = []
    for number, arrivals in enumerate(scenario.arrivals):
        times += _times(arrivals, scenario, source.stream(f"arrivals/{number}"))
    people = source.stream("people")
    visits = [_visit(number, at, scenario, people) for number, at in enumerate(sorted(times)) if at < scenario.lasts]
    return visits


def _times(arrivals: Burst | Poisson | WorkingDay, scenario: Scenario, source: Source) -> list[float]:
    match arrivals:
        case Burst():
            return [arrivals.at + source.fraction("comes") * arrivals.within for _ in range(arrivals.people)]
        case Poisson():
            until = scenario.lasts if arrivals.lasts is None else arrivals.begins + arrivals.lasts
            times, at = [], arrivals.begins + exponential(source, 3600 / arrivals.per_hour, "comes")
            while at < until:
                times.append(at)
                at += exponential(source, 3600 / arrivals.per_hour, "comes")
            return times
        case WorkingDay():
            return [arrivals.begins + arrivals.lasts * _of_a_day(source) for _ in range(arrivals.people)]


def _of_a_day(source: Source) -> float:
    """When in a working day somebody comes: two thirds around nine, one third around two, as a share of the day."""
    peak = 0.15 if chance(source, 2 / 3, "morning") else 0.6
    return min(0.999, max(0.0, peak + (source.fraction("comes") + source.fraction("comes") - 1) * 0.15))


def _visit(number: int, at: float, scenario: Scenario, source: Source) -> Visit:
    names = [name for name, system in scenario.systems.items() if system.weight]
    total = sum(scenario.systems[name].weight for name in names)
    place, chosen = source.fraction("which system") * total, names[-1]
    for name in names:
        place -= scenario.systems[name].weight
        if place < 0:
            chosen = name
            break
    stays = scenario.stays
    left_open = chance(source, stays.left_open, "left open")
    stays_ms = int(spread(source, stays.median, stays.spread, "stays") * 1000)
    walltime_s = int(min(stays.walltime, scenario.systems[chosen].max_walltime))
    key = SessionKey("hub", Owner(f"user{number:04d}"), NAMES[number % 3])
    request = StartRequest(key, SystemName(chosen), walltime_s=walltime_s)
    return Visit(int(at * 1000), request, None if left_open else stays_ms, int(stays.patience * 1000))


__all__ = ["Faults", "OnProgress", "run_scenario", "visits_of"]
