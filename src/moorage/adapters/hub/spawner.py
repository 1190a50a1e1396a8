# mypy: disable-error-code="misc,untyped-decorator"
# JupyterHub has no types: its classes and decorators are Any.
"""
`MoorageSpawner`: what JupyterHub calls. It holds a session's id and nothing else; the session is the runner's.

The Hub ends a start for reasons of its own that must not end a session. They are told apart like this:

1. Somebody deletes the server: the Hub cancels `start()`, or calls `stop()` on a running one. The session is stopped.
2. The user has waited `start_timeout`: `start()` notices that itself a moment before the Hub would, raises, and
   remembers that it let go of the session. The `stop()` by which the Hub cleans up then changes nothing.
3. The lab does not answer the Hub within `http_timeout`, at its start or after a restart of the Hub, or the proxy takes
   no route: the Hub calls `stop()` with its flag for that wait still up, or that long after it asked for the address.
   Silence is not death, so the session is let go, too.

A session that was let go is taken up again by `attaching.py` as soon as it is ready, or when its user starts it again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlsplit

from jupyterhub import orm
from jupyterhub.spawner import Spawner
from jupyterhub.utils import compare_token, url_escape_path, url_path_join
from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import object_session
from traitlets import Float, Integer, Unicode, default

from moorage.core.catalog import SessionOptions, User, validate
from moorage.core.launch import pairs_of
from moorage.core.model import Degraded, Desired, Ended, Owner, Ready, Session, SessionId, SessionKey
from moorage.core.secret import Secret
from moorage.ports.errors import PortError, StoreError
from moorage.ports.sessions import StartRequest, View

from .failures import StartFailed, is_bad, start_failed, take_off_count
from .people import People
from .service import Service, registry
from .texts import Texts, choose

DEFAULT_COMPOSE = "moorage.bootstrap:hub_service"
UNIX_PORT = 8888
"""
jupyter-server takes `--ServerApp.sock` only while its port is its own default, and jupyterhub-singleuser sets the port
from JUPYTERHUB_SERVICE_URL: so that address names 8888, where nothing listens. A lab that listens on TCP is told its
port by `--ServerApp.port={port}`, which wins. Source: jupyter_server 2.21 serverapp.py, jupyterhub 6.1
singleuser/extension.py (`load_config_file`).
"""
MARGIN_S = 2.0
"""Before the Hub's own deadline: enough for one turn of a busy loop, too little to matter to anybody who waits."""


class MoorageSpawner(Spawner):
    """Starts sessions on the systems of `moorage.yaml`."""

    config_file = Unicode(
        "moorage.yaml", help="The file, or folder of files, that describes systems and services."
    ).tag(config=True)
    compose = Unicode(
        DEFAULT_COMPOSE,
        help="What composes the service, as module:function; for tests and for embedding in something else.",
    ).tag(config=True)
    stop_wait_s = Float(
        10.0, help="How long a stop waits for the end of the session; cleaning up goes on afterwards, for all to see."
    ).tag(config=True)
    unknown_grace_s = Integer(
        300, help="How long after a start of the Hub a session that the store does not know counts as running."
    ).tag(config=True)

    owner_grace_s = Integer(
        86_400,
        help="How long a session lives whose owner the Hub does not know: an empty database, a removed user.",
    ).tag(config=True)

    session_id = Unicode()

    api_token: str

    _let_go: bool = False
    _resumed_at: float | None = None
    _patience_s: int | None = None
    """What `http_timeout` was before it was shortened for an address at which nobody answers."""
    _asked: "asyncio.Task[SessionId] | None" = None
    _seen: ClassVar[dict[str, float]] = {}

    # Defaults that fit sessions on remote systems ---------------------------------------------------------------------

    @default("start_timeout")
    def _start_timeout_default(self) -> int:
        return 86_400  # a queue may take a night; leaving the page does no harm

    @default("http_timeout")
    def _http_timeout_default(self) -> int:
        return 60

    @default("port")
    def _port_default(self) -> int:
        return UNIX_PORT

    @default("env_keep")
    def _env_keep_default(self) -> list[str]:
        return []  # PATH and the like of the Hub's machine mean nothing on a node

    @default("apply_user_options")
    def _apply_user_options_default(self) -> Any:
        return _use_at_start  # without one, the Hub warns at every start that nobody uses them

    @default("options_form")
    def _options_form_default(self) -> Any:
        return MoorageSpawner.render_options_form

    # The Hub's calls --------------------------------------------------------------------------------------------------

    async def start(self) -> str:
        """
        Wait for the session of this server to be ready, and ask for it first if there is none.

        Returns:
            Where the relay listens for it.

        Raises:
            StartFailed: The session ended, or its options are not allowed, or the Hub's patience is at its end; the
                message is for the user.
        """
        try:
            return await self._address_once_ready()
        except StartFailed:
            take_off_count()
            raise

    async def _address_once_ready(self) -> str:
        texts, began = self.texts(), time.monotonic()
        self._let_go, self.will_resume = False, False
        if self._patience_s is not None:
            self.http_timeout, self._patience_s = self._patience_s, None
        service = await self._wait_for_service(texts)
        try:
            await self._ask(service, texts)
            remaining = self.start_timeout - MARGIN_S - (time.monotonic() - began)
            session = await asyncio.wait_for(self._until_ready(service), max(remaining, 1))
        except TimeoutError:
            self._release()
            raise StartFailed(texts("failed.waiting"), reason="waiting") from None
        except (PortError, StoreError) as error:
            raise StartFailed(texts("failed.asked", note=str(error)), reason="refused") from error
        if isinstance(session.state, Ended):
            raise start_failed(texts, session.state)
        return _address(session)

    async def _ask(self, service: Service, texts: Texts) -> None:
        """Have a session for this server, and its id: the one that is up or coming up, else a new one."""
        self.session_id = await self._up(service)
        if self.session_id and await self._use_token_of_the_job(service):
            return
        request = None if self.session_id else self._request(service, texts)
        await service.vault.keep(self.key(service), self._secrets())
        if request is not None:
            # Shielded: a start that was asked for comes into being, and a stop that follows has to know its id.
            self._asked = asyncio.ensure_future(service.sessions.start(request))
            self.session_id = await asyncio.shield(self._asked)
            new = (await self._view(service)).session.attempt == 0
            await self._remember_start(service)
            if new:
                return  # a job gets what was kept last, and that is ours
        ours = self.api_token
        if await self._use_token_of_the_job(service) and self.api_token != ours:
            # Its job was begun just before: what it was given is what a later attempt shall get as well.
            given = await service.vault.environment(SessionId(self.session_id))
            await service.vault.keep(self.key(service), given)

    async def _remember_start(self, service: Service) -> None:
        """Its log shall be found when the server has had another session; not worth a start, if it cannot be."""
        people, key = People(service.directory), self.key(service)
        try:
            await asyncio.to_thread(people.started, key.owner, key.name, self.session_id)
        except OSError as error:
            self.log.warning("%s: not in the list of starts: %s", self._log_name, error)

    def _request(self, service: Service, texts: Texts) -> StartRequest:
        """The start that the options mean; checked here, whatever the form or the API let through."""
        person = self.person()
        chosen = validate(service.choices(person), self.user_options or {})
        if not isinstance(chosen, SessionOptions):
            listed = "; ".join(map(str, chosen[:10]))
            raise StartFailed(texts("failed.options", listed=listed), reason="options")
        return StartRequest(
            self.key(service),
            chosen.system,
            tuple(sorted(person.groups)),
            chosen.service,
            chosen.partition,
            chosen.walltime_s,
            chosen.nodes,
            pairs_of(chosen, [str(each) for each in self.get_args()]),
        )

    async def _up(self, service: Service) -> str:
        """The session of this server that is up or coming up, or "". What was chosen for it is no longer a question."""
        latest = await service.store.latest(self.key(service))
        if latest is None or latest.session.desired is Desired.DOWN or isinstance(latest.session.state, Ended):
            return ""
        return str(latest.session.id)

    async def stop(self, now: bool = False) -> None:
        """
        Ask for the end of the session and wait for it, but not longer than `stop_wait_s`.

        Does nothing about a session that was let go (see the top of this file).
        """
        if self._let_go:
            return
        if self._hub_gave_up():
            self.log.warning("%s: no answer from the lab in time; the session goes on", self._log_name)
            self._release()
            return
        service = registry.service
        if service is None:
            self.log.error("%s: not stopped, moorage is not running: %s", self._log_name, registry.problem)
            return
        session = await self._find(service)
        if session is None:
            return
        await service.sessions.stop(session, by="user")
        try:
            await asyncio.wait_for(self._until_ended(service, session), 0 if now else self.stop_wait_s)
        except TimeoutError:
            self.log.info("%s: session %s is still being cleaned up", self._log_name, session)

    def _hub_gave_up(self) -> bool:
        """Whether the Hub stops because it had no answer, and not because somebody wants the end."""
        if getattr(self, "_waiting_for_response", False) or getattr(self, "_proxy_pending", False):
            return True
        return self._resumed_at is not None and time.monotonic() - self._resumed_at >= 0.9 * self.http_timeout

    def start_polling(self) -> None:
        """Called by the Hub when it has seen the lab answer after a restart."""
        self._resumed_at = None
        super().start_polling()

    async def poll(self) -> int | None:
        """
        What is known about the session without asking anybody: an integer only if it ended.

        The Hub takes an exception for death, so there is none: not being able to tell counts as running.
        """
        try:
            return await self._status()
        except Exception:
            self.log.exception("%s: poll", self._log_name)
            return None

    async def get_url(self) -> str:
        """
        Asked by a restarting Hub about a server that `poll()` calls running; waits until that is true.

        The Hub then gives the lab `http_timeout` to answer and stops it otherwise, so a session whose start was under
        way, or whose path is being repaired, is waited for here. There must be no exception: it would end the Hub.
        """
        fallback = str(self.server.url) if self.server else ""
        try:
            service = await registry.wait()
            # None: the Hub was killed after it noted the server and before the session was asked for.
            session = await self._until_ready(service) if await self._find(service) is not None else None
            if session is None or isinstance(session.state, Ended):
                self._patience_s, self.http_timeout = self.http_timeout, 1  # nobody will answer; then the Hub cleans up
                return fallback
            await self._use_token_of_the_job(service)
            await self.remember_token()
            self._resumed_at = time.monotonic()
            state = self.get_state()
            if self.orm_spawner.state != state:
                self.orm_spawner.state = state
                self._database.commit()
            return _address(session) + str(self.server.base_url if self.server else "/")
        except Exception:
            self.log.exception("%s: get_url", self._log_name)
            return fallback

    async def progress(self) -> AsyncIterator[dict[str, Any]]:
        """The steps of the session so far, then each new one: plain text, nothing of a site becomes HTML."""
        service, texts = await registry.wait(), self.texts()
        while not self.session_id:  # noqa: ASYNC110 (a trait; the Hub asks for progress before it calls start)
            await asyncio.sleep(0.05)
        last = None
        async for step in service.sessions.follow(SessionId(self.session_id)):
            shown = {"progress": min(step.progress.percent, 99), "message": texts.progress(step.progress)}
            if shown != last:
                yield shown
            last = shown

    def get_state(self) -> dict[str, Any]:
        """The session's id: no secret and nothing that can be stale."""
        state: dict[str, Any] = super().get_state()
        if self.session_id:
            state["session_id"] = self.session_id
        return state

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        self.session_id = str(state.get("session_id", ""))

    def clear_state(self) -> None:
        super().clear_state()
        self.session_id, self._asked = "", None

    def get_env(self) -> dict[str, str]:
        """The lab's environment, all of it handed over in the secret file of the job."""
        return {name: str(value) for name, value in super().get_env().items() if value is not None}

    # Options ----------------------------------------------------------------------------------------------------------

    async def render_options_form(self) -> str:
        """The form; what is in it is drawn by `static/form.js` from the choice tree of the user."""
        from .pages import form_html

        return await form_html(self)

    def options_from_form(self, formdata: Mapping[str, list[str]]) -> dict[str, Any]:
        """The submitted fields: one value each, lists where the form ticks several. Checked by `start()`."""
        return read_form(formdata)

    def options_from_query(self, query_options: Mapping[str, list[Any]]) -> dict[str, Any]:
        """
        A link may fill in the form, never start anything: so a query starts nothing.

        The Hub starts at once if this returns; it shows the form, with what the query says, if it raises.
        """
        raise StartFailed(self.texts()("form.prefilled"), reason="link")

    # Who and what -----------------------------------------------------------------------------------------------------

    async def run_auth_state_hook(self, auth_state: Mapping[str, Any] | None) -> None:
        """Called by the Hub before the form and before a start: the moment to see what the login brought along."""
        await super().run_auth_state_hook(auth_state)
        self._attributes = attributes_of(auth_state or {})

    def person(self) -> User:
        groups = frozenset(str(group.name) for group in self.user.groups)
        return User(str(self.user.name), groups, self._attributes)

    def key(self, service: Service) -> SessionKey:
        """The name of this server among all sessions. The Hub's names are taken as they are: equal means equal."""
        return SessionKey(service.hub, Owner(str(self.user.name)), str(self.name))

    def texts(self) -> Texts:
        """In the language of the request under way, if there is one."""
        handler = self.handler
        if handler is None:
            return Texts(choose(self._language, None))
        self._language = choose(handler.get_cookie("moorage-language"), handler.request.headers.get("Accept-Language"))
        return Texts(self._language)

    _language: str | None = None
    _attributes: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    async def remember_token(self) -> None:
        """
        Make the token of the running lab valid if this Hub's database does not know it.

        The database keeps only hashes, so one that was restored from a backup knows nothing of labs started since. The
        token is also the secret with which the lab asks the Hub who its visitors are.
        """
        token, database = self.api_token, self._database
        if not token or _is_known(database, token):
            return
        self.log.warning("%s: the token of its running lab is unknown here; accepting it again", self._log_name)
        base_url = self.server.base_url if self.server else ""
        self.user.new_api_token(token, generated=False, note=f"Server at {base_url}", scopes=self._token_scopes())
        provider = self.user.settings.get("oauth_provider")
        if provider:
            self.orm_spawner.oauth_client = provider.add_client(
                self.oauth_client_id,
                token,
                url_path_join(self.user.url, url_escape_path(self.name), "oauth_callback"),
                allowed_scopes=await self._get_oauth_client_allowed_scopes(),
                description=f"Server at {base_url}",
            )

    @property
    def _database(self) -> Any:
        """The Hub's session; `Spawner.db` is the same, with a warning for every server."""
        return object_session(self.orm_spawner)

    def _token_scopes(self) -> list[str]:
        own = f"={self.user.name}/{self.name}"
        scopes = orm.Role.find(self._database, "server").scopes
        return [scope + own if scope.endswith("!server") else scope for scope in scopes]

    def _secrets(self) -> dict[str, Secret]:
        return {name: Secret(value) for name, value in self.get_env().items()}

    async def _use_token_of_the_job(self, service: Service) -> bool:
        """
        Go on with the API token that a job of this session was given earlier; whether one was.

        After this the Hub, which made a new token for this start, replaces it by the old one. What is kept for later
        attempts is not touched: it is that one, and goes with the session.
        """
        given = await service.vault.environment(SessionId(self.session_id))
        token = given.get("JUPYTERHUB_API_TOKEN")
        if token is None:
            return False
        self.api_token = str(token.reveal())
        return True

    async def _wait_for_service(self, texts: Texts) -> Service:
        """What is wrong is in the Hub's log, for its operators: it may name files."""
        try:
            return await registry.wait_briefly()
        except TimeoutError:
            raise StartFailed(texts("failed.service"), reason="service") from None

    # The session ------------------------------------------------------------------------------------------------------

    async def _find(self, service: Service) -> SessionId | None:
        """The session of this server: known, being asked for, or found by the server's name."""
        if self._asked is not None and not self._asked.cancelled():
            try:
                self.session_id = await asyncio.shield(self._asked)
            except (PortError, StoreError):
                return None
        if not self.session_id:
            latest = await service.store.latest(self.key(service))
            if latest is not None and not isinstance(latest.session.state, Ended):
                self.session_id = latest.session.id
        return SessionId(self.session_id) if self.session_id else None

    async def _status(self) -> int | None:
        service = registry.service
        if service is None or self._let_go:
            return None
        if self._asked is not None and not self._asked.done():
            return None
        session = await self._find(service)
        if session is None:
            return 0
        try:
            view = await service.sessions.get(session)
        except KeyError:
            return self._unknown(session)
        self._seen.pop(session, None)
        state = view.session.state
        if not isinstance(state, Ended):
            return None
        return state.evidence.exit_code or int(is_bad(state.cause))

    def _unknown(self, session: SessionId) -> int | None:
        """Nothing is known of a session that the Hub remembers: a store from a backup, perhaps. Time will tell."""
        first = self._seen.setdefault(session, time.monotonic())
        return None if time.monotonic() - first < self.unknown_grace_s else 1

    async def _until_ready(self, service: Service) -> Session:
        """The session once it is ready or over. Follows without end: a queue has its own clock."""
        session = SessionId(self.session_id)
        async for _ in service.sessions.follow(session, after=(await self._view(service)).version - 1):
            view = await service.sessions.get(session)
            if isinstance(view.session.state, Ready | Ended):
                return view.session
        return (await service.sessions.get(session)).session

    async def _until_ended(self, service: Service, session: SessionId) -> None:
        async for _ in service.sessions.follow(session):
            pass

    async def _view(self, service: Service) -> View:
        return await service.sessions.get(SessionId(self.session_id))

    def _release(self) -> None:
        """Let go of the session: it lives on, and so does the token its job was given."""
        self._let_go = self.will_resume = True


def _use_at_start(_spawner: MoorageSpawner, _options: Mapping[str, Any]) -> None:
    """What was chosen is checked and used by `start`, when it is known what may be had then."""


_HASHES = select(orm.APIToken.hashed).where(
    orm.APIToken.prefix == bindparam("prefix"),
    or_(orm.APIToken.expires_at.is_(None), orm.APIToken.expires_at >= bindparam("now")),
)


def _is_known(database: Any, token: str) -> bool:
    """
    Whether the Hub has a valid API token with this value.

    The same as `orm.APIToken.find`, which makes its query anew each time and loads whose token it is: 3 ms of the
    Hub's one thread, for every server after a restart.
    """
    asked = {"prefix": token[: orm.APIToken.prefix_length], "now": orm.APIToken.now()}
    return any(compare_token(hashed, token) for hashed in database.execute(_HASHES, asked).scalars())


def read_form(formdata: Mapping[str, list[str]]) -> dict[str, Any]:
    """
    The fields of a submitted form, empty ones left out.

    Fields whose name ends in `[]` are lists. Bounded, because the Hub keeps what is returned in its database.
    """
    options: dict[str, Any] = {}
    for name, values in list(formdata.items())[:64]:
        if name == "_xsrf" or not all(isinstance(value, str) for value in values):
            continue
        kept = [value.strip()[:500] for value in values[:100] if value.strip()]
        if name.endswith("[]"):
            options[name.removesuffix("[]")[:64]] = kept
        elif kept:
            options[name[:64]] = kept[-1]
    return options


def _address(session: Session) -> str:
    assert isinstance(session.state, Ready | Degraded)
    address = session.state.route.address
    assert urlsplit(address).scheme in ("http", "https"), address
    return address.rstrip("/")


def attributes_of(auth_state: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """
    What the login said about a person, as far as it is text: from "attributes" of the auth state, or from what the
    OAuth authenticators keep of the userinfo answer ("oauth_user", or named as the authenticator says).

    Tokens stay where they are: they are next to these, not inside.
    """
    found: dict[str, tuple[str, ...]] = {}
    for source in ("oauth_user", "userinfo", "attributes"):
        content = auth_state.get(source)
        for name, value in (content if isinstance(content, Mapping) else {}).items():
            values = (value,) if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
            texts = tuple(each for each in values if isinstance(each, str))
            if texts:
                found[str(name)] = texts
    return found
