"""
One source of everything that could also have gone otherwise.

`Source` is what the simulated world asks. `Seeded` answers from a seed; under hypothesis, `Drawn` answers with draws,
so that a failure shrinks. A source gives streams by name: each is independent of how much was taken from the others,
so that one session more changes nothing for the rest.
"""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from moorage.core.model import SessionId

Item = TypeVar("Item")

_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


class Source(Protocol):
    """Choices, each with a label that says what it decides."""

    def stream(self, name: str) -> "Source":
        """Another source, always the same one for the same name."""
        ...

    def fraction(self, label: str = "") -> float:
        """From 0 up to, not including, 1."""
        ...

    def integer(self, low: int, high: int, label: str = "") -> int:
        """From `low` to `high`, both included."""
        ...


class Seeded:
    """
    Choices from a seed and nothing else: the same in every version of Python.

    Only `Random.random` is used; the standard library promises its values for a seed, and of no other method.
    Source: docs.python.org, "random", section "Notes on Reproducibility".
    """

    def __init__(self, seed: int, path: str = "") -> None:
        self.seed = seed
        self.path = path
        digest = hashlib.blake2b(f"{seed}/{path}".encode(), digest_size=16).digest()
        self._random = random.Random(int.from_bytes(digest, "big")).random  # noqa: S311 (a simulation, no secret)

    def stream(self, name: str) -> "Seeded":
        return Seeded(self.seed, f"{self.path}/{name}")

    def fraction(self, label: str = "") -> float:
        return self._random()

    def integer(self, low: int, high: int, label: str = "") -> int:
        return low + int(self._random() * (high - low + 1))


class Drawn:
    """
    The first choices are drawn by hypothesis, with their labels, so that a failure reads as a story; streams are
    seeded, because a run takes more choices than a test engine likes to be asked.
    """

    def __init__(self, draw: Callable[[Any, str], Any], integers: Callable[[int, int], Any]) -> None:
        self._draw, self._integers = draw, integers
        self._seed: int | None = None

    def stream(self, name: str) -> Seeded:
        if self._seed is None:
            self._seed = self.integer(0, 2**32 - 1, "seed")
        return Seeded(self._seed, name)

    def fraction(self, label: str = "") -> float:
        return self.integer(0, 9_999, label) / 10_000

    def integer(self, low: int, high: int, label: str = "") -> int:
        return int(self._draw(self._integers(low, high), label))


def chance(source: Source, probability: float, label: str = "") -> bool:
    """Whether something of this probability happens; 0 and 1 take no choice."""
    return probability > 0 and (probability >= 1 or source.fraction(label) < probability)


def pick(source: Source, items: Sequence[Item], label: str = "") -> Item:
    """One of the items, all equally likely."""
    return items[source.integer(0, len(items) - 1, label)]


def between(source: Source, low: float, high: float, label: str = "") -> float:
    """A number from an interval."""
    return low + (high - low) * source.fraction(label)


def spread(source: Source, median: float, factor: float, label: str = "") -> float:
    """
    A duration around a median, two thirds of them within `factor` of it: short ones are common, long tails exist.

    Log-normal, as waits and run times are; the sum of twelve fractions stands in for a normal deviate, so that only
    additions are needed and every machine gets the same bits.
    """
    deviate = sum(source.fraction(label) for _ in range(12)) - 6
    return median * math.exp(math.log(factor) * deviate)


def exponential(source: Source, mean: float, label: str = "") -> float:
    """Time to the next event of a Poisson process."""
    return -mean * math.log(1 - source.fraction(label))


class SimChoices:
    """The port `Choices`, one stream for each user: whoever else starts something does not change the ids of others."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._streams: dict[str, Source] = {}
        self.who = ""
        """On whose behalf the next choices are made."""

    def _stream(self) -> Source:
        stream = self._streams.get(self.who)
        if stream is None:
            stream = self._streams[self.who] = self._source.stream(f"ids/{self.who}")
        return stream

    def seed(self) -> int:
        stream = self._stream()
        return stream.integer(0, 2**32 - 1) << 32 | stream.integer(0, 2**32 - 1)

    def session_id(self) -> SessionId:
        stream = self._stream()
        letters = [_ALPHABET[stream.integer(0, 31)] for _ in range(25)]
        # 128 bits in 26 letters of five bits: the last one carries three.
        return SessionId("".join(letters) + _ALPHABET[stream.integer(0, 7) * 4])
