"""What runs jobs: a first-in-first-out batch system and login nodes, over any way of running a script."""

import asyncio
import itertools
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from attrs import define, field, frozen

from .clock import Clock
from .config import Partition, Timing


@frozen
class Work:
    """
    One script to run. `script` is None for an allocation, which only holds its nodes.

    `directory` is absolute; `stdout` and `stderr` are names in it. `runtime_s` is the wall time limit.
    """

    job_id: str
    user: str
    directory: Path
    script: Path | None
    name: str = "UNICORE_job"
    partition: str = "batch"
    nodes: int = 1
    cpus: int = 1
    runtime_s: float = 3600
    account: str = ""
    stdout: str = "stdout"
    stderr: str = "stderr"
    environment: tuple[tuple[str, str], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()  # what the job itself set; virtual execution reads it


class Runner(Protocol):
    """
    A way to run one script.

    `run` returns when the script ended by itself and, if `clean`, nothing of it is left. Cancelling it
    kills the script and everything it started; nothing of it is left when the cancellation is through.
    `go_on` is the same for a script that an earlier process has started, which may have ended meanwhile.
    """

    async def run(self, work: Work, started: Callable[[int], None], clean: bool) -> None: ...

    async def go_on(self, work: Work, clean: bool) -> None: ...


@define(eq=False)
class Entry:
    """A job in the batch system, as Slurm sees it."""

    id: str
    work: Work
    submitted_at: float
    state: str = "PENDING"
    reason: str = "Priority"
    nodes: list[str] = field(factory=list)
    started_at: float | None = None
    ended_at: float | None = None
    task: "asyncio.Task[None] | None" = None


class BatchSystem:
    """
    First in, first out per partition, with as many nodes as the partition has.

    States are Slurm's raw ones. A job that ended leaves the listing at once, as in `squeue`; `details`
    still knows it for a while, as `scontrol` does.
    """

    remembered = 2_000  # ended jobs that details still knows

    def __init__(self, partitions: Sequence[Partition], runner: Runner, clock: Clock, timing: Timing) -> None:
        self._runner = runner
        self._clock = clock
        self._timing = timing
        self._ids = itertools.count(8_017_847)
        self._waiting: dict[str, deque[Entry]] = {p.name: deque() for p in partitions}
        self._free: dict[str, list[str]] = {
            p.name: [f"{p.name[:1]}{number:04d}" for number in range(p.nodes, 0, -1)] for p in partitions
        }
        self._sizes = {name: len(nodes) for name, nodes in self._free.items()}
        self._live: dict[str, Entry] = {}
        self._ended: OrderedDict[str, Entry] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self.refuse_with: str | None = None  # text sbatch fails with, while set
        self.begins: Callable[[Work], None] = lambda _work: None  # told before a script is started

    async def submit(self, work: Work) -> str:
        """Put work into the queue; raises `RuntimeError` with sbatch's text when it is refused."""
        async with self._one_at_a_time:
            await self._clock.sleep(self._timing.submit_s)
            if self.refuse_with is not None:
                raise RuntimeError(self.refuse_with)
            if work.nodes > self._sizes[work.partition]:
                raise RuntimeError(
                    "sbatch: error: Batch job submission failed: Requested node configuration is not available"
                )
            entry = Entry(str(next(self._ids)), work, self._clock.now())
            self._live[entry.id] = entry
            entry.task = asyncio.create_task(self._wait_least(entry), name=f"batch job {entry.id}")
            return entry.id

    def listing(self) -> Mapping[str, tuple[str, str]]:
        """All live jobs: id to raw state and partition."""
        return {entry.id: (entry.state, entry.work.partition) for entry in self._live.values()}

    def details(self, batch_id: str) -> Mapping[str, str] | None:
        entry = self._live.get(batch_id) or self._ended.get(batch_id)
        return None if entry is None else _scontrol(entry, self._clock.now())

    def node_of(self, batch_id: str) -> str | None:
        entry = self._live.get(batch_id)
        return entry.nodes[0] if entry and entry.nodes else None

    async def cancel(self, batch_id: str, state: str = "CANCELLED") -> None:
        """`scancel`; with another state also what an operator or a broken node does to a job."""
        entry = self._live.get(batch_id)
        if entry is None:
            return
        if entry.task is not None:
            # A second cancellation would end the waiting for the processes, not the processes.
            if entry.state != "COMPLETING":
                entry.task.cancel()
            await asyncio.wait([entry.task])
        self._end(entry, state)

    def entry(self, batch_id: str) -> Entry | None:
        """A live job."""
        return self._live.get(batch_id)

    def go_on(self, entry: Entry) -> None:
        """Have a job again that an earlier process had; its script may run or have ended."""
        self._live[entry.id] = entry
        self._ids = itertools.count(max(next(self._ids), int(entry.id) + 1))
        if entry.started_at is None:
            entry.task = asyncio.create_task(self._wait_least(entry), name=f"batch job {entry.id}")
            return
        free = self._free[entry.work.partition]
        for node in entry.nodes:
            if node in free:
                free.remove(node)
        entry.task = asyncio.create_task(self._run(entry, again=True), name=f"batch job {entry.id}")

    async def close(self) -> None:
        await asyncio.gather(*(self.cancel(batch_id) for batch_id in list(self._live)))

    async def _wait_least(self, entry: Entry) -> None:
        await self._clock.sleep(self._timing.queue_s)
        entry.reason = "Resources"
        entry.task = None  # from here on the queue holds it, not this task
        self._waiting[entry.work.partition].append(entry)
        self._start_next(entry.work.partition)

    def _start_next(self, partition: str) -> None:
        waiting, free = self._waiting[partition], self._free[partition]
        while waiting and waiting[0].work.nodes <= len(free):
            entry = waiting.popleft()
            entry.nodes = [free.pop() for _ in range(entry.work.nodes)]
            entry.reason = "None"
            entry.task = asyncio.create_task(self._run(entry), name=f"batch job {entry.id}")

    async def _run(self, entry: Entry, again: bool = False) -> None:
        if entry.started_at is None:
            entry.started_at = self._clock.now()
            entry.state = "CONFIGURING" if self._timing.configuring_s else "RUNNING"
            self.begins(entry.work)
            await self._clock.sleep(self._timing.configuring_s)
        entry.state = "RUNNING"
        limit_s = entry.work.runtime_s - (self._clock.now() - entry.started_at if again else 0)
        limit = asyncio.create_task(self._clock.sleep(max(0.0, limit_s)))
        script = asyncio.create_task(self._script(entry.work, again))
        try:
            await asyncio.wait((limit, script), return_when=asyncio.FIRST_COMPLETED)
            in_time = script.done()
            if in_time:
                script.result()
        finally:
            entry.state = "COMPLETING"
            for task in (limit, script):
                task.cancel()
            await asyncio.wait((limit, script))
        self._end(entry, "COMPLETED" if in_time else "TIMEOUT")

    async def _script(self, work: Work, again: bool) -> None:
        if work.script is None:
            await asyncio.Event().wait()
        if again:
            await self._runner.go_on(work, clean=True)
        else:
            await self._runner.run(work, lambda pid: None, clean=True)

    def _end(self, entry: Entry, state: str) -> None:
        if self._live.pop(entry.id, None) is None:
            return
        partition = entry.work.partition
        entry.state, entry.ended_at = state, self._clock.now()
        if entry in self._waiting[partition]:
            self._waiting[partition].remove(entry)
        self._free[partition].extend(entry.nodes)
        self._ended[entry.id] = entry
        while len(self._ended) > self.remembered:
            self._ended.popitem(last=False)
        self._start_next(partition)


class LoginNodes:
    """Scripts that run on a login node, outside the batch system. Ids are `INTERACTIVE_<node>_<pid>`."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._runs: dict[str, tuple[asyncio.Task[None], Work]] = {}

    async def submit(self, work: Work, node: str) -> str:
        """Start at once; true after a normal return: the process has a pid."""
        begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def started(pid: int) -> None:
            if not begun.done():
                begun.set_result(pid)

        task = asyncio.create_task(self._runner.run(work, started, clean=False), name=f"login {work.job_id}")
        await asyncio.wait((task, begun), return_when=asyncio.FIRST_COMPLETED)
        if not begun.done():
            begun.cancel()
            await task
            raise RuntimeError("script could not be started")
        run_id = f"INTERACTIVE_{node}_{begun.result()}"
        self._keep(run_id, work, task)
        return run_id

    def go_on(self, run_id: str, work: Work) -> None:
        """Have a run again that an earlier process has started."""
        self._keep(
            run_id, work, asyncio.create_task(self._runner.go_on(work, clean=False), name=f"login {work.job_id}")
        )

    def work(self, run_id: str) -> Work | None:
        run = self._runs.get(run_id)
        return None if run is None else run[1]

    def _keep(self, run_id: str, work: Work, task: "asyncio.Task[None]") -> None:
        self._runs[run_id] = task, work
        task.add_done_callback(lambda _: self._runs.pop(run_id, None))

    def running(self) -> list[str]:
        return list(self._runs)

    async def cancel(self, run_id: str) -> None:
        run = self._runs.get(run_id)
        if run is not None:
            task, _ = run
            if not task.cancelling():
                task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        await asyncio.gather(*(self.cancel(run_id) for run_id in self.running()))


def _scontrol(entry: Entry, now: float) -> dict[str, str]:
    """Every word of `scontrol show jobid` that matters here, all values strings. Times are UTC."""
    work = entry.work
    end = entry.ended_at if entry.ended_at is not None else now
    ran = int(end - entry.started_at) if entry.started_at else 0
    limit_end = entry.started_at + work.runtime_s if entry.started_at else None
    return {
        "JobId": entry.id,
        "JobName": work.name,
        "UserId": f"{work.user}(1000)",
        "GroupId": "users(100)",
        "Account": work.account or "none",
        "QOS": "normal",
        "JobState": entry.state,
        "Reason": entry.reason,
        "ExitCode": "0:0",
        "RunTime": _span(ran),
        "TimeLimit": _span(int(work.runtime_s)),
        "SubmitTime": _moment(entry.submitted_at),
        "StartTime": _moment(entry.started_at),
        "EndTime": _moment(entry.ended_at or limit_end),
        "Partition": work.partition,
        "NodeList": ",".join(entry.nodes) or "(null)",
        **({"BatchHost": entry.nodes[0]} if entry.nodes else {}),
        "NumNodes": str(work.nodes),
        "NumCPUs": str(work.nodes * work.cpus),
        "TRES": f"cpu={work.nodes * work.cpus},node={work.nodes}",
        "WorkDir": str(work.directory),
        "StdOut": str(work.directory / work.stdout),
        "StdErr": str(work.directory / work.stderr),
    }


def _span(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{clock}" if days else clock


def _moment(at: float | None) -> str:
    return "Unknown" if at is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
