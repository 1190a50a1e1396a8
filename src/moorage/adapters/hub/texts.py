"""Texts of the pages, in catalogues: `locale/LANGUAGE.json`, one flat object of keys and texts each."""

import functools
import json
import re
from importlib import resources
from typing import Any

from moorage.core.progress import Progress

_REASON = re.compile(r"(waiting|ended) \(([a-z ]+)\)")
"""How `core.progress` says why a session waits, or why it ended."""

LANGUAGES = ("en", "de")
"""The first one is what is shown if nobody says otherwise and what fills gaps."""


class Texts:
    """The texts of one language: `texts("home.title")`, with values in place of `{names}`."""

    def __init__(self, language: str) -> None:
        self.language = language if language in LANGUAGES else LANGUAGES[0]
        self._catalogue = catalogue(self.language)

    def __call__(self, key: str, **values: Any) -> str:
        text = self._catalogue.get(key, key)
        return text.format(**values) if values else text

    def get(self, key: str, otherwise: str) -> str:
        """The text if there is one."""
        return self._catalogue.get(key, otherwise)

    def progress(self, progress: Progress) -> str:
        """How far a session is: our words for the state, and what its system said, if it said anything."""
        text = self(f"state.{progress.state}")
        head, colon, note = progress.text.partition(": ")
        reason = _REASON.fullmatch(head)
        if reason is not None:
            key = reason[2].replace(" ", "_")
            text = self.get(f"why.{key}" if reason[1] == "waiting" else f"cause.{key}", text)
        if progress.state == "starting" and note.startswith("on "):
            return self("state.on", text=text, node=note.removeprefix("on "))
        return self.with_note(text, note) if colon else text

    def with_note(self, text: str, note: str) -> str:
        """With what the system said: words that every scheduler uses in the reader's language, others as they are."""
        said = self.get("note." + re.sub("[^a-z]+", "_", note[:80].lower()).strip("_"), note)
        return f"{text}: {said}" if said else text

    def all(self) -> dict[str, str]:
        """Every text, for the scripts of the pages."""
        return dict(self._catalogue)


@functools.cache
def catalogue(language: str) -> dict[str, str]:
    """The texts of one language, gaps filled from the first one."""
    file = resources.files(__package__) / "locale" / f"{language}.json"
    texts: dict[str, str] = json.loads(file.read_text("utf-8"))
    return texts if language == LANGUAGES[0] else {**catalogue(LANGUAGES[0]), **texts}


def choose(cookie: str | None, accepted: str | None) -> str:
    """
    The language for a request: what the user chose, else the best of what the browser accepts.

    Args:
        accepted: The header Accept-Language; anything that does not parse counts for nothing.
    """
    if cookie in LANGUAGES:
        return cookie
    wishes = []
    for item in (accepted or "")[:500].split(","):
        tag, _, quality = item.strip().partition(";q=")
        try:
            wishes.append((float(quality or 1), tag.split("-")[0].lower()))
        except ValueError:
            continue
    for _, tag in sorted(wishes, key=lambda wish: -wish[0]):
        if tag in LANGUAGES:
            return tag
    return LANGUAGES[0]
