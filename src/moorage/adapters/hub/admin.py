# mypy: disable-error-code="misc,untyped-decorator"
# JupyterHub has no types: its classes and decorators are Any.
"""The administrator's page: every session, the systems, the tunnels, what is left behind, and what was done by whom."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from jupyterhub.handlers.base import BaseHandler
from jupyterhub.scopes import needs_scope
from markupsafe import Markup
from tornado import web

from moorage.core.model import SessionId, SystemName
from moorage.ports.clock import Clock

from .port import is_ours
from .rows import for_script, residue_rows, session_row
from .service import Service

MOST_ROWS = 2_000
AUDIT_TAIL = 100


def admin_handlers() -> list[tuple[Any, ...]]:
    """Paths below the Hub's prefix."""
    from .pages import Ours, Stream

    class AdminPage(Ours, BaseHandler):
        """The page itself; its content comes over one stream."""

        @web.authenticated
        @needs_scope("admin:servers")
        async def get(self) -> None:
            data = Markup(for_script({"operations": self.service().operations is not None}))  # noqa: S704
            self.finish(await self.render_template("moorage_admin.html", data=data))

    class AdminEvents(Stream):
        """Everything the page shows, whenever something changed."""

        @needs_scope("admin:servers")
        async def get(self) -> None:
            async def content() -> dict[str, Any]:
                return await overview(self.service(), self.texts)

            await self.stream(None, content)

    class AdminAction(Ours, BaseHandler):
        """One action; written to the audit log before it is done, and how it ended after it."""

        @needs_scope("admin:servers")
        async def post(self, action: str) -> None:
            service = self.service()
            body = json.loads(self.request.body or b"{}")
            subject = str(body.get("subject", ""))[:200]
            audit = Audit(service.directory, service.clock)
            who = self.current_user.name
            await asyncio.to_thread(audit.write, who, action, subject, "asked")
            try:
                outcome = await act(service, action, subject, who)
            except web.HTTPError as error:
                await asyncio.to_thread(audit.write, who, action, subject, f"refused: {error.log_message}")
                raise
            await asyncio.to_thread(audit.write, who, action, subject, outcome or "done")
            self.port.changes.tell(who)
            self.finish({"outcome": outcome})

    return [
        ("/moorage/admin", AdminPage),
        ("/moorage/api/admin/events", AdminEvents),
        ("/moorage/api/admin/actions/([a-z_]+)", AdminAction),
    ]


async def overview(service: Service, texts: Any) -> dict[str, Any]:
    """All sessions that are not over, systems, tunnels, residue and the end of the audit log."""
    stored = [each for each in await service.store.unfinished() if is_ours(each.session.spec, service.hub)]
    sessions = [
        session_row(each.session, texts) | {"owner": each.session.spec.key.owner, "server": each.session.spec.key.name}
        for each in stored[-MOST_ROWS:]
    ]
    operations = service.operations
    return {
        "sessions": sessions,
        "more": max(0, len(stored) - MOST_ROWS),
        "residue": residue_rows(each.session for each in stored),
        "systems": list(operations.systems()) if operations else _counted(sessions),
        "tunnels": list(await operations.tunnels()) if operations else [],
        "audit": await asyncio.to_thread(Audit(service.directory, service.clock).tail),
    }


async def act(service: Service, action: str, subject: str, who: str) -> str:
    """Do one action; the answer is a sentence for the administrator, or empty."""
    if action == "stop":
        try:
            await service.sessions.stop(SessionId(subject), by=f"administrator {who}")
        except KeyError:
            raise web.HTTPError(404, "there is no such session") from None
        return ""
    if action == "stop_all":
        return await _stop_all(service, SystemName(subject), who)
    operations = service.operations
    if operations is None:
        raise web.HTTPError(501, "this installation cannot do that")
    system = SystemName(subject)
    match action:
        case "drain" | "undrain":
            await operations.drain(system, action == "drain")
        case "maintenance_on" | "maintenance_off":
            await operations.maintenance(system, action == "maintenance_on")
        case "reload":
            return await operations.reload()
        case _:
            raise web.HTTPError(404, "there is no such action")
    return ""


async def _stop_all(service: Service, system: SystemName, who: str) -> str:
    stopped = 0
    for each in await service.store.unfinished():
        spec = each.session.spec
        if spec.system == system and is_ours(spec, service.hub):
            await service.sessions.stop(spec.id, by=f"administrator {who}")
            stopped += 1
    return f"{stopped} sessions are asked to end"


def _counted(sessions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = sorted({row["system"] for row in sessions})
    return [{"name": name} for name in names]


class Audit:
    """Who did what when: one JSON line each, appended and flushed to disk, in a file of its own."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.path = directory / "audit.jsonl"
        self.clock = clock

    def write(self, who: str, action: str, subject: str, outcome: str) -> None:
        entry = {"at": self.clock.now(), "who": who, "action": action, "subject": subject, "outcome": outcome}
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(handle, (json.dumps(entry) + "\n").encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def tail(self) -> list[dict[str, Any]]:
        """The last entries, newest first."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(0, self.path.stat().st_size - 64_000))
                lines = file.read().splitlines()[-AUDIT_TAIL:]
        except FileNotFoundError:
            return []
        found = []
        for line in reversed(lines):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue  # the first line of the piece may be half a line
        return found
