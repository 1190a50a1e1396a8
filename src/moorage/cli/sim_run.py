"""`moorage sim run SCENARIO`"""

import logging
import multiprocessing
import os
import shlex
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import define, frozen

from moorage.cli import CODES, Exit
from moorage.cli.output import json_option, people, print_json, results, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from moorage.simulator.report import Result, Snapshot
    from moorage.simulator.scenario import Scenario

LEVELS = ("none", "light", "storm")


@click.command("run", epilog=CODES)
@click.argument("scenario", metavar="[SCENARIO]", required=False)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The same seed, the same run.")
@click.option("--seeds", type=click.IntRange(1, 1_000_000), default=1, show_default=True, help="Run this many seeds.")
@click.option(
    "--jobs", type=click.IntRange(1, 1024), default=None, help="Processes for several seeds; without it, one per core."
)
@click.option(
    "--faults",
    metavar="none|light|storm|FILE",
    help="What goes wrong; without it, what the scenario itself says.",
)
@click.option(
    "--trace", type=click.Path(path_type=Path, dir_okay=False), help="Write what happened to this file, a line each."
)
@click.option("--digest", is_flag=True, help="Print only the seed and the digest of everything that happened.")
@json_option
def command(
    scenario: str | None,
    seed: int,
    seeds: int,
    jobs: int | None,
    faults: str | None,
    trace: Path | None,
    digest: bool,
    as_json: bool,
) -> int:
    """
    Run a scenario in virtual time: the real runner, simulated systems.

    SCENARIO is a file, or the name of one that comes with moorage; without it, those are listed. The result says how
    many sessions were asked for, how they fared and what went wrong. Every invariant is checked all the time; if one is
    broken, the code is 1 and the seed and the shortest story that shows it are printed.
    """
    if scenario is None:
        return _list(as_json)
    if trace is not None and seeds > 1:
        raise click.UsageError("--trace is for one seed")
    task = Task(scenario, faults, trace is not None)
    task.check()
    _hush()
    numbers = range(seed, seed + seeds)
    done = [_watched(task, seed, not (as_json or digest))] if seeds == 1 else _many(task, numbers, jobs)
    if trace is not None:
        trace.write_text("".join(line + "\n" for line in done[0].trace), "utf-8")
    _print(done, digest, as_json, scenario)
    return Exit.FINE if all(result.broken is None for result in done) else Exit.WRONG


def _list(as_json: bool) -> int:
    from moorage.simulator.scenario import load, shipped

    known = {name: load(name).description for name in shipped()}
    if as_json:
        print_json({"scenarios": [{"name": name, "description": text} for name, text in known.items()]})
    else:
        shown = table("SCENARIO", "WHAT IT SHOWS")
        for name, text in known.items():
            shown.add_row(name, " ".join(text.split()))
        results().print(shown)
    return Exit.FINE


@frozen
class Task:
    """What is run with each seed; goes to other processes."""

    scenario: str
    faults: str | None
    keep_trace: bool

    def load(self) -> "Scenario":
        from moorage.simulator.scenario import load

        return load(self.scenario)

    def check(self) -> None:
        """Raise `ConfigError` for what is wrong with the files, before anything runs."""
        self.load()
        if self.faults is not None and self.faults not in LEVELS:
            from moorage.simulator.scenario import load_faults

            load_faults(self.faults)

    def run(self, seed: int) -> "Result":
        from moorage.simulator.run import run_scenario

        return run_scenario(self.load(), seed, self.faults, keep_trace=self.keep_trace)


# One seed, watched -----------------------------------------------------------------------------------------------


@define
class Picture:
    """What is shown of a run. The simulation puts snapshots in, the screen's own thread takes them."""

    latest: "Snapshot | None" = None

    def take(self, snapshot: "Snapshot") -> None:
        self.latest = snapshot

    def draw(self) -> "RenderableType":
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now = self.latest
        if now is None:
            return "beginning"
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(total=now.lasts_s, completed=min(now.virtual_s, now.lasts_s), width=30)
        head.add_row(f"{_clock(now.virtual_s)} of {_clock(now.lasts_s)}", bar, "healed" if now.healed else "")
        if now.broken:
            searching = f"broken: {now.broken.replace('_', ' ')}; looking for the shortest story that shows it"
            return Group(head, searching)
        counts = f"{now.asked} sessions asked for, {now.faults_fired} faults, {now.checked} checks"
        shown = table("SYSTEM", *_STATES.values())
        for name, states in sorted(now.systems.items()):
            shown.add_row(name, *(str(states.get(state, "")) for state in _STATES))
        return Group(head, counts, shown)


_STATES = {
    "Waiting": "WAIT",
    "Submitting": "SUBMIT",
    "Locating": "LOCATE",
    "Queued": "QUEUE",
    "Starting": "START",
    "Connecting": "CONNECT",
    "Ready": "READY",
    "Degraded": "DEGRADED",
    "Stopping": "STOP",
    "Ended": "ENDED",
}
"""Headings that fit into 80 columns."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _watched(task: Task, seed: int, shown: bool) -> "Result":
    from moorage.simulator.run import run_scenario

    picture = Picture()
    with _live(picture, shown):
        return run_scenario(task.load(), seed, task.faults, picture.take, task.keep_trace)


@contextmanager
def _live(picture: Picture, shown: bool) -> Iterator[None]:
    console = people()
    if not shown or not console.is_terminal:
        yield
        return
    from rich.live import Live

    # The simulation's thread may not look at a clock; the one that draws is another one.
    with Live(get_renderable=picture.draw, console=console, refresh_per_second=8, transient=True):
        yield


# Many seeds, in several processes --------------------------------------------------------------------------------


def _many(task: Task, seeds: Sequence[int], jobs: int | None) -> list["Result"]:
    """Results in the order of the seeds."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    workers = min(jobs or len(os.sched_getaffinity(0)), len(seeds))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done: list[Result] = []
    # Not by fork: a copy of this process would have its threads' locks without the threads.
    with (
        Progress(*columns, console=people(), transient=True) as progress,
        multiprocessing.get_context("spawn").Pool(workers, _begin_worker) as pool,
    ):
        bar = progress.add_task("seeds", total=len(seeds))
        for result in pool.imap_unordered(task.run, seeds):
            done.append(result)
            broken = sum(each.broken is not None for each in done)
            progress.update(bar, advance=1, description=f"seeds, {broken} broken" if broken else "seeds")
    return sorted(done, key=lambda result: result.seed)


def _begin_worker() -> None:
    """Ctrl-C reaches every process of the terminal; only the first one is to answer it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _hush()


def _hush() -> None:
    """What the runner warns of is the simulated trouble itself; what it calls critical is a bug, and is shown."""
    logging.getLogger("moorage").setLevel(logging.CRITICAL)


# Results ---------------------------------------------------------------------------------------------------------


def _print(done: list["Result"], digest: bool, as_json: bool, scenario: str) -> None:
    if digest and not as_json:
        for result in done:
            click.echo(f"{result.seed} {result.digest}")
    elif as_json:
        runs = [{"seed": each.seed, "digest": each.digest} if digest else each.as_dict() for each in done]
        print_json(runs[0] if len(runs) == 1 else {"runs": runs, "summary": _summary(done)})
    elif len(done) == 1:
        _print_one(done[0])
    else:
        _print_many(done)
    for result in done:
        if result.broken is not None and not as_json:
            _print_broken(result, scenario)


def _print_one(result: "Result") -> None:
    said = result.as_dict()
    sessions, calls = said["sessions"], said["remote_calls"]
    shown = table("", "")
    shown.show_header = False
    shown.add_row("scenario", f"{result.scenario}, seed {result.seed}, faults: {result.faults_from}")
    shown.add_row("sessions asked for", str(sessions["asked"]))
    shown.add_row("ready", str(sessions["ready"]))
    for cause, count in sessions["ended"].items():
        shown.add_row(f"ended: {cause.replace('_', ' ')}", str(count))
    for what, times in (("wait until running", said["wait"]), ("start until ready", said["start"])):
        shown.add_row(what, _times(times))
    per_hour = "" if calls["per_session_hour"] is None else f", {calls['per_session_hour']:.2f} per session-hour"
    shown.add_row("remote calls", f"{calls['total']}{per_hour}")
    fired = ", ".join(f"{name} {count}" for name, count in said["faults_fired"].items())
    shown.add_row("faults fired", fired or "none")
    shown.add_row("invariants", f"{len(result.invariants)}, checked {result.checked} times")
    shown.add_row("virtual time", f"{_clock(result.virtual_s)} in {result.real_s:.1f} s ({_speed(result)} real time)")
    shown.add_row("digest", result.digest)
    results().print(shown)


def _times(times: dict[str, Any]) -> str:
    if not times["count"]:
        return "nobody got that far"
    return f"median {times['median_s']:.1f} s, 95th percentile {times['p95_s']:.1f} s, longest {times['max_s']:.1f} s"


def _speed(result: "Result") -> str:
    return f"{result.virtual_s / result.real_s:,.0f} ×" if result.real_s else ""


def _print_many(done: list["Result"]) -> None:
    shown = table("SEED", "ASKED", "READY", "FAULTS", "CHECKS", "REAL TIME", "DIGEST", "INVARIANTS")
    for each in done:
        verdict = "hold" if each.broken is None else f"BROKEN: {each.broken.invariant}"
        fired = sum(each.fired.values())
        counts = (str(each.asked), str(each.ready), str(fired), str(each.checked), f"{each.real_s:.1f} s")
        shown.add_row(str(each.seed), *counts, each.digest[:12], verdict)
    results().print(shown)
    summary = _summary(done)
    click.echo(
        f"\n{summary['runs']} runs, {summary['broken']} broken; {summary['asked']} sessions asked for, "
        f"{summary['ready']} ready; {summary['faults_fired']} faults, {summary['checked']} checks"
    )


def _summary(done: list["Result"]) -> dict[str, Any]:
    causes: Counter[str] = Counter()
    for result in done:
        causes.update(result.causes)
    return {
        "runs": len(done),
        "broken": sum(result.broken is not None for result in done),
        "broken_seeds": [result.seed for result in done if result.broken is not None],
        "asked": sum(result.asked for result in done),
        "ready": sum(result.ready for result in done),
        "ended": dict(sorted(causes.items())),
        "faults_fired": sum(sum(result.fired.values()) for result in done),
        "checked": sum(result.checked for result in done),
        "virtual_s": sum(result.virtual_s for result in done),
        "cpu_s": round(sum(result.cpu_s for result in done), 3),
    }


def _print_broken(result: "Result", scenario: str) -> None:
    assert result.broken is not None
    broken = result.broken
    click.echo(f"\nBroken with seed {result.seed}: {broken.invariant.replace('_', ' ')}, at {_clock(broken.at_s)}")
    click.echo(f"  {broken.sentence}")
    if broken.story:
        click.echo("  the shortest story found, of a run with as few people and faults as show it:")
    for line in broken.story:
        click.echo(f"  | {line}")
    told = "" if result.faults_from == "scenario" else f" --faults {shlex.quote(result.faults_from)}"
    click.echo(f"  again: moorage sim run {shlex.quote(scenario)} --seed {result.seed}{told}")
