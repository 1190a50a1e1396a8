"""
The calls: `pyunicore.aio` over one bounded, verified HTTP client per site. The only module that knows httpx.

What comes back is an `Answer`, whole; what goes wrong is a `PortError`, or `Absent` for a 404 about one thing.
"""

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import Any
from urllib.parse import urlencode

import aiohttp
import httpx
from attrs import define, field, frozen
from httpx_aiohttp import AiohttpTransport
from pyunicore.aio.client import Transport
from pyunicore.credentials import Anonymous, Credential

from moorage.core.model import NOTE_LIMIT, Owner, SystemName
from moorage.core.secret import Secret
from moorage.core.timeouts import Timeouts
from moorage.ports.errors import Malformed, PortError, Refused, Unanswered, Unauthorised, Unreachable

from .config import UnicoreConfig
from .rights import Rights
from .translate import Answer, SessionExpired, Verb, bases_of, error_of

JSON_LIMIT = 4 * 1024 * 1024
"""Bytes of any document we ask for: a page of 200 addresses has 20 kB, a job's log some hundred."""

FIRST_CALL_S = 2.0
"""So long calls of one account wait for the first of them to bring a session, before they go without."""

IDLE_S = 15.0
"""A connection is not used again after this rest: servers of the bundle close it after 30 s, and a call that meets
the closing has to be looked up."""

MOST_LOGINS = 2_000


def tls_context(config: UnicoreConfig, *, simulation: bool) -> ssl.SSLContext:
    """
    How the site's certificate is checked.

    Raises:
        Refused: Verification was to be left out, or credentials to go in clear text, outside the simulator.
    """
    plain = config.url.startswith("http://")
    if (config.insecure or plain) and not simulation:
        what = "an address without TLS" if plain else "insecure: true"
        raise Refused(f"{what} is for simulated sites only; give ca_file if the site has its own authority")
    if config.ca_file is None and not config.insecure:
        return _known_authorities()
    context = ssl.create_default_context(cafile=config.ca_file)
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


@cache
def _known_authorities() -> ssl.SSLContext:
    """The machine's own list, read once for all sites: that takes 60 ms, and a Hub may have twenty sites."""
    return ssl.create_default_context()


@frozen
class Request:
    """
    One call.

    Args:
        what: For notes to people.
        path: Behind the site's base; never an address that an answer named.
        most: Bytes of the body.
        tail: Only the end of a longer body is wanted.
    """

    what: str
    verb: Verb
    method: str
    path: str
    params: Mapping[str, str] = field(factory=dict)
    headers: Mapping[str, str] = field(factory=dict)
    json: Any = None
    most: int = JSON_LIMIT
    tail: bool = False
    deadline_s: float | None = None


class Client:
    """One site. Made anywhere, used in one event loop; `close` gives its connections back."""

    def __init__(
        self, name: SystemName, config: UnicoreConfig, context: ssl.SSLContext, rights: Rights, timeouts: Timeouts
    ) -> None:
        self.name = name
        self.base = bases_of(config)[0]
        self.rights = rights
        self.timeouts = timeouts
        self._logins: dict[str, _Login] = {}
        self._places = asyncio.Semaphore(config.connections)
        self._phases = httpx.Timeout(timeouts.submit_s, connect=timeouts.connect_s)
        # Without `verify` it would read another list of authorities, only to throw it away.
        inner = AiohttpTransport(verify=context, client=lambda: _connections(context, config.connections))
        self._http = _NoCookieClient(
            transport=_Whole(inner),
            trust_env=False,  # neither proxies nor .netrc of whoever runs the Hub
            follow_redirects=False,
            headers={"Accept-Encoding": "identity"},  # a bound on bytes is none on what they unpack to
        )

    async def call(self, owner: Owner | None, request: Request) -> Answer:
        """
        Make a call on behalf of an owner, or of nobody.

        1. A session that the server has forgotten (432) costs one more try, without it.
        2. Credentials that are refused cost one more try, if the issuer has others now or a session hid them.
        3. The deadline is for all of it, whatever trickles in meanwhile.

        Raises:
            PortError: By what the answer, or its lack, means.
            Absent: 404 about the thing that was asked for.
        """
        if self._http.is_closed:
            # pyunicore would make itself another client, without any of what ours has.
            raise Unreachable(f"{self.name}: {request.what}: the adapter is closed")
        begun = _Begun()
        try:
            async with asyncio.timeout(request.deadline_s or self.timeouts.call_s):
                return await self._tries(owner, request, begun)
        except TimeoutError as error:
            note = f"no answer in time ({self.name}: {request.what})"
            raise (Unanswered if begun.sent else Unreachable)(note) from error

    def session(self, owner: Owner) -> str | None:
        """The security session of an owner, for connections of our own; `None` if there is none yet."""
        session: str | None = self._login(owner).transport.last_session_id
        return session

    def forget_session(self, owner: Owner, session: str | None) -> None:
        """The server does not know it any more."""
        login = self._login(owner)
        if login.transport.last_session_id == session:
            login.transport.last_session_id = None

    async def close(self) -> None:
        await self._http.aclose()

    def _login(self, owner: Owner | None) -> "_Login":
        account = "" if owner is None else self.rights.account(owner)
        login = self._logins.pop(account, None)
        if login is None:
            preferences = None if owner is None else self.rights.preferences(owner)
            login = _Login.made(self._http, self._phases, preferences, anonymous=owner is None)
        self._logins[account] = login
        while len(self._logins) > MOST_LOGINS:
            del self._logins[next(iter(self._logins))]
        return login

    async def _tries(self, owner: Owner | None, request: Request, begun: "_Begun") -> Answer:
        login = self._login(owner)
        renewed = expired = False
        while True:
            header = None if owner is None else await self.rights.header(owner)
            session = login.transport.last_session_id
            try:
                return await self._in_turn(login, header, request, begun)
            except SessionExpired as error:
                if login.transport.last_session_id == session:
                    login.transport.last_session_id = None
                if expired:
                    raise Unreachable(f"{self.name}: {error}") from error
                expired = True
            except Unauthorised as error:
                if renewed or owner is None or header is None:
                    raise self._with_account(error, owner) from error
                # With a session the credentials were not looked at, and the session may be one that was opened with
                # others, or as nobody: the server gives one to whoever it does not know, too.
                if not await self.rights.renew(owner, header) and session is None:
                    raise self._with_account(error, owner) from error
                self.forget_session(owner, login.transport.last_session_id)
                renewed = True

    def _with_account(self, error: Unauthorised, owner: Owner | None) -> Unauthorised:
        """The refusal, and whose credentials the site was shown."""
        shown = "" if owner is None else f"; asked {self.rights.shown(owner)}"
        return Unauthorised((error.note + shown)[:NOTE_LIMIT])

    async def _in_turn(self, login: "_Login", header: Secret | None, request: Request, begun: "_Begun") -> Answer:
        """
        The call, with the session of this account.

        The server makes a new session for every request that comes without one, keeps five per user and address,
        and for the sixth throws out the oldest of all users. So the first call of an account goes alone and the
        others wait for its session.
        """
        if login.transport.last_session_id is not None:
            return await self._once(login, header, request, begun)
        async with _briefly(login.first):
            return await self._once(login, header, request, begun)

    async def _once(self, login: "_Login", header: Secret | None, request: Request, begun: "_Begun") -> Answer:
        what = f"{self.name}: {request.what}"
        if header is not None:
            login.credential.header = header
        async with self._places:
            begun.sent = True
            try:
                answer = await login.sent(self.base, request)
            except _Answered as caught:
                now = datetime.fromtimestamp(self.rights.clock.now() / 1000, UTC)
                raise error_of(caught.answer, request.verb, what, now) from None
            except _Broken as caught:
                raise Malformed(f"{caught} ({what})") from caught
            except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
                raise _failure(error, what) from error
        if answer.status not in (200, 201, 204, 206):
            raise Malformed(f"the site answers with status {answer.status} ({what})")
        return answer


@define(eq=False)
class _Begun:
    """Whether a request has gone out: before that, nothing can have happened."""

    sent: bool = False


class _Header(Credential):  # type: ignore[misc]  # pyunicore has no types
    """Credentials of pyunicore that hold what `Rights` gave for the next call."""

    header: Secret | None = None

    def get_auth_header(self) -> str | None:
        return None if self.header is None else self.header.reveal()


@define(eq=False)
class _Login:
    """
    An account at the site: pyunicore's transport with its security session and preferences.

    Preferences stick to a session on the server, so those that differ never share one. pyunicore's resource objects
    copy a transport when they are made and never give a session back; so the transport itself is used.
    """

    transport: Any
    credential: Any
    first: asyncio.Lock = field(factory=asyncio.Lock)

    @classmethod
    def made(
        cls, client: httpx.AsyncClient, phases: httpx.Timeout, preferences: str | None, *, anonymous: bool
    ) -> "_Login":
        credential = Anonymous() if anonymous else _Header()
        transport = Transport(credential, verify=True, client=client, timeout=phases)
        if preferences is not None:
            transport.preferences = preferences
        return cls(transport, credential)

    async def sent(self, base: str, request: Request) -> Answer:
        query = "?" + urlencode(request.params, safe=",") if request.params else ""
        arguments: dict[str, Any] = {
            "url": _parsed(f"{base}{request.path}{query}"),
            "headers": dict(request.headers),
            "extensions": {"moorage_most": request.most, "moorage_tail": request.tail},
        }
        if request.json is not None:
            arguments["json"] = request.json
        if request.method == "GET":
            # Not `get_stream`, which drops the session and takes the body of an error for the content of a file.
            arguments["to_json"] = False
        response = await getattr(self.transport, request.method.lower())(**arguments)
        return Answer(response.status_code, _headers(response), response.content)


@lru_cache(maxsize=4096)
def _parsed(url: str) -> httpx.URL:
    """Parsed once: the same few addresses are asked again and again, and httpx spends a fifth of a call on them."""
    return httpx.URL(url)


# Below pyunicore ---------------------------------------------------------------------------------------------


class _Answered(Exception):
    """An answer that is no success, on its way around pyunicore, which would keep nothing of it but a sentence."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"HTTP {answer.status}")
        self.answer = answer


class _Broken(Exception):
    """An answer that came and cannot be used."""


class _NoCookies(httpx.Cookies):
    """Takes no cookies and has none."""

    def extract_cookies(self, response: httpx.Response) -> None:
        """Nothing is kept."""

    def __bool__(self) -> bool:
        return False


class _NoCookieClient(httpx.AsyncClient):
    """httpx keeps cookies for all requests of a client; one owner's must not go out with another's."""

    _none = _NoCookies()

    @property
    def cookies(self) -> httpx.Cookies:
        return self._none

    @cookies.setter
    def cookies(self, cookies: object) -> None:
        """Nothing is kept."""


class _Whole(httpx.AsyncBaseTransport):
    """
    Reads answers whole and bounded, and takes those that are no success out of pyunicore's hands.

    Also 432: pyunicore would repeat every call that met it by itself, each opening one more session.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._inner.handle_async_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        try:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise _Broken("the answer is packed although that was not offered")
            most, tail = request.extensions.get("moorage_most", JSON_LIMIT), request.extensions.get("moorage_tail")
            body = await _read(stream, most, tail)
        finally:
            await stream.aclose()
        if not 200 <= response.status_code < 300:
            raise _Answered(Answer(response.status_code, _headers(response), body))
        response.stream = httpx.ByteStream(body)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


async def _read(stream: httpx.AsyncByteStream, most: int, tail: bool | None) -> bytes:
    """The body; with `tail` the end of it, of which up to 64 times as much is read before that is too much as well."""
    parts = bytearray()
    total = 0
    async for part in stream:
        parts += part
        total += len(part)
        if tail and len(parts) > 2 * most:
            del parts[:-most]
        if total > (64 * most if tail else most):
            raise _Broken(f"the answer is larger than {most} bytes")
    return bytes(parts[-most:] if tail else parts)


def _headers(response: httpx.Response) -> dict[str, str]:
    return {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in response.headers.raw}


def _connections(context: ssl.SSLContext, limit: int) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(ssl=context, limit=limit, keepalive_timeout=IDLE_S)
    return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False)


_NOTHING_SENT = (aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL)


def _failure(error: BaseException, what: str) -> PortError:
    """
    A failure without an answer. Only one that comes before the request is on its way means that nothing happened.

    httpx-aiohttp calls a connection that ends in the middle a `ConnectTimeout`, as if nothing had been sent; so
    aiohttp's own exception, its cause, decides.
    """
    cause = error.__cause__ if isinstance(error.__cause__, aiohttp.ClientError | OSError) else error
    said = type(cause).__name__
    if isinstance(cause, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return Unreachable(f"the site does not prove who it is: its certificate is not accepted ({what})")
    if isinstance(cause, aiohttp.ClientConnectorDNSError):
        return Unreachable(f"the name {cause.host} is not known ({what})")
    if isinstance(cause, aiohttp.ClientConnectorError):
        why = os.strerror(cause.os_error.errno) if cause.os_error.errno else said
        return Unreachable(f"no connection to {cause.host}:{cause.port}: {why} ({what})")
    if isinstance(cause, _NOTHING_SENT):
        return Unreachable(f"no connection: {said} ({what})")
    if isinstance(cause, aiohttp.ClientResponseError):
        return Malformed(f"what came is no HTTP: {said} ({what})")
    return Unanswered(f"the connection ended before the answer was complete: {said} ({what})")


@contextlib.asynccontextmanager
async def _briefly(lock: asyncio.Lock) -> AsyncIterator[None]:
    """Hold the lock if it can be had soon; go without it otherwise, so that one slow call is not everybody's."""
    held = False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_CALL_S):
            held = await lock.acquire()
    try:
        yield
    finally:
        if held:
            lock.release()
