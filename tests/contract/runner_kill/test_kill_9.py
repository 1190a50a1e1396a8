"""
`kill -9` at random moments: the runner is a process of its own, the site another one with records of its own.

Users go on asking while the process is killed and started again. What it said yes to is honoured; at the end the store,
the site, the relay and the Hub agree: one job for each session that is up, none for any other.
"""

import asyncio
import json
import os
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import define, evolve, field
from tests.contract.runner_kill.process import TIMEOUTS

from moorage.adapters.local.store import SqlStore
from moorage.core.model import Ended, Ready, SessionId, parse_tag
from moorage.simulator.servers.unicore import Running, ServerConfig, SiteConfig, Timing, User, serve

SEED = 20_260
KILLS = 12
LIVES_S = (0.05, 1.8)
"""How long each process lives after its first words."""
BURST = 5
"""Wishes at the very moment of the kill."""
SETTLE_S = 60
ROOT = Path(__file__).parents[3]
PROGRAM = Path(__file__).with_name("process.py")
PASSWORD = "correct horse"
OWNERS = ("ada", "bob", "eve")

FAULTS = (
    {"do": "drop", "on": ["submit"], "position": "after", "probability": 0.15},
    {"do": "delay", "on": ["submit"], "position": "before", "delay_s": 0.4, "probability": 0.3},
    {"do": "delay", "on": ["submit"], "position": "after", "delay_s": 0.6, "probability": 0.5},
    {"do": "answer", "on": ["submit", "status", "abort"], "status": 503, "probability": 0.05},
    {"do": "drop", "on": ["status", "list", "abort", "submitted"], "position": "before", "probability": 0.03},
)


@define(eq=False)
class Records:
    """What the site saw: every job it took, and whether another one of the same session was living then."""

    site: Any
    jobs: dict[str, Any] = field(factory=dict)
    doubles: list[str] = field(factory=list)

    def watch(self) -> None:
        plain = self.site.submit

        def submit(*args: Any, **kwargs: Any) -> Any:
            job = plain(*args, **kwargs)
            session = self.session_of(job)
            if any(self.session_of(other) == session for other in self.living):
                self.doubles.append(f"{job.id} of {session}")
            self.jobs[job.id] = job
            return job

        self.site.submit = submit

    @staticmethod
    def session_of(job: Any) -> SessionId | None:
        named = [parse_tag(tag) for tag in job.tags]
        return next((each[0] for each in named if each is not None), None)

    @property
    def living(self) -> list[Any]:
        return [job for job in self.jobs.values() if not job.done]


@define(eq=False)
class Users:
    """They start and stop sessions at random, and remember what they were promised."""

    choices: random.Random
    number: int = 0
    asked: dict[int, dict[str, Any]] = field(factory=dict)
    started: dict[SessionId, dict[str, Any]] = field(factory=dict)
    wish_to_stop: set[SessionId] = field(factory=set)
    stopped: set[SessionId] = field(factory=set)
    counted: Counter[str] = field(factory=Counter)

    def wish(self) -> dict[str, Any]:
        up = [session for session in self.started if session not in self.wish_to_stop]
        if up and self.choices.random() < 0.25:
            return self.stop(self.choices.choice(up))
        return self._ask({"do": "start", "owner": self.choices.choice(OWNERS), "name": f"n{self.choices.randrange(8)}"})

    def stop(self, session: SessionId) -> dict[str, Any]:
        self.wish_to_stop.add(session)
        return self._ask({"do": "stop", "session": session})

    def _ask(self, wish: dict[str, Any]) -> dict[str, Any]:
        self.number += 1
        self.counted.update(["asked", f"asked: {wish['do']}"])
        self.asked[self.number] = {**wish, "number": self.number}
        return self.asked[self.number]

    def told(self, said: dict[str, Any]) -> None:
        wish = self.asked.get(said["number"])
        if wish is None:
            return
        self.counted.update(["granted", f"granted: {wish['do']}"])
        if wish["do"] == "start":
            self.started.setdefault(SessionId(said["session"]), wish)
        else:
            self.stopped.add(SessionId(wish["session"]))


@define(eq=False)
class Life:
    """One process, from its start to its kill."""

    process: asyncio.subprocess.Process
    users: Users
    up: asyncio.Event = field(factory=asyncio.Event)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if line.endswith(b"\n"):  # the last one may have been cut
                said = json.loads(line)
                self.up.set()
                self.users.told(said)

    async def ask(self, wish: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wish).encode() + b"\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def life(directory: Path, url: str, users: Users, log: Path) -> AsyncIterator[Life]:
    """A process that is up; it is killed at the end, and what it had said until then is heard."""
    with log.open("ab") as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PROGRAM,
            directory,
            url,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"},
        )
    one = Life(process, users)
    listening = asyncio.create_task(one.listen())
    try:
        await asyncio.wait_for(one.up.wait(), 60)
        yield one
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await listening
        assert process.stdin is not None
        process.stdin.close()


async def test_kill_9_at_any_moment_loses_no_session_and_leaves_no_job(tmp_path: Path) -> None:
    choices = random.Random(SEED)
    for name in ("paths", "routes"):
        (tmp_path / name).mkdir()
    (tmp_path / "password").write_text(PASSWORD + "\n")
    log = tmp_path / "log"
    timing = evolve(Timing.fast(), queue_s=0.1)
    config = SiteConfig(
        users=(User("alice", PASSWORD, "CN=Alice, O=Kill, C=EU"),),
        execute="virtual",
        timing=timing,
        virtual_runtime_s=3_600,
    )
    users = Users(choices)
    async with serve(ServerConfig(sites=(config,))) as site:
        records = Records(next(iter(site.sites.values())))
        records.watch()
        for rule in FAULTS:
            site.faults.add(rule)
        for _ in range(KILLS):
            async with life(tmp_path, site.url, users, log) as one:
                await _use(one, users, choices)
        site.faults.clear()
        async with life(tmp_path, site.url, users, log) as one:
            await _stop_half(one, users)
            trouble = await _settled(tmp_path, users, records)
        fired = dict(site.faults.ledger)
        sys.stdout.write(_table(users, records, fired) + "\n")
        assert trouble == [], f"{log.read_text()[-3_000:]}"
        assert records.doubles == []
        assert users.counted["granted: start"] > KILLS
        assert len(users.stopped) > KILLS // 2
        assert users.counted["asked"] > users.counted["granted"], "no kill came between a wish and its answer"
        assert "CRITICAL" not in log.read_text()
        await _everything_goes(tmp_path, site, users, records, log)


async def _use(one: Life, users: Users, choices: random.Random) -> None:
    """Wishes come in until the process is killed."""
    end = asyncio.get_running_loop().time() + choices.uniform(*LIVES_S)
    while (left_s := end - asyncio.get_running_loop().time()) > 0:
        await one.ask(users.wish())
        await asyncio.sleep(min(left_s, choices.uniform(0, 0.12)))
    for _ in range(BURST):
        await one.ask(users.wish())
    # Now and then none of these is granted, and now and then each of them is being submitted.
    await asyncio.sleep(choices.choice((0, 0.01, 0.03, 0.2, 0.4)))


async def _stop_half(one: Life, users: Users) -> None:
    up = sorted(session for session in users.started if session not in users.wish_to_stop)
    for session in up[::2]:
        await one.ask(users.stop(session))


async def _settled(directory: Path, users: Users, records: Records) -> list[str]:
    """What is still not as it should be once the world is healthy again; empty as soon as nothing is."""
    store = await SqlStore.open(directory / "state" / "moorage.sqlite")
    try:
        trouble = ["never looked"]
        end = asyncio.get_running_loop().time() + SETTLE_S
        while trouble and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.25)
            trouble = await _trouble(store, directory, users, records)
        if not trouble:
            # It stays so: nothing comes late.
            await asyncio.sleep(2 * TIMEOUTS.sweep_s)
            trouble = await _trouble(store, directory, users, records)
        trouble += [str(damage) for damage in await store.check()]
        return trouble
    finally:
        await store.close()


async def _trouble(store: SqlStore, directory: Path, users: Users, records: Records) -> list[str]:
    """Where store, site, relay and Hub do not agree with each other and with what was promised; in sentences."""
    found: list[str] = []
    stored = {each.session.id: each.session for each in await store.unfinished()}
    for session in users.started:
        entry = await store.load(session)
        if entry is None:
            found.append(f"{session} was granted and is lost")
        else:
            stored[session] = entry.session
    ready = {session for session, known in stored.items() if isinstance(known.state, Ready)}
    jobs = Counter(records.session_of(job) for job in records.living)
    for session, known in stored.items():
        asked_to_stop = session in users.stopped
        if asked_to_stop and not isinstance(known.state, Ended):
            found.append(f"{session} was to stop and is {known.state}")
        if session in users.started and session not in users.wish_to_stop and session not in ready:
            found.append(f"{session} was granted and is {known.state}")
        if session not in ready and not isinstance(known.state, Ended):
            found.append(f"{session} is on its way: {known.state}")
        if jobs[session] != (session in ready):
            found.append(f"{session} is {type(known.state).__name__} and has {jobs[session]} jobs")
        if known.residue and isinstance(known.state, Ended):
            found.append(f"{session} has left {known.residue}")
    found += [f"a job of nobody: {session}" for session in jobs if session not in stored]
    keys = Counter(known.spec.key for known in stored.values() if not isinstance(known.state, Ended))
    found += [f"{count} sessions of {key} are up" for key, count in keys.items() if count > 1]
    for name in ("paths", "routes"):
        there = {SessionId(path.name) for path in (directory / name).iterdir()}
        if there != ready:
            found.append(f"{name}: {len(there - ready)} of nobody, {len(ready - there)} missing")
    return found


async def _everything_goes(directory: Path, site: Running, users: Users, records: Records, log: Path) -> None:
    """Also the other half is stopped; nothing is left anywhere but the history."""
    async with life(directory, site.url, users, log) as one:
        store = await SqlStore.open(directory / "state" / "moorage.sqlite")
        try:
            for each in await store.unfinished():
                await one.ask(users.stop(each.session.id))
            for _ in range(4 * SETTLE_S):
                if not await store.unfinished():
                    break
                await asyncio.sleep(0.25)
            assert await store.unfinished() == []
            for session in users.started:
                entry = await store.load(session)
                assert entry is not None
                assert entry.session.over
        finally:
            await store.close()
    assert records.living == []
    for name in ("paths", "routes"):
        assert list((directory / name).iterdir()) == []
    kept = [path.name for path in (directory / "vault").rglob("*")]
    assert [session for session in users.started if any(session in name for name in kept)] == []


def _table(users: Users, records: Records, fired: dict[Any, int]) -> str:
    rows = {"kills": KILLS, **dict(sorted(users.counted.items())), "sessions": len(users.started)}
    rows |= {"jobs taken by the site": len(records.jobs), "jobs living": len(records.living)}
    rows |= {"two living jobs of one session": len(records.doubles)}
    rows |= {f"fault {label} at {where}": count for (label, where), count in sorted(fired.items())}
    return "\n" + "\n".join(f"{name:<34}{count:>6}" for name, count in rows.items())
