"""From a configuration to a runner that works, and what a reload does to it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from attrs import define, evolve, field

from moorage import bootstrap
from moorage.bootstrap import (
    Deployment,
    PeopleTokens,
    compose,
    limits_of,
    pruned,
    read_config,
    read_secret,
    state_directory,
    store_address,
    token_sources,
)
from moorage.config import ConfigError, SecretRef
from moorage.core.catalog import SessionOptions, User, validate
from moorage.core.events import StopAsked
from moorage.core.machine import begin, step
from moorage.core.model import (
    Endpoint,
    Instant,
    JobId,
    Owner,
    Queued,
    Route,
    SessionId,
    SessionKey,
    SessionSpec,
    Starting,
    SystemName,
    Tag,
    Waiting,
    tag_of,
)
from moorage.core.plan import LaunchPlan, parse_plan
from moorage.core.progress import Progress
from moorage.core.secret import Secret
from moorage.ports.credentials import Token
from moorage.ports.errors import Refused, StoreFailed, Unauthorised, Unreachable
from moorage.ports.tunnels import PathReport, ProbeResult

ME, JUNIPER = User("me"), SystemName("juniper")
CONFIG = """\
deployment: demo
systems:
  juniper:
    kind: sim
    options: {nodes: 4, partitions: {batch: 4}}
    partitions: {batch: {nodes: {max: 2}, max_walltime: 4 h}}
    limits: {sessions: 7}
services:
  lab:
    command: [jupyter, lab, "--ServerApp.sock={socket}"]
    environment: {STAGE: "2026", JUPYTER_TOKEN: plain}
"""


class QuietHub:
    """Hears everything and does nothing."""

    async def report(self, spec: SessionSpec, progress: Progress) -> None: ...
    async def publish(self, spec: SessionSpec, route: Route) -> None: ...
    async def withdraw(self, spec: SessionSpec) -> None: ...


@define
class NoTunnels:
    """Opens nothing: sessions of these tests do not get that far."""

    closed: list[SessionId] = field(factory=list)

    async def open(self, spec: SessionSpec, attempt: int, job: JobId, endpoint: Endpoint) -> Route:
        raise Unreachable("no tunnels in this test")

    async def probe(self, session: SessionId) -> ProbeResult:
        return ProbeResult(False)

    async def close(self, session: SessionId) -> None:
        self.closed.append(session)

    async def list(self) -> Mapping[SessionId, PathReport]:
        return {}


def write(tmp_path: Path, text: str = CONFIG) -> Path:
    file = tmp_path / "moorage.yaml"
    file.write_text(text)
    return file


@asynccontextmanager
async def deployed(file: Path) -> AsyncIterator[Deployment]:
    async with compose(file, QuietHub(), tunnels=NoTunnels()) as deployment:
        yield deployment


def chosen(deployment: Deployment, **asked: object) -> SessionOptions:
    options = validate(deployment.choices(ME), asked)
    assert isinstance(options, SessionOptions), options
    return options


async def start(deployment: Deployment, **asked: object) -> SessionId:
    key = SessionKey("demo", Owner("me"))
    return await deployment.runner.start(deployment.request(key, ME, chosen(deployment, **asked), ["--debug"]))


async def until(deployment: Deployment, session: SessionId, *states: type) -> None:
    """Wait until the session is in one of the states; the simulated system takes a moment."""
    async with asyncio.timeout(20):
        async for _ in deployment.runner.follow(session):
            if isinstance((await deployment.runner.get(session)).session.state, states):
                return


def plan_of(deployment: Deployment, spec: SessionSpec) -> LaunchPlan:
    return deployment.plans.plan(Tag(tag_of(spec, 1)), 1, spec)


async def test_a_configuration_is_enough_to_start_a_session(tmp_path: Path) -> None:
    """The job of a session that was asked for is in the batch system, and the next process finds it again."""
    file = write(tmp_path)
    async with deployed(file) as deployment:
        session = await start(deployment, nodes=2)
        await until(deployment, session, Queued, Starting)
        spec = (await deployment.runner.get(session)).session.spec
        assert (spec.deployment, spec.partition, spec.nodes, spec.walltime_s) == ("demo", "batch", 2, 7_200)
    assert (tmp_path / ".moorage").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".moorage" / "moorage.sqlite").stat().st_mode & 0o777 == 0o600
    async with deployed(file) as deployment:
        again = await deployment.runner.get(session)
        assert again.session.spec == spec


async def test_the_plan_of_an_attempt_holds_no_secret_and_its_secret_file_does(tmp_path: Path) -> None:
    """A secret variable takes the place of a plain one of the same name."""
    async with deployed(write(tmp_path)) as deployment:
        await deployment.vault.keep(SessionKey("demo", Owner("me")), {"JUPYTER_TOKEN": Secret("hunter2")})
        session = await start(deployment)
        await until(deployment, session, Queued, Starting)
        spec = (await deployment.runner.get(session)).session.spec
        rendered = await deployment.plans.rendered(tag_of(spec, 1), spec)
        plan = parse_plan(rendered.plan)
        assert plan.environment == (("STAGE", "2026"),)
        assert plan.args == ("--debug",)
        assert "hunter2" not in rendered.plan + rendered.script + repr(rendered)
        assert json.loads(rendered.secret.reveal())["environment"] == {"JUPYTER_TOKEN": "hunter2"}
        await deployment.vault.revoke(spec.id)
        with pytest.raises(Refused, match="revoked"):
            await deployment.plans.rendered(tag_of(spec, 1), spec)


async def test_a_service_or_an_option_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    async with deployed(write(tmp_path)) as deployment:
        spec = SessionSpec(SessionId("a" * 26), SessionKey("h", Owner("me")), JUNIPER, Instant(0), 1, "demo")
        with pytest.raises(Refused, match="there is no service 'jupyterlab'"):
            plan_of(deployment, spec)
        wrong = SessionSpec(
            spec.id, spec.key, JUNIPER, Instant(0), 1, "demo", service="lab", options=(("cores", "no"),)
        )
        with pytest.raises(Refused, match=r"options\.cores: is no whole number"):
            plan_of(deployment, wrong)


# Systems that are not there --------------------------------------------------------------------------------------

BROKEN = """\
from attrs import frozen
from moorage.plugins import SystemKind, hookimpl

@frozen
class Options:
    how: str = "raise"

def make(name, options, /, **context):
    assert {"clock", "choices", "credentials", "plans", "timeouts", "directory", "deployment"} <= set(context)
    assert context["directory"].stat().st_mode & 0o777 == 0o700
    if options.how == "raise":
        raise SystemExit("no luck")
    return object()

@hookimpl
def moorage_system_kinds():
    return [SystemKind("broken", Options, make, "cannot be set up")]
"""


@pytest.fixture
def broken_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "site"
    info = folder / "moorage_broken-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "moorage_broken_for_bootstrap.py").write_text(BROKEN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moorage-broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[moorage]\nbroken = moorage_broken_for_bootstrap\n")
    monkeypatch.syspath_prepend(folder)
    assert any(each.name == "moorage-broken" for each in distributions())
    monkeypatch.delitem(sys.modules, "moorage_broken_for_bootstrap", raising=False)


@pytest.mark.usefixtures("broken_plugin")
async def test_a_system_that_cannot_be_set_up_is_closed_and_the_others_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    more = "  cedar: {kind: broken}\n  fir: {kind: broken, options: {how: nothing}}\nservices:"
    file = write(tmp_path, CONFIG.replace("services:", more) + "plugins: [moorage-broken]\n")
    async with deployed(file) as deployment:
        await start(deployment)
        lacks = {each.name: str(each.why_not) for each in deployment.choices(ME).systems if each.why_not}
        assert lacks == dict.fromkeys(("cedar", "fir"), "it takes no new sessions now: it could not be set up")
        absent = deployment.entries[SystemName("cedar")].system
        with pytest.raises(Unreachable, match="cedar: SystemExit: no luck"):
            await absent.find(Tag("m"), Owner("me"))
    assert "system fir cannot be set up: TypeError: the factory of kind 'broken' made a object without" in caplog.text


class Closing:
    """A system that notes that it was closed, in its own way."""

    def __init__(self, closed: list[str], name: str) -> None:
        self.closed, self.name = closed, name

    def account(self, owner: Owner) -> str:
        return str(owner)

    async def find(self, tag: Tag, owner: Owner) -> tuple[()]:
        return ()

    def close(self) -> object:
        self.closed.append(self.name)
        if self.name == "a-fails":
            raise RuntimeError("no luck")
        return asyncio.sleep(3600) if self.name == "b-hangs" else asyncio.sleep(0) if self.name == "c-async" else None


async def test_every_system_is_closed_at_the_end_whatever_the_others_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names, closed = ("a-fails", "b-hangs", "c-async", "d-plain"), list[str]()
    more = "".join(f"  {name}: {{kind: sim}}\n" for name in names)
    file = write(tmp_path, CONFIG.replace("services:", f"{more}services:"))
    real = bootstrap.make_system

    def make(name: SystemName, *rest: Any) -> Any:
        return Closing(closed, name) if name in names else real(name, *rest)

    monkeypatch.setattr(bootstrap, "make_system", make)
    monkeypatch.setattr(bootstrap, "CLOSE_S", 0.1)
    async with deployed(file):
        assert closed == []
    assert sorted(closed) == sorted(names)
    assert "system a-fails was not closed: RuntimeError: no luck" in caplog.text
    assert "system b-hangs was not closed: TimeoutError" in caplog.text


async def test_systems_of_the_built_in_kinds_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds connections of its own: an HTTP pool, SSH transports."""
    key = tmp_path / "key"
    key.write_text("none")
    ssh = f"{{hosts: [127.0.0.1], user: me, key_file: {key}, host_keys: ['{HOST_KEY}']}}"
    more = (
        "  elm: {kind: unicore, options: {url: 'https://127.0.0.1:9/ELM/rest/core'}}\n"
        f"  oak: {{kind: slurm, options: {ssh}, tunnel: {{kind: paramiko, options: {ssh}}}}}\n"
        f"  yew: {{kind: ssh-host, options: {ssh}, tunnel: {{kind: paramiko, options: {ssh}}}}}\n"
    )
    closed: list[str] = []
    async with deployed(write(tmp_path, CONFIG.replace("services:", f"{more}services:"))) as deployment:
        for name in ("elm", "oak", "yew"):
            system: Any = deployment.entries[SystemName(name)].system
            close = system.close

            async def closing(name: str = name, close: Any = close) -> None:
                await close()
                closed.append(name)

            monkeypatch.setattr(type(system), "close", lambda _self, closing=closing: closing())
    assert sorted(closed) == ["elm", "oak", "yew"]


HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"


async def test_sessions_of_a_system_that_is_gone_go_on_and_can_be_stopped(tmp_path: Path) -> None:
    """F-G2: the stop is taken and waits for the system; nothing is taken for an end."""
    file = write(tmp_path)
    async with deployed(file) as deployment:
        session = await start(deployment)
        await until(deployment, session, Queued, Starting)
    write(tmp_path, CONFIG.replace("juniper", "cedar"))
    async with deployed(file) as deployment:
        view = await deployment.runner.get(session)
        assert view.session.spec.system == JUNIPER
        await deployment.runner.stop(session)
        assert type((await deployment.runner.get(session)).session.state).__name__ == "Stopping"
        with pytest.raises(Refused):
            plan_of(deployment, view.session.spec)


async def test_an_administrator_closes_a_system_and_that_survives_a_restart(tmp_path: Path) -> None:
    file = write(tmp_path)
    async with deployed(file) as deployment:
        await deployment.drain(JUNIPER, True)
        assert isinstance(validate(deployment.choices(ME), {}), tuple)
        (row,) = deployment.systems()
        assert (row["name"], row["kind"], row["drained"], row["maintenance"]) == ("juniper", "sim", True, False)
    async with deployed(file) as deployment:
        await deployment.maintenance(JUNIPER, True)
        await deployment.drain(JUNIPER, False)
        assert deployment.entries[JUNIPER].closed(Instant(0)) == "maintenance"
        await deployment.maintenance(JUNIPER, False)
        session = await start(deployment)
        await deployment.drain(JUNIPER, True)
        await until(deployment, session, Waiting, Queued, Starting)
        assert await deployment.tunnels() == []


# Reload ----------------------------------------------------------------------------------------------------------


async def test_a_wrong_configuration_changes_nothing(tmp_path: Path) -> None:
    """I42, F-G1: what was there goes on, and the answer says where the mistake is."""
    file = write(tmp_path)
    async with deployed(file) as deployment:
        before = deployment.config
        for text in (CONFIG.replace("kind: sim", "kind: sims"), "systems: [", CONFIG.replace("deployment: demo", "")):
            write(tmp_path, text)
            assert f"{file}:" in await deployment.reload()
            assert deployment.config is before
        file.unlink()
        assert "expected a file" in await deployment.reload()
        write(tmp_path, CONFIG.replace("deployment: demo", "deployment: other"))
        assert "cannot change" in await deployment.reload()
        assert deployment.config is before
        assert chosen(deployment).service == "lab"


async def test_a_right_configuration_is_for_new_sessions_only(tmp_path: Path) -> None:
    file = write(tmp_path)
    async with deployed(file) as deployment:
        session = await start(deployment)
        old = (await deployment.runner.get(session)).session.spec
        await deployment.ports.clock.sleep_until(Instant(deployment.ports.clock.now() + 2))
        write(
            tmp_path,
            CONFIG.replace('"2026"', '"2027"').replace("sessions: 7", "sessions: 3") + "timeouts: {boot: 1 s}\n",
        )
        assert await deployment.reload() == ""
        await deployment.ports.clock.sleep_until(Instant(deployment.ports.clock.now() + 2))
        assert dict(plan_of(deployment, old).environment)["STAGE"] == "2026"
        other = SessionKey("demo", Owner("me"), "other")
        fresh = await deployment.runner.start(deployment.request(other, ME, chosen(deployment)))
        new = (await deployment.runner.get(fresh)).session.spec
        assert dict(plan_of(deployment, new).environment)["STAGE"] == "2027"
        assert (old.timeouts.boot_s, new.timeouts.boot_s) == (600, 1)
        assert deployment.runner.limits.on_system(JUNIPER) == 3


async def test_what_needs_a_restart_is_told(tmp_path: Path) -> None:
    file = write(tmp_path)
    async with deployed(file) as deployment:
        more = "  cedar: {kind: sim}\nservices:"
        write(
            tmp_path, CONFIG.replace("services:", more).replace("nodes: 4", "nodes: 5") + "store: {url: sqlite:///x}\n"
        )
        for _ in range(2):
            assert await deployment.reload() == "after a restart: store, systems.juniper, systems.cedar"
        assert [system.name for system in deployment.choices(ME).systems] == ["juniper"]
        write(tmp_path, CONFIG.replace("juniper", "cedar"))
        await deployment.reload()
        assert isinstance(validate(deployment.choices(ME), {}), tuple)
        assert deployment.entries[JUNIPER].closed(Instant(0)) == "it is not configured any more"
        write(tmp_path)
        assert await deployment.reload() == ""
        assert chosen(deployment).system == JUNIPER


# Small things ----------------------------------------------------------------------------------------------------


async def test_wrong_configurations_and_folders_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        async with deployed(write(tmp_path, "systems: [")):
            pass
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(StoreFailed, match="can be written by others"):
        async with deployed(write(tmp_path, CONFIG + "directory: open\n")):
            pass


async def test_secrets_are_read_when_they_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    with pytest.raises(Unreachable, match="FileNotFoundError"):
        read_secret(SecretRef(file=str(file)))
    file.write_text("hunter2\n")
    monkeypatch.setenv("SECRET_FOR_TESTS", "hunter3")
    assert read_secret(SecretRef(file=str(file))).reveal() == "hunter2"
    assert read_secret(SecretRef(env="SECRET_FOR_TESTS")).reveal() == "hunter3"

    config, _ = read_config(
        write(
            tmp_path,
            CONFIG.replace("limits:", f"token: {{file: {file}}}\n    limits:").replace(
                "services:", "  cedar: {kind: sim, token: {env: SECRET_FOR_TESTS}}\n  fir: {kind: sim}\nservices:"
            ),
        )
    )

    async def own(owner: Owner, system: SystemName) -> Token:
        return Token(Secret(f"{owner}@{system}"), Instant(7))

    async def tokens(people: PeopleTokens) -> dict[str, str]:
        sources = token_sources(config, people)
        return {name: (await source(Owner("me"))).secret.reveal() for name, source in sources.items()}

    folder = tmp_path / "tokens"
    with pytest.raises(Unauthorised, match="a login is needed"):
        await tokens(PeopleTokens(folder))
    expected = {"juniper": "hunter2", "cedar": "hunter3", "fir": "me@fir"}
    assert await tokens(PeopleTokens(folder, own)) == expected
    assert await tokens(PeopleTokens(folder)) == expected, "what passed through one process is there for another"
    (kept,) = folder.iterdir()
    assert (kept.stat().st_mode & 0o777, folder.stat().st_mode & 0o777) == (0o600, 0o700)
    assert (await PeopleTokens(folder).token(Owner("me"), SystemName("fir"))).expires_at == 7
    kept.write_text("{")
    with pytest.raises(Unreachable, match="cannot be read"):
        await tokens(PeopleTokens(folder))
    file.unlink()
    with pytest.raises(Unauthorised):
        await tokens(PeopleTokens(folder))


def test_files_of_a_deployment_stand_beside_its_configuration(tmp_path: Path) -> None:
    config, _ = read_config(write(tmp_path))
    assert state_directory(tmp_path / "moorage.yaml", config) == (tmp_path / ".moorage").resolve()
    assert store_address(config, tmp_path) == f"sqlite:///{tmp_path}/moorage.sqlite"
    assert limits_of(config).on_system("juniper") == 7
    other, _ = read_config(write(tmp_path, CONFIG + "store: {url: 'postgresql://me@db/moorage'}\n"))
    assert store_address(other, tmp_path) == "postgresql://me@db/moorage"


@pytest.mark.parametrize(("keep", "there"), [("", False), ("store: {keep_days: 0}\n", True)])
async def test_what_was_over_long_ago_is_forgotten_at_the_start(tmp_path: Path, keep: str, there: bool) -> None:
    file = write(tmp_path, CONFIG + keep)
    async with deployed(file) as deployment:
        session = await start(deployment)
        now = deployment.ports.clock.now()
        old = Instant(now - 91 * 86_400_000)
        stale = begin(evolve((await deployment.runner.get(session)).session.spec, id=SessionId("o" * 26))).session
        await deployment.store.save(stale, None, old, 0)
        await deployment.store.save(step(stale, StopAsked(), old).session, StopAsked(), old, 1)
    async with deployed(file) as deployment:
        async with asyncio.timeout(5):
            while not there and await deployment.store.load(SessionId("o" * 26)) is not None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (await deployment.store.load(SessionId("o" * 26)) is not None) is there
        assert await deployment.store.load(session) is not None


async def test_all_of_them_are_forgotten_a_few_at_a_time() -> None:
    class Store:
        left = 450

        async def prune(self, before: Instant, most: int = 200) -> int:
            gone = min(most, self.left)
            self.left -= gone
            return gone

    assert await pruned(Store(), Instant(0)) == 450  # type: ignore[arg-type]
