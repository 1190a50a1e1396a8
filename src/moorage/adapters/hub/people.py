"""What is kept for a person besides sessions: named presets of the form, and which sessions there were."""

import hashlib
import json
import os
import re
import threading
from pathlib import Path
from typing import Any

MOST_PRESETS = 50
MOST_STARTS = 200
NAME_CHARS = 60

_writing = threading.Lock()
"""Held from reading a file to replacing it: sessions of one person end in several threads at once."""


class PresetRefused(ValueError):
    """The name or the content of a preset cannot be; the text says what would be right."""


class People:
    """
    One small file per person in a private directory.

    The file's name is a digest: names of people are anything, also "..", and equal only to themselves.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "people"

    def presets(self, owner: str) -> dict[str, dict[str, Any]]:
        kept: dict[str, dict[str, Any]] = self._load(owner)["presets"]
        return kept

    def save_preset(self, owner: str, name: str, options: object) -> None:
        """Keep a choice under a name; replaces one of the same name."""
        if not isinstance(name, str) or not re.fullmatch(r"\S(?:.*\S)?", name) or len(name) > NAME_CHARS:
            raise PresetRefused(f"a name of 1 to {NAME_CHARS} characters")
        if not name.isprintable() or not isinstance(options, dict) or len(json.dumps(options)) > 10_000:
            raise PresetRefused("a name without control characters and the fields of the form")
        with _writing:
            content = self._load(owner)
            content["presets"][name] = options
            if len(content["presets"]) > MOST_PRESETS:
                raise PresetRefused(f"at most {MOST_PRESETS} presets; delete one first")
            self._save(owner, content)

    def delete_preset(self, owner: str, name: str) -> None:
        with _writing:
            content = self._load(owner)
            if content["presets"].pop(name, None) is not None:
                self._save(owner, content)

    def starts(self, owner: str, server: str) -> list[str]:
        """Ids of the sessions that a server had, newest first."""
        kept: list[list[str]] = self._load(owner)["starts"]
        return [session for name, session in reversed(kept) if name == server]

    def started(self, owner: str, server: str, session: str) -> None:
        """Remember a session; again is harmless."""
        with _writing:
            content = self._load(owner)
            if [server, session] not in content["starts"]:
                content["starts"] = [*content["starts"], [server, session]][-MOST_STARTS:]
                self._save(owner, content)

    def _path(self, owner: str) -> Path:
        return self.directory / (hashlib.sha256(owner.encode("utf-8", "surrogatepass")).hexdigest()[:40] + ".json")

    def _load(self, owner: str) -> dict[str, Any]:
        empty: dict[str, Any] = {"presets": {}, "starts": []}
        try:
            content = json.loads(self._path(owner).read_text("utf-8"))
        except (OSError, ValueError):
            return empty
        return empty | content if isinstance(content, dict) else empty

    def _save(self, owner: str, content: dict[str, Any]) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(owner)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(content), "utf-8")
        os.replace(new, path)
