"""The doubles of the simulated world, outside a world: what the suites of their ports are run over."""

from collections.abc import Callable
from typing import Any

from moorage.simulator.calls import Life, Road
from moorage.simulator.choices import Seeded
from moorage.simulator.crashes import Boundary
from moorage.simulator.faults import Decider, Faults, Quiet
from moorage.simulator.loop import VirtualLoop

SEEDS = range(3)
"""Latencies are drawn from a seed, and with them who overtakes whom."""


def a_road(loop: VirtualLoop, seed: int = 0, decider: Decider | None = None, **more: Any) -> Road:
    """The way of one process to the world, in order unless `decider` says otherwise."""
    source = Seeded(seed)
    now: Callable[[], int] = lambda: loop.now_ms  # noqa: E731 (one line says it)
    faults = Faults(decider or Quiet(), source.stream("faults"), now)
    return Road(loop, Life(1), faults, source.stream("road"), Boundary(), lambda: None, **more)
