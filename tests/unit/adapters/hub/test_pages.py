"""Pages and their data from a real Hub, as a browser with a person's cookies gets them."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from stubworld import Hub, Start, until  # type: ignore[import-not-found]

from moorage.adapters.hub.service import registry

HOSTILE = "<img src=x onerror=alert(1)></script><b>\x1b[31m"


class Person:
    """Somebody who has logged in."""

    def __init__(self, hub: Hub, session: aiohttp.ClientSession) -> None:
        self.hub, self.session = hub, session

    async def get(self, path: str, **more: Any) -> tuple[int, str]:
        async with self.session.get(f"{self.hub.url}/hub/{path}", **more) as answer:
            return answer.status, await answer.text()

    async def call(self, method: str, path: str, body: Any = None, xsrf: bool = True) -> tuple[int, Any]:
        headers = {"X-XSRFToken": self.xsrf()} if xsrf else {}
        async with self.session.request(method, f"{self.hub.url}/hub/{path}", json=body, headers=headers) as answer:
            text = await answer.text()
            try:
                return answer.status, json.loads(text)
            except ValueError:
                return answer.status, text

    def xsrf(self) -> str:
        for cookie in self.session.cookie_jar:
            if cookie.key == "_xsrf":
                return cookie.value
        return ""

    async def events(self, path: str) -> AsyncIterator[Any]:
        joined = "&" if "?" in path else "?"
        async with self.session.get(f"{self.hub.url}/hub/{path}{joined}_xsrf={self.xsrf()}") as answer:
            assert answer.status == 200, await answer.text()
            async for line in answer.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


@asynccontextmanager
async def logged_in(hub: Hub, name: str) -> AsyncIterator[Person]:
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as session:
        person = Person(hub, session)
        await person.get("login")
        data = {"username": name, "password": "", "_xsrf": person.xsrf()}
        async with session.post(f"{hub.url}/hub/login", data=data, allow_redirects=False) as answer:
            assert answer.status == 302
        await person.get("home")
        yield person


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="moorage-data">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


async def test_the_form_holds_the_choices_of_this_person(start_hub: Start) -> None:
    """Partitions that are closed to the person are there and say why; the answer is small JSON."""
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        status, page = await alice.get("spawn/alice")
    assert status == 200
    data = data_of(page)
    (system,) = data["tree"]["systems"]
    partitions = data["tree"]["partitions"][system["accounts"][0]["projects"][0]["partitions"]]
    assert [(each["name"], each["why"] is None) for each in partitions] == [
        ("batch", True),
        ("login", True),
        ("secret", False),
    ]
    assert "other groups" in partitions[2]["why"]["text"]
    assert partitions[0]["resources"]["walltime_s"] == [600, 86_400, 3_600]


async def test_a_form_without_moorage_says_so_at_once(start_hub: Start) -> None:
    """What is wrong is in the Hub's log: it may name files."""
    hub = await start_hub()
    service = registry.service
    assert service is not None
    async with logged_in(hub, "alice") as alice:
        registry.withdraw("moorage.yaml:3: unknown key")
        try:
            status, page = await asyncio.wait_for(alice.get("spawn/alice"), 10)
        finally:
            registry.provide(service)
    assert status == 503
    assert "moorage is not running" in page
    assert "unknown key" not in page


async def test_the_form_starts_what_it_says(start_hub: Start) -> None:
    """Submitted as a browser does: fields, lists, and an empty list that is a choice."""
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        fields = {"service": "jupyterlab", "system": "alpha", "partition": "login", "walltime_s": "900"}
        form = aiohttp.FormData([*fields.items(), ("kernels[]", ""), ("kernels[]", "r"), ("_xsrf", alice.xsrf())])
        async with alice.session.post(f"{hub.url}/hub/spawn/alice", data=form, allow_redirects=False) as answer:
            assert answer.status == 302
    await until(lambda: bool(hub.live()))
    (session,) = hub.live()
    assert (session.spec.partition, session.spec.walltime_s) == ("login", 900)
    assert [pair for pair in session.spec.options if pair[0] == "kernel"] == [("kernel", "r")]


async def test_a_link_starts_nothing(start_hub: Start) -> None:
    """Its wishes go into the fragment, which the form reads; the Hub would have started a server."""
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        for query in ("partition=login", "opt-partition=login", "opt-=x", "a=" + "b" * 3000):
            url = f"{hub.url}/hub/spawn/alice?{query}&next=%2Fhub%2Fhome"
            async with alice.session.get(url, allow_redirects=False) as answer:
                assert answer.status == 302
                path, _, fragment = answer.headers["Location"].partition("#")
                assert path == "/hub/spawn/alice?next=%2Fhub%2Fhome"
                assert fragment
    assert hub.live() == []


async def test_what_a_site_says_is_text_everywhere(start_hub: Start) -> None:
    """Its words as note of a failure, in rows, history, log and on the failure page: never as HTML."""
    hub = await start_hub()
    hub.world.system.refusing = HOSTILE
    await hub.api("POST", "users/alice/server")
    async with logged_in(hub, "alice") as alice:
        (row,) = (await anext(alice.events("moorage/api/users/alice/events")))["rows"]
        assert row["state"] == "ended"
        pages = [
            await alice.get("home"),
            await alice.get("spawn-pending/alice"),
            await alice.get(f"moorage/users/alice/sessions/{row['session']}"),
            await alice.get("spawn/alice"),
        ]
    for _, page in pages:
        assert "<img src=x" not in page
        assert "</script><b>" not in page
    assert "&lt;img src=x" in pages[1][1]


async def test_rows_follow_the_session_without_a_reload(start_hub: Start) -> None:
    """One stream shows the queue, then ready, then the end; each with what can be done."""
    hub = await start_hub()
    hub.world.system.queueing = True
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
    async with logged_in(hub, "alice") as alice:
        seen: list[tuple[str, tuple[str, ...]]] = []

        async def watch() -> None:
            async for message in alice.events("moorage/api/users/alice/events"):
                for row in message["rows"]:
                    seen.append((row["state"], tuple(row["can"])))

        watching = asyncio.create_task(watch())
        await hub.api("POST", "users/alice/server")
        await until(lambda: any(state == "queued" for state, _ in seen))
        hub.world.system.run_all()
        await until(lambda: ("ready", ("open", "stop")) in seen)
        await hub.api("DELETE", "users/alice/server")
        await until(lambda: ("ended", ("start", "change")) in seen)
        watching.cancel()
    assert ("queued", ("watch", "cancel")) in seen


async def test_the_progress_of_the_hub_is_text(start_hub: Start) -> None:
    hub = await start_hub()
    hub.world.system.queueing = True
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
    async with logged_in(hub, "alice") as alice:
        await hub.api("POST", "users/alice/server")
        events = []
        async for event in alice.events("api/users/alice/server/progress"):
            events.append(event)
            if "queue" in event["message"]:
                hub.world.system.run_all()
            if event.get("ready"):
                break
    assert all("html_message" not in event or event.get("ready") for event in events)
    assert [event["progress"] for event in events] == sorted(event["progress"] for event in events)


async def test_presets_are_kept_and_bounded(start_hub: Start) -> None:
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        path = "moorage/api/users/alice/presets"
        assert await alice.call("POST", path, {"name": "Monday", "options": {"partition": "login"}}) == (
            200,
            {"presets": {"Monday": {"partition": "login"}}},
        )
        for name in ("", " x", "x" * 61, "a\nb", 7):
            status, _ = await alice.call("POST", path, {"name": name, "options": {}})
            assert status == 400
        status, _ = await alice.call("POST", path, {"name": "huge", "options": {"x": "y" * 20_000}})
        assert status == 400
        assert (await alice.call("DELETE", f"{path}?name=Monday"))[1] == {"presets": {}}
        status, _ = await alice.call("POST", path, {"name": "forged", "options": {}}, xsrf=False)
        assert status == 403


async def test_pages_speak_the_language_that_is_asked_for(start_hub: Start) -> None:
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        _, page = await alice.get("home", headers={"Accept-Language": "de-AT,en;q=0.5"})
        assert "Ihre Sitzungen" in page
        await alice.get("moorage/language/en")
        _, page = await alice.get("home", headers={"Accept-Language": "de"})
        assert "Your sessions" in page


async def test_the_language_link_leads_nowhere_else(start_hub: Start) -> None:
    hub = await start_hub()
    async with logged_in(hub, "alice") as alice:
        headers = {"Referer": "https://evil.example/"}
        url = f"{hub.url}/hub/moorage/language/de"
        async with alice.session.get(url, headers=headers, allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/hub/home"


async def test_what_is_somebody_elses_is_not_there(start_hub: Start) -> None:
    """Another person's pages, streams, presets and sessions; and an administrator's, for everybody else."""
    hub = await start_hub()
    await hub.api("POST", "users/bob/server")
    session = hub.live()[0].id
    async with logged_in(hub, "alice") as alice:
        for path in (
            "moorage/api/users/bob/events",
            "moorage/api/users/bob/presets",
            f"moorage/users/bob/sessions/{session}",
            f"moorage/users/alice/sessions/{session}",
            f"moorage/api/users/alice/sessions/{session}",
            "moorage/admin",
            "moorage/api/admin/events",
        ):
            status, _ = await alice.get(path)
            assert status in (403, 404), path
        status, _ = await alice.call("DELETE", f"moorage/api/users/alice/sessions/{session}")
        assert status == 404
        status, _ = await alice.call("POST", "moorage/api/admin/actions/stop", {"subject": session})
        assert status == 403
    assert hub.world.system.alive == 1


async def test_a_labs_token_opens_no_page(start_hub: Start) -> None:
    """The token that a job holds is for its own server; the person's sessions and presets are not its business."""
    hub = await start_hub()
    await hub.api("POST", "users/alice/server")
    session = hub.live()[0].id
    token = (await hub.world.service.vault.environment(session))["JUPYTERHUB_API_TOKEN"].reveal()
    headers = {"Authorization": f"token {token}"}
    async with aiohttp.ClientSession(headers=headers) as lab:
        for path in ("users/alice/presets", "users/alice/events", f"users/alice/sessions/{session}", "admin/events"):
            async with lab.get(f"{hub.url}/hub/moorage/api/{path}") as answer:
                assert answer.status in (403, 404), path


async def test_an_administrator_stops_a_session_and_it_is_written_down(start_hub: Start) -> None:
    hub = await start_hub()
    await hub.api("POST", "users/alice/server")
    session = hub.live()[0].id
    async with logged_in(hub, "admin") as admin:
        status, _ = await admin.get("moorage/admin")
        assert status == 200
        overview = await anext(admin.events("moorage/api/admin/events"))
        assert [(row["owner"], row["system"], row["state"]) for row in overview["sessions"]] == [
            ("alice", "alpha", "ready")
        ]
        status, _ = await admin.call("POST", "moorage/api/admin/actions/stop", {"subject": session})
        assert status == 200
        await until(lambda: hub.world.system.alive == 0)
        overview = await anext(admin.events("moorage/api/admin/events"))
        assert [(each["who"], each["action"], each["subject"]) for each in overview["audit"]] == [
            ("admin", "stop", session),
            ("admin", "stop", session),
        ]
        status, _ = await admin.call("POST", "moorage/api/admin/actions/erase", {"subject": "alpha"})
        assert status in (404, 501)


async def test_the_history_of_a_session_is_a_timeline(start_hub: Start) -> None:
    hub = await start_hub()
    await hub.api("POST", "users/alice/server")
    session = hub.live()[0].id
    async with logged_in(hub, "alice") as alice:
        status, page = await alice.get(f"moorage/users/alice/sessions/{session}")
        assert status == 200
        steps = data_of(page)["steps"]
        assert [step["event"] for step in steps][:3] == ["Started", "Admitted", "Submitted"]
        assert [step["at"] for step in steps] == sorted(step["at"] for step in steps)


async def test_starts_of_a_server_are_kept(start_hub: Start) -> None:
    """After three starts the logs of all three can be read, the newest first."""
    hub = await start_hub()
    for number in range(3):
        hub.world.system.failing = f"log of start {number}".encode()
        await hub.api("POST", "users/alice/server")
    await asyncio.sleep(0.2)
    async with logged_in(hub, "alice") as alice:
        _, answer = await alice.call("GET", "moorage/api/users/alice/servers//starts")
    assert [row["log"] for row in answer["starts"]] == [f"log of start {number}" for number in (2, 1, 0)]


async def test_figures_for_prometheus_name_no_person(start_hub: Start) -> None:
    hub = await start_hub(JupyterHub__authenticate_prometheus=False)
    await hub.api("POST", "users/alice/server")
    hub.world.hub.unattached.set()
    await asyncio.sleep(0.3)
    async with hub.client.get(f"{hub.url}/hub/metrics") as answer:
        text = await answer.text()
    assert 'moorage_sessions{state="ready",system="alpha"} 1.0' in text
    assert 'moorage_ready_seconds_count{system="alpha"}' in text
    ours = [line for line in text.splitlines() if line.startswith("moorage_")]
    assert not any("alice" in line for line in ours)


async def test_a_start_that_fails_at_once_shows_its_own_form_again(start_hub: Start) -> None:
    """With what was chosen for this very server, and why it failed: the sentence and, behind a summary, the log."""
    hub = await start_hub()
    hub.world.system.failing = b"no module named numpy"
    async with logged_in(hub, "alice") as alice:
        data = {"walltime_s": "1200", "partition": "batch", "_xsrf": alice.xsrf()}
        async with alice.session.post(f"{hub.url}/hub/spawn/alice/one", data=data) as answer:
            page = await answer.text()
    assert data_of(page)["last"]["walltime_s"] == "1200"
    assert data_of(page)["name"] == "one"
    assert "<summary>" in page
    assert "no module named numpy" in page
