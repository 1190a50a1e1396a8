"""What a session is: identities, what was asked for, what a system says about a job, and the states."""

from enum import Enum
from typing import NewType, TypeAlias

from attrs import field, frozen

from .timeouts import Timeouts

SessionId = NewType("SessionId", str)
"""26 lower-case base32 characters (128 random bits); new for every start."""

SystemName = NewType("SystemName", str)
Owner = NewType("Owner", str)
Tag = NewType("Tag", str)
JobId = NewType("JobId", str)
"""What the system calls a job, verbatim."""

Instant = NewType("Instant", int)
"""Milliseconds on the clock of the `Clock` port, which never runs backwards."""

NEVER = Instant(1 << 62)
NOTE_LIMIT = 500
"""Characters of foreign text kept in a state: one screen line or two, whatever a site sends."""


# What was asked for ------------------------------------------------------------------------------------------


@frozen
class SessionKey:
    """The name under which the Hub knows a session. At most one session per key is up at a time."""

    hub: str
    owner: Owner
    name: str = ""


@frozen
class SessionSpec:
    """
    Everything that is fixed when a start is asked for; a session keeps it to its end.

    Args:
        deployment: One to eight lower-case letters or digits; the first part of every tag.
        groups: Groups of the owner, for the limits.
        seed: 64 random bits; every jitter of this session is made of them.
        destinations: Hosts that an endpoint may name besides the job's own node: names, or suffixes like ".cluster".
        options: What the user chose, by field; opaque to the machine.
        asked_at: When the start was asked for.
    """

    id: SessionId
    key: SessionKey
    system: SystemName
    asked_at: Instant
    seed: int
    deployment: str = "moorage"
    groups: tuple[str, ...] = ()
    service: str = "jupyterlab"
    partition: str = ""
    walltime_s: int = 7200
    nodes: int = 1
    options: tuple[tuple[str, str], ...] = ()
    destinations: tuple[str, ...] = ()
    timeouts: Timeouts = field(factory=Timeouts)


class Desired(Enum):
    """What the user wants; what is, the state says."""

    UP = "up"
    DOWN = "down"


# Tags --------------------------------------------------------------------------------------------------------

_DEPLOYMENT_WIDTH, _SESSION_WIDTH, _ATTEMPT_WIDTH = 8, 26, 4


def deployment_tag(deployment: str) -> Tag:
    """The beginning of the tag of every job of this deployment."""
    return Tag("m" + deployment.rjust(_DEPLOYMENT_WIDTH, "0"))


def tag_of(spec: SessionSpec, attempt: int) -> Tag:
    """
    The tag of one attempt: letters and digits only, every part of fixed width, so no tag begins another.

    The Slurm back end of UNICORE replaces a job name that holds anything but letters, digits and ``. : = ~ /``
    by a constant; Kubernetes wants a letter first and at most 63 characters.
    Source: UNICORE-EU/tsi, Slurm back end; Kubernetes, "Object Names and IDs".
    """
    return Tag(f"{deployment_tag(spec.deployment)}{spec.id}{attempt:04d}")


def parse_tag(tag: str) -> tuple[SessionId, int] | None:
    """The session and the attempt that a tag names, or `None` if it is none of ours."""
    head = 1 + _DEPLOYMENT_WIDTH
    session, attempt = tag[head : head + _SESSION_WIDTH], tag[head + _SESSION_WIDTH :]
    if len(session) != _SESSION_WIDTH or len(attempt) < _ATTEMPT_WIDTH or not attempt.isdecimal():
        return None
    return SessionId(session), int(attempt)


# What the world says -----------------------------------------------------------------------------------------


class Phase(Enum):
    """What a living job does. `ENDING` is neither running nor over (Slurm's COMPLETING)."""

    PENDING = "pending"
    RUNNING = "running"
    ENDING = "ending"


class EndReason(Enum):
    """Why a job is gone, as far as the system says."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    WALLTIME = "walltime"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    OUT_OF_MEMORY = "out_of_memory"
    ABSENT = "absent"
    """A complete lookup with checked credentials does not know it."""


class DoubtReason(Enum):
    """Why we do not know. None of them is evidence of an end."""

    UNREACHABLE = "unreachable"
    UNANSWERED = "unanswered"
    UNAUTHORISED = "unauthorised"
    OVERLOADED = "overloaded"
    MALFORMED = "malformed"
    NOT_LISTED = "not_listed"
    """The answer holds other jobs but not this one: worth a complete lookup by tag."""
    STALE = "stale"


@frozen
class Alive:
    """The system knows the job and it is not over."""

    phase: Phase
    node: str | None = None
    ends_at: Instant | None = None
    note: str = ""


@frozen
class Gone:
    """The system said that the job is over. The only observation that moves a session towards its end."""

    reason: EndReason
    exit_code: int | None = None
    note: str = ""


@frozen
class Doubt:
    """We do not know."""

    reason: DoubtReason
    note: str = ""


Observation: TypeAlias = Alive | Gone | Doubt


@frozen
class Sighting:
    """A job that carries one of our tags, seen in a complete lookup."""

    job: JobId
    tag: Tag
    alive: bool = True


@frozen
class Endpoint:
    """
    Where the launcher listens, as it reported itself.

    Args:
        host: The node, as the login node or gateway resolves it.
        port: TCP port, 0 if `socket` is used.
        socket: Path of a unix socket, relative to the job directory, or empty; then there is no host and no port.
        nonce: Names this very launcher; public. A requeued job has another one.
    """

    host: str
    port: int = 0
    socket: str = ""
    nonce: str = ""


@frozen
class Route:
    """The address on the Hub's side that leads to the lab."""

    address: str


class FailureKind(Enum):
    """What the caller can do about it; the tree of `ports/errors.py` in data."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    UNANSWERED = "unanswered"
    UNAUTHORISED = "unauthorised"
    OVERLOADED = "overloaded"
    MALFORMED = "malformed"


@frozen
class Failure:
    """A failed effect. `retry_after_s` is the system's wish, not yet clamped."""

    kind: FailureKind
    note: str = ""
    retry_after_s: float | None = None


# States ------------------------------------------------------------------------------------------------------


@frozen
class Job:
    """The job of a session and what the scheduler told about it last."""

    id: JobId
    node: str | None = None
    ends_at: Instant | None = None
    note: str = ""


@frozen
class Suspicion:
    """
    A first sign that a job is gone, kept until a second one agrees or a sign of life clears it.

    Args:
        proof: What the first reading said; `None` if the job was only not listed.
        since: When that reading began.
        lookup_at: When the next lookup by tag is due; `NEVER` if status readings will do.
    """

    proof: Gone | None
    since: Instant
    lookup_at: Instant = NEVER


class Why(Enum):
    """Why a session waits."""

    ASKED = "asked"
    LIMIT = "limit"
    MAINTENANCE = "maintenance"
    BREAKER = "breaker"
    STOP_RUNNING = "stop_running"
    RETRY = "retry"


class Cause(Enum):
    """Why a session ended: a closed list."""

    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    WALLTIME = "walltime"
    PREEMPTED = "preempted"
    NODE_FAILED = "node_failed"
    OUT_OF_MEMORY = "out_of_memory"
    CANCELLED_ELSEWHERE = "cancelled_elsewhere"
    VANISHED = "vanished"
    REFUSED = "refused"
    UNAUTHORISED = "unauthorised"
    WAITED_TOO_LONG = "waited_too_long"
    QUEUED_TOO_LONG = "queued_too_long"
    BOOT_TIMED_OUT = "boot_timed_out"
    CONNECT_TIMED_OUT = "connect_timed_out"
    POLICY = "policy"


@frozen
class Evidence:
    """What supports a cause, for people: a sentence, the exit code and the end of the job's log."""

    note: str = ""
    exit_code: int | None = None
    log: str = ""


@frozen
class Waiting:
    """Not admitted. `not_before` is the end of a back-off; `tries` counts submits that came to nothing."""

    why: Why
    since: Instant
    note: str = ""
    tries: int = 0
    not_before: Instant = Instant(0)


@frozen
class Submitting:
    """The submit call of this attempt is under way."""

    since: Instant
    tries: int = 0


@frozen
class Locating:
    """The submit may or may not have worked: the tag is looked up until the answer is certain."""

    since: Instant
    due: Instant
    tries: int = 0
    absent_since: Instant | None = None


@frozen
class Queued:
    """The job waits for nodes. The queue has its own clock."""

    job: Job
    since: Instant
    suspicion: Suspicion | None = None


@frozen
class Starting:
    """The job runs; its launcher has not reported an endpoint that may be dialled (`note`). The boot clock runs."""

    job: Job
    since: Instant
    due: Instant
    suspicion: Suspicion | None = None
    note: str = ""


@frozen
class Connecting:
    """
    The endpoint is known; a path is being made.

    `asked` is the number of the effect under way, 0 for none; `note` is what the last probe met.
    """

    job: Job
    endpoint: Endpoint
    since: Instant
    due: Instant
    asked: int = 0
    tries: int = 0
    route: Route | None = None
    suspicion: Suspicion | None = None
    note: str = ""


@frozen
class Ready:
    """A probe through the published path succeeded and the far side proved who it is."""

    job: Job
    endpoint: Endpoint
    route: Route
    since: Instant
    due: Instant
    asked: int = 0
    published: bool = False
    suspicion: Suspicion | None = None


@frozen
class Degraded:
    """The path is in doubt and being repaired; the job is not touched. `tries` counts failed probes and opens."""

    job: Job
    endpoint: Endpoint
    route: Route
    since: Instant
    due: Instant
    asked: int = 0
    published: bool = False
    tries: int = 0
    suspicion: Suspicion | None = None


@frozen
class Stopping:
    """
    Everything of the session is being removed; it ends when each part is confirmed gone.

    `note` is why the last try to remove something failed.
    """

    cause: Cause
    evidence: Evidence
    since: Instant
    note: str = ""


@frozen
class Ended:
    """Over, for one cause. Residue that does not touch the user (files, secrets) may still be removed."""

    cause: Cause
    evidence: Evidence
    at: Instant


State: TypeAlias = (
    Waiting | Submitting | Locating | Queued | Starting | Connecting | Ready | Degraded | Stopping | Ended
)
WithJob: TypeAlias = Queued | Starting | Connecting | Ready | Degraded


class Left(Enum):
    """Kinds of residue."""

    JOB = "job"
    TUNNEL = "tunnel"
    ROUTE = "route"
    LOG = "log"
    """Not a thing to remove but to fetch before the files go: the end of the job's log."""
    FILES = "files"
    SECRET = "secret"  # noqa: S105 (a kind of thing, not a secret)


@frozen
class Residue:
    """
    Something that must be gone before we forget it.

    It hangs on the session, not on `Stopping`, because living and ended sessions have some too: the job of an
    answer that came late, the path of a job that moved.

    Args:
        job: `None` for the job of a submit whose answer we never had: it is looked up by tag.
        due: When the next try is made.
        asked: Number of the try under way, 0 for none.
        suspicion: For jobs: a first sign that it is gone.
    """

    kind: Left
    attempt: int
    since: Instant
    due: Instant
    job: JobId | None = None
    asked: int = 0
    tries: int = 0
    suspicion: Suspicion | None = None


@frozen
class Session:
    """
    One user's interactive service, from wish to end.

    Args:
        attempt: Number of the latest submit; 0 before the first.
        run: Counts how often the job of this attempt began anew on its system (requeue); starts at 1.
        serial: Number of the latest effect; effects of a session are numbered without gaps.
    """

    spec: SessionSpec
    state: State
    desired: Desired = Desired.UP
    attempt: int = 0
    run: int = 1
    serial: int = 0
    residue: tuple[Residue, ...] = ()

    @property
    def id(self) -> SessionId:
        return self.spec.id

    @property
    def over(self) -> bool:
        """Ended, and nothing is left of it."""
        return not self.residue and isinstance(self.state, Ended)
