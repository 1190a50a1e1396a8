"""
A site as it really is: its batch system, the jobs of ours on it, and what their launchers and labs do.

This is the truth that a port double shows more or less of, that faults happen to, and that invariants look at.
Nothing here waits: time is an argument, and what will happen by itself is planned with the owner's timer.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence

from attrs import define

from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    Endpoint,
    EndReason,
    Gone,
    Instant,
    JobId,
    Observation,
    Phase,
    SessionId,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    parse_tag,
)
from moorage.core.plan import ENDPOINT_NAME, LOG_NAME
from moorage.core.secret import Secret

from .batch import BatchSystem, JobRequest, Moved, State
from .choices import Source, spread

Timer = Callable[[int, Callable[[], None]], object]
"""Have something done at an instant."""

END_REASONS: Mapping[State, EndReason] = {
    State.COMPLETED: EndReason.FINISHED,
    State.FAILED: EndReason.FAILED,
    State.CANCELLED: EndReason.CANCELLED,
    State.TIMEOUT: EndReason.WALLTIME,
    State.PREEMPTED: EndReason.PREEMPTED,
    State.NODE_FAIL: EndReason.NODE_FAILED,
    State.OUT_OF_MEMORY: EndReason.OUT_OF_MEMORY,
}


@define(eq=False)
class Launcher:
    """One run of a job's launcher: where it listens, once it does, and what it has admitted."""

    endpoint: Endpoint
    boots_at: int
    admitted_at: int | None = None
    serves_at: int | None = None
    over: bool = False


@define(eq=False)
class SiteJob:
    """
    A job of ours, whatever became of it; forgotten when its files are removed.

    Args:
        cancelled: Somebody asked for its end; a second living job of the session is no surprise then.
        removed: Its files and its record are gone.
        silent_until: Its node answers nothing, although the scheduler calls it running.
        foreign_until: Its port is somebody else's.
        told: What was said about it last, and `stale` before that.
        lied: The site has called it over although it lives.
        late: It was created after whoever asked for it had given up.
    """

    number: int
    id: JobId
    tag: Tag
    account: str
    created_at: int
    visible_at: int
    secret: Secret
    session: SessionId | None = None
    attempt: int = 0
    cancelled: bool = False
    removed: bool = False
    alive: bool = True
    ended_at: int | None = None
    launcher: Launcher | None = None
    silent_until: int = 0
    foreign_until: int = 0
    told: Observation | None = None
    stale: Observation | None = None
    lied: bool = False
    late: bool = False
    report: bytes | None = None


@define
class Habits:
    """How a site behaves when nothing goes wrong; medians in milliseconds."""

    boot_ms: int = 12_000
    lab_ms: int = 4_000
    admission_ms: int = 600_000
    visible_ms: int = 2_000
    term_ms: int = 2_000


@define(eq=False)
class Watching:
    """What the world wants to know at once."""

    created: Callable[[SiteJob], None] = lambda _job: None
    ended: Callable[[SiteJob], None] = lambda _job: None
    admitted: Callable[[SiteJob], None] = lambda _job: None
    removed: Callable[[SiteJob], None] = lambda _job: None
    meddled: Callable[[SiteJob], None] = lambda _job: None
    """Somebody asks for the end of a job that is not of this deployment."""
    moved: Callable[[SiteJob], None] = lambda _job: None


class Site:
    """One system of the simulated world."""

    def __init__(
        self,
        name: SystemName,
        batch: BatchSystem,
        source: Source,
        timer: Timer,
        clock: Callable[[], int],
        habits: Habits | None = None,
        watching: Watching | None = None,
    ) -> None:
        self.name = name
        self.batch = batch
        self.source = source
        self.timer = timer
        self.clock = clock
        self.habits = habits or Habits()
        self.watching = watching or Watching()
        self.jobs: dict[JobId, SiteJob] = {}
        self.by_number: dict[int, SiteJob] = {}
        self.by_session: dict[SessionId, dict[JobId, SiteJob]] = {}
        self.by_account: dict[str, dict[JobId, SiteJob]] = {}
        self.living: dict[JobId, SiteJob] = {}
        self.endpoints: dict[tuple[str, int], SiteJob] = {}
        self.down_until = 0
        """The way in (login node, gateway) is down."""
        self.slow_ms = 0
        """Every answer takes so much longer."""
        self.calls_per_s: int | None = None
        """Beyond that many calls in a second it says that it is overloaded."""
        self._calls: tuple[int, int] = (0, 0)
        self._planned: int | None = None
        self._ports = 0

    # Time -------------------------------------------------------------------------------------------------------------

    def advance(self, now: int) -> None:
        """Do what is due, and plan the next look."""
        for change in self.batch.advance(now):
            if isinstance(change, Moved):
                self._moved(change)
        at = self.batch.next_at()
        if at is not None and (self._planned is None or at < self._planned):
            self._planned = at
            self.timer(at, lambda: self._due(at))

    def _due(self, at: int) -> None:
        if self._planned == at:
            self._planned = None
        self.advance(self.clock())  # later than planned if time was skipped

    def _moved(self, change: Moved) -> None:
        job = self.by_number.get(change.job)
        if job is None:
            return
        if change.after is State.RUNNING:
            self._boot(job, change)
        elif change.after is State.PENDING or change.after.is_final:
            self._end_launcher(job)
        if change.after.is_final and change.after is not State.REQUEUED:
            job.alive, job.ended_at = False, change.at
            self.living.pop(job.id, None)
            self.watching.ended(job)
        self.watching.moved(job)

    def _boot(self, job: SiteJob, change: Moved) -> None:
        """The launcher of this run: a port of its own, and a nonce that no other run has."""
        boots_at = change.at + int(spread(self.source, self.habits.boot_ms, 1.4, "launcher boots"))
        self._ports += 1
        port = 20_000 + self._ports % 40_000
        nonce = hashlib.blake2b(f"{job.tag}/{change.run}".encode(), digest_size=16).hexdigest()
        launcher = Launcher(Endpoint(change.nodes[0], port, "", nonce), boots_at)
        job.launcher = launcher
        self.endpoints[change.nodes[0], port] = job
        self.timer(boots_at + self.habits.admission_ms, lambda: self._unadmitted(job, launcher))

    def _unadmitted(self, job: SiteJob, launcher: Launcher) -> None:
        """Nobody came: a launcher that is not wanted goes away by itself."""
        if launcher.admitted_at is None and not launcher.over and job.launcher is launcher:
            now = self.clock()
            self.batch.finish(job.number, 0, now)
            self.advance(now)

    def _end_launcher(self, job: SiteJob) -> None:
        launcher = job.launcher
        if launcher is not None:
            launcher.over = True
            self.endpoints.pop((launcher.endpoint.host, launcher.endpoint.port), None)
            job.launcher = None

    def overloaded(self, now: int) -> bool:
        """Count one more call of this second."""
        second, count = self._calls
        self._calls = (now // 1000, count + 1 if second == now // 1000 else 1)
        return self.calls_per_s is not None and self._calls[1] > self.calls_per_s

    # What a system is asked -------------------------------------------------------------------------------------------

    def submit(
        self, tag: Tag, account: str, request: JobRequest, secret: Secret, now: int, foreign: bool = False
    ) -> JobId:
        """
        A job more. `batch.Refused` if it could never run.

        Args:
            foreign: It is of another deployment, which nobody of this one may touch.
        """
        self.advance(now)
        number = self.batch.submit(request, now)
        visible_at = now + self.source.integer(0, self.habits.visible_ms, "visible after")
        job = SiteJob(number, JobId(f"{self.name}.{number}"), tag, account, now, visible_at, secret)
        named = parse_tag(tag)
        if named is not None and not foreign:
            job.session, job.attempt = named
            self.by_session.setdefault(named[0], {})[job.id] = job
        self.jobs[job.id] = self.by_number[number] = self.living[job.id] = job
        self.by_account.setdefault(account, {})[job.id] = job
        self.watching.created(job)
        self.advance(now)
        return job.id

    def find(self, tag: Tag, account: str, now: int) -> tuple[Sighting, ...]:
        """Every visible job whose tag begins so."""
        self.advance(now)
        named = parse_tag(tag)
        found = self.by_account.get(account, {}) if named is None else self.by_session.get(named[0], {})
        return tuple(
            Sighting(job.id, job.tag, job.alive)
            for job in found.values()
            if job.visible_at <= now and job.account == account and job.tag.startswith(tag)
        )

    def observe(self, job_id: JobId, now: int) -> Observation:
        """What the system says about one job."""
        job = self.jobs.get(job_id)
        if job is None or job.visible_at > now:
            return Doubt(DoubtReason.NOT_LISTED)
        run = self.batch.job(job.number)
        if run is None:
            runs = self.batch.accounting([job.number])
            run = runs[-1]
        match run.state:
            case State.PENDING:
                return _PENDING.get(run.reason.value) or _PENDING.setdefault(
                    run.reason.value, Alive(_pending, note=run.reason.value)
                )
            case State.CONFIGURING:
                return Alive(_running, run.nodes[0], note="configuring")
            case State.RUNNING:
                limit = run.limit_at
                return Alive(_running, run.nodes[0], None if limit is None else Instant(limit))
            case State.COMPLETING:
                return Alive(_ending, run.nodes[0] if run.nodes else None)
            case _:
                return Gone(END_REASONS[run.state], run.exit_code)

    def cancel(self, job_id: JobId, now: int) -> Observation:
        """Ask for the end of a job."""
        job = self.jobs.get(job_id)
        if job is None:
            return Doubt(DoubtReason.NOT_LISTED)
        if job.session is None:
            self.watching.meddled(job)
        job.cancelled = True
        self.batch.cancel(job.number, now)
        self.advance(now)
        return self.observe(job_id, now)

    def read(self, job_id: JobId, name: str, now: int) -> bytes | None:
        """A file of the job's directory."""
        self.advance(now)
        job = self.jobs.get(job_id)
        if job is None:
            return None
        launcher = job.launcher
        if name == ENDPOINT_NAME:
            if launcher is not None and launcher.boots_at <= now:
                job.report = endpoint_report(job.secret, job.tag, launcher.endpoint)
            return job.report  # a requeued job finds the report of its former run until it writes its own
        if name == LOG_NAME and job.report is not None:
            return b"[I] lab started\n"
        return None

    def wish(self, job_id: JobId) -> None:
        """Somebody asked for the job's end, whatever comes of it."""
        job = self.jobs.get(job_id)
        if job is not None:
            job.cancelled = True

    def remove(self, job_id: JobId, now: int) -> None:
        """The job's directory and record go; a job that is not over is ended first, as UNICORE's DELETE does."""
        self.advance(now)
        job = self.jobs.get(job_id)
        if job is None:
            return
        if job.session is None:
            self.watching.meddled(job)
        self.watching.removed(job)
        self.expire(job, now)

    def expire(self, job: SiteJob, now: int) -> None:
        """The job's record goes, and with it what still runs of it."""
        job_id = job.id
        if job_id not in self.jobs:
            return
        if job.alive:
            job.cancelled = True
            self.batch.cancel(job.number, now)
            self.advance(now)
        del self.jobs[job_id], self.by_account[job.account][job_id]
        job.removed = True
        if job.session is not None:
            others = self.by_session[job.session]
            del others[job_id]
            if not others:
                del self.by_session[job.session]

    # What launchers and labs do ---------------------------------------------------------------------------------------

    def at(self, endpoint: Endpoint, now: int) -> SiteJob | None:
        """Whose launcher answers there now, as far as the site was advanced; `None` if nobody does."""
        if now < self.down_until:
            return None
        job = self.endpoints.get((endpoint.host, endpoint.port))
        if job is None or job.launcher is None or job.launcher.boots_at > now or now < job.silent_until:
            return None
        return job

    def admit(self, job: SiteJob, now: int) -> None:
        """A proven stream came: the lab starts, once."""
        launcher = job.launcher
        assert launcher is not None
        if launcher.admitted_at is None:
            launcher.admitted_at = now
            launcher.serves_at = now + int(spread(self.source, self.habits.lab_ms, 1.3, "lab starts"))
            self.watching.admitted(job)

    # What happens to jobs ---------------------------------------------------------------------------------------------

    def kill_everything(self, now: int) -> None:
        """All jobs are killed and the queue is purged, as in a maintenance."""
        for job in list(self.living.values()):
            self.batch.cancel(job.number, now)
        self.advance(now)

    def heal(self, now: int) -> None:
        """What hangs is let go: nodes answer, held jobs are released, processes that would not die are dead."""
        self.down_until = 0
        for view in self.batch.nodes():
            if not view.up or view.draining:
                self.batch.resume_node(view.node.name, now)
        for job in list(self.living.values()):
            job.silent_until = job.foreign_until = 0
            run = self.batch.job(job.number)
            if run is None:
                continue
            if run.held:
                self.batch.release(job.number, now)
            if run.state is State.COMPLETING and run.alive:
                self.batch.finish(job.number, 0, now)
            if run.state is State.CONFIGURING:
                self.batch.end_prolog(job.number, now)
            self.batch.behave(job.number, now, kill_ms=0, term_ms=self.habits.term_ms, prolog_ms=None)
        self.advance(now)


_pending, _running, _ending = Phase.PENDING, Phase.RUNNING, Phase.ENDING
_PENDING: dict[str, Alive] = {}


def endpoint_report(secret: Secret, tag: Tag, endpoint: Endpoint) -> bytes:
    """What the launcher writes about itself, proven with the session's secret."""
    document = {
        "kind": "endpoint",
        "tag": tag,
        "host": endpoint.host,
        "port": endpoint.port,
        "socket": endpoint.socket,
        "nonce": endpoint.nonce,
    }
    body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    key = bytes.fromhex(secret.reveal())
    document["mac"] = hmac.new(key, b"document\n" + body, hashlib.sha256).hexdigest()
    return json.dumps(document).encode("ascii")


def jobs_of(sites: Sequence[Site], session: SessionId) -> list[tuple[Site, SiteJob]]:
    """Every living job of a session, wherever it is."""
    return [(site, job) for site in sites for job in site.by_session.get(session, {}).values() if job.alive]


def job_request(spec: SessionSpec, tag: Tag, account: str, partition: str, habits: Habits) -> JobRequest:
    """What the batch system is asked for."""
    return JobRequest(
        name=tag,
        owner=account,
        partition=spec.partition or partition,
        nodes=spec.nodes,
        exclusive=True,  # whole nodes, so that the number of nodes is the number of sessions
        walltime_ms=spec.walltime_s * 1000,
        term_ms=habits.term_ms,
        comment=tag,
    )
