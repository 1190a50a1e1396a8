"""`moorage run SYSTEM`"""

import asyncio
import contextlib
import getpass
import json
import secrets
import shutil
import signal
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import define, field

from moorage.cli import CODES, Exit
from moorage.cli.leftover import RECORD_NAME, Record, abandoned, private_folder
from moorage.cli.line import Line, printable
from moorage.cli.output import config_option, json_option

if TYPE_CHECKING:
    from moorage.bootstrap import Deployment
    from moorage.core.catalog import SessionOptions
    from moorage.core.machine import Decision
    from moorage.core.model import Cause, Route, Session, SessionId, SessionSpec
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
    of a Hub with the same configuration, and nothing of it is left at the end; a second Ctrl-C does not wait for that.
    What a run that was killed has left is stopped by the next run with the same configuration. With --json, one
    object per line is printed: each step, then "ready" with the address, then "ended" with the cause.
    """
    asked = _asked(system, service, pairs)
    with Line(silent=as_json) as line, private_folder() as folder:
        line.show("reading the configuration")
        token = token or secrets.token_hex(16)
        run = Run(asked, system, frozenset(groups), config_file, simulation, token, as_json, folder, line)
        try:
            return asyncio.run(run.to_the_end())
        finally:
            if (folder / RECORD_NAME).exists():
                line.say(
                    f"moorage: the session on {system} may still be running. The next `moorage run` with this "
                    f"configuration stops it; what is known about it is in {folder}"
                )


def _asked(system: str, service: str | None, pairs: tuple[str, ...]) -> dict[str, object]:
    asked: dict[str, object] = {"system": system}
    if service is not None:
        asked["service"] = service
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--option {pair[:60]}: NAME=VALUE is expected")
        several = name in ("kernels", "extensions")
        asked[name] = [each for each in value.split(",") if each] if several else value
    return asked


@define(eq=False)
class Run:
    """One session, from asking for it to its end."""

    asked: dict[str, object]
    system: str
    groups: frozenset[str]
    config_file: Path
    simulation: bool
    token: str
    as_json: bool
    folder: Path
    line: Line
    ready: bool = False
    obstacle: str = ""
    last: "Progress | None" = None
    interrupted: asyncio.Event = field(factory=asyncio.Event)

    async def to_the_end(self) -> int:
        from moorage.bootstrap import Apart, compose

        apart = Apart("r" + secrets.token_hex(3), self.folder)
        with _signals(self.interrupted), abandoned(self.config_file) as killed:
            async with (
                compose(
                    self.config_file,
                    Silent(),
                    simulation=self.simulation,
                    apart=apart,
                    watchers=[self._watch],
                ) as deployment,
                _meanwhile([self._finish(folder, record) for folder, record in killed]),
            ):
                options = self._options(deployment)
                self._record(apart.deployment)
                session = await self._start(deployment, options)
                return await self._accompany(deployment, options, session)

    def _record(self, deployment: str) -> None:
        started = time.strftime("%Y-%m-%d %H:%M")
        config = str(self.config_file.resolve())
        Record(deployment, self.system, config, self.simulation, started).write(self.folder)

    async def _finish(self, folder: Path, record: Record) -> None:
        """Stop what a killed run has left, and remove its folder when that is gone."""
        from moorage.bootstrap import Apart, compose
        from moorage.ports.errors import StoreFailed

        self.line.say(f"The run of {record.started} on {record.system} was killed; its session is being stopped.")
        apart = Apart(record.deployment, folder)
        try:
            async with (
                compose(self.config_file, Silent(), simulation=record.simulation, apart=apart) as deployment,
                asyncio.timeout(GONE_S),
            ):
                for stored in await deployment.store.unfinished():
                    await deployment.runner.stop(stored.session.id)
                # The store tells nobody of changes.
                while await deployment.store.unfinished():  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        except TimeoutError:
            self.line.say(f"The session of {record.started} on {record.system} is not gone yet; the next run goes on.")
        except StoreFailed as error:
            self.line.say(f"What the run of {record.started} has left cannot be read ({error}): see {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
            self.line.say(f"The session of {record.started} on {record.system} is stopped; nothing is left of it.")

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
        async for step in deployment.runner.follow(session):
            if step.progress != self.last:
                self.last = step.progress
                self._show()
            yield step

    def _watch(self, before: object, event: object, decision: "Decision", at: object) -> None:
        """What stands in the way of a stop: it may take long, and its reason is in no state."""
        from moorage.core.events import CancelAnswered, EffectFailed
        from moorage.core.model import Doubt, Stopping

        if not isinstance(decision.session.state, Stopping):
            return
        match event:
            case EffectFailed(_, failure):
                self.obstacle = failure.note
            case CancelAnswered(_, _, Doubt(_, note)):
                self.obstacle = note
            case _:
                return
        self._show()

    def _show(self) -> None:
        last = self.last
        if last is None:
            return
        text = last.text
        if last.state == "stopping" and self.obstacle:
            text = f"{text}: {self.obstacle}"
        if self.as_json:
            _say("step", state=last.state, percent=last.percent, text=text)
        elif last.state in ("stopping", "ended"):
            # 100 % of what? And whoever waits wants to know how not to.
            self.line.show(f"{text}{'; Ctrl-C again does not wait' if self.interrupted.is_set() else ''}")
        else:
            self.line.show(f"{last.percent:3d} %  {text}{'; Ctrl-C stops it' if last.state == 'ready' else ''}")

    def _tell_ready(self, address: str) -> None:
        if self.as_json:
            _say("ready", address=address)
        else:
            self.line.say(address, result=True)

    async def _end(self, deployment: "Deployment", session: "SessionId") -> int:
        """Wait until nothing is left of the session, and say how it ended."""
        from moorage.core.model import Ended

        clock, found = deployment.ports.clock, (await deployment.runner.get(session)).session
        deadline = clock.now() + GONE_S * 1000
        while not found.over and clock.now() < deadline:
            await asyncio.sleep(0.05)
            found = (await deployment.runner.get(session)).session
        assert isinstance(found.state, Ended), "following a session ends with its end"
        left = sorted({each.kind.value for each in found.residue})
        if not left:
            (self.folder / RECORD_NAME).unlink()
        self._tell_end(found, left)
        return _code(found.state.cause, gone=not left, ready=self.ready, interrupted=self.interrupted.is_set())

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
        stopped = state.cause.value == "stopped"
        if stopped and not left:
            self.line.say(f"Stopped; nothing is left on {self.system}.")
            return
        said = f": {evidence.note}" if evidence.note else ""
        self.line.say(f"The session ended ({state.cause.value.replace('_', ' ')}){said}")
        if evidence.log and not stopped:
            self.line.say(_bounded(evidence.log))
        if left:
            self.line.say(f"Not removed: {', '.join(left)}")


class Silent:
    """Nobody is led anywhere: who runs a session reads the address."""

    async def report(self, spec: "SessionSpec", progress: "Progress") -> None:
        """Steps are followed instead."""

    async def publish(self, spec: "SessionSpec", route: "Route") -> None:
        """The address is printed."""

    async def withdraw(self, spec: "SessionSpec") -> None:
        """Nothing was published."""


def _code(cause: "Cause", *, gone: bool, ready: bool, interrupted: bool) -> Exit:
    """How the command ends after a session that ended with this cause."""
    from moorage.core.model import Cause

    if not gone:
        return Exit.WRONG
    if cause is Cause.STOPPED and interrupted:
        return Exit.FINE if ready else Exit.INTERRUPTED
    return {Cause.FINISHED: Exit.FINE, Cause.UNAUTHORISED: Exit.UNREACHABLE}.get(cause, Exit.WRONG)


def _address(deployment: "Deployment", options: "SessionOptions", session: "Session", token: str) -> str:
    route = getattr(session.state, "route", None)
    address = route.address if route is not None else ""
    kind = deployment.catalog.services[options.service].kind
    return f"{address}/lab?token={token}" if kind == "jupyterlab" else f"{address}/"


def _say(what: str, **facts: Any) -> None:
    click.echo(json.dumps({"event": what, **facts}, ensure_ascii=False))


def _bounded(log: str) -> str:
    """The last lines, with nothing in them that steers a terminal."""
    lines = [printable(line) for line in log.splitlines()[-20:]]
    return "\n".join(f"  | {line[:300]}" for line in lines)


@contextlib.asynccontextmanager
async def _meanwhile(works: list[Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """The works go on beside what is inside; at its end they are waited for, unless it failed."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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
