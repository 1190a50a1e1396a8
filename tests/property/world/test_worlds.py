"""Whatever happens to a world, its invariants hold; and healed, it comes to rest."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_worlds import Small, check, crowded, live, quiet, small

from moorage.core.model import Ended, Owner, SessionKey, SystemName
from moorage.ports.sessions import StartRequest
from moorage.simulator.choices import Seeded
from moorage.simulator.crashes import Crash, crash_points
from moorage.simulator.faults import BY_NAME, CATALOGUE, Rates, Script
from moorage.simulator.storms import STORMS
from moorage.simulator.users import NAMES, Visit
from moorage.simulator.world import SystemPlan, WorldPlan


def test_safety_while_it_misbehaves_and_liveness_once_it_is_healed(seeds: range) -> None:
    """Every seed has its own systems, people and swarm of faults; all invariants hold, and it comes to rest."""
    for seed in seeds:
        check(live(seed), seed)


# A few faults at chosen moments, so that a failure shrinks to the shortest story --------------------------------------

faults = st.lists(st.tuples(st.sampled_from(sorted(BY_NAME)), st.integers(0, 12)), max_size=6, unique=True).map(
    frozenset
)


@st.composite
def visits(draw: st.DrawFn) -> Visit:
    key = SessionKey("hub", Owner(draw(st.sampled_from(["ann", "bob"]), label="who")), draw(st.sampled_from(NAMES[:3])))
    at = draw(st.integers(0, 300), label="comes at, s")
    stays = draw(st.none() | st.integers(1, 900), label="stays, s")
    request = StartRequest(key, SystemName("alpha"), walltime_s=draw(st.integers(120, 3_600), label="walltime, s"))
    return Visit(at * 1000, request, None if stays is None else stays * 1000)


@settings(max_examples=max(10, settings.default.max_examples // 2 if settings.default else 50))
@given(st.lists(visits(), min_size=1, max_size=4), faults, st.integers(0, 2**16))
def test_no_few_faults_at_any_moment_break_it(people: list[Visit], plan: frozenset[tuple[str, int]], seed: int) -> None:
    """Nine of ten failures of distributed systems need at most three events; these runs have at most six."""
    world = Small(WorldPlan((SystemPlan(SystemName("alpha"), nodes=2),), keep_trace=True), tuple(people), 900_000)
    check(live(seed, Script(plan), world=world), seed)


# Crashes --------------------------------------------------------------------------------------------------------------


def _one_life() -> Small:
    """One session that is stopped, one whose job ends by itself, one that is given up while it waits in the queue."""
    alpha = SystemName("alpha")
    people = [
        Visit(0, StartRequest(SessionKey("hub", Owner("ann")), alpha), 400_000),
        Visit(1_000, StartRequest(SessionKey("hub", Owner("bob")), alpha, walltime_s=300), None),
        Visit(20_000, StartRequest(SessionKey("hub", Owner("cyd")), alpha), None, patience_ms=60_000),
    ]
    return Small(WorldPlan((SystemPlan(alpha, nodes=2),), keep_trace=True), tuple(people), 900_000)


@pytest.mark.parametrize("crash", list(crash_points()), ids=str)
def test_a_crash_at_any_boundary_of_any_effect_loses_nothing(crash: Crash) -> None:
    """Killed at each of the five positions around each effect and started again, everything holds and comes to rest."""
    decider = Rates(Seeded(1), {"F-U3.submit": 1.0}) if crash.effect == "Find" else None
    world = live(1, decider, crash, _one_life()) if decider else quiet(1, crash, _one_life())
    check(world, 1)
    assert world.boundary.hit, f"nothing came to {crash}: it was not tested"
    assert world.crashes == 1
    assert all(isinstance(stored.session.state, Ended) for stored in world.shelf.sessions.values())


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_later_crashes_at_every_boundary_too(nth: int) -> None:
    """The n-th time that an effect is performed is not like the first: what is left over is tried again then."""
    for crash in crash_points():
        check(quiet(nth, Crash(crash.effect, crash.position, nth), _one_life()), nth)


def test_a_crash_while_people_wait_in_the_queue_forgets_nobody() -> None:
    """More people than nodes: what is known about jobs that wait has to come back with the process."""
    for seed in range(60):
        check(crowded(seed), seed)


# Storms, single kinds -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STORMS))
def test_storms_pass(name: str) -> None:
    """Every storm of the specification, on three seeds each, with a few people in the middle of it."""
    for seed in range(3):
        chosen = small(seed)
        world = Small(chosen.plan, chosen.visits, 1_800_000, name)
        check(live(seed, Rates(Seeded(seed), {}), world=world), seed)


def test_every_kind_of_fault_fires_and_harms_nobody() -> None:
    """Each kind by itself, often: a kind that never fires would be a test that tests nothing."""
    silent = []
    for kind in CATALOGUE:
        fired = 0
        for seed in range(4):
            rate = 0.3 if kind.share == 1 else 1.0
            world = live(seed, Rates(Seeded(seed), {kind.name: rate}), world=_busy(seed, pushes=kind.port == "push"))
            check(world, seed)
            fired += world.faults.ledger[kind.name]
            if fired:
                break
        if not fired:
            silent.append(kind.name)
    assert silent == []


def _busy(seed: int, pushes: bool) -> Small:
    alpha = SystemName("alpha")
    people = [
        Visit(
            10_000 * number, StartRequest(SessionKey("hub", Owner(f"user{number}")), alpha), 200_000 + 50_000 * number
        )
        for number in range(4)
    ]
    plan = WorldPlan((SystemPlan(alpha, nodes=2, pushes=pushes),), keep_trace=True)
    return Small(plan, tuple(people), 900_000)


# What a run is compared with ------------------------------------------------------------------------------------------


def test_same_seed_same_digest() -> None:
    """Twice the same world is twice the same story, faults and crashes included."""
    for seed in range(20):
        assert live(seed).digest == live(seed).digest


def test_who_else_is_there_changes_nothing_for_a_session() -> None:
    """I20: with room for all, one more user changes no state that a session passes through."""
    alpha = SystemName("alpha")
    ann = Visit(0, StartRequest(SessionKey("hub", Owner("ann")), alpha), 300_000)
    bob = Visit(50_000, StartRequest(SessionKey("hub", Owner("bob")), alpha), 100_000)
    plan = WorldPlan((SystemPlan(alpha, nodes=4),), keep_trace=True)
    alone, together = (quiet(3, world=Small(plan, people, 600_000)) for people in ((ann,), (ann, bob)))
    assert _states(alone, "ann") == _states(together, "ann")


def test_transient_faults_change_no_end() -> None:
    """I47: with faults that pass, every session ends for the same cause as without them."""
    for seed in range(12):
        world = _busy(seed, pushes=False)
        passing = {"F-U1": 0.02, "F-U12": 0.02, "F-U13": 0.05, "F-T1": 0.02, "F-D1": 0.02, "F-H7": 0.1, "F-C3": 0.1}
        faulty, calm = live(seed, Rates(Seeded(seed), passing), world=world), quiet(seed, world=world)
        check(faulty, seed)
        assert _causes(faulty) == _causes(calm)


def test_one_system_that_hangs_does_not_touch_another() -> None:
    """I35: with one system hanging for ever, people on the other one are served as if it was not there."""
    alpha, beta = SystemName("alpha"), SystemName("beta")
    plan = WorldPlan((SystemPlan(alpha, nodes=8, calls=4), SystemPlan(beta, nodes=8)), keep_trace=True)
    people = tuple(
        Visit(5_000 * number, StartRequest(SessionKey("hub", Owner(f"u{number}"), system), system), 200_000)
        for number in range(6)
        for system in (alpha, beta)
    )
    calm = quiet(5, world=Small(plan, people, 700_000))
    hanging = live(5, _Hangs("alpha"), world=Small(plan, people, 700_000))
    check(hanging, 5)
    first, second = _ready_after(calm, "beta"), _ready_after(hanging, "beta")
    assert len(first) == len(second) == 6
    assert math.isclose(sum(first), sum(second), rel_tol=0.25)


class _Hangs:
    """Every call to one system hangs."""

    def __init__(self, place: str) -> None:
        self.place = place

    def enabled(self, kind: object) -> bool:
        return kind is BY_NAME["F-U12.hang"]

    def fires(self, kind: object, place: str = "") -> bool:
        return place == self.place


def _states(world: object, owner: str) -> list[str]:
    shelf = world.shelf  # type: ignore[attr-defined]
    (session,) = [id_ for id_, stored in shelf.sessions.items() if stored.session.spec.key.owner == owner]
    states = [line.split()[3] for line in world.trace if line.split()[1] == session]  # type: ignore[attr-defined]
    return [state for state, before in zip(states, ["", *states], strict=False) if state != before]


def _causes(world: object) -> dict[str, str]:
    sessions = [stored.session for stored in world.shelf.sessions.values()]  # type: ignore[attr-defined]
    return {session.spec.key.owner: session.state.cause.value for session in sessions}


def _ready_after(world: object, system: str) -> list[float]:
    """Seconds from the wish to the first time that it was ready, for every session of a system."""
    started: dict[str, int] = {}
    ready: dict[str, int] = {}
    for line in world.trace:  # type: ignore[attr-defined]
        words = line.split()
        if words[2:4] == ["Started", "Waiting"]:
            started[words[1]] = int(words[0])
        elif len(words) > 3 and words[3] == "Ready":
            ready.setdefault(words[1], int(words[0]))
    sessions = world.shelf.sessions  # type: ignore[attr-defined]
    mine = [id_ for id_ in sessions if sessions[id_].session.spec.system == system and id_ in ready]
    return [(ready[id_] - started[id_]) / 1000 for id_ in mine]
