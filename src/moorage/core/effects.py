"""What we want done: imperative, each with session, attempt and number. The runner performs them over the ports."""

from typing import TypeAlias

from attrs import frozen

from .model import Endpoint, JobId, Route, SessionId, Tag
from .progress import Progress


@frozen
class Submit:
    """Create the job of this attempt. Ends in `Submitted` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    tag: Tag
    retry: bool


@frozen
class Find:
    """Look the tag up, completely. Ends in `Found` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    tag: Tag


@frozen
class Cancel:
    """End the job. Ends in `CancelAnswered` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    tag: Tag
    job: JobId


@frozen
class ReadEndpoint:
    """
    Read the launcher's report. Ends in `EndpointRead` or `EffectFailed`.

    Args:
        patient: Look again until it is there, for one call's time.
    """

    session: SessionId
    attempt: int
    number: int
    tag: Tag
    job: JobId
    patient: bool = False


@frozen
class ReadLog:
    """Read the end of the job's log. Ends in `LogRead` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    tag: Tag
    job: JobId


@frozen
class Remove:
    """Remove the files of a job that is gone. Ends in `Removed` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    tag: Tag
    job: JobId


@frozen
class OpenTunnel:
    """
    Have a listener that leads to the endpoint; again is harmless. Ends in `TunnelOpened` or `EffectFailed`.

    The job is named because some ways in (UNICORE's) go through the job and not only to its node.
    """

    session: SessionId
    attempt: int
    number: int
    job: JobId
    endpoint: Endpoint


@frozen
class Probe:
    """
    Send one request end to end. Ends in `Probed` or `EffectFailed`.

    Args:
        patient: Send another one while our launcher answers and its lab does not yet, for one call's time.
    """

    session: SessionId
    attempt: int
    number: int
    patient: bool = False


@frozen
class CloseTunnel:
    """Have no listener. Ends in `TunnelClosed` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int


@frozen
class Publish:
    """Tell the Hub the address. Ends in `Published` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int
    route: Route


@frozen
class Withdraw:
    """Have the Hub forget the address. Ends in `Withdrawn` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int


@frozen
class Revoke:
    """Make every credential of the session useless. Ends in `Revoked` or `EffectFailed`."""

    session: SessionId
    attempt: int
    number: int


@frozen
class Report:
    """Tell the Hub how far the session is. Lossy by design: no answer changes anything."""

    session: SessionId
    attempt: int
    number: int
    progress: Progress


Effect: TypeAlias = (
    Submit
    | Find
    | Cancel
    | ReadEndpoint
    | ReadLog
    | Remove
    | OpenTunnel
    | Probe
    | CloseTunnel
    | Publish
    | Withdraw
    | Revoke
    | Report
)

REMOVING = (Cancel, CloseTunnel, Withdraw, Revoke)
"""Idempotent and safe without a durable intent: a stop works even when the store's disk is full."""
