# mypy: disable-error-code="misc,untyped-decorator"
# JupyterHub has no types: its classes and decorators are Any.
"""
Pages and their data: the form, the home page, the progress page, a session's page, the administrator's page.

The Hub's own handlers do the work where they exist; here they get our texts. What is new stands below `/hub/moorage/`.
Every path checks the Hub's scopes for the person it is about, so that a lab's token opens nothing.
"""

import asyncio
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jupyterhub.apihandlers.base import APIHandler
from jupyterhub.handlers.base import BaseHandler
from jupyterhub.handlers.pages import HomeHandler, SpawnHandler, SpawnPendingHandler
from jupyterhub.scopes import needs_scope, scope_definitions
from markupsafe import Markup
from tornado import web
from tornado.iostream import StreamClosedError

from moorage.core.model import Owner, SessionId, SystemName
from moorage.ports.errors import StoreError
from moorage.ports.store import Stored

from .people import People, PresetRefused
from .port import HubPort
from .rows import for_script, report_row, rows_of, session_row, step_row, tree_of
from .service import Service, registry
from .spawner import MoorageSpawner
from .texts import LANGUAGES, Texts, choose

MAY_START = "start:servers" if "start:servers" in scope_definitions else "servers"
"""JupyterHub 5 has one scope for starting and stopping."""
EVENT_PAUSE_S = 0.25
"""Between two messages to one page: a burst of changes is one message."""
EVENT_IDLE_S = 3.0
"""The Hub's own pending states change without telling us, so pages are compared with them this often."""
KEEPALIVE_S = 15.0
MOST_STEPS = 500
"""Of a history on one page: the latest."""
NO_REPORT: dict[str, Any] = {"steps": [], "log": ""}


def handlers(static: Path) -> list[tuple[Any, ...]]:
    """Paths below the Hub's prefix, and who answers them. Paths of the Hub are answered by subclasses of its own."""
    from .admin import admin_handlers
    from .notices import Notify

    return [
        ("/home", Home),
        ("/spawn", Spawn),
        (r"/spawn/([^/]+)", Spawn),
        (r"/spawn/([^/]+)/([^/]+)", Spawn),
        (r"/spawn-pending/([^/]+)", SpawnPending),
        (r"/spawn-pending/([^/]+)/([^/]+)", SpawnPending),
        ("/moorage/static/(.*)", web.StaticFileHandler, {"path": str(static)}),
        ("/moorage/language/([a-z]{2})", Language),
        (r"/moorage/users/([^/]+)/sessions/([a-z2-7]{26})", SessionPage),
        (r"/moorage/api/users/([^/]+)/events", Events),
        (r"/moorage/api/users/([^/]+)/presets", Presets),
        (r"/moorage/api/users/([^/]+)/load", LoadOfSystems),
        (r"/moorage/api/users/([^/]+)/sessions/([a-z2-7]{26})", SessionData),
        (r"/moorage/api/users/([^/]+)/servers/([^/]*)/starts", Starts),
        (r"/moorage/notify/([^/]+)", Notify),
        *admin_handlers(),
    ]


class Ours:
    """What our handlers and our variants of the Hub's have in common."""

    request: Any
    settings: Any
    get_cookie: Callable[[str], str | None]

    @cached_property
    def texts(self) -> Texts:
        return Texts(choose(self.get_cookie("moorage-language"), self.request.headers.get("Accept-Language")))

    @property
    def port(self) -> HubPort:
        port: HubPort = self.settings["moorage"]
        return port

    def service(self) -> Service:
        """The service, or the error page that says why there is none."""
        if registry.service is None:
            raise web.HTTPError(503, self.texts("failed.service"))
        return registry.service

    @property
    def template_namespace(self) -> dict[str, Any]:
        namespace: dict[str, Any] = super().template_namespace  # the Hub's, next in line
        return namespace | names_for(self.texts, self.settings["hub"].base_url)


def names_for(texts: Texts, base_url: str) -> dict[str, Any]:
    """What our templates know besides what the Hub's know."""
    return {
        "t": texts,
        "language": texts.language,
        "languages": LANGUAGES,
        "moorage_static": base_url + "moorage/static/",
        "moorage_texts": Markup(for_script(texts.all())),  # noqa: S704 (for_script leaves no "<")
    }


class Home(Ours, HomeHandler):
    """The table of the user's sessions."""


class SpawnPending(Ours, SpawnPendingHandler):
    """The progress page."""


class Spawn(Ours, SpawnHandler):
    """
    The form.

    The Hub starts a server at once if the address has a query; a link must not do that, so what the query says goes
    into the fragment, from which the form fills itself in.
    """

    def get(self, user_name: str | None = None, server_name: str = "") -> Any:
        wishes = [
            (name.removeprefix("opt-"), value.decode("utf-8", "replace"))
            for name, values in self.request.query_arguments.items()
            if name not in ("next", "display_name", "_xsrf")
            for value in values
        ]
        if wishes and self.request.method == "GET":
            kept = [(name, self.get_argument(name)) for name in ("next", "display_name") if self.get_argument(name, "")]
            query = "?" + urlencode(kept) if kept else ""
            self.redirect(f"{self.request.path}{query}#{urlencode(wishes)}")
            return None
        return super().get(user_name, server_name)

    async def _render_form(self, for_user: Any, spawner_options_form: str, *message: str, **more: str) -> Any:
        """After a start that failed at once the Hub shows the form of the default server, whatever was started."""
        name = self.path_args[1] if len(self.path_args) > 1 else ""
        spawner = for_user.spawners[name]
        if self.request.method == "POST" and isinstance(spawner, MoorageSpawner):
            spawner_options_form = await spawner.get_options_form()
        return await super()._render_form(for_user, spawner_options_form, *message, **more)


class Language(BaseHandler):
    """Chooses the language of the pages, for this browser."""

    def get(self, language: str) -> None:
        if language in LANGUAGES:
            self.set_cookie("moorage-language", language, expires_days=365, path=self.hub.base_url, samesite="Lax")
        back = self.request.headers.get("Referer", "")
        own = f"{self.request.protocol}://{self.request.host}{self.hub.base_url}"
        self.redirect(back if back.startswith(own) else self.hub.base_url + "home")


async def form_html(spawner: MoorageSpawner) -> str:
    """The form as the Hub puts it into its page: a frame, and the data from which `form.js` draws the fields."""
    texts, person = spawner.texts(), spawner.person()
    try:
        service = await registry.wait_briefly()
    except TimeoutError:
        raise web.HTTPError(503, texts("failed.service")) from None
    people = People(service.directory)
    data = {
        "tree": tree_of(service.choices(person), texts),
        "last": spawner.user_options or spawner.orm_spawner.user_options or {},
        "presets": await asyncio.to_thread(people.presets, person.name),
        "user": person.name,
        "name": getattr(spawner.orm_spawner, "display_name", "") or spawner.name,
        "now": service.clock.now(),
    }
    return str(Markup(_FORM).format(data=Markup(for_script(data)), loading=texts("form.loading")))  # noqa: S704


_FORM = """\
<div id="moorage-form" aria-live="off"><p class="text-muted">{loading}</p></div>
<script type="application/json" id="moorage-data">{data}</script>
"""


# A session ---------------------------------------------------------------------------------------------------------


class SessionPage(Ours, BaseHandler):
    """The history of one session, and the end of its log."""

    @web.authenticated
    @needs_scope("read:servers")
    async def get(self, user_name: str, session: str) -> None:
        stored = await session_of(self.service(), user_name, session)
        data = {"user": user_name} | await about(self, stored)
        shown = {"data": Markup(for_script(data)), "row": data["row"]}  # noqa: S704
        self.finish(await self.render_template("moorage_session.html", **shown))


class SessionData(Ours, APIHandler):
    """The same as data; DELETE stops the session, also if the Hub does not know a server for it."""

    @needs_scope("read:servers")
    async def get(self, user_name: str, session: str) -> None:
        self.finish(await about(self, await session_of(self.service(), user_name, session)))

    @needs_scope("delete:servers")
    async def delete(self, user_name: str, session: str) -> None:
        stored = await session_of(self.service(), user_name, session)
        await self.service().sessions.stop(stored.session.id, by=self.current_user.name)
        self.set_status(202)


class Starts(Ours, APIHandler):
    """The sessions that a server had, newest first."""

    @needs_scope("read:servers")
    async def get(self, user_name: str, server: str) -> None:
        service = self.service()
        ids = await asyncio.to_thread(People(service.directory).starts, user_name, server)
        rows = []
        for session in ids[:50]:
            stored = await service.store.load(SessionId(session))
            if stored is not None:
                rows.append(session_row(stored.session, self.texts))
        self.finish({"starts": rows})


async def session_of(service: Service, owner: str, session: str) -> Stored:
    """The session, if it is this person's at this Hub; otherwise it does not exist."""
    stored = await service.store.load(SessionId(session))
    if stored is None or (stored.session.spec.key.owner, stored.session.spec.key.hub) != (owner, service.hub):
        raise web.HTTPError(404, "there is no such session")
    return stored


async def about(handler: Ours, stored: Stored) -> dict[str, Any]:
    """Everything about one session that a page shows."""
    service, session, texts = handler.service(), stored.session, handler.texts
    report = handler.port.reports.of(service, session, reading=True)
    steps = await history(service, stored, texts)
    return {
        "row": session_row(session, texts, report) | {"server": session.spec.key.name},
        "steps": steps[-MOST_STEPS:],
        "report": report_row(report, texts),
    }


async def history(service: Service, stored: Stored, texts: Texts) -> list[dict[str, Any]]:
    """Every step up to now."""
    steps: list[dict[str, Any]] = []
    async for step in service.sessions.follow(stored.session.id):
        steps.append(step_row(step, texts))
        if step.position >= stored.version:
            break
    return steps


# Data for the pages ------------------------------------------------------------------------------------------------


class Stream(Ours, APIHandler):
    """Server-sent events: a message whenever what `content` makes has changed."""

    _closed = False

    def get_content_type(self) -> str:
        return "text/event-stream"

    def on_connection_close(self) -> None:
        self._closed = True
        super().on_connection_close()

    async def stream(self, owner: Any, content: Callable[[], Any]) -> None:
        """Until the page closes; listens to the owner's sessions, to all for `None`."""
        self.set_header("Cache-Control", "no-cache, no-transform")
        self.set_header("X-Accel-Buffering", "no")
        changed = self.port.changes.listen(owner)
        last, silent = "", 0.0
        try:
            while not self._closed:
                changed.clear()
                shown = json.dumps(await content())
                if shown != last:
                    last, silent = shown, 0.0
                    self.write(f"data: {shown}\n\n")
                elif silent > KEEPALIVE_S:
                    silent = 0.0
                    self.write(": still here\n\n")
                await self.flush()
                silent += await self._pause(changed)
        except (StreamClosedError, StoreError):
            return  # the browser asks again
        except web.HTTPError:
            # The service went away under an open page: the stream ends, and the next one says why it cannot be.
            if not self._headers_written:
                raise
        finally:
            self.port.changes.leave(owner, changed)

    async def _pause(self, changed: asyncio.Event) -> float:
        await asyncio.sleep(EVENT_PAUSE_S)
        try:
            await asyncio.wait_for(changed.wait(), EVENT_IDLE_S)
        except TimeoutError:
            return EVENT_IDLE_S
        return 0.0


class Events(Stream):
    """All sessions of a person; with `server`, also the steps of that server's session."""

    @needs_scope("read:servers")
    async def get(self, user_name: str) -> None:
        user = self.find_user(user_name)
        if user is None:
            raise web.HTTPError(404)
        server = self.get_argument("server", None)

        async def content() -> dict[str, Any]:
            service = self.service()
            rows = await rows_of(user, service, self.texts, self.port.reports)
            row = next((row for row in rows if row["server"] == server), None) if server is not None else None
            stored = await service.store.load(SessionId(row["session"])) if row is not None and row["session"] else None
            details = await about(self, stored) if stored is not None else {"steps": [], "report": NO_REPORT}
            return {"rows": rows} if server is None else {**details, "rows": rows}

        await self.stream(user_name, content)


class LoadOfSystems(Ours, APIHandler):
    """How full the systems are that a person may choose, as far as they tell; asked in that person's name."""

    @needs_scope(MAY_START)
    async def get(self, user_name: str) -> None:
        user = self.find_user(user_name)
        if user is None:
            raise web.HTTPError(404)
        service, spawner = self.service(), user.spawner
        systems = service.choices(spawner.person()).systems if isinstance(spawner, MoorageSpawner) else ()
        open_ones = [SystemName(each.name) for each in systems if each.why_not is None]
        self.finish(self.port.loads.of(service, Owner(user_name), open_ones))


class Presets(Ours, APIHandler):
    """Choices that a person keeps under names."""

    @needs_scope("read:servers")
    async def get(self, user_name: str) -> None:
        self.finish({"presets": await asyncio.to_thread(self.people().presets, user_name)})

    @needs_scope(MAY_START)
    async def post(self, user_name: str) -> None:
        body = self.get_json_body()
        if not isinstance(body, dict):
            raise web.HTTPError(400, "a JSON object with name and options")
        try:
            await asyncio.to_thread(self.people().save_preset, user_name, body.get("name", ""), body.get("options", {}))
        except PresetRefused as error:
            raise web.HTTPError(400, f"expected {error}") from error
        await self.get(user_name)

    @needs_scope(MAY_START)
    async def delete(self, user_name: str) -> None:
        await asyncio.to_thread(self.people().delete_preset, user_name, self.get_argument("name"))
        await self.get(user_name)

    def people(self) -> People:
        return People(self.service().directory)
