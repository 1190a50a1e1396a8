"""A deployment with a relay process of its own: it outlives the Hub's process, and sessions are found again."""

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from moorage.bootstrap import Deployment, compose
from moorage.cli import Exit
from moorage.core.catalog import SessionOptions, User, validate
from moorage.core.model import Ended, Owner, Ready, Route, SessionId, SessionKey, SessionSpec
from moorage.core.progress import Progress
from moorage.simulator.servers.unicore import Running

from .conftest import Configure

ME = User("me")
PATIENCE_S = 90


class QuietHub:
    """Hears everything and does nothing."""

    async def report(self, spec: SessionSpec, progress: Progress) -> None: ...
    async def publish(self, spec: SessionSpec, route: Route) -> None: ...
    async def withdraw(self, spec: SessionSpec) -> None: ...


async def moorage(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moorage.cli", *arguments, stdout=PIPE, stderr=PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def tunnels(config: Path) -> tuple[int, list[dict[str, Any]]]:
    code, out, err = await moorage("tunnels", "--json", "--config", str(config))
    assert out, err
    return code, json.loads(out)["tunnels"]


async def ask(address: str) -> str:
    async with aiohttp.ClientSession() as client, client.get(address) as answer:
        return await answer.text()


async def until(deployment: Deployment, session: SessionId, state: type) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        async for _ in deployment.runner.follow(session):
            found = (await deployment.runner.get(session)).session.state
            if isinstance(found, state):
                return found
    raise AssertionError(f"no {state.__name__}")


@asynccontextmanager
async def deployed(config: Path) -> AsyncIterator[Deployment]:
    async with compose(config, QuietHub(), simulation=True) as deployment:
        yield deployment


@pytest.fixture
async def config(site: Running, configure: Configure) -> AsyncIterator[Path]:
    """The configuration of a deployment whose relay is ended afterwards."""
    file = configure(site.url)
    yield file
    code, _, err = await moorage("relay", "--stop", "--config", str(file))
    assert code in (Exit.FINE, Exit.UNREACHABLE), err
    await asyncio.to_thread(_gone, file.parent / ".moorage" / "relay" / "control.sock")


def _gone(file: Path) -> None:
    from time import sleep

    for _ in range(400):
        if not file.exists():
            return
        sleep(0.05)  # another process is ending; there is no pretend time for it
    raise AssertionError(f"{file} is still there")


async def test_a_session_outlives_the_hub_and_the_relay(config: Path) -> None:
    """
    1. A session is ready; the address leads to its job.
    2. The Hub's process ends: the same address goes on leading to the same job, and `moorage tunnels` shows it.
    3. The relay is killed: the next Hub finds the session, a new relay has the path again at the same address.
    4. A stop leaves no path.
    """
    code, _, err = await moorage("tunnels", "--config", str(config))
    assert (code, "the relay is not running" in err) == (Exit.UNREACHABLE, True)

    async with deployed(config) as deployment:
        options = validate(deployment.choices(ME), {})
        assert isinstance(options, SessionOptions)
        key = SessionKey("demo", Owner("me"))
        session = await deployment.runner.start(deployment.request(key, ME, options))
        address = (await until(deployment, session, Ready)).route.address
        lab = (await ask(address)).split(",")[0]
        (row,) = await deployment.tunnels()
        assert row["session"] == session

    assert (await ask(address)).split(",")[0] == lab
    code, rows = await tunnels(config)
    assert (code, len(rows)) == (Exit.FINE, 1)
    assert (rows[0]["session"], rows[0]["owner"], rows[0]["good"], rows[0]["address"]) == (session, "me", True, address)
    code, table, _ = await moorage("tunnels", "--no-probe", "--config", str(config))
    assert (code, session in table) == (Exit.FINE, True)

    await asyncio.to_thread(_kill_relay, config)
    async with deployed(config) as deployment:
        found = (await deployment.runner.get(session)).session
        assert found.id == session
        await deployment.tunnels()  # whoever needs the relay starts it
        assert (await ask(address)).split(",")[0] == lab
        await deployment.runner.stop(session)
        await until(deployment, session, Ended)
        assert await deployment.tunnels() == []
        with pytest.raises(aiohttp.ClientError):
            await ask(address)


def _kill_relay(config: Path) -> None:
    """SIGKILL the process that holds the relay's lock; found by the lock itself, so that it is surely ours."""
    lock = (config.parent / ".moorage" / "relay" / "lock").stat()
    wanted = f"{os.major(lock.st_dev):02x}:{os.minor(lock.st_dev):02x}:{lock.st_ino}"
    (pid,) = {int(line.split()[4]) for line in Path("/proc/locks").read_text().splitlines() if wanted in line}
    os.kill(pid, signal.SIGKILL)


def change(config: Path) -> None:
    changed = json.loads(config.read_text())
    changed["systems"]["demo"]["options"]["connections"] = 16
    config.write_text(json.dumps(changed))


async def test_a_relay_that_knows_other_ways_is_started_anew(config: Path) -> None:
    """A deployment that is composed with another way to a system does not go on with the old relay."""
    async with deployed(config) as deployment:
        await deployment.tunnels()
    relay = config.parent / ".moorage" / "relay"
    first = (relay / "ways").read_text()
    change(config)
    async with deployed(config) as deployment:
        await deployment.tunnels()
        assert (relay / "ways").read_text() != first


async def test_one_relay_only(config: Path) -> None:
    async with deployed(config) as deployment:
        await deployment.tunnels()
        code, _, err = await moorage("relay", "--config", str(config), "--simulation")
    assert (code, "another process is the relay" in err) == (Exit.WRONG, True)
