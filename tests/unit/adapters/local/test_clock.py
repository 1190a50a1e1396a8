"""The clock of one machine, with a wall clock that misbehaves."""

import pytest

from moorage.adapters.local.clock import LocalClock, SystemChoices
from moorage.core.model import Instant

DAY_MS = 86_400_000


class Machine:
    """A wall clock that anybody may set, and a counter that nobody can."""

    def __init__(self) -> None:
        self.wall = 1_700_000_000_000
        self.elapsed = 12_345

    def clock(self, after: int = 0) -> LocalClock:
        return LocalClock(Instant(after), lambda: self.wall, lambda: self.elapsed)


def test_it_shows_the_time() -> None:
    machine = Machine()
    assert machine.clock().now() == machine.wall


@pytest.mark.parametrize("jump", [-DAY_MS, DAY_MS, -1_700_000_000_000])
def test_jumps_of_the_wall_clock_do_not_reach_us(jump: int) -> None:
    machine = Machine()
    clock = machine.clock()
    before = clock.now()
    machine.wall += jump
    assert clock.now() == before
    machine.elapsed += 250
    assert clock.now() == before + 250


def test_a_restart_never_goes_back(caplog: pytest.LogCaptureFixture) -> None:
    """The process died with a time in the store, and the machine came up in 1970."""
    machine = Machine()
    recorded = machine.clock().now()
    machine.wall, machine.elapsed = 0, 0
    clock = machine.clock(after=recorded)
    assert clock.now() > recorded
    assert "behind what was recorded" in caplog.text


def test_a_restart_after_a_pause_shows_the_time_again() -> None:
    machine = Machine()
    recorded = machine.clock().now()
    machine.wall += DAY_MS
    assert machine.clock(after=recorded).now() == machine.wall


async def test_sleep_until_is_over_at_that_time() -> None:
    clock = LocalClock()
    at = Instant(clock.now() + 15)
    await clock.sleep_until(at)
    assert clock.now() >= at
    await clock.sleep_until(Instant(0))


def test_choices_have_their_form_and_differ() -> None:
    choices = SystemChoices()
    ids = {choices.session_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id_) == 26 and set(id_) <= set("abcdefghijklmnopqrstuvwxyz234567") for id_ in ids)
    seeds = {choices.seed() for _ in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**64 for seed in seeds)
