"""
A host without a batch system, as a `System`: jobs are processes that outlive the login.

Nothing of ours stays on the host but the jobs and their directories. Every call runs a small program there
(`host_program.py`) that looks at the directories and at the processes, and answers with JSON.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from attrs import define, field, frozen

from moorage.core.model import (
    NOTE_LIMIT,
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    JobId,
    Observation,
    Owner,
    Phase,
    SessionSpec,
    Sighting,
    SystemName,
    Tag,
)
from moorage.core.timeouts import Timeouts
from moorage.ports.clock import Clock
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unreachable
from moorage.ports.plans import Plans
from moorage.ports.system import Handle

from .client import Login
from .options import SshHostConfig
from .slurm import Directory, Logins, read, remove, stage, without_job

_GRACE_S = 15
"""From SIGTERM to SIGKILL: the launcher takes ten to end its lab."""

_TIMED_OUT = 124
"""The status of timeout(1) when it had to end the job."""


@define(eq=False)
class HostSystem:
    """One host. Implements the port `System`."""

    name: SystemName
    config: SshHostConfig
    clock: Clock
    plans: Plans
    timeouts: Timeouts
    seed: int = 0
    grace_s: float = _GRACE_S
    _logins: Logins = field(init=False)
    _directory: Directory = field(init=False)
    _program: bytes = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._logins = Logins(self.name, self.config, self.timeouts, self.seed)
        self._directory = Directory.configured(self.config.directory)
        self._program = files(__package__).joinpath("host_program.py").read_bytes()

    def account(self, owner: Owner) -> str:
        return self._logins.account(owner)

    async def submit(self, tag: Tag, spec: SessionSpec) -> JobId:
        rendered = await self.plans.rendered(tag, spec)
        login = self._logins.of(spec.key.owner)
        await stage(login, self._directory, tag, rendered.script, rendered, self.timeouts.call_s)
        try:
            answer = await self._ask(login, "start", tag, seconds=spec.walltime_s, deadline_s=self.timeouts.submit_s)
        except (Unanswered, Malformed):
            raise
        except PortError:
            await without_job(login, self._directory, tag)
            raise
        job = answer.get("job")
        if not isinstance(job, str) or not job:
            raise Malformed(f"{self.name}: the start was answered without the id of a job")
        return JobId(job)

    async def find(self, tag: Tag, owner: Owner) -> tuple[Sighting, ...]:
        found = await self._jobs(self._logins.of(owner), "list", tag)
        return tuple(Sighting(JobId(each.job), Tag(each.tag), each.alive) for each in found if each.job)

    async def observe(self, jobs: Sequence[Handle]) -> Mapping[JobId, Observation]:
        by_account: dict[str, list[Handle]] = {}
        for job in jobs:
            by_account.setdefault(self.account(job.owner), []).append(job)
        said: dict[JobId, Observation] = {}
        errors: list[PortError] = []
        for account, handles in by_account.items():
            try:
                # All tags of a deployment begin alike, and 1,000 directories take a second: no narrower question.
                found = await self._jobs(self._logins.at(account), "list", _common([job.tag for job in handles]))
            except PortError as error:
                errors.append(error)
                continue
            by_job = {(each.job, each.tag): each for each in found}
            for job in handles:
                said[job.job] = self._observation(by_job.get((job.job, job.tag)))
        if errors and not said:
            raise errors[0]
        return said

    async def cancel(self, job: Handle) -> Observation:
        found = await self._jobs(self._logins.of(job.owner), "cancel", job.tag, job.job, self.grace_s)
        said = self._observation(next((each for each in found if (each.job, each.tag) == (job.job, job.tag)), None))
        return Alive(Phase.ENDING, said.node) if isinstance(said, Alive) else said

    async def read(self, job: Handle, name: str, limit: int = 65_536) -> bytes | None:
        return await read(self._logins.of(job.owner), self._directory.file(job.tag, name), limit)

    async def remove(self, job: Handle) -> None:
        login = self._logins.of(job.owner)
        await self._ask(login, "clean", job.tag)
        await remove(login, self._directory, job.tag)

    async def close(self) -> None:
        """Give back connections and threads."""
        await self._logins.close()

    def _observation(self, said: "_Told | None") -> Observation:
        if said is None:
            return Doubt(DoubtReason.NOT_LISTED, "there is no directory of this job")
        if said.alive:
            return Alive(Phase.RUNNING)
        if said.code == _TIMED_OUT and not said.cancelled:
            return Gone(EndReason.WALLTIME, said.code, "the walltime is over")
        if said.code is not None and not said.cancelled:
            reason = EndReason.FINISHED if said.code == 0 else EndReason.FAILED
            return Gone(reason, said.code, f"the process ended with {said.code}")
        if said.cancelled:
            return Gone(EndReason.CANCELLED, said.code)
        if not said.same_boot:
            return Gone(EndReason.NODE_FAILED, None, "the host was started anew")
        return Gone(EndReason.FAILED, None, "the process was killed from outside")

    async def _jobs(self, login: Login, verb: str, tag: Tag, job: str = "", seconds: float = 0) -> "tuple[_Told, ...]":
        answer = await self._ask(login, verb, tag, job, seconds)
        entries = answer.get("jobs")
        if not isinstance(entries, list):
            raise Malformed(f"{self.name}: the host answered without a list of jobs")
        return tuple(_told(self.name, entry) for entry in entries)

    async def _ask(
        self, login: Login, verb: str, tag: Tag, job: str = "", seconds: float = 0, deadline_s: float | None = None
    ) -> Mapping[str, Any]:
        self._directory.of(tag)  # refuses what is no tag
        if job and not all(part.isascii() and part.isalnum() for part in job.split(".")):
            raise Refused(f"{self.name}: this is no id of a process")
        command = (
            *(self.config.python, "-I", "-"),
            *(verb, self._directory.base, tag, job, f"{seconds:g}"),
        )
        answer = await login.run(command, stdin=self._program, deadline_s=deadline_s)
        if answer.status:
            said = " ".join(answer.err.split())[-300:]
            error = Unanswered if verb == "start" else Unreachable
            raise error(f"{self.name}: {verb} ended with status {answer.status}: {said}"[:NOTE_LIMIT])
        try:
            document = json.loads(answer.out)
        except ValueError as error_:
            raise Malformed(f"{self.name}: the host answered no JSON; start-up files must print nothing") from error_
        if not isinstance(document, dict):
            raise Malformed(f"{self.name}: the host answered another JSON document")
        return document


@frozen
class _Told:
    """One job as the program on the host tells it."""

    tag: str
    job: str
    alive: bool
    code: int | None
    cancelled: bool
    same_boot: bool


def _told(name: str, entry: Any) -> _Told:
    try:
        told = _Told(**entry)
    except TypeError as error:
        raise Malformed(f"{name}: the host answered another kind of entry") from error
    fits = isinstance(told.tag, str) and isinstance(told.job, str) and isinstance(told.code, int | None)
    if not fits or not all(isinstance(each, bool) for each in (told.alive, told.cancelled, told.same_boot)):
        raise Malformed(f"{name}: an entry of the host's answer has values of the wrong kind")
    return told


def _common(tags: Sequence[Tag]) -> Tag:
    """What all tags begin with."""
    first, last = min(tags), max(tags)
    length = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return Tag(first[:length])
