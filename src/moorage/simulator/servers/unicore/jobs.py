"""The life of a job on the server: from the accepted description to SUCCESSFUL or FAILED."""

import asyncio
import enum
import math
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from . import files
from .answers import Failure, log_date
from .description import (
    Command,
    Description,
    Failed,
    Import,
    Request,
    check_resources,
    parse,
    without_data,
)
from .execution import Entry, Work
from .script import batch_script, environment, exit_code_file, job_script, slurm_name, suffix

if TYPE_CHECKING:
    from .site import Site


class State(enum.Enum):
    """Internal states with the word REST says for them. Source: UNICORE-EU/unicorex xnjs ActionStatus."""

    CREATED = ("CREATED", "READY")
    PREPROCESSING = ("PREPROCESSING", "STAGINGIN")
    READY = ("READY", "READY")
    PENDING = ("PENDING", "QUEUED")
    QUEUED = ("QUEUED", "QUEUED")
    RUNNING = ("RUNNING", "RUNNING")
    POSTPROCESSING = ("POSTPROCESSING", "STAGINGOUT")
    DONE = ("DONE", "DONE")


# Slurm's words in the server's three that matter; others leave the status as it was.
batch_states: Mapping[str, State] = {
    **dict.fromkeys(("CONFIGURING", "PENDING", "REQUEUE_FED", "REQUEUE_HOLD"), State.QUEUED),
    **dict.fromkeys(("COMPLETING", "RUNNING", "SIGNALING", "STAGE_OUT"), State.RUNNING),
}
longest_log = 2_000


@define(eq=False)
class Job:
    """One job resource. Times are seconds since 1970; `ends_at` is the end of the resource's life."""

    id: str
    owner: str
    uid: str
    group: str
    client: str
    queues: tuple[str, ...] | None
    submitted: dict[str, Any]
    preferences: dict[str, str]
    bearer: str | None
    submitted_at: float
    ends_at: float
    site_id: str
    tags: list[str]
    allocation: "Job | None" = None
    acl: list[str] = field(factory=list)
    state: State = State.CREATED
    successful: bool = False
    message: str = ""
    exit_code: int | None = None
    batch_id: str | None = None
    run_id: str | None = None
    """As the batch system or the login node calls its run; an allocation's `batch_id` is another one at first."""
    queue: str = "N/A"
    kind: str = "n/a"
    name: str = "N/A"
    log: list[str] = field(factory=list)
    directory: Path | None = None
    login_node: str | None = None
    description: Description | None = None
    start_asked: asyncio.Event = field(factory=asyncio.Event)
    feed: "asyncio.Queue[str | None]" = field(factory=asyncio.Queue)
    raw_state: str | None = None
    task: "asyncio.Task[None] | None" = None
    began: dict[str, float] = field(factory=dict)
    took: dict[str, float] = field(factory=dict)

    @property
    def done(self) -> bool:
        return self.state is State.DONE

    @property
    def status(self) -> str:
        """The word REST says."""
        if self.state is State.DONE:
            return "SUCCESSFUL" if self.successful else "FAILED"
        word: str = self.state.value[1]
        return word


class Processor:
    """Moves the jobs of one site on. Source of order and texts: UNICORE-EU/unicorex xnjs JobProcessor."""

    def __init__(self, site: "Site") -> None:
        self._site = site
        self._clock = site.clock
        self._timing = site.config.timing
        self._watched: dict[str, Job] = {}  # by batch id
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, job: Job) -> None:
        self._log(job, "Created with type 'JSON'")
        self._log(
            job,
            f"Client: Name: {job.client}\nXlogin: uid: [{job.uid}], gids: [{job.group}, "
            "addingOSgroups: true]\nRole: user: role from attribute source\nSecurity tokens: none",
        )
        job.task = asyncio.create_task(self._guard(job, self._whole_life(job)), name=f"job {job.id}")

    def start(self, job: Job) -> None:
        """Remembered when it comes early; nothing when it comes late."""
        job.start_asked.set()
        self._site.keep(job)

    def go_on(self, job: Job, entry: Entry | None, work: Work | None) -> None:
        """Move on a job that an earlier process had, from where it was."""
        if job.done:
            return
        if job.directory is not None:
            job.description = parse(job.submitted)
        if job.run_id is not None and job.state in (State.QUEUED, State.RUNNING):
            if entry is not None:
                self._site.batch.go_on(entry)
            elif work is not None:
                self._site.login.go_on(job.run_id, work)
            self._watched[job.run_id] = job
            life = self._rest_of_life(job)
        elif job.state is State.POSTPROCESSING:
            life = self._finish(job, job.description or Description())
        elif job.state is State.PENDING:
            life = self._execute(job)
        else:
            life = self._whole_life(job, staged=job.state is State.READY)
        job.task = asyncio.create_task(self._guard(job, life), name=f"job {job.id}")

    def restart(self, job: Job) -> None:
        """The same id and directory again, without the imports; nothing unless the job is done."""
        if not job.done or job.directory is None or job.description is None:
            return
        job.state, job.successful, job.message = State.PENDING, False, ""
        job.exit_code, job.batch_id, job.run_id, job.raw_state, job.feed = None, None, None, None, asyncio.Queue()
        self._log(job, "RESTARTING job.")
        job.task = asyncio.create_task(self._guard(job, self._execute(job)), name=f"job {job.id}")

    def abort(self, job: Job) -> None:
        """Asynchronous, after the current step; nothing when the job is done."""
        if not job.done:
            self._log(job, "Got 'abort' request.")
            self._later(self._abort(job))

    def destroy(self, job: Job) -> None:
        """The job is out of the books already; its run and its directory follow."""
        self._later(self._destroy(job))

    async def watch(self) -> None:
        """The periodic listing, one for all jobs, whose differences are the only news a job gets."""
        while True:
            await self._clock.sleep(self._timing.listing_s)
            listing = self._site.batch.listing()
            running = set(self._site.login.running())
            for batch_id, job in list(self._watched.items()):
                raw, queue = listing.get(batch_id, (None, ""))
                if batch_id in running:
                    raw = "RUNNING"
                elif queue:
                    job.queue = queue
                if raw is None:
                    del self._watched[batch_id]
                if raw is None or raw != job.raw_state:  # a short job may never have been listed
                    job.raw_state = raw
                    job.feed.put_nowait(raw)

    async def expire(self) -> None:
        """Jobs past their life time go as by DELETE."""
        while True:
            await self._clock.sleep(self._timing.expiry_s)
            now = self._clock.now()
            for job in [job for job in self._site.jobs.values() if job.ends_at <= now]:
                self._site.delete_job(job)

    async def close(self) -> None:
        tasks = [*self._tasks, *(job.task for job in self._site.jobs.values() if job.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the steps -----------------------------------------------------------------------------------

    async def _guard(self, job: Job, life: Any) -> None:
        try:
            await life
        except Failed as failure:
            await self._end(job, False, str(failure))
        except (OSError, RuntimeError) as error:  # the directory is full or gone, the script cannot be started
            text = f"Processing failed: eu.unicore.xnjs.ems.ExecutionException: {error}"
            await self._end(job, False, f"{text} (Command execution on TSI reported an error)")

    async def _rest_of_life(self, job: Job) -> None:
        """Of a job that has been submitted."""
        assert job.description is not None
        await self._follow(job, job.description)
        await self._read_exit_code(job, job.description)
        await self._finish(job, job.description)

    async def _whole_life(self, job: Job, staged: bool = False) -> None:
        await self._clock.sleep(self._timing.directory_s)
        await self._stuck(job)
        self._make_directory(job)
        description = parse(job.submitted)
        job.description, job.kind = description, "BATCH" if description.kind == "RAW" else description.kind
        job.name = description.name
        if not job.submitted:
            self._log(job, "Empty job description, nothing to do.")
            await self._end(job, True, "")
            return
        if job.allocation is not None:
            job.kind = "ON_LOGIN_NODE"
        job.login_node = self._choose_login_node(description)
        if description.imports and not staged:
            await self._stage_in(job, description)
        job.submitted = without_data(job.submitted)
        self._enter(job, State.READY)
        await self._tell(job)
        await self._stuck(job)
        if description.waits_for_start:
            await job.start_asked.wait()
        await self._wait_not_before(description)
        await self._clock.sleep(self._timing.step_s)
        await self._execute(job)

    def _make_directory(self, job: Job) -> None:
        directory = self._site.job_directory(job)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o700)
        except OSError as error:
            raise Failed(
                "Processing failed: eu.unicore.xnjs.ems.ExecutionException: Could not create job working "
                f"directory <{directory}/> on TSI <{self._site.config.login_nodes[0]}>! TSI reply: "
                f"TSI_FAILED: {error.strerror} (Command execution on TSI reported an error)"
            ) from error
        job.directory = directory
        self._log(job, f"Created job directory <{directory}/>")

    def _choose_login_node(self, description: Description) -> str:
        wanted = (description.login_node or "*").removeprefix("any:") if description.login_node else "*"
        if description.login_node and description.login_node.startswith("any:"):
            wanted = "*"
        for node in self._site.config.login_nodes:
            if fnmatch(node, wanted):
                return node
        raise Failed(
            "Processing failed: eu.unicore.xnjs.ems.ExecutionException: No TSI is configured at "
            f"'{description.login_node}'"
        )

    async def _stage_in(self, job: Job, description: Description) -> None:
        self._enter(job, State.PREPROCESSING, "Status set to PREPROCESSING (staging in).")
        await self._tell(job)
        with self._timed(job, "stage-in"):
            await self._stuck(job)
            await self._clock.sleep(self._timing.staging_s)
            self._log(job, "Stage in log:")
            for item in description.imports:
                await self._import_one(job, item)
        self._log(job, "Stage in is DONE.")

    async def _import_one(self, job: Job, item: Import) -> None:
        assert job.directory is not None
        self._log(job, f"Started filetransfer [{item.source} -> {item.target}]")
        try:
            self._site.faults.check_staging()
            data = item.data
            if data is None or not item.source.startswith("inline:"):
                data = await self._site.fetch(item.source, job.uid, job.owner)
            _write_import(job.directory, item, data, job.description.umask if job.description else 0o027)
        except (Failure, OSError, ValueError) as error:
            if item.fail_on_error:
                reason = error.message if isinstance(error, Failure) else str(error)
                raise Failed(
                    f"Staging in failed. Reason: Filetransfer FAILED: [{item.source} -> {item.target}] "
                    f"error message: {reason}"
                ) from error
            self._log(job, f"Filetransfer FAILED (ignored): [{item.source} -> {item.target}]")

    async def _wait_not_before(self, description: Description) -> None:
        if description.not_before is None:
            return
        moment = self._site.parse_moment(description.not_before)
        if moment is None:
            raise Failed(
                "Processing failed: java.lang.IllegalArgumentException: Could not parse date "
                f"'{description.not_before[:100]}'"
            )
        await self._clock.sleep(max(0.0, moment - self._clock.now()))

    async def _execute(self, job: Job) -> None:
        description = job.description
        assert description is not None
        assert job.directory is not None
        self._enter(job, State.PENDING)
        await self._clock.sleep(self._timing.step_s)
        if description.pre is not None and description.pre.on_login_node:
            with self._timed(job, "preCommand"):
                await self._login_command(job, description.pre, "Pre", 0)
        if description.executes:
            await self._submit(job, description)
            await self._follow(job, description)
            await self._read_exit_code(job, description)
        await self._finish(job, description)

    async def _submit(self, job: Job, description: Description) -> None:
        on_login_node = job.kind == "ON_LOGIN_NODE" and self._site.config.login_nodes_allowed
        if on_login_node:
            job.queue = "N/A"
            work = self._work(job, description, None)
            node = job.login_node or self._site.config.login_nodes[0]
            self._log(job, f"Execution on login node, requested node: {node}")
            job.batch_id = await self._site.login.submit(work, node)
            self._log(job, f"Submitted to TSI as [{job.uid} NONE] with PID={job.batch_id.split('_')[-1]}")
            self._watched[job.batch_id] = job
            job.run_id, job.raw_state = job.batch_id, "RUNNING"
            await self._run_seen(job)
            return
        request = check_resources(description, self._site.config, job.queues)
        asked = ", ".join(f"{key}={value}" for key, value in request.values.items())
        self._log(job, f"Requesting resources: [{asked}]")
        batch_id = await self._sbatch(job, description, request)
        self._log(job, "TSI reply: submission OK.")
        self._log(job, f"Submitted to TSI as [{job.uid} NONE] with BSSID={batch_id}")
        job.queue = request.partition.name
        self._watched[batch_id] = job
        job.run_id = batch_id
        if job.kind == "ALLOCATE":
            job.batch_id = f"INTERACTIVE_{job.login_node}_{4_000 + int(batch_id) % 10_000}"
        else:
            job.batch_id = batch_id
        self._enter(job, State.QUEUED, "")
        await self._tell(job)
        job.began["queued"] = self._clock.now()

    async def _sbatch(self, job: Job, description: Description, request: Request) -> str:
        work = self._work(job, description, request)
        for attempt in (1, 2, 3):
            try:
                return await self._site.batch.submit(work)
            except RuntimeError as error:
                text = "TSI_FAILED: Command 'sbatch ./bss_submit_XXXXXX' failed with code 1: " + str(error).replace(
                    "\n", ":"
                )
                self._log(job, f"Submit attempt {attempt} (of 3) failed: {text}")
                await self._clock.sleep(self._timing.submit_retry_s)
        raise Failed(
            f"Processing failed: eu.unicore.xnjs.ems.ExecutionException: {text} "
            "(Command execution on TSI reported an error)"
        )

    def _work(self, job: Job, description: Description, request: Request | None) -> Work:
        """Write the job's scripts into its directory and say how to run them."""
        directory = job.directory
        assert directory is not None
        job_file = f"UNICORE_Job_{suffix()}"
        holder = job.allocation.batch_id if job.allocation and job.allocation.batch_id else ""
        text = job_script(description, self._site.config, request, directory, holder)
        self._log(job, f"Command is: {text}")
        script: Path | None = directory / job_file
        if job.kind == "ALLOCATE":
            (directory / "UNICORE_ALLOCATION_ID").write_text("")
            script = None
        if script is not None:
            (directory / exit_code_file).unlink(missing_ok=True)
            _write_script(script, text, description.umask)
        if request is not None:
            batch = batch_script(description, self._site.config, request, directory, job_file)
            _write_script(directory / f"bss_submit_{suffix()}", batch, description.umask)
        return Work(
            job_id=job.id,
            user=job.uid,
            directory=directory,
            script=script,
            name=slurm_name(description.name),
            partition=request.partition.name if request else "",
            nodes=request.number("Nodes", 1) if request else 1,
            cpus=request.number("CPUsPerNode", 1) if request else 1,
            runtime_s=request.number("Runtime", 3600) if request else math.inf,
            account=request.values.get("Project", "") if request else "",
            stdout=description.stdout,
            stderr=description.stderr,
            environment=tuple(environment(request, directory).items()),
            variables=description.environment,
        )

    async def _follow(self, job: Job, description: Description) -> None:
        """Until the run is gone from the listing."""
        while (raw := await job.feed.get()) is not None:
            state = batch_states.get(raw)
            if description.notify and any(p.fullmatch(raw) for p in description.notify.batch):
                await self._site.notifier.batch_state(job, raw)
            if state is State.RUNNING and job.state is not State.RUNNING:
                if job.kind == "ALLOCATE":
                    self._grant(job)
                await self._run_seen(job)
            elif state is State.QUEUED and job.state is State.RUNNING:
                self._enter(job, State.QUEUED, "")  # requeued by the batch system
        now = self._clock.now()
        if "main" in job.began:
            job.took["main"] = now - job.began["main"]

    def _grant(self, job: Job) -> None:
        """An allocation has its nodes: the id changes to the batch system's."""
        job.batch_id = next(key for key, value in self._watched.items() if value is job)
        if job.directory is not None:
            (job.directory / "UNICORE_ALLOCATION_ID").write_text(f"{job.batch_id}\n")

    async def _run_seen(self, job: Job) -> None:
        now = self._clock.now()
        if "queued" in job.began:
            job.took["queued"] = now - job.began["queued"]
        job.began["main"] = now
        self._enter(job, State.RUNNING, "")
        await self._tell(job)

    async def _read_exit_code(self, job: Job, description: Description) -> None:
        """
        Gone from the listing with an exit code file is an ordinary end. Without one the server waits, still
        saying RUNNING, for two grace times, each rounded up to a listing interval.
        """
        assert job.directory is not None
        code = _exit_code(job.directory)
        for grace_s in (self._timing.vanished_s, self._timing.filesystem_s):
            if code is not None:
                break
            listings = math.ceil(grace_s / self._timing.listing_s)
            await self._clock.sleep(listings * self._timing.listing_s)
            code = _exit_code(job.directory)
        if code is None:
            text = (
                f"Execution was not completed (no exit code file found), please check standard error file "
                f"<{description.stderr}>"
                if job.kind == "ON_LOGIN_NODE"
                else "Job did not complete normally on BSS, please check standard error file and job log "
                "for more information."
            )
            self._log(job, f"Result: Failed: {text}")
            raise Failed(f"Failed: {text}")
        job.exit_code = code
        self._log(job, f"Exit code {code}")
        self._log(job, "Job completed on BSS.")

    async def _finish(self, job: Job, description: Description) -> None:
        self._enter(job, State.POSTPROCESSING, "")
        await self._tell(job)
        await self._clock.sleep(self._timing.step_s)
        if job.exit_code not in (None, 0) and not description.ignore_exit_code:
            raise Failed(
                f"User application exited with non-zero exit code: <{job.exit_code}>. More information might "
                f"be available in the job's working directory '{job.directory}/'"
            )
        if description.post is not None and description.post.on_login_node:
            with self._timed(job, "postCommand"):
                await self._login_command(job, description.post, "Post", 0)
        with self._timed(job, "stage-out"):
            for export in description.exports:
                try:
                    await self._site.export(job, export.source, export.target)
                except (Failure, OSError, ValueError) as error:
                    if export.fail_on_error:
                        reason = error.message if isinstance(error, Failure) else str(error)
                        raise Failed(f"Stage-out failed: [{export.source} -> {export.target}] {reason}") from error
        await self._end(job, True, "")

    async def _login_command(self, job: Job, command: Command, which: str, number: int) -> None:
        assert job.directory is not None
        self._log(job, f"Launched {which.lower()} command <{command.text}>")
        directory = job.directory / f".UNICORE_{which.upper()}_{number}"
        directory.mkdir(exist_ok=True)
        script = directory / f"UNICORE_Job_{suffix()}"
        variables = "".join(f'{k}="{v}"; export {k}\n' for k, v in (job.description or Description()).environment)
        _write_script(
            script,
            f'{self._site.config.script_header}\n{variables}cd "{job.directory}"\n(\n{command.text}\n)\n'
            f'echo $? > "{directory}/{exit_code_file}"\n',
            0o077,
        )
        work = Work(job.id, job.uid, directory, script, runtime_s=math.inf)
        node = job.login_node or self._site.config.login_nodes[0]
        run_id = await self._site.login.submit(work, node)
        try:
            await self._clock.sleep(self._timing.precommand_s)
            while run_id in self._site.login.running():
                await self._clock.sleep(self._timing.listing_s)
        except asyncio.CancelledError:
            await self._site.login.cancel(run_id)
            raise
        code = _exit_code(directory)
        if code != 0 and not command.ignore_exit_code:
            raise Failed(
                f"{which}-command(s) failed: [Command exited with non-zero exit code: <{code}>. More "
                f"information might be available in '{directory}/']"
            )

    async def _abort(self, job: Job) -> None:
        await self._clock.sleep(self._timing.step_s)
        await self._stop(job)
        if job.batch_id is None:
            self._log(
                job,
                "Could not abort action on BSS: eu.unicore.xnjs.ems.ExecutionException: Can't abort: no "
                "batch system ID.",
            )
        if not job.done:
            await self._end(job, False, "Job aborted.")

    async def _stop(self, job: Job) -> None:
        """True afterwards: nothing of the job runs and nothing moves it on."""
        if job.task is not None and not job.task.done():
            job.task.cancel()
            await asyncio.wait([job.task])
        for batch_id in [key for key, value in self._watched.items() if value is job]:
            del self._watched[batch_id]
            await self._site.batch.cancel(batch_id)
            await self._site.login.cancel(batch_id)
        # Missing from the books but still running: between two listings, or in a grace time.
        if job.batch_id is not None:
            await self._site.batch.cancel(job.batch_id)
            await self._site.login.cancel(job.batch_id)

    async def _destroy(self, job: Job) -> None:
        await self._clock.sleep(self._timing.step_s)
        await self._stop(job)
        if job.directory is not None:
            await asyncio.to_thread(files.remove, job.directory.parent, job.directory.name)

    async def _end(self, job: Job, successful: bool, message: str) -> None:
        job.successful, job.message = successful, message
        self._enter(job, State.DONE, "" if successful else "Status set to DONE - failure.")
        if successful:
            self._log(job, "End of processing - successful.")
        elif message:
            self._log(job, message)
        total = self._clock.now() - job.submitted_at
        job.took["total"] = total
        self._log(
            job,
            f"Total: {total:.0f} sec., Stage-in: {job.took.get('stage-in', 0):.0f} sec., "
            f"Queued: {job.took.get('queued', 0):.0f} sec., Main: {job.took.get('main', 0):.0f} sec., "
            f"Stage-out: {job.took.get('stage-out', 0):.0f} sec.",
        )
        await self._tell(job)

    # --- small things --------------------------------------------------------------------------------

    def _enter(self, job: Job, state: State, text: str | None = None) -> None:
        job.state = state
        if text is None:
            text = f"Status set to {state.value[0]}."
        if text:
            self._log(job, text)
        self._site.keep(job)

    async def _tell(self, job: Job) -> None:
        notify = job.description.notify if job.description else None
        if notify is not None and job.status in notify.status:
            await self._site.notifier.status(job)

    async def _stuck(self, job: Job) -> None:
        """Fault F-U18: the job never leaves the state it is in."""
        if self._site.faults.sticks(job.status):
            await asyncio.Event().wait()

    def _log(self, job: Job, text: str) -> None:
        if len(job.log) < longest_log:
            job.log.append(f"{log_date(int(self._clock.now()))}: {text}")

    def _later(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _timed(self, job: Job, what: str) -> "_Timed":
        return _Timed(self._clock.now, job, what)


class _Timed:
    def __init__(self, now: Any, job: Job, what: str) -> None:
        self._now, self._job, self._what = now, job, what

    def __enter__(self) -> None:
        self._since = self._now()

    def __exit__(self, *exc: object) -> None:
        self._job.took[self._what] = self._now() - self._since


def consumed(job: Job) -> dict[str, str]:
    keys = ("total", "stage-in", "preCommand", "queued", "main", "postCommand", "stage-out")
    return {key: f"{job.took[key]:.0f}" if key in job.took else "N/A" for key in keys}


def _exit_code(directory: Path) -> int | None:
    try:
        return int((directory / exit_code_file).read_text()[:20])
    except (OSError, ValueError):
        return None


def _write_script(path: Path, text: str, umask: int) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    path.chmod(0o777 & ~umask | 0o700)


def _write_import(directory: Path, item: Import, data: bytes, umask: int) -> None:
    path = files.inside(directory, files.normal(item.target))
    path.parent.mkdir(parents=True, exist_ok=True)
    if item.mode == "nooverwrite" and path.exists():
        raise ValueError("File exists")
    with open(path, "ab" if item.mode == "append" else "wb") as file:
        file.write(data)
    mode = files.parse_permissions(item.permissions, 0) if item.permissions else None
    path.chmod(0o666 & ~umask if mode is None else mode)
