"""Hostile options and configuration, at the real adapter: refused by name, or a job with the script of every job."""

import asyncio
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
from tests.contract.system.suite import SystemCase, a_spec, eventually
from tests.contract.system.unicore_world import ALICE, NAME, Issuer, WallClock, World, world

from moorage.adapters.unicore.config import OwnerToken, UnicoreConfig
from moorage.adapters.unicore.system import UnicoreSystem, build
from moorage.core.model import Alive, Owner, Phase, SessionSpec, Tag, tag_of
from moorage.core.plan import (
    LAUNCHER_NAME,
    PLAN_NAME,
    SCRIPT,
    SCRIPT_NAME,
    SECRET_NAME,
    LaunchPlan,
    LaunchSecrets,
    PlanError,
    Rendered,
    parse_plan,
    render,
)
from moorage.core.secret import Secret
from moorage.launcher import source
from moorage.ports.errors import Refused
from moorage.ports.system import Handle

GATE = "5e" * 32


@attrs.frozen
class PlansOfOptions:
    """Makes arguments of the lab of what the user chose, as the composition root does."""

    async def rendered(self, tag: Tag, spec: SessionSpec) -> Rendered:
        try:
            plan = LaunchPlan(
                tag=tag,
                attempt=1,
                owner=spec.key.owner,
                command=("/bin/true", "{socket}"),
                args=tuple(f"--{name}={value}" for name, value in spec.options),
                environment=tuple((f"V_{name}", value) for name, value in spec.options),
            )
        except PlanError as error:
            raise Refused(str(error)[:400]) from error
        return render(plan, LaunchSecrets(Secret(GATE)))


@pytest.fixture
async def unicore(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


def adapter(unicore: World) -> UnicoreSystem:
    system = unicore.make()
    system.plans = PlansOfOptions()
    return system


REFUSED = {
    "newline": "a\nb",
    "carriage return": "a\rb",
    "nul": "a\0b",
    "escape": "a\x1b[31m",
    "a megabyte": "x" * (1 << 20),
    "nesting": "[" * 10_000 + "]" * 10_000,
    "a lone surrogate": "\ud800",
}


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_an_option_is_refused_by_its_field(unicore: World, value: str) -> None:
    system = adapter(unicore)
    spec = attrs.evolve(a_spec(SystemCase(system=system)), options=(("option", value),))
    with pytest.raises(Refused, match=r"args\[0\]"):
        await system.submit(tag_of(spec, 1), spec)
    assert unicore.site.requests == 0


HOSTILE = (
    ("quotes", "\"; touch pwned; '"),
    ("command", "$(touch pwned)"),
    ("backticks", "`touch pwned`"),
    ("variable", "${HOME}"),
    ("json", '"},"Executable":"touch pwned"'),
    ("directive", "#SBATCH --account=other"),
    ("mvel", "${java.lang.Runtime.getRuntime()}"),
    ("page", "</script><script>"),
    ("letters", "üñî😀"),
    ("backslash", "\\n\\0\\"),
)


async def test_a_hostile_option_leaves_the_script_as_it_is(unicore: World) -> None:
    """What arrives at the site are the constant script, the launcher, and a plan that says what was chosen."""
    system = adapter(unicore)
    spec = attrs.evolve(a_spec(SystemCase(system=system)), options=HOSTILE)
    case = SystemCase(system=system)
    job = Handle(ALICE, tag_of(spec, 1), await system.submit(tag_of(spec, 1), spec))

    async def ask() -> object:
        return (await system.observe([job])).get(job.job)

    await eventually(case, ask, lambda said: isinstance(said, Alive) and said.phase is Phase.RUNNING)
    directory = unicore.site.site.jobs[job.job].directory
    assert directory is not None
    assert (directory / SCRIPT_NAME).read_text() == SCRIPT
    assert (directory / LAUNCHER_NAME).read_text() == source()
    assert parse_plan((directory / PLAN_NAME).read_text()).args == tuple(f"--{name}={value}" for name, value in HOSTILE)
    assert not list(directory.rglob("pwned"))
    await system.cancel(job)


async def test_only_the_job_can_read_the_secret(unicore: World) -> None:
    """The file is for its owner alone, and the site tells nobody what is in it: not the log, not the description."""
    system = unicore.make()
    spec = a_spec(SystemCase(system=system))
    system.plans = PlansOfOptions()
    unicore.site.faults.add({"do": "stick", "on": ["life"], "state": "QUEUED"})
    job = Handle(ALICE, tag_of(spec, 1), await system.submit(tag_of(spec, 1), spec))
    site_job = unicore.site.site.jobs[job.job]
    secret = None
    for _ in range(300):
        if site_job.directory is not None and (site_job.directory / SECRET_NAME).exists():
            secret = site_job.directory / SECRET_NAME
            if stat.S_IMODE(secret.stat().st_mode) == 0o600:
                break
        await asyncio.sleep(0.01)
    assert secret is not None
    assert json.loads(secret.read_text())["gate"] == "5e" * 32
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert GATE not in "\n".join(site_job.log)


# Configuration -----------------------------------------------------------------------------------------------


def made(config: UnicoreConfig, **context: object) -> UnicoreSystem:
    return build(NAME, config, clock=WallClock(), credentials=Issuer(), plans=PlansOfOptions(), **context)


@pytest.mark.parametrize(
    "config",
    [
        UnicoreConfig(url="http://gateway.example.org/S/rest/core"),
        UnicoreConfig(url="https://gateway.example.org/S/rest/core", insecure=True),
    ],
    ids=["no TLS", "insecure"],
)
async def test_an_unverified_site_is_for_the_simulator_only(config: UnicoreConfig) -> None:
    for context in ({}, {"simulation": False}):
        with pytest.raises(Refused, match="simulated sites only"):
            made(config, **context)
    await made(config, simulation=True).close()


async def test_an_account_is_told_without_io() -> None:
    config = UnicoreConfig(url="https://g/S/rest/core", credentials=OwnerToken(), accounts={"alice": "proj1"})
    system = made(config)
    assert system.account(Owner("alice")) == "alice/proj1"
    assert system.account(Owner("bob")) == "bob"
    await system.close()


async def test_a_person_acts_with_the_account_that_is_configured(unicore: World) -> None:
    system = unicore.make(accounts={"alice": "proj1"})
    spec = a_spec(SystemCase(system=system))
    job = await system.submit(tag_of(spec, 1), spec)
    assert unicore.site.site.jobs[job].preferences
    other = unicore.make(accounts={"alice": "not_hers"})
    spec = a_spec(SystemCase(system=other))
    with pytest.raises(Exception, match="credentials"):
        await other.submit(tag_of(spec, 1), spec)
