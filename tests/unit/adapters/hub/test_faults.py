"""
What the Hub, its proxy, its people and its users' jobs do to a session at the worst moment, and what becomes of it.

`FAULTS` names the test of each fault of the Hub's side; their numbers are those of the reliability specification.
"""

import ast
import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from jupyterhub import orm
from stubworld import Hub, Start, StubSystem, StubTunnels, stop_hub, until
from test_pages import logged_in
from test_spawner import queued, started, state_of

from moorage.adapters.hub.attaching import _look
from moorage.adapters.hub.pages import handlers
from moorage.adapters.hub.port import HubPort
from moorage.core.model import Ended, Owner, Ready, SessionKey, SystemName
from moorage.ports.errors import Unanswered, Unreachable
from moorage.ports.sessions import StartRequest
from moorage.ports.tunnels import ProbeResult

TESTS = Path(__file__).parents[4] / "tests"

FAULTS: dict[str, tuple[str, ...]] = {
    "F-H1 Hub killed at any step": (
        "unit/adapters/hub/test_spawner.py::test_after_a_restart_of_the_hub_the_session_is_there_again",
        "unit/adapters/hub/test_spawner.py::test_a_start_that_was_under_way_when_the_hub_died_is_waited_for_again",
        "unit/adapters/hub/test_faults.py::test_a_stop_that_was_under_way_when_the_hub_died_goes_on",
        "unit/adapters/hub/test_faults.py::test_a_server_whose_session_was_never_asked_for_is_gone_after_a_restart",
        "e2e/test_browser.py::test_a_kernel_counts_on_while_the_hub_is_killed",
    ),
    "F-H2 an older database, or an empty one": (
        "unit/adapters/hub/test_spawner.py::test_a_hub_with_an_older_database_gets_its_sessions_back",
        "unit/adapters/hub/test_faults.py::test_with_an_empty_database_a_session_waits_for_its_owner",
        "unit/adapters/hub/test_faults.py::test_a_session_that_nobody_claims_is_stopped_after_a_while",
    ),
    "F-H3 two starts, a start during a stop, a stop during a start": (
        "unit/adapters/hub/test_spawner.py::test_fifty_starts_of_one_name_are_one_job",
        "unit/adapters/hub/test_spawner.py::test_a_stop_that_the_system_delays_returns_and_goes_on",
        "unit/adapters/hub/test_spawner.py::test_deleting_a_server_that_waits_in_the_queue_ends_its_session",
    ),
    "F-H4 the user cancels at every step": (
        "unit/adapters/hub/test_faults.py::test_cancel_leads_to_the_end_from_every_state",
    ),
    "F-H5 start() is cancelled by its time": (
        "unit/adapters/hub/test_spawner.py::test_a_hub_that_gives_up_waiting_leaves_the_session_and_takes_it_up_again",
    ),
    "F-H6 the proxy is slow, dead, or empty": (
        "unit/adapters/hub/test_faults.py::test_a_proxy_that_takes_no_route_ends_no_session",
        "unit/adapters/hub/test_faults.py::test_a_proxy_that_came_back_empty_gets_the_route_again",
    ),
    "F-H7 the Hub does not take progress": (
        "unit/adapters/hub/test_faults.py::test_a_hub_that_takes_no_progress_holds_up_nothing",
    ),
    "F-H8 a reader of progress disappears, comes back, asks twice": (
        "unit/adapters/hub/test_faults.py::test_readers_come_and_go_and_see_the_same",
    ),
    "F-H9 two Hubs on one store": ("unit/adapters/hub/test_faults.py::test_the_session_of_another_hub_is_not_ours",),
    "F-H10 a person is renamed, removed": (
        "unit/adapters/hub/test_faults.py::test_removing_a_person_ends_their_sessions",
        "unit/adapters/hub/test_faults.py::test_whoever_gets_a_name_does_not_get_its_sessions",
    ),
    "F-H11 hundreds are stopped at once": (
        "unit/adapters/hub/test_faults.py::test_thirty_stops_at_once_do_not_hold_up_a_start",
    ),
    "F-H12 names": (
        "unit/adapters/hub/test_spawner.py::test_names_that_the_hub_lets_through_are_keys_of_their_own",
        "unit/adapters/hub/test_small.py::test_people_with_strange_names_have_presets_of_their_own",
    ),
}


def test_every_fault_has_a_test_that_is_there() -> None:
    assert [fault.partition(" ")[0] for fault in FAULTS] == [f"F-H{number}" for number in range(1, 13)]
    for fault, tests in FAULTS.items():
        for test in tests:
            file, _, name = test.partition("::")
            assert name in functions_of(TESTS / file), f"{fault}: {test}"


def functions_of(file: Path) -> set[str]:
    tree = ast.parse(file.read_text("utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


# Cancel ------------------------------------------------------------------------------------------------------------

Hold = Callable[[Hub, pytest.MonkeyPatch], None]


def _closed(hub: Hub, patch: pytest.MonkeyPatch) -> None:
    systems = hub.world.runner.ports.systems
    patch.setitem(systems, SystemName("alpha"), evolve(systems[SystemName("alpha")], closed=lambda _now: "repairs"))


def _submit_hangs(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    async def submit(*_args: object) -> object:
        return await asyncio.Event().wait()

    patch.setattr(StubSystem, "submit", submit)


def _answer_is_lost(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    """The job is there, its id is not; and for a while nobody can look it up."""
    submit, find = StubSystem.submit, StubSystem.find
    looks = iter(range(1_000))

    async def lose(*args: Any) -> object:
        await submit(*args)
        raise Unanswered("the line was cut")

    async def look(*args: Any) -> object:
        if next(looks) < 3:
            raise Unreachable("no route")
        return await find(*args)

    patch.setattr(StubSystem, "submit", lose)
    patch.setattr(StubSystem, "find", look)


def _queues(hub: Hub, _patch: pytest.MonkeyPatch) -> None:
    hub.world.system.queueing = True


def _says_nothing(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    async def read(*_args: object) -> None:
        return None

    patch.setattr(StubSystem, "read", read)


def _cannot_be_reached(_hub: Hub, patch: pytest.MonkeyPatch) -> None:
    async def probe(*_args: object) -> ProbeResult:
        return ProbeResult(False, "the lab is starting")

    patch.setattr(StubTunnels, "probe", probe)


@pytest.mark.parametrize(
    ("state", "hold"),
    [
        ("Waiting", _closed),
        ("Submitting", _submit_hangs),
        ("Locating", _answer_is_lost),
        ("Queued", _queues),
        ("Starting", _says_nothing),
        ("Connecting", _cannot_be_reached),
    ],
)
async def test_cancel_leads_to_the_end_from_every_state(
    start_hub: Start, monkeypatch: pytest.MonkeyPatch, state: str, hold: Hold
) -> None:
    """Afterwards there is no job, no path and no server, and the session says that it was stopped."""
    hub = await start_hub()
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
    hold(hub, monkeypatch)
    await started(hub)
    await until(lambda: [type(session.state).__name__ for session in hub.live()] == [state])
    (session,) = hub.live()
    status, _ = await hub.api("DELETE", "users/alice/server")
    assert status in (202, 204)
    await ended(hub, session.id)
    await until(lambda: not hub.spawner("alice").active)
    assert hub.world.system.alive == 0
    assert hub.world.tunnels.paths == {}


async def ended(hub: Hub, session: Any, seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not isinstance(await state_of(hub, session), Ended):  # noqa: ASYNC110 (the store is asked)
            await asyncio.sleep(0.05)


# The Hub, its database and its proxy -------------------------------------------------------------------------------


async def test_a_stop_that_was_under_way_when_the_hub_died_goes_on(
    start_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wish is in the store: the next Hub carries it out, and shows no server."""
    hub = await start_hub(MoorageSpawner__stop_wait_s=0.2)
    await started(hub)
    (session,) = hub.live()

    async def away(*_args: object) -> object:
        raise Unreachable("the site is away")

    with monkeypatch.context() as patch:
        patch.setattr(StubSystem, "cancel", away)
        await hub.api("DELETE", "users/alice/server")
        await stop_hub(hub, harsh=True)
    assert hub.world.system.alive == 1
    again = await start_hub()
    await ended(again, session.id)
    assert again.world.system.alive == 0
    await until(lambda: not again.spawner("alice").active)


async def test_a_server_whose_session_was_never_asked_for_is_gone_after_a_restart(
    start_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the Hub's note and ours: the user can start it at once, with the usual patience."""
    hub = await start_hub(MoorageSpawner__http_timeout=30)
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0

    async def hangs(*_args: object) -> object:
        return await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(type(hub.world.runner), "start", hangs)
        await started(hub)
        await stop_hub(hub, harsh=True)
    again = await start_hub(MoorageSpawner__http_timeout=30)
    await until(lambda: not again.spawner("alice").active)
    assert await started(again) == 201
    assert again.spawner("alice").http_timeout == 30


async def test_with_an_empty_database_a_session_waits_for_its_owner(start_hub: Start, tmp_path: Path) -> None:
    """It is told, not stopped; when its owner logs in it is theirs again, and no job was started."""
    hub = await start_hub()
    await started(hub, server="kept")
    (session,) = hub.live()
    await stop_hub(hub, harsh=True)
    (tmp_path / "hub.sqlite").unlink()
    again = await start_hub(Authenticator__allowed_users=set(), Authenticator__allow_all=True)
    await asyncio.sleep(0.2)
    assert isinstance(await state_of(again, session.id), Ready)
    async with logged_in(again, "alice"):
        again.world.hub.unattached.set()  # the next look is due every 15 s
        await until(lambda: "kept" in again.spawner("alice").user.spawners and again.spawner("alice", "kept").ready)
    assert again.spawner("alice", "kept").session_id == session.id
    assert again.world.system.submitted == 0


async def test_a_session_that_nobody_claims_is_stopped_after_a_while(start_hub: Start, tmp_path: Path) -> None:
    hub = await start_hub()
    await started(hub)
    (session,) = hub.live()
    await stop_hub(hub, harsh=True)
    (tmp_path / "hub.sqlite").unlink()
    again = await start_hub(Authenticator__allowed_users=set(), MoorageSpawner__owner_grace_s=0)
    await ended(again, session.id)
    assert again.world.system.alive == 0


async def test_a_proxy_that_takes_no_route_ends_no_session(start_hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub gives the start up; the session lives, and is its user's as soon as the proxy takes routes."""
    hub = await start_hub()
    proxy = type(hub.app.proxy)

    async def dead(*_args: object) -> None:
        raise OSError("connection refused")

    with monkeypatch.context() as patch:
        patch.setattr(proxy, "add_route", dead)
        hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
        await started(hub)
        await until(lambda: hub.spawner("alice")._let_go)
        (session,) = hub.live()
        assert isinstance(session.state, Ready)
    await until(lambda: not hub.spawner("alice").active)
    hub.world.hub.unattached.set()
    await until(lambda: hub.spawner("alice").ready)
    assert hub.spawner("alice").session_id == session.id
    assert hub.world.system.submitted == 1
    assert "/user/alice/" in await hub.app.proxy.get_all_routes()


async def test_a_proxy_that_came_back_empty_gets_the_route_again(start_hub: Start) -> None:
    """By the Hub's own check, with the address that the session has had all the time."""
    hub = await start_hub()
    await started(hub)
    before = (await hub.app.proxy.get_all_routes())["/user/alice/"]["target"]
    type(hub.app.proxy).routes.clear()
    await hub.app.update_last_activity()
    assert (await hub.app.proxy.get_all_routes())["/user/alice/"]["target"] == before


async def test_a_hub_that_takes_no_progress_holds_up_nothing(start_hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await start_hub()

    async def hangs(*_args: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(HubPort, "report", hangs)
    assert await started(hub) == 201
    await hub.api("DELETE", "users/alice/server")
    assert hub.world.system.alive == 0


async def test_readers_come_and_go_and_see_the_same(start_hub: Start) -> None:
    """Two at once, one that leaves half-way, one that comes late: the same steps, and nobody is left listening."""
    hub = await start_hub()
    await queued(hub, server="one")
    path = "moorage/api/users/alice/events?server=one"
    async with logged_in(hub, "alice") as alice:
        first, second, third = (alice.events(path) for _ in range(3))
        early = (await anext(first))["steps"]
        assert (await anext(second))["steps"][: len(early)] == early
        await second.aclose()  # type: ignore[attr-defined]
        hub.world.system.run_all()
        await until(lambda: hub.spawner("alice", "one").ready)
        late = (await anext(third))["steps"]
        assert late[: len(early)] == early
        assert late[-1]["state"] == "ready"
        async for message in first:
            if message["steps"][-1]["state"] == "ready":
                break
        assert message["steps"][: len(early)] == early
    await until(lambda: not hub.world.hub.changes._listeners, 20)


async def test_the_session_of_another_hub_is_not_ours(start_hub: Start) -> None:
    """With equal names of person and server: not shown, not attached, not stopped with ours, and by id not found."""
    hub = await start_hub()
    service = hub.world.service
    theirs = await service.sessions.start(StartRequest(SessionKey("other", Owner("alice")), SystemName("alpha")))
    await until(lambda: hub.world.system.submitted == 1)
    await hub.api("GET", "users/alice")
    async with logged_in(hub, "alice") as alice, logged_in(hub, "admin") as admin:
        await _look(hub.world.hub, service, {}, 0)
        assert not hub.spawner("alice").active
        assert (await alice.get(f"moorage/users/alice/sessions/{theirs}"))[0] == 404
        overview = await anext(admin.events("moorage/api/admin/events"))
        assert overview["sessions"] == []
        await admin.call("POST", "moorage/api/admin/actions/stop_all", {"subject": "alpha"})
    assert await started(hub) == 201
    assert hub.world.system.alive == 2


# People ------------------------------------------------------------------------------------------------------------


async def test_removing_a_person_ends_their_sessions(start_hub: Start) -> None:
    hub = await start_hub()
    await started(hub)
    (session,) = hub.live()
    status, _ = await hub.api("DELETE", "users/alice")
    assert status == 204
    await ended(hub, session.id)
    assert hub.world.system.alive == 0


async def test_a_look_at_all_sessions_asks_the_database_for_nobody_who_is_in_use(
    start_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub has one thread, and after a restart there may be a thousand of them."""
    hub = await start_hub()
    await started(hub)
    asked = []
    hub.world.hub._numbers.clear()
    find = orm.User.find.__func__
    monkeypatch.setattr(
        orm.User, "find", classmethod(lambda kind, db, name: asked.append(name) or find(kind, db, name))
    )
    sessions = await _look(hub.world.hub, hub.world.service, {}, 0)
    assert ([each.spec.key.owner for each in sessions], asked) == (["alice"], [])
    assert hub.world.hub.user(Owner("nobody")) is None
    assert asked == ["nobody"]


async def test_whoever_gets_a_name_does_not_get_its_sessions(start_hub: Start) -> None:
    """Renamed, a person keeps the server; somebody who has the old name from then on starts with nothing."""
    hub = await start_hub()
    await started(hub)
    (session,) = hub.live()
    status, _ = await hub.api("PATCH", "users/alice", json={"name": "alicia"})
    assert status == 200
    assert (await hub.api("POST", "users/alice"))[0] == 201
    await _look(hub.world.hub, hub.world.service, {}, 0)
    assert not hub.spawner("alice").active
    assert hub.spawner("alicia").ready
    assert isinstance(await state_of(hub, session.id), Ready)
    await hub.api("DELETE", "users/alicia/server")
    await ended(hub, session.id)


async def test_thirty_stops_at_once_do_not_hold_up_a_start(start_hub: Start) -> None:
    """As an idle culler does it. All end, and somebody who starts meanwhile is served."""
    hub = await start_hub(MoorageSpawner__http_timeout=60)
    names = [f"s{number}" for number in range(30)]
    await asyncio.gather(*(started(hub, server=name) for name in names))
    await until(lambda: all(hub.spawner("alice", name).ready for name in names), 60)
    stops = [asyncio.create_task(hub.api("DELETE", f"users/alice/servers/{name}")) for name in names]
    await asyncio.sleep(0)
    assert await asyncio.wait_for(started(hub, user="bob"), 30) == 201
    assert {status for status, _ in await asyncio.gather(*stops)} <= {202, 204}
    await until(lambda: hub.world.system.alive == 1, 60)


PATHS = [path for path, *_ in handlers(Path("static"))]


def _of(path: str, owner: str, session: str) -> Iterator[str]:
    """The path with everything filled in for somebody; nothing for paths that are nobody's."""
    filled = path.replace("([a-z2-7]{26})", session).replace("([a-z_]+)", "stop_all").replace("([^/]*)", "")
    if "([^/]+)" in filled or "admin" in filled:
        yield filled.replace("([^/]+)", owner, 1).replace("([^/]+)", "")


async def test_another_persons_cookie_opens_no_path(start_hub: Start) -> None:
    """Every path that there is, with every method, about somebody else; nothing of theirs has changed afterwards."""
    hub = await start_hub()
    await started(hub, user="bob")
    (session,) = hub.live()
    async with logged_in(hub, "alice") as alice:
        tried = 0
        for path in PATHS:
            for filled in _of(path, "bob", session.id):
                for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
                    status, answer = await alice.call(method, filled.strip("/"), {"subject": "alpha", "name": "x"})
                    assert status in (403, 404, 405), (method, filled, status, str(answer)[:300])
                    tried += 1
        assert tried >= 50
    assert hub.world.system.alive == 1
    assert hub.spawner("bob").ready


# Hostile jobs ------------------------------------------------------------------------------------------------------


@contextmanager
def flood(hub: Hub) -> Iterator[None]:
    hub.world.system.failing = b"<script>alert(1)</script>\x1b[2J\n" * 300_000
    yield
    hub.world.system.failing = b""


async def test_a_job_that_floods_its_log_costs_a_page_of_it(start_hub: Start) -> None:
    """Nine megabytes of it: what is stored, told by the API and shown on pages is bounded, and text."""
    hub = await start_hub()
    with flood(hub):
        status, answer = await hub.api("POST", "users/alice/server")
    assert status == 424
    assert len(str(answer)) < 20_000
    stored = await hub.world.service.store.latest(SessionKey("hub", Owner("alice")))
    assert stored is not None
    assert isinstance(stored.session.state, Ended)
    assert len(stored.session.state.evidence.log) <= 100_000
    async with logged_in(hub, "alice") as alice:
        for path in ("spawn-pending/alice", f"moorage/users/alice/sessions/{stored.session.id}"):
            _, page = await alice.get(path)
            assert len(page) < 120_000
            assert "<script>alert" not in page
            assert "\x1b" not in page
