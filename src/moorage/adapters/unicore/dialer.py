"""
The tunnel kind `unicore`: byte streams to jobs by port forwarding, an HTTP upgrade below the job's address.

Not over `pyunicore.forwarder`: it verifies no certificate, sends the login node's name as a socket's name, may swallow
the first bytes that the far side sends, blocks, and listens on all interfaces.
"""

import asyncio
import os
import socket
import ssl
import weakref
from asyncio import StreamReader, StreamWriter
from typing import Any
from urllib.parse import urlencode, urlsplit

from attrs import define, field

from moorage.adapters.unicore.config import UnicoreConfig
from moorage.core.model import Endpoint, Instant, Owner, SystemName
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.clock import Clock
from moorage.ports.credentials import Credentials
from moorage.ports.errors import PortError, Refused, Unauthorised, Unreachable
from moorage.ports.system import Handle

from . import translate
from .client import Client, Request, tls_context
from .rights import Rights
from .translate import Absent, Answer, SessionExpired, Verb

PROTOCOL = "UNICORE-Socket-Forwarding"
HEAD_LIMIT = 65_536
"""Bytes of an answer's head; the gateway's is below 1 kB."""

BODY_LIMIT = 4_096
BUFFER = 262_144
"""Bytes a stream holds for a slow reader; a round trip of 20 ms at 100 Mbit/s has as many."""

CONNECTS = 4
"""Parallel connects to one site (design, section 7): each costs it a handshake, a login and a process."""


def build(name: SystemName, options: UnicoreConfig, /, **context: Any) -> "UnicoreDialer":
    """
    Make the dialer of one site.

    Raises:
        ValueError: The options are not allowed here.
    """
    tls = tls_context(options, simulation=bool(context.get("simulation", False)))
    clock: Clock = context["clock"]
    credentials: Credentials = context["credentials"]
    timeouts: Timeouts = context.get("timeouts") or Timeouts()
    rights = Rights(name, options, credentials, clock)
    client = Client(name, options, tls, rights, timeouts)
    return UnicoreDialer(name, options, client, tls, timeouts)


@define(eq=False)
class UnicoreDialer:
    """Streams to the jobs of one site. See `moorage.ports.dialer.Dialer`."""

    name: SystemName
    config: UnicoreConfig
    client: Client
    tls: ssl.SSLContext
    timeouts: Timeouts
    _places: asyncio.Semaphore = field(factory=lambda: asyncio.Semaphore(CONNECTS))
    _refused: dict[Owner, tuple[Secret, Instant]] = field(factory=dict)
    _open: "weakref.WeakSet[StreamWriter]" = field(factory=weakref.WeakSet)

    async def dial(self, endpoint: Endpoint, job: Handle) -> tuple[StreamReader, StreamWriter]:
        """
        A stream to a port, or to a socket in the job's directory, as the endpoint says.

        The site answers before it has connected: a port where nobody listens is a stream that ends at once.
        """
        query = translate.forward_query(endpoint.host, endpoint.port, endpoint.socket, self.config.forward_from)
        if not translate.is_job_id(job.job):
            raise Refused(f"{self.name}: {job.tag}: that is no job id of a UNICORE site")
        what = f"{self.name}: stream to {job.tag}"
        try:
            async with asyncio.timeout(self.timeouts.connect_s + self.timeouts.call_s), self._places:
                reader, writer = await self._tries(f"/jobs/{job.job}/forward-port?{urlencode(query)}", job, what)
        except TimeoutError as error:
            raise Unreachable(f"no answer in time ({what})") from error
        self._open.add(writer)
        return reader, writer

    async def close(self) -> None:
        for writer in list(self._open):
            writer.transport.abort()
        await self.client.close()

    async def _tries(self, target: str, job: Handle, what: str) -> tuple[StreamReader, StreamWriter]:
        """A forgotten session, and refused credentials that can be renewed, cost one more try each."""
        owner, renewed, expired = job.owner, False, False
        while True:
            header = await self.client.rights.header(owner)
            self._check_pause(owner, header, what)
            session = await self._session(job)
            try:
                return await self._upgrade(target, header, session, what)
            except SessionExpired as error:
                self.client.forget_session(owner, session)
                if expired:
                    raise Unreachable(f"{what}: {error}") from error
                expired = True
            except Unauthorised:
                self.client.forget_session(owner, session)
                if renewed or not await self.client.rights.renew(owner, header):
                    self._refused[owner] = (header, self.client.rights.clock.now())
                    raise
                renewed = True

    def _check_pause(self, owner: Owner, header: Secret, what: str) -> None:
        """Credentials that were refused are not shown again for a while; others are."""
        refused = self._refused.get(owner)
        if refused is None:
            return
        if refused[0] == header and self.client.rights.clock.now() < refused[1] + self.timeouts.auth_pause_s * 1000:
            raise Unauthorised(f"the site has refused these credentials; they are not tried again yet ({what})")
        del self._refused[owner]

    async def _session(self, job: Handle) -> str | None:
        """
        The owner's security session.

        An upgrade without one makes a new one on the server, which keeps five per user; and it does not tell its id.
        So the first dial of an owner asks how the job is, which does.
        """
        session = self.client.session(job.owner)
        if session is None:
            request = Request(f"status of {job.tag}", Verb.ASK, "GET", f"/jobs/{job.job}", params={"fields": "status"})
            try:
                await self.client.call(job.owner, request)
            except Absent as error:
                raise Unreachable(f"{self.name}: {job.tag}: the site does not know the job at the moment") from error
            except (Unauthorised, Unreachable):
                raise
            except PortError as error:
                raise Unreachable(error.note) from error
            session = self.client.session(job.owner)
        return session

    async def _upgrade(
        self, target: str, header: Secret, session: str | None, what: str
    ) -> tuple[StreamReader, StreamWriter]:
        reader, writer = await self._connected(what)
        try:
            writer.write(self._request(target, header, session))
            await writer.drain()
            answer = await _head(reader)
            if answer.status == 101 and answer.headers.get("upgrade", "").lower() == PROTOCOL.lower():
                return reader, writer
            body = await _body(reader, answer)
            raise _error(Answer(answer.status, answer.headers, body), what)
        except (OSError, EOFError, asyncio.LimitOverrunError) as error:
            writer.transport.abort()
            raise Unreachable(f"the connection ended before there was a stream ({what})") from error
        except BaseException:
            writer.transport.abort()
            raise

    async def _connected(self, what: str) -> tuple[StreamReader, StreamWriter]:
        place = urlsplit(self.client.base)
        secure = place.scheme == "https"
        port = place.port or (443 if secure else 80)
        assert place.hostname is not None
        try:
            async with asyncio.timeout(self.timeouts.connect_s):
                return await asyncio.open_connection(
                    place.hostname, port, ssl=self.tls if secure else None, limit=BUFFER
                )
        except ssl.SSLError as error:
            raise Unreachable(f"the site does not prove who it is: its certificate is not accepted ({what})") from error
        except socket.gaierror as error:
            raise Unreachable(f"the name {place.hostname} is not known ({what})") from error
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else type(error).__name__
            raise Unreachable(f"no connection to {place.hostname}:{port}: {why} ({what})") from error

    def _request(self, target: str, header: Secret, session: str | None) -> bytes:
        place = urlsplit(self.client.base)
        lines = [
            f"GET {place.path}{target} HTTP/1.1",
            f"Host: {place.netloc}",
            "Connection: Upgrade",
            f"Upgrade: {PROTOCOL}",
            "Accept: application/json",
            f"Authorization: {header.reveal()}",
        ]
        if session is not None:
            lines.append(f"X-UNICORE-SecuritySession: {session}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")


async def _head(reader: StreamReader) -> Answer:
    """Status and headers. The reader keeps what comes behind them: the far side may speak first."""
    head = await reader.readuntil(b"\r\n\r\n")
    if len(head) > HEAD_LIMIT:
        raise EOFError
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isascii() and words[1].isdecimal()):
        raise EOFError
    pairs = (line.partition(":") for line in lines[1:] if ":" in line)
    return Answer(int(words[1][:4]), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def _body(reader: StreamReader, answer: Answer) -> bytes:
    """What a refusal says, if it is short and comes at once; the gateway sends none."""
    length = answer.headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal() and len(length) < 5 and int(length) <= BODY_LIMIT):
        return b""
    try:
        async with asyncio.timeout(1):
            return await reader.readexactly(int(length))
    except (TimeoutError, EOFError, OSError):
        return b""


def _error(answer: Answer, what: str) -> Exception:
    """Why there is no stream, in the three words of the port."""
    if answer.status in (101, 200):
        return Refused(f"something between us and the site does not pass the upgrade on ({what})")
    error = translate.error_of(answer, Verb.ASK, what, translate.EPOCH)
    if isinstance(error, Refused | Unauthorised | SessionExpired):
        return error
    note = error.note if isinstance(error, PortError) else str(error)
    return Unreachable(note)
