"""
Sessions that live although the Hub does not know a server for them, brought back.

That happens when a Hub is started with an older database, or when it lost patience with a start (see `spawner.py`). The
server is started again in the Hub's own way; `MoorageSpawner.start` then finds the session and starts no job.
"""

import asyncio
import contextlib
import logging
from typing import Any

from jupyterhub.user import User

from moorage.core.model import Desired, Ended, Session, Stopping
from moorage.ports.errors import StoreError

from . import metrics
from .port import HubPort, handler_of, is_ours
from .service import Service

log = logging.getLogger(__name__)

PAUSE_S = 15.0
"""Between two looks; a session that becomes ready is looked at at once."""


async def keep_attached(port: HubPort, service: Service) -> None:
    """Attach what has to be attached, for ever."""
    told: set[str] = set()
    while True:
        port.unattached.clear()
        try:
            await _look(port, service, told)
            await metrics.refresh(service)
        except StoreError as error:
            log.warning("the store was not readable; the next look tries again: %s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(port.unattached.wait(), PAUSE_S)


async def _look(port: HubPort, service: Service, told: set[str]) -> None:
    """One look at all sessions; `told` are those whose owner is unknown, of whom the operator has been told."""
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


def _alive(session: Session) -> bool:
    return session.desired is Desired.UP and not isinstance(session.state, Stopping | Ended)


async def _attach(port: HubPort, user: Any, session: Session) -> None:
    name = session.spec.key.name
    log.info("session %s: attaching it to the server %r of %s", session.id, name, user.name)
    spawner = _spawner(user, name)
    if spawner._spawn_future is not None and spawner._spawn_future.done():
        spawner._spawn_future = None
    try:
        start = handler_of(port.app).spawn_single_user
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
