"""
The client's side of the gate: make the line that opens a stream, believe the answer or not.

A job's launcher relays a stream to its lab only after a line that proves knowledge of the secret of this session
and attempt, and it proves the same in its answer. Counters, challenges and the time are arguments. The lines are
described byte by byte in the decision record "Launch plan and gate".
"""

import hmac
import json
import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from attrs import frozen

from .secret import Secret

PROTOCOL = "moorage/1"
LINE_LIMIT = 512
"""Bytes of one line, its end included, in both directions; a longer one is refused."""
DOCUMENT_LIMIT = 65_536
"""Bytes of a report of the launcher; its largest honest `status.json` has about 40,000."""
COUNTER_LIMIT = 10**18


class Purpose(Enum):
    """What a stream is for. `ADMIT` and `STREAM` start the lab, `PROBE` only looks, `STOP` ends the job."""

    ADMIT = "admit"
    STREAM = "stream"
    PROBE = "probe"
    STOP = "stop"


class Verdict(Enum):
    """What a proven launcher says to a proven client."""

    OK = "ok"
    STALE = "stale"
    """The counter was used or is too old: try again with one above `Answer.floor` and the clock."""
    FULL = "full"
    """As many streams as the plan allows."""
    GONE = "gone"
    """The lab has ended or is being stopped."""


class LabState(Enum):
    """What the lab does, as its launcher sees it."""

    WAITING = "waiting"
    STARTING = "starting"
    SERVING = "serving"
    ENDED = "ended"


class Unproven(Exception):
    """
    The far side did not prove that it knows the secret: not our launcher, or not this run of it.

    Nothing it sent may be believed and nothing more may be sent to it.
    """


@frozen
class Request:
    """A line to be sent first on a new stream, and to be kept until the answer was checked. It holds no secret."""

    line: bytes


@frozen
class Answer:
    """
    What the launcher said, proven.

    Args:
        http: Status with which the lab answered an HTTP request just now, 0 for none; only for a probe.
        left_s: Seconds of walltime left, if there is a limit.
        exit_code: The lab's, once it has ended.
        floor: Counters up to this one are refused; only with `STALE`.
    """

    verdict: Verdict
    lab: LabState | None = None
    http: int | None = None
    left_s: int | None = None
    exit_code: int | None = None
    floor: int | None = None


def request(secret: Secret, purpose: Purpose, tag: str, nonce: str, counter: int, challenge: str) -> Request:
    """
    The first line of a stream.

    Args:
        secret: The gate secret of this session and attempt: 64 hexadecimal digits.
        tag: The job's tag; it names session and attempt.
        nonce: The launcher's, from its endpoint report (32 hexadecimal digits).
        counter: Never used before with this launcher, below `COUNTER_LIMIT`; microseconds on a clock, raised by one
            where two would be equal, and above any `floor` that was told. Order of arrival does not matter.
        challenge: 128 random bits as 32 hexadecimal digits, new for every request.

    Raises:
        ValueError: An argument does not fit its grammar; its text is not repeated.
    """
    if not _TAG.fullmatch(tag):
        raise ValueError("the tag is not 1 to 64 letters and digits")
    if not (_HEX32.fullmatch(nonce) and _HEX32.fullmatch(challenge)):
        raise ValueError("nonce and challenge are 32 lower-case hexadecimal digits each")
    if not 0 < counter < COUNTER_LIMIT:
        raise ValueError(f"the counter is not between 1 and {COUNTER_LIMIT - 1}")
    text = f"{PROTOCOL} {purpose.value} {tag} {nonce} {counter} {challenge}".encode("ascii")
    return Request(text + b" " + _mac(secret, "request", text) + b"\n")


def check_answer(secret: Secret, request: Request, line: bytes) -> Answer:
    """
    What the launcher says to `request`.

    Args:
        line: The first line that came back, its end included. Bytes after it are the lab's.

    Raises:
        Unproven: Anything but an answer to this very request by somebody who knows the secret. An end of the stream
            without a line is the same thing: a launcher does not speak to those who prove nothing.
    """
    if len(line) > LINE_LIMIT or not line.endswith(b"\n"):
        raise Unproven("no answer line")
    text, _, proof = line[:-1].rpartition(b" ")
    if not hmac.compare_digest(_mac(secret, "answer", request.line[:-1] + b"\n" + text), proof):
        raise Unproven("the answer proves nothing")
    match = _ANSWER.fullmatch(text.decode("ascii", "replace"))
    if match is None:
        raise Unproven("a proven answer of another version of the protocol")
    fields = dict(word.split("=") for word in match["fields"].split())
    try:
        return Answer(
            verdict=Verdict(match["verdict"]),
            lab=LabState(fields["lab"]) if "lab" in fields else None,
            http=_number(fields, "http"),
            left_s=_number(fields, "left"),
            exit_code=_number(fields, "code"),
            floor=_number(fields, "floor"),
        )
    except ValueError:
        raise Unproven("a proven answer of another version of the protocol") from None


def check_document(secret: Secret, kind: str, tag: str, text: str | bytes) -> Mapping[str, Any]:
    """
    The content of a report of the launcher, from a file of the job directory or from a callback.

    Args:
        kind: "endpoint" or "status".
        tag: The job that the report must be of.

    Returns:
        The members as the decision record lists them, without the proof. Their texts are foreign.

    Raises:
        Unproven: Not written by the launcher of this job, or cut, or too long.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > DOCUMENT_LIMIT:
        raise Unproven("the report is too long")
    try:
        document = json.loads(data, object_pairs_hook=_without_duplicates)
        proof = document.pop("mac")
        body = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode("ascii")
        proven = hmac.compare_digest(_mac(secret, "document", body), proof.encode("ascii"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unproven("the report is not a proven JSON object") from None
    if not proven or document.get("kind") != kind or document.get("tag") != tag:
        raise Unproven("the report is not proven to be this job's")
    return dict(document)


_TAG = re.compile("[A-Za-z0-9]{1,64}")
_HEX32 = re.compile("[0-9a-f]{32}")
_HEX64 = re.compile("[0-9a-f]{64}")
_ANSWER = re.compile(r"moorage/1 (?P<verdict>[a-z]+)(?P<fields>(?: [a-z]+=[a-z0-9]{1,20})*)")


def _mac(secret: Secret, label: str, message: bytes) -> bytes:
    key = secret.reveal()
    if not _HEX64.fullmatch(key):
        raise ValueError("a gate secret is 64 lower-case hexadecimal digits")
    return hmac.digest(bytes.fromhex(key), label.encode("ascii") + b"\n" + message, "sha256").hex().encode("ascii")


def _number(fields: Mapping[str, str], name: str) -> int | None:
    return int(fields[name]) if name in fields else None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is named twice")
    return members
