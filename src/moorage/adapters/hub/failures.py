"""The end of a session in one sentence with what to do, in the user's language, and as an exception for the Hub."""

import html
import re
from typing import assert_never

import jupyterhub
from jupyterhub.app import JupyterHub
from tornado import web

from moorage.core.model import Cause, Ended, Evidence

from .texts import Texts

EXCERPT_CHARS = 4_000
"""Characters of the job's log that are shown: about a screen; the rest is on the session's own page."""

_OURS = frozenset({Cause.STOPPED, Cause.POLICY})


def sentence(texts: Texts, cause: Cause, evidence: Evidence) -> str:
    """What happened and what to do about it: plain text, with the system's own words if it said anything."""
    what = texts(f"cause.{cause.value}")
    note = " ".join(evidence.note.split())
    said = f" ({note})" if note and cause not in _OURS else ""
    known = evidence.exit_code in (None, 0) or re.search(rf"\b{evidence.exit_code}\b", note)
    code = "" if known else texts("cause.exit_code", code=evidence.exit_code)
    return " ".join(part for part in (what.rstrip(".") + said + ".", code, texts(f"advice.{cause.value}")) if part)


def excerpt(evidence: Evidence) -> str:
    """The end of the job's log as it may be shown: bounded, without control characters."""
    text = evidence.log[-EXCERPT_CHARS:]
    return "".join(char for char in text if char in "\n\t" or char.isprintable()).strip("\n")


class StartFailed(web.HTTPError):
    """
    A start that came to nothing, told to the Hub.

    The Hub shows `jupyterhub_html_message`, which is made here by escaping and nowhere else. The status is below 500
    because the Hub counts others towards `consecutive_failure_limit` and exits: a job that fails is not a broken Hub.
    """

    def __init__(self, message: str, log: str = "", label: str = "", reason: str = "failed") -> None:
        # HTTPError formats its message with `args`; a stray "%" of a site would raise while it is logged.
        super().__init__(424, "%s", message, reason=reason)
        self.jupyterhub_message = message
        self.jupyterhub_html_message = _page(message, log, label)

    def __str__(self) -> str:
        return self.jupyterhub_message


def take_off_count() -> None:
    """
    A start is about to fail, and not by the Hub's fault: it does not count towards `consecutive_failure_limit`.

    JupyterHub 5 counts every start that fails, so one is taken off before it adds one; 6 looks at the status.
    """
    if jupyterhub.version_info[0] < 6 and JupyterHub.initialized():
        settings = JupyterHub.instance().tornado_application.settings
        settings["failure_count"] = settings.get("failure_count", 0) - 1


def start_failed(texts: Texts, ended: Ended) -> StartFailed:
    """The exception for a session that ended before it was ready."""
    message = sentence(texts, ended.cause, ended.evidence)
    return StartFailed(message, excerpt(ended.evidence), texts("failed.log"), ended.cause.value)


def _page(message: str, log: str, label: str) -> str:
    shown = html.escape(message)
    if not log:
        return shown
    details = f"<summary>{html.escape(label)}</summary><pre>{html.escape(log)}</pre>"
    return f'{shown}<details class="moorage-log">{details}</details>'


def is_bad(cause: Cause) -> bool:
    """Whether the user should be told in red."""
    match cause:
        case Cause.STOPPED | Cause.FINISHED:
            return False
        case (
            Cause.FAILED
            | Cause.WALLTIME
            | Cause.PREEMPTED
            | Cause.NODE_FAILED
            | Cause.OUT_OF_MEMORY
            | Cause.CANCELLED_ELSEWHERE
            | Cause.VANISHED
            | Cause.REFUSED
            | Cause.UNAUTHORISED
            | Cause.WAITED_TOO_LONG
            | Cause.QUEUED_TOO_LONG
            | Cause.BOOT_TIMED_OUT
            | Cause.CONNECT_TIMED_OUT
            | Cause.POLICY
        ):
            return True
        case _:
            assert_never(cause)
