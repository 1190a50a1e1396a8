"""The store of the simulated world keeps the promises of the real ones."""

import pytest
from tests.contract.simulated import SEEDS, a_road
from tests.contract.store.suite import CLAIMS, Claim

from moorage.ports.store import Store
from moorage.simulator.guard import guarded
from moorage.simulator.loop import virtual_loop
from moorage.simulator.store import Shelf, SimStore


@pytest.mark.parametrize("takes_time", [True, False], ids=["takes time", "at once"])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_store(claim: Claim, takes_time: bool) -> None:
    for seed in SEEDS:
        with virtual_loop() as loop, guarded():
            shelf = Shelf()

            async def make(seed: int = seed, shelf: Shelf = shelf) -> Store:
                return SimStore(shelf, a_road(loop, seed, store_takes_time=takes_time))

            loop.run_until_complete(claim(make))
