"""What every `Wakeups` does: functions that take `make`, which gives new wake-ups on the clock that they are given."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from moorage.core.model import NEVER, Instant, SessionId
from moorage.ports.clock import Clock
from moorage.ports.wakeups import Wakeups

Make = Callable[[Clock], Wakeups]
Claim = Callable[[Make], Awaitable[None]]

A, B, C = (SessionId(letter * 26) for letter in "abc")


class HandClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.time = Instant(1000)
        self.sleepers: list[tuple[Instant, asyncio.Event]] = []
        self.sleeps = 0

    def now(self) -> Instant:
        return self.time

    async def sleep_until(self, at: Instant) -> None:
        self.sleeps += 1
        if at > self.time:
            done = asyncio.Event()
            self.sleepers.append((at, done))
            await done.wait()

    async def advance(self, ms: int) -> None:
        self.time = Instant(self.time + ms)
        for at, done in self.sleepers:
            if at <= self.time:
                done.set()
        await settle()


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


class Run:
    """A run whose handler writes down what it gets, and when."""

    def __init__(self, wakeups: Wakeups, clock: HandClock) -> None:
        self.handled: list[tuple[SessionId, int]] = []
        self.clock = clock
        self.task = asyncio.ensure_future(wakeups.run(self.handle))

    async def handle(self, session: SessionId) -> None:
        self.handled.append((session, self.clock.now()))

    async def __aenter__(self) -> "Run":
        await settle()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def each_is_handled_at_its_time_in_order(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    await wakeups.wake(B, Instant(1200))
    async with Run(wakeups, clock) as run:
        await wakeups.wake(A, Instant(1100))
        await wakeups.wake(C, Instant(900))
        await settle()
        assert run.handled == [(C, 1000)]
        await clock.advance(99)
        assert run.handled == [(C, 1000)]
        await clock.advance(1)
        await clock.advance(500)
        assert run.handled == [(C, 1000), (A, 1100), (B, 1600)]


async def a_newer_call_replaces_an_older_one(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    async with Run(wakeups, clock) as run:
        await wakeups.wake(A, Instant(1100))
        await wakeups.wake(A, Instant(1500))
        await wakeups.wake(B, Instant(1500))
        await wakeups.wake(B, Instant(1200))
        await clock.advance(300)
        assert run.handled == [(B, 1300)]
        await clock.advance(300)
        assert run.handled == [(B, 1300), (A, 1600)]
        await clock.advance(10_000)
        assert len(run.handled) == 2


async def never_is_not_waited_for(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    async with Run(wakeups, clock) as run:
        await wakeups.wake(A, Instant(1100))
        await wakeups.wake(A, NEVER)
        await clock.advance(10**15)
        assert run.handled == []


async def the_handler_may_plan_the_next_one(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    times = []

    async def handle(session: SessionId) -> None:
        times.append(clock.now())
        await wakeups.wake(session, Instant(clock.now() + 100))

    task = asyncio.ensure_future(wakeups.run(handle))
    await wakeups.wake(A, Instant(0))
    await settle()
    for _ in range(3):
        await clock.advance(100)
    assert times == [1000, 1100, 1200, 1300]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def a_cancelled_run_loses_nothing(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    began = asyncio.Event()

    async def hang(_session: SessionId) -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(wakeups.run(hang))
    await wakeups.wake(A, Instant(0))
    await wakeups.wake(B, Instant(1))
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    async with Run(wakeups, clock) as run:
        await settle()
        assert [session for session, _ in run.handled] == [A, B]


async def an_exception_of_the_handler_ends_the_run_and_loses_nothing(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)

    async def broken(_session: SessionId) -> None:
        raise ZeroDivisionError

    await wakeups.wake(A, Instant(0))
    with pytest.raises(ZeroDivisionError):
        await wakeups.run(broken)
    async with Run(wakeups, clock) as run:
        await settle()
        assert [session for session, _ in run.handled] == [A]


async def nothing_is_polled(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    async with Run(wakeups, clock) as run:
        await settle()
        assert clock.sleeps == 0
        await wakeups.wake(A, Instant(5000))
        await settle()
        assert clock.sleeps == 1
        await clock.advance(3999)
        assert (run.handled, clock.sleeps) == ([], 1)


async def thousands_are_all_handled(make: Make) -> None:
    clock = HandClock()
    wakeups = make(clock)
    every = [SessionId(f"{number:026d}") for number in range(3000)]
    for again in range(3):
        for number, session in enumerate(every):
            await wakeups.wake(session, Instant(2000 + number % 7 + again))
    async with Run(wakeups, clock) as run:
        clock.time = Instant(5000)
        await wakeups.wake(A, Instant(0))
        for _ in range(100):
            await settle()
        assert sorted(session for session, _ in run.handled) == sorted([A, *every])


CLAIMS: tuple[Claim, ...] = (
    each_is_handled_at_its_time_in_order,
    a_newer_call_replaces_an_older_one,
    never_is_not_waited_for,
    the_handler_may_plan_the_next_one,
    a_cancelled_run_loses_nothing,
    an_exception_of_the_handler_ends_the_run_and_loses_nothing,
    nothing_is_polled,
    thousands_are_all_handled,
)
