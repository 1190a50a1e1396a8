"""The catalogue of faults: every id is shown or explained, and the documentation has the same list."""

import sys
from collections.abc import Iterator
from pathlib import Path

from moorage.core.effects import Effect
from moorage.simulator.crashes import CALLS
from moorage.simulator.faults import CATALOGUE, NOT_HERE, Act, Kind, missing_ids
from moorage.simulator.storms import STORMS, describe

PAGE = Path(__file__).parents[3] / "docs" / "simulator.md"
BEGIN, END = "<!-- kinds of faults: written by python tests/unit/simulator/test_catalogue.py -->", "<!-- end -->"

GROUPS = {"U": 26, "S": 15, "T": 17, "K": 12, "H": 12, "D": 9, "C": 4, "G": 3, "P": 2, "V": 3}
"""Kinds in each group of the specification: 103 in all."""


def test_every_id_of_the_specification_is_shown_or_explained() -> None:
    ids = [f"F-{group}{number}" for group, count in GROUPS.items() for number in range(1, count + 1)]
    assert len(ids) == 103
    assert missing_ids(ids) == []
    assert all(len(reason) > 20 for reason in NOT_HERE.values())
    assert not {kind.id for kind in CATALOGUE} & set(NOT_HERE)


def test_names_are_unique_and_the_three_positions_exist() -> None:
    assert len({kind.name for kind in CATALOGUE}) == len(CATALOGUE)
    submits = {kind.act for kind in CATALOGUE if kind.port == "system" and "submit" in kind.verbs}
    assert {Act.LOSE_REQUEST, Act.LOSE_ANSWER, Act.LATE} <= submits


def test_every_effect_has_crash_points() -> None:
    """A new effect that is never crashed at cannot be added."""
    assert set(CALLS) == set(Effect.__args__)


def test_every_storm_says_what_it_is() -> None:
    assert list(STORMS) == [f"S{number}" for number in range(1, 9)]
    assert all(describe(name).startswith(f"{name}: ") for name in STORMS)


def test_the_page_has_the_same_list() -> None:
    """If this fails, run this file as a program: it writes the list anew."""
    assert _between(PAGE.read_text("utf-8")) == "".join(f"{line}\n" for line in table())


def table() -> Iterator[str]:
    yield "| kind | where | what happens |"
    yield "| --- | --- | --- |"
    for kind in CATALOGUE:
        yield f"| `{kind.name}` | {_where(kind)} | {kind.says} |"
    yield ""
    yield "| storm | what happens |"
    yield "| --- | --- |"
    for name in STORMS:
        yield f"| `{name}` | {describe(name).removeprefix(f'{name}: ').removesuffix('.')} |"
    yield ""
    yield "Kinds of the catalogue that these ports cannot show:"
    yield ""
    for name, reason in NOT_HERE.items():
        yield f"- {name}: {reason}"


def _where(kind: Kind) -> str:
    verbs = "any call" if len(kind.verbs) == 6 else ", ".join(kind.verbs)
    return f"{kind.port}: {verbs}"


def _between(text: str) -> str:
    return text.split(BEGIN + "\n")[1].split(END)[0]


if __name__ == "__main__":
    old = PAGE.read_text("utf-8")
    new = old.replace(BEGIN + "\n" + _between(old), "".join([BEGIN + "\n", *(f"{line}\n" for line in table())]))
    PAGE.write_text(new, "utf-8")
    sys.stdout.write(f"{PAGE} written\n")
