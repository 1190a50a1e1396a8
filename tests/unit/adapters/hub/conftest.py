"""A real JupyterHub in the test's own event loop, without a proxy process."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import stubworld  # noqa: E402  (the Hub's configuration names it, so it has to be importable by name)
from stubworld import Hub, Start, free_port, stop_hub  # noqa: E402


@pytest.fixture
async def start_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts a Hub with its state in `tmp_path`; again for the same state after `stop_hub`."""
    from jupyterhub.app import JupyterHub
    from jupyterhub.proxy import Proxy
    from traitlets.config import Config

    from moorage.adapters.hub.embedding import _tasks

    class NoProxy(Proxy):
        """Routes in a dictionary."""

        routes: ClassVar[dict[str, Any]] = {}
        should_start = False

        async def add_route(self, routespec: str, target: str, data: Any) -> None:
            self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

        async def delete_route(self, routespec: str) -> None:
            self.routes.pop(routespec, None)

        async def get_all_routes(self) -> dict[str, Any]:
            return dict(self.routes)

    monkeypatch.chdir(tmp_path)
    lab = await stubworld.start_lab()
    hubs: list[Hub] = []

    async def start(**settings: Any) -> Hub:
        NoProxy.routes = {}
        port = free_port()
        JupyterHub.clear_instance()
        config = Config()
        config.JupyterHub.spawner_class = "moorage"
        config.JupyterHub.proxy_class = NoProxy
        config.JupyterHub.bind_url = "http://127.0.0.1:8000"
        config.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port}"
        config.JupyterHub.db_url = f"sqlite:///{tmp_path}/hub.sqlite"
        config.JupyterHub.cookie_secret = b"c" * 32
        config.JupyterHub.allow_named_servers = True
        config.JupyterHub.cleanup_servers = False
        config.JupyterHub.concurrent_spawn_limit = 0
        config.JupyterHub.log_level = 30
        config.JupyterHub.authenticator_class = "dummy"
        config.Authenticator.admin_users = {"admin"}
        config.Authenticator.allowed_users = {"alice", "bob"}
        config.JupyterHub.services = [{"name": "test", "api_token": "t" * 32}]
        config.JupyterHub.load_roles = [
            {"name": "test", "services": ["test"], "scopes": ["admin:users", "admin:servers", "access:servers"]}
        ]
        config.MoorageSpawner.config_file = str(tmp_path / "moorage.yaml")
        config.MoorageSpawner.compose = "stubworld:compose"
        config.MoorageSpawner.stop_wait_s = 2
        config.MoorageSpawner.http_timeout = 2
        for name, value in settings.items():
            owner, _, trait = name.partition("__")
            config[owner][trait] = value
        app = JupyterHub.instance()
        app.update_config(config)
        await app.initialize([])
        await app.start()
        token = {"Authorization": f"token {'t' * 32}"}
        hub = Hub(app, f"http://127.0.0.1:{port}", aiohttp.ClientSession(headers=token))
        hubs.append(hub)
        await stubworld.until(lambda: _service() is not None)
        return hub

    yield start
    for hub in hubs:
        await stop_hub(hub)
    await asyncio.gather(*_tasks, return_exceptions=True)
    await lab.cleanup()
    stubworld.worlds.clear()
    stubworld.lab_answers["status"] = 200
    JupyterHub.clear_instance()
    os.environ.pop("JUPYTERHUB_API_TOKEN", None)


def _service() -> Any:
    from moorage.adapters.hub.service import registry

    return registry.service
