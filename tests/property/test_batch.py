"""Whatever is asked of the simulated batch system, in any order, these hold."""

from collections.abc import Callable, Sequence

import pytest
from attrs import evolve, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.simulator import batch
from moorage.simulator.batch import (
    BatchSystem,
    Change,
    Job,
    JobRequest,
    Moved,
    Node,
    Partition,
    PartitionState,
    Preempt,
    Reason,
    Refused,
    Reservation,
    Settings,
    Signalled,
    State,
)

NODES = tuple(Node(f"n{i}", cores=4, memory_mb=8, features=("gpu",) if i > 2 else ()) for i in range(1, 5))
NAMES = tuple(node.name for node in NODES)
LONGEST_KILL_MS = 50
ALLOWED = {
    None: {State.PENDING},
    State.PENDING: {State.CONFIGURING, State.RUNNING, State.CANCELLED},
    State.CONFIGURING: {State.RUNNING, State.COMPLETING},
    State.RUNNING: {State.COMPLETING},
    State.COMPLETING: {state for state in State if state.is_final},
}


@frozen
class Step:
    """After `wait_ms`, something is done to a system."""

    wait_ms: int
    what: str
    do: Callable[[BatchSystem, int], object]

    def __repr__(self) -> str:
        return f"+{self.wait_ms} {self.what}"


requests = st.builds(
    JobRequest,
    name=st.just("job"),
    owner=st.sampled_from(["ada", "bob"]),
    partition=st.sampled_from(["low", "high"]),
    nodes=st.integers(1, 3),
    cores_per_node=st.integers(1, 4),
    memory_mb=st.sampled_from([0, 3, 8]),
    exclusive=st.booleans(),
    features=st.sampled_from([(), (), ("gpu",)]),
    walltime_ms=st.none() | st.integers(1, 400),
    requeue=st.booleans(),
    reservation=st.sampled_from([None, None, None, "course"]),
    begin_at=st.none() | st.integers(0, 2000),
    hold=st.sampled_from([False, False, True]),
    runtime_ms=st.none() | st.integers(0, 500),
    exit_code=st.integers(0, 2),
    term_ms=st.none() | st.integers(0, 60),
    kill_ms=st.sampled_from([0, 0, LONGEST_KILL_MS]),
    prolog_ms=st.none() | st.just(100),
)
configurations = st.builds(
    Settings,
    schedule_delay_ms=st.sampled_from([0, 7]),
    prolog_ms=st.sampled_from([0, 5]),
    epilog_ms=st.sampled_from([0, 10, 60]),
    kill_wait_ms=st.sampled_from([0, 30]),
    min_job_age_ms=st.just(300),
    requeue_delay_ms=st.sampled_from([0, 50]),
    backfill_depth=st.sampled_from([1, 500]),
)
partitions = st.builds(
    lambda preempt, limit: (
        Partition("low", NAMES, 200, 500, limit, priority=1, preempt=preempt, grace_ms=30),
        Partition("high", NAMES[1:], 200, 500, priority=2),
    ),
    st.sampled_from(Preempt),
    st.none() | st.integers(1, 3),
)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    wait = draw(st.sampled_from([0, 0, 1, 10, 60, 300]))
    kind = draw(st.sampled_from(["submit"] * 6 + ["job"] * 4 + ["node"] * 2 + ["partition", "window", "advance"]))
    if kind == "submit":
        request = draw(requests)
        return Step(wait, f"submit {request}", lambda b, now: _try_to(lambda: b.submit(request, now)))
    if kind == "job":
        name, number = (
            draw(st.sampled_from(["cancel", "finish", "hold", "release", "requeue"])),
            draw(st.integers(1, 9)),
        )
        extra = (0,) if name == "finish" else ()
        return Step(wait, f"{name} {number}", lambda b, now: getattr(b, name)(number, *extra, now))
    if kind == "node":
        name = draw(st.sampled_from(["fail_node", "drain_node", "resume_node"]))
        node = draw(st.sampled_from(NAMES))
        return Step(wait, f"{name} {node}", lambda b, now: getattr(b, name)(node, now))
    if kind == "partition":
        partition, state = draw(st.sampled_from(["low", "high"])), draw(st.sampled_from(PartitionState))
        return Step(wait, f"{partition} {state}", lambda b, now: b.set_partition(partition, state, now))
    if kind == "window":
        name = draw(st.sampled_from(["course", "maintenance"]))
        if draw(st.sampled_from([False, False, False, True])):
            return Step(wait, f"unreserve {name}", lambda b, now: _try_to(lambda: b.unreserve(name, now)))
        lead, length = draw(st.integers(0, 200)), draw(st.integers(1, 300))
        nodes = tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)))
        users, purge = (("ada",), False) if name == "course" else ((), draw(st.booleans()))

        def reserve(b: BatchSystem, now: int) -> object:
            window = Reservation(name, now + lead, now + lead + length, nodes, users, purge)
            return _try_to(lambda: b.reserve(window, now))

        return Step(wait, f"reserve {name} +{lead} for {length} on {nodes} purge {purge}", reserve)
    return Step(wait, "advance", lambda b, now: None)


histories = st.lists(steps(), max_size=40)


def _try_to(do: Callable[[], object]) -> object:
    try:
        return do()
    except (Refused, ValueError, KeyError) as error:
        return str(error)


@frozen
class Story:
    """A system after a history, the time it is, and all that changed."""

    batch: BatchSystem
    now: int
    changes: list[Change]


def _tell(
    configuration: Settings,
    parts: Sequence[Partition],
    history: Sequence[Step],
    after_each: Callable[[BatchSystem], object] = lambda b: None,
    in_small_steps: bool = False,
) -> Story:
    system, now, changes = BatchSystem(NODES, parts, configuration), 0, list[Change]()
    for step in history:
        while in_small_steps and (at := system.next_at()) is not None and at <= now + step.wait_ms:
            changes += system.advance(at)
            after_each(system)
        now += step.wait_ms
        step.do(system, now)
        after_each(system)
        if in_small_steps:
            changes += system.advance(now)
            after_each(system)
    changes += system.advance(now)
    return Story(system, now, changes)


def _heal(story: Story) -> None:
    for name in NAMES:
        story.batch.resume_node(name, story.now)
    for partition in story.batch.partitions():
        story.batch.set_partition(partition.name, PartitionState.UP, story.now)
    for job in story.batch.jobs():
        story.batch.release(job.id, story.now)


def _run_out(system: BatchSystem, changes: list[Change]) -> None:
    """Go from event to event until nothing will happen by itself."""
    for _ in range(20_000):
        at = system.next_at()
        if at is None:
            return
        changes += system.advance(at)
    raise AssertionError("it never comes to rest")


def _check_rooms(system: BatchSystem) -> None:
    """Nothing is held twice, nothing is lost, and the books agree with the jobs."""
    holders = [job for job in system.jobs() if job.nodes and not job.state.is_final]
    for view in system.nodes():
        here = [job for job in holders if view.node.name in job.nodes]
        cores = sum(_cores(job, view.node) for job in here)
        memory = sum(view.node.memory_mb if job.request.exclusive else job.request.memory_mb for job in here)
        assert cores <= view.node.cores
        assert memory <= view.node.memory_mb
        assert view.cores_free == view.node.cores - cores
        assert view.memory_free_mb == view.node.memory_mb - memory
        assert sorted(view.jobs) == [job.id for job in here]
        assert all(set(job.request.features) <= set(view.node.features) for job in here)
        assert len(here) == 1 or not any(job.request.exclusive for job in here)
    for job in holders:
        assert len(set(job.nodes)) == job.request.nodes


def _cores(job: Job, node: Node) -> int:
    return node.cores if job.request.exclusive else job.request.cores_per_node


def _check_runs(changes: Sequence[Change]) -> dict[tuple[int, int], list[State]]:
    """Each run goes along allowed steps from PENDING to at most one end, in order of time, one run at a time."""
    paths: dict[tuple[int, int], list[State]] = {}
    last = 0
    for change in changes:
        assert change.at >= last
        last = change.at
        key = (change.job, change.run)
        path = paths.setdefault(key, [])
        if isinstance(change, Signalled):
            assert path[-1] in (State.RUNNING, State.COMPLETING)
            continue
        assert change.before == (path[-1] if path else None)
        assert change.after in ALLOWED[change.before]
        if not path and change.run > 0:
            assert paths[change.job, change.run - 1][-1] in (State.NODE_FAIL, State.PREEMPTED, State.REQUEUED)
        path.append(change.after)
    return paths


@given(configurations, partitions, histories)
def test_no_node_is_oversubscribed(configuration: Settings, parts: Sequence[Partition], history: list[Step]) -> None:
    _tell(configuration, parts, history, after_each=_check_rooms, in_small_steps=True)


@given(configurations, partitions, histories)
def test_every_run_ends_exactly_once(configuration: Settings, parts: Sequence[Partition], history: list[Step]) -> None:
    """After healing all jobs come to their end, without help; only a wait for a deleted reservation has none."""
    story = _tell(configuration, parts, history)
    _heal(story)
    _run_out(story.batch, story.changes)
    left = story.batch.jobs()
    assert all(job.state is State.PENDING and job.reason is Reason.RESERVATION for job in left)
    paths = _check_runs(story.changes)
    waiting = [(job.id, job.run) for job in left]
    assert all(path[-1].is_final for key, path in paths.items() if key not in waiting)
    records = story.batch.accounting()
    assert [(job.id, job.run) for job in records] == sorted(paths)
    assert all(job.state is paths[job.id, job.run][-1] for job in records)
    assert all(view.cores_free == view.node.cores and not view.jobs for view in story.batch.nodes())


@given(configurations, partitions, histories)
def test_the_same_calls_give_the_same_changes(
    configuration: Settings, parts: Sequence[Partition], history: list[Step]
) -> None:
    """Also if somebody looks at everything all the time and time passes in the smallest steps."""

    def look(system: BatchSystem) -> None:
        for job in system.jobs():
            system.expected_start(job.id)
        system.free("low")
        system.accounting()

    once = _tell(configuration, parts, history)
    again = _tell(configuration, parts, history, after_each=look, in_small_steps=True)
    assert once.changes == again.changes
    assert once.batch.jobs() == again.batch.jobs()


@given(configurations, partitions, histories)
def test_a_cancel_ends_in_bounded_time(
    configuration: Settings, parts: Sequence[Partition], history: list[Step]
) -> None:
    story = _tell(configuration, parts, history)
    live = [job.id for job in story.batch.jobs() if not job.state.is_final]
    for number in live:
        story.batch.cancel(number, story.now)
    bound = configuration.kill_wait_ms + LONGEST_KILL_MS + configuration.epilog_ms
    story.batch.advance(story.now + bound)
    ends = [story.batch.job(number) for number in live]
    assert all(job is not None and job.state.is_final for job in ends)


@given(configurations, partitions, histories)
def test_a_requeue_keeps_the_id_and_counts(
    configuration: Settings, parts: Sequence[Partition], history: list[Step]
) -> None:
    story = _tell(configuration, parts, history)
    changes, asked = list[Change](), list[Job]()
    for number in [job.id for job in story.batch.jobs()]:
        changes += story.batch.advance(story.now)
        job = story.batch.job(number)
        assert job is not None
        runs = job.state in (State.CONFIGURING, State.RUNNING)
        assert story.batch.requeue(number, story.now) == runs
        asked += [job] if runs else []
    changes += story.batch.advance(story.now + 200)
    for job in asked:
        second = [c for c in changes if c.job == job.id and c.run == job.run + 1]
        after = story.batch.job(job.id)
        assert isinstance(second[0], Moved)
        assert second[0].after is State.PENDING
        assert after is not None
        assert after.run > job.run
        assert after.request == job.request
        assert after.submit_at == job.submit_at
        assert after.eligible_at >= second[0].at + configuration.requeue_delay_ms


@given(configurations, partitions, histories)
def test_nothing_is_lost_when_nodes_fail(
    configuration: Settings, parts: Sequence[Partition], history: list[Step]
) -> None:
    """When every node fails, jobs are over or back in the queue after the epilog, and the room is whole again."""
    story = _tell(configuration, parts, history)
    before = {job.id: job for job in story.batch.jobs()}
    for name in NAMES:
        story.batch.fail_node(name, story.now)
    changes = story.batch.advance(story.now + configuration.epilog_ms)
    assert {job.id for job in story.batch.jobs()} >= {
        number for number, job in before.items() if not job.state.is_final
    }
    for job in story.batch.jobs():
        assert job.state is State.PENDING or job.state.is_final
    for number, job in before.items():
        if job.state is State.RUNNING:
            after = story.batch.job(number)
            assert after is not None
            assert (after.state is State.PENDING) == (after.run > job.run)
            assert any(isinstance(change, Signalled) and change.job == number for change in changes)
    assert all(view.cores_free == view.node.cores and not view.jobs for view in story.batch.nodes())
    assert all(view.memory_free_mb == view.node.memory_mb for view in story.batch.nodes())


workloads = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 5, 80]),
        st.builds(
            JobRequest,
            name=st.just("job"),
            owner=st.just("ada"),
            partition=st.sampled_from(["low", "low", "high"]),
            nodes=st.integers(1, 4).map(lambda n: min(n, 3)),
            cores_per_node=st.integers(1, 4),
            memory_mb=st.sampled_from([0, 3, 8]),
            walltime_ms=st.integers(1, 400),
            runtime_ms=st.none() | st.integers(0, 500),
            term_ms=st.none() | st.integers(0, 60),
        ),
    ),
    max_size=25,
)


def _watch_the_first(configuration: Settings, workload: Sequence[tuple[int, JobRequest]]) -> int:
    """
    Check that whoever is first in the queue starts no later than was ever said while it was first.

    Returns how often a job started before one that was first.
    """
    parts = (Partition("low", NAMES, priority=1), Partition("high", NAMES[1:], priority=2))
    system = BatchSystem(NODES, parts, configuration)
    priority = {part.name: part.priority for part in parts}
    promised: dict[int, int] = {}
    overtakers = 0

    def place(number: int) -> tuple[int, int, int]:
        job = system.job(number)
        assert job is not None
        return (-priority[job.request.partition], job.eligible_at, number)

    def watch() -> None:
        nonlocal overtakers, promised
        moved = [c for c in system.advance(system_now) if isinstance(c, Moved) and c.before is State.PENDING]
        for change in moved:
            if change.job in promised:
                assert change.at <= promised[change.job] + configuration.schedule_delay_ms
            elif promised and place(change.job) < place(next(iter(promised))):
                promised = {}  # One of a higher partition came and started at once: nobody is bound any more.
            elif promised:
                overtakers += 1
        pending = [job for job in system.jobs() if job.state is State.PENDING]
        if not pending:
            promised = {}
            return
        first = min(pending, key=lambda job: place(job.id))
        expected = system.expected_start(first.id)
        assert expected is not None
        promised = {first.id: min(expected, promised.get(first.id, expected))}

    system_now = 0
    for wait, request in workload:
        until = system_now + wait
        while (at := system.next_at()) is not None and at <= until:
            system_now = at
            watch()
        system_now = until
        system.submit(request, system_now)
        watch()
    while (at := system.next_at()) is not None:
        system_now = at
        watch()
    return overtakers


@settings(max_examples=200)
@given(configurations, workloads)
def test_backfill_never_delays_the_first_job(configuration: Settings, workload: list[tuple[int, JobRequest]]) -> None:
    """No surprises here: no failures, no windows, and processes die of SIGKILL at once."""
    _watch_the_first(configuration, workload)


def _tempting() -> list[tuple[int, JobRequest]]:
    """One node is busy, the first in the queue wants three, and small long jobs would fit beside."""
    job = JobRequest("job", "ada", "low", cores_per_node=4, walltime_ms=100)
    wide = evolve(job, nodes=3, walltime_ms=50)
    return [(0, evolve(job, nodes=2)), (10, wide), *[(0, evolve(job, walltime_ms=ms)) for ms in (400, 20, 400)]]


def test_backfill_happens() -> None:
    """What ends in time overtakes, and what fits beside the plan does, too."""
    assert _watch_the_first(Settings(schedule_delay_ms=0, kill_wait_ms=0), _tempting()) >= 2


def test_the_check_of_backfill_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler that lets everybody overtake is found out."""
    monkeypatch.setattr(batch._Plan, "admits", lambda *_: True)
    with pytest.raises(AssertionError):
        _watch_the_first(Settings(schedule_delay_ms=0, kill_wait_ms=0), _tempting())
