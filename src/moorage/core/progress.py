"""What people see of a session: one line of plain text and a percentage."""

from typing import assert_never

from attrs import frozen

from .model import (
    Connecting,
    Degraded,
    Ended,
    Locating,
    Queued,
    Ready,
    Starting,
    State,
    Stopping,
    Submitting,
    Waiting,
)


@frozen
class Progress:
    """
    Args:
        state: Name of the state, lower case.
        percent: 0 to 100; never falls within one run of one attempt.
        text: Plain text. It may hold words of a site: escape it before showing it as HTML.
    """

    state: str
    percent: int
    text: str


def progress_of(state: State) -> Progress:
    """How far a session in this state is, in words for its user."""
    name = type(state).__name__.lower()
    match state:
        case Waiting():
            return Progress(name, 5, _with(f"waiting ({state.why.value.replace('_', ' ')})", state.note))
        case Submitting():
            return Progress(name, 15, "submitting the job")
        case Locating():
            return Progress(name, 20, "the system did not answer; looking for the job")
        case Queued():
            return Progress(name, 30, _with("in the queue", state.job.note))
        case Starting():
            return Progress(name, 55, _with("starting", state.note or (state.job.node and f"on {state.job.node}")))
        case Connecting():
            return Progress(name, 80, _with("connecting", state.note))
        case Ready():
            return Progress(name, 100, "ready")
        case Degraded():
            return Progress(name, 90, "the connection is interrupted; the job goes on")
        case Stopping():
            return Progress(name, 100, _with("stopping", state.note))
        case Ended():
            return Progress(name, 100, _with(f"ended ({state.cause.value.replace('_', ' ')})", state.evidence.note))
        case _:
            assert_never(state)


def _with(text: str, detail: str | None) -> str:
    return f"{text}: {detail}" if detail else text
