"""The port `System` over a simulated site, and what happens to jobs that nobody asked for."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

from attrs import evolve

from moorage.core.model import (
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    Instant,
    JobId,
    Observation,
    Owner,
    Phase,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
    parse_tag,
)
from moorage.core.plan import ENDPOINT_NAME, LOG_NAME
from moorage.core.secret import Secret
from moorage.ports.clock import Clock
from moorage.ports.errors import Overloaded, Refused, Unreachable
from moorage.ports.plans import Plans
from moorage.ports.system import Handle

from .batch import BatchSystem, JobRequest, Node, Partition
from .batch import Refused as BatchRefused
from .choices import Seeded, Source, between
from .faults import Faults, Kind, Verdict
from .plugin import SimConfig
from .site import Site, SiteJob, job_request

Answer = TypeVar("Answer")
Gates = Callable[[Tag, SessionSpec], Awaitable[Secret]]
"""The gate secret of an attempt, as it is staged into the job's directory."""


class Way(Protocol):
    """How a call gets to the world: `calls.Road` with faults, or simply."""

    async def call(
        self,
        port: str,
        verb: str,
        place: str,
        act: Callable[[Verdict], Answer],
        wrap: Any = None,
        deadline_ms: int = 30_000,
        position: str = "",
    ) -> Answer: ...


class SimSystem:
    """See `moorage.ports.system.System`."""

    def __init__(
        self, site: Site, way: Way, clock: Clock, gates: Gates, happenings: "Happenings | None" = None
    ) -> None:
        self.site = site
        self.way = way
        self.clock = clock
        self.gates = gates
        self.happenings = happenings
        self._partition = site.batch.partitions()[0].name
        self.asking = self.most_asking = 0
        """Status calls of this process that are under way now, and the most at once."""

    def account(self, owner: Owner) -> str:
        """Letters and digits of the name; people who differ only in others share an account."""
        return _account(owner)

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        secret = await self.gates(tag, spec)
        account = self.account(spec.key.owner)
        waits = True

        def act(_verdict: Verdict) -> JobId:
            now = self._now()
            request = job_request(spec, tag, account, self._partition, self.site.habits)
            if self.happenings is not None:
                request = self.happenings.before(request, now)
            try:
                job = self.site.submit(tag, account, request, secret, now)
            except BatchRefused as error:
                raise Refused(f"{self.site.name} does not take the job: {error}") from error
            self.site.jobs[job].late = not waits
            self._submitted(job)
            if self.happenings is not None:
                self.happenings.after(self.site, self.site.jobs[job], now)
            return job

        try:
            return await self._call("submit", act, int(spec.timeouts.submit_s * 1000), "Submit")
        finally:
            waits = False

    def _submitted(self, job: JobId) -> None:
        """The job is there, the answer is not."""

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        def act(_verdict: Verdict) -> tuple[Sighting, ...]:
            return self.site.find(tag, self.account(owner), self._now())

        # The sweep looks for many tags at once; that is no effect of a session.
        return await self._call("find", act, position="" if parse_tag(tag) is None else "Find")

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        def act(verdict: Verdict) -> dict[JobId, Observation]:
            now = self._now()
            self.site.advance(now)
            told = {handle.job: self._seen(handle, now) for handle in jobs}
            return self._lie(verdict, told) if verdict.lie else told

        self.asking += 1
        self.most_asking = max(self.most_asking, self.asking)
        try:
            return await self._call("observe", act)
        finally:
            self.asking -= 1

    def _seen(self, handle: Handle, now: int) -> Observation:
        said = self.site.observe(handle.job, now)
        job = self.site.jobs.get(handle.job)
        if job is not None:
            job.told, job.stale = said, job.told
        return said

    def _lie(self, verdict: Verdict, told: dict[JobId, Observation]) -> dict[JobId, Observation]:
        """One of the untruths of the catalogue instead of the truth."""
        source = self.site.source
        living = [job for job, said in told.items() if isinstance(said, Alive)]
        victim = living[source.integer(0, len(living) - 1, "which job")] if living else None
        match verdict.lie:
            case "empty list":
                return {job: Doubt(DoubtReason.NOT_LISTED) for job in told}
            case "skipped":
                return {}
            case "truncated":
                keep = source.integer(0, len(told), "where the listing is cut")
                return {job: said for number, (job, said) in enumerate(told.items()) if number < keep}
            case "stale":
                past = {job: getattr(self.site.jobs.get(job), "stale", None) or said for job, said in told.items()}
                # The past of a replica is the past of the living: it does not bring back what is over.
                return {job: said if isinstance(told[job], Gone) else past[job] for job, said in told.items()}
            case _ if victim is None:
                return told
            case "not listed":
                told[victim] = Doubt(DoubtReason.NOT_LISTED)
            case "flap":
                choices = (
                    Alive(Phase.PENDING),
                    Gone(EndReason.FAILED, 1),
                    Alive(Phase.ENDING),
                    Gone(EndReason.FINISHED, 0),
                )
                told[victim] = self._said_gone(victim, choices[source.integer(0, 3, "what it is called")])
            case "terminal":
                for job in living:
                    told[job] = self._said_gone(job, Gone(EndReason.FINISHED, 0))
            case "early end":
                for job in living:
                    said = told[job]
                    if isinstance(said, Alive) and said.phase is Phase.ENDING:
                        told[job] = self._said_gone(job, Gone(EndReason.CANCELLED))
            case _:
                raise AssertionError(f"{verdict.lie!r} is no untruth about jobs")
        return told

    def _said_gone(self, job_id: JobId, said: Observation) -> Observation:
        job = self.site.jobs.get(job_id)
        if job is not None and isinstance(said, Gone):
            job.lied = True  # the site itself called it over; who believes that twice is not to blame
        return said

    async def cancel(self, job: Handle) -> Observation:
        def act(verdict: Verdict) -> Observation:
            now = self._now()
            self.site.advance(now)
            if verdict.lie == "no effect":
                self.site.wish(job.job)
                return self._seen(job, now)
            return self.site.cancel(job.job, now)

        return await self._call("cancel", act, position="Cancel")

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        def act(_verdict: Verdict) -> bytes | None:
            content = self.site.read(job.job, name, self._now())
            return None if content is None else content[-limit:]

        position = {ENDPOINT_NAME: "ReadEndpoint", LOG_NAME: "ReadLog"}.get(name, "")
        return await self._call("read", act, position=position)

    async def remove(self, job: Handle) -> None:
        def act(_verdict: Verdict) -> None:
            self.site.remove(job.job, self._now())

        await self._call("remove", act, position="Remove")

    async def _call(
        self, verb: str, act: Callable[[Verdict], Answer], deadline_ms: int = 30_000, position: str = ""
    ) -> Answer:
        site = self.site
        if site.slow_ms:
            await self.clock.sleep_until(Instant(self.clock.now() + site.slow_ms))

        def taken(verdict: Verdict) -> Answer:
            if site.overloaded(site.clock()):
                raise Overloaded(f"{site.name} asks for patience", 1.0)
            return act(verdict)

        return await self.way.call(
            "system", verb, site.name, act if site.calls_per_s is None else taken, None, deadline_ms, position
        )

    def _now(self) -> int:
        return self.site.clock()


@cache
def _account(owner: Owner) -> str:
    return re.sub("[^a-z0-9]", "", owner.lower())[:32] or "nobody"


class PushingSystem(SimSystem):
    """A system that also calls: hints about jobs that something happened to."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._pushes: asyncio.Queue[JobId] = asyncio.Queue(maxsize=10_000)

    def push(self, job: JobId) -> None:
        """The site calls."""
        if not self._pushes.full():
            self._pushes.put_nowait(job)

    def _submitted(self, job: JobId) -> None:
        if self.happenings is not None and self.happenings.faults.happens("push", "submit"):
            self.push(job)  # before anybody knows this job

    async def watch(self) -> AsyncIterator[JobId]:
        while True:
            yield await self._pushes.get()


class Happenings:
    """What happens to jobs by itself: requeue, preemption, failure of nodes, and everything else schedulers do."""

    def __init__(self, faults: Faults, source: Source) -> None:
        self.faults = faults
        self.source = source
        self._chosen: Sequence[Kind] = ()

    def before(self, request: JobRequest, now: int) -> JobRequest:
        """What is decided when the job is created."""
        self._chosen = self.faults.happens("job", "submitted")
        for kind in self._chosen:
            request = self._asked(request, kind.lie, now)
        return request

    def _asked(self, request: JobRequest, lie: str, now: int) -> JobRequest:
        between_s = self._between
        match lie:
            case "held" | "held a while":
                return evolve(request, hold=True)
            case "long queue":
                return evolve(request, begin_at=now + between_s(600, 14_400))
            case "short walltime":
                return evolve(request, walltime_ms=between_s(60, 1_800))
            case "prolog":
                return evolve(request, prolog_ms=10**9)
            case "completing":
                return evolve(request, term_ms=None, kill_ms=3_600_000)
            case "ignores term":
                return evolve(request, term_ms=None)
            case "crash":
                code = self.source.integer(0, 2, "how it ends")
                return evolve(request, runtime_ms=between_s(1, 3_600), exit_code=code, out_of_memory=code == 2)
            case _:
                return request

    def after(self, site: Site, job: SiteJob, now: int) -> None:
        """What happens to it later."""
        for kind in self._chosen:
            self._later(site, job, kind.lie, now)
        self._chosen = ()

    def _later(self, site: Site, job: SiteJob, lie: str, now: int) -> None:
        batch, number = site.batch, job.number
        at = now + self._between(1, 3_600)

        def do(what: Callable[[int], object]) -> None:
            def happen() -> None:
                if job.alive and not self.faults.healed:
                    what(site.clock())
                    site.advance(site.clock())

            site.timer(at, happen)

        match lie:
            case "held a while":
                do(lambda when: batch.release(number, when))
            case "requeue":
                do(lambda when: batch.requeue(number, when))
            case "preempt":
                do(lambda when: batch.preempt(number, when))
            case "node fails":
                do(lambda when: self._fail_node(site, job, when))
            case "hang":
                until = at + self._between(30, 900)
                do(lambda _when: setattr(job, "silent_until", until))
            case "expires":
                do(lambda when: site.expire(job, when))
            case _:
                pass

    def _fail_node(self, site: Site, job: SiteJob, when: int) -> None:
        run = site.batch.job(job.number)
        if run is None or not run.nodes or run.state.is_final:
            return
        node = run.nodes[0]
        site.batch.fail_node(node, when)
        back = when + self._between(60, 1_800)

        def resume() -> None:
            site.batch.resume_node(node, site.clock())
            site.advance(site.clock())

        site.timer(back, resume)

    def _between(self, low_s: float, high_s: float) -> int:
        return int(between(self.source, low_s, high_s, "when") * 1000)


# As a kind of system of its own ---------------------------------------------------------------------------------------


class PlainWay:
    """A call that takes a moment and goes well, on whatever loop runs."""

    def __init__(self, seconds: float = 0.02) -> None:
        self._seconds = seconds

    async def call(
        self,
        port: str,
        verb: str,
        place: str,
        act: Callable[[Verdict], Answer],
        wrap: Any = None,
        deadline_ms: int = 30_000,
        position: str = "",
    ) -> Answer:
        await asyncio.sleep(self._seconds)
        return act(Verdict())


def cluster(options: SimConfig) -> BatchSystem:
    """The batch system that the options describe."""
    nodes = [Node(f"n{number:04d}", options.cores) for number in range(options.nodes)]
    names = [node.name for node in nodes]
    wished = options.partitions or {"batch": options.nodes}
    return BatchSystem(nodes, [Partition(name, tuple(names[:count])) for name, count in wished.items()])


def build(name: SystemName, options: SimConfig, /, *, clock: Clock, plans: Plans, **_context: Any) -> SimSystem:
    """
    The kind `sim`: a batch system in memory whose jobs only pass time, in whatever time the clock shows.

    There is no process behind a job and nothing listens at its endpoint; what the system says is all there is.
    """

    async def gates(tag: Tag, spec: SessionSpec) -> Secret:
        rendered = await plans.rendered(tag, spec)
        gate = json.loads(rendered.secret.reveal()).get("gate")
        if not isinstance(gate, str):
            raise Unreachable(f"the plan of {tag} has no gate secret")
        return Secret(gate)

    def timer(at: int, then: Callable[[], None]) -> object:
        delay = max(0, at - clock.now()) / 1000
        return asyncio.get_running_loop().call_later(delay, then)

    site = Site(name, cluster(options), Seeded(options.seed, name), timer, clock.now)
    return SimSystem(site, PlainWay(), clock, gates)


__all__ = ["Happenings", "Instant", "PushingSystem", "SimSystem", "build", "cluster"]
