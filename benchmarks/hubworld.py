"""
The processes of `hub.py`: Hubs, the proxy in front of them, simulated sites, stub labs. Every one of them ends with
the benchmark, also when that is killed.

    python benchmarks/hubworld.py crowd CONFIG COUNT_FILE    (a UNICORE site whose jobs are all in its own process)
    python benchmarks/hubworld.py lab PORT                   (one stub lab)
"""

# What blocks here does so while nothing is measured, and what is waited for has no event in this process.
# ruff: noqa: ASYNC110

import asyncio
import contextlib
import ctypes
import importlib.util
import itertools
import json
import os
import resource
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from attrs import define, field

HERE = Path(__file__).resolve().parent
TOKEN = "t" * 32
START_S = 60.0
API_PORT_TRIES = 20
AT_REST = 0.05
"""Processor time within a second of a Hub that has nothing to do, at most."""


# Processes -------------------------------------------------------------------------------------------------------


def start(command: Sequence[str | Path], log: Path, **environment: str) -> "subprocess.Popen[str]":
    """A process that ends with this one; what it says on standard error is in `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            cwd=log.parent,
            preexec_fn=_die_with_parent,
        )


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end(process: "subprocess.Popen[str]", number: signal.Signals = signal.SIGTERM) -> None:
    """End a process, with force if it takes too long."""
    process.send_signal(number)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def process(command: Sequence[str | Path], log: Path, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """The same as a context."""
    one = start(command, log, **environment)
    try:
        yield one
    finally:
        end(one)


def first_line(one: "subprocess.Popen[str]") -> str:
    """What it says when it is ready."""
    assert one.stdout is not None
    line = one.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"{one.args} did not start; see its log")
    return line


def pss_mib(pid: int) -> float:
    """Memory of a process, its share of what it shares with others."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no Pss")


def cpu_s(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


# A Hub -----------------------------------------------------------------------------------------------------------


@define(eq=False)
class Hub:
    """A JupyterHub as its operators start it, behind a proxy that outlives it, and a client of its API."""

    directory: Path
    settings: str
    environment: dict[str, str] = field(factory=dict)
    port: int = field(factory=free_port)
    public_port: int = field(factory=free_port)
    process: "subprocess.Popen[str] | None" = None
    proxy: "subprocess.Popen[str] | None" = None
    _client: "aiohttp.ClientSession | None" = None

    @property
    def client(self) -> aiohttp.ClientSession:
        if self._client is None:
            self._client = aiohttp.ClientSession(
                f"http://127.0.0.1:{self.port}",
                headers={"Authorization": f"token {TOKEN}"},
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=120),
            )
        return self._client

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> "Hub":
        """The proxy and the Hub; returns when the API answers."""
        from moorage.demo.running import find_proxy

        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        api_port = free_port()
        (self.directory / "jupyterhub_config.py").write_text(self._config(api_port))
        words = [*find_proxy(), "--ip", "127.0.0.1", "--port", str(self.public_port), "--api-ip", "127.0.0.1"]
        words += ["--api-port", str(api_port), "--default-target", f"http://127.0.0.1:{self.port}"]
        log = self.directory / "proxy.log"
        self.proxy = start([*words, "--log-level", "error"], log, CONFIGPROXY_AUTH_TOKEN=TOKEN)
        return await self.start_again()

    async def start_again(self) -> "Hub":
        """The Hub alone, with the database and the proxy that it had."""
        command = [sys.executable, "-m", "jupyterhub", "-f", self.directory / "jupyterhub_config.py"]
        # What it says on standard output, nobody reads.
        self.process = start(command, self.directory / "hub.log", **self.environment)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with self.client.get("/hub/api/") as answer:
                    if answer.status == 200:
                        return self
            await asyncio.sleep(0.05)
        raise RuntimeError("the Hub did not start:\n" + (self.directory / "hub.log").read_text()[-3000:])

    def kill(self) -> None:
        """The Hub alone, with no word to anybody."""
        assert self.process is not None
        end(self.process, signal.SIGKILL)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()
        for one in (self.process, self.proxy):
            if one is not None and one.returncode is None:
                await asyncio.to_thread(end, one)

    async def api(self, method: str, path: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(method, f"/hub/api/{path}", **more) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    async def spawn(self, user: str, **options: Any) -> float:
        """Start the server of a user whom the Hub has, wait until it is called ready; how long that took."""
        began = time.perf_counter()
        status, answer = await self.api("POST", f"users/{user}/server", json=options)
        if status == 202:  # slower than the Hub waits with its answer
            async with self.client.get(f"/hub/api/users/{user}/server/progress") as events:
                async for line in events.content:
                    if b'"ready": true' in line:
                        break
                    if b'"failed": true' in line:
                        raise RuntimeError(f"{user}: {line.decode()}")
        elif status != 201:
            raise RuntimeError(f"{user}: {status} {answer}")
        return time.perf_counter() - began

    async def have(self, users: Sequence[str]) -> None:
        """Users with these names."""
        for first in range(0, len(users), 100):
            await self.api("POST", "users", json={"usernames": list(users[first : first + 100])})

    async def stop_all(self, users: Sequence[str]) -> None:
        """Every server, until none is left and the Hub is at rest: cleaning up is no part of what comes next."""
        await asyncio.gather(*(self.api("DELETE", f"users/{user}/server") for user in users))
        async with asyncio.timeout(120):
            while await self.servers("active"):
                await asyncio.sleep(0.2)
            used = -1.0
            while cpu_s(self.pid) - used > AT_REST:
                used = cpu_s(self.pid)
                await asyncio.sleep(1)

    async def servers(self, state: str) -> int:
        """How many servers are in that state ("ready", "active")."""
        count, offset = 0, 0
        while True:
            _, page = await self.api("GET", f"users?state={state}&limit=200&offset={offset}")
            count += len(page)
            if len(page) < 200:
                return count
            offset += 200

    def _config(self, api_port: int) -> str:
        return f"""
import sys
c = get_config()
c.JupyterHub.bind_url = "http://127.0.0.1:{self.public_port}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{self.port}"
c.JupyterHub.db_url = "sqlite:///{self.directory}/hub.sqlite"
c.JupyterHub.cookie_secret = b"c" * 32
c.ConfigurableHTTPProxy.should_start = False
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.ConfigurableHTTPProxy.auth_token = "{TOKEN}"
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.active_server_limit = 0
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 100, "slow_stop_timeout": 100}}
c.JupyterHub.log_level = "WARN"
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.services = [{{"name": "bench", "api_token": "{TOKEN}"}}]
c.JupyterHub.load_roles = [
    {{"name": "bench", "services": ["bench"], "scopes": ["admin:users", "admin:servers", "read:hub"]}}
]
{self.settings}
"""


@contextlib.asynccontextmanager
async def hub(directory: Path, settings: str, port: int = 0, **environment: str) -> "Any":
    """A Hub that runs inside the context."""
    one = Hub(directory, settings, environment, port or free_port())
    try:
        yield await one.start()
    finally:
        await one.close()


@contextlib.asynccontextmanager
async def browser(running: Hub, user: str) -> "Any":
    """A client that has logged in on the login page."""
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{running.port}", cookie_jar=jar) as client:
        async with client.get("/hub/login") as answer:
            await answer.read()
        xsrf = next(cookie.value for cookie in jar if cookie.key == "_xsrf")
        form = {"username": user, "password": "x", "_xsrf": xsrf}
        async with client.post("/hub/login", data=form, allow_redirects=False) as answer:
            if answer.status != 302:
                raise RuntimeError(f"no login: {answer.status} {(await answer.text())[:300]}")
        yield client


# Spawners beside ours --------------------------------------------------------------------------------------------


def nothing(lab: str) -> str:
    """Settings of the Hub alone: no process, one shared stub."""
    return f"""
from jupyterhub.spawner import Spawner
class Nothing(Spawner):
    async def start(self):
        return {lab!r}
    async def stop(self, now=False):
        pass
    async def poll(self):
        return None
c.JupyterHub.spawner_class = Nothing
"""


def local(directory: Path, command: Sequence[str]) -> str:
    """Settings of the Hub's own local spawner, without the rights of others."""
    return f"""
c.JupyterHub.spawner_class = "simple"
c.Spawner.http_timeout = 120
c.Spawner.cmd = {list(command)!r}
c.SimpleLocalProcessSpawner.home_dir_template = "{directory}/homes/{{username}}"
"""


def batch(directory: Path, stub: Path, programs: Path) -> str:
    """
    Settings of batchspawner on a private Slurm. It wants an account of the system for each person, in two places; here
    all jobs are ours. `batchspawner-singleuser` reports the port to the Hub.
    """
    return f"""
import batchspawner, os
class Batch(batchspawner.SlurmSpawner):
    def _req_homedir_default(self):
        return "{directory}"
    def user_env(self, env):
        return dict(env, USER=self.user.name, HOME="{directory}", SHELL="/bin/bash")
    async def poll_job_host(self):
        pass
    def state_gethost(self):
        return "127.0.0.1"
c.JupyterHub.spawner_class = Batch
c.Spawner.http_timeout = 120
c.Batch.exec_prefix = ""
c.Batch.req_homedir = "{directory}"
c.Batch.batchspawner_singleuser_cmd = "{Path(sys.executable).parent}/batchspawner-singleuser"
c.Batch.cmd = ["{stub}"]
c.Batch.batch_submit_cmd = "{programs}/sbatch --parsable"
c.Batch.batch_query_cmd = "{programs}/squeue -h -j {{job_id}} -o '%T %B'"
c.Batch.batch_cancel_cmd = "{programs}/scancel {{job_id}}"
c.Batch.batch_script = '''#!/bin/bash
#SBATCH --output=/dev/null
#SBATCH --export={{keepvars}}
#SBATCH --ntasks=1
{{cmd}}
'''
"""


# Simulated sites -------------------------------------------------------------------------------------------------


def site_config(directory: Path, processes: bool) -> Path:
    """A simulated UNICORE site without delays of its own and with nodes for everybody."""
    config = {
        "timing": "fast",
        "name": "BENCH",
        "directory": str(directory / "site"),
        "users": [{"name": "bench", "password": "bench"}],
        "partitions": [{"name": "batch", "nodes": 2000}],
        "job_environment": {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"},
        **({} if processes else {"execute": "virtual"}),
    }
    file = directory / "site.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def moorage_file(directory: Path, url: str, more: dict[str, Any] | None = None) -> str:
    """`moorage.yaml` for one site with a stub and a real lab; the Hub's settings that name it."""
    (directory / "password").write_text("bench")
    (directory / "password").chmod(0o600)
    (directory / "lab.py").write_text(STUB)
    root = ["--allow-root"] if os.geteuid() == 0 else []
    system = {
        "kind": "unicore",
        "options": {
            "url": url,
            "credentials": {"kind": "basic", "username": "bench", "password": {"file": str(directory / "password")}},
            "login_nodes": {"login": "login*"},
            **(more or {}),
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
    return moorage_settings(directory)


def moorage_settings(directory: Path) -> str:
    return f"""
c.JupyterHub.spawner_class = "moorage"
c.MoorageSpawner.config_file = "{directory}/moorage.yaml"
"""


def end_relay(directory: Path) -> None:
    """The relay outlives the Hub by design."""
    from moorage.demo.running import _end_relay

    _end_relay(directory)


STUB = """\
import http.server, socketserver, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
socketserver.TCPServer.allow_reuse_address = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


# What runs in other processes ------------------------------------------------------------------------------------


async def be_lab(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes = b"") -> None:
    """A stub lab on one connection: it answers everything, and an upgraded connection with an echo."""
    data = first
    with contextlib.suppress(OSError):
        while True:
            while b"\r\n\r\n" not in data:
                more = await reader.read(65536)
                if not more:
                    return
                data += more
            head, _, data = data.partition(b"\r\n\r\n")
            if b"\r\nupgrade: websocket" in head.lower():
                writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                while more := await reader.read(65536):
                    writer.write(more)
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def be_shared_lab(port: int) -> None:
    async def run() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await be_lab(reader, writer)
            writer.close()

        await asyncio.start_server(accept, "127.0.0.1", port, backlog=1024)
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(run())


class Crowd:
    """
    Jobs of a simulated site, all in one process: hundreds of launchers and labs of their own would measure this
    machine's memory. Each has a gate of its own by the launcher's code, with its own key and port.
    """

    def __init__(self, count_file: Path) -> None:
        from moorage.launcher import source

        spec = importlib.util.spec_from_loader("moorage_launcher", None)
        assert spec is not None
        self.launcher: Any = importlib.util.module_from_spec(spec)
        exec(compile(source(), "moorage_launcher.py", "exec"), self.launcher.__dict__)
        self.numbers = itertools.count(1)
        self.count_file = count_file

    async def run(self, work: Any, started: Callable[[int], None], clean: bool) -> None:
        """One job; see `moorage.simulator.servers.unicore.execution.Runner`."""
        number = next(self.numbers)
        self.count_file.write_text(str(number))
        plan = json.loads((work.directory / "plan.json").read_text())
        self._note("start", plan["tag"])
        try:
            await self._be_job(work, started, plan, number)
        finally:
            self._note("end", plan["tag"])

    def _note(self, what: str, tag: str) -> None:
        """The site's own record of its jobs, beside the file that counts them."""
        with self.count_file.with_name("jobs.log").open("a") as file:
            file.write(f"{what} {tag}\n")

    async def _be_job(self, work: Any, started: Callable[[int], None], plan: dict[str, Any], number: int) -> None:
        secret = json.loads((work.directory / plan["secret_file"]).read_text())["gate"]
        nonce = secrets.token_hex(16)
        gate = self.launcher.Gate(bytes.fromhex(secret), plan["tag"], nonce)
        over = asyncio.Event()

        async def accept(reader: Any, writer: Any) -> None:
            try:
                await self._serve(gate, over, reader, writer)
            finally:
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=128, limit=self.launcher.CHUNK)
        document = {"kind": "endpoint", "version": self.launcher.VERSION, "protocol": self.launcher.PROTOCOL}
        document |= {"time": int(time.time()), "tag": plan["tag"], "attempt": plan["attempt"], "nonce": nonce}
        document |= {"node": "n1", "restarts": 0, "host": "127.0.0.1", "port": server.sockets[0].getsockname()[1]}
        (work.directory / "endpoint.json").write_text(gate.sign(document))
        started(100_000 + number)
        try:
            await over.wait()
        finally:
            server.close()
        (work.directory / "UNICORE_SCRIPT_EXIT_CODE").write_text("0\n")

    async def _serve(self, gate: Any, over: asyncio.Event, reader: Any, writer: Any) -> None:
        line, early = await self.launcher.read_line(reader)
        request = gate.judge(line) if line is not None else None
        if request is None:
            return
        writer.write(gate.answer(request, "ok", lab="serving", http=200, left=None, code=None))
        if request.purpose == "stop":
            over.set()
        if request.purpose == "stream":
            await be_lab(reader, writer, early)


def be_crowd(config: Path, count_file: Path) -> None:
    from moorage.simulator.servers.unicore.config import load
    from moorage.simulator.servers.unicore.execution import BatchSystem, LoginNodes
    from moorage.simulator.servers.unicore.server import serve

    async def run() -> None:
        async with serve(load(config)) as running:
            site, crowd = running.site, Crowd(count_file)
            site.batch = BatchSystem(site.config.partitions, crowd, site.clock, site.config.timing)
            site.login = LoginNodes(crowd)
            print(running.url, flush=True)
            stop = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
            await stop.wait()

    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    asyncio.run(run())


if __name__ == "__main__":
    if sys.argv[1] == "crowd":
        be_crowd(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        be_shared_lab(int(sys.argv[2]))
