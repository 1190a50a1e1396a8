"""
The words in which a configuration class says what may stand in a field.

A class is `attrs.frozen`; its type hints, its attrs validators and the sentence in `doc(...)` are all there is:
the loader, its messages and the JSON Schema follow from them. Plugins write their classes with these words too.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any

import attrs
from attrs import field, frozen


def doc(sentence: str) -> dict[str, str]:
    """Metadata of a field: one sentence for operators; it appears in messages, editors and the documentation."""
    return {"doc": sentence}


class Misfit(ValueError):
    """
    Raised by `__attrs_post_init__` when fields are right one by one and wrong together.

    Args:
        key: The field (as written in the file) at which the operator should look; "" for the whole.
        expected: What would be right, to follow the word "expected".
    """

    def __init__(self, key: str, expected: str) -> None:
        super().__init__(f"{key}: expected {expected}")
        self.key = key
        self.expected = expected


@frozen
class Text:
    """
    Marks a text that has a form: `Annotated[str, Text(r"[a-z]+", "lower-case letters")]`.

    Args:
        pattern: Matched against the whole text. Written by us or a plugin, never by an operator, and linear: no
            repetition inside a repetition.
        expected: The form in words, to follow "expected".
        most: Characters.
        private: What was found is never repeated in a message, because it may contain a secret.
    """

    pattern: str
    expected: str
    most: int = 1000
    private: bool = False


@frozen(eq=False)  # type hints are hashed, mappings cannot be
class Words:
    """Marks a text from a closed list, each word with its meaning; as the key of a mapping it closes the mapping."""

    meanings: Mapping[str, str]


@frozen(eq=False)
class Quantity:
    """
    Marks a number that is written with its unit, such as "30 s" or "16 GiB".

    Args:
        name: One word for it.
        expected: What is expected, in words with an example.
        units: Factor of each unit to the base unit.
        clock: Whether "HH:MM:SS" and "D-HH:MM:SS" are understood as well.
    """

    name: str
    expected: str
    units: Mapping[str, float]
    clock: bool = False

    @property
    def pattern(self) -> str:
        """Of the whole text; linear, because number, unit and blank exclude each other."""
        units = "|".join(sorted(self.units, key=lambda unit: (-len(unit), unit)))
        part = rf"[0-9]{{1,15}}(?:\.[0-9]{{1,6}})? ?(?:{units})"
        alone = rf"{part}(?: {part})*"
        return rf"(?:{alone}|{_CLOCK})" if self.clock else alone

    def read(self, text: str) -> float:
        """The quantity in base units; `ValueError` when the text is not one."""
        if len(text) > 60 or not re.fullmatch(self.pattern, text):
            raise ValueError(text)
        if ":" in text:
            return _clock_seconds(text)
        return sum(float(number) * self.units[unit] for number, unit in _PART.findall(text))

    def show(self, amount: float) -> str:
        """A text that `read` understands, in the largest unit that needs no fraction."""
        for unit, factor in sorted(self.units.items(), key=lambda item: (-item[1], len(item[0]))):
            if amount and factor >= 1 and amount % factor == 0:
                return f"{int(amount // factor)} {unit}"
        smallest = min(self.units, key=lambda unit: (self.units[unit], len(unit)))
        return f"{amount / self.units[smallest]:.6f}".rstrip("0").rstrip(".") + f" {smallest}"


_PART = re.compile(r"([0-9.]+) ?([A-Za-z]+)")
_CLOCK = r"(?:[0-9]{1,3}-)?[0-9]{1,3}:[0-5][0-9]:[0-5][0-9]"


def _clock_seconds(text: str) -> float:
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return float(int(days or 0) * 86_400 + hours * 3600 + minutes * 60 + seconds)


# "m" is missing on purpose: half of the readers take it for minutes, the other half for months or milli-.
DURATION = Quantity(
    "duration",
    'a duration with its unit, such as "30 s", "90 min", "2 h" or "1-12:00:00"',
    {
        **{"ms": 0.001, "s": 1, "min": 60, "h": 3600, "d": 86_400},
        **{"sec": 1, "second": 1, "seconds": 1, "minute": 60, "minutes": 60},
        **{"hour": 3600, "hours": 3600, "day": 86_400, "days": 86_400},
    },
    clock=True,
)
# "K", "M", "G" alone are missing on purpose: Slurm means powers of 1024 by them, disk vendors powers of 1000.
SIZE = Quantity(
    "size",
    'a size with its unit, such as "512 MiB" or "16 GB"',
    {
        **{"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12},
        **{"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40},
    },
)

Seconds = Annotated[float, DURATION]
Bytes = Annotated[int, SIZE]

_ABSOLUTE = Text(r"/[^\x00]*", "the absolute path of a file", 4096, private=True)
_VARIABLE = Text(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable", 128, private=True)


@frozen
class SecretRef:
    """
    Where a secret is to be found; the secret itself is never in the configuration.

    Exactly one of the two is set. The file is read, the variable looked up, when the secret is needed.
    """

    file: Annotated[str, _ABSOLUTE] | None = field(
        default=None, metadata=doc("file that holds the secret and nothing else; readable for the Hub only")
    )
    env: Annotated[str, _VARIABLE] | None = field(
        default=None, metadata=doc("environment variable of the Hub that holds the secret")
    )

    def __attrs_post_init__(self) -> None:
        if (self.file is None) == (self.env is None):
            raise Misfit("", REFERENCE)


REFERENCE = "a reference to the secret, not the secret: {file: /path} or {env: NAME}"


def key_of(attribute: "attrs.Attribute[Any]") -> str:
    """A field's key in the file: its name; `from_` becomes `from`, which Python keeps for itself."""
    return str(attribute.name).rstrip("_")
