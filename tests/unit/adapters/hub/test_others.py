"""
Somebody else's cookie, and none, on every path of ours with every method that it answers.

The paths come from the list of handlers itself: one that is added later is nobody else's unless it is named here.
"""

import re
from itertools import product
from typing import Any

import aiohttp
import pytest
from stubworld import Hub, Start  # type: ignore[import-not-found]
from test_pages import logged_in  # type: ignore[import-not-found]
from tornado.web import RequestHandler

from moorage.adapters.hub.embedding import HERE
from moorage.adapters.hub.pages import handlers
from moorage.adapters.hub.people import People

EVERYBODYS = {
    "/home": "shows whoever asks",
    "/spawn": "starts a server of whoever asks",
    "/moorage/static/(.*)": "files of the package",
    "/moorage/language/([a-z]{2})": "a cookie of whoever asks",
}
"""Paths that name nobody, and why they may be anybody's."""

SIGNED = "/moorage/notify/([^/]+)"
"""Believes signatures only; see test_notices.py."""

NAMES_A_SESSION = "([a-z2-7]{26})"


def methods_of(handler: Any) -> list[str]:
    unanswered = RequestHandler._unimplemented_method
    return [name for name in RequestHandler.SUPPORTED_METHODS if getattr(handler, name.lower(), None) != unanswered]


def filled(pattern: str, owner: str, session: str) -> str:
    """A path of bob's, or one that asks for bob's session under another name."""
    stands_for = {NAMES_A_SESSION: [session], "([^/]+)": [owner, "course"], "([^/]*)": [""], "([a-z_]+)": ["stop_all"]}
    groups = re.findall(r"\([^)]*\)", pattern)
    for group in groups:
        assert stands_for.get(group), f"say what stands for {group} in {pattern}"
        pattern = pattern.replace(group, stands_for[group].pop(0), 1)
    return pattern


def requests(session: str) -> list[tuple[str, str]]:
    """Every method on every path that is bob's or the administrator's."""
    found = []
    for pattern, handler, *_ in handlers(HERE / "static"):
        if pattern in EVERYBODYS:
            continue
        paths = {filled(pattern, "bob", session)}
        if NAMES_A_SESSION in pattern:
            paths.add(filled(pattern, "alice", session))
        found += [(method, path) for method, path in product(methods_of(handler), sorted(paths)) if method != "OPTIONS"]
    return found


async def bobs_world(start_hub: Start) -> tuple[Hub, str]:
    hub = await start_hub()
    await hub.api("POST", "users/bob/server")
    people = People(hub.world.service.directory)
    people.save_preset("bob", "mine", {"system": "alpha"})
    return hub, hub.live()[0].id


def is_untouched(hub: Hub) -> bool:
    presets = People(hub.world.service.directory).presets("bob")
    return hub.world.system.alive == 1 and presets == {"mine": {"system": "alpha"}} and len(hub.live()) == 1


async def test_somebody_elses_cookie_opens_no_path_of_ours(start_hub: Start) -> None:
    hub, session = await bobs_world(start_hub)
    async with logged_in(hub, "alice") as alice:
        asked = requests(session)
        assert len(asked) > 20
        for method, path in asked:
            status, answer = await alice.call(method, path.removeprefix("/"), {"subject": session, "name": "mine"})
            assert status in (403, 404), (method, path, status)
            assert "mine" not in str(answer), (method, path)
            assert "alpha" not in str(answer), (method, path)
    assert is_untouched(hub)


async def test_the_owner_gets_in_by_the_same_paths(start_hub: Start) -> None:
    """Or the refusals above would only say that the paths are wrong."""
    hub, session = await bobs_world(start_hub)
    refused = set()
    async with logged_in(hub, "bob") as bob:
        for method, path in requests(session):
            if method != "GET":
                continue
            url, query = f"{hub.url}/hub{path}", {"_xsrf": bob.xsrf()} if "/api/" in path else {}
            async with bob.session.get(url, params=query, allow_redirects=False) as answer:
                if answer.status not in (200, 302):
                    refused.add(path.replace(session, "ID"))
    elsewhere = {"/moorage/users/alice/sessions/ID", "/moorage/api/users/alice/sessions/ID"}
    assert refused == {"/moorage/admin", "/moorage/api/admin/events"} | elsewhere


async def test_without_a_cookie_no_path_of_ours_opens(start_hub: Start) -> None:
    """A page leads to the login; data is refused."""
    hub, session = await bobs_world(start_hub)
    async with aiohttp.ClientSession() as nobody:
        for method, path in [*requests(session), ("GET", "/home"), ("GET", "/spawn"), ("POST", "/spawn")]:
            async with nobody.request(method, f"{hub.url}/hub{path}", json={}, allow_redirects=False) as answer:
                at_login = answer.status == 302 and answer.headers["Location"].startswith("/hub/login")
                assert at_login or answer.status in (403, 404), (method, path, answer.status)
    assert is_untouched(hub)


def test_every_path_is_somebodys() -> None:
    """What is named above as everybody's exists, and only what names nobody is."""
    patterns = [pattern for pattern, *_ in handlers(HERE / "static")]
    assert set(EVERYBODYS) <= set(patterns)
    assert SIGNED in patterns
    assert not [pattern for pattern in EVERYBODYS if NAMES_A_SESSION in pattern or "/users/" in pattern]


@pytest.mark.parametrize("pattern", ["/moorage/api/users/([^/]+)/new/([0-9]+)"])
def test_a_path_that_cannot_be_asked_for_is_told(pattern: str) -> None:
    with pytest.raises(AssertionError, match="say what stands for"):
        filled(pattern, "bob", "a" * 26)
