"""What is wrong with a configuration, told so that it can be repaired: where, what, what instead."""

import difflib
import re
from collections.abc import Iterable

from attrs import field, frozen

MOST_PROBLEMS = 100
"""Nobody repairs more in one go, and a hostile file must not make us write a book."""

FOUND_LIMIT = 60
"""Characters of a value or key repeated in a message: enough to recognise it in one screen line."""

Path = tuple[str | int, ...]
"""Keys and positions from the top, such as `("systems", "juwels", "groups", 2)`."""


@frozen
class Mark:
    """A place in a file. Lines and columns count from 1; 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@frozen
class Problem:
    """
    One mistake.

    Args:
        path: Such as `systems.juwels.groups[2]`; empty for the file as a whole.
        found: What stands there, in quotes and clipped if it is the operator's text; never a secret.
        expected: What would be right.
        hint: The nearest right key or value, or "".
    """

    mark: Mark
    path: str
    found: str
    expected: str
    hint: str = ""

    @property
    def file(self) -> str:
        return self.mark.file

    @property
    def line(self) -> int:
        return self.mark.line

    @property
    def column(self) -> int:
        return self.mark.column

    def __str__(self) -> str:
        where = f"{self.mark}: {self.path}: " if self.path else f"{self.mark}: "
        hint = f"; did you mean {self.hint}?" if self.hint else ""
        return f"{where}found {self.found}, expected {self.expected}{hint}"


class ConfigError(Exception):
    """The configuration was not accepted; nothing of it is in use. Problems are in the order of files and lines."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.file, problem.line, problem.column)))
        super().__init__(self.problems)

    def __str__(self) -> str:
        number = len(self.problems)
        head = "1 mistake" if number == 1 else f"{number} mistakes"
        more = " (there may be more; these are the first)" if number >= MOST_PROBLEMS else ""
        lines = "".join(f"\n  {problem}" for problem in self.problems)
        return f"{head} in the configuration{more}{lines}"


@frozen
class Report:
    """Collects problems in the order of finding; `add` raises `ConfigError` once there are `MOST_PROBLEMS`."""

    problems: list[Problem] = field(factory=list)

    def add(
        self,
        mark: Mark,
        path: Path,
        found: str,
        expected: str,
        *,
        word: str = "",
        choices: Iterable[str] = (),
        hint: str = "",
    ) -> None:
        """
        Args:
            word: What was written, if one of `choices` may have been meant by it.
            hint: What was meant, if that is known already.
        """
        nearest = hint or nearest_word(word, choices)
        self.problems.append(Problem(mark, show_path(path), found, expected, nearest and quoted(nearest)))
        if len(self.problems) >= MOST_PROBLEMS:
            raise ConfigError(self.problems)

    def close(self) -> None:
        """Raises `ConfigError` if there was any problem."""
        if self.problems:
            raise ConfigError(self.problems)


def nearest_word(word: str, choices: Iterable[str]) -> str:
    """The choice that was most probably meant, or ""; upper case and hyphens are forgiven."""
    if not word or len(word) > 100:  # difflib needs quadratic time
        return ""
    plain = {_plain(choice): choice for choice in choices}
    found = difflib.get_close_matches(_plain(word), plain, n=1, cutoff=0.6)
    return plain[found[0]] if found else ""


def _plain(word: str) -> str:
    return word.casefold().replace("-", "_")


def quoted(text: str) -> str:
    """The operator's text in quotes, clipped."""
    clipped = text if len(text) <= FOUND_LIMIT else text[: FOUND_LIMIT - 1] + "…"
    return f'"{printable(clipped)}"'


def printable(text: str) -> str:
    """The text on one line, with nothing that could steer a terminal."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def show_path(path: Path) -> str:
    """`systems.juwels.groups[2]`; a key that would be misread is put in brackets: `services["lab-4.2"]`."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        elif re.fullmatch(r"[\w-]{1,60}", part):
            shown += f".{part}" if shown else part
        else:
            shown += f"[{quoted(part)}]"
    return shown
