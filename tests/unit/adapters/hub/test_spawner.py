"""The spawner in a real Hub: what users and the Hub do to a session, and what becomes of it."""

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from stubworld import Hub, Start, lab_answers, stop_hub, until, worlds  # type: ignore[import-not-found]

from moorage.core.events import PathDoubted
from moorage.core.model import Ended, JobId, Left, Owner, Queued, Ready, Session, SessionId, SessionKey


async def started(hub: Hub, user: str = "alice", server: str = "", **options: Any) -> int:
    path = f"users/{user}/servers/{server}" if server else f"users/{user}/server"
    status, _ = await hub.api("POST", path, json=options or None)
    return int(status)


async def queued(hub: Hub, server: str = "", **options: Any) -> Session:
    """A session in the queue, and the Hub waiting for it."""
    hub.world.system.queueing = True
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
    assert await started(hub, server=server, **options) == 202
    await until(lambda: any(isinstance(session.state, Queued) for session in hub.live()))
    (session,) = [session for session in hub.live() if isinstance(session.state, Queued)]
    return session


async def state_of(hub: Hub, session: SessionId) -> object:
    return (await hub.world.service.sessions.get(session)).session.state


async def test_a_start_ends_with_the_address_of_the_relay(start_hub: Start) -> None:
    """The Hub leads to the route of the session once it is ready, and remembers its id and nothing else."""
    hub = await start_hub()
    assert await started(hub) == 201
    (session,) = hub.live()
    assert isinstance(session.state, Ready)
    spawner = hub.spawner("alice")
    assert spawner.ready
    assert spawner.server.port == int(hub.world.tunnels.address.rsplit(":", 1)[1])
    assert spawner.get_state() == {"session_id": session.id}


async def test_deleting_a_running_server_ends_its_session_and_a_start_makes_a_new_one(start_hub: Start) -> None:
    hub = await start_hub()
    await started(hub)
    first = hub.live()[0].id
    status, _ = await hub.api("DELETE", "users/alice/server")
    assert status == 204
    state = await state_of(hub, first)
    assert isinstance(state, Ended)
    assert hub.world.system.alive == 0
    assert await started(hub) == 201
    assert hub.spawner("alice").session_id != first


async def test_deleting_a_server_that_waits_in_the_queue_ends_its_session(start_hub: Start) -> None:
    """The Hub cancels the start and then stops: that is the user's wish, so the job goes."""
    hub = await start_hub()
    session = await queued(hub)
    status, _ = await hub.api("DELETE", "users/alice/server")
    assert status in (202, 204)
    await until(lambda: hub.world.system.alive == 0)
    assert isinstance(await state_of(hub, session.id), Ended)


async def test_a_hub_that_gives_up_waiting_leaves_the_session_and_takes_it_up_again(start_hub: Start) -> None:
    """start_timeout passes while the job queues: the session goes on, and its user gets it when it is ready."""
    hub = await start_hub(MoorageSpawner__start_timeout=3)
    session = await queued(hub)
    await until(lambda: hub.spawner("alice")._let_go)
    assert isinstance(await state_of(hub, session.id), Queued)
    assert hub.world.system.alive == 1
    await until(lambda: not hub.spawner("alice").active)
    hub.world.system.run_all()
    await until(lambda: hub.spawner("alice").ready)
    assert hub.spawner("alice").session_id == session.id
    assert hub.world.system.submitted == 1


async def test_the_token_of_the_job_stays_good_when_the_hub_makes_another_start(start_hub: Start) -> None:
    """A session that is taken up again runs with the token of its first start, which the Hub must accept."""
    hub = await start_hub(MoorageSpawner__start_timeout=3)
    session = await queued(hub)
    given = (await hub.world.service.vault.environment(session.id))["JUPYTERHUB_API_TOKEN"].reveal()
    await until(lambda: hub.spawner("alice")._let_go and not hub.spawner("alice").active)
    hub.world.system.run_all()
    await until(lambda: hub.spawner("alice").ready)
    headers = {"Authorization": f"token {given}"}
    async with hub.client.get(f"{hub.url}/hub/api/user", headers=headers) as answer:
        assert (answer.status, (await answer.json())["name"]) == (200, "alice")


async def test_a_lab_that_does_not_answer_the_hub_is_not_stopped(start_hub: Start) -> None:
    """The Hub's own check fails after http_timeout; silence is not death."""
    hub = await start_hub()
    lab_answers["status"] = 503
    hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
    await started(hub)
    await until(lambda: hub.live() and hub.spawner("alice")._let_go)
    lab_answers["status"] = 200
    assert hub.world.system.alive == 1
    await until(lambda: not hub.spawner("alice").active)
    session = hub.live()[0]
    assert isinstance(session.state, Ready)
    hub.world.hub.unattached.set()
    await until(lambda: hub.spawner("alice").ready)
    assert hub.spawner("alice").session_id == session.id


async def test_a_failed_start_says_why_what_to_do_and_what_the_log_says(start_hub: Start) -> None:
    """One sentence with cause and advice, and the log as text: what a site writes never becomes HTML."""
    hub = await start_hub()
    hub.world.system.failing = b"module load failed\n<script>alert(1)</script>\x1b[31m\n"
    status, answer = await hub.api("POST", "users/alice/server")
    assert status == 424
    assert "The job failed (the prolog failed)" in answer["message"]
    assert "Look at the log below" in answer["message"]
    shown = hub.spawner("alice")._spawn_future.exception().jupyterhub_html_message
    assert "module load failed" in shown
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "&lt;script&gt;" in shown


async def test_failed_starts_do_not_make_the_hub_exit(start_hub: Start) -> None:
    """The Hub ends itself after some failures in a row, unless they are told as the job's."""
    hub = await start_hub()
    hub.world.system.refusing = "no such project"
    for _ in range(7):
        status, answer = await hub.api("POST", "users/alice/server")
        assert (status, "no such project" in answer["message"]) == (424, True)
    assert hub.app.tornado_application.settings["failure_count"] == 0


FORGED: dict[str, dict[str, Any]] = {
    "closed partition": {"partition": "secret"},
    "no such system": {"system": "elsewhere"},
    "too long": {"walltime_s": 10**9},
    "no number": {"nodes": "; rm -rf /"},
    "unknown field": {"command": ["sh"]},
    "unknown kernel": {"kernels": ["julia", "--evil"]},
    "list for a text": {"partition": ["batch"]},
    "bomb": {f"x{number}": "y" for number in range(10_000)},
}


async def test_a_forged_form_gains_nothing(start_hub: Start) -> None:
    """Every option is checked against the tree of this very user, whatever way it comes in."""
    hub = await start_hub()
    for what, options in FORGED.items():
        status, answer = await hub.api("POST", "users/alice/server", json={"user_options": options})
        assert status == 424, what
        assert "not possible" in answer["message"], what
        assert len(answer["message"]) < 2_000, what
    assert hub.world.system.submitted == 0


async def test_named_servers_are_sessions_of_their_own(start_hub: Start) -> None:
    hub = await start_hub()
    assert await started(hub, server="one") == 201
    assert await started(hub, server="two") == 201
    assert await started(hub, user="bob", server="one") == 201
    keys = {(session.spec.key.owner, session.spec.key.name) for session in hub.live()}
    assert keys == {("alice", "one"), ("alice", "two"), ("bob", "one")}


async def test_fifty_starts_of_one_name_are_one_job(start_hub: Start) -> None:
    hub = await start_hub()
    answers = await asyncio.gather(*(started(hub) for _ in range(50)))
    assert set(answers) <= {201, 202, 400}
    await until(lambda: hub.spawner("alice").ready)
    assert hub.world.system.submitted == 1


async def test_hooks_environment_and_arguments_reach_the_session(start_hub: Start) -> None:
    """The environment travels in the vault, arguments as options of the session; no token is in the open."""
    seen: list[str] = []

    def before(spawner: Any) -> None:
        seen.append("before")
        spawner.environment = {"PROJECT_DATA": "/data"}
        spawner.user_options["partition"] = "login"

    hub = await start_hub(
        MoorageSpawner__pre_spawn_hook=before,
        MoorageSpawner__post_stop_hook=lambda spawner: seen.append("after"),
        MoorageSpawner__args=["--ServerApp.shutdown_no_activity_timeout=60"],
    )
    assert await started(hub) == 201
    (session,) = hub.live()
    environment = await hub.world.service.vault.environment(session.id)
    assert environment["PROJECT_DATA"].reveal() == "/data"
    assert environment["JUPYTERHUB_USER"].reveal() == "alice"
    assert environment["JUPYTERHUB_SERVICE_URL"].reveal() == "http://127.0.0.1:8888/user/alice/"
    assert ("arg", "--ServerApp.shutdown_no_activity_timeout=60") in session.spec.options
    assert session.spec.partition == "login"
    assert environment["JUPYTERHUB_API_TOKEN"].reveal() not in repr(session)
    await hub.api("DELETE", "users/alice/server")
    assert seen == ["before", "after"]


async def test_poll_asks_nobody_and_never_raises(start_hub: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = await start_hub()
    await started(hub)
    spawner = hub.spawner("alice")

    async def broken(_session: object) -> object:
        raise RuntimeError("a bug")

    def asked(*_args: object) -> None:
        raise AssertionError("a remote call")

    for verb in ("observe", "find", "read", "cancel"):
        monkeypatch.setattr(type(hub.world.system), verb, asked)
    assert await spawner.poll() is None
    monkeypatch.setattr(hub.world.service.sessions, "get", broken)
    assert await spawner.poll() is None


async def test_a_job_that_ends_by_itself_is_noticed_at_once(start_hub: Start) -> None:
    """The Hub polls every 30 s; moorage tells it."""
    hub = await start_hub()
    await started(hub)
    (session,) = hub.live()
    hub.world.system.end(session.state.job.id)
    hub.world.runner.post(session.id, PathDoubted("the stream was cut"))
    await until(lambda: not hub.spawner("alice").ready)
    assert isinstance(await state_of(hub, session.id), Ended)


async def test_a_stop_that_the_system_delays_returns_and_goes_on(
    start_hub: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is not held up; the next start waits for the end of what is left."""
    hub = await start_hub(MoorageSpawner__stop_wait_s=0.2)
    await started(hub)
    first = hub.live()[0].id
    system = hub.world.system

    async def late(job: Any) -> Any:
        return system.jobs[job.job].said

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "cancel", lambda _self, job: late(job))
        status, _ = await hub.api("DELETE", "users/alice/server")
        assert status in (202, 204)
        await until(lambda: not hub.spawner("alice").active)
        session = (await hub.world.service.sessions.get(first)).session
        assert not isinstance(session.state, Ended)
        assert any(left.kind is Left.JOB for left in session.residue)
        hub.app.tornado_application.settings["slow_spawn_timeout"] = 0
        assert await started(hub) == 202
        await asyncio.sleep(0.2)
        assert system.submitted == 1
    system.end(JobId("job-1"))
    await until(lambda: hub.spawner("alice").ready, 15)
    assert system.submitted == 2


# Restarts ----------------------------------------------------------------------------------------------------------


async def test_after_a_restart_of_the_hub_the_session_is_there_again(start_hub: Start) -> None:
    hub = await start_hub()
    await started(hub)
    session = hub.live()[0].id
    await stop_hub(hub, harsh=True)
    again = await start_hub()
    await until(lambda: again.spawner("alice").ready)
    assert again.spawner("alice").session_id == session
    assert again.world.system.submitted + worlds[0].system.submitted == 1
    assert "/user/alice/" in await again.app.proxy.get_all_routes()


async def test_no_secret_is_left_of_a_session_that_outlived_a_hub(start_hub: Start, tmp_path: Path) -> None:
    """Its token is taken up again from its own folder; nothing that a restart has kept anew stays when it ends."""
    hub = await start_hub()
    await started(hub)
    await stop_hub(hub, harsh=True)
    again = await start_hub()
    await until(lambda: again.spawner("alice").ready)
    await again.api("DELETE", "users/alice/server")
    await until(lambda: not [path for path in (tmp_path / "vault").rglob("*") if path.is_file()])


async def test_a_start_that_was_under_way_when_the_hub_died_is_waited_for_again(start_hub: Start) -> None:
    """The Hub has no state of it, and no address: it is found by its name, and nothing is started anew."""
    hub = await start_hub()
    session = await queued(hub)
    await stop_hub(hub, harsh=True)
    again = await start_hub(JupyterHub__init_spawners_timeout=1)
    assert isinstance(await state_of(again, session.id), Queued)
    again.world.system.run_all()
    await until(lambda: again.spawner("alice").ready)
    assert again.spawner("alice").session_id == session.id
    assert again.spawner("alice").orm_spawner.state == {"session_id": session.id}
    assert again.world.system.submitted == 0


async def test_a_hub_with_an_older_database_gets_its_sessions_back(start_hub: Start, tmp_path: Path) -> None:
    """Its database knows nothing of the server, and nothing of the token that the lab uses."""
    hub = await start_hub()
    older = (tmp_path / "hub.sqlite").read_bytes()
    await started(hub, server="late")
    session = hub.live()[0].id
    token = (await hub.world.service.vault.environment(session))["JUPYTERHUB_API_TOKEN"].reveal()
    await stop_hub(hub, harsh=True)
    (tmp_path / "hub.sqlite").write_bytes(older)
    again = await start_hub()
    await until(lambda: "late" in again.spawner("alice").user.spawners and again.spawner("alice", "late").ready)
    assert again.spawner("alice", "late").session_id == session
    async with again.client.get(f"{again.url}/hub/api/user", headers={"Authorization": f"token {token}"}) as answer:
        assert answer.status == 200
    assert again.world.system.submitted == 0


async def test_a_session_that_the_store_lost_counts_as_running_for_a_while(start_hub: Start) -> None:
    hub = await start_hub()
    await started(hub)
    spawner = hub.spawner("alice")
    spawner._asked, spawner.session_id = None, "a" * 26
    assert await spawner.poll() is None
    spawner.unknown_grace_s = 0
    await asyncio.sleep(0.01)
    assert await spawner.poll() == 1


async def test_moorage_that_is_not_there_stops_nothing(start_hub: Start) -> None:
    """A bad configuration at a restart: every server counts as running, and starts say what is wrong."""
    hub = await start_hub()
    await started(hub)
    from moorage.adapters.hub.service import registry

    service = registry.service
    assert service is not None
    registry.withdraw("moorage.yaml:3: unknown key")
    try:
        assert await hub.spawner("alice").poll() is None
        await hub.spawner("alice").stop()
    finally:
        registry.provide(service)
    assert hub.world.system.alive == 1


# Names -------------------------------------------------------------------------------------------------------------


async def test_names_that_the_hub_lets_through_are_keys_of_their_own(start_hub: Start) -> None:
    """Whatever the Hub refuses is refused; what it takes is one session under exactly that name."""
    hub = await start_hub()
    for name in ("Ä", "a" * 255, "a%2Fb", "..", "a b", "e\u0301", "\u00e9", "<b>", "a-b", "a_b"):
        before = {session.spec.key for session in hub.live()}
        status, _ = await hub.api("POST", f"users/alice/servers/{quote(name, safe='')}")
        new = {session.spec.key for session in hub.live()} - before
        if status == 201:
            assert new == {SessionKey("hub", Owner("alice"), name)}
        else:
            assert 400 <= status < 500, name
            assert new == set()


async def test_nothing_secret_is_in_the_hubs_database(start_hub: Start, tmp_path: Path) -> None:
    hub = await start_hub()
    await started(hub, walltime_s=900)
    session = hub.live()[0].id
    token = (await hub.world.service.vault.environment(session))["JUPYTERHUB_API_TOKEN"].reveal()
    row = hub.spawner("alice").orm_spawner
    assert token not in json.dumps([row.state, row.user_options])
    for name in ("hub.sqlite", "moorage.sqlite", "moorage.sqlite-wal"):
        assert token.encode() not in (tmp_path / name).read_bytes()
