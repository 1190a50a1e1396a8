"""The normal day and the known incidents of the simulated batch system, one scenario per test. Times are ms."""

import pickle
from typing import Any

import pytest
from attrs import evolve

from moorage.simulator.batch import (
    AccountingOff,
    BatchSystem,
    JobRequest,
    Moved,
    Node,
    Partition,
    PartitionState,
    Preempt,
    Reason,
    Refusal,
    Refused,
    Reservation,
    Settings,
    Signalled,
    State,
)

HOUR = 3_600_000
QUICK = Settings(schedule_delay_ms=0, kill_wait_ms=30, requeue_delay_ms=50, min_job_age_ms=300)
LAB = JobRequest("lab", "ada", "batch", cores_per_node=4, walltime_ms=1000, term_ms=None)
"""Fills a node, and behaves like a real process: only its owner or a SIGKILL ends it."""


def a_system(settings: Settings = QUICK, nodes: int = 2, **partition: Any) -> BatchSystem:
    hosts = [Node(f"n{number}", cores=4) for number in range(1, nodes + 1)]
    batch = Partition("batch", tuple(host.name for host in hosts))
    return BatchSystem(hosts, [evolve(batch, **partition)], settings)


def state_of(batch: BatchSystem, number: int) -> State:
    job = batch.job(number)
    assert job is not None
    return job.state


def reason_of(batch: BatchSystem, number: int) -> Reason:
    job = batch.job(number)
    assert job is not None
    assert job.state is State.PENDING
    return job.reason


def path_of(batch: BatchSystem, now: int) -> list[tuple[int, str]]:
    """What changed up to `now`, as time and state or signal."""
    return [(c.at, c.after.value if isinstance(c, Moved) else str(c.signal)) for c in batch.advance(now)]


def test_a_job_goes_through_all_its_states() -> None:
    batch = a_system(Settings(schedule_delay_ms=3000, prolog_ms=100, epilog_ms=200))
    number = batch.submit(evolve(LAB, runtime_ms=500), now=10)
    assert batch.next_at() == 3010
    assert path_of(batch, 10_000) == [
        (10, "PENDING"),
        (3010, "CONFIGURING"),
        (3110, "RUNNING"),
        (3610, "COMPLETING"),
        (3810, "COMPLETED"),
    ]
    job = batch.job(number)
    assert job is not None
    assert (job.submit_at, job.start_at, job.end_at, job.nodes, job.alive) == (10, 3110, 3610, ("n1",), False)


def test_many_submits_share_one_pass() -> None:
    batch = a_system(Settings(schedule_delay_ms=3000), nodes=50)
    for number in range(50):
        batch.submit(LAB, now=number)
    starts = [change for change in batch.advance(10_000) if isinstance(change, Moved) and change.after is State.RUNNING]
    assert [start.at for start in starts] == [3000] * 50


@pytest.mark.parametrize(
    ("exit_code", "out_of_memory", "state"),
    [(0, False, State.COMPLETED), (3, False, State.FAILED), (137, True, State.OUT_OF_MEMORY)],
)
def test_the_owner_says_how_a_job_ended(exit_code: int, out_of_memory: bool, state: State) -> None:
    batch = a_system()
    number = batch.submit(LAB, now=0)
    batch.advance(0)
    assert batch.finish(number, exit_code, now=5, out_of_memory=out_of_memory)
    job = batch.job(number)
    assert job is not None
    assert (job.state, job.exit_code) == (state, exit_code)
    assert not batch.finish(number, 0, now=6)


def test_the_limit_asks_and_then_kills() -> None:
    batch = a_system(evolve(QUICK, epilog_ms=7))
    batch.submit(LAB, now=0)
    batch.advance(0)
    assert path_of(batch, 2000) == [(1000, "COMPLETING"), (1000, "15"), (1030, "9"), (1037, "TIMEOUT")]


def test_an_exit_after_the_limit_is_still_a_timeout() -> None:
    batch = a_system()
    number = batch.submit(LAB, now=0)
    batch.advance(1010)
    assert batch.finish(number, 0, now=1010)
    assert state_of(batch, number) is State.TIMEOUT
    assert path_of(batch, 2000) == [(1010, "TIMEOUT")]


def test_a_cancel_escalates_when_sigterm_is_ignored() -> None:
    batch = a_system()
    number = batch.submit(LAB, now=0)
    batch.advance(0)
    assert batch.cancel(number, now=5, by="ada")
    assert not batch.cancel(number, now=6)
    assert path_of(batch, 100) == [(5, "COMPLETING"), (5, "15"), (35, "9"), (35, "CANCELLED")]
    job = batch.job(number)
    assert job is not None
    assert (job.cancelled_by, job.exit_signal) == ("ada", 9)


def test_a_cancel_is_quick_when_sigterm_is_heard() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, term_ms=2), now=0)
    batch.advance(0)
    batch.cancel(number, now=5)
    assert path_of(batch, 100) == [(5, "COMPLETING"), (5, "15"), (7, "CANCELLED")]


def test_a_long_epilog_is_not_killed() -> None:
    batch = a_system(evolve(QUICK, epilog_ms=100))
    number = batch.submit(evolve(LAB, term_ms=2), now=0)
    batch.advance(0)
    batch.cancel(number, now=5)
    assert path_of(batch, 200) == [(5, "COMPLETING"), (5, "15"), (107, "CANCELLED")]


def test_a_job_that_survives_sigkill_completes_for_long() -> None:
    batch = a_system(nodes=1)
    number, second = batch.submit(evolve(LAB, kill_ms=HOUR), now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    batch.cancel(number, now=5)
    batch.advance(HOUR)
    assert state_of(batch, number) is State.COMPLETING
    assert state_of(batch, second) is State.PENDING
    batch.advance(HOUR + 35)
    assert state_of(batch, number) is State.CANCELLED
    assert state_of(batch, second) is State.RUNNING


def test_a_pending_job_is_cancelled_at_once() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, hold=True), now=0)
    assert batch.cancel(number, now=1)
    assert path_of(batch, 10) == [(0, "PENDING"), (1, "CANCELLED")]


def test_a_configuring_job_that_hangs_can_be_cancelled() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, prolog_ms=HOUR), now=0)
    batch.advance(100)
    assert state_of(batch, number) is State.CONFIGURING
    assert batch.cancel(number, now=100)
    assert state_of(batch, number) is State.CANCELLED


def test_first_come_first_served_with_reasons() -> None:
    """The first waits for resources, those behind it for the first, unless they end in time."""
    batch = a_system(nodes=2)
    batch.submit(LAB, now=0)
    wide, narrow, short = (
        batch.submit(evolve(LAB, nodes=2), now=0),
        batch.submit(evolve(LAB, walltime_ms=1001), now=0),
        batch.submit(evolve(LAB, walltime_ms=900), now=0),
    )
    batch.advance(0)
    assert reason_of(batch, wide) is Reason.RESOURCES
    assert reason_of(batch, narrow) is Reason.PRIORITY
    assert state_of(batch, short) is State.RUNNING
    assert batch.expected_start(wide) == 1030
    assert batch.expected_start(narrow) == 1030 + 1030
    assert batch.expected_start(short) == 0


def test_a_job_without_possible_nodes_holds_up_nobody() -> None:
    batch = a_system(nodes=2)
    batch.fail_node("n2", now=0)
    wide, narrow = batch.submit(evolve(LAB, nodes=2), now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    assert reason_of(batch, wide) is Reason.NODES_UNAVAILABLE
    assert batch.expected_start(wide) is None
    assert state_of(batch, narrow) is State.RUNNING


def test_who_waits_for_a_feature_does_not_hold_up_the_rest() -> None:
    batch = BatchSystem(
        [Node("n1", 4, features=("gpu",)), Node("n2", 4)], [Partition("batch", ("n1", "n2"))], settings=QUICK
    )
    gpu = evolve(LAB, features=("gpu",))
    numbers = [batch.submit(request, now=0) for request in (gpu, gpu, LAB)]
    batch.advance(0)
    assert [state_of(batch, number) for number in numbers] == [State.RUNNING, State.PENDING, State.RUNNING]


def test_held_and_released() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, hold=True), now=0)
    batch.advance(10)
    assert reason_of(batch, number) is Reason.HELD
    assert batch.release(number, now=10)
    batch.advance(10)
    assert state_of(batch, number) is State.RUNNING
    assert not batch.hold(number, now=11)


def test_a_job_begins_no_earlier_than_it_asks() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, begin_at=500), now=0)
    batch.advance(499)
    assert reason_of(batch, number) is Reason.BEGIN_TIME
    batch.advance(500)
    assert state_of(batch, number) is State.RUNNING


def test_the_limit_per_user_lets_others_pass() -> None:
    batch = a_system(max_jobs_per_user=1)
    first, second = batch.submit(LAB, now=0), batch.submit(LAB, now=0)
    other = batch.submit(evolve(LAB, owner="bob"), now=0)
    batch.advance(0)
    assert reason_of(batch, second) is Reason.USER_LIMIT
    assert state_of(batch, other) is State.RUNNING
    batch.finish(first, 0, now=10)
    batch.advance(10)
    assert state_of(batch, second) is State.RUNNING


def test_partition_states() -> None:
    batch = a_system()
    batch.set_partition("batch", PartitionState.DOWN, now=0)
    number = batch.submit(LAB, now=0)
    batch.advance(10)
    assert reason_of(batch, number) is Reason.PARTITION_DOWN
    batch.set_partition("batch", PartitionState.DRAIN, now=10)
    batch.advance(10)
    assert state_of(batch, number) is State.RUNNING
    with pytest.raises(Refused) as refused:
        batch.submit(LAB, now=10)
    assert refused.value.why is Refusal.PARTITION_CLOSED


@pytest.mark.parametrize(
    ("request_", "why"),
    [
        (evolve(LAB, partition="no"), Refusal.PARTITION_UNKNOWN),
        (evolve(LAB, account="other"), Refusal.ACCOUNT),
        (evolve(LAB, account="mine", walltime_ms=25 * HOUR), Refusal.WALLTIME),
        (evolve(LAB, account="mine", nodes=3), Refusal.NODES),
        (evolve(LAB, account="mine", cores_per_node=5), Refusal.NODES),
        (evolve(LAB, account="mine", features=("gpu",)), Refusal.NODES),
        (evolve(LAB, account="mine", reservation="no"), Refusal.RESERVATION),
    ],
)
def test_what_can_never_run_is_refused(request_: JobRequest, why: Refusal) -> None:
    batch = a_system(accounts=("mine",))
    with pytest.raises(Refused) as refused:
        batch.submit(request_, now=0)
    assert refused.value.why is why
    assert batch.jobs() == ()
    assert batch.submit(evolve(LAB, account="mine"), now=0) == 1


def test_a_failed_node_requeues_its_job_under_the_same_id_elsewhere() -> None:
    batch = a_system()
    number = batch.submit(LAB, now=0)
    batch.advance(0)
    batch.fail_node("n1", now=10)
    assert path_of(batch, 59) == [(10, "9"), (10, "COMPLETING"), (10, "NODE_FAIL"), (10, "PENDING")]
    assert reason_of(batch, number) is Reason.BEGIN_TIME
    batch.advance(60)
    job = batch.job(number)
    assert job is not None
    assert (job.state, job.run, job.nodes) == (State.RUNNING, 1, ("n2",))
    assert not batch.finish(number, 0, now=61, run=0), "the end of the first run came late"
    assert [(run.run, run.state) for run in batch.accounting()] == [(0, State.NODE_FAIL), (1, State.RUNNING)]


def test_a_failed_node_ends_a_job_that_must_not_be_requeued() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, requeue=False), now=0)
    batch.advance(0)
    batch.fail_node("n1", now=10)
    assert state_of(batch, number) is State.NODE_FAIL


def test_a_drained_node_keeps_its_job_and_gets_no_other() -> None:
    batch = a_system(nodes=1)
    first, second = batch.submit(LAB, now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    batch.drain_node("n1", now=1)
    batch.finish(first, 0, now=10)
    batch.advance(100)
    assert state_of(batch, first) is State.COMPLETED
    assert reason_of(batch, second) is Reason.NODES_UNAVAILABLE
    batch.resume_node("n1", now=100)
    batch.advance(100)
    assert state_of(batch, second) is State.RUNNING


def two_partitions(preempt: Preempt) -> BatchSystem:
    hosts = [Node("n1", 4), Node("n2", 4)]
    low = Partition("batch", ("n1", "n2"), preempt=preempt, grace_ms=40)
    return BatchSystem(hosts, [low, Partition("urgent", ("n1", "n2"), priority=2)], QUICK)


@pytest.mark.parametrize("preempt", [Preempt.REQUEUE, Preempt.CANCEL])
def test_a_higher_partition_preempts_the_youngest_after_a_grace_time(preempt: Preempt) -> None:
    batch = two_partitions(preempt)
    old, young = batch.submit(LAB, now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    urgent = batch.submit(evolve(LAB, partition="urgent"), now=10)
    changes = batch.advance(49)
    assert Signalled(10, young, 0, 15) in changes
    assert state_of(batch, young) is State.RUNNING
    assert reason_of(batch, urgent) is Reason.RESOURCES
    assert batch.expected_start(urgent) == 50
    assert path_of(batch, 50)[:3] == [(50, "COMPLETING"), (50, "9"), (50, "PREEMPTED")]
    assert state_of(batch, urgent) is State.RUNNING
    assert state_of(batch, old) is State.RUNNING
    assert state_of(batch, young) is (State.PENDING if preempt is Preempt.REQUEUE else State.PREEMPTED)


def test_several_urgent_jobs_preempt_at_the_same_time() -> None:
    """One grace time is enough for all of them, and nobody is preempted twice."""
    batch = two_partitions(Preempt.CANCEL)
    for _ in range(2):
        batch.submit(LAB, now=0)
    batch.advance(0)
    urgent = [batch.submit(evolve(LAB, partition="urgent"), now=10) for _ in range(3)]
    changes = batch.advance(50)
    assert len([change for change in changes if isinstance(change, Signalled) and change.signal == 15]) == 2
    assert [state_of(batch, number) for number in urgent] == [State.RUNNING, State.RUNNING, State.PENDING]


def test_when_the_cleared_node_is_drained_another_one_is_cleared() -> None:
    batch = two_partitions(Preempt.CANCEL)
    old, young = batch.submit(LAB, now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    batch.submit(evolve(LAB, partition="urgent"), now=10)
    assert Signalled(10, young, 0, 15) in batch.advance(10)
    batch.drain_node("n2", now=20)
    assert batch.advance(20) == (Signalled(20, old, 0, 15),)


def test_without_preemption_the_higher_partition_waits() -> None:
    batch = two_partitions(Preempt.OFF)
    for _ in range(2):
        batch.submit(LAB, now=0)
    batch.advance(0)
    urgent = batch.submit(evolve(LAB, partition="urgent"), now=10)
    assert batch.advance(900)[0].job == urgent
    assert reason_of(batch, urgent) is Reason.RESOURCES


def test_a_course_has_its_nodes_to_itself() -> None:
    batch = a_system(nodes=1)
    batch.reserve(Reservation("course", 500, 900, ("n1",), users=("ada",)), now=0)
    too_long = batch.submit(evolve(LAB, owner="bob"), now=0)
    student = batch.submit(evolve(LAB, reservation="course"), now=0)
    batch.advance(499)
    assert reason_of(batch, too_long) is Reason.RESOURCES
    assert reason_of(batch, student) is Reason.RESERVATION
    assert batch.expected_start(too_long) == 900
    batch.advance(500)
    assert state_of(batch, student) is State.RUNNING
    assert batch.free("batch").nodes_usable == 0
    batch.advance(930)
    assert state_of(batch, student) is State.TIMEOUT, "the window ends the job before its own walltime"
    assert state_of(batch, too_long) is State.RUNNING


def test_the_window_of_a_deleted_reservation_does_nothing() -> None:
    batch = a_system()
    batch.reserve(Reservation("weekend", 100, 200, ("n1", "n2"), purge=True), now=0)
    batch.unreserve("weekend", now=1)
    batch.reserve(Reservation("weekend", 5000, 6000, ("n1", "n2"), purge=True), now=1)
    number = batch.submit(LAB, now=1)
    batch.advance(300)
    assert state_of(batch, number) is State.RUNNING
    assert [window.start_at for window in batch.reservations()] == [5000]


def test_a_maintenance_purges_running_and_waiting_jobs() -> None:
    batch = a_system(nodes=1)
    running, waiting = batch.submit(LAB, now=0), batch.submit(LAB, now=0)
    batch.advance(0)
    batch.reserve(Reservation("maintenance", 500, 900, ("n1",), purge=True), now=100)
    batch.advance(530)
    assert state_of(batch, running) is State.CANCELLED
    assert state_of(batch, waiting) is State.CANCELLED
    late = batch.submit(LAB, now=600)
    batch.advance(899)
    assert state_of(batch, late) is State.PENDING
    batch.advance(900)
    assert state_of(batch, late) is State.RUNNING


def test_overlapping_courses_are_refused() -> None:
    batch = a_system()
    batch.reserve(Reservation("one", 500, 900, ("n1",), users=("ada",)), now=0)
    with pytest.raises(ValueError, match="overlaps one"):
        batch.reserve(Reservation("two", 800, 1000, ("n1",), users=("bob",)), now=0)


def test_an_ended_job_leaves_the_listing_but_not_the_accounting() -> None:
    batch = a_system()
    number = batch.submit(evolve(LAB, runtime_ms=10), now=0)
    batch.advance(309)
    assert [job.id for job in batch.jobs("ada")] == [number]
    batch.advance(310)
    assert batch.jobs() == ()
    assert batch.job(number) is None
    assert [(job.id, job.state) for job in batch.accounting([number])] == [(number, State.COMPLETED)]
    assert batch.next_at() is None


def test_without_accounting_an_ended_job_is_forgotten() -> None:
    batch = a_system(evolve(QUICK, accounting=False))
    batch.submit(evolve(LAB, runtime_ms=10), now=0)
    batch.advance(1000)
    assert batch.jobs() == ()
    with pytest.raises(AccountingOff):
        batch.accounting()


def test_what_is_free() -> None:
    batch = a_system(nodes=3)
    batch.submit(evolve(LAB, cores_per_node=1), now=0)
    batch.drain_node("n3", now=0)
    batch.advance(0)
    free = batch.free("batch")
    assert (free.nodes, free.nodes_usable, free.nodes_idle) == (3, 2, 1)
    assert (free.cores, free.cores_free, free.pending, free.running) == (8, 7, 0, 1)


def test_time_does_not_go_back() -> None:
    batch = a_system()
    batch.advance(10)
    with pytest.raises(ValueError, match="back"):
        batch.advance(9)


def test_after_an_outage_a_limit_asks_before_it_kills_and_who_waited_has_all_of_its_time() -> None:
    batch = a_system(nodes=1)
    running, waiting = (batch.submit(LAB, now=0) for _ in range(2))
    batch.advance(10)
    assert (state_of(batch, running), state_of(batch, waiting)) == (State.RUNNING, State.PENDING)
    batch.catch_up(HOUR)
    assert path_of(batch, HOUR) == [(HOUR, "COMPLETING"), (HOUR, "15")]
    assert path_of(batch, HOUR + 100) == [(HOUR + 30, what) for what in ("9", "TIMEOUT", "RUNNING")]
    job = batch.job(waiting)
    assert job is not None
    assert job.limit_at == HOUR + 30 + 1000


def test_a_system_that_was_pickled_goes_on_as_if_nothing_had_been() -> None:
    """At any moment: reservations, preemption, queue and due times are all in it, and ids go on."""
    hosts = [Node(f"n{number}", cores=4) for number in range(1, 4)]
    names = tuple(host.name for host in hosts)
    low = Partition("batch", names, preempt=Preempt.REQUEUE, grace_ms=40)
    stays = BatchSystem(hosts, [low, Partition("urgent", names[:1], priority=10)], evolve(QUICK, epilog_ms=10))
    goes = stays

    def what_happens(batch: BatchSystem, now: int) -> list[object]:
        done: list[object] = [batch.cancel(3, now)]
        if now % 200 == 0:
            done.append(batch.submit(evolve(LAB, runtime_ms=70 + now % 900), now))
        if now % 500 == 0:
            done.append(batch.submit(evolve(LAB, partition="urgent", runtime_ms=60), now))
        if now == 1000:
            batch.reserve(Reservation("school", 1200, 1500, ("n2",), ("ada",)), now)
        if now == 1300:
            batch.fail_node("n3", now)
        if now == 1600:
            batch.resume_node("n3", now)
        return [*done, batch.advance(now), batch.jobs(), batch.nodes(), batch.next_at()]

    for now in range(0, 3000, 25):
        goes = pickle.loads(pickle.dumps(goes))
        assert what_happens(goes, now) == what_happens(stays, now)
    assert goes.accounting() == stays.accounting()
    assert {job.state for job in goes.accounting()} >= {State.COMPLETED, State.PREEMPTED, State.NODE_FAIL}
