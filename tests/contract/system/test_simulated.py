"""
The simulated systems keep the promises of a `System`: the one inside a world, and the kind `sim` on any clock.

They live in virtual time, so each test of the suite is run to its end on a loop of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.contract.simulated import SEEDS, a_road
from tests.contract.system import suite
from tests.contract.system.suite import GATE_SECRET, PlansOfSleepers, SystemCase

from moorage.core.model import SystemName
from moorage.core.secret import Secret
from moorage.simulator.batch import BatchSystem, Node, Partition
from moorage.simulator.choices import Seeded
from moorage.simulator.clock import EPOCH_MS, SimClock
from moorage.simulator.faults import Kind
from moorage.simulator.loop import VirtualLoop, virtual_loop
from moorage.simulator.plugin import SimConfig
from moorage.simulator.site import Site
from moorage.simulator.systems import SimSystem, build

Test = Callable[[SystemCase], Awaitable[None]]
TESTS: list[Test] = [getattr(suite, name) for name in suite.__all__ if name.startswith("test_")]


class Losing:
    """Loses the answer of the next submit, when told to."""

    def __init__(self) -> None:
        self.armed = False

    def enabled(self, kind: Kind) -> bool:
        return kind.name == "F-U6.at once"

    def fires(self, _kind: Kind, _place: str = "") -> bool:
        fires, self.armed = self.armed, False
        return fires

    @asynccontextmanager
    async def next_one(self) -> AsyncIterator[None]:
        self.armed = True
        yield
        assert not self.armed


async def _pause() -> None:
    await asyncio.sleep(1)


def in_a_world(loop: VirtualLoop, seed: int) -> SystemCase:
    """The system that the property tests of the runner use."""
    losing, clock = Losing(), SimClock(loop)
    nodes = [Node(f"n{number}", 48) for number in range(8)]
    batch = BatchSystem(nodes, [Partition("batch", tuple(node.name for node in nodes))])

    def timer(at: int, then: Callable[[], None]) -> object:
        return loop.call_at_ms(max(loop.now_ms, at - EPOCH_MS), then)

    async def gates(*_about: Any) -> Secret:
        return GATE_SECRET

    site = Site(SystemName("here"), batch, Seeded(seed, "site"), timer, clock.now)
    system = SimSystem(site, a_road(loop, seed, losing), clock, gates)
    return SystemCase(system=system, pause=_pause, lose_answer=losing.next_one, horizon_pauses=3)


def as_a_kind(loop: VirtualLoop, seed: int) -> SystemCase:
    """The system that a configuration with the kind `sim` gets."""
    config = SimConfig(seed=seed)
    system = build(SystemName("here"), config, clock=SimClock(loop), plans=PlansOfSleepers())
    return SystemCase(system=system, pause=_pause, horizon_pauses=3)


MakeCase = Callable[[VirtualLoop, int], SystemCase]
# The kind `sim` loses no answers: nothing stands between it and who asks.
PAIRS = [(in_a_world, test) for test in TESTS] + [
    (as_a_kind, test) for test in TESTS if test is not suite.test_a_lost_answer_is_healed_by_a_lookup
]


@pytest.mark.parametrize(("case", "test"), PAIRS, ids=lambda each: each.__name__.removeprefix("test_"))
def test_system(case: MakeCase, test: Test) -> None:
    for seed in SEEDS:
        with virtual_loop() as loop:
            loop.run_until_complete(test(case(loop, seed)))
