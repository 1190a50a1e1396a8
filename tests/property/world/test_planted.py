"""Bugs of others, planted in the source: the simulated world finds each of them."""

import pytest
from planted import ELSEWHERE, MODES, MOST_SEEDS, PLANTED, Planted, find


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Planted) -> None:
    """Some seed breaks an invariant, or the bug is one that nobody would notice."""
    assert find(bug, range(MOST_SEEDS)), f"{bug.name} ({bug.says}) lives unseen in {MOST_SEEDS} worlds"


def test_there_are_enough_and_they_have_names() -> None:
    """At least 25, each with a name of its own and a mode of the list or a smell."""
    assert len(PLANTED) >= 25
    assert len({bug.name for bug in PLANTED}) == len(PLANTED)
    modes = {int(bug.mode) for bug in PLANTED if bug.mode != "smell"}
    assert modes | set(ELSEWHERE) == set(MODES)
    assert len(modes) >= 20
