"""What happened: past tense, facts only. An answer brings back the attempt (and number) it belongs to."""

from typing import TypeAlias

from attrs import frozen

from .effects import Effect
from .model import Cause, Endpoint, Failure, Instant, JobId, Observation, Route, Sighting, Why


@frozen
class Admitted:
    """A place within all limits was given to the session."""


@frozen
class Held:
    """Admission looked at the session and says why it has to wait."""

    why: Why
    note: str = ""


@frozen
class StopAsked:
    """Somebody wants the session to end; `by` is for people."""

    by: str = "user"
    cause: Cause = Cause.STOPPED


@frozen
class Submitted:
    """The system took the job."""

    attempt: int
    job: JobId


@frozen
class Found:
    """
    A complete lookup by the tag of one attempt, with checked credentials.

    Args:
        asked_at: When the lookup began: it tells nothing about what was created later.
        sightings: Every job with that tag; empty means absent, at that time.
    """

    attempt: int
    asked_at: Instant
    sightings: tuple[Sighting, ...]


@frozen
class Observed:
    """One reading about one job; `asked_at` is when the question was put."""

    job: JobId
    asked_at: Instant
    observation: Observation


@frozen
class CancelAnswered:
    """The system answered a cancel, with what it then says about the job."""

    job: JobId
    asked_at: Instant
    observation: Observation


@frozen
class StraySeen:
    """The sweep saw a living job that carries this session's tag."""

    attempt: int
    job: JobId


@frozen
class EndpointRead:
    """The launcher's report was read; `None` if there is none yet."""

    attempt: int
    job: JobId
    endpoint: Endpoint | None


@frozen
class LogRead:
    """The end of the job's log, bounded."""

    job: JobId
    text: str


@frozen
class Removed:
    """Nothing of the job's files is left on the system."""

    job: JobId


@frozen
class TunnelOpened:
    """The relay has a listener that leads to the endpoint asked for."""

    number: int
    route: Route


@frozen
class Probed:
    """
    A request went end to end through the path and the far side proved who it is, or not.

    Args:
        proven: The launcher at the far end proved itself; if the probe is not good, only its lab does not answer yet.
    """

    number: int
    good: bool
    note: str = ""
    proven: bool = False


@frozen
class PathDoubted:
    """The relay lost the path, or has had no good probe of its own for too long."""

    note: str = ""


@frozen
class TunnelClosed:
    """The relay has no listener of this session. `number` is that of the effect, here and below."""

    number: int


@frozen
class Published:
    """The Hub knows the address."""

    route: Route


@frozen
class Withdrawn:
    """The Hub has forgotten the address."""

    number: int


@frozen
class Revoked:
    """Every credential made for the session is refused from now on."""

    number: int


@frozen
class EffectFailed:
    """An effect came to nothing, or nobody knows: the failure says which."""

    effect: Effect
    failure: Failure


@frozen
class Woke:
    """A planned wake-up; also when it comes late, twice or for nothing."""


@frozen
class Resumed:
    """The process that had this session is gone; answers to whatever was under way will not come."""


Event: TypeAlias = (
    Admitted
    | Held
    | StopAsked
    | Submitted
    | Found
    | Observed
    | CancelAnswered
    | StraySeen
    | EndpointRead
    | LogRead
    | Removed
    | TunnelOpened
    | Probed
    | PathDoubted
    | TunnelClosed
    | Published
    | Withdrawn
    | Revoked
    | EffectFailed
    | Woke
    | Resumed
)
