"""
A process that takes sessions through lives and says which saves were acknowledged; killed by `test_kill.py`.

Called with the address of the store and a seed. Each line: session, version, digest of the session's stored form.
"""

import asyncio
import random
import sys
from hashlib import sha256

from moorage.adapters.local.store import SqlStore
from moorage.core.events import Admitted, Event, Observed, StopAsked, Submitted, Woke
from moorage.core.machine import begin, step
from moorage.core.model import (
    Alive,
    Instant,
    JobId,
    Owner,
    Phase,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
)
from moorage.wire import dump_session

AT = 1_700_000_000_000


def digest(session: Session) -> str:
    return sha256(dump_session(session)).hexdigest()[:16]


async def life(store: SqlStore, choices: random.Random) -> None:
    id_ = SessionId("".join(choices.choices("abcdefghijklmnopqrstuvwxyz234567", k=26)))
    spec = SessionSpec(
        id_, SessionKey("hub", Owner("ada"), id_), SystemName("s"), Instant(AT), seed=choices.getrandbits(64)
    )
    session, version = begin(spec).session, 0
    job = JobId(f"job-{id_}")
    events: list[Event | None] = [None, Admitted(), Submitted(1, job)]
    events += [Observed(job, Instant(AT + n), Alive(Phase.PENDING, note=f"place {n}")) for n in range(30)]
    events += [Observed(job, Instant(AT + 100), Alive(Phase.RUNNING, node="n1")), Woke(), StopAsked()]
    for number, event in enumerate(events):
        at = Instant(AT + 1000 * number)
        if event is not None:
            session = step(session, event, at).session
        version = await store.save(session, event, at, version)
        # One write per line: a line is there whole or not at all.
        sys.stdout.write(f"{id_} {version} {digest(session)}\n")
        sys.stdout.flush()


async def main(address: str, seed: int) -> None:
    store = await SqlStore.open(address)
    choices = random.Random(seed)
    while True:
        await asyncio.gather(*(life(store, choices) for _ in range(8)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
