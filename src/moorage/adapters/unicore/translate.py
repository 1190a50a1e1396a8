"""
UNICORE's words and ours, both ways. Pure: every answer comes in as an `Answer`, nothing is called.

Source: UNICORE-EU/unicorex 11.1.0, UNICORE-EU/use 6.1.2, UNICORE-EU/gateway 2.5, UNICORE-EU/tsi 11.2. The answers in
tests/recorded/unicore are named after the rows and situations below.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from attrs import field, frozen

from moorage.core.model import NOTE_LIMIT, EndReason, Gone, Instant, JobId, SessionSpec, Tag, deployment_tag
from moorage.core.plan import LAUNCHER_NAME, PLAN_NAME, SCRIPT_NAME, SECRET_NAME, Rendered
from moorage.ports.errors import Malformed, Overloaded, PortError, Refused, Unanswered, Unauthorised, Unreachable

from .config import UnicoreConfig

LISTING_PAGE = 200
"""The server's own page size; asked for by name, because sites may configure another one."""

LONGEST_WISH_S = 86_400.0
"""Of a `Retry-After`: a day. Values up to 10^9 have been seen on the web; the caller clamps further."""


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@frozen
class Answer:
    """An HTTP answer, whole and bounded. `headers` have lower-case names; of several with one name the last counts."""

    status: int
    headers: Mapping[str, str] = field(factory=dict)
    body: bytes = b""

    @property
    def kind(self) -> str:
        """What the body is: json, html, empty, or other."""
        if not self.body.strip():
            return "empty"
        media = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        return {"application/json": "json", "text/html": "html"}.get(media, "other")


class Absent(Exception):
    """The server knows no such thing. No evidence of an end: a replica that lags behind says the same."""


class SessionExpired(Exception):
    """432: the security session is gone, whatever the credentials; the call is made once more without it."""


class Verb(Enum):
    """What a call does: whether repeating it blindly can do harm, and whether its 404 is about one thing."""

    CREATE = "create"
    CHANGE = "change"
    ASK = "ask"
    LIST = "list"


# Errors ------------------------------------------------------------------------------------------------------

ANY_VERB = frozenset(Verb)
ABOUT_ONE = frozenset({Verb.CHANGE, Verb.ASK})


@frozen
class Row:
    """
    One class of error answers, and what it means for us. The first row that fits counts.

    Args:
        text: A regular expression that the body has to contain.
    """

    name: str
    statuses: range
    means: type[Exception]
    why: str
    kinds: frozenset[str] = frozenset({"json", "html", "empty", "other"})
    verbs: frozenset[Verb] = ANY_VERB
    text: str = ""
    header: str = ""

    def fits(self, answer: Answer, verb: Verb) -> bool:
        return (
            answer.status in self.statuses
            and verb in self.verbs
            and answer.kind in self.kinds
            and (not self.header or self.header in answer.headers)
            and (not self.text or re.search(self.text, answer.body[:4096].decode("utf-8", "replace")) is not None)
        )


def _one(status: int) -> range:
    return range(status, status + 1)


TABLE = (
    Row("redirect", range(300, 400), Malformed, "something in between wants us elsewhere; credentials do not follow"),
    Row("wrong-form", _one(400), Refused, "the site does not accept what was sent"),
    Row("no-factory", _one(401), Unauthorised, "no part of the site is open to this account"),
    Row("credentials", _one(403), Unauthorised, "the site does not accept the credentials, or not for this"),
    # The gateway answers for a site it does not know or that is being restarted: this is about the site, not the job.
    Row("no-site", _one(404), Unreachable, "the gateway knows no such site", kinds=frozenset({"html"})),
    Row("no-collection", _one(404), Unreachable, "the site has no job service", verbs=ANY_VERB - ABOUT_ONE),
    Row("not-there", _one(404), Absent, "the site knows no such thing", verbs=ABOUT_ONE),
    Row("method", _one(405), Refused, "the site does not do that"),
    Row("media", range(406, 407), Refused, "the site cannot answer in the form asked for"),
    Row("timed-out-sending", _one(408), Unanswered, "the site gave up waiting for the request"),
    # Never produced by UNICORE itself; proxies and replicas in front of it do.
    Row("conflict", _one(409), Unreachable, "the site is busy with it"),
    Row("too-large", _one(413), Refused, "the site takes no request of this size"),
    Row("content-type", _one(415), Refused, "the site does not understand the form of the request"),
    Row("range", _one(416), Refused, "the part of the file that was asked for does not exist"),
    Row("too-many", _one(429), Overloaded, "the site asks for patience"),
    Row("session", _one(432), SessionExpired, "the security session is gone"),
    Row("other-4xx", range(400, 500), Refused, "the site refuses the request"),
    Row(
        "no-object",
        _one(500),
        Refused,
        "the site could not read the request",
        verbs=frozenset({Verb.CREATE}),
        text=r"org\.json\.JSONException",
    ),
    # A 500 to a submit has been seen for jobs that were created.
    Row("server-error", _one(500), Unanswered, "the site failed"),
    Row("bad-gateway", _one(502), Unanswered, "something between us and the site failed"),
    Row("patience", _one(503), Overloaded, "the site asks for patience", header="retry-after"),
    # Both of the server's own 503 (submission switched off, resource locked) and the gateway's say: nothing is done.
    Row("out-of-service", _one(503), Unreachable, "the site takes nothing at the moment"),
    Row("gateway-timeout", _one(504), Unanswered, "something between us and the site gave up waiting"),
    Row("other-5xx", range(500, 600), Unanswered, "the site failed"),
    Row("no-status", range(600), Malformed, "that is no answer to this request"),
)


def row_of(answer: Answer, verb: Verb) -> Row:
    """The row of an answer that is no success."""
    return next((row for row in TABLE if row.fits(answer, verb)), TABLE[-1])


def error_of(answer: Answer, verb: Verb, what: str, now: datetime) -> Exception:
    """
    An error answer as the exception to raise: a `PortError`, `Absent` or `SessionExpired`.

    Its note begins with what matters to people, who may see the first line of it only.

    Args:
        what: What was asked, for the note.
        now: For a `Retry-After` that is a date.
    """
    row = row_of(answer, verb)
    said = _told(answer)
    note = f"{row.why}{': ' + said if said else ''} (HTTP {answer.status}; {what})"[:NOTE_LIMIT]
    if issubclass(row.means, Overloaded):
        return Overloaded(note, retry_after_s=retry_after(answer.headers.get("retry-after"), now))
    if issubclass(row.means, PortError):
        return row.means(note)
    return row.means(note)


def _told(answer: Answer) -> str:
    """What an error body says, bounded. Bodies are foreign: they may be cut off, and they are no JSON then."""
    if answer.kind != "json":
        return ""
    try:
        said = parse_object(answer.body).get("errorMessage")
    except Malformed:
        return visible(answer.body[:200].decode("utf-8", "replace"))
    return visible(said)[:300] if isinstance(said, str) else ""


def retry_after(text: str | None, now: datetime) -> float | None:
    """The wish in a `Retry-After`, 0 to a day; `None` if there is none or it cannot be read. Source: RFC 9110."""
    if text is None:
        return None
    text = text.strip()
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return min(max(float(text), 0.0), LONGEST_WISH_S)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), LONGEST_WISH_S)


def visible(text: str) -> str:
    """Foreign text on one line, without what a terminal or a page would obey."""
    return " ".join("".join(char if char.isprintable() else " " for char in text[:4096]).split())


# Documents ---------------------------------------------------------------------------------------------------


def parse_object(body: bytes) -> dict[str, Any]:
    """
    A JSON object, strictly: two members of one name, NaN and nesting without end are not silently made into something.

    Raises:
        Malformed: Anything else came.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError as error:
        raise Malformed("the answer is nested too deeply") from error
    except ValueError as error:
        raise Malformed(f"the answer is no JSON that can be trusted: {visible(str(error))[:100]}") from error
    if not isinstance(document, dict):
        raise Malformed(f"the answer is a JSON {type(document).__name__}, not an object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a member is there twice")
    return made


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def member(document: Mapping[str, Any], key: str, kind: type, default: Any = None) -> Any:
    """A member of the right type, or the default if it is missing; `Malformed` otherwise."""
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Malformed(f"{key} is a {type(value).__name__}, not a {kind.__name__}")
    return value


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}[+-][0-9]{4}", re.ASCII)


def read_date(text: str | None) -> datetime | None:
    """`2026-06-17T14:54:15+0200`, the server's zone; `None` if it is none."""
    if text is None or not _DATE.fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def show_date(moment: datetime) -> str:
    """The same form, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S+0000")


def instant(moment: datetime) -> Instant:
    return Instant(int(moment.timestamp() * 1000))


# Addresses ---------------------------------------------------------------------------------------------------

_JOB_ID = re.compile(r"[0-9A-Za-z-]{1,64}", re.ASCII)


def bases_of(config: UnicoreConfig) -> tuple[str, ...]:
    """Every address under which the site may name its resources, without a slash at the end; ours is the first."""
    return tuple(url.rstrip("/") for url in (config.url, *config.aliases))


def job_of(url: object, bases: Iterable[str]) -> JobId:
    """
    The id in a job's address, which must be an address of this site.

    Nothing is ever called at an address that an answer names: ids are put behind our own base. An address of another
    host is refused all the same, because then the answer is not about a job of this site.

    Raises:
        Malformed: It is no address of a job here.
    """
    if isinstance(url, str) and len(url) <= 1000:
        for base in bases:
            if url.startswith(base + "/jobs/") and _JOB_ID.fullmatch(url, len(base) + 6):
                return JobId(url[len(base) + 6 :])
    raise Malformed("the site names a job by an address that is not one of its own")


def is_job_id(job: str) -> bool:
    return _JOB_ID.fullmatch(job) is not None


def jobs_in(body: bytes, bases: Sequence[str]) -> tuple[tuple[JobId, ...], bool]:
    """The jobs of one page of a listing, and whether the server says that there are more."""
    document = parse_object(body)
    urls = document.get("jobs")
    if not isinstance(urls, list):
        raise Malformed("the listing has no list of jobs")
    links = member(document, "_links", dict, {})
    return tuple(job_of(url, bases) for url in urls), "next" in links


def check_role(body: bytes, what: str) -> None:
    """
    Raise `Unauthorised` if the server took us for nobody.

    A server that allows anonymous access answers credentials that it cannot check with empty collections and 200.
    """
    client = member(parse_object(body), "client", dict, {})
    selected = member(member(client, "role", dict, {}), "selected", str)
    if selected is None:
        raise Malformed(f"{what}: the site does not say who we are")
    if selected in ("anonymous", "banned"):
        raise Unauthorised(f"{what}: the site takes us for {selected}")


# Submitting --------------------------------------------------------------------------------------------------

_UNICORE_NAMES = {
    "nodes": "Nodes",
    "ntasks-per-node": "",
    "cpus-per-task": "CPUsPerNode",
    "mem": "MemoryPerNode",
    "gpus-per-node": "GPUsPerNode",
    "time": "Runtime",
    "account": "Project",
    "partition": "Queue",
    "qos": "QoS",
    "reservation": "Reservation",
    # The name carries the tag; whether a job may run again is not for a user of UNICORE to say.
    "job-name": "",
    "comment": "",
    "no-requeue": "",
    "requeue": "",
}
_CONFIGURED = {"cpus-per-task": "cores", "mem": "memory", "gpus-per-node": "gpus"}
_GIB2_MIB = 2048


def tags_of(tag: Tag, spec: SessionSpec) -> list[str]:
    """
    What a job is tagged with: its tag, and the beginnings of it that lookups use.

    The server matches whole tags only, so a lookup by the beginning of a tag needs that beginning as a tag.
    """
    deployment = deployment_tag(spec.deployment)
    return [str(deployment), f"{deployment}{spec.id}", str(tag)]


def searched_tag(tag: Tag) -> str:
    """The longest of `tags_of` that is a beginning of what is looked for; "" if none is."""
    for width in (39, 35, 9):
        if len(tag) >= width:
            return tag[:width] if width < 39 else str(tag)
    return ""


def description(
    tag: Tag, spec: SessionSpec, rendered: Rendered, launcher: str, config: UnicoreConfig
) -> dict[str, Any]:
    """
    A job description: one request that creates the job with its files.

    1. Nothing of it is assembled from the user's words: what a shell reads (`Executable`, which the server inserts
       unquoted) is constant, and no argument or environment variable is sent, because both reach the shell unquoted
       and the environment appears in the job's log.
    2. The imports are an array: an object keyed by target is accepted and never staged. Their flags are strings:
       JSON booleans are ignored. No `haveClientStageIn`: the job starts by itself.
    3. `NotificationSettings` has its URL always: without one it disables notifications altogether.
    4. The umask closes the directory before the secret is written; the permissions of a file are set after that.

    Raises:
        Refused: Something was asked for that this site's server gets wrong.
    """
    job: dict[str, Any] = {
        "Name": str(tag),
        "Tags": tags_of(tag, spec),
        "Executable": "./" + SCRIPT_NAME,
        "Umask": config.umask,
        "Imports": [
            _inline(SCRIPT_NAME, rendered.script, "rwx------"),
            _inline(LAUNCHER_NAME, launcher, "rw-------"),
            _inline(PLAN_NAME, rendered.plan, "rw-------"),
            _inline(SECRET_NAME, rendered.secret.reveal(), "rw-------"),
        ],
    }
    login_node = config.login_nodes.get(spec.partition)
    if login_node is not None:
        job |= {"Job type": "ON_LOGIN_NODE", "Login node": login_node}
    else:
        job["Resources"] = resources(rendered.directives, config)
    if config.notify_url is not None:
        # Not QUEUED: that a job waits is what we take for granted, and the next question could be the one that matters.
        states = ["RUNNING", "STAGINGOUT", "SUCCESSFUL", "FAILED"]
        job["NotificationSettings"] = {"URL": config.notify_url, "status": states}
    return job


def _inline(name: str, text: str, permissions: str) -> dict[str, str]:
    return {"From": "inline://" + name, "To": name, "Data": text, "Permissions": permissions, "FailOnError": "true"}


def resources(directives: Iterable[tuple[str, str]], config: UnicoreConfig) -> dict[str, str]:
    """
    Slurm's words as UNICORE's resources. Values are text; times in seconds, capacities with a unit of theirs.

    Raises:
        Refused: Servers 10.1 to 11.1 pass the memory on as the number of GPUs, and memory of 2 GiB and more through
            a 32-bit number. Unless the operator names another resource or says that it is fixed, the user would
            silently get something else.
    """
    asked: dict[str, str] = {}
    for directive, value in directives:
        name = _UNICORE_NAMES.get(directive)
        if name is None:
            raise Refused(f"{directive}: UNICORE has no word for it")
        if not name or not value:
            continue
        name, renamed = _site_name(directive, name, config)
        if directive == "gpus-per-node" and not renamed and not config.directives_fixed:
            raise Refused(
                "gpus: this site's server does not pass GPUs on; options.resources.gpus names a resource that it does"
            )
        if directive == "mem":
            mebibytes = int(value.removesuffix("M"))
            if mebibytes >= _GIB2_MIB and not renamed and not config.directives_fixed:
                raise Refused(
                    "memory: this site's server passes 2 GiB and more on wrongly; options.resources.memory names "
                    "a resource that it does not"
                )
        asked[name] = str(int(value) * 60) if directive == "time" else value
    return asked


def _site_name(directive: str, name: str, config: UnicoreConfig) -> tuple[str, bool]:
    """The site's name of a resource, and whether the operator has given it."""
    renamed = {str(key): value for key, value in config.resources.items()}.get(_CONFIGURED.get(directive, directive))
    return (renamed, True) if renamed else (name, False)


# Following ---------------------------------------------------------------------------------------------------

READING_FIELDS = "status,statusMessage,exitCode,batchSystemID,submissionTime,terminationTime"
"""What is asked about a job: without its log, which holds its whole script, and without its preferences, which can
hold the owner's token."""


class Status(Enum):
    """The server's states. READY comes before and after STAGINGIN; any of them may be skipped by who polls."""

    UNDEFINED = "UNDEFINED"
    READY = "READY"
    STAGINGIN = "STAGINGIN"
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    STAGINGOUT = "STAGINGOUT"
    SUCCESSFUL = "SUCCESSFUL"
    FAILED = "FAILED"

    @property
    def over(self) -> bool:
        return self in (Status.SUCCESSFUL, Status.FAILED)

    @property
    def before_batch(self) -> bool:
        return self in (Status.READY, Status.STAGINGIN)


@frozen
class Reading:
    """One look at a job. `batch_id` is "" as long as the batch system has not been told."""

    status: Status
    message: str = ""
    exit_code: int | None = None
    batch_id: str = ""
    submitted_at: datetime | None = None
    kept_until: datetime | None = None


def reading(body: bytes) -> Reading:
    """
    What a job's document says.

    Raises:
        Malformed: It does not say it in the server's words.
    """
    document = parse_object(body)
    word = member(document, "status", str)
    try:
        status = Status(word)
    except ValueError as error:
        raise Malformed(f"a job's status is {visible(str(word))[:50]!r}") from error
    batch_id = visible(member(document, "batchSystemID", str, ""))[:200]
    return Reading(
        status,
        visible(member(document, "statusMessage", str, "")),
        _exit_code(document.get("exitCode")),
        "" if batch_id.upper() == "N/A" else batch_id,
        read_date(member(document, "submissionTime", str)),
        read_date(member(document, "terminationTime", str)),
    )


def _exit_code(value: object) -> int | None:
    """The server sends a string; its manual says integer."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if abs(value) < 1 << 31 else None
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        return int(value)
    if value is None or value == "":
        return None
    raise Malformed("exitCode is no number")


KILLED = "did not complete normally on BSS"
"""The batch system ended the job and left no exit code: wall time, cancelled by hand, a node that failed."""


def end_of(reading: Reading) -> Gone:
    """What a job that is over says about its end. Why the batch system killed it stands in its details only."""
    if reading.status is Status.SUCCESSFUL:
        return Gone(EndReason.FINISHED, 0 if reading.exit_code is None else reading.exit_code)
    if reading.message.startswith("Job aborted"):
        return Gone(EndReason.CANCELLED, reading.exit_code, reading.message[:NOTE_LIMIT])
    code, note = reading.exit_code, reading.message[:NOTE_LIMIT]
    if found := re.search(r"(^User application exited with )?non-zero exit code: <(-?[0-9]{1,9})>", reading.message):
        code = int(found[2]) if code is None else code
        # The rest of that sentence is a folder on the site, which will be gone when somebody reads this.
        note = f"exit code {code}" if found[1] else note
    return Gone(EndReason.FAILED, code, note)


_SLURM_ENDS = {
    "TIMEOUT": EndReason.WALLTIME,
    "DEADLINE": EndReason.WALLTIME,
    "PREEMPTED": EndReason.PREEMPTED,
    "NODE_FAIL": EndReason.NODE_FAILED,
    "BOOT_FAIL": EndReason.NODE_FAILED,
    "OUT_OF_MEMORY": EndReason.OUT_OF_MEMORY,
    "CANCELLED": EndReason.CANCELLED,
    "REVOKED": EndReason.CANCELLED,
}


@frozen
class Details:
    """
    The batch system's own record.

    Args:
        left_s: Seconds of walltime left; from durations, because the record's dates are without a zone.
        ended: Why the batch system ended the job, if it says so.
    """

    state: str = ""
    reason: str = ""
    node: str | None = None
    left_s: int | None = None
    ended: EndReason | None = None
    exit_code: int | None = None


def details(body: bytes) -> Details | None:
    """The record of a Slurm job; `None` for systems and jobs that have none (`rawDetailsData`)."""
    document = parse_object(body)
    words = {key: visible(value) for key, value in document.items() if isinstance(value, str)}
    state = words.get("JobState", "")
    if not state:
        return None
    limit, run = _duration(words.get("TimeLimit", "")), _duration(words.get("RunTime", ""))
    left = None if limit is None or run is None else max(0, limit - run)
    code = words.get("ExitCode", "").partition(":")[0]
    return Details(
        state,
        "" if words.get("Reason", "None") in ("None", "(null)") else words["Reason"][:200],
        _node(words),
        left if state == "RUNNING" else None,
        _SLURM_ENDS.get(state.split()[0].split("+")[0]),
        int(code) if re.fullmatch("[0-9]{1,9}", code) else None,
    )


def _node(words: Mapping[str, str]) -> str | None:
    """The node that runs the batch script; of a job on several it is the first."""
    for key in ("BatchHost", "NodeList"):
        name = words.get(key, "")
        if re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,252})", name):
            return name
    found = re.match(r"([A-Za-z][A-Za-z0-9.-]*?)\[([0-9]+)", words.get("NodeList", ""))
    return found[1] + found[2] if found else None


def _duration(text: str) -> int | None:
    """Slurm's `D-HH:MM:SS`, `HH:MM:SS`, `MM:SS`."""
    found = re.fullmatch(r"(?:([0-9]{1,4})-)?(?:([0-9]{1,2}):)?([0-9]{1,2}):([0-9]{2})", text)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 86_400 + hours * 3600 + minutes * 60 + seconds


def login_node_of(batch_id: str) -> str | None:
    """The node of a job on a login node: its id is `INTERACTIVE_<node>_<pid>`."""
    found = re.fullmatch(r"INTERACTIVE_([A-Za-z0-9][A-Za-z0-9.-]{0,252})_[0-9]+", batch_id)
    return found[1] if found else None


_TELLING = re.compile(
    r"(Result: |Submit attempt |Requesting resources|TSI reply|.*TSI_FAILED|Staging in|.*[Ff]iletransfer FAILED|"
    r"Could not |Exit code |Processing failed|Pre-command|Post-command)"
)


def log_excerpt(body: bytes, most: int = 4) -> str:
    """
    The last lines of a job's log that say why it failed.

    Only lines of known beginnings: the log also has the job's whole script and environment, and who submitted it.
    """
    lines = member(parse_object(body), "log", list, [])
    told = []
    for line in lines:
        if isinstance(line, str) and "\n" not in line[:4096]:
            # "Wed Jun 17 14:54:15 CEST 2026: text", the form of Java's Date.toString().
            text = re.sub(r"^[A-Z][a-z]{2} [A-Z][a-z]{2} [0-9]{2} [0-9:]{8} \S{1,10} [0-9]{4}: ", "", line[:4096])
            if _TELLING.match(text):
                told.append(visible(text)[:200])
    return " | ".join(told[-most:])


# Keeping -----------------------------------------------------------------------------------------------------

KEEP_AHEAD = timedelta(hours=6)
KEEP_FOR = timedelta(days=7)
"""Sites drop jobs with their files after a day (default) or 30 (bundle), whether or not they still run."""


def longer_life(reading: Reading, now: datetime) -> str | None:
    """The date to ask for if a living job's record ends soon; `None` if there is time."""
    if reading.kept_until is None or reading.kept_until - now > KEEP_AHEAD:
        return None
    return show_date(now + KEEP_FOR)


def granted(body: bytes, key: str) -> bool:
    """Whether the server's verdict about a property is OK; it answers 200 in any case."""
    return parse_object(body).get(key) == "OK"


# Notifications -----------------------------------------------------------------------------------------------

NOTICE_LIMIT = 65_536


def noticed_job(body: bytes, bases: Sequence[str]) -> JobId:
    """The job that a notification is about; nothing else of it is believed. `Malformed` if it is no notification."""
    if len(body) > NOTICE_LIMIT:
        raise Malformed("a notification of this size is none")
    return job_of(parse_object(body).get("href"), bases)


# Forwarding --------------------------------------------------------------------------------------------------

_HOST = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}", re.ASCII)
_SOCKET = re.compile(r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+){0,10}", re.ASCII)


def forward_query(host: str, port: int, socket: str, login_node: str | None) -> dict[str, str]:
    """
    What to ask the forwarding resource for.

    Raises:
        Refused: The endpoint is none that may be named: only what a launcher reports gets here, but it reports it
            from inside a job, and the query must not be steered by it.
    """
    node = {"loginNode": login_node} if login_node else {}
    if socket:
        if not _SOCKET.fullmatch(socket) or ".." in socket.split("/") or len(socket) > 200:
            raise Refused("the endpoint's socket is no path inside the job's directory")
        return {"file": socket, **node}
    if not _HOST.fullmatch(host) or not 0 < port < 65_536:
        raise Refused("the endpoint is no host and port")
    return {"port": str(port), "host": host, **node}
