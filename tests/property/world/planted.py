"""
Planted bugs: mutants of the machine, the runner and its halves, made of incidents that happened to others.

Each is a change of a few words in one function. The world has to find every one of them; how many seeds of a hundred
do is in `docs/planted-bugs.md`, which this module writes:

    python tests/property/world/planted.py --seeds 60 > docs/planted-bugs.md
"""

import argparse
import inspect
import itertools
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

from attrs import frozen
from small_worlds import crowded, live

from moorage import observing, performing, runner
from moorage.core import admission, machine, model

Edit = tuple[Any, str, str]
"""A function, words in its source, and what is to stand there instead."""


@frozen
class Planted:
    """
    One bug.

    Args:
        mode: Number of the failure mode in the list of what users report, or "smell".
    """

    name: str
    mode: str
    says: str
    edits: tuple[Edit, ...]


def _bug(name: str, mode: str, says: str, *edits: Edit) -> Planted:
    return Planted(name, mode, says, edits)


_R, _P, _O, _M = runner.Runner, performing.Performing, observing.Observing, machine

PLANTED: tuple[Planted, ...] = (
    _bug(
        "silence-is-death",
        "1",
        "a status call that fails means that the jobs are gone",
        (
            _O._ask,
            "said, observer.failed = {}, error.note",
            "said = {w.handle.job: Gone(EndReason.FAILED) for w in asked}",
        ),
    ),
    _bug(
        "not-listed-is-gone",
        "3",
        "a job that is missing from a listing has ended",
        (
            _M._with_job,
            "turn.ask(Find, tag=tag_of(turn.spec, turn.attempt))\n        case Found",
            "_ended_by_itself(turn, state, Gone(EndReason.ABSENT))\n        case Found",
        ),
    ),
    _bug(
        "one-reading",
        "1",
        "one terminal reading ends a session",
        (_M._confirm, "Suspicion(proof, since, lookup_at), False", "Suspicion(proof, asked_at, lookup_at), True"),
    ),
    _bug(
        "readings-at-once",
        "1",
        "two readings of the same moment count as two",
        (_M._confirm, "asked_at - since >= _ms(apart_s)", "True"),
    ),
    _bug(
        "vanished-never-noticed",
        "4",
        "a job whose record disappears is never looked up",
        (_M._unsought, "return suspicion is None or suspicion.lookup_at == NEVER", "return False"),
        (
            _M._act,
            "return _seek(turn, left, doubt) if doubt and turn.now >= doubt.lookup_at else left",
            "return left",
        ),
    ),
    _bug(
        "forgotten-at-restart",
        "5",
        "sessions of an earlier process are not taken up",
        (_R.__aenter__, "self.post(live.id, Resumed())", "pass"),
        (_R.__aenter__, "await self.ports.wakeups.wake(live.id, max(now, live.wake_at))", "pass"),
    ),
    _bug(
        "killed-for-lack-of-data",
        "6",
        "a session that was being submitted when the process died is taken for lost",
        (
            _M._submitting,
            "_locate(turn, state.tries)\n        case _",
            "_begin_stop(turn, Cause.VANISHED, Evidence(''), job_may_exist=False)\n        case _",
        ),
    ),
    _bug(
        "submit-before-record",
        "7",
        "effects are performed before the decision is saved",
        (
            _R._save,
            "live.version = await self.ports.store.save(",
            "self.performing.start(live.id, after.spec, decision.effects)\n"
            "    live.version = await self.ports.store.save(",
        ),
    ),
    _bug(
        "retry-without-lookup",
        "8",
        "a submit without an answer is sent again",
        (
            _M._submit_failed,
            "_locate(turn, state.tries)",
            "turn.go(Waiting(Why.RETRY, turn.now, note, tries, turn.after_failure(tries, failure)))",
        ),
    ),
    _bug(
        "resubmit-after-restart",
        "8",
        "a submit under way when the process died is sent again",
        (
            _M._submitting,
            "_locate(turn, state.tries)\n        case _",
            "turn.ask(Submit, tag=tag_of(turn.spec, turn.attempt), retry=True)\n        case _",
        ),
    ),
    _bug(
        "absent-at-once",
        "8",
        "a job that the first lookup does not show is not there",
        (_M._not_located, "if asked_at >= visible_at:", "if True:"),
    ),
    _bug(
        "failed-stop-is-a-stop",
        "9",
        "what could not be removed is forgotten",
        (
            _M._residue_failed,
            "turn.replace(left, evolve(left, asked=0, tries=tries, due=turn.removal_at(left, tries)))",
            "turn.residue.remove(left)",
        ),
    ),
    _bug(
        "accepted-is-done",
        "9",
        "a cancel that was accepted counts as carried out",
        (_M._job_reading, "turn.replace(left, evolve(left, suspicion=None))", "turn.residue.remove(left)"),
    ),
    _bug(
        "ended-before-confirmed",
        "9",
        "a session ends while its job is still being removed",
        (_M._finish_stop, "left.kind in BLOCKING", "left.kind is Left.TUNNEL"),
    ),
    _bug(
        "cancel-once",
        "10",
        "a cancel that had no effect is not repeated",
        (
            _M._act,
            "evolve(left, asked=turn.serial, tries=tries, due=again)",
            "evolve(left, asked=turn.serial, due=NEVER)",
        ),
    ),
    _bug(
        "no-wake-up",
        "10",
        "nobody is woken who waits for an answer that does not come",
        (_R._plan, "self.ports.wakeups.wake(live.id, at)", "self.ports.wakeups.wake(live.id, NEVER)"),
    ),
    _bug(
        "stop-ignored-while-submitting",
        "12",
        "a stop during the submit is forgotten",
        (
            _M._anywhere,
            "if not isinstance(turn.state, Stopping | Ended):",
            "if not isinstance(turn.state, Stopping | Ended | Submitting):",
        ),
    ),
    _bug(
        "stop-loses-the-unknown-job",
        "12",
        "a stop before the job's id is known does not look for the job",
        (_M._begin_stop, "if isinstance(state, Submitting | Locating) and job_may_exist:", "if False:"),
    ),
    _bug(
        "stop-leaves-the-job",
        "12",
        "a stop removes everything but the job",
        (_M._begin_stop, "_leave_job(turn, turn.attempt, state.job.id)", "pass"),
    ),
    _bug(
        "end-unnoticed-while-starting",
        "13",
        "that a job has ended is not seen before it is ready",
        (_M._suspect, "if confirmed and not path_may_be_good:", "if confirmed and isinstance(state, Degraded):"),
    ),
    _bug(
        "one-clock",
        "14",
        "time in the queue counts as time to boot",
        (_M._queue_deadline, "session.spec.timeouts.queued_s", "session.spec.timeouts.boot_s / 20"),
    ),
    _bug(
        "path-doubt-ignored",
        "16",
        "a tunnel that is open is taken for one that works",
        (_O._judge_paths, "self.post(session, PathDoubted(path.note))", "pass"),
        (_O._judge_paths, "if path.lost:", "if True:"),
    ),
    _bug(
        "ready-without-probe",
        "16",
        "a path that was opened is called ready",
        (
            _M._connecting,
            "turn.set(evolve(state, route=route, asked=turn.serial + 1, due=turn.patient_due()))",
            "turn.go(_ready_now(turn, state, route, published=False)); turn.ask(Publish, route=route); return",
        ),
    ),
    _bug(
        "tunnel-lost-job-lost",
        "16",
        "a lost tunnel ends the session",
        (
            _M._degrade,
            "turn.ask(OpenTunnel, job=state.job.id, endpoint=state.endpoint)",
            "_begin_stop(turn, Cause.CONNECT_TIMED_OUT, Evidence(note))",
        ),
    ),
    _bug(
        "no-deadline",
        "17",
        "a call that hangs is waited for without end",
        (_P._bounded, "async with asyncio.timeout(seconds):", "async with asyncio.timeout(None):"),
    ),
    _bug(
        "auth-error-is-the-end",
        "20",
        "a token that has expired ends a session",
        (
            _M._starting,
            "turn.set(evolve(state, due=turn.in_s(turn.spec.timeouts.status_starting_s)))",
            "_begin_stop(turn, Cause.UNAUTHORISED, Evidence(''))",
        ),
    ),
    _bug(
        "late-job-left-alone",
        "21",
        "the job of a late answer is not removed",
        (_M._anywhere, "_leave_stray(turn, attempt, job)", "pass"),
    ),
    _bug(
        "late-answer-revives",
        "21",
        "an answer that comes after the stop brings the session back",
        (_M._anywhere, "_leave_stray(turn, attempt, job)", "turn.go(Queued(Job(job), turn.now))"),
    ),
    _bug(
        "poll-storm",
        "22",
        "each job is asked about by itself, without rest",
        (_O._observe, "ended + max(least_ms, min(most_ms, REST * (ended - began)))", "0"),
        (_M._aging, "return int(", "return 10 + 0 * int("),
    ),
    _bug(
        "tunnel-left-open",
        "24",
        "a stop does not close the path",
        (_M._leave_path, "turn.leave(Left.TUNNEL, turn.attempt)", "pass"),
    ),
    _bug(
        "route-left",
        "24",
        "a stop leaves the route at the Hub",
        (_M._leave_path, "turn.leave(Left.ROUTE, turn.attempt)", "pass"),
    ),
    _bug(
        "secret-left",
        "24",
        "a stop leaves the session's secrets valid",
        (_M._enter_stopping, "turn.leave(Left.SECRET, turn.attempt)", "pass"),
    ),
    _bug(
        "files-left",
        "24",
        "nobody removes the files of a job",
        (_M._residue_gone, "turn.leave(Left.FILES, left.attempt, left.job)", "pass"),
    ),
    _bug(
        "removal-overtakes-making",
        "24",
        "a route is withdrawn while it is being published",
        (_P._in_turn, "if thing is None:", "if True:"),
    ),
    _bug(
        "quota-in-two-steps",
        "25",
        "limits are looked at when a session is admitted and not when it is saved, and one at a time",
        (_R._save, "self.limits if isinstance(event, Admitted) and takes_place(after) else None", "None"),
        (admission.admit, "taken.take(session)", "pass"),
    ),
    _bug(
        "retries-for-all",
        "25",
        "everybody tries again at the same time",
        (_P.gate, "retries=self.budgets[name].retries_left(now)", "retries=None"),
    ),
    _bug(
        "two-starts-two-sessions",
        "smell",
        "a start while another one is coming up makes a second session",
        (_R._up, "return live", "continue"),
    ),
    _bug(
        "caller-takes-the-start-along",
        "smell",
        "a caller that is cancelled takes the session along",
        (_R.start, "await asyncio.shield(live.created)", "await live.created"),
    ),
    _bug(
        "saved-and-not-followed-up",
        "smell",
        "a save that succeeded with an error is forgotten",
        (_R._handle, "done = next(", "done = None and next("),
    ),
    _bug(
        "adapter-bug-kills-the-task",
        "smell",
        "an exception that no adapter may raise ends what waits for it",
        (_P._bounded, "except (KeyboardInterrupt, GeneratorExit):", "except (KeyboardInterrupt, Exception):"),
    ),
    _bug(
        "no-sweep",
        "smell",
        "nobody compares the jobs of a system with the record",
        (_O._account_for, "self.post(session_id, StraySeen(attempt, sighting.job))", "pass"),
    ),
    _bug(
        "unwatched-after-restart",
        "5",
        "after a restart nobody asks about the jobs of earlier sessions",
        (_R._account, "self.observing.changed(after)", "before is None or self.observing.changed(after)"),
    ),
    _bug(
        "wake-up-lost-at-restart",
        "10",
        "what was planned before a restart is not planned again",
        (_R.__aenter__, "await self.ports.wakeups.wake(live.id, max(now, live.wake_at))", "pass"),
    ),
    _bug(
        "second-reading-swallowed",
        "4",
        "a reading that repeats the one before says nothing new, also where a second one is waited for",
        (_O._reading, "said == watched.told and not watched.urgent", "said == watched.told"),
    ),
    _bug(
        "given-up-is-never-made",
        "12",
        "a submit that a stop has overtaken counts as never made, although the system was asked",
        (_P._perform, "called = submission is None or submission.called", "called = submission is None"),
    ),
    _bug(
        "gone-at-the-first-404",
        "9",
        "a job that has to go is forgotten when it is missing once",
        (_M._residue_gone, "if confirmed:", "if True:"),
    ),
    _bug(
        "breaker-blocks-cancel",
        "9",
        "a system that takes no jobs is not asked to end any either",
        (performing._lane, "if kind in (Kind.SUBMIT, Kind.STATUS, Kind.WATCH) else None", ""),
    ),
    _bug(
        "start-joins-a-stop",
        "11",
        "a start during a stop gets the session that is ending",
        (_R._up, "not isinstance(live.session.state, Stopping | Ended)", "not isinstance(live.session.state, Ended)"),
    ),
    _bug(
        "repair-without-pause",
        "18",
        "a path that cannot be made is tried again at once",
        (_M._Turn.repair_at, "return Instant(self.now + wait_ms)", "return Instant(self.now + 1)"),
    ),
    _bug(
        "places-of-calls-leak",
        "18",
        "a call keeps its place at the system when it is over",
        (_P._in_lane, "finally:\n        lane.running -= 1\n        lane.places.release()", "finally:\n        pass"),
    ),
    _bug(
        "two-observers",
        "22",
        "each system is asked by two loops",
        (_R.__aenter__, "*self.observing.loops()", "*self.observing.loops(), *self.observing.loops()"),
    ),
    _bug(
        "secret-not-revoked",
        "24",
        "revoking is said to be done and is not",
        (
            _P._answer,
            "await self._bounded(spec.timeouts.call_s, lambda: self.ports.credentials.revoke(spec.id))",
            "pass",
        ),
    ),
    _bug(
        "places-of-sessions-leak",
        "25",
        "a place given out is counted twice for ever",
        (_R._admission_answered, "self.taken.give_back(admitted)", "pass"),
    ),
    _bug(
        "stale-version-shrugged-off",
        "smell",
        "an event that meets a session which another process has moved on is dropped",
        (_R._handle, "stale = True", "break"),
    ),
    _bug(
        "sweep-takes-others-jobs",
        "smell",
        "the sweep looks at the jobs of every deployment",
        (_O._sweep_account, "deployment_tag(self.deployment)", "'m'"),
    ),
    _bug(
        "requeue-unnoticed",
        "15",
        "a job that starts anew keeps its old path",
        (_M._requeued, "turn.run += 1", "return"),
        (_M._has_moved, "return current and", "return False and"),
    ),
    _bug(
        "repair-without-opening",
        "smell",
        "a broken path is probed and never made again",
        (
            _M._repair,
            "turn.ask(OpenTunnel, job=state.job.id, endpoint=state.endpoint)",
            "turn.ask(Probe)",
        ),
        (
            _M._degrade,
            "turn.ask(OpenTunnel, job=state.job.id, endpoint=state.endpoint)",
            "turn.ask(Probe)",
        ),
    ),
    _bug(
        "lost-listener-unnoticed",
        "16",
        "that the relay has no path any more is not noticed",
        (_O._judge_paths, 'self.post(session, PathDoubted("the relay has no path for this session"))', "pass"),
    ),
    _bug(
        "publish-once",
        "16",
        "an address that the Hub did not take is not offered again",
        (_M._ready, "if not state.published:", "if False:"),
    ),
)

UNSEEN: tuple[Planted, ...] = (
    _bug(
        "attempt-not-counted",
        "smell",
        "a second try has the tag of the first",
        (_M._waiting, "turn.attempt += 1", "turn.attempt = 1"),
    ),
    _bug(
        "old-attempt-accepted",
        "21",
        "an answer of an earlier attempt counts for this one",
        (_M._submitting, "if attempt == turn.attempt", "if True"),
    ),
    _bug(
        "follow-loses-a-step",
        "smell",
        "steps that were decided while nobody looked are not told",
        (
            _R.follow,
            "missing = self._past(stored[0].spec, after) if new.position > after + 1 else _only(new)",
            "missing = _only(new)",
        ),
    ),
)
"""Planted and not found within the seeds that were tried: what the worlds are still blind to, or rarely see."""


# Planting -------------------------------------------------------------------------------------------------------------


@contextmanager
def planted(bug: Planted) -> Iterator[None]:
    """The package with this bug in it."""
    with ExitStack() as stack:
        for function in dict.fromkeys(inspect.unwrap(function) for function, _, _ in bug.edits):
            edits = [(old, new) for edited, old, new in bug.edits if inspect.unwrap(edited) is function]
            stack.enter_context(_edited(function, edits))
        yield


@contextmanager
def _edited(function: Any, edits: Sequence[tuple[str, str]]) -> Iterator[None]:
    """The code of a function is changed in place, so that everybody who has imported it gets the bug."""
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in edits:
        assert old in source, f"{function.__qualname__} has no {old!r} any more: the bug has to be planted anew"
        source = source.replace(old, new)
    space: dict[str, Any] = {}
    exec(compile(source, f"<planted in {function.__qualname__}>", "exec"), function.__globals__, space)
    changed = space[function.__name__]
    assert changed.__code__.co_freevars == function.__code__.co_freevars
    borrowed = [name for name in vars(model) if name[0].isupper() and name not in function.__globals__]
    kept = function.__code__
    function.__globals__.update({name: getattr(model, name) for name in borrowed})
    function.__code__ = changed.__code__
    try:
        yield
    finally:
        function.__code__ = kept
        for name in borrowed:
            del function.__globals__[name]


def find(bug: Planted, seeds: Sequence[int], enough: int = 1) -> list[tuple[int, str]]:
    """The seeds that show the bug, each with the invariant that is broken; stops when there are enough."""
    found: list[tuple[int, str]] = []
    with planted(bug):
        for seed in seeds:
            broken = _lived(seed)
            if broken is not None:
                found.append((seed, broken))
            if len(found) >= enough:
                break
    return found


def _lived(seed: int) -> str | None:
    """What is broken with this seed, in a world where much goes wrong or in one where only its process dies."""
    for world in (live, crowded):
        try:
            broken = world(seed).broken
        except Exception:  # noqa: BLE001 (a mutant may do anything; that it does not go unnoticed is the point)
            return "it raises"
        if broken is not None:
            return broken.invariant
    return None


@frozen
class Row:
    """
    What is told of one bug.

    Args:
        found: The seeds that show it among those of the report, each with the invariant that is broken.
        first: The first one that shows it, if it takes more.
    """

    bug: Planted
    found: list[tuple[int, str]]
    first: list[tuple[int, str]]


def look(number: int, seeds: int) -> Row:
    """One row of the report; bugs go to other processes by their number, because functions cannot."""
    bug = PLANTED[number]
    found = find(bug, range(seeds), enough=seeds)
    return Row(bug, found, found[:1] or find(bug, range(seeds, MOST_SEEDS)))


MOST_SEEDS = 700
"""Within how many seeds each has to be found; nearly all are within five."""


def report(rows: Sequence[Row], seeds: int) -> str:
    """The page of the documentation."""
    modes = sorted({int(bug.mode) for bug in PLANTED if bug.mode.isdecimal()})
    lines = [
        "# Planted bugs",
        "",
        "Bugs that happened to others, planted in the source and looked for with small simulated worlds. Each seed is",
        "two worlds: one where much goes wrong, and one with more people than nodes where one process dies and next to",
        "nothing else goes wrong. This page is written by",
        "",
        "```sh",
        f"python tests/property/world/planted.py --seeds {seeds} > docs/planted-bugs.md",
        "```",
        "",
        f"`make test` plants each of the {len(PLANTED)} and fails unless it is found within {MOST_SEEDS} seeds.",
        "*Mode* is a number of the list below, or *smell*: what the code of the field makes one expect.",
        "",
        f"| bug | mode | what it does | of {seeds} seeds | first seed | what is broken |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        by = Counter(invariant for _, invariant in (row.found or row.first))
        broken = ", ".join(f"{name} ({count})" for name, count in by.most_common(3))
        first = str(row.first[0][0]) if row.first else "none"
        lines.append(f"| {row.bug.name} | {row.bug.mode} | {row.bug.says} | {len(row.found)} | {first} | {broken} |")
    lines += ["", "## The failure modes", "", "| mode | what users report | planted |", "| --- | --- | --- |"]
    for mode, says in MODES.items():
        names = ", ".join(bug.name for bug in PLANTED if bug.mode == str(mode)) or ELSEWHERE.get(mode, "")
        lines.append(f"| {mode} | {says} | {names} |")
    unseen = "; ".join(f"{bug.name} ({bug.says})" for bug in UNSEEN)
    covered = f"{len(modes)} of {len(MODES)} modes are planted in the runner and the machine."
    return "\n".join([*lines, "", covered, "", f"Planted, and not found in 120 seeds and more: {unseen}.", ""])


MODES = {
    1: "living sessions are declared dead when the scheduler is busy or down",
    2: "one bad status call fails every session of a system",
    3: "a batched status call fails because one id has left the queue",
    4: "a finished job is never noticed, or a missing one is taken for a success",
    5: "after a restart of the Hub servers are shown as stopped, and their jobs are orphans",
    6: "after a restart sessions are killed because an address or an id was not stored",
    7: "the Hub dies while a job waits, and it runs with no owner",
    8: "a submit times out and the scheduler creates the job anyway",
    9: "a stop failed or was not delivered, and the session is recorded as stopped",
    10: "a stop hangs for ever",
    11: "a start right after a stop gives an error",
    12: "a cancel during the start is ignored, and the job runs alone later",
    13: "a job dies between its start and the first answer, and its user waits for the whole time-out",
    14: "a long queue: the time-out strikes, and the job starts later",
    15: "a requeued job: the tunnel leads to the old node",
    16: "a tunnel looks open and nothing passes",
    17: "the next call hangs for ever",
    18: "channels and logins are refused after some sessions",
    19: "the port is in use already, or somebody else's server answers",
    20: "a token expires in the queue, at a status call, at the stop",
    21: "a late message of an old attempt changes the new one",
    22: "a storm of status calls",
    23: "a frozen cache: old sessions look alive",
    24: "processes, routes, sockets and secrets are left over",
    25: "everybody starts at once",
}
ELSEWHERE = {
    2: "silence-is-death is the same mistake for all jobs at once",
    19: "the launcher and the relay, with real sockets: `tests/contract/relay`",
    23: "stale answers are faults of the worlds themselves: F-U26 of systems, F-V2 of the relay",
}
"""Why a mode has no plant of its own."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    told = parser.parse_args()
    with ProcessPoolExecutor(told.jobs) as pool:
        rows = list(pool.map(look, range(len(PLANTED)), itertools.repeat(told.seeds)))
    sys.stdout.write(report(rows, told.seeds))


if __name__ == "__main__":
    main()
