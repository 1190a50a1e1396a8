"""
A believable batch system: nodes, partitions, a queue, backfill, limits, failures; in time that is an argument.

`BatchSystem` never waits and starts nothing. Its owner tells it what happens outside (`submit`, `cancel`, `finish`,
`fail_node`, ...) and asks with `advance(now)` for what has changed, so it serves a simulation in virtual time
(`next_at` says how far to jump) as well as servers that start and kill real processes.

All times are integer milliseconds of one clock that never goes back; a smaller `now` than the last one is a
`ValueError`. Every call first does all that was due up to its `now`, so views (`jobs`, `free`, ...), which take no
time, show the state of the last call.

The rules are those of Slurm, simplified. Sources: the manual pages slurm.conf, sbatch, squeue and scontrol, and
"Preemption" and "Advanced Resource Reservation Guide" on slurm.schedmd.com. EASY backfill: D. Lifka, "The ANL/IBM SP
Scheduling System", JSSPP 1995.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, IntEnum, auto
from itertools import islice
from typing import Any

from attrs import Attribute, define, evolve, field, frozen

_SIGTERM, _SIGKILL = 15, 9


def _at_least(least: int) -> Callable[[object, "Attribute[Any]", int | None], None]:
    def check(_: object, attribute: "Attribute[Any]", value: int | None) -> None:
        if value is not None and value < least:
            raise ValueError(f"{attribute.name} is {value}, less than {least}")

    return check


_natural, _count = _at_least(0), _at_least(1)


class State(Enum):
    """State of a job; the values are Slurm's words. `COMPLETING` is neither running nor over."""

    PENDING = "PENDING"
    CONFIGURING = "CONFIGURING"
    RUNNING = "RUNNING"
    COMPLETING = "COMPLETING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    NODE_FAIL = "NODE_FAIL"
    PREEMPTED = "PREEMPTED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    REQUEUED = "REQUEUED"
    """End of a run that somebody put back into the queue; only in changes and in the accounting."""

    @property
    def is_final(self) -> bool:
        """Whether a run in this state is over and holds no node."""
        return self not in (State.PENDING, State.CONFIGURING, State.RUNNING, State.COMPLETING)


class Reason(Enum):
    """Why a job is pending; the values are Slurm's words."""

    NONE = "None"
    RESOURCES = "Resources"
    PRIORITY = "Priority"
    NODES_UNAVAILABLE = "ReqNodeNotAvail"
    PARTITION_DOWN = "PartitionDown"
    PARTITION_INACTIVE = "PartitionInactive"
    HELD = "JobHeldUser"
    USER_LIMIT = "QOSMaxJobsPerUserLimit"
    RESERVATION = "Reservation"
    BEGIN_TIME = "BeginTime"


class PartitionState(Enum):
    """`DOWN` takes jobs and starts none, `DRAIN` starts jobs and takes none, `INACTIVE` does neither."""

    UP = "UP"
    DOWN = "DOWN"
    DRAIN = "DRAIN"
    INACTIVE = "INACTIVE"


class Preempt(Enum):
    """What happens to a partition's jobs when a partition of higher priority wants their nodes."""

    OFF = "OFF"
    REQUEUE = "REQUEUE"
    CANCEL = "CANCEL"


class Refusal(Enum):
    """Why a job is not taken; how a command words it is the business of the server that shows it."""

    PARTITION_UNKNOWN = auto()
    PARTITION_CLOSED = auto()
    ACCOUNT = auto()
    WALLTIME = auto()
    NODES = auto()
    RESERVATION = auto()


class Refused(Exception):
    """The job was not taken and nothing has changed."""

    def __init__(self, why: Refusal, message: str) -> None:
        super().__init__(message)
        self.why = why


class AccountingOff(Exception):
    """This system keeps no accounting (`Settings.accounting`), like `accounting_storage/none`."""


@frozen
class Node:
    """A compute node. Memory 0 means that memory is not looked at."""

    name: str
    cores: int = field(default=1, validator=_count)
    memory_mb: int = field(default=0, validator=_natural)
    features: tuple[str, ...] = ()


@frozen
class Partition:
    """
    A queue over some nodes; partitions may share nodes.

    A job that names no walltime gets `default_walltime_ms`, or the maximum if that is less; None is no maximum.
    `max_jobs_per_user` counts jobs that hold nodes. Jobs of a partition with higher `priority` are always
    looked at first, and take nodes away from this partition's jobs as `preempt` says, after `grace_ms`.
    `accounts` empty lets every account in.
    """

    name: str
    nodes: tuple[str, ...]
    default_walltime_ms: int = field(default=3_600_000, validator=_count)
    max_walltime_ms: int | None = field(default=86_400_000, validator=_count)
    max_jobs_per_user: int | None = field(default=None, validator=_natural)
    priority: int = 1
    preempt: Preempt = Preempt.OFF
    grace_ms: int = field(default=30_000, validator=_natural)
    accounts: tuple[str, ...] = ()
    state: PartitionState = PartitionState.UP


@frozen
class Settings:
    """Durations and limits of the whole system; defaults are those of slurm.conf unless a line says otherwise."""

    schedule_delay_ms: int = field(default=3_000, validator=_natural)
    """From a change to the scheduling pass; many changes share a pass (`batch_sched_delay`)."""
    prolog_ms: int = field(default=0, validator=_natural)
    epilog_ms: int = field(default=0, validator=_natural)
    kill_wait_ms: int = field(default=30_000, validator=_natural)
    """From SIGTERM to SIGKILL (`KillWait`)."""
    min_job_age_ms: int = field(default=300_000, validator=_natural)
    """An ended job is listed for so long (`MinJobAge`)."""
    requeue_delay_ms: int = field(default=120_000, validator=_natural)
    """A requeued job is not looked at for so long. Source: observed on sites; not configurable in Slurm."""
    accounting: bool = True
    backfill_depth: int = field(default=500, validator=_count)
    """A pass ends its search after so many in vain (`bf_max_job_test`); equal shapes share a search."""
    estimate_depth: int = field(default=100, validator=_natural)
    """Expected starts are worked out for so many jobs from the front of the queue; our choice, for speed."""
    first_id: int = field(default=1, validator=_count)


@frozen
class JobRequest:
    """
    What is submitted, and, for jobs without a real process, how they will behave.

    `memory_mb` is per node. `walltime_ms` None takes the partition's default. `begin_at` is the earliest start.

    Behaviour, which the scheduler does not know: with `runtime_ms` the job ends by itself with `exit_code`;
    without, its owner calls `finish`. `term_ms` after a SIGTERM it is gone; None ignores SIGTERM (or leaves it to
    the owner, who calls `finish`). `kill_ms` after a SIGKILL it is gone; large values give a job that completes
    for ever. `prolog_ms` replaces the system's for this job: large values give a job that configures for ever.
    """

    name: str
    owner: str
    partition: str
    nodes: int = field(default=1, validator=_count)
    cores_per_node: int = field(default=1, validator=_count)
    memory_mb: int = field(default=0, validator=_natural)
    exclusive: bool = False
    features: tuple[str, ...] = ()
    walltime_ms: int | None = field(default=None, validator=_count)
    account: str = ""
    comment: str = ""
    requeue: bool = True
    reservation: str | None = None
    begin_at: int | None = None
    hold: bool = False
    runtime_ms: int | None = field(default=None, validator=_natural)
    exit_code: int = 0
    out_of_memory: bool = False
    term_ms: int | None = field(default=0, validator=_natural)
    kill_ms: int = field(default=0, validator=_natural)
    prolog_ms: int | None = field(default=None, validator=_natural)


@frozen
class Job:
    """
    One run of a job, as it is or as it was; a requeue begins the next run under the same id.

    `start_at` is when nodes were assigned, later when the run began. `limit_at` is the end of the walltime, known
    once it runs. `alive` says that processes may exist; `outcome` is the final state that a run being stopped is
    going to have, `requeues` that another run follows. `nodes` stay known after the end.
    """

    id: int
    request: JobRequest
    walltime_ms: int
    submit_at: int
    eligible_at: int
    run: int = 0
    """How often the job was requeued before (Slurm: `Restarts`)."""
    state: State = State.PENDING
    reason: Reason = Reason.NONE
    start_at: int | None = None
    limit_at: int | None = None
    grace_until: int | None = None
    end_at: int | None = None
    nodes: tuple[str, ...] = ()
    alive: bool = False
    outcome: State | None = None
    requeues: bool = False
    held: bool = False
    exit_code: int = 0
    exit_signal: int = 0
    cancelled_by: str = ""


@frozen
class Moved:
    """A run changed its state. `before` is None for a new run; after `RUNNING` its processes should be started."""

    at: int
    job: int
    run: int
    before: State | None
    after: State
    nodes: tuple[str, ...]


@frozen
class Signalled:
    """The processes of a run are to receive a signal: 15 asks, 9 does not ask."""

    at: int
    job: int
    run: int
    signal: int


Change = Moved | Signalled


@frozen
class Reservation:
    """
    A window, `start_at` up to but not including `end_at`, in which nodes take only jobs that name it.

    Of these, only jobs of `users`; they end with the window at the latest (`ResvOverRun` 0). Other jobs are not
    started when they could run into it. With no users it is a maintenance, and may overlap others. `purge` ends,
    at the start, what still runs on the nodes and what waits in partitions that have no other nodes.
    """

    name: str
    start_at: int
    end_at: int
    nodes: tuple[str, ...]
    users: tuple[str, ...] = ()
    purge: bool = False


@frozen
class NodeView:
    """A node with what is free on it. `jobs` hold something here, in the order in which they came."""

    node: Node
    up: bool
    draining: bool
    cores_free: int
    memory_free_mb: int
    jobs: tuple[int, ...]


@frozen
class Free:
    """Room in a partition: usable nodes (up, not draining, not in a reservation now), idle ones, their cores."""

    nodes: int
    nodes_usable: int
    nodes_idle: int
    cores: int
    cores_free: int
    pending: int
    running: int


_Room = tuple[int, int]
"""Cores and memory in megabytes, on one node."""


@define
class _Host:
    """A node at work. `jobs` maps ids to what they hold; `windows` are its reservations, by start."""

    spec: Node
    cores: int
    memory: int
    up: bool = True
    draining: bool = False
    jobs: dict[int, _Room] = field(factory=dict)
    windows: list[Reservation] = field(factory=list)

    @property
    def is_usable(self) -> bool:
        return self.up and not self.draining

    def need(self, request: JobRequest) -> _Room | None:
        """What the job would hold here; None if it can never be here."""
        need = (request.cores_per_node, request.memory_mb)
        if request.exclusive:
            need = (max(need[0], self.spec.cores), max(need[1], self.spec.memory_mb))
        if need[0] > self.spec.cores or need[1] > self.spec.memory_mb > 0:
            return None
        if any(feature not in self.spec.features for feature in request.features):
            return None
        return need if self.spec.memory_mb else (need[0], 0)


@define
class _Plan:
    """A start in the future that backfilled jobs must not delay. `spare` is what they may hold at that time."""

    job: int
    at: int
    until: int
    needs: dict[str, _Room]
    spare: dict[str, _Room]

    def admits(self, node: str, need: _Room, until: int) -> bool:
        """Whether a job may hold `need` from now to `until`."""
        cores, memory = self.spare[node]
        return until <= self.at or (need[0] <= cores and need[1] <= memory)

    def take(self, node: str, need: _Room) -> None:
        cores, memory = self.spare[node]
        self.spare[node] = (cores - need[0], memory - need[1])


@define
class _Plans:
    """The plans of one pass, found by node, because most nodes have none."""

    by_node: dict[str, list[_Plan]] = field(factory=dict)

    def on(self, node: str) -> Sequence[_Plan]:
        return self.by_node.get(node, ())

    def add(self, plan: _Plan) -> None:
        for node, need in plan.needs.items():
            others = self.by_node.setdefault(node, [])
            for other in others:
                if plan.at < other.until and other.at < plan.until:
                    other.take(node, need)
                    plan.take(node, other.needs[node])
            others.append(plan)


class _Due(IntEnum):
    """What can be due. The pass is the last of its instant, so that it sees all that happened then."""

    ELIGIBLE = auto()
    PROLOG = auto()
    RUNTIME = auto()
    LIMIT = auto()
    GRACE = auto()
    TERM = auto()
    KILL = auto()
    REAPED = auto()
    EPILOG = auto()
    FORGET = auto()
    OPENS = auto()
    CLOSES = auto()
    PASS = auto()


@define
class _Pass:
    """
    What one scheduling pass has learnt.

    `blocked` are the lines (partition and reservation) with a planned job; by shape, `failed` has the shortest span
    that found no nodes, `hopeless` finds none at any time, `unforced` gains nothing from preemption.
    """

    plans: _Plans = field(factory=_Plans)
    blocked: dict[tuple[str, str | None], bool] = field(factory=dict)
    failed: dict[tuple[object, ...], int] = field(factory=dict)
    hopeless: dict[tuple[object, ...], bool] = field(factory=dict)
    unforced: dict[tuple[object, ...], bool] = field(factory=dict)
    searches: int = 0


class BatchSystem:
    """
    Nodes, partitions and the jobs on them.

    Order in the queue: jobs in a reservation, then priority of the partition, time of eligibility, id. The first job
    of a partition, or of its part of a reservation, that finds no room gets a plan: nodes and the time by which they
    are surely free (ends of walltime, `KillWait` and epilog counted). Others start before it only if they cannot
    delay it. The plan of the first blocked job of all is firm: only what nobody could know moves it back (failures,
    drains, reservations, jobs of higher priority or released limits, processes that survive SIGKILL, prologs that
    hang).

    A pass runs `schedule_delay_ms` after a change, never without one.
    """

    def __init__(
        self, nodes: Sequence[Node], partitions: Sequence[Partition], settings: Settings | None = None
    ) -> None:
        self.settings = settings or Settings()
        self._hosts = {node.name: _Host(node, node.cores, node.memory_mb) for node in nodes}
        self._partitions = {partition.name: partition for partition in partitions}
        if len(self._hosts) < len(nodes) or len(self._partitions) < len(partitions):
            raise ValueError("two nodes or two partitions have the same name")
        self._in = {name: [self._hosts[node] for node in p.nodes] for name, p in self._partitions.items()}
        self._preempts = {
            p.name: any(
                q.preempt is not Preempt.OFF and q.priority < p.priority and any(n in p.nodes for n in q.nodes)
                for q in partitions
            )
            for p in partitions
        }
        self._reservations: dict[str, Reservation] = {}
        # A name may be used again after its window was deleted; what was due for the old one must not happen then.
        self._window_numbers: dict[str, int] = {}
        self._now = 0
        self._next_id = self.settings.first_id
        self._jobs: dict[int, Job] = {}
        self._ended: dict[int, list[Job]] = {}
        self._queue: list[tuple[bool, int, int, int]] = []
        self._held_nodes: dict[tuple[str, str], int] = {}
        self._claims: dict[int, _Plan] = {}
        self._due: list[tuple[int, _Due, int, int, int, str]] = []
        self._due_number = 0
        self._epochs: dict[int, int] = {}
        self._pass_planned = False
        self._changes: list[Change] = []
        self._estimates: dict[int, int] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle. Without the time, which comes with the next call: states differ only if something happened."""
        return {**vars(self), "_now": 0, "_estimates": None}

    # What its owner tells it

    def advance(self, now: int) -> tuple[Change, ...]:
        """Do what is due up to `now`, in order of time; all changes since the last call of `advance`."""
        self._sync(now)
        changes, self._changes = tuple(self._changes), []
        return changes

    def catch_up(self, now: int) -> None:
        """
        After a time in which nobody could call: what was due meanwhile is due now.

        As after an outage of the controller: limits have gone on, but nobody was told to end, and nobody started.
        """
        self._due = [(max(at, now), *what) for at, *what in self._due]  # type: ignore[misc]
        heapq.heapify(self._due)

    def next_at(self) -> int | None:
        """When something will happen by itself; None if nothing will. May be now, never in the past."""
        while self._due and not self._is_current(self._due[0]):
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else None

    def submit(self, request: JobRequest, now: int) -> int:
        """
        Put a job into the queue; its id, larger than all before.

        Raises:
            Refused: It could never run here, or not for this owner; no id was used.
        """
        self._sync(now)
        walltime = self._check(request)
        number, self._next_id = self._next_id, self._next_id + 1
        eligible_at = max(now, request.begin_at or now)
        self._enqueue(Job(number, request, walltime, now, eligible_at, held=request.hold))
        return number

    def cancel(self, job_id: int, now: int, by: str = "") -> bool:
        """
        Stop a job: at once while pending, else SIGTERM, after `KillWait` SIGKILL, epilog, `CANCELLED`.

        False if it is over, is ending already for good, or is not known (any more). A run that was ending in order
        to be requeued ends as `CANCELLED` instead.
        """
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state.is_final or (job.state is State.COMPLETING and not job.requeues):
            return False
        self._cancel(job, by)
        return True

    def finish(
        self, job_id: int, exit_code: int, now: int, *, run: int | None = None, out_of_memory: bool = False
    ) -> bool:
        """
        The processes of a run have ended.

        False, and nothing changes, if it has none: it is over, not started, or another run than `run` (None: any).
        A run that was being stopped keeps the cause of the stop, whatever the exit code.
        """
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or not job.alive or run not in (None, job.run):
            return False
        self._gone(job, exit_code, 0, out_of_memory)
        return True

    def requeue(self, job_id: int, now: int) -> bool:
        """Stop a run and put the job back into the queue; False if it holds no nodes or is being stopped."""
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state not in (State.CONFIGURING, State.RUNNING):
            return False
        self._stop(evolve(job, outcome=State.REQUEUED, requeues=True))
        return True

    def preempt(self, job_id: int, now: int) -> bool:
        """Take a run's nodes away as if a job of higher priority wanted them; False unless it runs undisturbed."""
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state is not State.RUNNING or job.outcome is not None:
            return False
        self._preempt(job)
        return True

    def behave(self, job_id: int, now: int, **what: Any) -> bool:
        """Change how a job without a real process will behave (`JobRequest`); False if it is over."""
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state.is_final:
            return False
        self._put(evolve(job, request=evolve(job.request, **what)))
        return True

    def end_prolog(self, job_id: int, now: int) -> bool:
        """The nodes of a run are configured now, whatever the prolog's time; False if they are not being configured."""
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state is not State.CONFIGURING:
            return False
        self._run(job)
        return True

    def hold(self, job_id: int, now: int) -> bool:
        """Keep a pending job from starting; False if it is not pending."""
        return self._set_held(job_id, True, now)

    def release(self, job_id: int, now: int) -> bool:
        """Let a held job start; it keeps its place in the queue. False if it is not pending."""
        return self._set_held(job_id, False, now)

    def fail_node(self, name: str, now: int) -> None:
        """The node is down, with the processes on it: its jobs are requeued if they allow it, else `NODE_FAIL`."""
        self._sync(now)
        host = self._hosts[name]
        host.up = False
        self._claims = {number: plan for number, plan in self._claims.items() if name not in plan.needs}
        for number in tuple(host.jobs):
            self._lose(self._jobs[number])
        self._touch()

    def drain_node(self, name: str, now: int) -> None:
        """Jobs on the node go on; it gets no new ones."""
        self._sync(now)
        self._hosts[name].draining = True
        self._claims = {number: plan for number, plan in self._claims.items() if name not in plan.needs}
        self._touch()

    def resume_node(self, name: str, now: int) -> None:
        """The node is up and takes jobs."""
        self._sync(now)
        self._hosts[name].up, self._hosts[name].draining = True, False
        self._touch()

    def set_partition(self, name: str, state: PartitionState, now: int) -> None:
        """Open or close a partition; running jobs go on."""
        self._sync(now)
        self._partitions[name] = evolve(self._partitions[name], state=state)
        self._touch()

    def reserve(self, reservation: Reservation, now: int) -> None:
        """
        Announce a window.

        Raises:
            ValueError: The name is taken, it has no future, a node is not known, or it overlaps another
                reservation on a node although neither is a maintenance.
        """
        self._sync(now)
        new = reservation
        if new.name in self._reservations or new.end_at <= max(now, new.start_at):
            raise ValueError(f"reservation {new.name}: the name is taken or the window is empty or over")
        if missing := [name for name in new.nodes if name not in self._hosts]:
            raise ValueError(f"reservation {new.name}: no such nodes: {', '.join(missing)}")
        hosts = [self._hosts[name] for name in new.nodes]
        for old in (old for host in hosts for old in host.windows if old.users and new.users):
            if new.start_at < old.end_at and old.start_at < new.end_at:
                raise ValueError(f"reservation {new.name} overlaps {old.name}")
        self._reservations[new.name] = new
        for host in hosts:
            insort(host.windows, new, key=lambda window: (window.start_at, window.name))
        number = self._window_numbers[new.name] = self._due_number + 1
        self._plan_due(max(now, new.start_at), _Due.OPENS, number, new.name)
        self._plan_due(new.end_at, _Due.CLOSES, number, new.name)
        self._touch()

    def unreserve(self, name: str, now: int) -> None:
        """Delete a reservation; jobs that wait for it go on waiting, running ones keep their limit."""
        self._sync(now)
        self._close(self._reservations[name])

    # What its owner can see

    def job(self, job_id: int) -> Job | None:
        """The job as the controller knows it; None before its submission and `MinJobAge` after its end."""
        return self._jobs.get(job_id)

    def jobs(self, owner: str | None = None) -> tuple[Job, ...]:
        """The live listing, by id: all jobs that are not over, and those that ended within `MinJobAge`."""
        return tuple(job for job in self._jobs.values() if owner in (None, job.request.owner))

    def accounting(self, ids: Iterable[int] | None = None, owner: str | None = None) -> tuple[Job, ...]:
        """
        All runs, ended or not, by id and run.

        Raises:
            AccountingOff: No records are kept.
        """
        if not self.settings.accounting:
            raise AccountingOff
        wanted = sorted({**self._ended, **self._jobs}) if ids is None else ids
        return tuple(job for number in wanted for job in self._runs(number) if owner in (None, job.request.owner))

    def nodes(self) -> tuple[NodeView, ...]:
        """All nodes in the order in which they were given."""
        return tuple(
            NodeView(host.spec, host.up, host.draining, host.cores, host.memory, tuple(host.jobs))
            for host in self._hosts.values()
        )

    def partitions(self) -> tuple[Partition, ...]:
        """All partitions with their present state, in the order in which they were given."""
        return tuple(self._partitions.values())

    def reservations(self) -> tuple[Reservation, ...]:
        """Those that are not over, in the order in which they were announced."""
        return tuple(self._reservations.values())

    def free(self, partition: str) -> Free:
        """What is free for somebody without a reservation."""
        hosts = self._in[partition]
        usable = [host for host in hosts if host.is_usable and not self._reserved_now(host)]
        jobs = [job for job in self._jobs.values() if job.request.partition == partition]
        return Free(
            len(hosts),
            len(usable),
            sum(not host.jobs for host in usable),
            sum(host.spec.cores for host in usable),
            sum(host.cores for host in usable),
            sum(job.state is State.PENDING for job in jobs),
            sum(job.state is State.RUNNING for job in jobs),
        )

    def expected_start(self, job_id: int) -> int | None:
        """
        When the job started, or will start at the latest if nothing surprising happens.

        None if that is not known: held, limited, behind a closed door, no such nodes now, or too far back in the
        queue (`estimate_depth`).
        """
        job = self._jobs.get(job_id)
        if job is None:
            return None
        if job.state is not State.PENDING:
            return job.start_at
        if self._estimates is None:
            self._estimates = self._estimate()
        at = self._estimates.get(job_id)
        return at if at is None else max(at, self._now)

    # Time

    def _sync(self, now: int) -> None:
        if now < self._now:
            raise ValueError(f"time went back from {self._now} to {now}")
        while (at := self.next_at()) is not None and at <= now:
            self._now = at
            _, due, _, number, _, name = heapq.heappop(self._due)
            self._happen(due, number, name)
        self._now = now

    def _plan_due(self, at: int, due: _Due, number: int = 0, name: str = "") -> None:
        self._due_number += 1
        heapq.heappush(self._due, (at, due, self._due_number, number, self._epochs.get(number, 0), name))

    def _is_current(self, entry: tuple[int, _Due, int, int, int, str]) -> bool:
        *_, number, epoch, name = entry
        if name:
            return self._window_numbers.get(name) == number
        return number == 0 or self._epochs.get(number) == epoch

    def _happen(self, due: _Due, number: int, name: str) -> None:
        if due is _Due.PASS:
            self._pass_planned = False
            self._schedule()
        elif due is _Due.OPENS:
            self._open(self._reservations[name])
        elif due is _Due.CLOSES:
            self._close(self._reservations[name])
        else:
            self._happen_to(self._jobs[number], due)

    def _happen_to(self, job: Job, due: _Due) -> None:
        request = job.request
        match due:
            case _Due.ELIGIBLE:
                self._touch()
            case _Due.PROLOG:
                self._run(job)
            case _Due.RUNTIME:
                self._gone(job, request.exit_code, 0, request.out_of_memory)
            case _Due.LIMIT:
                # A preempted job goes by its grace time, which is the earlier of the two ends.
                if job.grace_until is None:
                    self._stop(evolve(job, outcome=State.TIMEOUT))
            case _Due.TERM:
                self._gone(job, 0, _SIGTERM)
            case _Due.GRACE:
                self._move(evolve(job, end_at=self._now), State.COMPLETING)
                self._kill(self._jobs[job.id])
            case _Due.KILL:
                self._kill(job)
            case _Due.REAPED:
                self._gone(job, 0, _SIGKILL)
            case _Due.EPILOG:
                self._end(job)
            case _Due.FORGET:
                del self._jobs[job.id], self._epochs[job.id]
            case _:
                raise AssertionError(due)

    def _touch(self) -> None:
        """Something changed that may let a job start."""
        self._estimates = None
        if not self._pass_planned:
            self._pass_planned = True
            self._plan_due(self._now + self.settings.schedule_delay_ms, _Due.PASS)

    # The life of a job

    def _put(self, job: Job) -> None:
        self._jobs[job.id] = job

    def _move(self, job: Job, state: State) -> None:
        """Enter a state; whatever was due for the job in the state before is no longer."""
        before = None if state is State.PENDING else job.state
        self._epochs[job.id] = self._epochs.get(job.id, 0) + 1
        self._estimates = None
        self._put(evolve(job, state=state, reason=job.reason if state is State.PENDING else Reason.NONE))
        self._changes.append(Moved(self._now, job.id, job.run, before, state, job.nodes))

    def _enqueue(self, job: Job) -> None:
        """Begin a run."""
        self._move(job, State.PENDING)
        insort(self._queue, self._key(job))
        self._put(evolve(self._jobs[job.id], reason=self._barred(job) or Reason.NONE))
        if job.eligible_at > self._now:
            self._plan_due(job.eligible_at, _Due.ELIGIBLE, job.id)
        self._touch()

    def _key(self, job: Job) -> tuple[bool, int, int, int]:
        request = job.request
        return (request.reservation is None, -self._partitions[request.partition].priority, job.eligible_at, job.id)

    def _dequeue(self, job: Job) -> None:
        self._claims.pop(job.id, None)
        index = bisect_left(self._queue, self._key(job))
        assert self._queue[index] == self._key(job)
        del self._queue[index]

    def _allocate(self, job: Job, hosts: Sequence[_Host]) -> None:
        self._dequeue(job)
        for host in hosts:
            need = host.need(job.request)
            assert need is not None
            host.jobs[job.id] = need
            host.cores -= need[0]
            host.memory -= need[1]
        self._count_user(job, 1)
        prolog = self._prolog(job)
        job = evolve(job, nodes=tuple(host.spec.name for host in hosts), start_at=self._now)
        if prolog == 0:
            self._run(job)
        else:
            self._move(job, State.CONFIGURING)
            self._plan_due(self._now + prolog, _Due.PROLOG, job.id)

    def _prolog(self, job: Job) -> int:
        return self.settings.prolog_ms if job.request.prolog_ms is None else job.request.prolog_ms

    def _run(self, job: Job) -> None:
        limit = self._now + job.walltime_ms
        window = self._reservations.get(job.request.reservation or "")
        if window is not None:
            limit = max(self._now, min(limit, window.end_at))
        self._move(evolve(job, start_at=self._now, limit_at=limit, alive=True), State.RUNNING)
        # The end by itself is due before the limit of the same instant: it is the smaller _Due.
        if job.request.runtime_ms is not None:
            self._plan_due(self._now + job.request.runtime_ms, _Due.RUNTIME, job.id)
        self._plan_due(limit, _Due.LIMIT, job.id)

    def _cancel(self, job: Job, by: str) -> None:
        job = evolve(job, outcome=State.CANCELLED, requeues=False, cancelled_by=by)
        if job.state is State.COMPLETING:
            self._put(job)
        else:
            self._stop(job)

    def _stop(self, job: Job) -> None:
        """End a run with the outcome that `job` carries already, from any state but `COMPLETING`."""
        assert job.outcome is not None
        if job.state is State.PENDING:
            self._dequeue(job)
            self._end(evolve(job, end_at=self._now))
        elif job.state is State.CONFIGURING:
            self._gone(job, 0, 0)
        else:
            self._move(evolve(job, end_at=self._now), State.COMPLETING)
            self._ask_to_end(self._jobs[job.id])
            self._plan_due(self._now + self.settings.kill_wait_ms, _Due.KILL, job.id)

    def _ask_to_end(self, job: Job) -> None:
        self._changes.append(Signalled(self._now, job.id, job.run, _SIGTERM))
        if job.request.term_ms is not None:
            self._plan_due(self._now + job.request.term_ms, _Due.TERM, job.id)

    def _kill(self, job: Job) -> None:
        self._changes.append(Signalled(self._now, job.id, job.run, _SIGKILL))
        self._plan_due(self._now + job.request.kill_ms, _Due.REAPED, job.id)

    def _preempt(self, job: Job) -> None:
        """Tell a running job that it has to go; it runs on for the grace time of its partition."""
        partition = self._partitions[job.request.partition]
        requeues = partition.preempt is Preempt.REQUEUE and job.request.requeue
        job = evolve(job, outcome=State.PREEMPTED, requeues=requeues)
        if job.state is State.CONFIGURING:
            self._gone(job, 0, 0)
            return
        self._estimates = None
        self._put(evolve(job, grace_until=self._now + partition.grace_ms))
        self._ask_to_end(job)
        self._plan_due(self._now + partition.grace_ms, _Due.GRACE, job.id)

    def _lose(self, job: Job) -> None:
        """A node of the job failed. What runs on its other nodes is killed without asking."""
        if job.state is State.COMPLETING and not job.alive:
            return
        if job.state is not State.COMPLETING:
            requeues = job.request.requeue and job.outcome in (None, State.PREEMPTED)
            job = evolve(job, outcome=State.NODE_FAIL, requeues=requeues)
        if job.alive:
            self._changes.append(Signalled(self._now, job.id, job.run, _SIGKILL))
        self._gone(job, 0, _SIGKILL if job.alive else 0)

    def _gone(self, job: Job, exit_code: int, exit_signal: int, out_of_memory: bool = False) -> None:
        """No process of the run is left: its outcome is known and the epilog begins."""
        outcome = job.outcome or _outcome(exit_code, exit_signal, out_of_memory)
        job = evolve(job, alive=False, outcome=outcome, exit_code=exit_code, exit_signal=exit_signal)
        if job.state is State.COMPLETING:
            self._epochs[job.id] += 1
            self._put(job)
        else:
            self._move(evolve(job, end_at=self._now), State.COMPLETING)
        if self.settings.epilog_ms == 0:
            self._end(self._jobs[job.id])
        else:
            self._plan_due(self._now + self.settings.epilog_ms, _Due.EPILOG, job.id)

    def _end(self, job: Job) -> None:
        """The run is over: nodes are given back, the record is written, and a requeued job begins its next run."""
        assert job.outcome is not None
        if job.state is not State.PENDING:
            self._count_user(job, -1)
        for name in job.nodes:
            host = self._hosts[name]
            cores, memory = host.jobs.pop(job.id)
            host.cores += cores
            host.memory += memory
        self._move(job, job.outcome)
        if self.settings.accounting:
            self._ended.setdefault(job.id, []).append(self._jobs[job.id])
        if job.requeues:
            eligible_at = self._now + self.settings.requeue_delay_ms
            self._enqueue(Job(job.id, job.request, job.walltime_ms, job.submit_at, eligible_at, job.run + 1))
        else:
            self._plan_due(self._now + self.settings.min_job_age_ms, _Due.FORGET, job.id)
        self._touch()

    def _count_user(self, job: Job, change: int) -> None:
        key = (job.request.partition, job.request.owner)
        self._held_nodes[key] = self._held_nodes.get(key, 0) + change

    def _set_held(self, job_id: int, held: bool, now: int) -> bool:
        self._sync(now)
        job = self._jobs.get(job_id)
        if job is None or job.state is not State.PENDING:
            return False
        job = evolve(job, held=held)
        self._put(evolve(job, reason=self._barred(job) or Reason.NONE))
        self._claims.pop(job_id, None)
        self._touch()
        return True

    def _runs(self, number: int) -> Sequence[Job]:
        ended, live = self._ended.get(number, []), self._jobs.get(number)
        return ended if live is None or live.state.is_final else [*ended, live]

    # Scheduling

    def _schedule(self) -> None:
        seen = _Pass()
        for *_, number in tuple(self._queue):
            job = self._jobs[number]
            if job.reason is Reason.BEGIN_TIME and job.eligible_at > self._now:
                continue  # the whole queue may be of those
            reason = self._barred(job) or self._try(job, seen)
            if reason is not None and reason is not job.reason:
                self._put(evolve(job, reason=reason))

    def _barred(self, job: Job) -> Reason | None:
        """Why the job may not start now even if all nodes were free."""
        request, partition = job.request, self._partitions[job.request.partition]
        if job.held:
            return Reason.HELD
        if job.eligible_at > self._now:
            return Reason.BEGIN_TIME
        if partition.state is PartitionState.DOWN:
            return Reason.PARTITION_DOWN
        if partition.state is PartitionState.INACTIVE:
            return Reason.PARTITION_INACTIVE
        if request.reservation is not None:
            window = self._reservations.get(request.reservation)
            if window is None or request.owner not in window.users or window.start_at > self._now:
                return Reason.RESERVATION
        limit = partition.max_jobs_per_user
        if limit is not None and self._held_nodes.get((partition.name, request.owner), 0) >= limit:
            return Reason.USER_LIMIT
        return None

    def _try(self, job: Job, seen: _Pass) -> Reason | None:
        """Start the job (None) or say what it waits for. Room only shrinks during a pass, so failures are shared."""
        shape, span = _shape(job), self._span(job)
        if span < seen.failed.get(shape, span + 1):
            if seen.searches >= self.settings.backfill_depth:
                return Reason.PRIORITY
            if hosts := self._fitting(job, span, seen.plans):
                self._allocate(job, hosts)
                return None
            seen.searches += 1
            seen.failed[shape] = span
        return self._wait(job, shape, seen)

    def _fitting(self, job: Job, span: int, plans: _Plans) -> list[_Host]:
        """The first nodes that take the job now without delaying a plan; empty if there are not enough."""
        until, request, chosen = self._now + span, job.request, list[_Host]()
        for host in self._in[request.partition]:
            if host.cores < request.cores_per_node or not host.is_usable:
                continue
            need = host.need(request)
            if need is None or need[0] > host.cores or need[1] > host.memory:
                continue
            if self._after_windows(host, job, self._now, span) != self._now:
                continue
            if all(plan.admits(host.spec.name, need, until) for plan in plans.on(host.spec.name)):
                chosen.append(host)
                if len(chosen) == request.nodes:
                    self._use_spare(chosen, request, until, plans)
                    return chosen
        return []

    def _use_spare(self, hosts: Sequence[_Host], request: JobRequest, until: int, plans: _Plans) -> None:
        for host in hosts:
            need = host.need(request)
            for plan in plans.on(host.spec.name):
                if need is not None and until > plan.at:
                    plan.take(host.spec.name, need)

    def _wait(self, job: Job, shape: tuple[object, ...], seen: _Pass) -> Reason:
        """Plan the job if it is the first of its partition to wait, or if it may take nodes away from others."""
        name = job.request.partition
        line = (name, job.request.reservation)
        is_first = line not in seen.blocked
        plan = self._kept_claim(job)
        if (
            plan is None
            and shape not in seen.hopeless
            and (is_first or (self._preempts[name] and shape not in seen.unforced))
        ):
            found = self._find(job, seen.plans)
            if found is None:
                seen.hopeless[shape] = True
            elif is_first:
                plan = self._make_plan(job, *found)
            if self._preempts[name] and shape not in seen.unforced:
                forced = self._force(job, found, seen.plans)
                plan = forced or plan
                if forced is None:
                    seen.unforced[shape] = True
        if plan is not None:
            seen.plans.add(plan)
            seen.blocked[line] = True
            return Reason.RESOURCES
        return Reason.NODES_UNAVAILABLE if shape in seen.hopeless else Reason.PRIORITY

    def _kept_claim(self, job: Job) -> _Plan | None:
        """The plan for which others were preempted already, as long as it is ahead."""
        claim = self._claims.get(job.id)
        if claim is None or claim.at <= self._now:
            return None
        return self._make_plan(job, claim.at, [self._hosts[name] for name in claim.needs])

    def _force(self, job: Job, found: tuple[int, list[_Host]] | None, plans: _Plans) -> _Plan | None:
        """Preempt the fewest jobs that let this one start earlier than `found`; None if that is no gain."""
        partition = self._partitions[job.request.partition]
        forced = self._find(job, plans, partition)
        if forced is None or (found is not None and found[0] <= forced[0]):
            return None
        at, hosts = forced
        for host in hosts:
            for victim in self._victims(host, job, at, partition, plans):
                self._preempt(victim)
        self._claims[job.id] = self._make_plan(job, at, hosts)
        return self._claims[job.id]

    def _find(self, job: Job, plans: _Plans, preemptor: Partition | None = None) -> tuple[int, list[_Host]] | None:
        """The earliest time at which enough nodes are surely free for the job, and these nodes."""
        span, count = self._span(job), job.request.nodes
        rooms = list[tuple[int, _Host]]()
        for host in self._in[job.request.partition]:
            need = host.need(job.request) if host.is_usable else None
            if need is not None and (at := self._free_at(host, need, plans, preemptor)) is not None:
                rooms.append((at, host))
        at = self._now
        while True:
            starts = [(self._after_windows(host, job, max(at, free_at), span), host) for free_at, host in rooms]
            times = sorted(start for start, _ in starts if start is not None)
            if len(times) < count:
                return None
            if times[count - 1] == at:
                break
            at = times[count - 1]
        chosen = [host for start, host in starts if start == at]
        if preemptor is not None:
            # The fewest victims, then the youngest.
            found = [(self._victims(host, job, at, preemptor, plans), host) for host in chosen]
            found.sort(key=lambda pair: (len(pair[0]), [-victim.id for victim in pair[0]]))
            chosen = [host for _, host in found]
        return at, chosen[:count]

    def _free_at(self, host: _Host, need: _Room, plans: _Plans, preemptor: Partition | None) -> int | None:
        """When the node has room for good, with what is planned on it taken as running already."""
        cores, memory = host.cores, host.memory
        busy = [(self._until(self._jobs[number], preemptor), *room) for number, room in host.jobs.items()]
        for plan in plans.on(host.spec.name):
            planned = plan.needs[host.spec.name]
            cores, memory = cores - planned[0], memory - planned[1]
            busy.append((plan.until, *planned))
        if need[0] <= cores and need[1] <= memory:
            return self._now
        for until, more_cores, more_memory in sorted(busy):
            cores, memory = cores + more_cores, memory + more_memory
            if need[0] <= cores and need[1] <= memory:
                return until
        return None

    def _victims(self, host: _Host, job: Job, at: int, preemptor: Partition, plans: _Plans) -> list[Job]:
        """Whom to preempt on the node so that there is room at `at`: lowest partition first, then youngest."""
        need = host.need(job.request)
        assert need is not None
        cores, memory, candidates = host.spec.cores, host.spec.memory_mb, list[tuple[int, int, _Room]]()
        for number, room in host.jobs.items():
            other = self._jobs[number]
            if self._until(other) > at:
                cores, memory = cores - room[0], memory - room[1]
                if self._until(other, preemptor) <= at:
                    candidates.append((self._partitions[other.request.partition].priority, -number, room))
        for plan in plans.on(host.spec.name):
            if plan.until > at:
                planned = plan.needs[host.spec.name]
                cores, memory = cores - planned[0], memory - planned[1]
        victims = list[Job]()
        for _, minus_number, room in sorted(candidates):
            if need[0] <= cores and need[1] <= memory:
                break
            cores, memory = cores + room[0], memory + room[1]
            victims.append(self._jobs[-minus_number])
        return victims

    def _make_plan(self, job: Job, at: int, hosts: Sequence[_Host]) -> _Plan:
        plan = _Plan(job.id, at, at + self._span(job), {}, {})
        for host in hosts:
            need = host.need(job.request)
            assert need is not None
            plan.needs[host.spec.name] = need
            plan.spare[host.spec.name] = (host.spec.cores, host.spec.memory_mb)
            plan.take(host.spec.name, need)
            for number, room in host.jobs.items():
                if self._until(self._jobs[number]) > at:
                    plan.take(host.spec.name, room)
        return plan

    def _span(self, job: Job) -> int:
        """How long the job may hold its nodes if it starts now or later, as far as the scheduler can know."""
        walltime, window = job.walltime_ms, self._reservations.get(job.request.reservation or "")
        if window is not None:
            walltime = min(walltime, window.end_at - self._now)
        return self.settings.prolog_ms + walltime + self._tail_ms

    @property
    def _tail_ms(self) -> int:
        return self.settings.kill_wait_ms + self.settings.epilog_ms

    def _until(self, job: Job, preemptor: Partition | None = None) -> int:
        """Until when a job that holds nodes may hold them, or may hold them if it were preempted now."""
        if job.end_at is not None:
            until = job.end_at + self._tail_ms
        elif job.grace_until is not None:
            until = job.grace_until + self.settings.epilog_ms
        elif job.limit_at is not None:
            until = job.limit_at + self._tail_ms
        else:
            assert job.start_at is not None
            until = job.start_at + self._span(job)
        if preemptor is not None and job.outcome is None and job.request.reservation is None:
            partition = self._partitions[job.request.partition]
            if partition.preempt is not Preempt.OFF and partition.priority < preemptor.priority:
                until = min(until, self._now + partition.grace_ms + self.settings.epilog_ms)
        # What should be over by now will be over soon: there is no better guess.
        return max(until, self._now + 1)

    def _after_windows(self, host: _Host, job: Job, at: int, span: int) -> int | None:
        """The first start from `at` on that the node's reservations allow; None if there is none."""
        own = None
        if job.request.reservation is not None:
            own = self._reservations.get(job.request.reservation)
            if own is None or own not in host.windows:
                return None
            at = max(at, own.start_at)
        # Windows are sorted by start, so moving behind one never moves into an earlier one.
        for window in host.windows:
            end = at + span if own is None else min(at + span, own.end_at)
            if window is not own and at < window.end_at and end > window.start_at:
                at = window.end_at
        return None if own is not None and at >= own.end_at else at

    def _estimate(self) -> dict[int, int]:
        """Expected starts if everybody waits in order and uses the whole walltime."""
        plans, starts = _Plans(), dict[int, int]()
        for *_, number in self._queue[: self.settings.estimate_depth]:
            job = self._jobs[number]
            if self._barred(job) is not None:
                continue
            plan = self._kept_claim(job)
            if plan is None and (found := self._find(job, plans)) is not None:
                plan = self._make_plan(job, *found)
            if plan is not None:
                plans.add(plan)
                starts[number] = plan.at
        return starts

    # Doors

    def _check(self, request: JobRequest) -> int:
        """The walltime of an admissible request."""
        partition = self._partitions.get(request.partition)
        if partition is None:
            raise Refused(Refusal.PARTITION_UNKNOWN, f"no partition {request.partition}")
        if partition.state in (PartitionState.DRAIN, PartitionState.INACTIVE):
            raise Refused(Refusal.PARTITION_CLOSED, f"partition {partition.name} takes no jobs")
        if partition.accounts and request.account not in partition.accounts:
            raise Refused(Refusal.ACCOUNT, f"account {request.account} may not use partition {partition.name}")
        longest = partition.max_walltime_ms or partition.default_walltime_ms
        walltime = request.walltime_ms or min(partition.default_walltime_ms, longest)
        if partition.max_walltime_ms is not None and walltime > partition.max_walltime_ms:
            raise Refused(Refusal.WALLTIME, f"{walltime} ms is more than {partition.max_walltime_ms} ms")
        fitting = (host for host in self._in[partition.name] if host.need(request) is not None)
        if sum(1 for _ in islice(fitting, request.nodes)) < request.nodes:
            raise Refused(Refusal.NODES, f"partition {partition.name} does not have such nodes")
        if request.reservation is not None:
            window = self._reservations.get(request.reservation)
            if window is None or request.owner not in window.users:
                raise Refused(Refusal.RESERVATION, f"no reservation {request.reservation} for {request.owner}")
        return walltime

    def _open(self, window: Reservation) -> None:
        self._touch()
        if not window.purge:
            return
        for name in window.nodes:
            for number in tuple(self._hosts[name].jobs):
                self._purge(self._jobs[number])
        for *_, number in tuple(self._queue):
            job = self._jobs[number]
            if all(name in window.nodes for name in self._partitions[job.request.partition].nodes):
                self._purge(job)

    def _purge(self, job: Job) -> None:
        if job.state is not State.COMPLETING or job.requeues:
            self._cancel(job, by="")

    def _close(self, window: Reservation) -> None:
        del self._reservations[window.name], self._window_numbers[window.name]
        for name in window.nodes:
            self._hosts[name].windows.remove(window)
        self._touch()

    def _reserved_now(self, host: _Host) -> bool:
        return any(window.start_at <= self._now < window.end_at for window in host.windows)


def _shape(job: Job) -> tuple[object, ...]:
    """Requests of equal shape fit the same nodes for the same time."""
    request = job.request
    return (
        request.partition,
        request.nodes,
        request.cores_per_node,
        request.memory_mb,
        request.exclusive,
        request.features,
        request.reservation,
    )


def _outcome(exit_code: int, exit_signal: int, out_of_memory: bool) -> State:
    if out_of_memory:
        return State.OUT_OF_MEMORY
    return State.COMPLETED if exit_code == exit_signal == 0 else State.FAILED
