"""
Sessions that live although the Hub does not know a server for them, brought back.

That happens when a Hub is started with an older database, or when it lost patience with a start (see `spawner.py`). The
server is started again in the Hub's own way; `MoorageSpawner.start` then finds the session and starts no job.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from jupyterhub.handlers.base import BaseHandler
from jupyterhub.user import User
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from moorage.core.model import Desired, Ended, Session, Stopping

from .port import HubPort, is_ours
from .service import Service

log = logging.getLogger(__name__)

PAUSE_S = 15.0
"""Between two looks; a session that becomes ready is looked at at once."""
AT_ONCE = 20
"""Starts at a time: far below the Hub's own limit of 100 (concurrent_spawn_limit), which users need, too."""


async def keep_attached(port: HubPort, service: Service) -> None:
    """Attach what has to be attached, for ever."""
    told: set[str] = set()
    while True:
        port.unattached.clear()
        for stored in await service.store.unfinished():
            session = stored.session
            if not is_ours(session.spec, service.hub) or not _alive(session):
                continue
            user = port.user(session.spec.key.owner)
            if user is None:
                if session.id not in told:
                    told.add(session.id)
                    log.warning("session %s: its owner %r is unknown to this Hub", session.id, session.spec.key.owner)
                continue
            spawner = port.spawner(session.spec)
            if spawner is None or not spawner.active:
                await _attach(port, user, session)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(port.unattached.wait(), PAUSE_S)


def _alive(session: Session) -> bool:
    return session.desired is Desired.UP and not isinstance(session.state, Stopping | Ended)


async def _attach(port: HubPort, user: Any, session: Session) -> None:
    name = session.spec.key.name
    log.info("session %s: attaching it to the server %r of %s", session.id, name, user.name)
    spawner = _spawner(user, name)
    if spawner._spawn_future is not None and spawner._spawn_future.done():
        spawner._spawn_future = None
    try:
        start = _handler(port.app).spawn_single_user
        named = {"display_name": spawner.orm_spawner.display_name or name} if _HUB_6 else {}
        await start(user, name, options=None, **named)
    except Exception as error:  # noqa: BLE001 (told below)
        # The Hub raises what it likes here (429 while many start, a failed start): the next look tries again.
        log.warning("session %s: not attached: %s", session.id, error)


_HUB_6 = hasattr(User, "get_or_create_spawner")
"""Servers have display names since JupyterHub 6."""


def _spawner(user: Any, name: str) -> Any:
    if not _HUB_6:
        return user.get_spawner(name, replace_failed=True)
    known = user.orm_user.orm_spawners.get(name)
    return user.get_or_create_spawner(name, (known and known.display_name) or name, replace_failed=True)


class _Nobody:
    """The connection of a request that nobody made."""

    context = None

    def set_close_callback(self, callback: Callable[[], None] | None) -> None:
        """It never closes."""


def _handler(app: Any) -> Any:
    """What the Hub's start of a server needs: its method lives on request handlers and nowhere else."""
    line = RequestStartLine("POST", app.hub.base_url, "HTTP/1.1")
    headers = HTTPHeaders({"Host": "localhost"})
    request = HTTPServerRequest(start_line=line, headers=headers, connection=_Nobody())  # type: ignore[arg-type]
    return BaseHandler(app.tornado_application, request)
