"""
The control socket: one JSON object per line, each answered by one with the same `id`, in any order.

    -> {"id": 1, "do": "hello", "protocol": 1}
    <- {"id": 1, "ok": {"protocol": 1, "pid": 4711}}
    <- {"id": 2, "error": ["unreachable", "no listener for session ..."]}

A client says hello first; a relay that does not speak its protocol refuses everything else.
"""

import asyncio
import json
import logging
import os
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Mapping
from typing import Any

from attrs import asdict

from moorage.core.model import FailureKind, SessionId
from moorage.ports.errors import PortError, Refused

from .peers import Peers
from .server import Relay
from .target import from_data

_log = logging.getLogger(__name__)

PROTOCOL = 1
_encode = json.JSONEncoder(separators=(",", ":")).encode
LINE_LIMIT = 65_536
"""Of a request; the largest, `open`, has about a thousand bytes."""


class Control:
    """Answers clients of the control socket."""

    def __init__(self, relay: Relay, stop: Callable[[], None]) -> None:
        self._relay, self._stop, self._peers = relay, stop, Peers()
        self._writers: set[StreamWriter] = set()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """One client, until it goes. Its calls run side by side, and to their end even if it goes."""
        # The socket is in a directory of ours; asking who it is costs nothing.
        if not self._peers.admits(writer.get_extra_info("socket")):
            writer.transport.abort()
            return
        self._writers.add(writer)
        greeted = False
        calls: set[asyncio.Task[None]] = set()
        try:
            while line := await reader.readline():
                request = json.loads(line)
                number, verb = request.get("id"), request.get("do")
                if verb == "hello" and request.get("protocol") == PROTOCOL:
                    greeted = True
                    _say(writer, {"id": number, "ok": {"protocol": PROTOCOL, "pid": os.getpid()}})
                elif not greeted:
                    _say(writer, _error(number, Refused(f"this relay speaks protocol {PROTOCOL}")))
                else:
                    call = asyncio.create_task(self._answer(writer, number, request))
                    calls.add(call)
                    call.add_done_callback(calls.discard)
                await writer.drain()
        except (ValueError, AttributeError, OSError) as error:  # no JSON object, too long, or cut
            _log.info("a client of the control socket is gone: %s", type(error).__name__)
        finally:
            self._writers.discard(writer)
            writer.close()

    @property
    def clients(self) -> int:
        return len(self._writers)

    def close(self) -> None:
        """Send every client away."""
        for writer in self._writers:
            writer.transport.abort()

    async def _answer(self, writer: StreamWriter, number: Any, request: Mapping[str, Any]) -> None:
        try:
            answer = {"id": number, "ok": await self._perform(request)}
        except PortError as error:
            answer = _error(number, error)
        except (KeyError, ValueError, TypeError) as error:
            answer = _error(number, Refused(f"the relay does not understand the call: {type(error).__name__}"))
            _log.exception("a call was not understood")
        if not writer.is_closing():
            _say(writer, answer)

    async def _perform(self, request: Mapping[str, Any]) -> Any:
        match request["do"]:
            case "open":
                return (await self._relay.open(from_data(request["target"]))).address
            case "probe":
                return asdict(await self._relay.probe(SessionId(request["session"])))
            case "close":
                return await self._relay.close(SessionId(request["session"]))
            case "list":
                return {session: asdict(report) for session, report in (await self._relay.list()).items()}
            case "details":
                return {session: asdict(details) for session, details in self._relay.details().items()}
            case "stop":
                self._stop()
                return None
            case other:
                raise ValueError(str(other)[:40])


def _say(writer: StreamWriter, answer: Mapping[str, Any]) -> None:
    writer.write(_encode(answer).encode("ascii") + b"\n")


def _error(number: Any, error: PortError) -> dict[str, Any]:
    return {"id": number, "error": [error.kind.value, error.note]}


def raised(kind: str, note: str) -> PortError:
    """The error that an answer tells of."""
    return next((cls(note) for cls in PortError.__subclasses__() if cls.kind is FailureKind(kind)), Refused(note))
