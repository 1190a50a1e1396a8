"""The credentials and the vault of the simulated world keep the promises of the real ones."""

import pytest
from tests.contract.credentials.suite import CLAIMS, Both, Claim
from tests.contract.simulated import a_road

from moorage.simulator.credentials import Safe, SimCredentials, SimVault
from moorage.simulator.guard import guarded
from moorage.simulator.loop import virtual_loop


class SimBoth(SimCredentials, SimVault):
    """One object that answers both ports, as the suite wants it."""


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_vault(claim: Claim) -> None:
    with virtual_loop() as loop, guarded():
        safe, road = Safe(0), a_road(loop)

        def make() -> Both:
            return SimBoth(safe, road)

        loop.run_until_complete(claim(make))
