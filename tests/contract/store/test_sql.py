# ruff: noqa: ASYNC240 (nothing else runs on these loops)
"""What is particular about the store in a database: files, schemas, damage, full disks, locks."""

import asyncio
import logging
import os
import resource
import sqlite3
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text
from tests.contract.store.suite import AT, LIFE, created, lived, new, session_id

from moorage import wire
from moorage.adapters.local import database, safety
from moorage.adapters.local.database import open_database
from moorage.adapters.local.schema import SCHEMA, metadata
from moorage.adapters.local.store import SqlStore
from moorage.core.events import StopAsked, Woke
from moorage.core.model import Instant
from moorage.core.secret import Secret
from moorage.ports.errors import StoreFailed


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "moorage.sqlite"


@asynccontextmanager
async def opened(where: object, lock_s: float = 5) -> AsyncIterator[SqlStore]:
    store = await SqlStore.open(str(where), lock_s=lock_s)
    try:
        yield store
    finally:
        await store.close()


async def change(address: str, statement: str) -> None:
    """Somebody's hands in the database."""
    engine = await asyncio.to_thread(open_database, address)
    with engine.connect() as connection, database.writing(connection):
        assert connection.execute(text(statement)).rowcount
    engine.dispose()


# Opening --------------------------------------------------------------------------------------------------------------


async def test_the_file_is_ours_alone_and_durable(file: Path) -> None:
    old = os.umask(0)
    try:
        async with opened(file) as store:
            await created(store, new())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sorted(file.parent.iterdir())}
            with store._engine.connect() as connection:
                pragmas = [
                    connection.execute(text(f"PRAGMA {name}")).scalar()
                    for name in ("journal_mode", "synchronous", "foreign_keys")
                ]
    finally:
        os.umask(old)
    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert pragmas == ["wal", 2, 1]


async def test_reading_rights_of_others_are_taken_away(file: Path) -> None:
    async with opened(file) as store:
        await created(store, new())
    file.chmod(0o644)
    async with opened(file) as store:
        assert await store.load(new().id)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["file", "directory"])
async def test_what_others_can_write_is_refused(file: Path, what: str) -> None:
    async with opened(file) as store:
        await created(store, new())
    (file if what == "file" else file.parent).chmod(0o770)
    with pytest.raises(StoreFailed, match="written by others"):
        await SqlStore.open(file)


async def test_what_belongs_to_somebody_else_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(file) as store:
        await created(store, new())
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StoreFailed, match="belongs to user"):
        await SqlStore.open(file)


async def test_a_link_to_elsewhere_is_refused(file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"")
    file.parent.mkdir(0o700)
    for target in (elsewhere, tmp_path / "nowhere"):
        file.symlink_to(target)
        with pytest.raises(StoreFailed, match="symbolic link"):
            await SqlStore.open(file)
        file.unlink()
    assert elsewhere.read_bytes() == b""
    file.mkdir()
    with pytest.raises(StoreFailed, match="no regular file"):
        await SqlStore.open(file)


MOUNTS = r"""22 1 0:1 / / rw,relatime shared:1 - ext4 /dev/root rw
30 22 0:40 / /home rw - nfs4 server:/home rw
31 30 0:41 / /home/ada/local\040disk rw shared:7 - xfs /dev/sdb rw
32 22 0:42 / /work rw - fuse.sshfs host:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib", "ext4"),
        ("/home/ada", "nfs4"),
        ("/homely", "ext4"),
        ("/home/ada/local disk/x", "xfs"),
        ("/work", "fuse.sshfs"),
    ],
)
def test_network_file_systems_are_refused(path: str, kind: str) -> None:
    assert safety.file_system(Path(path), MOUNTS) == kind
    if kind in ("nfs4", "fuse.sshfs"):
        with pytest.raises(safety.Unsafe, match=kind):
            safety.refuse_network(Path(path), MOUNTS)
    else:
        safety.refuse_network(Path(path), MOUNTS)


async def test_a_newer_schema_is_refused_and_untouched(address: str) -> None:
    async with opened(address) as store:
        stored = await lived(store, new())
    await change(address, "UPDATE moorage_schema SET version_num = '9999'")
    with pytest.raises(StoreFailed, match=f"schema 9999, and this moorage knows schemas up to {SCHEMA}"):
        await SqlStore.open(address)
    engine = create_engine(database._url(address))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE moorage_schema SET version_num = '{SCHEMA}'"))
    engine.dispose()
    async with opened(address) as store:
        assert await store.load(stored.session.id) == stored
        assert await store.check() == []


async def test_an_interrupted_migration_leaves_nothing(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """F-D8: the process dies, or a statement fails, after some of the tables were made."""
    real = database._migrate

    def dies(connection: object) -> None:
        real(connection)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "_migrate", dies)
    with pytest.raises(KeyboardInterrupt):
        open_database(address)
    monkeypatch.undo()
    engine = create_engine(database._url(address))
    with engine.connect() as connection:
        tables = engine.dialect.get_table_names(connection)
    engine.dispose()
    assert tables == []
    async with opened(address) as store:
        await created(store, new())


async def test_the_migrations_make_the_tables_that_the_code_uses(address: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = await asyncio.to_thread(open_database, address)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "moorage_schema"})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == SCHEMA
    engine.dispose()
    folder = Path(database.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == SCHEMA


async def test_two_processes_may_open_a_new_database_at_once(address: str) -> None:
    stores = await asyncio.gather(*(SqlStore.open(address) for _ in range(4)))
    await created(stores[0], new())
    assert await stores[3].load(new().id)
    for store in stores:
        await store.close()


async def test_a_file_that_is_no_database_is_refused_and_untouched(file: Path) -> None:
    file.parent.mkdir(0o700)
    file.write_bytes(b"this is a diary, not a database" * 1000)
    before = file.read_bytes()
    with pytest.raises(StoreFailed, match="not a database"):
        await SqlStore.open(file)
    assert file.read_bytes() == before


async def test_a_damaged_file_is_refused(file: Path) -> None:
    async with opened(file) as store:
        for number in range(50):
            await lived(store, new(number))
    with file.open("r+b") as pages:
        for page in range(3, os.path.getsize(file) // 4096, 3):
            pages.seek(page * 4096)
            pages.write(b"\xa5" * 512)
    with pytest.raises(StoreFailed, match="damaged"):
        await SqlStore.open(file)


@pytest.mark.parametrize(
    "address", ["mysql://x/y", "nonsense://", "sqlite:///:memory:", "sqlite://", "postgresql://u@127.0.0.1:1/x"]
)
async def test_an_address_that_does_not_work_says_so(address: str) -> None:
    with pytest.raises(StoreFailed) as caught:
        await SqlStore.open(address, Secret("canary-password"))
    assert "canary-password" not in str(caught.value)


# Refusals while running -----------------------------------------------------------------------------------------------


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond `limit` bytes. Real: the kernel refuses the write."""
    import signal

    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, old_handler)


@pytest.mark.parametrize("room", [0, 2_000, 50_000])
async def test_a_full_disk_saves_nothing_and_later_everything(file: Path, room: int) -> None:
    """I40: the write-ahead log cannot grow. What fails, fails whole; reading goes on; and then all works again."""
    async with opened(file) as store:
        stored = await lived(store, new())
        with small_disk(file.with_name(file.name + "-wal").stat().st_size + room if room else 4096):
            outcomes = {}
            for number in range(10, 40):
                save = store.save(new(number), None, AT, 0)
                outcomes[new(number).id] = (await asyncio.gather(save, return_exceptions=True))[0]
            assert await store.load(stored.session.id) == stored
        assert {type(outcome) for outcome in outcomes.values()} <= {StoreFailed, int}
        saved = {session for session, outcome in outcomes.items() if outcome == 1}
        assert len(saved) < 30
        assert room or not saved
        assert {found.session.id for found in await store.unfinished()} == {stored.session.id, *saved}
        assert len(await store.log(stored.session.id)) == stored.version
        await created(store, *(new(number) for number in range(10, 40) if new(number).id not in saved))
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1
    async with opened(file) as store:
        assert len(await store.unfinished()) == 31
        assert await store.check() == []


async def test_a_full_database_saves_nothing_and_later_everything(file: Path) -> None:
    """The other way to be full: a quota of the database itself."""
    async with opened(file) as store:
        with store._engine.connect() as connection:
            pages = connection.execute(text("PRAGMA page_count")).scalar()

        def quota(connection: sqlite3.Connection, *_: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {pages}").close()

        event.listen(store._engine, "checkout", quota)
        failed = 0
        for number in range(60):
            outcome = (await asyncio.gather(store.save(new(number), None, AT, 0), return_exceptions=True))[0]
            failed += isinstance(outcome, StoreFailed)
            if failed:
                assert "full" in str(outcome)
        assert failed > 10
        saved = await store.unfinished()
        assert len(saved) == 60 - failed
        event.remove(store._engine, "checkout", quota)
        pages = 1_000_000
        event.listen(store._engine, "checkout", quota)
        await created(store, new(100))
        assert len(await store.unfinished()) == 61 - failed
        assert await store.check() == []


async def test_a_read_only_database_saves_nothing(file: Path) -> None:
    async with opened(file) as store:
        stored = await lived(store, new())

        def query_only(on: int) -> None:
            def set_it(connection: sqlite3.Connection, *_: object) -> None:
                connection.execute(f"PRAGMA query_only = {on}").close()

            event.listen(store._engine, "checkout", set_it)

        query_only(1)
        with pytest.raises(StoreFailed, match="readonly"):
            await store.save(stored.session, Woke(), AT, stored.version)
        assert await store.load(stored.session.id) == stored
        query_only(0)
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1


async def test_a_locked_database_is_waited_for_and_then_refused(file: Path) -> None:
    """F-D4: another process holds the lock for longer than we wait; nothing is saved, and then it works again."""
    async with opened(file, lock_s=0.2) as store:
        stored = await lived(store, new())
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            outcomes = await asyncio.gather(
                *(store.save(stored.session, Woke(), AT, stored.version + n) for n in range(3)), return_exceptions=True
            )
            assert {type(outcome) for outcome in outcomes} == {StoreFailed}
            assert "locked" in str(outcomes[0])
            assert await store.load(stored.session.id) == stored
            other.execute("ROLLBACK")
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1


async def test_a_lock_on_postgresql_is_waited_for_and_then_refused(postgres_url: str) -> None:
    async with opened(postgres_url, lock_s=0.2) as store:
        stored = await lived(store, new())
        engine = create_engine(database._url(postgres_url))
        with engine.begin() as other:
            other.execute(text("SELECT * FROM moorage_heads FOR UPDATE"))
            with pytest.raises(StoreFailed, match="lock timeout"):
                await store.save(stored.session, Woke(), AT, stored.version)
        engine.dispose()
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1


async def test_a_server_that_dropped_its_connections_is_not_noticed(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        stored = await lived(store, new())
        await _kill_connections(postgres_url)
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1
        await _kill_connections(postgres_url)
        assert await store.load(stored.session.id)


async def _kill_connections(url: str) -> None:
    engine = create_engine(database._url(url))
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    engine.dispose()


@pytest.mark.parametrize("worked", [True, False])
async def test_a_commit_whose_outcome_is_unknown_is_looked_up(address: str, worked: bool) -> None:
    """F-D1: the connection breaks at the commit, before or after it took place."""
    async with opened(address) as store:
        await created(store, new(1), new(2))
        dialect, real = store._engine.dialect, store._engine.dialect.do_commit
        broken = []

        def commit(connection: object) -> None:
            if broken:
                real(connection)  # type: ignore[arg-type]
                return
            broken.append(True)
            if worked:
                real(connection)  # type: ignore[arg-type]
            raise dialect.loaded_dbapi.OperationalError("server closed the connection unexpectedly")

        dialect.do_commit = commit  # type: ignore[method-assign]
        outcomes = await asyncio.gather(
            store.save(new(1), Woke(), AT, 1), store.save(new(2), StopAsked(), AT, 5), return_exceptions=True
        )
        versions = [stored.version for stored in await store.unfinished()]
        if worked:
            assert (outcomes[0], versions) == (2, [2, 1])
        else:
            assert (type(outcomes[0]), versions) == (StoreFailed, [1, 1])
            assert await store.save(new(1), Woke(), AT, 1) == 2
        assert await store.save(new(1), Woke(), AT, 2) == 3


async def test_a_bug_is_heard_by_its_callers_and_the_store_goes_on(file: Path) -> None:
    async with opened(file) as store:
        with pytest.raises(ValueError, match="both"):
            await store.save(new(), Woke(), AT, 0)
        with pytest.raises((TypeError, StoreFailed)):
            await store.save(new(), None, object(), 0)  # type: ignore[arg-type]
        await created(store, new(2))


async def test_a_closed_store_says_so(file: Path) -> None:
    store = await SqlStore.open(file)
    waiting = [asyncio.ensure_future(store.save(new(number), None, AT, 0)) for number in range(50)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == [1] * 50
    for call in (store.load(session_id(1)), store.save(new(99), None, AT, 0), store.unfinished()):
        with pytest.raises(StoreFailed, match="closed"):
            await call
    async with opened(file) as again:
        assert len(await again.unfinished()) == 50


# Damage: I41 ----------------------------------------------------------------------------------------------------------


async def test_a_damaged_head_is_made_anew_from_the_log(address: str, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(address) as store:
        stored, other = await lived(store, new(1)), await lived(store, new(2))
    for statement in (
        "UPDATE moorage_heads SET head = replace(head, '4711', '4712') WHERE id = '{}'",
        "UPDATE moorage_heads SET version = 77 WHERE id = '{}'",
        "UPDATE moorage_heads SET holds = 1 - holds WHERE id = '{}'",
        "UPDATE moorage_heads SET digest = '' WHERE id = '{}'",
        "UPDATE moorage_heads SET head = '' WHERE id = '{}'",
        "UPDATE moorage_heads SET chain = 'x' WHERE id = '{}'",
        "UPDATE moorage_sessions SET spec = replace(spec, 'jureca', 'jureco') WHERE id = '{}'",
    ):
        await change(address, statement.format(stored.session.id))
        caplog.clear()
        async with opened(address) as store:
            assert {damage.session for damage in await store.check()} == {stored.session.id}
            assert await store.unfinished() == [stored, other]
            assert "made anew from its log" in caplog.text
            assert caplog.records[-1].levelno == logging.CRITICAL
            assert await store.check() == []
            assert await store.load(stored.session.id) == stored
    async with opened(address) as store:
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1
        assert (await store.log(stored.session.id))[-1].event == Woke()


async def test_a_damaged_record_ends_the_log_and_says_so(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """The prefix is used, nothing is invented; the session itself is whole, and others do not notice."""
    async with opened(address) as store:
        stored, other = await lived(store, new(1)), await lived(store, new(2))
    where = f"WHERE id = '{stored.session.id}' AND version = 3"
    for statement in (
        f"UPDATE moorage_log SET event = replace(event, '4711', '4713') {where}",
        f"UPDATE moorage_log SET event = '' {where}",
        f"DELETE FROM moorage_log {where}",
    ):
        await change(address, statement)
        caplog.clear()
        async with opened(address) as store:
            assert [entry.event for entry in await store.log(stored.session.id)] == [None, LIFE[0]]
            assert f"session {stored.session.id}: record 3 of its log" in caplog.text
            with pytest.raises(StoreFailed, match="record 3"):
                await store.log(stored.session.id, after=2)
            assert await store.load(stored.session.id) == stored
            assert len(await store.log(other.session.id)) == other.version
            assert [(damage.session, damage.version) for damage in await store.check()] == [(stored.session.id, 3)]


async def test_a_log_that_lost_its_end_is_noticed(address: str) -> None:
    async with opened(address) as store:
        stored = await lived(store, new(1))
    await change(address, f"DELETE FROM moorage_log WHERE version >= {stored.version}")
    async with opened(address) as store:
        assert len(await store.log(stored.session.id)) == stored.version - 1
        with pytest.raises(StoreFailed, match="missing"):
            await store.log(stored.session.id, after=stored.version - 1)
        assert await store.load(stored.session.id) == stored


@pytest.mark.parametrize(
    "second",
    ["DELETE FROM moorage_log WHERE version = 5", "UPDATE moorage_log SET event = '{}' WHERE version IN (5, 2)"],
)
async def test_damage_to_both_stops_that_session_only(
    address: str, second: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the row nor the log can be believed: no guess is made, because it could start a second job."""
    async with opened(address) as store:
        stored = await lived(store, new(1))
    await change(address, second.replace("{}", ""))
    await change(address, "UPDATE moorage_heads SET head = replace(head, '4711', '4712')")
    async with opened(address) as store:
        other = await lived(store, new(2))
        with pytest.raises(StoreFailed, match="left alone"):
            await store.load(stored.session.id)
        caplog.clear()
        assert await store.unfinished() == [other]
        assert caplog.records[-1].levelno == logging.CRITICAL
        assert await store.latest(other.session.spec.key) == other


async def test_a_flipped_bit_in_the_file_is_told(file: Path) -> None:
    """Every byte of one log record and one head, flipped in the file itself; no other session notices."""
    async with opened(file) as store:
        stored, other = await lived(store, new(1)), await lived(store, new(2))
        form = wire.dump_event(LIFE[1])
    clean = file.read_bytes()
    start = clean.find(form)
    assert start > 0
    for position in range(start, start + len(form)):
        flipped = bytearray(clean)
        flipped[position] ^= 0x81
        file.write_bytes(flipped)
        async with opened(file) as store:
            found = [(damage.session, damage.version) for damage in await store.check()]
            assert len(found) == 1
            session, version = found[0]
            assert version == 3
            assert [entry.version for entry in await store.log(session)] == [1, 2]
            assert await store.unfinished() == [stored, other]


async def test_an_event_of_an_unknown_kind_is_kept(address: str) -> None:
    """I19: a later version wrote it. What comes before is shown, the session lives on, the bytes stay."""
    from moorage.adapters.local.records import record_digest

    async with opened(address) as store:
        stored = await lived(store, new(1), LIFE[:2])
    form = '{"event":{"altitude":3,"is":"BalloonSighted"},"v":1}'
    engine = await asyncio.to_thread(open_database, address)
    with engine.connect() as connection, database.writing(connection):
        before = connection.execute(text("SELECT digest FROM moorage_log WHERE version = 2")).scalar()
        digest = record_digest(str(before), stored.session.id, 3, AT, form)
        connection.execute(
            text("UPDATE moorage_log SET event = :form, digest = :digest WHERE version = 3"),
            {"form": form, "digest": digest},
        )
    async with opened(address) as store:
        assert len(await store.log(stored.session.id)) == 2
        with pytest.raises(StoreFailed, match="kept, but of a kind unknown here: 'BalloonSighted'"):
            await store.log(stored.session.id, after=2)
        assert await store.load(stored.session.id) == stored
        assert await store.save(stored.session, Woke(), AT, stored.version) == stored.version + 1
    with engine.connect() as connection:
        assert connection.execute(text("SELECT event FROM moorage_log WHERE version = 3")).scalar() == form
    engine.dispose()


# Speed where it matters for safety ------------------------------------------------------------------------------------


async def test_unfinished_uses_its_index(file: Path) -> None:
    async with opened(file) as store:
        await created(store, new())
        with store._engine.connect() as connection:
            plan = connection.execute(text("EXPLAIN QUERY PLAN SELECT id FROM moorage_heads WHERE finished = 0")).all()
    assert "moorage_heads_unfinished" in str(plan)


async def test_newest_is_the_latest_time(address: str) -> None:
    async with opened(address) as store:
        assert await store.newest() == 0
        await created(store, new())
        assert await store.newest() == AT


# Retention ------------------------------------------------------------------------------------------------------------


async def test_what_has_been_over_for_long_is_forgotten_and_nothing_else(address: str) -> None:
    """A few at a time; what lives, what has something left, and what ended lately stay, and nothing is damaged."""
    async with opened(address) as store:
        for number in range(1, 6):
            assert (await lived(store, new(number, groups=("staff",)), (StopAsked(),))).session.over
        living = await lived(store, new(6), LIFE[:3])
        leaving = await lived(store, new(7))
        assert await store.prune(AT) == 0
        assert [await store.prune(Instant(AT + 1), 2) for _ in range(4)] == [2, 2, 1, 0]
        assert await store.load(session_id(1)) is None
        assert await store.log(session_id(1)) == []
        assert {stored.session.id for stored in await store.unfinished()} == {living.session.id, leaving.session.id}
        assert await store.check() == []
        await created(store, new(8))
