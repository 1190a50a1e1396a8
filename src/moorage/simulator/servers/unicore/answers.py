"""What goes back over the wire: answers, failures with the server's own texts, dates, documents as JSON."""

import html
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from attrs import define, field, frozen

type_json = "application/json"
type_bytes = "application/octet-stream"
type_text = "text/plain"
type_html = "text/html"
type_form = "application/x-www-form-urlencoded"


@frozen
class FilePart:
    """`length` bytes of a file from `offset`, sent in pieces and chunked, as the server does."""

    path: Path
    offset: int
    length: int


@define
class Answer:
    """One HTTP answer before it is written, so that faults can still change it."""

    status: int = 200
    body: bytes = b""
    content_type: str | None = None
    headers: dict[str, str] = field(factory=dict)
    part: FilePart | None = None
    bytes_per_s: float | None = None  # fault: how slowly the body goes out
    padding: int = 0  # fault: so many more bytes of the same body, up to 100 MB and beyond
    promised: int | None = None  # fault: a Content-Length longer than the body; the connection then ends


class Failure(Exception):
    """
    A request that is answered with an error status.

    `message` is None for the many errors that have no body at all; else it becomes `errorMessage`.
    Source: UNICORE-EU/use RESTRendererBase, ServicesBase.
    """

    def __init__(self, status: int, message: str | None = None) -> None:
        super().__init__(f"{status} {message or ''}")
        self.status = status
        self.message = message

    def answer(self) -> Answer:
        if self.message is None:
            return Answer(self.status)
        return json_answer({"errorMessage": self.message, "status": self.status}, status=self.status)


def json_answer(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None, as_html: bool = False
) -> Answer:
    """A document as JSON (no charset parameter), or as the debug view a browser gets."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    if as_html:
        text = f"<html><body><pre>{html.escape(json.dumps(document, indent=2))}</pre></body></html>"
    return Answer(status, text.encode("utf-8", "replace"), type_html if as_html else type_json, dict(headers or {}))


def no_content() -> Answer:
    return Answer(204)


def created(location: str) -> Answer:
    return Answer(201, headers={"Location": location})


@lru_cache(maxsize=4096)
def date(moment: int) -> str:
    """`2026-06-17T14:54:15+0200`, whole seconds, the server's zone. Source: UNICORE-EU/use, ISO8601 format."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(moment))


@lru_cache(maxsize=4096)
def log_date(moment: int) -> str:
    """`Wed Jun 17 14:54:15 CEST 2026`, Java's `Date.toString()`."""
    return time.strftime("%a %b %d %H:%M:%S %Z %Y", time.localtime(moment))


@lru_cache(maxsize=1024)
def select(fields: str | None) -> tuple[bool, frozenset[str]] | None:
    """
    Read `?fields=a,b` or `?fields=!a,!b`.

    Returns:
        None for everything, else whether the names are wanted (True) or unwanted, and the names.
        Separators are blank, `+` and comma, as for tags.
    """
    names = split_words(fields)
    if not names:
        return None
    unwanted = frozenset(name[1:] for name in names if name.startswith("!"))
    return (False, unwanted) if unwanted else (True, frozenset(names))


def split_words(text: str | None) -> list[str]:
    return [] if not text else [word for word in text.replace("+", " ").replace(",", " ").split(" ") if word]


def pick(document: Mapping[str, Any], fields: str | None) -> Mapping[str, Any]:
    """The part of a document that `fields` asks for; unknown names are ignored."""
    wanted = select(fields)
    if wanted is None:
        return document
    keep, names = wanted
    return {key: value for key, value in document.items() if (key in names) == keep}
