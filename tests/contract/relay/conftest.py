"""A place for jobs, with nothing left of it afterwards."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.contract.relay.world import Place, relay

from moorage.relay.client import InProcessRelay


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.end()


@pytest.fixture
async def tunnels(place: Place) -> AsyncIterator[InProcessRelay]:
    async with relay(place) as made:
        yield made
