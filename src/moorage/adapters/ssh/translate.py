"""
Slurm's words and ours: commands of a fixed form, strict parsers of what they print, one table of all states.

Everything here is pure. Commands are lists of constants, of numbers, and of values with a closed grammar (tags,
accounts, paths from the configuration); free text of people is in files only. What does not fit a parser is never
guessed at: a whole answer of a wrong form is `Strange`, one wrong row is counted and left out.

Source: manual pages of sbatch, squeue, sacct, scontrol, sinfo, scancel, sacctmgr (20.11 to 24.11); recorded answers in
tests/recorded/slurm.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum

from attrs import frozen

from moorage.core.model import (
    NOTE_LIMIT,
    Alive,
    Doubt,
    DoubtReason,
    EndReason,
    Gone,
    Instant,
    JobId,
    Observation,
    Phase,
    Tag,
)
from moorage.core.plan import SCRIPT_NAME
from moorage.ports.errors import Malformed, Overloaded, PortError, Refused, Unanswered, Unreachable


class Strange(ValueError):
    """An answer that has not the form it was asked for. The text describes it and quotes little."""


# The states --------------------------------------------------------------------------------------------------

EVIDENCE: Mapping[str, Phase | EndReason | DoubtReason] = {
    # Not started, or put back: the queue's clock runs.
    "PENDING": Phase.PENDING,
    "REQUEUED": Phase.PENDING,
    "REQUEUE_FED": Phase.PENDING,
    "REQUEUE_HOLD": Phase.PENDING,
    "RESV_DEL_HOLD": Phase.PENDING,
    "SPECIAL_EXIT": Phase.PENDING,
    # Nodes are given: the boot clock runs, so that a job that gets ready for ever is given up (F-S6).
    "CONFIGURING": Phase.RUNNING,
    "POWER_UP_NODE": Phase.RUNNING,
    "RUNNING": Phase.RUNNING,
    "RESIZING": Phase.RUNNING,
    "SIGNALING": Phase.RUNNING,
    "EXPEDITING": Phase.RUNNING,
    "SUSPENDED": Phase.RUNNING,
    "STOPPED": Phase.RUNNING,
    # Neither running nor over: processes, an epilog or a stage-out may still be there (F-S7).
    "COMPLETING": Phase.ENDING,
    "STAGE_OUT": Phase.ENDING,
    # Over.
    "COMPLETED": EndReason.FINISHED,
    "FAILED": EndReason.FAILED,
    "LAUNCH_FAILED": EndReason.FAILED,
    "RECONFIG_FAIL": EndReason.FAILED,
    "CANCELLED": EndReason.CANCELLED,
    "TIMEOUT": EndReason.WALLTIME,
    "DEADLINE": EndReason.WALLTIME,
    "PREEMPTED": EndReason.PREEMPTED,
    "NODE_FAIL": EndReason.NODE_FAILED,
    "BOOT_FAIL": EndReason.NODE_FAILED,
    "OUT_OF_MEMORY": EndReason.OUT_OF_MEMORY,
    # Another cluster of the federation has it, or the record is being changed: nothing about our job.
    "REVOKED": DoubtReason.STALE,
    "UPDATE_DB": DoubtReason.STALE,
}
"""
What each state of a job is evidence of. A word that is not here is doubt.

Source: squeue(1) and sacct(1), "JOB STATE CODES", 20.11 to 24.11.
"""

REASONS: Mapping[str, str] = {
    "JobHeldUser": "the job is held by its owner",
    "JobHeldAdmin": "the job is held by an administrator",
    "Dependency": "the job waits for another one",
    "BeginTime": "the earliest start is in the future",
    "Reservation": "the job waits for its reservation",
    "ReservationDeleted": "the reservation of the job was deleted",
    "InvalidAccount": "the account of the job is not valid",
    "InvalidQOS": "the quality of service of the job is not valid",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionTimeLimit": "the partition does not allow such a time",
    "ReqNodeNotAvail": "nodes that the job needs are not available",
    "Resources": "the job waits for nodes",
    "Priority": "jobs of higher priority go first",
    "QOSMaxJobsPerUserLimit": "the limit of running jobs per user is reached",
    "AssocMaxJobsLimit": "the limit of running jobs of the account is reached",
    "AssocGrpCPUMinutesLimit": "the budget of the account is used up",
    "AssocGrpBillingMinutes": "the budget of the account is used up",
    "launch failed requeued held": "the start failed; the job was put back and is held",
}
"""Sentences for reasons of waiting that people meet. Source: squeue(1), "JOB REASON CODES"."""


def evidence(
    state: str,
    *,
    node: str | None = None,
    ends_at: Instant | None = None,
    reason: str = "",
    exit_code: int | None = None,
) -> Observation:
    """What one entry of a listing says about a job. `state` is the word without what follows it."""
    what = EVIDENCE.get(state)
    if what is None:
        return Doubt(DoubtReason.MALFORMED, f"the state is {_quoted(state)}, which is not known")
    if isinstance(what, DoubtReason):
        return Doubt(what, f"the state is {state}")
    note = _note(state, reason)
    if isinstance(what, EndReason):
        return Gone(what, exit_code, note)
    started = what is not Phase.PENDING
    return Alive(what, node if started else None, ends_at if started else None, note)


def _note(state: str, reason: str) -> str:
    word = reason.split(",", 1)[0].strip("() ")
    if word in ("", "None", "(null)", "NonZeroExitCode"):
        return "" if state == "RUNNING" else state
    sentence = REASONS.get(word)
    if sentence and isinstance(EVIDENCE[state], EndReason):
        return state  # why it waited before it ended
    return f"{state}: {sentence} ({word})" if sentence else f"{state} ({_printable(reason)[:200]})"


# Commands ----------------------------------------------------------------------------------------------------

_US, _RS = "\x1f", "\x1e"
"""Between fields and after rows: names of jobs may hold blanks, bars and line ends, but hardly these."""

_QUEUE_FIELDS = ("%i", "%T", "%u", "%P", "%L", "%B", "%r", "%k", "%j")
_ACCOUNTING_FIELDS = ("JobID", "State", "ExitCode", "User", "NodeList", "Comment", "JobName")
_PARTITION_FIELDS = ("%R", "%a", "%l", "%L", "%F", "%c", "%m", "%G")

# People set such variables for themselves, and they would hide jobs from us. Source: squeue(1), "ENVIRONMENT".
_FILTERS = ("STATES", "PARTITION", "ACCOUNT", "QOS", "USERS", "NAMES", "LICENSES", "SORT", "ARRAY")
_QUIET = (
    "env",
    *(part for name in _FILTERS for part in ("-u", f"SQUEUE_{name}")),
    *("-u", "SINFO_PARTITION", "-u", "SLURM_TIME_FORMAT", "LC_ALL=C"),
)

_DIRECTIVE_VARIABLES = {
    "job-name": "SBATCH_JOB_NAME",
    "comment": "SBATCH_COMMENT",
    "cpus-per-task": "SBATCH_CPUS_PER_TASK",
    "mem": "SBATCH_MEM_PER_NODE",
    "gpus-per-node": "SBATCH_GPUS_PER_NODE",
    "time": "SBATCH_TIMELIMIT",
    "account": "SBATCH_ACCOUNT",
    "partition": "SBATCH_PARTITION",
    "qos": "SBATCH_QOS",
    "reservation": "SBATCH_RESERVATION",
    "requeue": "SBATCH_REQUEUE",
    "no-requeue": "SBATCH_NO_REQUEUE",
}
"""Variables that would win over directives in the script. Source: sbatch(1), "INPUT ENVIRONMENT VARIABLES"."""

OUTPUT_NAME, ERROR_NAME = "stdout", "stderr"
"""What the script prints before it becomes the launcher, and what the batch system says about its end."""


@frozen
class Commands:
    """
    The command lines, as argument lists.

    Args:
        prefix: Directory of Slurm's programs with a slash at its end, or empty: they are on the account's PATH.
    """

    prefix: str = ""

    def submit(self, directory: str, directives: Iterable[tuple[str, str]]) -> tuple[str, ...]:
        """Hand in the script of a job directory. The language of the job stays that of the account."""
        clashes = [_DIRECTIVE_VARIABLES[name] for name, _ in directives if name in _DIRECTIVE_VARIABLES]
        return (
            "env",
            *(
                part
                for name in (*clashes, "SBATCH_ARRAY_INX", "SBATCH_WAIT", "SBATCH_CLUSTERS")
                for part in ("-u", name)
            ),
            f"{self.prefix}sbatch",
            "--parsable",
            f"--chdir={directory}",
            f"--output={OUTPUT_NAME}",
            f"--error={ERROR_NAME}",
            "--open-mode=append",
            f"{directory}/{SCRIPT_NAME}",
        )

    def queue(self, account: str) -> tuple[str, ...]:
        """All jobs of an account, also those that ended a short time ago."""
        form = _US.join(_QUEUE_FIELDS) + _RS
        return (
            *_QUIET,
            f"{self.prefix}squeue",
            "--noheader",
            "--all",
            "--states=all",
            f"--user={account}",
            f"--format={form}",
        )

    def accounting(self, account: str, jobs: Sequence[str]) -> tuple[str, ...]:
        """The records of some jobs. Without a time window, or sacct looks at today only."""
        return (*self._sacct(account), f"--jobs={','.join(jobs)}")

    def accounting_by_name(self, account: str, tag: Tag, days: int) -> tuple[str, ...]:
        return (*self._sacct(account), f"--name={tag}", f"--starttime=now-{days}days")

    def _sacct(self, account: str) -> tuple[str, ...]:
        wanted = f"--format={','.join(_ACCOUNTING_FIELDS)}"
        shape = ("--noheader", "--parsable2", f"--delimiter={_US}", "--allocations")
        return (*_QUIET, f"{self.prefix}sacct", *shape, f"--user={account}", wanted)

    def details(self, number: str) -> tuple[str, ...]:
        return (*_QUIET, f"{self.prefix}scontrol", "--oneliner", "show", "job", number)

    def cancel(self, number: str) -> tuple[str, ...]:
        return (*_QUIET, f"{self.prefix}scancel", number)

    def kill(self, number: str) -> tuple[str, ...]:
        """Without asking the processes: for a job that a plain cancel left running."""
        return (*_QUIET, f"{self.prefix}scancel", "--signal=KILL", "--full", number)

    def partitions(self) -> tuple[str, ...]:
        return (*_QUIET, f"{self.prefix}sinfo", "--noheader", f"--format={_US.join(_PARTITION_FIELDS)}{_RS}")

    def reservations(self) -> tuple[str, ...]:
        return (*_QUIET, f"{self.prefix}scontrol", "--oneliner", "show", "reservation")

    def associations(self, account: str) -> tuple[str, ...]:
        wanted = "format=Account,Partition,QOS,DefaultQOS"
        return (
            *_QUIET,
            f"{self.prefix}sacctmgr",
            "--noheader",
            "--parsable2",
            "show",
            "associations",
            f"user={account}",
            wanted,
        )


def shell_line(command: Sequence[str]) -> str:
    """The line for the account's shell, whichever it is: every word is one literal."""
    return " ".join(shlex.quote(word) for word in command)


# Answers -----------------------------------------------------------------------------------------------------

_NUMBER = re.compile(r"[1-9][0-9]{0,18}", re.ASCII)
_SUBMITTED = re.compile(r"([1-9][0-9]{0,18})(;[A-Za-z0-9_.-]{1,64})?\n?", re.ASCII)
_ANY_ID = re.compile(r"[1-9][0-9]{0,18}(?:[_+.][A-Za-z0-9_\[\],%:*+.-]{1,4000})?", re.ASCII)
_STATE = re.compile(r"[A-Z][A-Z_]{1,30}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}", re.ASCII)
_EXIT = re.compile(r"([0-9]{1,10}):([0-9]{1,3})", re.ASCII)


def is_number(job: str) -> bool:
    """Whether this can be the id of one job of ours: neither an element of an array nor a part of another job."""
    return _NUMBER.fullmatch(job) is not None


def parse_submitted(text: str) -> JobId:
    """
    The number that ``sbatch --parsable`` printed. A federation adds ``;cluster``, which no other listing shows.

    Raises:
        Strange: Anything else was printed, before, after or instead. Nobody knows whether there is a job.
    """
    if not (found := _SUBMITTED.fullmatch(text)):
        raise Strange(f"sbatch printed {_quoted(text)} instead of the number of a job")
    return JobId(found[1])


@frozen
class Row:
    """One job as a listing shows it. `left_s` is `None` without a limit or before the start."""

    id: str
    state: str
    user: str
    comment: str
    name: str
    partition: str = ""
    left_s: int | None = None
    host: str | None = None
    reason: str = ""
    exit_code: int | None = None

    def carries(self, tag: Tag) -> bool:
        """Whether this is the job of exactly this tag; ids are used again, tags never (F-S9)."""
        return tag in (self.name, self.comment)

    def tag_like(self, beginning: Tag) -> Tag | None:
        """The tag of the job, if it begins like that; from the comment where the site rewrites names."""
        for text in (self.name, self.comment):
            if text.startswith(beginning) and re.fullmatch("[a-z0-9]{1,64}", text, re.ASCII):
                return Tag(text)
        return None

    def observation(self, now: Instant) -> Observation:
        running = EVIDENCE.get(self.state) is Phase.RUNNING
        ends_at = Instant(now + 1000 * self.left_s) if running and self.left_s is not None else None
        return evidence(self.state, node=self.host, ends_at=ends_at, reason=self.reason, exit_code=self.exit_code)


@frozen
class Listing:
    """What a listing holds. `bad` rows had a wrong form and are left out: the listing is not complete then."""

    rows: tuple[Row, ...]
    bad: int = 0

    def by_number(self) -> Mapping[str, Sequence[Row]]:
        """Rows by the number of their job; a number may be there more than once."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.id, []).append(row)
        return found


def parse_queue(text: str) -> Listing:
    """
    What `Commands.queue` printed.

    Raises:
        Strange: The text begins or ends within a row, or no row has the form that was asked for.
    """
    return _listing(_records(text, "squeue"), _queue_row, "squeue")


def _queue_row(record: str) -> Row | None:
    # The two free texts come last; what could be mistaken is only where one ends and the other begins.
    fields = record.split(_US, len(_QUEUE_FIELDS) - 1)
    if len(fields) != len(_QUEUE_FIELDS):
        return None
    number, state, user, partition, left, host, reason, comment, name = fields
    if not _ANY_ID.fullmatch(number) or not _STATE.fullmatch(state) or not user or len(host) > 255:
        return None
    try:
        left_s = parse_span(left)
    except Strange:
        left_s = None  # a new word for "no limit" is no reason to doubt everything else
    return Row(number, state, user, comment, name, partition, left_s, _host(host), reason)


def parse_accounting(text: str) -> Listing:
    """
    What `Commands.accounting` printed. Steps are not in it, because it was asked for allocations.

    Raises:
        Strange: No row has the form that was asked for, or the last one is cut.
    """
    if text and not text.endswith("\n"):
        raise Strange("the answer of sacct ends within a row")
    return _listing(text.splitlines(), _accounting_row, "sacct")


def _accounting_row(record: str) -> Row | None:
    fields = record.split(_US)
    if len(fields) != len(_ACCOUNTING_FIELDS):
        return None
    number, state, exit_text, user, nodes, comment, name = fields
    # "CANCELLED by 1000": the word is the first one.
    state = state.split(" ", 1)[0].rstrip("+")
    if not _ANY_ID.fullmatch(number) or not _STATE.fullmatch(state) or not (found := _EXIT.fullmatch(exit_text)):
        return None
    return Row(number, state, user, comment, name, host=_host(nodes), exit_code=_exit_code(found))


def parse_details(text: str) -> Row:
    """
    What `Commands.details` printed: ``Key=Value`` pairs on one line, in a fixed order.

    Values may hold blanks and equals signs. The fields are therefore taken in order, where no free text can come
    before them but the job's name, which is compared with a tag by whoever asks.

    Raises:
        Strange: The text is something else.
    """
    head, _, rest = text.partition(" UserId=")
    number, _, name = head.partition(" JobName=")
    before, _, rest = rest.partition(" JobState=")
    state, _, rest = rest.partition(" Reason=")
    found = re.fullmatch(r"JobId=([1-9][0-9]{0,18})(?: [A-Za-z]+=\S*){0,4}", number, re.ASCII)
    if not found or not _STATE.fullmatch(state):
        raise Strange(f"scontrol printed {_quoted(text)} instead of a job")
    code = re.search(r" ExitCode=([0-9]{1,10}):([0-9]{1,3}) ", rest, re.ASCII)
    host = re.search(r" BatchHost=(\S{1,255}) ", rest, re.ASCII)
    comment = re.search(r" Comment=(\S*) ", rest)
    reason = re.split(r" [A-Z][A-Za-z]*=", rest, maxsplit=1)[0]
    return Row(
        found[1],
        state,
        before.partition("(")[0],
        comment[1] if comment else "",
        name,
        host=_host(host[1]) if host else None,
        reason=reason,
        exit_code=_exit_code(code) if code else None,
    )


@frozen
class PartitionInfo:
    """A partition, as the form shows it. Seconds; `None` is no limit. `idle` nodes are free now."""

    name: str
    is_up: bool
    limit_s: int | None
    default_s: int | None
    nodes: int
    idle: int
    cores: int
    memory_mib: int
    features: str = ""


def parse_partitions(text: str) -> tuple[PartitionInfo, ...]:
    """
    What `Commands.partitions` printed; partitions that differ from node to node show the least.

    Raises:
        Strange: A row has another form.
    """
    return tuple(_partition(record) for record in _records(text, "sinfo"))


def _partition(record: str) -> PartitionInfo:
    fields = record.split(_US)
    counts = re.fullmatch(r"([0-9]+)/([0-9]+)/([0-9]+)/([0-9]+)", fields[4]) if len(fields) == 8 else None
    if counts is None:
        raise Strange(f"sinfo printed the row {_quoted(record)}")
    name, state, limit, default, _, cores, memory, generic = fields
    default_s = None if default == "n/a" else parse_span(default)
    features = "" if generic == "(null)" else _printable(generic)[:200]
    return PartitionInfo(
        name,
        state == "up",
        parse_span(limit),
        default_s,
        int(counts[4]),
        int(counts[2]),
        _least(cores),
        _least(memory),
        features,
    )


def parse_reservations(text: str) -> tuple[str, ...]:
    """Names of reservations in what `Commands.reservations` printed."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines == ["No reservations in the system"]:
        return ()
    found = [re.match(r"ReservationName=([A-Za-z0-9_.@+:-]{1,64}) StartTime=", line) for line in lines]
    if None in found:
        raise Strange(f"scontrol printed {_quoted(text)} instead of reservations")
    return tuple(each[1] for each in found if each)


@frozen
class Association:
    """An account that somebody may use, in a partition or ("") in all, with its qualities of service."""

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    default_qos: str = ""


def parse_associations(text: str) -> tuple[Association, ...]:
    """What `Commands.associations` printed."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) != 4 or not fields[0]:
            raise Strange(f"sacctmgr printed the row {_quoted(line)}")
        account, partition, qos, default = fields
        found.append(Association(account, partition, tuple(word for word in qos.split(",") if word), default))
    return tuple(found)


def parse_span(text: str) -> int | None:
    """
    Seconds in Slurm's ``days-hours:minutes:seconds``, of which the left parts may be missing; `None` is no limit.

    Raises:
        Strange: It is no such text.
    """
    if text.upper() in ("UNLIMITED", "INFINITE", "NOT_SET", "INVALID", "N/A", "PARTITION_LIMIT", ""):
        return None
    found = _SPAN.fullmatch(text)
    if not found:
        raise Strange(f"{_quoted(text)} is no duration")
    sign, days, hours, minutes, seconds = found.groups()
    total = int(days or 0) * 86_400 + int(hours or 0) * 3600 + int(minutes) * 60 + int(seconds)
    # Past its end, while the kill is under way, what is left is negative.
    return 0 if sign else total


_SPAN = re.compile(r"(-)?(?:([0-9]{1,6})-)?(?:([0-9]{1,6}):)?([0-9]{1,3}):([0-9]{2})", re.ASCII)


def _records(text: str, program: str) -> list[str]:
    """Rows end with a record separator and a line end; whatever does not is a cut or a foreign text."""
    if not text:
        return []
    *records, rest = text.split(_RS + "\n")
    if rest or not records:
        raise Strange(f"{program} printed {_quoted(text[-200:])} at the end, which is no whole row")
    return records


def _listing(records: Iterable[str], parse: Callable[[str], Row | None], program: str) -> Listing:
    parsed = [parse(record) for record in records]
    rows = tuple(row for row in parsed if row is not None)
    if parsed and not rows:
        raise Strange(f"no row of {program} has the form that was asked for")
    return Listing(rows, len(parsed) - len(rows))


def _host(text: str) -> str | None:
    return text if _HOST.fullmatch(text) and text not in ("n/a", "None") else None


def _exit_code(found: re.Match[str]) -> int:
    """As shells count: a signal is 128 more."""
    code, signal = int(found[1]), int(found[2])
    return 128 + signal if signal else code


def _least(text: str) -> int:
    """``48+`` means 48 and more."""
    digits = text.rstrip("+")
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 12 else 0


# Failures ----------------------------------------------------------------------------------------------------


class Kind(Enum):
    """What was asked: a submit may have happened although its answer is a failure, a question leaves no trace."""

    QUESTION = "question"
    SUBMIT = "submit"
    CANCEL = "cancel"


# Each line with whether a submit is known not to have happened then.
_NO_CONTROLLER = (
    "Unable to contact slurm controller",
    "Connection refused",
    "Slurm backup controller in standby mode",
    "Unexpected message received",
    "Munge",
    "Invalid authentication credential",
    "Protocol authentication error",
    "Unable to establish configuration source",
    "Unable to process configuration file",
)
_LOST = (
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Transport endpoint is not connected",
    "Connection reset",
    "Communication connection failure",
    "Message receive failure",
)
_PATIENCE = (
    "Resource temporarily unavailable",
    "temporarily unable to accept job",
    "Slurm controller is busy",
    "rate limit",
)
_REFUSALS = (
    "invalid partition",
    "Invalid partition",
    "Invalid account",
    "Invalid qos",
    "Invalid generic resource",
    "Requested node configuration is not available",
    "Requested time limit",
    "Requested reservation is invalid",
    "Requested partition configuration not available",
    "Requested operation is presently disabled",
    "not permitted to use this partition",
    "Access/permission denied",
    "Job violates accounting/QOS policy",
    "Job dependency problem",
    "Memory specification can not be satisfied",
    "More processors requested than permitted",
    "Node count specification invalid",
    "Invalid job credential",
    "Unable to open file",
    "Invalid directive",
    "invalid option",
    "unrecognized option",
    "Job submit/allocate failed",
    "Pathname of a file, directory or other parameter too long",
    "Invalid Trackable RESource",
    "No partition specified or system default partition",
)
UNKNOWN_JOB = "Invalid job id specified"
NO_ACCOUNTING = "accounting storage is disabled"


def failed_silently(program: str, stderr: str) -> bool:
    """
    Whether a question failed although it ended with status 0.

    ``squeue --user=NAME`` prints "Invalid user" and nothing else when the site's directory of users is away, and ends
    with 0: the same as an account without jobs. Recorded with 22.05.
    """
    return re.search(rf"^{re.escape(program)}: error:", stderr, re.MULTILINE) is not None


def failure(kind: Kind, program: str, status: int, stderr: str) -> PortError:
    """
    The error of a command that ended with a status other than 0.

    A submit counts as not done only where the message says so; everything else is looked up by its tag (F-S10).
    """
    said = _printable(stderr.strip().splitlines()[-1] if stderr.strip() else "")[:300]
    note = f"{program} ended with status {status}" + (f": {said}" if said else " and said nothing")
    if status == 127 or "command not found" in stderr:
        return Refused(f"{program} is not on this host, or not on the account's PATH")
    if any(text in stderr for text in _PATIENCE):
        return Overloaded(note)
    if any(text in stderr for text in _NO_CONTROLLER):
        return Unreachable(note)
    if kind is Kind.SUBMIT:
        return Refused(note) if any(text in stderr for text in _REFUSALS) else Unanswered(note)
    return Unreachable(note) if kind is Kind.QUESTION else Unanswered(note)


def strange(error: Strange) -> Malformed:
    """The same as an error of a port."""
    return Malformed(str(error)[:NOTE_LIMIT])


def _quoted(text: str) -> str:
    shown = _printable(text)
    return f"{shown[:80]!r}" + ("..." if len(shown) > 80 else "")


def _printable(text: str) -> str:
    """Foreign text without control characters, for notes."""
    return "".join(char if char.isprintable() else " " for char in text[:2000])
