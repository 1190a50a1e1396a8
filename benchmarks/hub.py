"""
moorage inside a real JupyterHub, beside what the Hub needs by itself in the same run.

    python benchmarks/hub.py [--starts N] [--no-lab]

Starts per second and the longest stall of another request: stub labs, all asked for at once, with a spawner that does
nothing and with moorage over systems that answer at once. Ready time: one at a time, on a simulated UNICORE site over
real sockets, through the real relay, to a stub lab that is a real process; and with a real JupyterLab, beside the Hub's
own local spawner. `poll()` with ten thousand sessions; the server's time for the form of a large catalogue.

The last line is JSON. Hub, systems and client share this process, so times are upper bounds.
"""

import argparse
import asyncio
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import yaml

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "unit" / "adapters" / "hub"))
import stubworld  # noqa: E402  (the small world of the tests)

TOKEN = "t" * 32
STUB_LAB = """\
import http.server, os, socketserver, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
socketserver.TCPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@asynccontextmanager
async def hub(directory: Path, spawner: Any, **settings: Any) -> AsyncIterator["stubworld.Hub"]:
    """A real Hub without a proxy process, with as many users as are asked for."""
    from jupyterhub.app import JupyterHub
    from jupyterhub.proxy import Proxy
    from traitlets.config import Config

    class NoProxy(Proxy):
        routes: ClassVar[dict[str, Any]] = {}
        should_start = False

        async def add_route(self, routespec: str, target: str, data: Any) -> None:
            self.routes[routespec] = {"routespec": routespec, "target": target, "data": data}

        async def delete_route(self, routespec: str) -> None:
            self.routes.pop(routespec, None)

        async def get_all_routes(self) -> dict[str, Any]:
            return dict(self.routes)

    import aiohttp

    port = free_port()
    JupyterHub.clear_instance()
    config = Config()
    config.JupyterHub.spawner_class = spawner
    config.JupyterHub.proxy_class = NoProxy
    config.JupyterHub.hub_bind_url = f"http://127.0.0.1:{port}"
    config.JupyterHub.db_url = f"sqlite:///{directory}/hub.sqlite"
    config.JupyterHub.cookie_secret = b"c" * 32
    config.JupyterHub.allow_named_servers = True
    config.JupyterHub.cleanup_servers = False
    config.JupyterHub.concurrent_spawn_limit = 0
    config.JupyterHub.log_level = logging.CRITICAL
    config.JupyterHub.authenticator_class = "dummy"
    config.Authenticator.allowed_users = {"bench"} | {f"u{number}" for number in range(200)}
    config.JupyterHub.services = [{"name": "bench", "api_token": TOKEN}]
    scopes = ["admin:users", "admin:servers"]
    config.JupyterHub.load_roles = [{"name": "bench", "services": ["bench"], "scopes": scopes}]
    config.MoorageSpawner.config_file = str(directory / "moorage.yaml")
    for name, value in settings.items():
        owner, _, trait = name.partition("__")
        config[owner][trait] = value
    app = JupyterHub.instance()
    app.update_config(config)
    await app.initialize([])
    await app.start()
    client = aiohttp.ClientSession(headers={"Authorization": f"token {TOKEN}"})
    running = stubworld.Hub(app, f"http://127.0.0.1:{port}", client)
    try:
        yield running
    finally:
        await stubworld.stop_hub(running)


async def burst(running: "stubworld.Hub", count: int) -> tuple[float, float]:
    """Starts per second when all are asked for at once, and the longest another request took meanwhile."""
    stalls: list[float] = []

    async def others() -> None:
        while True:
            began = time.perf_counter()
            await running.api("GET", "user")
            stalls.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    watching = asyncio.create_task(others())
    began = time.perf_counter()
    await asyncio.gather(*(start(running, f"u{number}") for number in range(count)))
    took = time.perf_counter() - began
    watching.cancel()
    return count / took, max(stalls, default=0)


async def start(running: "stubworld.Hub", user: str, **options: Any) -> float:
    """Start a server and wait until the Hub calls it ready; how long that took."""
    began = time.perf_counter()
    status, answer = await running.api("POST", f"users/{user}/server", json={"user_options": options})
    if status not in (201, 202):
        raise RuntimeError(f"{user}: {status} {answer}")
    while not running.spawner(user).ready:
        if not running.spawner(user).active:
            raise RuntimeError(f"{user}: {running.spawner(user)._spawn_future}")
        await asyncio.sleep(0.005)
    return time.perf_counter() - began


async def starts_and_stalls(count: int) -> dict[str, float]:
    from jupyterhub.spawner import Spawner

    lab = await stubworld.start_lab()

    class Nothing(Spawner):
        """The Hub alone: no process, one shared stub."""

        async def start(self) -> str:
            return stubworld.labs[-1]

        async def stop(self, now: bool = False) -> None:
            pass

        async def poll(self) -> None:
            return None

    alone: list[tuple[float, float]] = []
    ours: list[tuple[float, float]] = []
    for _ in range(2):  # by turns, because the machine is shared
        with tempfile.TemporaryDirectory() as directory:
            async with hub(Path(directory), Nothing) as running:
                alone.append(await burst(running, count))
        with tempfile.TemporaryDirectory() as directory:
            async with hub(Path(directory), "moorage", MoorageSpawner__compose="stubworld:compose") as running:
                await ready_to_work()
                ours.append(await burst(running, count))
        stubworld.worlds.clear()
    await lab.cleanup()
    best_alone, best_ours = max(alone), max(ours)
    print(f"starts/s, {count} at once          Hub alone {best_alone[0]:7.1f}   moorage {best_ours[0]:7.1f}")
    print(f"longest stall of a request, s   Hub alone {best_alone[1]:7.2f}   moorage {best_ours[1]:7.2f}")
    return {
        "starts_vs_hub_alone": round(best_ours[0] / best_alone[0], 3),
        "stall_vs_hub_alone": round(best_ours[1] / best_alone[1], 3),
    }


async def ready_to_work() -> None:
    from moorage.adapters.hub.service import registry

    await asyncio.wait_for(registry.wait(), 60)


# Over a simulated site ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def site(directory: Path) -> AsyncIterator[str]:
    """A simulated UNICORE site without delays of its own, as a process."""
    config = {
        "timing": "fast",
        "name": "BENCH",
        "directory": str(directory / "site"),
        "users": [{"name": "bench", "password": "bench"}],
        "partitions": [{"name": "batch", "nodes": 64}],
        "job_environment": {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
    }
    file = directory / "site.yaml"
    file.write_text(yaml.safe_dump(config))
    process = subprocess.Popen(  # noqa: ASYNC220 (nothing is measured yet)
        [sys.executable, "-m", "moorage.demo.site", "unicore", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield (await asyncio.to_thread(process.stdout.readline)).strip()
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 20)
        process.stdout.close()


def moorage_file(directory: Path, url: str) -> None:
    (directory / "password").write_text("bench")
    (directory / "password").chmod(0o600)
    (directory / "lab.py").write_text(STUB_LAB)
    root = ["--allow-root"] if os.geteuid() == 0 else []
    system = {
        "kind": "unicore",
        "options": {
            "url": url.rstrip("/") if "/rest/core" in url else url.rstrip("/") + "/BENCH/rest/core",
            "credentials": {
                "kind": "basic",
                "username": "bench",
                "password": {"file": str(directory / "password")},
            },
            "login_nodes": {"login": "login*"},
        },
        "partitions": {"login": {"kind": "login"}, "batch": {}},
        "gate": {"interface": "127.0.0.1", "host": "127.0.0.1"},
        "destinations": ["127.0.0.1"],
    }
    lab = [sys.executable, "-m", "jupyterhub.singleuser", "--ServerApp.sock={socket}", *root]
    services = {
        "stub": {"command": [sys.executable, "-S", "-E", str(directory / "lab.py"), "{port}"], "listen": "tcp"},
        "lab": {"command": lab},
    }
    document = {"deployment": "bench", "systems": {"bench": system}, "services": services}
    (directory / "moorage.yaml").write_text(yaml.safe_dump(document))


async def ready_times(labs: bool) -> dict[str, float]:
    os.environ["MOORAGE_SIMULATION"] = "1"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o700)  # noqa: ASYNC240
        async with site(directory) as url:
            moorage_file(directory, url)
            try:
                async with hub(directory, "moorage") as running:
                    await ready_to_work()
                    await start(running, "u0", service="stub", partition="login")  # the relay is started by the first
                    stubs = [
                        await start(running, f"u{number}", service="stub", partition=partition)
                        for number, partition in ((1, "login"), (2, "login"), (3, "login"), (4, "batch"), (5, "batch"))
                    ]
                    print(
                        f"stub lab on a UNICORE site, s    ready p50 {statistics.median(stubs):.3f}   {rounded(stubs)}"
                    )
                    figures = {"ready_s": round(statistics.median(stubs), 3)}
                    if labs:
                        real = [await start(running, f"u{n}", service="lab", partition="login") for n in (10, 11, 12)]
                        for number in (10, 11, 12):
                            await running.api("DELETE", f"users/u{number}/server")
            finally:
                await asyncio.to_thread(end_relay, directory)
        if labs:
            local = await local_spawner(directory)
            ratio = statistics.median(real) / statistics.median(local)
            print(f"real JupyterLab, s   local spawner {rounded(local)}   moorage {rounded(real)}   ratio {ratio:.2f}")
            figures["lab_ready_vs_local_spawner"] = round(ratio, 3)
        return figures


def rounded(values: list[float]) -> list[float]:
    return [round(value, 2) for value in values]


def end_relay(directory: Path) -> None:
    from moorage.demo.running import _end_relay

    _end_relay(directory)


async def local_spawner(directory: Path) -> list[float]:
    """The Hub's own way on this machine, without rights of others: SimpleLocalProcessSpawner."""
    home = directory / "homes"
    home.mkdir()
    settings: dict[str, Any] = {
        "Spawner__http_timeout": 120,
        "SimpleLocalProcessSpawner__home_dir_template": str(home / "{username}"),
        "Spawner__cmd": [sys.executable, "-m", "jupyterhub.singleuser"],
        "Spawner__args": ["--allow-root"] if os.geteuid() == 0 else [],
    }
    (directory / "local").mkdir()
    async with hub(directory / "local", "simple", **settings) as running:
        times = []
        for number in (20, 21, 22):
            times.append(await start(running, f"u{number}"))
            await running.api("DELETE", f"users/u{number}/server")
        return times


# Alone -------------------------------------------------------------------------------------------------------------


async def polls(sessions: int = 10_000) -> dict[str, float]:
    """The local look of `poll()`, with ten thousand sessions in the runner."""
    from attrs import evolve

    from moorage.core.model import Endpoint, Instant, Job, JobId, Owner, Ready, Route, SessionKey
    from moorage.ports.sessions import StartRequest

    lab = await stubworld.start_lab()
    with tempfile.TemporaryDirectory() as name:
        async with hub(Path(name), "moorage", MoorageSpawner__compose="stubworld:compose") as running:
            await ready_to_work()
            runner = running.world.runner
            first = await runner.start(
                StartRequest(SessionKey("hub", Owner("u0")), stubworld.SystemName("alpha"), partition="batch")
            )
            template = (await runner.get(first)).session
            state = Ready(Job(JobId("j")), Endpoint("n1", 1), Route("http://127.0.0.1:1"), Instant(0), Instant(1 << 61))
            ids = []
            for number in range(sessions):
                spec = evolve(
                    template.spec,
                    id=runner.ports.choices.session_id(),
                    key=SessionKey("hub", Owner(f"p{number}")),
                )
                runner._adopt(evolve(template, spec=spec, state=state), 1)
                ids.append(spec.id)
            await running.api("POST", "users/u1/servers/x", json={})
            spawner = running.spawner("u1", "x")
            spawner._asked, times = None, []
            for session in ids:
                spawner.session_id = session
                began = time.perf_counter()
                assert await spawner.poll() is None
                times.append((time.perf_counter() - began) * 1000)
            for session in ids:
                runner._forget(runner.live[session])
    stubworld.worlds.clear()
    await lab.cleanup()
    times.sort()
    p99 = times[int(0.99 * len(times))]
    print(f"poll() with {sessions} sessions, ms   p50 {times[len(times) // 2]:.3f}   p99 {p99:.3f}")
    return {"poll_p99_ms": round(p99, 3)}


def form() -> dict[str, float]:
    """Choice tree, JSON and escaping for 20 systems, 200 partitions, 50 services, 40 projects."""
    from moorage.adapters.hub.rows import for_script, tree_of
    from moorage.adapters.hub.texts import Texts
    from moorage.core.catalog import (
        Catalog,
        Extra,
        Instant,
        Partition,
        Place,
        Project,
        ResourceRange,
        Service,
        Start,
        SystemName,
        SystemOffer,
        User,
        choices,
    )

    resources = {name: ResourceRange(1, 100, 1) for name in ("nodes", "cores", "gpus")}
    resources["walltime_s"] = ResourceRange(60, 86_400, 3_600)
    systems = {
        SystemName(f"s{number}"): SystemOffer(
            f"System {number}",
            partitions={f"p{part}": Partition(f"Partition {part}", resources=resources) for part in range(10)},
            projects={f"project{project}": Project(f"Project {project}") for project in range(40)},
        )
        for number in range(20)
    }
    extras = {f"k{number}": Extra(f"Kernel {number}") for number in range(5)}
    places = {name: Place(Start(("lab", "{socket}"))) for name in systems}
    services = {f"v{number}": Service(places, description=f"Service {number}", kernels=extras) for number in range(50)}
    catalog, user, texts = Catalog(systems, services), User("alice"), Texts("en")
    times, size = [], 0
    for _ in range(10):
        began = time.perf_counter()
        size = len(for_script(tree_of(choices(catalog, user, Instant(0)), texts)))
        times.append((time.perf_counter() - began) * 1000)
    print(
        f"form, 20 systems, 200 partitions, 50 services, ms   p50 {statistics.median(times):.1f}   {size // 1024} KiB"
    )
    return {"form_ms": round(statistics.median(times), 1)}


def free_port() -> int:
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--no-lab", action="store_true", help="leave out real JupyterLabs")
    parser.add_argument("--only", choices=["starts", "ready", "polls", "form"])
    wanted = parser.parse_args()
    logging.getLogger("JupyterHub").setLevel(logging.CRITICAL)
    figures: dict[str, float] = {}
    if wanted.only in (None, "form"):
        figures |= form()
    if wanted.only in (None, "polls"):
        figures |= await polls()
    if wanted.only in (None, "starts"):
        figures |= await starts_and_stalls(wanted.starts)
    if wanted.only in (None, "ready"):
        figures |= await ready_times((not wanted.no_lab and shutil.which("jupyter") is not None) or not wanted.no_lab)
    print(json.dumps(figures))


if __name__ == "__main__":
    asyncio.run(main())
