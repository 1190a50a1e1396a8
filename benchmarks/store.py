"""
The store against raw SQLAlchemy doing the same transaction: one row of a session updated if its version fits, one row
of a log inserted, committed durably. Both in the same run, on SQLite (WAL, FULL) and on PostgreSQL (fsync on).

    python benchmarks/store.py [--quick]

One caller: what a single event of a session waits for. A hundred callers: the raw loop has as many threads as
connections make sense and gives each transaction its own commit; the store lets transactions share one.
Limit: at least half of the raw rate. Last line: JSON with the ratios of one caller, and of a hundred.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from attrs import evolve
from sqlalchemy import BigInteger, Column, Engine, MetaData, String, Table, Text, bindparam, insert, update

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.servers import postgres

from moorage.adapters.local.database import open_database, writing
from moorage.adapters.local.store import SqlStore
from moorage.core.events import Observed
from moorage.core.machine import begin
from moorage.core.model import (
    Alive,
    Endpoint,
    Instant,
    Job,
    JobId,
    Owner,
    Phase,
    Ready,
    Route,
    Session,
    SessionId,
    SessionKey,
    SessionSpec,
    SystemName,
)
from moorage.wire import dump_event, dump_head

LIMIT = 0.5
CALLERS = 100
ROUNDS = 5
RAW_THREADS = 4
AT = Instant(1_700_000_000_000)
EVENT = Observed(JobId("4711"), AT, Alive(Phase.RUNNING, "jrc0123", Instant(AT + 7_200_000)))


def session(number: int) -> Session:
    id_ = SessionId(f"{number:026d}".translate(str.maketrans("0189", "abcd")))
    spec = SessionSpec(id_, SessionKey("hub", Owner(f"user{number}")), SystemName("jureca"), AT, seed=number)
    state = Ready(Job(JobId("4711"), "jrc0123"), Endpoint("jrc0123", 40001), Route("http://127.0.0.1:3"), AT, AT)
    return evolve(begin(spec).session, state=state)


# Raw: the least that anybody would write ------------------------------------------------------------------------------

META = MetaData()
HEADS = Table(
    "raw_heads", META, Column("id", String, primary_key=True), Column("version", BigInteger), Column("head", Text)
)
LOG = Table(
    "raw_log",
    META,
    Column("id", String, primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("at", BigInteger),
    Column("event", Text),
)
ADVANCE = (
    update(HEADS)
    .where(HEADS.c.id == bindparam("of"), HEADS.c.version == bindparam("expected"))
    .values(version=bindparam("new"), head=bindparam("form"))
)
APPEND = insert(LOG)


class Raw:
    """Ready-made texts, so that nothing but SQLAlchemy and the database is measured."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        META.create_all(engine)
        self.versions = {session(number).id: 1 for number in range(CALLERS)}
        self.head = dump_head(session(0)).decode()
        self.event = dump_event(EVENT).decode()
        with engine.connect() as connection, writing(connection):
            connection.execute(insert(HEADS), [{"id": i, "version": 1, "head": self.head} for i in self.versions])

    def save(self, id_: SessionId) -> None:
        version = self.versions[id_]
        with self.engine.connect() as connection, writing(connection):
            changed = {"of": id_, "expected": version, "new": version + 1, "form": self.head}
            assert connection.execute(ADVANCE, changed).rowcount == 1
            connection.execute(APPEND, {"id": id_, "version": version + 1, "at": AT, "event": self.event})
        self.versions[id_] = version + 1

    async def one(self, count: int) -> float:
        id_ = session(0).id
        began = time.perf_counter()
        for _ in range(count):
            self.save(id_)
        return count / (time.perf_counter() - began)

    async def many(self, each: int) -> float:
        def work(ids: list[SessionId]) -> None:
            for _ in range(each):
                for id_ in ids:
                    self.save(id_)

        ids = list(self.versions)
        with ThreadPoolExecutor(RAW_THREADS) as pool:
            began = time.perf_counter()
            list(pool.map(work, [ids[start::RAW_THREADS] for start in range(RAW_THREADS)]))
            return CALLERS * each / (time.perf_counter() - began)


# Ours -----------------------------------------------------------------------------------------------------------------


class Ours:
    def __init__(self, store: SqlStore) -> None:
        self.store = store
        self.sessions = [session(number) for number in range(CALLERS)]
        self.versions = [0] * CALLERS

    async def begin(self) -> None:
        await asyncio.gather(*(self.store.save(each, None, AT, 0) for each in self.sessions))
        self.versions = [1] * CALLERS

    async def life(self, number: int, count: int) -> None:
        for _ in range(count):
            self.versions[number] = await self.store.save(self.sessions[number], EVENT, AT, self.versions[number])

    async def one(self, count: int) -> float:
        began = time.perf_counter()
        await self.life(0, count)
        return count / (time.perf_counter() - began)

    async def many(self, each: int) -> float:
        began = time.perf_counter()
        await asyncio.gather(*(self.life(number, each) for number in range(CALLERS)))
        return CALLERS * each / (time.perf_counter() - began)


Measure = Callable[[int], Awaitable[float]]


async def compare(name: str, raw: Measure, ours: Measure, count: int) -> float:
    """Rounds in turn, so that a busy machine is busy for both; the median of their ratios."""
    rates = []
    await raw(max(1, count // 10))
    await ours(max(1, count // 10))
    for _ in range(ROUNDS):
        rates.append((await raw(count), await ours(count)))
    ratio = statistics.median(mine / theirs for theirs, mine in rates)
    theirs, mine = (statistics.median(column) for column in zip(*rates, strict=True))
    verdict = "ok" if ratio >= LIMIT else "TOO SLOW"
    print(f"{name:<28}{theirs:>10.0f}{mine:>10.0f}{ratio:>9.2f}   >= {LIMIT}  {verdict}")
    return ratio


async def measure(name: str, address: str, quick: bool) -> tuple[float, float]:
    engine = open_database(address)
    store = await SqlStore.open(address)
    try:
        raw, ours = Raw(engine), Ours(store)
        await ours.begin()
        single = await compare(f"{name}, 1 caller", raw.one, ours.one, 50 if quick else 300)
        many = await compare(f"{name}, {CALLERS} callers", raw.many, ours.many, 1 if quick else 6)
        return single, many
    finally:
        await store.close()
        engine.dispose()


def main() -> None:
    quick = "--quick" in sys.argv
    result: dict[str, float] = {}
    print(f"{'saves per second':<28}{'raw':>10}{'store':>10}{'ratio':>9}   limit")
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "state" / "moorage.sqlite")
        single, many = asyncio.run(measure("SQLite FULL", address, quick))
        result |= {"sqlite_ratio": round(single, 3), "sqlite_ratio_100": round(many, 3)}
    try:
        with postgres.server(fsync="on") as host:
            single, many = asyncio.run(measure("PostgreSQL", postgres.create_database(host, "bench"), quick))
            result |= {"postgres_ratio": round(single, 3), "postgres_ratio_100": round(many, 3)}
    except postgres.NotInstalled as reason:
        print(f"PostgreSQL: {reason}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
