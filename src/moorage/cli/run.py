"""`moorage run SYSTEM`"""

import asyncio
import contextlib
import getpass
import json
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import define, field

from moorage.cli import CODES, Exit
from moorage.cli.output import config_option, json_option, people

if TYPE_CHECKING:
    from moorage.bootstrap import Deployment
    from moorage.core.catalog import SessionOptions
    from moorage.core.model import Route, Session, SessionId, SessionSpec
    from moorage.core.progress import Progress
    from moorage.ports.sessions import Step

GONE_S = 60.0
"""So long after the end of the session is waited for its files and secrets to be removed."""


@click.command("run", epilog=CODES)
@click.argument("system")
@click.option("--service", help="What to start; without it, the default service.")
@click.option(
    "--option",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="As in the form: partition, project, account, nodes, cores, memory_mib, gpus, walltime_s, reservation, "
    "kernels, extensions (names with commas between). May be repeated.",
)
@click.option("--group", "groups", multiple=True, help="Act as a member of this group. May be repeated.")
@config_option
@click.option("--simulation", is_flag=True, help="The system is simulated: its certificate need not be signed.")
@click.option("--token", envvar="MOORAGE_LAB_TOKEN", hidden=True, help="Token of the lab; without it, a random one.")
@json_option
def command(
    system: str,
    service: str | None,
    pairs: tuple[str, ...],
    groups: tuple[str, ...],
    config_file: Path,
    simulation: bool,
    token: str | None,
    as_json: bool,
) -> int:
    """
    Start a session on a configured system and stop it on Ctrl-C.

    Shows how far it is and prints the address at which it is reached from this machine. It is apart from the sessions
    of a Hub with the same configuration, and nothing of it is left at the end. With --json, one object per line is
    printed: each step, then "ready" with the address, then "ended" with the cause.
    """
    asked = _asked(system, service, pairs)
    with _private_folder() as folder:
        run = Run(asked, frozenset(groups), config_file, simulation, token or secrets.token_hex(16), as_json, folder)
        return asyncio.run(run.to_the_end())


def _asked(system: str, service: str | None, pairs: tuple[str, ...]) -> dict[str, object]:
    asked: dict[str, object] = {"system": system}
    if service is not None:
        asked["service"] = service
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--option {pair}: NAME=VALUE is expected")
        several = name in ("kernels", "extensions")
        asked[name] = [each for each in value.split(",") if each] if several else value
    return asked


LEFT_NAME = "left"


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """
    For what this run keeps; removed at its end unless something of the session is left, of which it then tells.

    Its path is short, because a unix socket's has at most 107 bytes.
    """
    folder = Path(tempfile.mkdtemp(prefix="moorage-"))
    try:
        yield folder
    finally:
        if (folder / LEFT_NAME).exists():
            click.echo(f"moorage: something may be left; what is known about it is in {folder}", err=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


@define(eq=False)
class Run:
    """One session, from asking for it to its end."""

    asked: dict[str, object]
    groups: frozenset[str]
    config_file: Path
    simulation: bool
    token: str
    as_json: bool
    folder: Path
    ready: bool = False
    interrupted: asyncio.Event = field(factory=asyncio.Event)

    async def to_the_end(self) -> int:
        from moorage.bootstrap import Apart, compose

        apart = Apart("r" + secrets.token_hex(3), self.folder)
        with _signals(self.interrupted):
            async with compose(self.config_file, Silent(), simulation=self.simulation, apart=apart) as deployment:
                options = self._options(deployment)
                session = await self._start(deployment, options)
                return await self._accompany(deployment, options, session)

    def _options(self, deployment: "Deployment") -> "SessionOptions":
        from moorage.core.catalog import SessionOptions, User, validate

        self.user = User(getpass.getuser(), self.groups)
        chosen = validate(deployment.choices(self.user), self.asked)
        if isinstance(chosen, SessionOptions):
            return chosen
        raise click.UsageError("\n".join(map(str, chosen)))

    user: Any = None

    async def _start(self, deployment: "Deployment", options: "SessionOptions") -> "SessionId":
        from moorage.core.model import Owner, SessionKey
        from moorage.core.secret import Secret

        key = SessionKey("run", Owner(self.user.name))
        (self.folder / LEFT_NAME).write_text("a session was started")
        await deployment.vault.keep(key, {"JUPYTER_TOKEN": Secret(self.token)})
        return await deployment.runner.start(deployment.request(key, self.user, options))

    async def _accompany(self, deployment: "Deployment", options: "SessionOptions", session: "SessionId") -> int:
        stopping = asyncio.create_task(self._stop_when_interrupted(deployment, session))
        try:
            async for step in self._steps(deployment, session):
                if step.progress.state == "ready" and not self.ready:
                    self.ready = True
                    found = (await deployment.runner.get(session)).session
                    self._tell_ready(_address(deployment, options, found, self.token))
            return await self._end(deployment, session)
        finally:
            stopping.cancel()
            await asyncio.gather(stopping, return_exceptions=True)

    async def _stop_when_interrupted(self, deployment: "Deployment", session: "SessionId") -> None:
        await self.interrupted.wait()
        await deployment.runner.stop(session)

    async def _steps(self, deployment: "Deployment", session: "SessionId") -> "AsyncIterator[Step]":
        """The steps as they happen, shown on the way."""
        last: Progress | None = None
        status = None if self.as_json else people().status("asking for the session")
        with status or contextlib.nullcontext():
            async for step in deployment.runner.follow(session):
                if step.progress != last:
                    last = step.progress
                    if status is None:
                        _say("step", state=last.state, percent=last.percent, text=last.text)
                    else:
                        # A site's words: brackets in them are no markup.
                        status.update(_escaped(f"{last.percent:3d} %  {last.text}"))
                yield step

    def _tell_ready(self, address: str) -> None:
        if self.as_json:
            _say("ready", address=address)
        else:
            click.echo(address)
            click.echo("Press Ctrl-C to stop it.", err=True)

    async def _end(self, deployment: "Deployment", session: "SessionId") -> int:
        """Wait until nothing is left of the session, and say how it ended."""
        from moorage.core.model import Cause, Ended

        clock, found = deployment.ports.clock, (await deployment.runner.get(session)).session
        deadline = clock.now() + GONE_S * 1000
        while not found.over and clock.now() < deadline:
            await asyncio.sleep(0.05)
            found = (await deployment.runner.get(session)).session
        assert isinstance(found.state, Ended), "following a session ends with its end"
        left = sorted({each.kind.value for each in found.residue})
        if not left:
            (self.folder / LEFT_NAME).unlink()
        self._tell_end(found, left)
        if self.interrupted.is_set() and found.state.cause is Cause.STOPPED and not left:
            return Exit.FINE if self.ready else Exit.INTERRUPTED
        return Exit.FINE if found.state.cause is Cause.FINISHED and not left else Exit.WRONG

    def _tell_end(self, session: "Session", left: list[str]) -> None:
        state: Any = session.state
        evidence = state.evidence
        if self.as_json:
            _say(
                "ended",
                cause=state.cause.value,
                note=evidence.note,
                exit_code=evidence.exit_code,
                log=evidence.log,
                left=left,
            )
            return
        said = f": {evidence.note}" if evidence.note else ""
        click.echo(f"The session ended ({state.cause.value.replace('_', ' ')}){said}", err=True)
        if evidence.log and state.cause.value != "stopped":
            click.echo(_bounded(evidence.log), err=True)
        if left:
            click.echo(f"Not removed: {', '.join(left)}", err=True)


class Silent:
    """Nobody is led anywhere: who runs a session reads the address."""

    async def report(self, spec: "SessionSpec", progress: "Progress") -> None:
        """Steps are followed instead."""

    async def publish(self, spec: "SessionSpec", route: "Route") -> None:
        """The address is printed."""

    async def withdraw(self, spec: "SessionSpec") -> None:
        """Nothing was published."""


def _address(deployment: "Deployment", options: "SessionOptions", session: "Session", token: str) -> str:
    route = getattr(session.state, "route", None)
    address = route.address if route is not None else ""
    kind = deployment.catalog.services[options.service].kind
    return f"{address}/lab?token={token}" if kind == "jupyterlab" else f"{address}/"


def _say(what: str, **facts: Any) -> None:
    click.echo(json.dumps({"event": what, **facts}, ensure_ascii=False))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _bounded(log: str) -> str:
    """The last lines, with nothing in them that steers a terminal."""
    lines = ["".join(char if char.isprintable() else "?" for char in line) for line in log.splitlines()[-20:]]
    return "\n".join(f"  | {line[:300]}" for line in lines)


SAME_S = 2.0
"""Interrupts so close together are one wish: `timeout` and some shells send the signal to the process and its group."""


@contextlib.contextmanager
def _signals(event: asyncio.Event) -> Iterator[None]:
    """The first Ctrl-C sets the event; a later one gives up waiting."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    first_at: list[float] = []

    def caught() -> None:
        if first_at and loop.time() - first_at[0] > SAME_S:
            raise KeyboardInterrupt
        first_at.append(loop.time())
        event.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, caught)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
