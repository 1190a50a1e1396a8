"""`moorage run`: a session on a simulated UNICORE site whose jobs are real processes, from the command to its end."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
from attrs import define, field

from moorage.cli import Exit
from moorage.simulator.servers.unicore import Running

from .conftest import PASSWORD, Configure

PATIENCE_S = 90


@define
class Told:
    """A running command and what it said."""

    process: Process
    events: list[dict[str, Any]] = field(factory=list)

    async def until(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            while line := await self.process.stdout.readline():
                self.events.append(json.loads(line))
                if self.events[-1]["event"] == event:
                    return self.events[-1]
        raise AssertionError(f"no {event}: {self.events}")

    def states(self) -> list[str]:
        states = [each["state"] for each in self.events if each["event"] == "step"]
        return [state for number, state in enumerate(states) if number == 0 or states[number - 1] != state]


@asynccontextmanager
async def command(config: Path, *arguments: str, scratch: str | None = None) -> AsyncIterator[Told]:
    """
    `moorage run demo --json ...`, with a folder for temporary files.

    Without a given one it has one of its own, which is to be empty at the end.
    """
    own = tempfile.mkdtemp(prefix="moor") if scratch is None else None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moorage.cli", "run", "demo", "--json", "--simulation"),
        *("--config", str(config), *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, "TMPDIR": scratch or own or ""},
    )
    try:
        yield Told(process)
        assert own is None or os.listdir(own) == [], "nothing of the run is left"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        if own is not None:
            os.rmdir(own)


async def ask(address: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as client, client.get(address) as answer:
        return answer.status, await answer.text()


async def ended(told: Told, code: Exit) -> str:
    """Wait for the command's end; what it said to people."""
    async with asyncio.timeout(PATIENCE_S):
        out, err = await told.process.communicate()
    told.events += [json.loads(line) for line in out.splitlines()]
    assert told.process.returncode == code, (told.events, err.decode())
    assert PASSWORD not in out.decode() + err.decode()
    return err.decode()


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def left_at(site: Running) -> list[str]:
    """Job directories that the site still has."""
    (only,) = site.config.sites
    jobs = Path(str(site.config.directory)) / only.name / "UNICORE_Jobs"
    return [str(each) for each in jobs.glob("*/*")] if jobs.exists() else []


async def test_a_session_is_reached_and_leaves_nothing(site: Running, configure: Configure) -> None:
    """The normal day: start, the address answers with the job's own voice, Ctrl-C, gone."""
    async with command(configure(site.url), "--option", "partition=batch", "--option", "walltime_s=600") as told:
        ready = await told.until("ready")
        status, text = await ask(ready["address"])
        assert (status, text.split(",")[0].startswith("hello from ")) == (200, True)
        lab = int(text.split()[2].rstrip(","))
        assert alive(lab)
        for _ in range(2):  # as `timeout` and some shells do: to the process, and to its group
            told.process.send_signal(signal.SIGINT)
        await ended(told, Exit.FINE)
    assert told.states()[:3] == ["waiting", "submitting", "queued"]
    assert told.states()[-3:] == ["ready", "stopping", "ended"]
    assert (told.events[-1]["cause"], told.events[-1]["left"]) == ("stopped", [])
    assert not alive(lab)
    assert left_at(site) == []
    with pytest.raises(aiohttp.ClientError):
        await ask(ready["address"])


async def test_the_real_jupyterlab_is_reached(site: Running, configure: Configure) -> None:
    """Its pages come with the token of the address, and not without."""
    async with command(configure(site.url), "--service", "jupyterlab") as told:
        ready = await told.until("ready")
        status, text = await ask(ready["address"])
        assert status == 200
        assert "jupyter-config-data" in text
        base, _, token = ready["address"].partition("/lab?token=")
        assert (await ask(f"{base}/api/contents"))[0] == 403
        assert (await ask(f"{base}/api/contents?token={token}"))[0] == 200
        told.process.send_signal(signal.SIGTERM)
        await ended(told, Exit.FINE)
    assert left_at(site) == []


def shapes(secret: str) -> set[bytes]:
    """A secret as it is, and as it may be written on the way: hexadecimal, in an address, in base 64 at any place."""
    raw = secret.encode()
    coded = {base64.b64encode(b"x" * before + raw)[4 if before else 0 : -4] for before in range(3)}
    return {raw, raw.hex().encode(), quote(secret, safe="").encode(), *coded, *(base64.urlsafe_b64encode(raw)[:-4],)}


def showing(data: bytes, secrets: Mapping[str, str]) -> set[str]:
    return {name for name, secret in secrets.items() if any(shape in data for shape in shapes(secret))}


def contents(folder: str | Path) -> Iterator[tuple[Path, bytes]]:
    for path in Path(folder).rglob("*"):
        if path.is_file():
            yield path, path.read_bytes()


def commands() -> Iterator[bytes]:
    """What everybody on this machine sees of every process."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (process / "cmdline").read_bytes()


def environment(process: str) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()


async def test_secrets_are_shown_nowhere_and_none_is_left(
    site: Running, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Password, gate secret and the lab's token, in every shape, in everything that others may see."""
    secrets = {"password": PASSWORD, "lab": "canary-lab-token-51c9"}
    monkeypatch.setenv("MOORAGE_LAB_TOKEN", secrets["lab"])
    with tempfile.TemporaryDirectory(prefix="moor") as scratch:
        async with command(configure(site.url), scratch=scratch) as told:
            ready = await told.until("ready")
            lab = (await ask(ready["address"]))[1].split()[2].rstrip(",")
            (gate,) = [data for path, data in contents(scratch) if path.name.startswith("gate-")]
            secrets["gate"] = gate.decode()
            for path, data in contents(scratch):
                assert "vault" in path.parts or not showing(data, secrets), path
            for path, data in contents(str(site.config.directory)):
                assert not showing(data, secrets), path
            for job in site.site.jobs.values():
                assert not showing(json.dumps([job.log, job.submitted, job.message]).encode(), secrets)
            assert [words for words in commands() if showing(words, secrets)] == []
            # The lab is told its own token; nothing else, although the site's own environment has the password.
            assert showing(environment(lab), secrets) == {"lab"}
            told.process.send_signal(signal.SIGINT)
            said = await ended(told, Exit.FINE)
        assert not showing(said.encode() + json.dumps(told.events).encode(), secrets)
        assert [path for path, _ in contents(scratch)] == []
    assert [path for path, data in contents(str(site.config.directory)) if showing(data, secrets)] == []


async def test_a_lab_that_ends_ends_the_session_with_its_log(site: Running, configure: Configure) -> None:
    async with command(configure(site.url)) as told:
        ready = await told.until("ready")
        with pytest.raises(aiohttp.ClientError):
            await ask(ready["address"] + "end")
        await ended(told, Exit.WRONG)
    last = told.events[-1]
    assert (last["event"], last["cause"]) == ("ended", "failed")
    assert "the lab was told to end" in last["log"]
    assert left_at(site) == []


async def test_a_lab_that_cannot_start_says_why(site: Running, configure: Configure) -> None:
    async with command(configure(site.url), "--service", "broken") as told:
        await ended(told, Exit.WRONG)
    assert told.events[-1]["cause"] == "failed"
    assert "no such" in told.events[-1]["log"]
    assert "ready" not in told.states()


async def test_a_stop_waits_visibly_for_credentials(site: Running, configure: Configure) -> None:
    """They are refused in the middle: the stop says why it takes long, and ends when they are accepted again."""
    async with command(configure(site.url)) as told:
        await told.until("ready")
        site.faults.add({"fault": "F-U8"})
        told.process.send_signal(signal.SIGINT)
        while "does not accept the credentials" not in (await told.until("step"))["text"]:
            pass
        assert told.events[-1]["state"] == "stopping"
        site.faults.clear()
        await ended(told, Exit.FINE)
    assert (told.events[-1]["cause"], told.events[-1]["left"]) == ("stopped", [])
    assert left_at(site) == []


async def test_the_next_run_stops_what_a_killed_one_left(site: Running, configure: Configure) -> None:
    """`kill -9`: neither the lab nor the folder of the run outlives the run that comes after it."""
    config = configure(site.url)
    with tempfile.TemporaryDirectory(prefix="moor") as scratch:
        async with command(config, scratch=scratch) as first:
            ready = await first.until("ready")
            lab = int((await ask(ready["address"]))[1].split()[2].rstrip(","))
            first.process.kill()
            await first.process.wait()
        assert alive(lab)
        assert len(os.listdir(scratch)) == 1
        async with command(config, scratch=scratch) as second:
            await second.until("ready")
            async with asyncio.timeout(PATIENCE_S):
                while alive(lab) or len(left_at(site)) > 1 or len(os.listdir(scratch)) > 1:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            second.process.send_signal(signal.SIGINT)
            said = await ended(second, Exit.FINE)
        assert "was killed; its session is being stopped" in said
        assert "nothing is left of it" in said
        assert os.listdir(scratch) == []
    assert left_at(site) == []


async def test_a_second_ctrl_c_does_not_wait(site: Running, configure: Configure) -> None:
    """The site hangs: the command ends at once, and says that something may be left and where."""
    with tempfile.TemporaryDirectory(prefix="moor") as scratch:
        async with command(configure(site.url), scratch=scratch) as told:
            await told.until("ready")
            site.faults.add({"do": "hang", "on": ["abort"]})
            told.process.send_signal(signal.SIGINT)
            await told.until("step")
            await asyncio.sleep(2.1)  # less is the same wish twice
            told.process.send_signal(signal.SIGINT)
            said = await ended(told, Exit.INTERRUPTED)
        (folder,) = os.listdir(scratch)
        assert "may still be running. The next `moorage run` with this configuration stops it" in said
        assert f"{scratch}/{folder}" in said


async def test_a_site_that_is_away_is_waited_for_until_ctrl_c(site: Running, configure: Configure) -> None:
    url = site.url.replace(str(site.port), "9")
    async with command(configure(url)) as told:
        await told.until("step")
        told.process.send_signal(signal.SIGINT)
        await ended(told, Exit.INTERRUPTED)
    assert told.events[-1]["cause"] == "stopped"


async def test_what_is_not_offered_is_refused_before_anything_happens(site: Running, configure: Configure) -> None:
    before = site.requests
    async with command(configure(site.url), "--option", "nodes=3", "--option", "gres=x") as told:
        said = await ended(told, Exit.USAGE)
    assert "nodes: is out of range; expected a whole number from 1 to 2" in said
    assert "form: has 1 unknown fields" in said
    assert site.requests == before
