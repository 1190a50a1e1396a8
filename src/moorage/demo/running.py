"""Starting the processes of the demonstration, keeping them, and leaving nothing behind."""

import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from attrs import define, field

from .files import SITES, UNICORE_SITES, Layout, write_all, write_moorage

log = logging.getLogger(__name__)

START_S = 60.0
STOP_S = 30.0
"""For sessions to end, and then for each process."""


class DemoFailed(Exception):
    """The demonstration cannot be started; the text says why and where to look."""

    for_people = True


@define(eq=False)
class Child:
    """A process, and how to start it again."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log_file: Path
    process: asyncio.subprocess.Process | None = None
    stopping: bool = False
    started_at: float = 0.0
    lines: "asyncio.Queue[str]" = field(factory=asyncio.Queue)
    reading: "asyncio.Task[None] | None" = None
    log_from: int = 0
    """Where in the file the log of this start begins."""

    def logged(self) -> str:
        """What it has logged since it was started."""
        with self.log_file.open("rb") as file:
            file.seek(self.log_from)
            return file.read().decode("utf-8", "replace")

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    def signal(self, number: int) -> None:
        """Send a signal, if there is still somebody to get it."""
        if self.process is not None and self.running:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


@define(eq=False)
class Demo:
    """Everything that runs."""

    layout: Layout
    say: Callable[[str], None]
    children: dict[str, Child] = field(factory=dict)
    _keeping: list["asyncio.Task[None]"] = field(factory=list)

    async def start(self) -> None:
        """
        Start everything; returns when the login page answers.

        Raises:
            DemoFailed: Something did not come up; what had come up is for `stop`.
        """
        write_all(self.layout)
        directory = self.layout.directory
        for site in UNICORE_SITES:
            await self._launch(
                site, [sys.executable, "-m", "moorage.demo.site", "unicore", f"{directory}/site-{site}.yaml"]
            )
        slurm = directory / "sites" / "slurm"
        slurm.mkdir(mode=0o700, parents=True, exist_ok=True)
        arguments = ["slurm", f"{directory}/site-slurm.yaml", str(self.layout.ports["slurm"]), str(slurm)]
        await self._launch("slurm", [sys.executable, "-m", "moorage.demo.site", *arguments])
        await self._launch("proxy", self._proxy(), {"CONFIGPROXY_AUTH_TOKEN": self.layout.tokens["proxy"]})
        for site in UNICORE_SITES:
            await self._line(site)
        write_moorage(self.layout, await self._told("slurm"))
        hub = [sys.executable, "-m", "jupyterhub", "-f", f"{directory}/jupyterhub_config.py"]
        await self._launch("hub", hub, {"MOORAGE_SIMULATION": "1"})
        await self._answering(f"{self.layout.url}/hub/login")
        await self._working()
        self._keeping = [asyncio.create_task(self._keep(child)) for child in self.children.values()]

    async def stop(self) -> None:
        """End every session, then every process. Again is harmless."""
        for task in self._keeping:
            task.cancel()
        for child in self.children.values():
            child.signal(signal.SIGCONT)  # what is frozen ends no session
        if self._keeping:
            await self._end_sessions()
        for name in ("hub", "proxy"):
            await self._end(name)
        await asyncio.to_thread(_end_relay, self.layout.directory)
        for name in SITES:
            await self._end(name)
        await asyncio.to_thread(end_orphans, self.layout.directory / "sites")

    # Processes --------------------------------------------------------------------------------------------------------

    async def _launch(self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None) -> None:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})}
        log_file = self.layout.directory / "logs" / f"{name}.log"
        log_file.parent.mkdir(mode=0o700, exist_ok=True)
        self.children[name] = Child(name, command, environment, log_file)
        await self._begin(self.children[name])

    async def _begin(self, child: Child) -> None:
        with child.log_file.open("ab") as file:
            child.log_from = file.tell()
            child.process = await asyncio.create_subprocess_exec(
                *child.command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=child.environment,
                cwd=self.layout.directory,
                start_new_session=True,  # Ctrl-C is ours to pass on, in order
                preexec_fn=_die_with_parent,
            )
        child.started_at = time.monotonic()
        child.reading = asyncio.create_task(_read(child))

    async def _keep(self, child: Child) -> None:
        """Start a process again whenever it dies."""
        while True:
            assert child.process is not None
            code = await child.process.wait()
            if child.stopping:
                return
            self.say(f"{child.name} has died ({code}); starting it again")
            if time.monotonic() - child.started_at < 5:
                await asyncio.sleep(2)
            await self._begin(child)

    async def _end(self, name: str) -> None:
        child = self.children.get(name)
        if child is None or child.process is None:
            return
        child.stopping = True
        for number, patience_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, 5.0)):
            if not child.running:
                break
            child.signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(child.process.wait(), patience_s)
        if child.reading is not None:
            await child.reading

    def _proxy(self) -> list[str]:
        ports = self.layout.ports
        return [
            *find_proxy(),
            *("--ip", "127.0.0.1", "--port", str(ports["public"])),
            *("--api-ip", "127.0.0.1", "--api-port", str(ports["proxy_api"])),
            *("--default-target", self.layout.hub_url, "--error-target", f"{self.layout.hub_url}/hub/error"),
            *("--log-level", "warn"),
        ]

    # What they say ----------------------------------------------------------------------------------------------------

    async def _line(self, name: str) -> str:
        child = self.children[name]
        reader = asyncio.ensure_future(child.lines.get())
        assert child.process is not None
        death = asyncio.ensure_future(child.process.wait())
        done, _ = await asyncio.wait([reader, death], timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        death.cancel()
        if reader not in done:
            reader.cancel()
            raise DemoFailed(f"{name} did not start; see {child.log_file}")
        return reader.result()

    async def _told(self, name: str) -> dict[str, str]:
        """The lines "word: value" up to "ready"."""
        told: dict[str, str] = {}
        while (line := await self._line(name)) != "ready":
            word, colon, value = line.partition(": ")
            if colon:
                told[word] = value
        return told

    async def _answering(self, url: str) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if not self.children["hub"].running:
                raise DemoFailed(f"the Hub did not start; see {self.children['hub'].log_file}")
            if await asyncio.to_thread(_answers, url):
                return
            await asyncio.sleep(0.1)
        raise DemoFailed(f"{url} does not answer; see {self.children['hub'].log_file}")

    async def _working(self) -> None:
        """The Hub answers without moorage, too, for what runs already; but then there is nothing to demonstrate."""
        hub = self.children["hub"]
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and hub.running:
            if await asyncio.to_thread(self._api, "GET", "users/alice/load", "moorage/api"):
                return
            _, told, why = (await asyncio.to_thread(hub.logged)).rpartition("moorage cannot work: ")
            if told:
                raise DemoFailed("moorage cannot work: " + why.partition("\n[")[0])
            await asyncio.sleep(0.1)
        raise DemoFailed(f"moorage does not work in the Hub; see {hub.log_file}")

    async def _end_sessions(self) -> None:
        """Ask the Hub to stop every server, and wait for them: jobs and files go while their systems are there."""
        hub = self.children["hub"]
        try:
            async with asyncio.timeout(STOP_S) as limit:
                if not hub.running:  # killed just now
                    await self._begin(hub)
                fewest = sys.maxsize
                while True:
                    with contextlib.suppress(OSError):  # it is coming up
                        servers = await asyncio.to_thread(self._servers)
                        await asyncio.gather(*(asyncio.to_thread(self._api, "DELETE", path) for path in servers))
                        if not servers:
                            return
                        if len(servers) < fewest:  # it goes on
                            fewest = len(servers)
                            limit.reschedule(asyncio.get_running_loop().time() + STOP_S)
                    await asyncio.sleep(0.2)
        except TimeoutError:
            log.warning("not every session ended in time; its processes end with the simulated site")

    def _servers(self) -> list[str]:
        found = []
        for user in json.loads(self._api("GET", "users") or b"[]"):
            for name in user.get("servers") or {}:
                found.append(f"users/{user['name']}/" + (f"servers/{name}" if name else "server"))
        return found

    def _api(self, method: str, path: str, part: str = "api") -> bytes:
        headers = {"Authorization": f"token {self.layout.tokens['demo']}"}
        request = urllib.request.Request(f"{self.layout.hub_url}/hub/{part}/{path}", method=method, headers=headers)  # noqa: S310 (our own Hub)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            return b""


@asynccontextmanager
async def demonstration(layout: Layout, say: Callable[[str], None]) -> AsyncIterator[Demo]:
    """A demonstration that works inside the context and is gone after it."""
    demo = Demo(layout, say)
    with _alone(layout.directory):
        try:
            await demo.start()
            yield demo
        finally:
            await asyncio.shield(demo.stop())


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Held while this process lives: two demonstrations in one directory would end each other's sessions."""
    with (directory / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoFailed(f"a demonstration runs in {directory} already") from None
        yield


def find_proxy() -> list[str]:
    """
    The command of configurable-http-proxy.

    Raises:
        DemoFailed: It is not installed; says how to.
    """
    beside = [Path.cwd() / "node_modules/.bin", Path(__file__).parents[3] / "node_modules/.bin"]
    for folder in beside:
        if (folder / "configurable-http-proxy").exists():
            return [str(folder / "configurable-http-proxy")]
    found = shutil.which("configurable-http-proxy")
    if found is None:
        raise DemoFailed("configurable-http-proxy is missing; install it with: npm install configurable-http-proxy")
    return [found]


async def _read(child: Child) -> None:
    """Its standard output, line by line; nobody has to take them."""
    assert child.process is not None
    assert child.process.stdout is not None
    async for line in child.process.stdout:
        if child.lines.qsize() < 100:
            child.lines.put_nowait(line.decode("utf-8", "replace").rstrip("\n"))


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 (our own Hub)
            return bool(answer.status == 200)
    except OSError:
        return False


def _die_with_parent() -> None:
    """Asks Linux to end this process with the one that started it, so that even kill -9 leaves nothing behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def end_orphans(directory: Path) -> None:
    """
    End what jobs have started below a directory and nobody looks after any more.

    Not all that works there: it may be the shell of somebody who looks at the files.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            below = Path(os.readlink(entry / "cwd")).is_relative_to(directory)
            if below and entry.stat().st_uid == os.getuid() and _is_of_a_job(entry, directory):
                os.kill(int(entry.name), signal.SIGKILL)


def _is_of_a_job(entry: Path, directory: Path) -> bool:
    """A batch script, a launcher, or a lab and what it started, which have the tag in their environment."""
    command = (entry / "cmdline").read_bytes()
    return (
        os.fsencode(directory) in command
        or b"moorage_launcher" in command
        or b"MOORAGE_TAG=" in (entry / "environ").read_bytes()
    )


def _end_relay(directory: Path) -> None:
    """End the relay, which outlives the Hub by design. It listens on a socket in the deployment's directory."""
    asyncio.run(_stop_relay(directory / ".moorage"))


async def _stop_relay(state: Path) -> None:
    from moorage.ports.errors import PortError
    from moorage.relay.client import RelayTunnels

    if not (state / "relay").exists():
        return
    tunnels = RelayTunnels(state, None)
    try:
        await tunnels.stop_relay()
    except PortError as error:
        log.info("no relay was stopped: %s", error)
    finally:
        await tunnels.aclose()


__all__ = ["Demo", "DemoFailed", "demonstration", "find_proxy"]
