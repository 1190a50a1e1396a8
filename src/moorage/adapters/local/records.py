"""Digests and names of what is stored: pure."""

from hashlib import blake2b

from moorage.core.model import Instant, SessionId


def escaped(text: str) -> str:
    """
    A text as plain ASCII; different texts stay different.

    Databases disagree about NUL, lone surrogates and which letters are equal; about ASCII they agree.
    """
    return text.encode("unicode_escape").decode("ascii")


def record_digest(before: str, session: SessionId, version: int, at: Instant, event: str) -> str:
    """
    The digest of one log record, chained to the one before it.

    It tells damage, not malice: who can write to the database can compute it, too.
    """
    return _digest("record", before, session, version, at, event)


def head_digest(
    session: SessionId, version: int, at: Instant, finished: bool, holds: bool, chain: str, head: str
) -> str:
    """The digest of a session's row."""
    return _digest("head", session, version, at, int(finished), int(holds), chain, head)


def spec_digest(session: SessionId, spec: str) -> str:
    """The digest of what never changes about a session."""
    return _digest("spec", session, spec)


def _digest(*parts: str | int) -> str:
    # No part holds a line break: ids, numbers, hexadecimal digits, canonical JSON.
    text = "\n".join(map(str, parts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
