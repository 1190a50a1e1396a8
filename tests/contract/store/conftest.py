"""The stores that the suite runs over."""

import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.servers import postgres

from moorage.adapters.local.store import SqlStore
from moorage.ports.store import Store

MakeStore = Callable[[], Awaitable[Store]]
"""Opens the same store again and again: what one of them saved, the next one finds."""


@pytest.fixture(scope="session")
def postgres_host() -> Iterator[str]:
    """A server for all tests of this process; skipped where there is none, but not in CI."""
    try:
        postgres.binaries()
    except postgres.NotInstalled as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))
    with postgres.server() as host:
        yield host


@pytest.fixture
def postgres_url(postgres_host: str) -> str:
    """An empty database."""
    return postgres.create_database(postgres_host, f"t{uuid.uuid4().hex}")


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty database is, of either kind."""
    if request.param == "sqlite":
        return str(tmp_path / "state" / "moorage.sqlite")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def make_store(address: str) -> AsyncIterator[MakeStore]:
    opened: list[SqlStore] = []

    async def make() -> Store:
        opened.append(await SqlStore.open(address, lock_s=5))
        return opened[-1]

    yield make
    for store in opened:
        await store.close()
