"""
JSON as the server's library reads it: strictly first, and what is not strict the lenient way.

Lenient are single quotes, names and values without quotes, a comma at the end, and anything after the object.
Source: org.json, JSONTokener and JSONObject, as UNICORE-EU/use calls them.
"""

import json
import re
from typing import Any, ClassVar

deepest = 200  # of lenient text; org.json allows 512 levels, here each takes two frames of Python's stack


class BadJSON(ValueError):
    """What org.json says about a text that is no object."""


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, with org.json's complaints. A repeated key is one."""
    try:
        text = body.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise BadJSON(_no_object) from error
    if not text.startswith("{"):
        raise BadJSON(_no_object)
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise BadJSON("JSON text is nested too deeply") from error
    except json.JSONDecodeError:
        data = _Lenient(text).object(0)
    assert isinstance(data, dict)
    return data


_no_object = "A JSONObject text must begin with '{' at 1 [character 2 line 1]"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise BadJSON(f'Duplicate key "{key[:100]}"')
        data[key] = value
    return data


class _Lenient:
    """One pass over a text that is not strict JSON."""

    _blank = re.compile(r"\s*")
    _word = re.compile(r"[^,:\]}/\\\"\[{;=#\s\x00-\x1f][^,:\]}/\\\"\[{;=#\x00-\x1f]*")
    _number = re.compile(r"-?(0|[1-9]\d{0,17})(\.\d{1,30})?([eE][+-]?\d{1,3})?")
    _string: ClassVar = {quote: re.compile(rf"(?:[^{quote}\\\n]|\\.)*{quote}") for quote in "\"'"}

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def object(self, depth: int) -> dict[str, Any]:
        self._expect("{")
        pairs: list[tuple[str, Any]] = []
        while not self._take("}"):
            key = self._value(depth + 1)
            self._expect(":")
            pairs.append((str(key), self._value(depth + 1)))
            if not self._take(","):
                self._expect("}")
                break
        return _unique(pairs)

    def _array(self, depth: int) -> list[Any]:
        self._expect("[")
        items = []
        while not self._take("]"):
            items.append(self._value(depth + 1))
            if not self._take(","):
                self._expect("]")
                break
        return items

    def _value(self, depth: int) -> Any:
        if depth > deepest:
            raise BadJSON("JSON text is nested too deeply")
        found = self._peek()
        if found == "{":
            return self.object(depth)
        if found == "[":
            return self._array(depth)
        if found in self._string and found:
            return self._quoted(found)
        word = self._word.match(self._text, self._at)
        if word is None:
            raise self._wrong("Missing value")
        self._at = word.end()
        return self._meaning(word[0].strip())

    def _quoted(self, quote: str) -> str:
        found = self._string[quote].match(self._text, self._at + 1)
        if found is None:
            raise self._wrong("Unterminated string")
        self._at = found.end()
        inner = found[0][:-1].replace('"', '\\"') if quote == "'" else found[0][:-1]
        try:
            return str(json.loads('"' + inner.replace("\\'", "'") + '"', strict=False))
        except json.JSONDecodeError as error:
            raise self._wrong("Illegal escape.") from error

    def _meaning(self, word: str) -> Any:
        """What a text without quotes stands for: a constant, a number or itself."""
        constants = {"true": True, "false": False, "null": None}
        if word.lower() in constants:
            return constants[word.lower()]
        if self._number.fullmatch(word):
            return json.loads(word)
        return word

    def _peek(self) -> str:
        blank = self._blank.match(self._text, self._at)
        self._at = blank.end() if blank else self._at
        return self._text[self._at : self._at + 1]

    def _take(self, sign: str) -> bool:
        found = self._peek() == sign
        self._at += found
        return found

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise self._wrong(f"Expected a '{sign}'")

    def _wrong(self, what: str) -> BadJSON:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        return BadJSON(f"{what} at {self._at} [character {column} line {line}]")
