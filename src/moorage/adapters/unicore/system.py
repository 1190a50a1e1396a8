"""The port `System` for a UNICORE site."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from attrs import define, field

from moorage.adapters.unicore.config import UnicoreConfig
from moorage.core.model import (
    NOTE_LIMIT,
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    FailureKind,
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
)
from moorage.core.plan import SECRET_NAME
from moorage.core.timeouts import Timeouts
from moorage.launcher import source
from moorage.ports.clock import Clock
from moorage.ports.credentials import Credentials
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unauthorised, Unreachable
from moorage.ports.plans import Plans
from moorage.ports.system import Handle

from . import translate
from .client import Client, Request, tls_context
from .notices import Notices
from .rights import Rights
from .translate import Absent, Reading, Status, Verb

Result = TypeVar("Result")

MOST_PAGES = 100
"""Of a listing; 20 000 jobs of one account are looked at by a person."""

LISTING_TRIES = 3
"""A listing of several pages is read until two readings agree: there is no order in it and no snapshot."""

DETAILS_AGAIN_MS = {Phase.PENDING: 60_000, Phase.RUNNING: 600_000}
"""Each look at the details is a command on the site's login node."""

BELIEVED_MS = 60_000
"""So long a reading is believed when a cancel is accepted."""

NUDGE_AGAIN_MS = 30_000

READING_LIMIT = 262_144
"""Bytes of a reading, which has six short members: as many are read at a time as there are connections."""

GIVE_UP_AFTER = 5
"""Calls that fail in a row, without one that succeeds, before the rest of a round is not asked any more."""

MOST_SEEN = 20_000


def build(name: SystemName, options: UnicoreConfig, /, **context: Any) -> "UnicoreSystem":
    """
    Make the adapter of one site.

    Raises:
        ValueError: The options are not allowed here.
    """
    simulation = bool(context.get("simulation", False))
    tls = tls_context(options, simulation=simulation)
    clock: Clock = context["clock"]
    credentials: Credentials = context["credentials"]
    timeouts: Timeouts = context.get("timeouts") or Timeouts()
    rights = Rights(name, options, credentials, clock)
    client = Client(name, options, tls, rights, timeouts)
    return UnicoreSystem(name, options, client, clock, context["plans"], timeouts)


@define(eq=False)
class _Seen:
    """What was last seen of a job. Only saves calls: another process does without it."""

    batch_id: str = ""
    phase: Phase | None = None
    at: Instant = field(default=Instant(0))
    node: str | None = None
    ends_at: Instant | None = None
    note: str = ""
    warning: str = ""
    details_at: Instant | None = None
    nudged_at: Instant | None = None
    prolonged_at: Instant | None = None
    given_up: bool = False
    cancelled: bool = False
    never_queued: bool = False


@define(eq=False)
class UnicoreSystem:
    """A UNICORE site. See `moorage.ports.system.System` for what each method promises."""

    name: SystemName
    config: UnicoreConfig
    client: Client
    clock: Clock
    plans: Plans
    timeouts: Timeouts
    _seen: dict[JobId, _Seen] = field(factory=dict)
    _bases: tuple[str, ...] = field(init=False)
    _notices: Notices = field(init=False)
    _looks: asyncio.Semaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._bases = translate.bases_of(self.config)
        self._notices = Notices(self.name, self._bases, self._certificate, self.clock)
        # Looks that hang leave some connections to submits and cancels.
        self._looks = asyncio.Semaphore(self.config.connections - max(1, self.config.connections // 16))

    def account(self, owner: Owner) -> str:
        return self.client.rights.account(owner)

    async def close(self) -> None:
        """Give connections back and end every `watch`."""
        self._notices.close()
        await self.client.close()

    # Submitting -----------------------------------------------------------------------------------------------

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        rendered = await self.plans.rendered(tag, spec)
        job = translate.description(tag, spec, rendered, source(), self.config)
        what = f"submit of {tag}"
        request = Request(what, Verb.CREATE, "POST", "/jobs", json=job, deadline_s=self.timeouts.submit_s)
        answer = await self.client.call(spec.key.owner, request)
        location = answer.headers.get("location")
        if answer.status != 201 or location is None:
            raise Malformed(f"{self.name}: {what}: the site does not say which job it made")
        return self._understood(what, lambda: translate.job_of(location, self._bases))

    # Lookups --------------------------------------------------------------------------------------------------

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        """
        1. The listing is by whole tags; what it names is checked job by job, because old servers ignore the filter.
        2. Nothing found is a strong word: it counts only if the server knows who asks, and if it says so twice.
        """
        jobs = await self._listed(tag, owner)
        if not jobs:
            await self._check_role(owner)
            jobs = await self._listed(tag, owner)
        seen = await self._each([self._sighting(owner, tag, job) for job in jobs])
        for each in seen:
            if isinstance(each, PortError):
                raise each
        return tuple(each for each in seen if isinstance(each, Sighting))

    async def _listed(self, tag: Tag, owner: Owner) -> tuple[JobId, ...]:
        """Every job that the server names for a tag. One page is one moment; of several, two readings must agree."""
        before: frozenset[JobId] | None = None
        for _ in range(LISTING_TRIES):
            jobs, pages = await self._pages(tag, owner)
            if pages == 1 or before == frozenset(jobs):
                return tuple(dict.fromkeys(jobs))
            before = frozenset(jobs)
        raise Unanswered(f"{self.name}: lookup of {tag}: the listing is another one each time it is read")

    async def _pages(self, tag: Tag, owner: Owner) -> tuple[list[JobId], int]:
        """
        All pages. A page that is full is followed by another one whatever its links say (`next` has been lost), and
        one that is not full ends the listing, unless it says that there is more: then something is missing.
        """
        what, searched = f"lookup of {tag}", translate.searched_tag(tag)
        jobs: list[JobId] = []
        for page in range(MOST_PAGES):
            params = {"offset": str(len(jobs)), "num": str(translate.LISTING_PAGE)}
            if searched:
                params["tags"] = searched
            answer = await self.client.call(owner, Request(what, Verb.LIST, "GET", "/jobs", params=params))
            found, more = self._understood(what, lambda body=answer.body: translate.jobs_in(body, self._bases))  # type: ignore[misc]
            jobs += found
            if len(found) > translate.LISTING_PAGE or (more and len(found) < translate.LISTING_PAGE):
                raise Malformed(f"{self.name}: {what}: a page of the listing is not complete")
            if len(found) < translate.LISTING_PAGE:
                return jobs, page + 1
        raise Malformed(f"{self.name}: {what}: the listing does not end")

    async def _check_role(self, owner: Owner) -> None:
        """Taken for nobody, we may only hold the session of a moment in which the site could not check us."""
        try:
            await self._ask_role(owner)
        except Unauthorised:
            self.client.forget_session(owner, self.client.session(owner))
            await self._ask_role(owner)

    async def _ask_role(self, owner: Owner) -> None:
        what = "check of our role"
        request = Request(what, Verb.LIST, "GET", "", params={"fields": "client"})
        answer = await self.client.call(owner, request)
        self._understood(what, lambda: translate.check_role(answer.body, f"{self.name}: {what}"))

    async def _sighting(self, owner: Owner, tag: Tag, job: JobId) -> Sighting | None:
        what = f"lookup of {tag}"
        request = Request(what, Verb.ASK, "GET", f"/jobs/{job}", params={"fields": "status,tags"})
        try:
            answer = await self.client.call(owner, request)
        except Absent:
            return None  # removed since the listing was made
        return self._understood(what, lambda: _sighting(job, tag, answer.body))

    # Observing ------------------------------------------------------------------------------------------------

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        """
        One small request per job, at most so many at a time: the server has no status of several jobs.

        Raises:
            PortError: No job was answered about.
        """
        round_ = _Round()
        said = await self._each([self._observed(job, round_) for job in jobs])
        if round_.answers == 0 and round_.failure is not None:
            raise round_.failure
        return {job.job: each for job, each in zip(jobs, said, strict=True) if isinstance(each, Alive | Gone | Doubt)}

    async def _observed(self, job: Handle, round_: "_Round") -> Observation:
        if round_.hopeless:
            assert round_.failure is not None
            return _doubt(round_.failure)
        try:
            said = await self._look(job)
        except (Unreachable, Unanswered) as error:
            round_.failed(error)
            return _doubt(error)
        except PortError as error:
            round_.failure = round_.failure or (error if error.kind is FailureKind.OVERLOADED else None)
            round_.answers += error.kind is not FailureKind.OVERLOADED
            return _doubt(error)
        round_.answers += 1
        return said

    async def _look(self, job: Handle) -> Observation:
        """One reading of one job, with what belongs to it."""
        what = f"status of {job.tag}"
        self._check(job)
        fields = {"fields": translate.READING_FIELDS}
        request = Request(what, Verb.ASK, "GET", f"/jobs/{job.job}", params=fields, most=READING_LIMIT)
        try:
            answer = await self.client.call(job.owner, request)
        except Absent:
            # 404 has been seen for minutes for jobs that came back; only a complete lookup tells.
            return Doubt(DoubtReason.NOT_LISTED, f"{self.name} does not know the job at the moment")
        reading = self._understood(what, lambda: translate.reading(answer.body))
        seen = self._seen_of(job.job)
        if reading.status is Status.UNDEFINED:
            return Doubt(DoubtReason.STALE, f"{self.name} does not say how the job is")
        if reading.status.over:
            seen.never_queued = not reading.batch_id
            seen.phase, seen.at = None, self.clock.now()
            return await self._end(job, reading, seen)
        return await self._alive(job, reading, seen)

    async def _alive(self, job: Handle, reading: Reading, seen: _Seen) -> Alive:
        now, phase = self.clock.now(), _PHASES[reading.status]
        first = seen.phase is None
        if phase is not seen.phase or reading.batch_id != seen.batch_id:
            seen.note, seen.details_at = "", None
        if reading.batch_id != seen.batch_id or phase is Phase.PENDING:
            # Another run: where the last one was says nothing about this one.
            seen.node, seen.ends_at = None, None
        seen.batch_id, seen.phase, seen.at = reading.batch_id, phase, now
        if reading.status.before_batch:
            await self._nudge(job, reading, seen)
        else:
            await self._ask_details(job, phase, seen, first=first)
        await self._prolong(job, reading, seen)
        note = "the site collects what the job has left" if phase is Phase.ENDING else seen.note
        return Alive(phase, seen.node, seen.ends_at, "; ".join(filter(None, (note, seen.warning)))[:NOTE_LIMIT])

    async def _ask_details(self, job: Handle, phase: Phase, seen: _Seen, *, first: bool) -> None:
        """
        Node, end of the walltime and the queue's reason. Only the batch system's own record has them.

        A job that runs needs its node at once: the launcher's report is believed only if it names that. One that
        waits can do without a reason for the first time.
        """
        node = translate.login_node_of(seen.batch_id)
        if node is not None:
            seen.node, seen.note = node, ""
            return
        again = DETAILS_AGAIN_MS.get(phase)
        if again is None or (phase is Phase.PENDING and first) or not seen.batch_id:
            return
        now = self.clock.now()
        if seen.details_at is not None and now < seen.details_at + again:
            return
        details = await self._details(job)
        seen.details_at = now
        if details is None:
            return
        if phase is Phase.RUNNING:
            seen.node = details.node or seen.node
            seen.ends_at = seen.ends_at if details.left_s is None else Instant(now + details.left_s * 1000)
            seen.note = ""
            if details.node is None:
                seen.details_at = Instant(now - again + NUDGE_AGAIN_MS)
        else:
            seen.note = details.reason

    async def _details(self, job: Handle) -> translate.Details | None:
        """`None` if there is no record, or none can be had: a job is alive or not without it."""
        what = f"details of {job.tag}"
        try:
            answer = await self.client.call(job.owner, Request(what, Verb.ASK, "GET", f"/jobs/{job.job}/details"))
            return translate.details(answer.body)
        except (PortError, Absent):
            return None

    async def _nudge(self, job: Handle, reading: Reading, seen: _Seen) -> None:
        """
        A job that never gets to its batch system: `start` is repeated, and after a while it is given up.

        A start is harmless for a job that goes on by itself; it helps one whose server was restarted meanwhile.
        """
        age_s = 0.0 if reading.submitted_at is None else self.clock.now() / 1000 - reading.submitted_at.timestamp()
        seen.note = f"the site prepares the job ({reading.status.value})"
        if age_s < 60:
            return
        now = self.clock.now()
        seen.note = f"the site has been preparing the job for {age_s / 60:.0f} min ({reading.status.value})"
        if seen.nudged_at is not None and now < seen.nudged_at + NUDGE_AGAIN_MS:
            return
        seen.nudged_at = now
        seen.given_up = age_s > self.config.stuck_after
        action = "abort" if seen.given_up else "start"
        try:
            await self._act(job, action)
        except (PortError, Absent):
            seen.given_up = False  # the next look tries again

    async def _prolong(self, job: Handle, reading: Reading, seen: _Seen) -> None:
        """Keep the site from dropping the record of a living job, and with it the job."""
        now = self.clock.now()
        wanted = translate.longer_life(reading, _at(now))
        if wanted is None:
            seen.warning = ""
            return
        if seen.prolonged_at is not None and now < seen.prolonged_at + NUDGE_AGAIN_MS:
            return
        seen.prolonged_at = now
        what = f"longer life of {job.tag}"
        request = Request(what, Verb.CHANGE, "PUT", f"/jobs/{job.job}", json={"terminationTime": wanted})
        try:
            answer = await self.client.call(job.owner, request)
            if translate.granted(answer.body, "terminationTime"):
                seen.warning = ""
                return
        except (PortError, Absent):
            pass
        seen.warning = f"the site drops this job at {reading.kept_until:%Y-%m-%d %H:%M %Z} and did not grant longer"

    async def _end(self, job: Handle, reading: Reading, seen: _Seen) -> Gone:
        """Why a job is over, as far as anybody knows."""
        gone = translate.end_of(reading)
        if gone.reason is EndReason.CANCELLED and seen.given_up:
            return Gone(EndReason.FAILED, None, f"given up: {seen.note}"[:NOTE_LIMIT])
        if gone.reason is not EndReason.FAILED:
            return gone
        if translate.KILLED in reading.message:
            details = await self._details(job)
            if details is not None and details.ended is not None:
                note = f"{details.state}: {gone.note}"[:NOTE_LIMIT]
                return Gone(details.ended, details.exit_code or gone.exit_code, note)
        excerpt = "" if gone.exit_code is not None else await self._excerpt(job)
        return Gone(gone.reason, gone.exit_code, " | ".join(filter(None, (gone.note, excerpt)))[:NOTE_LIMIT])

    async def _excerpt(self, job: Handle) -> str:
        request = Request(f"log of {job.tag}", Verb.ASK, "GET", f"/jobs/{job.job}", params={"fields": "log"})
        try:
            return translate.log_excerpt((await self.client.call(job.owner, request)).body)
        except (PortError, Absent):
            return ""

    # Cancelling, reading, removing ----------------------------------------------------------------------------

    async def cancel(self, job: Handle) -> Observation:
        """
        1. The server answers 204 also when nothing can be done. So a job that is not known to be alive, or was
           cancelled before, is looked at afterwards; a job that was alive a moment ago will end.
        2. A refusal may come because the job is over: that is looked at as well.
        """
        self._check(job)
        seen = self._seen_of(job.job)
        try:
            await self._act(job, "abort")
        except Absent:
            return Doubt(DoubtReason.NOT_LISTED, f"{self.name} does not know the job at the moment")
        except (Refused, Unreachable) as error:
            said = await self._look(job)
            if isinstance(said, Gone):
                return said
            raise error
        believed = seen.phase is not None and self.clock.now() - seen.at < BELIEVED_MS
        if believed and not seen.cancelled:
            seen.cancelled = True
            return Alive(Phase.ENDING, seen.node, None, "the site has been told to end it")
        seen.cancelled = True
        return await self._look(job)

    async def _act(self, job: Handle, action: str) -> None:
        request = Request(f"{action} of {job.tag}", Verb.CHANGE, "POST", f"/jobs/{job.job}/actions/{action}", json={})
        await self.client.call(job.owner, request)

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        """The directory's address follows from the job's id, so the storage itself need not be asked."""
        self._check(job)
        assert _FILE_NAME.fullmatch(name), f"{name!r} is none of the launcher's files"
        headers = {"Accept": "application/octet-stream", "Range": f"bytes=-{limit}"}
        path = f"/storages/{job.job}-uspace/files/{name}"
        what = f"{name} of {job.tag}"
        request = Request(what, Verb.ASK, "GET", path, headers=headers, most=limit, tail=True)
        try:
            return (await self.client.call(job.owner, request)).body
        except Absent:
            return None

    async def remove(self, job: Handle) -> None:
        self._check(job)
        seen = self._seen.get(job.job)
        if seen is not None and seen.never_queued:
            await self._remove_secret(job)
        request = Request(f"removal of {job.tag}", Verb.CHANGE, "DELETE", f"/jobs/{job.job}")
        with contextlib.suppress(Absent):
            await self.client.call(job.owner, request)
        self._seen.pop(job.job, None)

    async def _remove_secret(self, job: Handle) -> None:
        """
        DELETE of a job that never got a batch id leaves its directory behind: the server's cancel step throws before
        the removal. The secret goes by name, and only if the directory is ready: otherwise its root is undefined.
        """
        storage = f"/storages/{job.job}-uspace"
        try:
            state = await self.client.call(
                job.owner,
                Request(f"directory of {job.tag}", Verb.ASK, "GET", storage, params={"fields": "resourceStatus"}),
            )
            if translate.parse_object(state.body).get("resourceStatus") == "READY":
                request = Request(f"secret of {job.tag}", Verb.CHANGE, "DELETE", f"{storage}/files/{SECRET_NAME}")
                await self.client.call(job.owner, request)
        except (Absent, Malformed):
            pass

    # Pushes ---------------------------------------------------------------------------------------------------

    def watch(self) -> AsyncIterator[JobId]:
        return self._notices.watch()

    async def notified(self, token: str, body: bytes) -> bool:
        """
        Take a notification that came to `notify_url`.

        Args:
            token: What stood behind `Bearer` in its `Authorization`.

        Returns:
            Whether it was signed by this site and names a job. It makes `watch` name that job, and nothing else.
        """
        return await self._notices.take(token, body)

    async def _certificate(self) -> bytes:
        headers = {"Accept": "text/plain"}
        request = Request("certificate", Verb.LIST, "GET", "/certificate", headers=headers, most=65_536)
        return (await self.client.call(None, request)).body

    # Helpers --------------------------------------------------------------------------------------------------

    async def _each(self, calls: Sequence[Coroutine[Any, Any, Result]]) -> list[Result | PortError]:
        """All of them, some at a time; a port's error is a result. Given up, none goes on."""

        async def one(call: Coroutine[Any, Any, Result]) -> Result | PortError:
            try:
                async with self._looks:
                    return await call
            except PortError as error:
                return error
            finally:
                call.close()

        tasks = [asyncio.ensure_future(one(call)) for call in calls]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _understood(self, what: str, read: Callable[[], Result]) -> Result:
        try:
            return read()
        except Malformed as error:
            raise Malformed(f"{self.name}: {what}: {error.note}"[:NOTE_LIMIT]) from error

    def _seen_of(self, job: JobId) -> _Seen:
        seen = self._seen.pop(job, None) or _Seen()
        self._seen[job] = seen
        while len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]
        return seen

    def _check(self, job: Handle) -> None:
        if not translate.is_job_id(job.job):
            raise Refused(f"{self.name}: {job.tag}: that is no job id of a UNICORE site")


@define(eq=False)
class _Round:
    """One call of `observe`: whether the site answers at all."""

    answers: int = 0
    failures: int = 0
    failure: PortError | None = None

    @property
    def hopeless(self) -> bool:
        return self.answers == 0 and self.failures >= GIVE_UP_AFTER

    def failed(self, error: PortError) -> None:
        self.failures += 1
        self.failure = self.failure or error


_PHASES = {
    Status.READY: Phase.PENDING,
    Status.STAGINGIN: Phase.PENDING,
    Status.QUEUED: Phase.PENDING,
    Status.RUNNING: Phase.RUNNING,
    Status.STAGINGOUT: Phase.ENDING,
}
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", re.ASCII)
_DOUBTS = {
    FailureKind.UNREACHABLE: DoubtReason.UNREACHABLE,
    FailureKind.UNANSWERED: DoubtReason.UNANSWERED,
    FailureKind.UNAUTHORISED: DoubtReason.UNAUTHORISED,
    FailureKind.OVERLOADED: DoubtReason.OVERLOADED,
    FailureKind.MALFORMED: DoubtReason.MALFORMED,
    FailureKind.REFUSED: DoubtReason.MALFORMED,
}


def _doubt(error: PortError) -> Doubt:
    return Doubt(_DOUBTS[error.kind], error.note[:NOTE_LIMIT])


def _sighting(job: JobId, tag: Tag, body: bytes) -> Sighting | None:
    """The job with its own, whole tag, if that begins with what was looked for."""
    document = translate.parse_object(body)
    tags = translate.member(document, "tags", list, [])
    words = [word for word in tags if isinstance(word, str) and word.startswith(tag)]
    status = translate.reading(body).status
    return Sighting(job, Tag(max(words, key=len)), not status.over) if words else None


def _at(now: Instant) -> datetime:
    return datetime.fromtimestamp(now / 1000, UTC)
