"""
How full the systems are, for people who choose one: asked while somebody has a form open, and told with its age.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, evolve, field, frozen

from moorage.core.model import Owner, SystemName
from moorage.ports.errors import PortError
from moorage.ports.system import Load

from .service import Service

log = logging.getLogger(__name__)

FRESH_S = 30.0
"""Older ones are asked for anew; a system that has just failed is left alone for as long."""


@frozen
class Kept:
    """What a system told, and when it was asked and answered, on the monotonic clock."""

    asked_at: float
    answered_at: float | None = None
    partitions: Mapping[str, Load] = field(factory=dict)


@define(eq=False)
class Loads:
    """The last answer of each system. What one person's account sees is shown to all: nodes are no secret."""

    _kept: dict[SystemName, Kept] = field(factory=dict)
    _asking: dict[SystemName, "asyncio.Task[None]"] = field(factory=dict)

    def of(self, service: Service, owner: Owner, systems: Iterable[SystemName]) -> dict[str, dict[str, Any]]:
        """What is known now; what is old is asked for meanwhile."""
        known: dict[str, dict[str, Any]] = {}
        for system in systems:
            kept = self._kept.get(system)
            if kept is not None and kept.answered_at is not None and kept.partitions:
                known[system] = _shown(kept.partitions, time.monotonic() - kept.answered_at)
            if kept is None or time.monotonic() - kept.asked_at >= FRESH_S:
                self._begin(service, owner, system)
        return known

    def _begin(self, service: Service, owner: Owner, system: SystemName) -> None:
        if system in self._asking:
            return
        task = asyncio.ensure_future(self._ask(service, owner, system))
        self._asking[system] = task
        task.add_done_callback(lambda _task: self._asking.pop(system, None))

    async def _ask(self, service: Service, owner: Owner, system: SystemName) -> None:
        before = evolve(self._kept.get(system, Kept(0.0)), asked_at=time.monotonic())
        self._kept[system] = before
        if service.operations is None:
            return
        try:
            told = await service.operations.load(system, owner)
        except PortError as error:
            log.debug("%s does not tell how full it is: %s", system, error)
            return
        except Exception:
            log.exception("%s: how full it is", system)
            return
        self._kept[system] = evolve(before, answered_at=time.monotonic(), partitions=dict(told or {}))


def _shown(partitions: Mapping[str, Load], age_s: float) -> dict[str, Any]:
    return {
        "age_s": round(age_s),
        "partitions": {
            name: {"nodes": each.nodes, "free": each.free, "up": each.is_up} for name, each in partitions.items()
        },
    }
