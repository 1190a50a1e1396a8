"""The suite over SQLite and over PostgreSQL."""

import pytest
from tests.contract.store.suite import CLAIMS, Claim, MakeStore


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
async def test_store(claim: Claim, make_store: MakeStore) -> None:
    await claim(make_store)
