"""
What a site keeps for its next start, so that a server that was killed goes on with its jobs.

A file for each job, written anew with every change. On a real site the jobs are the batch system's and the server has a
database; what runs here runs in sessions of its own, which nobody ends when the server is killed.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from .execution import Entry, Work
from .jobs import Job, State

_APART = "queues bearer allocation state directory description start_asked feed raw_state task"
_PLAIN = tuple(member.name for member in attrs.fields(Job) if member.name not in _APART.split())
"""Members of a job that are kept as they are. Its bearer token is not kept: it is a secret."""


@frozen
class Kept:
    """A job as it was, and its run if there was one: `entry` of the batch system, or `work` on a login node."""

    job: Job
    allocation: str | None
    entry: Entry | None
    work: Work | None


@frozen
class Shelf:
    """The files, in a directory of their own, which is there."""

    directory: Path

    def put(self, job: Job, entry: Entry | None, work: Work | None) -> None:
        """Keep a job as it is now."""
        form: dict[str, Any] = {name: getattr(job, name) for name in _PLAIN}
        form |= {
            "queues": job.queues,
            "state": job.state.name,
            "directory": None if job.directory is None else str(job.directory),
            "allocation": None if job.allocation is None else job.allocation.id,
            "start_asked": job.start_asked.is_set(),
            "work": None if work is None else attrs.asdict(work, recurse=False),
        }
        if entry is not None:
            form["entry"] = {
                **{name: getattr(entry, name) for name in ("id", "submitted_at", "started_at", "nodes")},
                "work": attrs.asdict(entry.work, recurse=False),
            }
        file = self.directory / f"{job.id}.json"
        new = file.with_suffix(".new")
        new.write_text(json.dumps(form, default=str), encoding="utf-8")
        os.replace(new, file)

    def drop(self, job_id: str) -> None:
        (self.directory / f"{job_id}.json").unlink(missing_ok=True)

    def clear(self) -> None:
        """Nothing is left to go on with."""
        for file in self.directory.glob("*"):
            file.unlink(missing_ok=True)

    def jobs(self) -> Iterator[Kept]:
        """Every job that was kept, the oldest first. Call it in a running event loop."""
        forms = [json.loads(file.read_text("utf-8")) for file in self.directory.glob("*.json")]
        for form in sorted(forms, key=lambda form: float(form["submitted_at"])):
            job = Job(
                **{name: form[name] for name in _PLAIN},
                queues=None if form["queues"] is None else tuple(form["queues"]),
                bearer=None,
                state=State[form["state"]],
                directory=None if form["directory"] is None else Path(form["directory"]),
            )
            if form["start_asked"]:
                job.start_asked.set()
            entry = form.get("entry")
            if entry is not None:
                entry = Entry(**{**entry, "work": _work(entry["work"])})
            yield Kept(job, form["allocation"], entry, None if form["work"] is None else _work(form["work"]))


def _work(form: dict[str, Any]) -> Work:
    pairs = {name: tuple(map(tuple, form[name])) for name in ("environment", "variables")}
    script = None if form["script"] is None else Path(form["script"])
    return Work(**{**form, **pairs, "directory": Path(form["directory"]), "script": script})
