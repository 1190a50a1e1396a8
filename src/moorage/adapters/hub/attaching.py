"""
Sessions that live although the Hub does not know a server for them, brought back.

That happens when a Hub is started with an older database, or when it lost patience with a start (see `spawner.py`). The
server is started again in the Hub's own way; `MoorageSpawner.start` then finds the session and starts no job.

A session whose owner the Hub does not know either (an empty database, a person who was renamed or removed) is told to
the operator and lives on for a grace time: as soon as its owner logs in it is theirs again. After that it is stopped.
"""

import asyncio
import contextlib
import logging
import time
from typing import Any

from jupyterhub.user import User

from moorage.core.model import Desired, Ended, Session, SessionId, Stopping
from moorage.ports.errors import StoreError

from . import metrics
from .port import HubPort, handler_of, is_ours
from .service import Service

log = logging.getLogger(__name__)

PAUSE_S = 15.0
"""Between two looks; a session that becomes ready is looked at at once."""


async def keep_attached(port: HubPort, service: Service, owner_grace_s: float) -> None:
    """Attach what has to be attached, for ever; stop what nobody has claimed for `owner_grace_s`."""
    strangers: dict[SessionId, float] = {}
    while True:
        port.unattached.clear()
        try:
            metrics.refresh(service, await _look(port, service, strangers, owner_grace_s))
        except StoreError as error:
            log.warning("the store was not readable; the next look tries again: %s", error)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(port.unattached.wait(), PAUSE_S)


async def _look(
    port: HubPort, service: Service, strangers: dict[SessionId, float], owner_grace_s: float
) -> list[Session]:
    """
    One look at all sessions that are not over, which are returned.

    Args:
        strangers: Since when the owner of some is unknown, on the monotonic clock.
    """
    port.learn_users()
    sessions = [stored.session for stored in await service.store.unfinished()]
    ours = [session for session in sessions if is_ours(session.spec, service.hub) and _alive(session)]
    for session in ours:
        user = port.user(session.spec.key.owner)
        if user is None:
            if not _in_use(port, session):
                await _stranger(service, session, strangers, owner_grace_s)
            continue
        strangers.pop(session.id, None)
        spawner = port.spawner(session.spec)
        if (spawner is None or not spawner.active) and not _in_use(port, session):
            await _attach(port, user, session)
    for gone in strangers.keys() - {session.id for session in ours}:
        del strangers[gone]
    return sessions


async def _stranger(service: Service, session: Session, since: dict[SessionId, float], owner_grace_s: float) -> None:
    owner = session.spec.key.owner
    if session.id not in since:
        since[session.id] = time.monotonic()
        log.warning("session %s: its owner %r is unknown to this Hub", session.id, owner)
    if time.monotonic() - since[session.id] >= owner_grace_s:
        log.warning("session %s: its owner %r did not come back; it is stopped", session.id, owner)
        await service.sessions.stop(session.id, by="policy: its owner is unknown to the Hub")


def _in_use(port: HubPort, session: Session) -> bool:
    """
    Whether a server has this session already. After somebody was renamed it is a server of another name than the
    session's owner, and whoever gets the old name must not get the session.
    """
    return any(
        getattr(spawner, "session_id", "") == session.id and spawner.active
        for user in list(port.app.users.values())
        for spawner in list(user.spawners.values())
    )


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
