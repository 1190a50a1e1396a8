"""The sockets: a gateway address with one or more sites behind it, written with aiohttp's low-level server."""

import asyncio
import contextlib
import json
import os
import re
import signal
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

import attrs
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler

from . import calls, documents, faults, storage_calls
from .access import may
from .answers import Answer, Failure, FilePart, json_answer, type_form, type_html
from .certificates import Authority
from .clock import Clock, RealClock
from .config import ConfigError, ServerConfig, SiteConfig, User, from_data, load
from .execution import Work
from .faults import Faults, Rule
from .forwarding import Taken
from .routes import Call, Route, Routes, parse_query, wanted_type
from .site import Site
from .virtual import Outcome

_piece = 256 * 1024
_gateway_404 = b"<html><body><h1>404 Not Found</h1><p>No such site.</p></body></html>"
_gateway_503 = b"<html><body><h1>503 Service Unavailable</h1><p>Site unavailable.</p></body></html>"
_clean_host = re.compile(r"[A-Za-z0-9._\-\[\]:]{1,255}")


@contextlib.asynccontextmanager
async def serve(
    config: ServerConfig | SiteConfig | None = None,
    rules: Iterable[Rule | Mapping[str, object]] = (),
    seed: int = 0,
    clock: Clock | None = None,
    decide: Callable[[Work], Outcome] | None = None,
) -> AsyncIterator["Running"]:
    """
    Run sites as an asynchronous context manager.

    `clock` moves the sites (not the wire); `decide` says how virtual jobs go. True at the end: no job's
    process and no file is left, unless the configuration names a directory.
    """
    if config is None or isinstance(config, SiteConfig):
        config = ServerConfig(sites=(config or SiteConfig(),))
    with contextlib.ExitStack() as stack:
        directory = config.directory
        if directory is None:
            made = tempfile.TemporaryDirectory(prefix="moorage-unicore-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(made))
        clock = clock or RealClock()
        made_rules = [rule if isinstance(rule, Rule) else faults.rule_from(rule) for rule in rules]
        running = Running(config, directory, Faults(clock, (), seed), clock, decide)
        try:
            await running.open()
            for rule in made_rules:
                running.faults.add(rule)
            yield running
        finally:
            await running.close()


class Running:
    """
    Sites behind one address. `sites` by name; `url` is the base (`.../rest/core`) of the first.

    `faults` can be changed at any time; `requests` and `connections` count what arrived.
    """

    def __init__(
        self,
        config: ServerConfig,
        directory: Path,
        faults: Faults,
        clock: Clock,
        decide: Callable[[Work], Outcome] | None = None,
    ) -> None:
        self.config = config
        self.faults = faults
        self.port = config.port
        self.requests = 0
        self.connections = 0
        self.authority = Authority(directory / ".tls") if config.tls else None
        self.sites = {
            site.name: Site(site, directory / site.name, faults=faults, clock=clock, decide=decide)
            for site in config.sites
        }
        self._routes = Routes()
        calls.add_to(self._routes)
        storage_calls.add_to(self._routes)
        for pattern in ("registries", "registries/*"):
            self._routes.add("GET", pattern, Route("registry", self._get_registry))
        self._bases: dict[tuple[str, str], str] = {}
        self._http: _Listener | None = None
        self._socket: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._socket_tasks: set[asyncio.Task[None]] = set()
        faults.added.append(self._rule_added)

    @property
    def root(self) -> str:
        if self.config.external_url:
            return self.config.external_url.rstrip("/")
        scheme = "https" if self.config.tls else "http"
        return f"{scheme}://{self.config.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/{self.config.sites[0].name}/rest/core"

    @property
    def registry_url(self) -> str:
        return f"{self.root}/{self.config.sites[0].name}/rest/registries/default_registry"

    @property
    def site(self) -> Site:
        return self.sites[self.config.sites[0].name]

    @property
    def ca_file(self) -> Path | None:
        return self.authority.ca_file if self.authority else None

    async def open(self) -> None:
        if self.authority is not None:
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._tls.load_cert_chain(self.authority.chain())
        self._http = _Listener(self.handle, self._accepted)
        await self.listen()
        for site in self.sites.values():
            site.external = f"{self.root}/{site.config.name}"
            site.neighbours = self.sites.get
            site.open()

    async def close(self) -> None:
        for task in list(self._socket_tasks):
            task.cancel()
        self.stop_listening()
        await asyncio.gather(*(site.close() for site in self.sites.values()))
        if self._http is not None:
            await self._http.shutdown(0.1)

    async def listen(self) -> None:
        """Accept connections, after `stop_listening` on the same port again."""
        if self._socket is None:
            assert self._http is not None
            self._socket = await asyncio.get_running_loop().create_server(
                self._http, self.config.host, self.port, ssl=self._tls, backlog=1024
            )
            self.port = int(self._socket.sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """New connections are refused; the ones that are there go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def change_certificate(self, kind: str) -> None:
        """New handshakes see another certificate: good, expired or other."""
        if self._tls is not None and self.authority is not None:
            self._tls.load_cert_chain(self.authority.chain(kind))

    # --- faults of the socket itself -----------------------------------------------------------------

    def _accepted(self) -> bool:
        """Count a new connection; whether it may stay."""
        self.connections += 1
        for rule in self.faults.draw("connect") if self.faults.any else ():
            if rule.do == "reset":
                self.faults.fired(rule, "connect")
                return False
        return True

    def _rule_added(self, rule: Rule) -> None:
        if rule.do in ("refuse", "certificate"):
            task = asyncio.get_running_loop().create_task(self._socket_fault(rule))
            self._socket_tasks.add(task)
            task.add_done_callback(self._socket_tasks.discard)

    async def _socket_fault(self, rule: Rule) -> None:
        await asyncio.sleep(rule.since_s)
        self.faults.fired(rule, "connect")
        if rule.do == "refuse":
            self.stop_listening()
        else:
            self.change_certificate(rule.variant or "other")
        if rule.until_s is None:
            return
        await asyncio.sleep(rule.until_s - rule.since_s)
        if rule.do == "refuse":
            await self.listen()
        else:
            self.change_certificate("good")

    # --- one request ---------------------------------------------------------------------------------

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """From a request to what is on the wire. A client that goes away in the middle is no mistake of ours."""
        self.requests += 1
        try:
            return await self._handled(request)
        except ConnectionError:
            return Taken()

    async def _handled(self, request: web.BaseRequest) -> web.StreamResponse:
        target = request.raw_path
        path, _, query = target.partition("?")
        parts = path.split("/", 3)
        if len(parts) == 3 and parts[1] == "-":
            return await write(request, await self._control(request, parts[2]))
        site = self.sites.get(parts[1]) if len(parts) > 1 else None
        if site is None or len(parts) < 4 or parts[2] != "rest":
            return await write(request, Answer(404, _gateway_404, type_html))
        if not site.reachable:
            return await write(request, Answer(503, _gateway_503, type_html))
        try:
            route, args = self._routes.find(request.method, parts[3])
            kind = _negotiate(request, route)
        except Failure as failure:  # the framework's own answers come before anybody is asked who he is
            return await write(request, failure.answer())
        endpoint = route.endpoint
        if endpoint == "action":
            endpoint = args[1] if args[1] in ("start", "abort", "restart") else "change"
        rules: Sequence[Rule] = ()
        if self.faults.any:
            has_session = "X-UNICORE-SecuritySession" in request.headers
            rules = self.faults.draw(endpoint, target, has_session)
            early = await self._before(request, rules, endpoint, target)
            if early is not None:
                return await write(request, early)
        answer = await self._answer(request, site, route, args, query, kind, rules)
        for rule in rules:
            changed = await self._after(request, rule, answer, endpoint, target)
            if changed is None:
                return Taken()
            answer = changed
        if answer.status == 101:
            return Taken()
        return await write(request, answer)

    async def _answer(
        self,
        request: web.BaseRequest,
        site: Site,
        route: Route,
        args: list[str],
        query: str,
        kind: str | None,
        rules: Sequence[Rule],
    ) -> Answer:
        headers = request.headers
        public = route.handler in (storage_calls.send_bytes, storage_calls.take_bytes)
        try:
            address = request.remote or ""
            if any(rule.do == "anonymous" for rule in rules) or public:
                caller = site.access.anonymous(address)
            else:
                caller = await site.access.enter(headers, address)
        except Failure as failure:
            return failure.answer()
        call = Call(
            request=request,
            site=site,
            caller=caller,
            args=args,
            query=parse_query(query) if query else {},
            base=self._base(site, headers.get("Host", "")),
            accept=headers.get("Accept", ""),
            html=kind == type_html,
            rules=rules,
        )
        try:
            answer = await route.handler(call)
        except Failure as failure:
            answer = failure.answer()
        if not public:
            answer.headers.update(site.access.session_headers(caller))
        return answer

    def _base(self, site: Site, host: str) -> str:
        """The base of links: the client's own Host, as the gateway passes it on."""
        key = (site.config.name, host)
        base = self._bases.get(key)
        if base is None:
            base = site.external_base
            if _clean_host.fullmatch(host) and not self.config.external_url:
                scheme = "https" if self.config.tls else "http"
                base = f"{scheme}://{host}/{site.config.name}/rest/core"
            if len(self._bases) < 1000:
                self._bases[key] = base
        return base

    async def _before(
        self, request: web.BaseRequest, rules: Sequence[Rule], endpoint: str, target: str
    ) -> Answer | None:
        """Faults before the effect; an answer ends the request here."""
        for rule in rules:
            if rule.position != "before" or rule.do not in faults.before_effect:
                continue
            if rule.do == "stale":
                remembered = self.faults.instead(rule, endpoint, target)
                if remembered is not None:
                    self.faults.fired(rule, endpoint)
                    return remembered
                continue
            self.faults.fired(rule, endpoint)
            if rule.do == "hang":
                return await _hang(request)
            if rule.do == "drop":
                return _drop(request)
            if rule.do == "delay":
                await asyncio.sleep(rule.delay_s)
            elif rule.do in ("answer", "redirect", "ignore"):
                return self.faults.instead(rule, endpoint, target)
        return None

    async def _after(
        self, request: web.BaseRequest, rule: Rule, answer: Answer, endpoint: str, target: str
    ) -> Answer | None:
        """What a fault makes of an answer; None when nothing more is to be written."""
        early = rule.do in faults.before_effect and rule.position == "before"
        if early:
            return self.faults.change(rule, answer, target) if rule.do == "stale" else answer
        self.faults.fired(rule, endpoint)
        if rule.do == "hang":
            await _hang(request)
            return None
        if rule.do == "drop":
            _drop(request)
            return None
        if rule.do == "delay":
            await asyncio.sleep(rule.delay_s)
            return answer
        return self.faults.change(rule, answer, target)

    # --- registry and control ------------------------------------------------------------------------

    async def _get_registry(self, call: Call) -> Answer:
        url = call.base.removesuffix("/core") + "/registries"
        if not call.args:
            document = documents.collection("registries", url, ["default_registry"], url, 0, 200)
            document["client"] = documents.client(call.site, call.caller)
            document["server"] = documents.server(call.site)
            return json_answer(document, as_html=call.html)
        if call.args[0] != "default_registry":
            raise Failure(404)
        if not may(call.caller, "read", call.site.key.dn, ()) and call.caller.role == "banned":
            raise Failure(403)
        document = documents.registry(call.site, list(self.sites.values()), f"{url}/default_registry")
        return calls.shown(call, document)

    async def _control(self, request: web.BaseRequest, what: str) -> Answer:
        """Ours, not the server's: `/-/faults` (GET, POST one rule, DELETE) and `/-/ledger` (GET)."""
        if what == "ledger" and request.method == "GET":
            counts = [{"fault": f, "endpoint": e, "count": n} for (f, e), n in self.faults.ledger.items()]
            return json_answer({"requests": self.requests, "connections": self.connections, "fired": counts})
        if what == "faults" and request.method == "GET":
            return json_answer([attrs.asdict(rule) for rule in self.faults.rules()])
        if what == "faults" and request.method == "DELETE":
            self.faults.clear()
            return Answer(204)
        if what == "faults" and request.method == "POST":
            try:
                rule = self.faults.add(json.loads(await request.read()))
            except (ValueError, AttributeError, web.HTTPException) as error:
                return json_answer({"errorMessage": str(error)[:1000]}, 400)
            return json_answer(attrs.asdict(rule))
        return Answer(404)


def _negotiate(request: web.BaseRequest, route: Route) -> str | None:
    """406 and 415 as the framework gives them; the media type to answer with."""
    headers = request.headers
    if route.takes_json and request.body_exists:
        sent = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if sent not in ("", "application/json", "*/*") and not (route.takes_form and sent == type_form):
            raise Failure(415)
    if not route.produces:
        return None
    kind = wanted_type(headers.get("Accept", ""), route.produces)
    if kind is None:
        raise Failure(406)
    return kind


async def _hang(request: web.BaseRequest) -> Answer:
    """Never answer; ends when the client has gone."""
    # aiohttp has no event for a connection that is lost while its handler runs.
    while request.transport is not None and not request.transport.is_closing():  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return Answer(503)


def _drop(request: web.BaseRequest) -> Answer:
    if request.transport is not None:
        request.transport.abort()
    return Answer(503)


async def write(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    """Put an answer on the wire."""
    headers = answer.headers
    if answer.content_type is not None:
        headers["Content-Type"] = answer.content_type
    if answer.part is not None:
        return await _write_file(request, answer, answer.part)
    if answer.padding or answer.bytes_per_s or answer.promised is not None:
        return await _write_badly(request, answer)
    return web.Response(status=answer.status, body=answer.body, headers=headers)


async def _write_file(request: web.BaseRequest, answer: Answer, part: FilePart) -> web.StreamResponse:
    """In pieces, chunked: with no Content-Length, as the server does."""
    if part.length <= _piece and answer.bytes_per_s is None:
        data = _read(part.path, part.offset, part.length)
        response = web.Response(status=answer.status, body=data, headers=answer.headers)
        response.enable_chunked_encoding()
        return response
    stream = web.StreamResponse(status=answer.status, headers=answer.headers)
    stream.enable_chunked_encoding()
    await stream.prepare(request)
    position, end = part.offset, part.offset + part.length
    while position < end:
        data = await asyncio.to_thread(_read, part.path, position, min(_piece, end - position))
        if not data:
            break
        position += len(data)
        if answer.bytes_per_s:
            await _dribble(stream, data, answer.bytes_per_s)
        else:
            await stream.write(data)
    await stream.write_eof()
    return stream


def _read(path: Path, offset: int, length: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError:
        return b""


async def _write_badly(request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
    stream = web.StreamResponse(status=answer.status, headers=answer.headers)
    stream.content_length = answer.promised or len(answer.body) + answer.padding
    await stream.prepare(request)
    if answer.bytes_per_s:
        await _dribble(stream, answer.body, answer.bytes_per_s)
    else:
        await stream.write(answer.body)
    left = answer.padding
    filler = b"x" * min(_piece, left)
    while left > 0:
        await stream.write(filler[:left])
        left -= len(filler)
    if answer.promised is not None:
        await asyncio.sleep(0)
        transport = request.transport
        if transport is not None:
            transport.close()
        return Taken()
    await stream.write_eof()
    return stream


async def _dribble(stream: web.StreamResponse, data: bytes, bytes_per_s: float) -> None:
    """Below 20 bytes per second byte by byte, above in pieces 20 times a second."""
    size = max(1, int(bytes_per_s / 20))
    for start in range(0, len(data), size):
        await stream.write(data[start : start + size])
        await asyncio.sleep(size / bytes_per_s)


class _Request(web.BaseRequest):
    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """The server names itself nowhere; aiohttp would."""
        response.headers.pop("Server", None)


def _make_request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: "asyncio.Task[None]",
) -> web.BaseRequest:
    return _Request(message, payload, protocol, writer, task, asyncio.get_running_loop())


class _Listener(web.Server):  # type: ignore[type-arg,misc,unused-ignore]
    """aiohttp's server, except for connections that a fault ends as soon as they are there."""

    def __init__(self, handler: object, accepted: Callable[[], bool]) -> None:
        super().__init__(
            handler,  # type: ignore[arg-type]
            request_factory=_make_request,
            access_log=None,
            keepalive_timeout=200,
            tcp_keepalive=False,
        )
        self._accepted = accepted

    def __call__(self) -> RequestHandler:
        return super().__call__() if self._accepted() else cast(RequestHandler, _Reset())


class _Reset(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


# --- the command -----------------------------------------------------------------------------------------


def main_serve(
    port: int = 0,
    site: str | None = None,
    users: Sequence[str] = (),
    config: Path | None = None,
    execute: str | None = None,
    tls: bool = False,
    faults: Path | None = None,
) -> None:
    """
    Serve until SIGINT or SIGTERM; the first line on standard output is the base URL.

    Args:
        port: 0 for any that is free. It listens on 127.0.0.1 unless the configuration says otherwise.
        site: Another name for the first site.
        users: `NAME:PASSWORD` each; they replace the configured users of the first site.
        config: YAML or JSON file, see `moorage.simulator.servers.unicore.config`.
        execute: `process` or `virtual`, for the first site.
        tls: With a certificate of an authority of its own, whose file is named on the second line.
        faults: YAML or JSON file with rules, see `moorage.simulator.servers.unicore.faults`.

    Raises:
        ConfigError: Before anything was started, naming what is wrong.
        OSError: The port is taken.
    """
    server = command_config(port, site, users, config, execute, tls)
    asyncio.run(_serve_until_signal(server, faults))


def command_config(
    port: int, site: str | None, users: Sequence[str], config: Path | None, execute: str | None, tls: bool
) -> ServerConfig:
    server = load(config) if config else from_data({})
    first = server.sites[0]
    try:
        first = attrs.evolve(first, name=site or first.name, execute=execute or first.execute)
    except ValueError as error:
        raise ConfigError(str(error.args[0])) from error
    if users:
        pairs = [user.partition(":") for user in users]
        if not all(name and colon for name, colon, _ in pairs):
            raise ConfigError("user: NAME:PASSWORD is expected")
        first = attrs.evolve(first, users=tuple(User(name, password) for name, _, password in pairs))
    if server.directory is None and any(each.keep for each in server.sites):
        raise ConfigError("keep: found no directory, expected the one that is there again at the next start")
    if not first.job_environment:
        # What this Python has installed beside it, jobs have too: the demonstration's JupyterLab.
        path = f"{Path(sys.executable).parent}{os.pathsep}$PATH"
        first = attrs.evolve(first, job_environment={"PATH": path})
    return attrs.evolve(server, sites=(first, *server.sites[1:]), port=port or server.port, tls=tls or server.tls)


async def _serve_until_signal(config: ServerConfig, fault_file: Path | None) -> None:
    rules, seed = faults.load(fault_file) if fault_file else ([], 0)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with serve(config, rules, seed) as running:
        sys.stdout.write(f"{running.url}\n")
        if running.ca_file is not None:
            sys.stdout.write(f"CA: {running.ca_file}\n")
        sys.stdout.flush()
        await stop.wait()
