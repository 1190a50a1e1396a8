"""The port `Hub`, answered by the JupyterHub application of this process."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from jupyterhub import orm
from jupyterhub.handlers.base import BaseHandler
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from moorage.core.model import Ended, Owner, Route, SessionSpec, SystemName
from moorage.core.progress import Progress
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Unauthorised

from . import metrics
from .changes import Changes
from .loads import Loads
from .people import People
from .reports import Reports
from .service import registry
from .spawner import MoorageSpawner

log = logging.getLogger(__name__)


class HubPort:
    """
    Tells the Hub about sessions; see the protocol `moorage.ports.hub.Hub`.

    Args:
        app: The running `jupyterhub.app.JupyterHub`.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.changes = Changes()
        self.reports = Reports(self.changes)
        self.loads = Loads()
        self.unattached = asyncio.Event()
        self._numbers: dict[Owner, int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def report(self, spec: SessionSpec, progress: Progress) -> None:
        """Wake whoever shows the session; let the Hub notice an end at once instead of at its next poll."""
        self.changes.tell(spec.key.owner)
        if progress.state == "ended":
            self._spawn(self._note_end(spec))
            spawner = self.spawner(spec)
            if spawner is not None and spawner.ready and spawner.session_id == spec.id:
                self._spawn(spawner.poll_and_notify())

    async def _note_end(self, spec: SessionSpec) -> None:
        service = registry.service
        stored = await service.store.load(spec.id) if service is not None else None
        if stored is not None and isinstance(stored.session.state, Ended):
            metrics.ended(spec, stored.session.state.cause)
        if service is not None:
            people = People(service.directory)
            await asyncio.to_thread(people.started, spec.key.owner, spec.key.name, spec.id)

    async def publish(self, spec: SessionSpec, route: Route) -> None:
        """
        Lead the user to `route`.

        A start that waits takes the address itself. A server that is known gets its new address, with the Hub's own
        means. Otherwise the Hub does not know the session (any more), and it is attached.
        """
        self.changes.tell(spec.key.owner)
        if registry.service is not None:
            metrics.became_ready(spec, registry.service.clock.now())
        spawner = self.spawner(spec)
        if spawner is None or not spawner.active:
            self.unattached.set()
            return
        if spawner.pending or spawner.server is None or spawner.session_id != spec.id:
            return
        address = urlsplit(route.address)
        if (spawner.server.ip, spawner.server.port) != (address.hostname, address.port):
            log.info("session %s: the Hub is told its new address", spec.id)
            spawner.server.proto, spawner.server.ip = address.scheme, address.hostname
            spawner.server.port = address.port or 80
            self.app.db.commit()
            await self.app.proxy.add_user(spawner.user, spawner.name)

    async def withdraw(self, spec: SessionSpec) -> None:
        """
        Have the Hub lead nobody to the session.

        The Hub removes the route itself when it stops a server or notices its end; a stop that moorage began makes
        it notice here.
        """
        self.changes.tell(spec.key.owner)
        spawner = self.spawner(spec)
        if spawner is not None and spawner.ready and spawner.session_id == spec.id:
            await self.app.proxy.delete_user(spawner.user, spawner.name)

    async def token(self, owner: Owner, system: SystemName) -> Token:
        """
        The access token that the person's login gave the Hub, renewed by the authenticator if it is old.

        Used for systems at which people act with their own rights.

        Raises:
            Unauthorised: The person has to log in again, or the authenticator keeps no tokens (enable_auth_state).
        """
        user = self.user(owner)
        if user is None:
            raise Unauthorised(f"{owner} is unknown to the Hub")
        handler = handler_of(self.app)
        # As if the person had come in by cookie: a login that cannot be renewed is then over, and not used on.
        handler._jupyterhub_user, handler._token_authenticated = user, False
        state = await user.get_auth_state() if await handler.refresh_auth(user) else None
        token = (state or {}).get("access_token")
        if not isinstance(token, str) or not token:
            raise Unauthorised(f"the Hub has no token of {owner} for {system}: log out and in again")
        return Token(Secret(token))

    def spawner(self, spec: SessionSpec) -> MoorageSpawner | None:
        """The Hub's object for the server of a session, if there is one in use."""
        user = self.user(spec.key.owner)
        if user is None or spec.key.name not in user.spawners:
            return None
        found = user.spawners[spec.key.name]
        return found if isinstance(found, MoorageSpawner) else None

    def user(self, owner: Owner) -> Any | None:
        """The Hub's object for a person, if the Hub knows somebody of that very name."""
        # A look into the database takes milliseconds of the Hub's one thread, and this is asked for every session.
        number = self._numbers.get(owner)
        if number is not None and dict.__contains__(self.app.users, number):
            known = self.app.users[number]
            if known.name == owner:
                return known
        found = orm.User.find(self.app.db, owner)
        if found is None:
            self._numbers.pop(owner, None)
            return None
        self._numbers[owner] = found.id
        return self.app.users[found]

    def learn_users(self) -> None:
        """Who is in use, at once: one by one, the database would be asked for each of them."""
        self._numbers.update((Owner(str(user.name)), number) for number, user in list(self.app.users.items()))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("telling the Hub", exc_info=task.exception())


class _Nobody:
    """The connection of a request that nobody made."""

    context = None

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """It never closes."""


def handler_of(app: Any) -> Any:
    """A request handler without a request: some of what the Hub can do lives there and nowhere else."""
    line = RequestStartLine("POST", app.hub.base_url, "HTTP/1.1")
    headers = HTTPHeaders({"Host": "localhost"})
    request = HTTPServerRequest(start_line=line, headers=headers, connection=_Nobody())  # type: ignore[arg-type]
    return BaseHandler(app.tornado_application, request)


def is_ours(spec: SessionSpec, hub: str) -> bool:
    """Whether a session belongs to this Hub: several may share one store."""
    return spec.key.hub == hub
