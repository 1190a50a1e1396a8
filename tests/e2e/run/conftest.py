"""A simulated UNICORE site whose jobs are real processes, and a configuration that leads to it."""

import json
import os
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from moorage.simulator.servers.unicore import Running, ServerConfig, SiteConfig, Timing, User, serve

HERE = Path(__file__).parent
JUPYTER = Path(sys.executable).with_name("jupyter")
PASSWORD = "canary-8b1f0c"
Configure = Callable[[str], Path]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Running]:
    """A site with one user, whose jobs have this Python on their path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    user = User("demo", PASSWORD)
    sites = (SiteConfig(users=(user,), timing=Timing.fast(), job_environment={"PATH": path}),)
    async with serve(ServerConfig(sites=sites, directory=tmp_path / "site")) as running:
        yield running


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Write a configuration for the site at an address."""
    monkeypatch.setenv("SITE_PASSWORD", PASSWORD)

    def write(url: str) -> Path:
        file = tmp_path / "moorage.yaml"
        file.write_text(json.dumps(configuration(tmp_path, url)))
        return file

    return write


def configuration(folder: Path, url: str) -> dict[str, object]:
    return {
        "deployment": "demo",
        "systems": {
            "demo": {
                "kind": "unicore",
                "options": {
                    "url": url,
                    "credentials": {"kind": "basic", "username": "demo", "password": {"env": "SITE_PASSWORD"}},
                },
                # Jobs run on this machine, whatever node the batch system says.
                "destinations": [os.uname().nodename.split(".")[0].lower()],
                "gate": {"interface": "127.0.0.1"},
                "partitions": {"batch": {"max_walltime": "1 h", "nodes": {"max": 2}}},
            }
        },
        "services": {
            "tiny": {
                "kind": "tiny",
                "command": [sys.executable, str(HERE / "tiny_lab.py"), "{socket}"],
                "probe_path": "/",
                "default": True,
            },
            "jupyterlab": {
                "command": [str(JUPYTER), "lab", "--no-browser", "--allow-root", "--ServerApp.sock={socket}"],
                "environment": {"JUPYTER_CONFIG_DIR": str(folder), "JUPYTER_RUNTIME_DIR": str(folder)},
                "directory": str(folder),
            },
            "broken": {
                "kind": "tiny",
                "command": [sys.executable, "-c", "import sys; print('no such {socket}'); sys.exit(7)"],
            },
        },
    }
