"""Knocking at a launcher's gate: a stream that is handed on has proven who is at its other end."""

import asyncio
import secrets
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from moorage.core.gate import LINE_LIMIT, Answer, Purpose, Unproven, Verdict, check_answer, request
from moorage.core.model import Endpoint, SessionId
from moorage.core.secret import Secret
from moorage.ports.dialer import Lanes
from moorage.ports.errors import Unreachable
from moorage.ports.system import Handle


class Gates(Protocol):
    """The one thing that a relay wants of a vault (`moorage.ports.credentials.Vault`)."""

    async def gate(self, session: SessionId, attempt: int) -> Secret:
        """The gate secret of an attempt; `KeyError` if it was revoked or never issued."""
        ...


class Dialing(Protocol):
    """The one thing that knocking wants of a dialer (`moorage.ports.dialer.Dialer`)."""

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        """A byte stream to the endpoint."""
        ...


@define
class Counter:
    """
    Numbers for the gate: microseconds on the wall clock, never the same twice.

    A restarted relay goes on above its predecessor because the clock does; a clock that was set back is healed by
    the launcher's `floor`.
    """

    wall_s: Callable[[], float] = time.time
    _last: int = field(init=False, default=0)

    def next(self) -> int:
        self._last = max(self._last + 1, int(self.wall_s() * 1_000_000))
        return self._last

    def raise_to(self, floor: int) -> None:
        self._last = max(self._last, floor)


@define
class Knocker:
    """Makes proven streams for one dialer."""

    dialer: Dialing
    counter: Counter

    def crowded(self, writer: StreamWriter) -> bool:
        """Whether a stream that nobody uses yet is better replaced; see `moorage.ports.dialer.Lanes`."""
        return isinstance(self.dialer, Lanes) and self.dialer.crowded(writer)

    async def knock(
        self, secret: Secret, purpose: Purpose, endpoint: Endpoint, job: Handle
    ) -> tuple[StreamReader, StreamWriter, Answer]:
        """
        A stream to the endpoint, and what its launcher said. The caller owns the stream.

        Nothing of a user has been sent on it. Its launcher was told a number that it had not seen; one that finds it
        too old says from where to count, and is asked once more.

        Raises:
            Unproven: Somebody else is there.
            PortError: As `Dialer.dial`; `Unreachable` also if the stream ended without a word.
        """
        reader, writer, answer = await self._once(secret, purpose, endpoint, job)
        if answer.verdict is Verdict.STALE:
            writer.transport.abort()
            self.counter.raise_to(answer.floor or 0)
            reader, writer, answer = await self._once(secret, purpose, endpoint, job)
        return reader, writer, answer

    async def _once(
        self, secret: Secret, purpose: Purpose, endpoint: Endpoint, job: Handle
    ) -> tuple[StreamReader, StreamWriter, Answer]:
        reader, writer = await self.dialer.dial(endpoint, job)
        try:
            asked = request(secret, purpose, job.tag, endpoint.nonce, self.counter.next(), secrets.token_hex(16))
            writer.write(asked.line)
            if not (line := await _line(reader)):
                raise Unreachable("whoever is there said nothing: nobody listens, or no launcher of this session")
            return reader, writer, check_answer(secret, asked, line)
        except ValueError as error:  # the endpoint's nonce is none: it is not our launcher's report
            writer.transport.abort()
            raise Unproven(str(error)) from None
        except BaseException:
            writer.transport.abort()
            raise


async def _line(reader: StreamReader) -> bytes:
    """The first line, or as much as there is of it; never more than a line may have."""
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return bytes(error.partial)
    except (asyncio.LimitOverrunError, OSError):
        return b""
    return bytes(line[: LINE_LIMIT + 1])
