"""
The one road between the process under test and the simulated world.

A call of a double is a request on its way, an effect in the world, and an answer on its way back. The effect belongs to
the world: it happens even if the caller has been cancelled or killed meanwhile. Here is where faults strike and where
a process can be killed, at five positions around every effect:

    (a) before the intent is durable      (b) intent durable, call not made     (c) call made, not yet in the world
    (d) in the world, answer not read     (e) answer read, result not durable

(a) and (e) are positions of the store; (b), (c) and (d) are here.
"""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, field

from moorage.ports.errors import Malformed, Unanswered

from .choices import Source, between, chance, pick
from .crashes import Boundary, Position
from .faults import BUGS, PASS, Act, Faults, Verdict
from .loop import VirtualLoop

Answer = TypeVar("Answer")
Wrap = Callable[[BaseException], BaseException]
"""Words of the port for an error that a fault made: a store knows other errors than a system."""


@define(eq=False)
class Life:
    """One run of a process, from its start to its end. What a dead or paused one asks for does not get through."""

    number: int
    alive: bool = True
    resumed: "asyncio.Future[None] | None" = None
    """Set while the process is paused."""


class Killed(asyncio.CancelledError):
    """The process is dead; what still runs of it is only memory being freed."""


@define
class Road:
    """
    Every call of one process to its world.

    Args:
        latency_ms: From and to, of an ordinary call.
        kill: Ends the process; called at an armed boundary.
        late_ms: Up to how late a lost or late call still takes effect. Not later than the caller's own deadline: who
            looks a thing up after that may believe what he sees.
    """

    loop: VirtualLoop
    life: Life
    faults: Faults
    source: Source
    boundary: Boundary
    kill: Callable[[], None]
    latency_ms: tuple[int, int] = (5, 60)
    late_ms: int = 20_000
    calls: dict[str, int] = field(factory=dict)
    trace: Callable[[str], None] | None = None
    store_takes_time: bool = True
    """Whether others have a turn while the store works; a local one takes a millisecond that nobody notices."""
    store_at: int = 0
    """When the store is done with all it was asked for: it has one writer, and what comes later is done later."""

    async def call(
        self,
        port: str,
        verb: str,
        place: str,
        act: Callable[[Verdict], Answer],
        wrap: Wrap | None = None,
        deadline_ms: int = 30_000,
        position: str = "",
    ) -> Answer:
        """
        One call. `act` is the effect in the world; it may raise what the port allows.

        Args:
            place: Which system or store; windows of faults are per place.
            wrap: Makes the port's own error of a fault's.
            deadline_ms: After how long the caller has surely given up.
            position: Which effect of the machine this is, for killing the process at its boundaries.
        """
        life = self.life
        if not life.alive:
            raise Killed
        if life.resumed is not None:
            await asyncio.shield(life.resumed)
            if not life.alive:
                raise Killed
        key = f"{place}.{verb}" if place else f"{port}.{verb}"
        self.calls[key] = self.calls.get(key, 0) + 1
        armed = self.boundary.at(position) if position else None
        if armed is Position.BEFORE_CALL:
            self._kill()
        verdict = self.faults.verdict(port, verb, place) if self.faults.enabled(port, verb) else PASS
        if self.trace is not None and verdict.kind is not None:
            self.trace(f"fault {verdict.kind.name} at {key}")
        if verdict is PASS and port == "store" and not self.store_takes_time and armed is None:
            return act(verdict)
        answer: asyncio.Future[Answer] = self.loop.create_future()
        low, high = self.latency_ms
        at = self.loop.now_ms + low + int(self.source.fraction() * (high - low + 1))
        if port == "store":
            at = self.store_at = max(at, self.store_at)
        if verdict is PASS:
            self.loop.call_at_ms(at, self._arrive, act, verdict, answer, armed)
        else:
            self._strike(act, verdict, answer, armed, at, wrap, deadline_ms)
        if armed is Position.AFTER_CALL:
            self._kill()
        return await answer

    def _kill(self) -> None:
        self.kill()
        raise Killed

    def _arrive(
        self, act: Callable[[Verdict], Any], verdict: Verdict, answer: "asyncio.Future[Any]", armed: "Position | None"
    ) -> None:
        """The request is there: the effect happens, whoever still waits for it."""
        try:
            result = act(verdict)
        except Exception as error:  # noqa: BLE001 (it is the caller's, not ours)
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # the caller may have gone; then nobody has to be told
            return
        if armed is Position.AFTER_EFFECT and self.life.alive:
            self.kill()
        if not answer.done():
            answer.set_result(result)

    def _strike(
        self,
        act: Callable[[Verdict], Any],
        verdict: Verdict,
        answer: "asyncio.Future[Any]",
        armed: "Position | None",
        at: int,
        wrap: Wrap | None,
        deadline_ms: int,
    ) -> None:
        """What a fault makes of the call."""
        later = self.loop.call_at_ms
        words = wrap or (lambda error: error)
        # A store answers or fails: whoever asks it has no deadline of their own.
        surely = wrap is not None
        nobody: asyncio.Future[Any] = self.loop.create_future()
        match verdict.act:
            case Act.LIE | None:
                later(at, self._arrive, act, verdict, answer, armed)
            case Act.REFUSE | Act.NOISE:
                assert verdict.error is not None
                later(at, _fail, answer, words(verdict.error))
            case Act.GARBLE:
                assert verdict.error is not None
                later(at, self._arrive, act, verdict, nobody, armed)
                later(at, _fail, answer, words(verdict.error))
            case Act.LOSE_REQUEST:
                self._never(answer, at, deadline_ms, words, surely)
            case Act.LOSE_ANSWER if verdict.lie == "at once":
                later(at, self._arrive, act, verdict, nobody, armed)
                later(at + 1, _fail, answer, words(Unanswered("500 after the effect")))
            case Act.LOSE_ANSWER:
                later(at, self._arrive, act, verdict, nobody, armed)
                self._never(answer, at + 1, deadline_ms, words, surely)
            case Act.LATE:
                # In the world before the deadline or soon after it, answered when nobody listens any more.
                effect_at = at + int(between(self.source, 0, min(self.late_ms, deadline_ms), "late effect"))
                later(effect_at, self._arrive, act, verdict, nobody, armed)
                self._never(answer, effect_at + 1, deadline_ms, words, surely)
            case Act.DELAY:
                slow_at = at + int(between(self.source, 0, 1.2 * deadline_ms, "slow"))
                if surely:
                    self.store_at = slow_at
                later(slow_at, self._arrive, act, verdict, answer, armed)
            case Act.HANG:
                pass
            case Act.BUG:
                self._bug(act, verdict, answer, at, armed)
            case _:
                raise AssertionError(f"{verdict.act} is nothing that happens to a call")

    def _never(self, answer: "asyncio.Future[Any]", at: int, deadline_ms: int, words: Wrap, surely: bool) -> None:
        """No answer: the connection breaks at some time, or the caller's own deadline ends it."""
        if surely or chance(self.source, 0.5, "the connection breaks"):
            at += int(between(self.source, 0, deadline_ms, "when the connection breaks"))
            self.loop.call_at_ms(at, _fail, answer, words(Unanswered("the connection broke")))

    def _bug(
        self, act: Callable[[Verdict], Any], verdict: Verdict, answer: "asyncio.Future[Any]", at: int, armed: Any
    ) -> None:
        # A call that says it did what it did not do is a lie that nobody could see; these are bugs that can be seen.
        silent = chance(self.source, 0.5, "the bug is in the answer")
        if silent or chance(self.source, 0.5, "the bug comes after the effect"):
            self.loop.call_at_ms(at, self._arrive, act, verdict, self.loop.create_future(), armed)
        if silent:
            self.loop.call_at_ms(
                at + 1, _give, answer, pick(self.source, (None, 7, "", b"x", [None], {"a": 1}), "value")
            )
        else:
            self.loop.call_at_ms(at + 1, _fail, answer, pick(self.source, BUGS, "which exception")())


def _fail(answer: "asyncio.Future[Any]", error: BaseException) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()


def _give(answer: "asyncio.Future[Any]", value: Any) -> None:
    if not answer.done():
        answer.set_result(value)


__all__ = ["Killed", "Life", "Malformed", "Road"]
