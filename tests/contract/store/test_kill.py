"""Killed at random moments, reopened: what was acknowledged is there, and log and snapshot agree."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.contract.store.writer import digest

from moorage.adapters.local.store import SqlStore
from moorage.core.machine import begin, step
from moorage.core.model import SessionId

KILLS = 5
WRITER = Path(__file__).with_name("writer.py")
ROOT = Path(__file__).parents[3]


async def test_kill_9_loses_nothing_that_was_acknowledged(address: str, tmp_path: Path) -> None:
    await (await SqlStore.open(address)).close()
    acknowledged: dict[SessionId, dict[int, str]] = {}
    for kill in range(KILLS):
        before = sum(map(len, acknowledged.values()))
        said: set[SessionId] = set()
        for line in await asyncio.to_thread(_write_and_be_killed, address, kill, tmp_path / f"said-{kill}"):
            session, version, form = line.split()
            acknowledged.setdefault(SessionId(session), {})[int(version)] = form
            said.add(SessionId(session))
        assert sum(map(len, acknowledged.values())) > before, "the process was killed before it saved anything"
        store = await SqlStore.open(address)
        try:
            assert await store.check() == []
            # Those of earlier processes once more at the end; `check` looks at all of them each time.
            for id_ in acknowledged if kill == KILLS - 1 else said:
                await _agrees(store, id_, acknowledged[id_])
        finally:
            await store.close()


async def _agrees(store: SqlStore, id_: SessionId, versions: dict[int, str]) -> None:
    stored = await store.load(id_)
    assert stored is not None
    # One save more may be there: it was durable, and the process died before it could say so.
    assert stored.version in (max(versions), max(versions) + 1)
    session = begin(stored.session.spec).session
    log = await store.log(id_)
    assert [entry.version for entry in log] == list(range(1, stored.version + 1))
    for entry in log:
        if entry.event is not None:
            session = step(session, entry.event, entry.at).session
        assert versions.get(entry.version, digest(session)) == digest(session)
    assert session == stored.session


def _write_and_be_killed(address: str, seed: int, said: Path) -> list[str]:
    """What the process said before SIGKILL came, some random time after its first words."""
    with said.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, WRITER, address, str(seed)],
            stdout=out,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}"},
        )
        try:
            for _ in range(3000):
                if said.stat().st_size > 0 or process.poll() is not None:
                    break
                time.sleep(0.01)
            time.sleep(random.Random(seed).uniform(0, 0.2))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
    return [line for line in said.read_text().splitlines(keepends=True) if line.endswith("\n")]
