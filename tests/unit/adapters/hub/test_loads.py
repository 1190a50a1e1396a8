"""How full systems are is asked while somebody chooses, seldom, and never in the way of anything else."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from stubworld import Start, until
from test_pages import logged_in

from moorage.adapters.hub import loads as module
from moorage.adapters.hub.loads import Loads
from moorage.core.model import Owner, SystemName
from moorage.ports.errors import Unreachable
from moorage.ports.system import Load

ALICE, ALPHA = Owner("alice"), SystemName("alpha")
SHOWN = {"alpha": {"age_s": 0, "partitions": {"batch": {"nodes": 4, "free": 3, "up": True}}}}


class Operations:
    """One system that tells what it is told to tell."""

    def __init__(self, said: Mapping[str, Load] | Exception | None) -> None:
        self.said, self.asked = said, 0
        self.operations = self

    async def load(self, system: SystemName, owner: Owner) -> Mapping[str, Load] | None:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


async def settled(loads: Loads) -> None:
    await until(lambda: not loads._asking)


async def test_the_first_look_asks_and_the_next_one_sees_with_the_age() -> None:
    service: Any = Operations({"batch": Load(4, 3)})
    loads = Loads()
    assert loads.of(service, ALICE, [ALPHA]) == {}
    await settled(loads)
    assert loads.of(service, ALICE, [ALPHA]) == SHOWN
    for _ in range(100):
        loads.of(service, ALICE, [ALPHA])
    assert service.asked == 1


@pytest.mark.parametrize("said", [None, Unreachable("away"), ZeroDivisionError("a bug")])
async def test_a_system_that_does_not_tell_is_left_alone(said: Any) -> None:
    """No load is shown, and it is not asked again by the next look."""
    service: Any = Operations(said)
    loads = Loads()
    for _ in range(5):
        assert loads.of(service, ALICE, [ALPHA]) == {}
        await settled(loads)
    assert service.asked == 1


async def test_what_was_told_stays_with_its_age_while_the_system_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FRESH_S", 0.0)
    service: Any = Operations({"batch": Load(4, 3)})
    loads = Loads()
    loads.of(service, ALICE, [ALPHA])
    await settled(loads)
    service.said = Unreachable("away")
    loads.of(service, ALICE, [ALPHA])
    await settled(loads)
    assert loads.of(service, ALICE, [ALPHA])["alpha"]["partitions"] == SHOWN["alpha"]["partitions"]
    await settled(loads)


async def test_a_hub_without_operations_tells_nothing(start_hub: Start) -> None:
    """And only the person themself is told."""
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        assert await alice.call("GET", "moorage/api/users/alice/load") == (200, {})
        status, _ = await alice.call("GET", "moorage/api/users/bob/load")
        assert status == 404
