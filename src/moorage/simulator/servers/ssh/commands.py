"""
Slurm's commands over the simulated cluster: options, formats, messages and exit codes as in Slurm 22.05.

What is not simulated is refused as Slurm refuses unknown options, never ignored.

Source: the manual pages; messages and formats compared with a real 22.05.8.
"""

import contextlib
import getopt
import itertools
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from attrs import field, frozen

from moorage.simulator.batch import (
    AccountingOff,
    BatchSystem,
    Job,
    JobRequest,
    NodeView,
    Partition,
    PartitionState,
    Refusal,
    Refused,
    Reservation,
    State,
)

from .cluster import Cluster, Work
from .config import Account

VERSION = "22.05.8"


@frozen
class Called:
    """One call of a command: by whom, where, with what."""

    program: str
    arguments: tuple[str, ...]
    account: Account
    directory: Path
    environment: Mapping[str, str]
    stdin: Callable[[], bytes] = field(default=lambda: b"")
    hide_younger_s: float = 0.0
    """A fault: jobs submitted since then are not shown."""


@frozen
class Printed:
    """What a command prints, and its exit code."""

    status: int = 0
    out: str = ""
    err: str = ""


class _Failed(Exception):
    def __init__(self, err: str, status: int = 1) -> None:
        super().__init__(err)
        self.printed = Printed(status, err=err + "\n")


def run(cluster: Cluster, called: Called) -> Printed:
    """Run one of `PROGRAMS`."""
    try:
        return _PROGRAMS[called.program](cluster, called)
    except _Failed as failed:
        return failed.printed
    except getopt.GetoptError as error:
        known = f"option '--{error.opt}'" if len(error.opt) > 1 else f"option -- '{error.opt}'"
        text = (
            f"{called.program}: unrecognized {known}"
            if "not recognized" in error.msg
            else f"{called.program}: {error.msg}"
        )
        status = 255 if called.program == "sbatch" else 1
        return Printed(status, err=f'{text}\nTry "{called.program} --help" for more information\n')


def _options(called: Called, short: str, long: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options by their long or short name without dashes, the last one wins; and operands."""
    found, operands = getopt.gnu_getopt(list(called.arguments), short + "V", [*long, "version"])
    options = {name.lstrip("-"): value for name, value in found}
    return options, operands


def _first(options: Mapping[str, str], *names: str) -> str | None:
    return next((options[name] for name in names if name in options), None)


# sbatch ------------------------------------------------------------------------------------------------------

_SBATCH_SHORT = "J:N:n:c:t:p:A:q:C:o:e:D:Hb:d:w:x:Q"
_SBATCH_LONG = (
    *("parsable", "job-name=", "nodes=", "ntasks=", "ntasks-per-node=", "cpus-per-task=", "mem=", "mem-per-cpu="),
    *("gpus=", "gpus-per-node=", "gres=", "time=", "partition=", "account=", "qos=", "reservation=", "constraint="),
    *("comment=", "output=", "error=", "open-mode=", "chdir=", "requeue", "no-requeue", "exclusive", "hold", "begin="),
    *("export=", "wrap=", "quiet", "signal=", "mail-type=", "mail-user=", "get-user-env", "nodelist=", "exclude="),
)
_LONG_NAMES = {
    **{"J": "job-name", "N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition"},
    **{"A": "account", "q": "qos", "C": "constraint", "o": "output", "e": "error", "D": "chdir", "H": "hold"},
    **{"b": "begin", "Q": "quiet", "w": "nodelist", "x": "exclude"},
}
_FROM_ENVIRONMENT = {
    **{"SBATCH_JOB_NAME": "job-name", "SBATCH_PARTITION": "partition", "SBATCH_ACCOUNT": "account"},
    **{"SBATCH_TIMELIMIT": "time", "SBATCH_QOS": "qos", "SBATCH_RESERVATION": "reservation"},
    **{"SBATCH_COMMENT": "comment", "SBATCH_OUTPUT": "output"},
}
_MESSAGES = {
    Refusal.PARTITION_UNKNOWN: "Invalid partition name specified",
    Refusal.PARTITION_CLOSED: "Required partition not available (inactive or drain)",
    Refusal.ACCOUNT: "Invalid account or account/partition combination specified",
    Refusal.WALLTIME: "Requested time limit is invalid (missing or exceeds some limit)",
    Refusal.NODES: "Requested node configuration is not available",
    Refusal.RESERVATION: "Requested reservation is invalid",
}


def _sbatch(cluster: Cluster, called: Called) -> Printed:
    given, operands = getopt.getopt(list(called.arguments), _SBATCH_SHORT + "V", [*_SBATCH_LONG, "version"])
    command_line = _named(given)
    if "version" in command_line or "V" in command_line:
        return Printed(out=f"slurm-wlm {VERSION}\n")
    text, name = _script(called, command_line, operands)
    environment = {
        option: called.environment[key] for key, option in _FROM_ENVIRONMENT.items() if key in called.environment
    }
    # The command line wins over the environment, and that over the script. Source: sbatch(1).
    options = {**_directives(text), **environment, **command_line}
    directory = called.directory / options.get("chdir", ".")
    request = _request(cluster, called.account, options, name)
    spool = _spooled(cluster.spool, text)
    interpreter = tuple(text.split("\n", 1)[0][2:].split()[:2])
    output = options.get("output", "slurm-%j.out")
    environment_of_job = {**called.environment}
    environment_of_job.pop("SLURM_TIME_FORMAT", None)
    work = Work(
        *(spool, interpreter, tuple(operands[1:]), directory, output, options.get("error", "")),
        append=options.get("open-mode") == "append",
        environment=environment_of_job,
    )
    try:
        number = cluster.submit(request, work)
    except Refused as refused:
        spool.unlink()
        before = ""
        if refused.why is Refusal.PARTITION_UNKNOWN:
            before = f"sbatch: error: invalid partition specified: {request.partition}\n"
        raise _Failed(f"{before}sbatch: error: Batch job submission failed: {_MESSAGES[refused.why]}") from refused
    return Printed(out=f"{number}\n" if "parsable" in options else f"Submitted batch job {number}\n")


def _spooled(spool: Path, text: str) -> Path:
    """A copy of the script, beside those of servers before this one, which jobs may be running."""
    for number in _scripts:
        path = spool / f"script-{number}"
        with contextlib.suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
            file.write(text)
            return path
    raise AssertionError("numbers do not end")


_scripts = itertools.count(1)


def _named(given: Iterable[tuple[str, str]]) -> dict[str, str]:
    options = {}
    for name, value in given:
        bare = name.lstrip("-")
        options[_LONG_NAMES.get(bare, bare) if len(bare) == 1 else bare] = value
    return options


def _script(called: Called, options: Mapping[str, str], operands: Sequence[str]) -> tuple[str, str]:
    """The script's text and the name a job gets from it."""
    if "wrap" in options:
        if operands:
            raise _Failed("sbatch: error: Script arguments not permitted with --wrap option")
        return f"#!/bin/sh\n# This script was created by sbatch --wrap.\n\n{options['wrap']}\n", "wrap"
    if operands:
        path = called.directory / operands[0]
        try:
            text, name = path.read_text(encoding="utf-8", errors="surrogateescape"), path.name
        except OSError as error:
            raise _Failed(f"sbatch: error: Unable to open file {operands[0]}") from error
    else:
        text, name = called.stdin().decode("utf-8", "surrogateescape"), "sbatch"
    if not text:
        raise _Failed("sbatch: error: Batch script is empty!")
    if not text.startswith("#!"):
        raise _Failed(
            "sbatch: error: This does not look like a batch script.  The first\n"
            "sbatch: error: line must start with #! followed by the path to an interpreter.\n"
            "sbatch: error: For instance: #!/bin/sh"
        )
    if "\r\n" in text:
        raise _Failed(
            "sbatch: error: Batch script contains DOS line breaks (\\r\\n)\n"
            "sbatch: error: instead of expected UNIX line breaks (\\n)."
        )
    return text, name


def _directives(text: str) -> dict[str, str]:
    found: list[str] = []
    for line in text.split("\n"):
        if line.startswith("#SBATCH"):
            found += line.removeprefix("#SBATCH").split(" #", 1)[0].split()
        elif line.strip() and not line.startswith("#"):
            break
    given, _ = getopt.getopt(found, _SBATCH_SHORT, list(_SBATCH_LONG))
    return _named(given)


def _request(cluster: Cluster, account: Account, options: Mapping[str, str], name: str) -> JobRequest:
    default = cluster.config.partitions[0].name
    nodes = int(_number(options.get("nodes", "1").split("-")[0], "--nodes"))
    per_node = int(_number(options.get("ntasks-per-node", "1"), "--ntasks-per-node"))
    cores = per_node * int(_number(options.get("cpus-per-task", "1"), "--cpus-per-task"))
    walltime_s = _span_s(options["time"]) if "time" in options else None
    chosen = options.get("account") or next(iter(account.accounts), "")
    if chosen and account.accounts and chosen not in account.accounts:
        raise _Failed(f"sbatch: error: Batch job submission failed: {_MESSAGES[Refusal.ACCOUNT]}")
    if options.get("qos", "normal") != "normal":
        raise _Failed("sbatch: error: Batch job submission failed: Invalid qos specification")
    virtual = _virtual(options.get("comment", ""), options.get("export", ""))
    return JobRequest(
        name=options.get("job-name", name),
        owner=account.name,
        partition=options.get("partition", default),
        nodes=nodes,
        cores_per_node=cores,
        memory_mb=_memory_mb(options.get("mem", "0")),
        exclusive="exclusive" in options,
        features=tuple(word for word in options.get("constraint", "").split("&") if word),
        walltime_ms=None if walltime_s is None else walltime_s * 1000,
        account=chosen,
        comment=options.get("comment", ""),
        requeue="no-requeue" not in options,
        reservation=options.get("reservation"),
        hold="hold" in options,
        runtime_ms=virtual.get("runtime") if cluster.config.execute == "virtual" else None,
        exit_code=virtual.get("exit", 0) if cluster.config.execute == "virtual" else 0,
        # Real processes tell by their end whether they heed a signal.
        term_ms=0 if cluster.config.execute == "virtual" else None,
    )


def _virtual(*texts: str) -> dict[str, int]:
    """A virtual job says how it goes: ``--export=SIM_RUNTIME_MS=5000,SIM_EXIT=3``."""
    found = re.findall(r"SIM_(RUNTIME_MS|EXIT)=([0-9]{1,9})", " ".join(texts))
    return {{"RUNTIME_MS": "runtime", "EXIT": "exit"}[name]: int(value) for name, value in found}


def _number(text: str, option: str) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or int(text) < 1:
        raise _Failed(f'sbatch: error: Invalid numeric value "{text}" for {option}.')
    return int(text)


def _span_s(text: str) -> int | None:
    if text.upper() in ("0", "UNLIMITED", "INFINITE"):
        return None
    found = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)(?::([0-9]+))?(?::([0-9]+))?", text)
    if not found:
        raise _Failed("sbatch: error: Invalid --time specification", 255)
    days, *rest = found.groups()
    first, second, third = (int(part) if part else 0 for part in rest)
    if days is not None:  # days-hours[:minutes[:seconds]]
        return int(days) * 86_400 + first * 3600 + second * 60 + third
    if rest[2] is not None:  # hours:minutes:seconds
        return first * 3600 + second * 60 + third
    return first * 60 + second  # minutes[:seconds]


def _memory_mb(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([KMGT]?)B?", text.upper())
    if not found:
        raise _Failed("sbatch: error: Invalid --mem specification")
    factor = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024 * 1024}[found[2]]
    return int(int(found[1]) * factor)


# squeue ------------------------------------------------------------------------------------------------------

_COMPACT = {
    **{"PENDING": "PD", "CONFIGURING": "CF", "RUNNING": "R", "COMPLETING": "CG", "COMPLETED": "CD", "FAILED": "F"},
    **{"CANCELLED": "CA", "TIMEOUT": "TO", "NODE_FAIL": "NF", "PREEMPTED": "PR", "OUT_OF_MEMORY": "OOM"},
}
_QUEUE_FORMAT = "%.18i %.9P %.8j %.8u %.2t %.10M %.6D %R"
_HEADERS = {
    **{"i": "JOBID", "A": "JOBID", "P": "PARTITION", "j": "NAME", "u": "USER", "t": "ST", "T": "STATE"},
    **{"M": "TIME", "l": "TIME_LIMIT", "L": "TIME_LEFT", "D": "NODES", "R": "NODELIST(REASON)", "r": "REASON"},
    **{"N": "NODELIST", "B": "EXEC_HOST", "S": "START_TIME", "e": "END_TIME", "V": "SUBMIT_TIME", "k": "COMMENT"},
    **{
        "a": "ACCOUNT",
        "q": "QOS",
        "Z": "WORK_DIR",
        "C": "CPUS",
        "F": "ARRAY_JOB_ID",
        "Q": "PRIORITY",
        "m": "MIN_MEMORY",
    },
}


def _squeue(cluster: Cluster, called: Called) -> Printed:
    long = ("noheader", "all", "states=", "user=", "me", "jobs=", "name=", "format=", "partition=", "account=", "sort=")
    options, operands = _options(called, "hat:u:j:n:o:p:A:S:r", (*long, "array"))
    if "version" in options or "V" in options:
        return Printed(out=f"slurm-wlm {VERSION}\n")
    if operands:
        raise _Failed(f"squeue: error: Unrecognized option: {operands[0]}")
    environment = called.environment
    state = _first(options, "t", "states") or environment.get("SQUEUE_STATES", "")
    users = (
        called.account.name if "me" in options else (_first(options, "u", "user") or environment.get("SQUEUE_USERS"))
    )
    partition = _first(options, "p", "partition") or environment.get("SQUEUE_PARTITION")
    names = _first(options, "n", "name") or environment.get("SQUEUE_NAMES")
    known = {account.name for account in cluster.config.everybody()}
    if users and (unknown := [user for user in users.split(",") if user not in known]):
        # With status 0, as the real one. Recorded with 22.05.8.
        raise _Failed(f"squeue: error: Invalid user: {unknown[0]}\n", 0)
    jobs, now = cluster.call(lambda batch, now: (batch.jobs(), now))
    jobs = _shown(called, jobs, now)
    wanted = _first(options, "j", "jobs")
    if wanted is not None:
        numbers = wanted.split(",")
        if len(numbers) == 1 and not any(str(job.id) == numbers[0] for job in jobs):
            raise _Failed("slurm_load_jobs error: Invalid job id specified")
        jobs = tuple(job for job in jobs if str(job.id) in numbers)
    jobs = tuple(
        job
        for job in jobs
        if _wanted_state(job, state)
        and (not users or job.request.owner in users.split(","))
        and (not partition or job.request.partition in partition.split(","))
        and (not names or job.request.name in names.split(","))
    )
    form = _first(options, "o", "format") or environment.get("SQUEUE_FORMAT") or _QUEUE_FORMAT
    order = {State.COMPLETING: 0, State.PENDING: 2}
    by_number = _first(options, "S", "sort") == "i"
    jobs = tuple(sorted(jobs, key=lambda job: (0 if by_number else order.get(job.state, 3), job.id)))
    rows = [_filled(form, lambda letter, job=job: _queue_value(letter, job, now, environment)) for job in jobs]  # type: ignore[misc]
    if "h" not in options and "noheader" not in options:
        rows.insert(0, _filled(form, lambda letter: _HEADERS.get(letter, "")))
    return Printed(out="".join(row + "\n" for row in rows))


def _shown(called: Called, jobs: Sequence[Job], now: int) -> tuple[Job, ...]:
    return tuple(job for job in jobs if now - job.submit_at >= called.hide_younger_s * 1000)


def _wanted_state(job: Job, wanted: str) -> bool:
    words = [word.upper() for word in wanted.split(",") if word]
    if not words:
        return not job.state.is_final
    return "ALL" in words or job.state.value in words or _COMPACT.get(job.state.value) in words


def _filled(form: str, value: Callable[[str], str]) -> str:
    """A format of squeue or sinfo: ``%[[.]size]letter``; a dot aligns to the right, a size also cuts."""

    def one(found: "re.Match[str]") -> str:
        text, size = value(found[3]), int(found[2] or 0)
        if not size:
            return text
        return text[:size].rjust(size) if found[1] else text[:size].ljust(size)

    return re.sub(r"%(\.?)([0-9]{0,4})([A-Za-z])", one, form)


def _queue_value(letter: str, job: Job, now: int, environment: Mapping[str, str]) -> str:
    request = job.request
    started = job.state is not State.PENDING
    reason = _reason(job)
    began = job.start_at if started else None
    ran = 0 if began is None else ((job.end_at or now) - began) // 1000
    left = job.walltime_ms // 1000 - ran
    node_list = nodes_text(job.nodes) if started else ""
    values = {
        **{"i": str(job.id), "A": str(job.id), "F": str(job.id), "P": request.partition, "j": request.name},
        **{"u": request.owner, "t": _COMPACT.get(job.state.value, ""), "T": job.state.value, "M": span(ran)},
        **{"l": span(job.walltime_ms // 1000), "L": span(left), "D": str(request.nodes), "N": node_list},
        **{"R": node_list or f"({reason})", "r": reason, "B": job.nodes[0] if started and job.nodes else "n/a"},
        **{"k": request.comment or "(null)", "a": request.account or "(null)", "q": "normal", "Z": ""},
        **{"C": str(request.nodes * request.cores_per_node), "Q": "1", "m": f"{request.memory_mb}M"},
    }
    if letter in "SeV":
        ends = None if began is None else job.end_at or began + job.walltime_ms
        return moment({"S": began, "e": ends, "V": job.submit_at}[letter], environment)
    return values.get(letter, "")


def _reason(job: Job) -> str:
    if job.state is State.PENDING:
        return job.reason.value
    return {State.FAILED: "NonZeroExitCode", State.TIMEOUT: "TimeLimit", State.NODE_FAIL: "NodeDown"}.get(
        job.state, "None"
    )


def nodes_text(names: Sequence[str]) -> str:
    """``n[1-3,7]`` for nodes whose names differ in the number at their end."""
    parts = [re.fullmatch(r"(.*?)([0-9]+)", name) for name in names]
    if len(names) < 2 or None in parts:
        return ",".join(names)
    prefix = parts[0][1] if parts[0] else ""
    numbers = sorted(int(part[2]) for part in parts if part)
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return f"{prefix}[{','.join(str(r[0]) if len(r) == 1 else f'{r[0]}-{r[-1]}' for r in runs)}]"


def span(seconds: int) -> str:
    """``[days-[hours:]]minutes:seconds`` as squeue writes it."""
    if seconds < 0:
        return "-" + span(-seconds)
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    if days:
        return f"{days}-{hours:02d}:{minutes:02d}:{rest:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def moment(at: int | None, environment: Mapping[str, str], unknown: str = "N/A") -> str:
    if at is None:
        return unknown
    form = environment.get("SLURM_TIME_FORMAT", "standard")
    if form == "%s":
        return str(at // 1000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at // 1000))


# sacct -------------------------------------------------------------------------------------------------------


def _sacct(cluster: Cluster, called: Called) -> Printed:
    long = ("noheader", "parsable", "parsable2", "delimiter=", "allocations", "user=", "jobs=", "name=", "format=")
    more = ("starttime=", "endtime=", "state=", "duplicates", "allusers")
    options, operands = _options(called, "npPXu:j:o:S:E:s:Da", (*long, *more))
    if operands:
        raise _Failed(f"sacct: error: Unknown arguments:\nsacct: error:  {operands[0]}")
    try:
        runs = cluster.call(lambda batch, now: batch.accounting())
    except AccountingOff:
        raise _Failed("Slurm accounting storage is disabled") from None
    if "D" not in options and "duplicates" not in options:
        runs = tuple({run.id: run for run in runs}.values())
    runs = _shown(called, runs, cluster.call(lambda batch, now: now))
    users, jobs = _first(options, "u", "user"), _first(options, "j", "jobs")
    names = options.get("name")
    if jobs is None and "S" not in options and "starttime" not in options:
        today = int(time.mktime((*time.localtime(cluster.clock.now() / 1000)[:3], 0, 0, 0, 0, 0, -1)) * 1000)
        runs = tuple(run for run in runs if (run.end_at or today) >= today)
    runs = tuple(
        run
        for run in runs
        if (not users or run.request.owner in users.split(","))
        and (jobs is None or str(run.id) in jobs.split(","))
        and (not names or run.request.name in names.split(","))
    )
    fields = (_first(options, "o", "format") or "jobid,jobname,partition,account,alloccpus,state,exitcode").split(",")
    rows = []
    for each in runs:
        rows.append([_record_value(name, each, called.environment) for name in fields])
        if "X" not in options and "allocations" not in options and each.state is not State.PENDING:
            rows.append([_step_value(name, each, called.environment) for name in fields])
    if "n" not in options and "noheader" not in options:
        rows.insert(0, list(fields))
    delimiter = options.get("delimiter", "|")
    if "P" in options or "parsable2" in options:
        return Printed(out="".join(delimiter.join(row) + "\n" for row in rows))
    if "p" in options or "parsable" in options:
        return Printed(out="".join(delimiter.join(row) + delimiter + "\n" for row in rows))
    return Printed(out="".join(" ".join(value[:10].rjust(10) for value in row) + " \n" for row in rows))


def _record_value(name: str, job: Job, environment: Mapping[str, str]) -> str:
    request = job.request
    state = job.state.value
    if job.state is State.CANCELLED and job.cancelled_by:
        state = "CANCELLED by 1000"
    values = {
        **{"jobid": str(job.id), "jobidraw": str(job.id), "jobname": request.name, "partition": request.partition},
        **{"account": request.account, "user": request.owner, "state": state, "comment": request.comment},
        **{"exitcode": f"{job.exit_code}:{job.exit_signal}", "nodelist": nodes_text(job.nodes) or "None assigned"},
        **{"alloccpus": str(request.nodes * request.cores_per_node), "nnodes": str(request.nodes), "qos": "normal"},
        **{"submit": moment(job.submit_at, environment), "start": moment(job.start_at, environment, "Unknown")},
        **{"end": moment(job.end_at, environment, "Unknown"), "cluster": "simulated", "restarts": str(job.run)},
    }
    return values.get(name.split("%")[0].lower(), "")


def _step_value(name: str, job: Job, environment: Mapping[str, str]) -> str:
    name = name.lower()
    if name in ("jobid", "jobidraw"):
        return f"{job.id}.batch"
    if name == "jobname":
        return "batch"
    return "" if name in ("partition", "user", "comment", "qos") else _record_value(name, job, environment)


# scancel -----------------------------------------------------------------------------------------------------


def _scancel(cluster: Cluster, called: Called) -> Printed:
    long = ("signal=", "full", "batch", "name=", "user=", "state=", "me", "quiet", "verbose", "partition=")
    options, operands = _options(called, "s:fbn:u:t:Qvp:", long)
    number = _first(options, "s", "signal")
    wanted: list[int] = []
    for operand in operands:
        for word in re.split(r"[,\s]+", operand):
            if not re.fullmatch("[1-9][0-9]{0,17}", word):
                raise _Failed(f"scancel: error: Invalid job id {word}")
            wanted.append(int(word))
    filters = {"name": _first(options, "n", "name"), "user": _first(options, "u", "user")}
    if "me" in options:
        filters["user"] = called.account.name
    if not wanted and not any(filters.values()):
        raise _Failed("scancel: error: No job identification provided")
    errors: list[str] = []

    def do(batch: BatchSystem, now: int) -> None:
        numbers = wanted or [job.id for job in batch.jobs() if not job.state.is_final]
        for each in numbers:
            job = batch.job(each)
            if job is None or job.state.is_final:
                errors.append(f"scancel: error: Kill job error on job id {each}: Invalid job id specified")
            elif filters["name"] not in (None, job.request.name) or filters["user"] not in (None, job.request.owner):
                continue
            elif job.request.owner != called.account.name:
                errors.append(f"scancel: error: Kill job error on job id {each}: Access/permission denied")
            elif number is None or number.upper().removeprefix("SIG") in ("KILL", "9"):
                batch.cancel(each, now, by=called.account.name)

    cluster.call(do)
    # Without a signal, what is over already is no failure. Compared with 22.05.8.
    refused = [line for line in errors if "denied" in line]
    said = errors if number is not None or "v" in options or "verbose" in options else refused
    return Printed(1 if refused or (errors and number is not None) else 0, err="".join(line + "\n" for line in said))


# scontrol ----------------------------------------------------------------------------------------------------


def _scontrol(cluster: Cluster, called: Called) -> Printed:
    options, operands = _options(called, "odaQv", ("oneliner", "details", "all", "quiet", "verbose"))
    one_line = "o" in options or "oneliner" in options
    if not operands:
        raise _Failed("scontrol: error: no command")
    verb, rest = operands[0].lower(), operands[1:]
    if verb == "ping":
        return Printed(out="Slurmctld(primary) at login1 is UP\n")
    if verb == "show" and rest:
        return _show(cluster, called, rest[0].lower(), rest[1:], one_line)
    if verb in ("hold", "release", "requeue") and rest:
        return _change_job(cluster, called, verb, rest[0])
    if verb == "update":
        return _update(cluster, rest)
    raise _Failed(f"invalid keyword: {operands[0]}")


def _show(cluster: Cluster, called: Called, what: str, names: Sequence[str], one_line: bool) -> Printed:
    environment, join = called.environment, " " if one_line else "\n   "

    def text(records: Iterable[Sequence[str]]) -> str:
        return "".join(join.join(record) + "\n" + ("" if one_line else "\n") for record in records)

    if what.startswith("job"):
        jobs, now = cluster.call(lambda batch, now: (batch.jobs(), now))
        jobs = _shown(called, jobs, now)
        chosen = [job for job in jobs if not names or str(job.id) == names[0]]
        if names and not chosen:
            raise _Failed("slurm_load_jobs error: Invalid job id specified")
        return Printed(
            out=text(_job_record(cluster, job, now, environment) for job in chosen) or "No jobs in the system\n"
        )
    if what.startswith("node"):
        nodes = cluster.call(lambda batch, now: batch.nodes())
        found = [node for node in nodes if not names or node.node.name == names[0]]
        if not found:
            raise _Failed(f"Node {names[0]} not found")
        return Printed(out=text(_node_record(node) for node in found))
    if what.startswith("part"):
        partitions = cluster.call(lambda batch, now: batch.partitions())
        wanted = [each for each in partitions if not names or each.name == names[0]]
        if not wanted:
            raise _Failed(f"Partition {names[0]} not found")
        return Printed(out=text(_partition_record(each) for each in wanted))
    if what.startswith("res"):
        windows, now = cluster.call(lambda batch, now: (batch.reservations(), now))
        shown = text(_window_record(each, now, environment) for each in windows)
        return Printed(out=shown or "No reservations in the system\n")
    raise _Failed(f"invalid entity: {what} for keyword:show ")


def _job_record(cluster: Cluster, job: Job, now: int, environment: Mapping[str, str]) -> list[str]:
    request, work = job.request, cluster.works.get(job.id)
    directory = str(work.directory) if work else "/"
    started = job.start_at if job.state is not State.PENDING else None
    ran = 0 if started is None else ((job.end_at or now) - started) // 1000
    ends = None if started is None else job.end_at or started + job.walltime_ms
    return [
        f"JobId={job.id} JobName={request.name}",
        f"UserId={request.owner}(1000) GroupId={request.owner}(1000) MCS_label=N/A",
        f"Priority=1 Nice=0 Account={request.account or '(null)'} QOS=normal",
        f"JobState={job.state.value} Reason={_reason(job)} Dependency=(null)",
        f"Requeue={int(request.requeue)} Restarts={job.run} BatchFlag=1 Reboot=0"
        f" ExitCode={job.exit_code}:{job.exit_signal}",
        f"RunTime={_clock(ran)} TimeLimit={_clock(job.walltime_ms // 1000)} TimeMin=N/A",
        f"SubmitTime={moment(job.submit_at, environment)} EligibleTime={moment(job.eligible_at, environment)}",
        f"StartTime={moment(started, environment, 'Unknown')} EndTime={moment(ends, environment, 'Unknown')}"
        " Deadline=N/A",
        f"Partition={request.partition} AllocNode:Sid=login1:1",
        "ReqNodeList=(null) ExcNodeList=(null)",
        f"NodeList={nodes_text(job.nodes) if started else ''}",
        *([f"BatchHost={job.nodes[0]}"] if started and job.nodes else []),
        f"NumNodes={request.nodes} NumCPUs={request.nodes * request.cores_per_node} NumTasks={request.nodes}"
        " CPUs/Task=1",
        f"Command={work.script if work else '(null)'}",
        f"WorkDir={directory}",
        # With the blank that Slurm 22.05 leaves behind it.
        *([f"Comment={request.comment} "] if request.comment else []),
        f"StdErr={directory}/{work.stderr if work else ''}",
        "StdIn=/dev/null",
        f"StdOut={directory}/{work.stdout if work else ''}",
        "Power=",
    ]


def _clock(seconds: int) -> str:
    days, rest = divmod(seconds, 86_400)
    text = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}-{text}" if days else text


def _node_record(view: NodeView) -> list[str]:
    node, busy = view.node, view.node.cores - view.cores_free
    return [
        f"NodeName={node.name} Arch=x86_64 CPUAlloc={busy} CPUTot={node.cores} CPULoad=0.00",
        f"NodeAddr={node.name} NodeHostName={node.name} Version={VERSION}",
        f"RealMemory={node.memory_mb} AllocMem={node.memory_mb - view.memory_free_mb} Sockets=1 Boards=1",
        f"State={_node_state(view).upper()} ThreadsPerCore=1 Weight=1 Owner=N/A",
    ]


def _partition_record(partition: Partition) -> list[str]:
    limit = "UNLIMITED" if partition.max_walltime_ms is None else _clock(partition.max_walltime_ms // 1000)
    return [
        f"PartitionName={partition.name} AllowGroups=ALL AllowAccounts={','.join(partition.accounts) or 'ALL'}"
        " AllowQos=ALL",
        f"DefaultTime={_clock(partition.default_walltime_ms // 1000)} MaxTime={limit} MaxNodes=UNLIMITED",
        f"Nodes={nodes_text(partition.nodes)} PriorityTier={partition.priority} State={partition.state.value}",
        f"TotalNodes={len(partition.nodes)}",
    ]


def _window_record(window: Reservation, now: int, environment: Mapping[str, str]) -> list[str]:
    state = "ACTIVE" if window.start_at <= now < window.end_at else "INACTIVE"
    return [
        f"ReservationName={window.name} StartTime={moment(window.start_at, environment)}"
        f" EndTime={moment(window.end_at, environment)} Duration={_clock((window.end_at - window.start_at) // 1000)}",
        f"Nodes={nodes_text(window.nodes)} NodeCnt={len(window.nodes)} Features=(null) PartitionName=(null)"
        " Flags=SPEC_NODES",
        f"Users={','.join(window.users) or '(null)'} Groups=(null) Accounts=(null) Licenses=(null) State={state}",
    ]


def _change_job(cluster: Cluster, called: Called, verb: str, operand: str) -> Printed:
    def do(batch: BatchSystem, now: int) -> str:
        """What is wrong, in Slurm's words."""
        number = int(operand) if operand.isdecimal() else 0
        job = batch.job(number)
        if job is None or (verb == "requeue" and job.state.is_final):
            return "Invalid job id specified"
        if job.request.owner != called.account.name:
            return "Access/permission denied"
        if verb == "requeue" and not job.request.requeue:
            return "Requested operation is presently disabled"
        if job.state.is_final:
            return "Job has already finished"
        done = {"hold": batch.hold, "release": batch.release, "requeue": batch.requeue}[verb](number, now)
        return "" if done else "Job is no longer pending execution"

    if wrong := cluster.call(do):
        more = f"\nslurm_suspend error: {wrong}" if verb != "requeue" else ""
        raise _Failed(f"{wrong} for job {operand}{more}")
    return Printed()


def _update(cluster: Cluster, words: Sequence[str]) -> Printed:
    """``scontrol update nodename=n1 state=down|drain|resume`` and ``partitionname=x state=up|down|drain|inactive``."""
    values = dict(word.lower().split("=", 1) for word in words if "=" in word)
    named = dict(word.split("=", 1) for word in words if "=" in word)
    state = values.get("state", "")

    def do(batch: BatchSystem, now: int) -> bool:
        if node := values.get("nodename"):
            verbs = {"down": batch.fail_node, "drain": batch.drain_node, "resume": batch.resume_node}
            if state in verbs and any(view.node.name == node for view in batch.nodes()):
                verbs[state](node, now)
                return True
        elif "partitionname" in values and state.upper() in PartitionState.__members__:
            name = next(value for key, value in named.items() if key.lower() == "partitionname")
            if any(each.name == name for each in batch.partitions()):
                batch.set_partition(name, PartitionState[state.upper()], now)
                return True
        return False

    if not cluster.call(do):
        raise _Failed("slurm_update error: Invalid node name specified")
    return Printed()


# sinfo -------------------------------------------------------------------------------------------------------

_INFO_HEADERS = {
    **{"P": "PARTITION", "R": "PARTITION", "a": "AVAIL", "l": "TIMELIMIT", "L": "DEFAULTTIME", "D": "NODES"},
    **{"F": "NODES(A/I/O/T)", "t": "STATE", "T": "STATE", "N": "NODELIST", "c": "CPUS", "m": "MEMORY", "G": "GRES"},
}
_INFO_FORMAT, _INFO_SUMMARY = "%9P %.5a %.10l %.6D %.6t %N", "%9P %.5a %.10l %.15F %N"


def _sinfo(cluster: Cluster, called: Called) -> Printed:
    options, operands = _options(called, "ho:p:sa", ("noheader", "format=", "partition=", "summarize", "all"))
    if "version" in options or "V" in options:
        return Printed(out=f"slurm-wlm {VERSION}\n")
    if operands:
        raise _Failed(f"sinfo: error: Unrecognized option: {operands[0]}")
    form = _first(options, "o", "format") or (_INFO_SUMMARY if options.keys() & {"s", "summarize"} else _INFO_FORMAT)
    partitions, nodes = cluster.call(lambda batch, now: (batch.partitions(), batch.nodes()))
    chosen = _first(options, "p", "partition")
    rows = []
    for index, partition in enumerate(partitions):
        if chosen and partition.name not in chosen.split(","):
            continue
        views = [view for view in nodes if view.node.name in partition.nodes]
        by_state = any(f"%{letter}" in re.sub(r"%\.?[0-9]*", "%", form) for letter in "tT")
        groups: dict[str, list[NodeView]] = {}
        for view in views:
            groups.setdefault(_node_state(view) if by_state else "", []).append(view)
        rows += [
            _filled(form, lambda letter, p=partition, g=group, s=state, i=index: _info_value(letter, p, g, s, i == 0))  # type: ignore[misc]
            for state, group in groups.items()
        ]
    if "h" not in options and "noheader" not in options:
        rows.insert(0, _filled(form, lambda letter: _INFO_HEADERS.get(letter, "")))
    return Printed(out="".join(row + "\n" for row in rows))


def _node_state(view: NodeView) -> str:
    if not view.up:
        return "down"
    if view.draining:
        return "drng" if view.jobs else "drain"
    if not view.jobs:
        return "idle"
    return "alloc" if view.cores_free == 0 else "mix"


def _info_value(letter: str, partition: Partition, views: Sequence[NodeView], state: str, default: bool) -> str:
    busy = sum(bool(view.jobs) and view.up for view in views)
    other = sum(not view.up or (view.draining and not view.jobs) for view in views)
    limit = partition.max_walltime_ms
    words = {"alloc": "allocated", "mix": "mixed", "drng": "draining", "drain": "drained"}
    cores, memory = [view.node.cores for view in views], [view.node.memory_mb for view in views]
    return {
        **{"P": partition.name + ("*" if default else ""), "R": partition.name},
        **{"a": "up" if partition.state is PartitionState.UP else partition.state.value.lower()},
        **{"l": "infinite" if limit is None else span(limit // 1000), "L": span(partition.default_walltime_ms // 1000)},
        **{"D": str(len(views)), "F": f"{busy}/{len(views) - busy - other}/{other}/{len(views)}"},
        **{"t": state, "T": words.get(state, state), "N": nodes_text([view.node.name for view in views])},
        **{"c": str(min(cores)) + ("+" if len(set(cores)) > 1 else ""), "m": str(min(memory)), "G": "(null)"},
    }.get(letter, "")


def _sacctmgr(cluster: Cluster, called: Called) -> Printed:
    """Only what asks for somebody's associations."""
    if not cluster.config.accounting:
        raise _Failed(
            "You are not running a supported accounting_storage plugin\n"
            "Only 'accounting_storage/slurmdbd' is supported."
        )
    options, operands = _options(called, "nPp", ("noheader", "parsable", "parsable2", "immediate"))
    values = dict(word.lower().split("=", 1) for word in operands if "=" in word)
    if operands[:1] != ["show"] or not operands[1:2] or not operands[1].startswith("assoc"):
        raise _Failed(f"invalid keyword: {' '.join(operands[:2])}")
    known = {account.name: account for account in cluster.config.everybody()}
    owner = known.get(values.get("user", ""))
    fields = values.get("format", "account,partition,qos,defaultqos").split(",")
    rows = [] if options.keys() & {"n", "noheader"} else ["|".join(fields)]
    for name in owner.accounts if owner else ():
        shown = {"account": name, "user": owner.name if owner else "", "qos": "normal", "defaultqos": "normal"}
        rows.append("|".join(shown.get(each, "") for each in fields))
    return Printed(out="".join(row + "\n" for row in rows))


_PROGRAMS: Mapping[str, Callable[[Cluster, Called], Printed]] = {
    "sbatch": _sbatch,
    "squeue": _squeue,
    "scancel": _scancel,
    "scontrol": _scontrol,
    "sinfo": _sinfo,
    "sacct": _sacct,
    "sacctmgr": _sacctmgr,
}
PROGRAMS = frozenset(_PROGRAMS)


def program_of(word: str) -> str | None:
    """The command a word calls, by its name or by its path."""
    name = posixpath.basename(word)
    return name if name in PROGRAMS else None
