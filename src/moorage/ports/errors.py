"""
What can go wrong at a port, by what the caller can do about it.

    PortError
    ├── Refused       nothing happened, and repeating will not help: tell the user
    ├── Unreachable   nothing happened: try later
    ├── Overloaded    nothing happened: try later, not before the system wishes
    ├── Unauthorised  nothing happened: the credentials have to be renewed first
    ├── Unanswered    it may have happened: find out before trying again
    └── Malformed     an answer came that we do not understand: it may have happened, too

    StoreError
    ├── StaleVersion  somebody else has moved the session on: load it and decide anew
    ├── LimitReached  the save would have taken a place that is not there
    └── StoreFailed   nothing was saved as far as we know (disk full, database away)

Adapters raise nothing else; any other exception is a bug of the adapter and is reported as one.
"""

from moorage.core.model import Failure, FailureKind


class PortError(Exception):
    """
    An effect came to nothing, or nobody knows.

    Args:
        note: A sentence for people, naming what was asked. No secrets; foreign text bounded by the adapter.
    """

    kind = FailureKind.UNREACHABLE

    def __init__(self, note: str, retry_after_s: float | None = None) -> None:
        super().__init__(note)
        self.note = note
        self.retry_after_s = retry_after_s

    def as_failure(self) -> Failure:
        """The same in data, for the machine."""
        return Failure(self.kind, self.note, self.retry_after_s)


class Refused(PortError):
    """Nothing happened, and the same call will never work: wrong options, quota, policy."""

    kind = FailureKind.REFUSED


class Unreachable(PortError):
    """Nothing happened: the call never got there, or the system said that it does nothing now."""

    kind = FailureKind.UNREACHABLE


class Overloaded(PortError):
    """Nothing happened: the system asks for patience. `retry_after_s` is its wish, clamped by the caller."""

    kind = FailureKind.OVERLOADED


class Unauthorised(PortError):
    """Nothing happened: the system does not accept our credentials."""

    kind = FailureKind.UNAUTHORISED


class Unanswered(PortError):
    """It may have happened: the request went out and no answer came."""

    kind = FailureKind.UNANSWERED


class Malformed(PortError):
    """An answer came and is not what it should be; whether anything happened is unknown."""

    kind = FailureKind.MALFORMED


class StoreError(Exception):
    """The store did not do what was asked."""


class StaleVersion(StoreError):
    """The session has another version than the one expected; nothing was saved."""


class LimitReached(StoreError):
    """Saving this would exceed a limit; nothing was saved."""


class StoreFailed(StoreError):
    """The store cannot be written or read now; nothing was saved, or the save is found by its version later."""
