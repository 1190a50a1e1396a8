"""The machine's clock and its chance."""

import asyncio
import logging
import os
import time
from base64 import b32encode
from collections.abc import Callable

from moorage.core.model import Instant, SessionId

log = logging.getLogger(__name__)

NAP_MS = 3_600_000
"""Longest single sleep. The loop's own clock may stand still while a laptop sleeps; this bounds how late we notice."""

AHEAD_MS = 60_000
"""So far may the store be ahead of the wall clock before somebody is told: more than clocks of two machines differ."""


EPOCH = Instant(0)


def elapsed_ms() -> int:
    """Milliseconds since some time in the past; goes on while the machine sleeps, and nobody can set it."""
    source = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # the former is Linux's
    return time.clock_gettime_ns(source) // 1_000_000


def wall_ms() -> int:
    """Milliseconds since 1970, UTC, as the machine believes now."""
    return time.time_ns() // 1_000_000


class LocalClock:
    """
    Implements the port `Clock`: looks at the wall once, when it is made, and counts from there.

    Args:
        after: The latest time that was ever recorded (`SqlStore.newest`). The clock starts after it even if the wall
            clock was set back, or forgot the year, while the process was down: so it never runs backwards.
    """

    def __init__(
        self,
        after: Instant = EPOCH,
        wall: Callable[[], int] = wall_ms,
        elapsed: Callable[[], int] = elapsed_ms,
    ) -> None:
        seen = wall()
        if after > seen + AHEAD_MS:
            log.warning("the wall clock is %d s behind what was recorded; going on from there", (after - seen) // 1000)
        self._elapsed = elapsed
        self._offset = max(seen, after + 1) - elapsed()

    def now(self) -> Instant:
        """See `Clock.now`."""
        return Instant(self._offset + self._elapsed())

    async def sleep_until(self, at: Instant) -> None:
        """See `Clock.sleep_until`."""
        while (left_ms := at - self.now()) > 0:  # noqa: ASYNC110 (time is not an event)
            await asyncio.sleep(min(left_ms, NAP_MS) / 1000)


class SystemChoices:
    """Implements the port `Choices`: the kernel's random numbers."""

    def seed(self) -> int:
        """See `Choices.seed`."""
        return int.from_bytes(os.urandom(8), "big")

    def session_id(self) -> SessionId:
        """See `Choices.session_id`."""
        return SessionId(b32encode(os.urandom(16)).decode("ascii").rstrip("=").lower())
