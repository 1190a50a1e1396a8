"""A simulated UNICORE site tells the Hub that something changed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from stubworld import Start, free_port  # type: ignore[import-not-found]

from moorage.adapters.hub import registry
from moorage.adapters.hub.notices import BODY_LIMIT
from moorage.core.model import Owner, SessionKey, SystemName
from moorage.ports.sessions import StartRequest
from moorage.simulator.servers.unicore.config import Partition, SiteConfig, Timing, User
from moorage.simulator.servers.unicore.server import Running, serve


@asynccontextmanager
async def site_and_hub(tmp_path: Path, start_hub: Start) -> AsyncIterator[tuple[Running, str]]:
    """A site that tells the Hub of its jobs, and where."""
    timing = Timing(queue_s=0.5, listing_s=0.1)
    config = SiteConfig(
        "ELM", users=(User("bench", "bench"),), partitions=(Partition(),), timing=timing, execute="virtual"
    )
    async with serve(config) as site:
        port = free_port()
        (tmp_path / "password").write_text("bench")
        (tmp_path / "password").chmod(0o600)
        options = {
            "url": site.url,
            "credentials": {"kind": "basic", "username": "bench", "password": {"file": str(tmp_path / "password")}},
            "notify_url": f"http://127.0.0.1:{port}/hub/moorage/notify/elm",
        }
        document = {
            "deployment": "notices",
            "systems": {
                "elm": {"kind": "unicore", "options": options, "partitions": {"batch": {}}},
                "sim": {"kind": "sim", "partitions": {"batch": {}}},
            },
            "services": {"lab": {"command": ["lab", "{socket}"]}},
        }
        (tmp_path / "moorage.yaml").write_text(yaml.safe_dump(document))
        await start_hub(
            JupyterHub__hub_bind_url=f"http://127.0.0.1:{port}",
            MoorageSpawner__compose="moorage.bootstrap:hub_service",
        )
        yield site, f"http://127.0.0.1:{port}/hub/moorage/notify"


@pytest.fixture(autouse=True)
def simulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOORAGE_SIMULATION", "1")


async def test_what_the_site_tells_reaches_the_adapter_as_a_hint(tmp_path: Path, start_hub: Start) -> None:
    async with site_and_hub(tmp_path, start_hub):
        service: Any = registry.service
        hints = service.operations.entries["elm"].system.watch()
        hint = asyncio.ensure_future(anext(hints))
        await asyncio.sleep(0)
        # Of another Hub, so that this one makes no server for it.
        request = StartRequest(SessionKey("elsewhere", Owner("alice")), SystemName("elm"), (), "lab", "batch", 3600)
        session = await service.sessions.start(request)
        job = await asyncio.wait_for(hint, 30)
        await hints.aclose()
        assert (await service.sessions.get(session)).session.state.job.id == job


async def test_what_is_not_signed_by_the_site_is_refused(tmp_path: Path, start_hub: Start) -> None:
    async with site_and_hub(tmp_path, start_hub) as (site, url), aiohttp.ClientSession() as client:

        async def said(system: str, header: str = "", body: bytes = b"{}") -> int:
            headers = {"Authorization": header} if header else {}
            async with client.post(f"{url}/{system}", data=body, headers=headers) as answer:
                assert await answer.read() == b""
                assert "X-UNICORE-SecuritySession" not in answer.headers
                return answer.status

        href = f'{{"href": "{site.url}/jobs/none", "status": "FAILED"}}'.encode()
        token = site.site.key.token("CN=bench", site.site.clock.now(), 300)
        assert await said("elm") == 403
        assert await said("elm", "Basic YTpi") == 403
        assert await said("elm", f"Bearer {token[:-8]}AAAAAAAA", href) == 403
        assert await said("elm", f"Bearer {token}", b"no json") == 403
        assert await said("elm", f"Bearer {token}", href) == 204
        assert await said("sim", f"Bearer {token}", href) == 404
        assert await said("oak", f"Bearer {token}", href) == 404


async def test_a_long_body_is_not_read(tmp_path: Path, start_hub: Start) -> None:
    async with (
        site_and_hub(tmp_path, start_hub) as (_, url),
        aiohttp.ClientSession(headers={"Authorization": "Bearer x"}) as client,
        client.post(f"{url}/elm", data=b" " * (BODY_LIMIT + 1)) as answer,
    ):
        assert answer.status == 400
