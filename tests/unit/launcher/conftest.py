"""The launcher on the Pythons at hand: the oldest and the newest for everything, each one for a whole life."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.unit.launcher.job import Job

VERSIONS = ("3.6", "3.7", "3.8", "3.9", "3.10", "3.11", "3.12", "3.13")


def interpreter(version: str) -> str | None:
    """A Python of this version, under pyenv or on the path; one that really starts."""
    roots = [os.environ.get("PYENV_ROOT"), os.path.expanduser("~/.pyenv")]
    found = [path for root in roots if root for path in Path(root).glob(f"versions/{version}.*/bin/python")]
    for candidate in [*map(str, sorted(found)), shutil.which(f"python{version}") or ""]:
        if candidate:
            asked = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
            told = subprocess.run(asked, capture_output=True, text=True, timeout=30)
            if told.stdout.strip() == version:
                return candidate
    return sys.executable if version == "{}.{}".format(*sys.version_info[:2]) else None


FOUND = {version: path for version in VERSIONS if (path := interpreter(version))}
EDGES = {min(FOUND, key=VERSIONS.index), max(FOUND, key=VERSIONS.index)}


@pytest.fixture(params=[v for v in VERSIONS if v in EDGES])
def python(request: pytest.FixtureRequest) -> str:
    """The oldest and the newest Python at hand."""
    return FOUND[request.param]


@pytest.fixture(params=VERSIONS)
def every_python(request: pytest.FixtureRequest) -> str:
    """Every supported Python; those that are not installed are skipped by name."""
    if request.param not in FOUND:
        pytest.skip(f"Python {request.param} is not installed")
    return FOUND[request.param]


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[[str], Job]]:
    jobs = []

    def make(python: str) -> Job:
        directory = tmp_path / f"job{len(jobs)}"
        directory.mkdir()
        jobs.append(Job(directory, python))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()


@pytest.fixture
def job(make_job: Callable[[str], Job], python: str) -> Job:
    return make_job(python)


@pytest.fixture
def postbox() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A web server that keeps what is posted to it."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_arguments: object) -> None:
            """Quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/report", received
    server.shutdown()
    thread.join()
    server.server_close()
