"""
The batch system behind the login node: `simulator.batch` in this machine's time, with jobs as real processes.

A thread moves time on and carries out what the batch system decides: it starts scripts, sends signals, and tells when
a script has ended. All calls are safe from any thread.

With `keep`, state is written down before it is carried out (`kept`). So a server that is killed in between has either
not told anybody of a change, or the next one finds it written and makes up for what is missing.
"""

import contextlib
import functools
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from attrs import define, evolve, field, frozen

from moorage.simulator.batch import (
    BatchSystem,
    Change,
    Job,
    JobRequest,
    Moved,
    Node,
    Partition,
    Preempt,
    Settings,
    State,
)

from .config import NodeConfig
from .faults import Faults, Rule
from .kept import Kept
from .kept import State as KeptState

log = logging.getLogger(__name__)

MARKER = "MOORAGE_SIM_NODE"
"""In the environment of every process of a server: finds what left its process group."""

_Result = TypeVar("_Result")


class Clock(Protocol):
    """Milliseconds since 1970."""

    def now(self) -> int: ...

    def real_s(self, ms: int) -> float | None:
        """How long to wait, in seconds of this machine, for so many milliseconds to pass; `None`: until told."""
        ...


@define(eq=False)
class RunningClock:
    """The machine's time, or faster."""

    speed: float = 1.0
    _began: float = field(init=False, factory=time.monotonic)
    _epoch: float = field(init=False, factory=time.time)

    def now(self) -> int:
        return int((self._epoch + (time.monotonic() - self._began) * self.speed) * 1000)

    def real_s(self, ms: int) -> float | None:
        return max(0.0, ms / 1000 / self.speed)


@define(eq=False)
class ManualClock:
    """Time that stands still until it is moved (`Cluster.advance`)."""

    at: int = 1_780_000_000_000

    def now(self) -> int:
        return self.at

    def real_s(self, ms: int) -> float | None:
        return None


@frozen
class Work:
    """What a job runs. `script` is the batch system's own copy, as with Slurm."""

    script: Path
    interpreter: tuple[str, ...]
    arguments: tuple[str, ...]
    directory: Path
    stdout: str
    stderr: str
    append: bool
    environment: Mapping[str, str]


@define(eq=False)
class Cluster:
    """
    Args:
        environment: Of every process; the job's own variables are added.
        spool: A private directory for scripts, and for what is kept.

    Raises:
        CannotGoOn: What was kept in the spool is of no use.
    """

    config: NodeConfig
    spool: Path
    clock: Clock
    marker: str = field(factory=lambda: secrets.token_hex(8))
    works: dict[int, Work] = field(factory=dict)
    faults: Faults = field(factory=Faults)
    _batch: BatchSystem = field(init=False)
    _lock: threading.RLock = field(init=False, factory=threading.RLock)
    _moved: threading.Condition = field(init=False)
    _kept: Kept | None = field(init=False, default=None)
    _runs: dict[tuple[int, int], "subprocess.Popen[bytes] | None"] = field(init=False, factory=dict)
    """Those with processes; which of them is our child."""
    _stopping: bool = field(init=False, default=False)
    _threads: list[threading.Thread] = field(init=False, factory=list)
    _last: int = field(init=False, default=0)
    _meddled_with: set[tuple[int, str]] = field(init=False, factory=set)

    def __attrs_post_init__(self) -> None:
        self._moved = threading.Condition(self._lock)
        self._batch = _batch(self.config)
        if self.config.keep:
            self._go_on(Kept(self.spool.absolute() / "kept"))
        thread = threading.Thread(target=self._tick, name="sim-ssh cluster", daemon=True)
        self._threads.append(thread)
        thread.start()

    def call(self, work: Callable[[BatchSystem, int], _Result]) -> _Result:
        """Do something with the batch system at the present time; whatever follows from it is carried out."""
        with self._moved:
            try:
                return work(self._batch, self._now())
            finally:
                self._carry_out(self._batch.advance(self._now()))
                self._moved.notify_all()

    def submit(self, request: JobRequest, work: Work) -> int:
        """Queue a job. Raises `simulator.batch.Refused`."""

        def do(batch: BatchSystem, now: int) -> int:
            number = batch.submit(self._meddled(request), now)
            self.works[number] = work
            return number

        return self.call(do)

    def advance(self, seconds: float) -> None:
        """Move a clock that stands still; everything due has happened when this returns."""
        assert isinstance(self.clock, ManualClock)
        with self._moved:
            self.clock.at += int(seconds * 1000)
            self._carry_out(self._batch.advance(self._now()))

    def freeze(self, job: int, frozen_: bool = True) -> None:
        """Stop all processes of a job without ending it: a node that hangs (F-S4)."""
        with self._lock:
            for number, run in self._runs:
                if number == job:
                    self._signal(number, run, signal.SIGSTOP if frozen_ else signal.SIGCONT)

    def close(self) -> None:
        """End every process; nothing of a job is left afterwards."""
        with self._moved:
            self._stopping = True
            self._moved.notify_all()
        kill_marked(self.marker)
        for process in tuple(self._runs.values()):
            if process is not None:
                process.kill()
        for thread in self._threads:
            thread.join(5)
        if self._kept is not None:
            self._kept.remove()

    # What another server has left

    def _go_on(self, kept: Kept) -> None:
        with self._moved:
            if state := kept.load():
                self.marker, self._batch, self.works = state.marker, state.batch, dict(state.works)
            self._kept = kept
            runs = [job for job in self._batch.jobs() if job.alive]
            # What is in no run was to be killed when the server was; what people started themselves is theirs.
            kill_marked(f"{self.marker}-", but=[f"{self.marker}-exec-", *(self._mark(job.id, job.run) for job in runs)])
            now = self._now()
            # A millisecond later, because a run that has ended did so before anybody noticed its limit.
            self._batch.catch_up(now + 1)
            leaders = {job.id: kept.leader(_run(job), marked(self._mark(job.id, job.run))) for job in runs}
            begun = {job.id for job in runs if job.state is not State.RUNNING or kept.has_begun(_run(job))}
            over = [job for job in runs if leaders[job.id] is None and job.id in begun]
            for job in over:
                kill_marked(self._mark(job.id, job.run))
                self._batch.finish(job.id, kept.code(_run(job)), now, run=job.run)
            for job in runs:
                if leaders[job.id] is not None:
                    self._watch(job.id, job.run, functools.partial(kept.wait, _run(job), leaders[job.id]), None)
                elif job.id not in begun:
                    self._start(job.id, job.run)
            self._save()

    def _save(self) -> None:
        if self._kept is None:
            return
        try:
            self._kept.save(KeptState(self.marker, self._batch, self.works))
        except OSError as error:
            # As with slurmctld: a full disk does not stop the cluster.
            log.error("the state of the cluster was not written: %s", error)

    # The thread

    def _now(self) -> int:
        # Time of this machine may go back by a correction, the batch system's does not.
        self._last = max(self._last, self.clock.now())
        return self._last

    def _tick(self) -> None:
        with self._moved:
            while not self._stopping:
                now = self._now()
                self._carry_out(self._batch.advance(now))
                at = self._batch.next_at()
                wait = None if at is None else self.clock.real_s(at - now)
                if self._meddle():
                    wait = 0.05 if wait is None else min(wait, 0.05)
                # No busy loop, whatever is due: at most a thousand rounds a second.
                self._moved.wait(None if wait is None else max(wait, 0.001))

    # Faults

    def _meddled(self, request: JobRequest) -> JobRequest:
        """What faults make of a request."""
        for rule in self.faults.draw("cluster.submit"):
            ms = int(rule.delay_s * 1000)
            match rule.do:
                case "walltime":
                    request = evolve(request, walltime_ms=max(1, ms))
                case "configure":
                    request = evolve(request, prolog_ms=ms)
                case "complete":
                    request = evolve(request, term_ms=None, kill_ms=ms)
                case "hold":
                    request = evolve(request, hold=True)
        return request

    def _meddle(self) -> bool:
        """Do to running jobs what faults say; whether there is such a fault at all."""
        rules = [rule for rule in self.faults.in_force("cluster") if rule.do in _MEDDLING]
        now = self._now()
        for rule in rules:
            for job in self._batch.jobs():
                if self._is_due(rule, job, now):
                    self._meddled_with.add((job.id, rule.do))
                    self._meddle_with(rule, job, now)
                    self.faults.count(rule)
        self._carry_out(self._batch.advance(self._now()))
        return bool(rules)

    def _is_due(self, rule: Rule, job: Job, now: int) -> bool:
        """Each rule is for each job once, and for those that have run long enough."""
        if (job.id, rule.do) in self._meddled_with or (rule.do == "requeue" and not job.request.requeue):
            return False
        is_old = job.state is State.RUNNING and now - (job.start_at or now) >= rule.delay_s * 1000
        return is_old and (rule.times is None or self.faults.left(rule) > 0)

    def _meddle_with(self, rule: Rule, job: Job, now: int) -> None:
        match rule.do:
            case "requeue":
                self._batch.requeue(job.id, now)
            case "node-fail":
                self._batch.fail_node(job.nodes[0], now)
            case "freeze":
                self._signal(job.id, job.run, signal.SIGSTOP)

    def _carry_out(self, changes: tuple[Change, ...]) -> None:
        if self._stopping:
            return
        self._save()
        for change in changes:
            if isinstance(change, Moved):
                if change.after is State.RUNNING:
                    self._start(change.job, change.run)
                elif change.after.is_final:
                    self._end(change.job, change.run)
            elif not _is_withheld(self.faults, change.signal):
                self._signal(change.job, change.run, change.signal)

    def _start(self, number: int, run: int) -> None:
        work, job = self.works.get(number), self._batch.job(number)
        if self.config.execute == "virtual" or work is None or job is None:
            return
        try:
            process = self._spawn(work, job)
        except OSError as error:
            # As with Slurm: a directory that is gone fails the job, not the cluster.
            self._note(work, f"slurmstepd: error: {error}\n")
            self._batch.finish(number, 1, self._now(), run=run)
            return
        self._watch(number, run, process.wait, process)

    def _watch(self, number: int, run: int, wait: Callable[[], int], process: "subprocess.Popen[bytes] | None") -> None:
        """Be there when the run ends. `wait` returns then."""
        self._runs[number, run] = process
        thread = threading.Thread(
            target=self._reap, args=(number, run, wait), name=f"sim-ssh job {number}", daemon=True
        )
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)
        thread.start()

    def _spawn(self, work: Work, job: Job) -> "subprocess.Popen[bytes]":
        mode = "ab" if work.append or job.run else "wb"
        command = [*work.interpreter, str(work.script), *work.arguments]
        if self._kept is not None:
            command = self._kept.wrapped(_run(job), command)
        with contextlib.ExitStack() as stack:
            out = stack.enter_context(open(_log(work, work.stdout, job), mode))
            same = not work.stderr or work.stderr == work.stdout
            err = out if same else stack.enter_context(open(_log(work, work.stderr, job), mode))
            return subprocess.Popen(  # noqa: S603 (running what is submitted is what a batch system is for)
                command,
                cwd=work.directory,
                env={
                    **work.environment,
                    **job_environment(self.config, job, work),
                    MARKER: self._mark(job.id, job.run),
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def _reap(self, number: int, run: int, wait: Callable[[], int]) -> None:
        code = wait()
        # Slurm ends everything that a batch script leaves behind.
        kill_marked(self._mark(number, run))
        with self._moved:
            self._runs.pop((number, run), None)
            if not self._stopping:
                if self._kept is not None:
                    code = self._kept.code(f"{number}-{run}")
                self._batch.finish(number, 128 - code if code < 0 else code, self._now(), run=run)
                self._moved.notify_all()

    def _end(self, number: int, run: int) -> None:
        if (number, run) in self._runs:
            self._signal(number, run, signal.SIGKILL)

    def _signal(self, number: int, run: int, what: int) -> None:
        """To all processes of a run, also those with a session of their own, such as kernels."""
        if (number, run) not in self._runs:
            return
        found, process = list(marked(self._mark(number, run))), self._runs[number, run]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, what)
        if process is not None and process.pid not in found:
            process.send_signal(what)  # it hides its environment

    def _mark(self, number: int, run: int) -> str:
        return f"{self.marker}-{number}-{run}-"

    def _note(self, work: Work, text: str) -> None:
        with contextlib.suppress(OSError), open(work.directory / "slurm.out", "a", encoding="utf-8") as file:
            file.write(text)


def _run(job: Job) -> str:
    """What is kept of a job's run has this name."""
    return f"{job.id}-{job.run}"


_MEDDLING = ("requeue", "node-fail", "freeze")


def _is_withheld(faults: Faults, number: int) -> bool:
    """Whether a fault keeps a signal from arriving: SIGTERM, or any from a job that takes for ever to complete."""
    verdicts = {rule.do for rule in faults.in_force("cluster")}
    return "complete" in verdicts or ("deaf" in verdicts and number == signal.SIGTERM)


def _batch(config: NodeConfig) -> BatchSystem:
    timing = config.timing
    names = [f"{config.nodes.prefix}{number}" for number in range(1, config.nodes.count + 1)]
    nodes = [Node(name, config.nodes.cores, config.nodes.memory_mib) for name in names]
    partitions = [
        Partition(
            each.name,
            tuple(names[: each.nodes or None]),
            default_walltime_ms=each.default_minutes * 60_000,
            max_walltime_ms=each.max_minutes * 60_000,
            priority=each.priority,
            preempt=Preempt[each.preempt],
            grace_ms=int(each.grace_s * 1000),
        )
        for each in config.partitions
    ]
    settings = Settings(
        schedule_delay_ms=int(timing.schedule_s * 1000),
        prolog_ms=int(timing.configuring_s * 1000),
        epilog_ms=int(timing.epilog_s * 1000),
        kill_wait_ms=int(timing.kill_wait_s * 1000),
        min_job_age_ms=int(timing.job_age_s * 1000),
        requeue_delay_ms=int(timing.requeue_s * 1000),
        accounting=config.accounting,
    )
    return BatchSystem(nodes, partitions, settings)


def job_environment(config: NodeConfig, job: Job, work: Work) -> dict[str, str]:
    """Source: sbatch(1), "OUTPUT ENVIRONMENT VARIABLES"."""
    return {
        "SLURM_CLUSTER_NAME": config.cluster,
        "SLURM_JOB_ID": str(job.id),
        "SLURM_JOBID": str(job.id),
        "SLURM_JOB_NAME": job.request.name,
        "SLURM_JOB_PARTITION": job.request.partition,
        "SLURM_JOB_NODELIST": ",".join(job.nodes),
        "SLURM_JOB_NUM_NODES": str(len(job.nodes)),
        "SLURM_JOB_CPUS_PER_NODE": str(job.request.cores_per_node),
        "SLURM_JOB_USER": job.request.owner,
        "SLURM_JOB_ACCOUNT": job.request.account,
        "SLURM_JOB_START_TIME": str((job.start_at or 0) // 1000),
        "SLURM_JOB_END_TIME": str((job.limit_at or 0) // 1000),
        "SLURM_RESTART_COUNT": str(job.run),
        "SLURM_SUBMIT_DIR": str(work.directory),
        "SLURM_NODEID": "0",
        "SLURM_PROCID": "0",
        "SLURMD_NODENAME": job.nodes[0] if job.nodes else "",
    }


def _log(work: Work, pattern: str, job: Job) -> Path:
    """File name patterns of sbatch(1): %j, %x, %u, %N."""
    values = {"%j": str(job.id), "%A": str(job.id), "%x": job.request.name, "%u": job.request.owner, "%N": job.nodes[0]}
    for key, value in values.items():
        pattern = pattern.replace(key, value.replace("/", "_"))
    return work.directory / pattern


def kill_marked(mark: str, seconds: float = 3.0, but: Sequence[str] = ()) -> None:
    """Kill every process whose marker begins like that, and like none in `but`, until there is none."""
    until = time.monotonic() + seconds
    while (found := list(marked(mark, but))) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def marked(mark: str, but: Sequence[str] = ()) -> Iterator[int]:
    """
    Live processes whose marker begins like that, and like none in `but`.

    What wiped its environment escapes. What hides it, as the launcher does (PR_SET_DUMPABLE; nothing hides from root),
    is found if its parent is.
    """
    wanted, others = f"\0{MARKER}={mark}".encode(), [f"\0{MARKER}={other}".encode() for other in but]
    found, hidden = set[int](), dict[int, int]()
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()):
        with contextlib.suppress(OSError):
            try:
                environment = b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
            except PermissionError:
                hidden[pid] = _stat(pid)[1]
                continue
            is_wanted = wanted in environment and not any(other in environment for other in others)
            if is_wanted and _stat(pid)[0] not in ("Z", "X"):
                found.add(pid)
    while more := {pid for pid, parent in hidden.items() if parent in found} - found:
        found |= more
    yield from sorted(found)


def _stat(pid: int) -> tuple[str, int]:
    """State and parent of a process. Source: proc(5), after a name that may have any character in it."""
    state, parent = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:2]
    return state.decode(), int(parent)
