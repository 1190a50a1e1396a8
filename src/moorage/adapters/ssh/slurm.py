"""
Slurm on login nodes, as a `System`.

One `squeue` tells about all jobs of an account, and one `sacct`, where there is accounting, about those that it does
not list any more. A job is its number and its tag together: numbers are used again, tags are not.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from attrs import define, field, frozen

from moorage import launcher
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
from moorage.core.plan import LAUNCHER_NAME, PLAN_NAME, SCRIPT_NAME, SECRET_NAME, Rendered, batch_script
from moorage.core.timeouts import Timeouts
from moorage.ports.clock import Clock
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unreachable
from moorage.ports.plans import Plans
from moorage.ports.system import Handle, Load

from .client import Answer, Login, make_private_directory, put_new, read_tail
from .hosts import check
from .options import SlurmConfig, SshSystemConfig
from .translate import (
    EVIDENCE,
    NO_ACCOUNTING,
    UNKNOWN_JOB,
    Association,
    Commands,
    Kind,
    Listing,
    PartitionInfo,
    Strange,
    failed_silently,
    failure,
    is_number,
    parse_accounting,
    parse_associations,
    parse_details,
    parse_partitions,
    parse_queue,
    parse_reservations,
    parse_submitted,
    strange,
)

_Parsed = TypeVar("_Parsed")

_JOB_NAME = "job.id"
"""In the job directory: what the batch system answered. Tells a directory with a job from one without."""

_DAYS = 14
"""How far back a lookup by name asks the accounting; a session that old has been given up in the queue."""

_CHUNK = 2_000
"""Jobs per sacct call; a word of a command line may be 128 KiB."""


@define(eq=False)
class Logins:
    """The accounts of one system: who acts as whom, and their connections."""

    name: SystemName
    config: SshSystemConfig
    timeouts: Timeouts
    seed: int
    threads: ThreadPoolExecutor = field(init=False)
    _logins: dict[str, Login] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.threads = ThreadPoolExecutor(16, thread_name_prefix=f"moorage-{self.name}")

    def account(self, owner: Owner) -> str:
        """
        The account of a person.

        Raises:
            Refused: The person's name is none that an account can have, and no other is configured.
        """
        if self.config.people_keys is None:
            return self.config.user
        try:
            return check("owner", self.config.accounts.get(owner, owner), "user")
        except ValueError as error:
            raise Refused(f"{self.name}: {error}") from error

    def of(self, owner: Owner) -> Login:
        """The person's way in."""
        return self.at(self.account(owner))

    def at(self, account: str) -> Login:
        for other in self._logins.values():
            other.close_if_idle(time.monotonic())
        if account not in self._logins:
            key_file = self.config.key_file
            if self.config.people_keys is not None:
                key_file = f"{self.config.people_keys}/{account}"
            self._logins[account] = Login(
                self.name, self.config, account, key_file, self.timeouts, self.threads, self.seed
            )
        return self._logins[account]

    async def close(self) -> None:
        for login in self._logins.values():
            await login.close()
        self.threads.shutdown(wait=False, cancel_futures=True)


@frozen
class Directory:
    """
    Where job directories are: `base` of the configuration as the login node's shell and SFTP see it.

    Both begin in the home directory of the account, so ``~/x`` is the relative path ``x``.
    """

    base: str

    @classmethod
    def configured(cls, text: str) -> "Directory":
        return cls("./" + text.removeprefix("~/") if text.startswith("~/") else text.rstrip("/"))

    def of(self, tag: Tag) -> str:
        """The directory of a job; tags are letters and digits, so it is never outside."""
        if not re.fullmatch("[a-z0-9]{1,64}", tag, re.ASCII):
            raise Refused("tag: not one of ours")
        return f"{self.base}/{tag}"

    def file(self, tag: Tag, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", name, re.ASCII):
            raise Refused("name: not the name of a file in a job directory")
        return f"{self.of(tag)}/{name}"


async def stage(
    login: Login, directory: Directory, tag: Tag, script: str, rendered: Rendered, deadline_s: float
) -> None:
    """
    Make the job directory with everything the job needs.

    Raises:
        Unanswered: The directory is there already: this attempt was begun before, and there may be a job.
        PortError: There is no job, and what was staged is removed as far as that is possible.
    """
    path = directory.of(tag)
    files = {
        LAUNCHER_NAME: launcher.source().encode(),
        PLAN_NAME: rendered.plan.encode(),
        SECRET_NAME: rendered.secret.reveal().encode(),
        SCRIPT_NAME: script.encode(),
    }

    def work(sftp: Any) -> None:
        # ~/.moorage may be missing; what is above it is the site's.
        make_private_directory(sftp, directory.base)
        try:
            sftp.mkdir(path, mode=0o700)
        except OSError:
            with contextlib.suppress(OSError):
                sftp.lstat(path)
                raise Unanswered(f"{login.name}: the directory of {tag} is there already") from None
            raise
        for name, content in files.items():
            put_new(sftp, f"{path}/{name}", content)

    try:
        await login.files(work, "staging the job", deadline_s)
    except OSError as error:
        raise Unreachable(f"{login.name}: the job directory cannot be written: {error.strerror or error}") from error
    except Unanswered as error:
        if "there already" in error.note:
            raise
        # Files without a job: whatever was written, no command has been given.
        raise Unreachable(error.note) from error


async def read(login: Login, path: str, limit: int) -> bytes | None:
    try:
        return await login.files(lambda sftp: read_tail(sftp, path, limit), "reading a file")
    except OSError as error:
        raise Unreachable(f"{login.name}: a file cannot be read: {error.strerror or error}") from error


async def remove(login: Login, directory: Directory, tag: Tag) -> None:
    """Remove a job's directory, and those of earlier attempts of its session that never had a job."""
    parsed = parse_tag(tag)
    session = tag[: -len(f"{parsed[1]:04d}")] if parsed else tag

    def left(sftp: Any) -> list[str]:
        found = []
        try:
            names = sftp.listdir(directory.base)
        except FileNotFoundError:
            return []
        for name in names:
            if name.startswith(session) and name < tag and parse_tag(name):
                try:
                    sftp.lstat(f"{directory.base}/{name}/{_JOB_NAME}")
                except FileNotFoundError:
                    found.append(name)
        return found

    try:
        empty = await login.files(left, "looking for what is left") if parsed else []
    except OSError as error:
        raise Unreachable(f"{login.name}: {directory.base} cannot be listed: {error.strerror or error}") from error
    paths = [directory.of(Tag(name)) for name in (tag, *empty)]
    answer = await login.run(("rm", "-rf", "--", *paths))
    if answer.status:
        raise failure(Kind.QUESTION, "rm", answer.status, answer.err)


async def without_job(login: Login, directory: Directory, tag: Tag) -> None:
    """Remove the directory of a job that surely never was; an error on the way must not hide the first one."""
    with contextlib.suppress(PortError):
        await login.run(("rm", "-rf", "--", directory.of(tag)))


@frozen
class SlurmInfo:
    """What the form shows of a system. `at` is when it was asked; an empty list is "not told"."""

    at: Instant
    partitions: tuple[PartitionInfo, ...]
    reservations: tuple[str, ...] = ()
    associations: tuple[Association, ...] = ()

    def age_s(self, now: Instant) -> float:
        return max(0, now - self.at) / 1000


@define(eq=False)
class SlurmSystem:
    """One Slurm cluster behind its login nodes. Implements the port `System`."""

    name: SystemName
    config: SlurmConfig
    clock: Clock
    plans: Plans
    timeouts: Timeouts
    seed: int = 0
    _logins: Logins = field(init=False)
    _commands: Commands = field(init=False)
    _directory: Directory = field(init=False)
    _accounting: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._logins = Logins(self.name, self.config, self.timeouts, self.seed)
        self._commands = Commands(self.config.commands.rstrip("/") + "/" if self.config.commands else "")
        self._directory = Directory.configured(self.config.directory)
        self._accounting = self.config.accounting != "no"

    def account(self, owner: Owner) -> str:
        return self._logins.account(owner)

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        rendered = await self.plans.rendered(tag, spec)
        login, script = self._logins.of(spec.key.owner), batch_script(rendered.directives)
        await stage(login, self._directory, tag, script, rendered, self.timeouts.call_s)
        command = self._commands.submit(self._directory.of(tag), rendered.directives)
        try:
            answer = await login.run(command, deadline_s=self.timeouts.submit_s)
            if answer.status:
                raise failure(Kind.SUBMIT, "sbatch", answer.status, answer.err)
            job = parse_submitted(answer.out)
        except Strange as error:
            raise strange(error) from error
        except (Unanswered, Malformed):
            raise
        except PortError:
            await without_job(login, self._directory, tag)
            raise
        await self._note_job(login, tag, job)
        return job

    async def _note_job(self, login: Login, tag: Tag, job: JobId) -> None:
        """Leave the answer in the directory. The job is there either way, so an error is none."""
        with contextlib.suppress(PortError, OSError):
            path = self._directory.file(tag, _JOB_NAME)
            await login.files(lambda sftp: put_new(sftp, path, job.encode()), "noting the job")

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        login = self._logins.of(owner)
        listing = await self._queue(login)
        if listing.bad:
            raise Malformed(f"{self.name}: {listing.bad} rows of squeue have another form, so a job may be missing")
        found = _sightings(listing, tag)
        if not found and parse_tag(tag):
            found = _sightings(await self._records_by_name(login, tag), tag) or await self._noted(login, tag)
        return tuple(found.values())

    async def _records_by_name(self, login: Login, tag: Tag) -> Listing:
        if not self._accounting:
            return Listing(())
        listing = await self._sacct(login, self._commands.accounting_by_name(login.account, tag, _DAYS))
        return listing or Listing(())

    async def _noted(self, login: Login, tag: Tag) -> dict[JobId, Sighting]:
        """A job that the batch system has forgotten and whose directory is still there."""
        text = await read(login, self._directory.file(tag, _JOB_NAME), 100)
        try:
            job = parse_submitted((text or b"").decode("ascii", "replace"))
        except Strange:
            return {}
        return {job: Sighting(job, tag, alive=False)}

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        by_account: dict[str, list[Handle]] = {}
        for job in jobs:
            by_account.setdefault(self.account(job.owner), []).append(job)
        said: dict[JobId, Observation] = {}
        errors: list[PortError] = []
        for account, handles in by_account.items():
            try:
                said |= await self._observe_account(self._logins.at(account), handles)
            except PortError as error:
                errors.append(error)
        if errors and not said:
            raise errors[0]
        return said

    async def _observe_account(self, login: Login, jobs: Sequence[Handle]) -> dict[JobId, Observation]:
        listing, now = await self._queue(login), self.clock.now()
        said = dict(_observations(listing, jobs, now))
        missing = [job for job in jobs if job.job not in said]
        for job in missing:
            said[job.job] = Doubt(DoubtReason.NOT_LISTED, "squeue does not list the job")
        if missing and self._accounting:
            said |= await self._observe_records(login, missing, now)
        return said

    async def _observe_records(self, login: Login, jobs: Sequence[Handle], now: Instant) -> dict[JobId, Observation]:
        """What the accounting says about jobs that the queue does not list: an end is one, a life is out of date."""
        said: dict[JobId, Observation] = {}
        for start in range(0, len(jobs), _CHUNK):
            chunk = [job for job in jobs[start : start + _CHUNK] if is_number(job.job)]
            if not chunk:
                continue
            command = self._commands.accounting(login.account, [job.job for job in chunk])
            try:
                listing = await self._sacct(login, command)
            except PortError:
                listing = None
            for job, what in _observations(listing or Listing(()), chunk, now):
                if isinstance(what, Gone):
                    said[job] = what
                elif isinstance(what, Alive):
                    said[job] = Doubt(
                        DoubtReason.STALE, "the accounting says that it lives, and squeue does not list it"
                    )
        return said

    async def cancel(self, job: Handle) -> Observation:
        login = self._logins.of(job.owner)
        said = await self._details(login, job)
        if not isinstance(said, Alive):
            return said
        await self._told(login, self._commands.cancel(job.job))
        said = await self._details(login, job)
        if isinstance(said, Alive) and said.phase is Phase.RUNNING:
            # A cancelled job is COMPLETING at once. One that still runs has not been told: do not ask, kill (F-S15).
            await self._told(login, self._commands.kill(job.job))
            said = await self._details(login, job)
        return said

    async def _told(self, login: Login, command: Sequence[str]) -> None:
        answer = await login.run(command)
        if answer.status and UNKNOWN_JOB not in answer.err and "already" not in answer.err:
            raise failure(Kind.CANCEL, "scancel", answer.status, answer.err)

    async def _details(self, login: Login, job: Handle) -> Observation:
        """What the controller says about one job now; a job of another tag is not ours (F-S9)."""
        if not is_number(job.job):
            return Doubt(DoubtReason.NOT_LISTED, "this is no id of a Slurm job")
        answer = await login.run(self._commands.details(job.job))
        if answer.status and UNKNOWN_JOB in answer.err:
            return (await self._observe_account(login, [job]))[job.job]
        try:
            row = parse_details(_checked(answer, Kind.QUESTION, "scontrol"))
        except Strange as error:
            raise strange(error) from error
        if row.id != job.job or not row.carries(job.tag):
            return Doubt(DoubtReason.NOT_LISTED, "a job of this number is there, and it is not ours")
        return row.observation(self.clock.now())

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        return await read(self._logins.of(job.owner), self._directory.file(job.tag, name), limit)

    async def remove(self, job: Handle) -> None:
        await remove(self._logins.of(job.owner), self._directory, job.tag)

    async def info(self, owner: Owner) -> SlurmInfo:
        """
        What the form offers to a person: partitions with free nodes, reservations, accounts; with the time of asking.

        Reservations and accounts are empty where the site does not tell them; partitions are always told.
        """
        login, at = self._logins.of(owner), self.clock.now()
        partitions = await self._ask(login, self._commands.partitions(), "sinfo", parse_partitions)
        reservations: tuple[str, ...] = ()
        associations: tuple[Association, ...] = ()
        with contextlib.suppress(PortError):
            reservations = await self._ask(login, self._commands.reservations(), "scontrol", parse_reservations)
        if self._accounting:
            with contextlib.suppress(PortError):
                associations = await self._ask(
                    login, self._commands.associations(login.account), "sacctmgr", parse_associations
                )
        return SlurmInfo(at, partitions, reservations, associations)

    async def load(self, owner: Owner) -> Mapping[str, Load]:
        """See `Measured.load`."""
        partitions = await self._ask(self._logins.of(owner), self._commands.partitions(), "sinfo", parse_partitions)
        return {each.name: Load(each.nodes, each.idle, each.is_up) for each in partitions}

    async def close(self) -> None:
        """Give back connections and threads."""
        await self._logins.close()

    async def _queue(self, login: Login) -> Listing:
        return await self._ask(login, self._commands.queue(login.account), "squeue", parse_queue)

    async def _sacct(self, login: Login, command: Sequence[str]) -> Listing | None:
        """`None` where there is no accounting; that is remembered if the configuration left it open."""
        answer = await login.run(command)
        if answer.status and NO_ACCOUNTING in answer.err and self.config.accounting == "auto":
            self._accounting = False
            return None
        try:
            return parse_accounting(_checked(answer, Kind.QUESTION, "sacct"))
        except Strange as error:
            raise strange(error) from error

    async def _ask(
        self, login: Login, command: Sequence[str], program: str, parse: Callable[[str], _Parsed]
    ) -> _Parsed:
        try:
            return parse(_checked(await login.run(command), Kind.QUESTION, program))
        except Strange as error:
            raise strange(error) from error


def _checked(answer: Answer, kind: Kind, program: str) -> str:
    if answer.status or failed_silently(program, answer.err):
        raise failure(kind, program, answer.status, answer.err)
    return answer.out


def _observations(listing: Listing, jobs: Iterable[Handle], now: Instant) -> Iterable[tuple[JobId, Observation]]:
    """What a listing says about each of our jobs that it holds."""
    index = listing.by_number()
    for job in jobs:
        if is_number(job.job):
            rows = [row for row in index.get(job.job, ()) if row.carries(job.tag)]
            if rows:
                # Of several rows for one job the one that is not over counts.
                row = min(rows, key=lambda row: isinstance(EVIDENCE.get(row.state), EndReason))
                yield job.job, row.observation(now)


def _sightings(listing: Listing, tag: Tag) -> dict[JobId, Sighting]:
    found: dict[JobId, Sighting] = {}
    for row in listing.rows:
        carried = row.tag_like(tag)
        if carried is not None:
            alive = not isinstance(EVIDENCE.get(row.state), EndReason)
            job = JobId(row.id)
            if job not in found or alive:
                found[job] = Sighting(job, carried, alive)
    return found
