"""
The store: sessions and their logs in SQLite or PostgreSQL, through SQLAlchemy Core.

One thread writes. It takes all saves that have come meanwhile into one transaction, so that they share one wait for
the disk; each caller returns when its own data is durable, and a stale one fails alone. Reads have their own threads.
The same code serves both databases, synchronously: an asynchronous driver would hand SQLite to a thread anyway.
"""

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from attrs import frozen
from sqlalchemy import Connection, Engine, Select, bindparam, delete, func, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, SQLAlchemyError

from moorage.core.admission import Taken, takes_place
from moorage.core.events import Event
from moorage.core.limits import Limits
from moorage.core.machine import step
from moorage.core.model import Instant, Session, SessionId, SessionKey, SessionSpec
from moorage.core.secret import Secret
from moorage.ports.errors import LimitReached, StaleVersion, StoreFailed
from moorage.ports.store import Logged, Stored
from moorage.wire import (
    Kept,
    WireError,
    dump_event,
    dump_head,
    dump_session,
    dump_spec,
    load_event,
    load_head,
    load_session,
    load_spec,
)

from .database import LOCK_KEY, READERS, is_sqlite, open_database, reason, writing
from .records import escaped, head_digest, record_digest, spec_digest
from .schema import heads, holding, members, records, sessions, unfinished

log = logging.getLogger(__name__)

BATCH = 500
"""Saves in one transaction, at most: about 1 MB of log, and 30 ms of work before the first caller gets its answer."""

KNOWN = 50_000
"""Sessions whose version and chain the writer remembers, at most; about 10 MB."""

WAITING = 50_000
"""Saves that wait for the thread, at most; beyond that a save fails at once instead of growing a queue for ever."""


@frozen
class Damage:
    """Something in the database that does not fit its digest. `version` is that of the log record, 0 for the head."""

    session: SessionId
    version: int
    what: str


class SqlStore:
    """
    Implements the port `Store`. Made by `open`; belongs to the event loops that call it, any number of them.

    Damage is told from the digests: see `load`, `log` and `check`, and the decision record "Damage in the store".
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = _Writer(engine)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="moorage-store-read")
        self._closed = False

    @classmethod
    async def open(cls, where: str | Path, password: Secret | None = None, lock_s: float = 30) -> "SqlStore":
        """
        Open the database, make its tables if need be. Arguments and errors: `database.open_database`.

        Args:
            where: Path of an SQLite file, or a URL: `sqlite:///file`, `postgresql://user@host/name`.
        """
        return cls(await asyncio.to_thread(open_database, where, password, lock_s))

    async def load(self, session: SessionId) -> Stored | None:
        """See `Store.load`. A damaged row is made anew from the log if the log is whole; else `StoreFailed`."""
        return await self._read(_load, session)

    async def save(
        self, session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None = None
    ) -> int:
        """See `Store.save`. A caller that is cancelled does not stop the save."""
        if (event is None) != (expected == 0):
            raise ValueError("a session is created with version 0 and no event; everything else has both")
        return await self._writer.save(_prepare(session, event, at, expected, limits))

    async def unfinished(self) -> Sequence[Stored]:
        """See `Store.unfinished`. A session that cannot be read is left out, and said aloud in the log."""
        return await self._read(_unfinished)

    async def latest(self, key: SessionKey) -> Stored | None:
        """See `Store.latest`."""
        return await self._read(_latest, key)

    async def log(self, session: SessionId, after: int = 0, limit: int = 1000) -> Sequence[Logged]:
        """
        See `Store.log`. What comes before damage, or before a kind of event that is not known, is returned;
        `StoreFailed` if nothing comes before it.
        """
        return await self._read(_log, session, after, limit)

    async def newest(self) -> Instant:
        """The latest time of any event, 0 if there is none: a clock that starts after it never ran backwards."""
        return await self._read(_newest)

    async def check(self) -> Sequence[Damage]:
        """Compare everything with its digests and every session with the replay of its log. Takes its time."""
        return await self._read(_check)

    async def prune(self, before: Instant, most: int = 200) -> int:
        """
        Forget sessions that were over, with nothing left of them, before an instant.

        Args:
            most: How many at once, so that nobody who saves has to wait long.

        Returns:
            How many there were; as many as `most` means that there may be more.
        """
        return await self._read(_prune, before, most)

    async def close(self) -> None:
        """See `Store.close`. Saves that wait are finished first; later calls raise `StoreFailed`. Again is harmless."""
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._shut)

    def _shut(self) -> None:
        self._writer.close()
        self._readers.shutdown()
        self._engine.dispose()

    async def _read(self, function: Callable[..., "_Result"], *args: Any) -> "_Result":
        if self._closed:
            raise StoreFailed("the store is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, _reading, self._engine, function, args)


_Result = TypeVar("_Result")


def _reading(engine: Engine, function: Callable[..., _Result], args: tuple[Any, ...]) -> _Result:
    for last in (False, True):
        try:
            with engine.connect() as connection:
                return function(connection, *args)
        except _database_errors(engine) as error:
            if last or not _worth_repeating(error):
                raise StoreFailed(f"the database cannot be read: {reason(error)}") from error
    raise AssertionError("the second try returns or raises")


def _database_errors(engine: Engine) -> tuple[type[Exception], ...]:
    """What SQLAlchemy raises; while it connects, the driver's own errors come through."""
    return (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)


# Saving ---------------------------------------------------------------------------------------------------------------


@frozen(eq=False)
class _Save:
    """One save, ready to be written; encoded in the caller's thread while the writer waits for the disk."""

    session: Session
    id: SessionId
    expected: int
    at: Instant
    holds: bool
    head: str
    event: str
    spec: str | None
    limits: Limits | None
    answer: "asyncio.Future[int]"


def _prepare(session: Session, event: Event | None, at: Instant, expected: int, limits: Limits | None) -> _Save:
    return _Save(
        session,
        session.spec.id,
        expected,
        at,
        takes_place(session),
        dump_head(session).decode(),
        (dump_session(session) if event is None else dump_event(event)).decode(),
        dump_spec(session.spec).decode() if event is None else None,
        limits,
        asyncio.get_running_loop().create_future(),
    )


_Verdict = int | Exception


class _Writer:
    """The one thread that writes, and the queue in front of it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._queue: queue.SimpleQueue[_Save | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = True
        self._known: dict[str, tuple[int, str]] = {}
        # A daemon: a process that ends without closing the store loses nothing that was acknowledged.
        self._thread = threading.Thread(target=self._run, name="moorage-store-write", daemon=True)
        self._thread.start()

    async def save(self, save: _Save) -> int:
        with self._lock:  # so that nothing is put behind the end of the queue
            if not self._open:
                raise StoreFailed("the store is closed")
            if self._queue.qsize() >= WAITING:
                raise StoreFailed(f"{WAITING} saves are waiting for the database")
            self._queue.put(save)
        return await save.answer

    def close(self) -> None:
        with self._lock:
            self._open = False
            self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        more = True
        while more:
            batch, more = self._take()
            if batch:
                _answer(batch, self._write(batch))

    def _take(self) -> tuple[list[_Save], bool]:
        """All that waits, up to a limit; and whether more may come."""
        batch: list[_Save] = []
        item = self._queue.get()
        while item is not None:
            batch.append(item)
            if len(batch) == BATCH:
                return batch, True
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _write(self, batch: list[_Save]) -> list[_Verdict]:
        """
        One transaction for all; and if something is wrong with one of them, one for each.

        1. An error that only says "not now" (full, locked, away) holds for all of them: none is saved.
        2. A deadlock, a connection that had died since the last time: once more.
        3. Any other error is about one save, but the transaction is lost for all: each gets one of its own.
        """
        try:
            return self._transact(batch)
        except _database_errors(self._engine) as error:
            if _worth_repeating(error):
                log.info("the database wants the transaction again: %s", reason(error))
                try:
                    return self._transact(batch)
                except _database_errors(self._engine) as again:
                    error = again
            if len(batch) == 1 or isinstance(error, OperationalError):
                return [_refusal(error, save) for save in batch]
            return [verdict for save in batch for verdict in self._write([save])]
        except Exception as error:  # noqa: BLE001 (a bug is for the callers to hear; the thread has to live)
            return [error] * len(batch)

    def _transact(self, batch: list[_Save]) -> list[_Verdict]:
        """
        One transaction. What this process wrote last is taken for what is there, which saves a question; the updates
        ask for the version all the same, and if one finds another, everything is done again with the question.
        """
        try:
            return self._attempt(batch, self._known)
        except _Outrun:
            self._forget(batch)
            return self._attempt(batch, None)

    def _forget(self, batch: list[_Save]) -> None:
        for save in batch:
            self._known.pop(save.id, None)

    def _remember(self, present: Mapping[str, tuple[int, str]]) -> None:
        self._known.update((id_, found) for id_, found in present.items() if found != _ABSENT)
        while len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]

    def _attempt(self, batch: list[_Save], known: Mapping[str, tuple[int, str]] | None) -> list[_Verdict]:
        with self._engine.connect() as connection:
            turn = _Turn(connection.execution_options(moorage_writes=True), batch, known)
            transaction = connection.begin()
            try:
                verdicts = turn.decide()
            except BaseException:
                transaction.rollback()
                raise
            try:
                transaction.commit()
                self._remember(turn.present)
                return verdicts
            except _database_errors(self._engine) as error:
                log.warning("whether a commit worked is not known, looking: %s", reason(error))
                lost = error
                # A connection that may be dead goes. SQLite's is not dead, and on a full disk it could not be opened
                # again; the pool rolls it back.
                if not is_sqlite(self._engine):
                    connection.invalidate()
                self._forget(batch)
        return self._look(batch, verdicts, turn.digests, lost)

    def _look(
        self, batch: list[_Save], verdicts: list[_Verdict], digests: dict[int, str], lost: Exception
    ) -> list[_Verdict]:
        """After a commit that may or may not have worked: the log knows which of the records are there."""
        mine = [index for index, verdict in enumerate(verdicts) if isinstance(verdict, int)]
        found = set()
        try:
            with self._engine.connect() as connection:
                for index in mine:
                    save = batch[index]
                    stored = connection.execute(_digest_of(save.id, save.expected + 1)).scalar()
                    if stored == digests[index]:
                        found.add(index)
        except _database_errors(self._engine) as error:
            log.warning("the database cannot be asked: %s", reason(error))
        return [
            verdict if index in found or not isinstance(verdict, int) else _failed(lost)
            for index, verdict in enumerate(verdicts)
        ]


def _worth_repeating(error: Exception) -> bool:
    if not isinstance(error, DBAPIError):
        return False
    # 40001 serialization failure, 40P01 deadlock. Source: PostgreSQL, "Error Codes".
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in ("40001", "40P01")


def _refusal(error: Exception, save: _Save) -> Exception:
    if save.expected == 0 and isinstance(error, IntegrityError):
        return StaleVersion(f"session {save.id} exists already")
    return _failed(error)


def _failed(error: Exception) -> StoreFailed:
    failure = StoreFailed(f"the database did not save: {reason(error)}")
    failure.__cause__ = error
    return failure


def _answer(batch: list[_Save], verdicts: list[_Verdict]) -> None:
    """Wake the callers: once per event loop, not once per save."""
    loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[int], _Verdict]]] = {}
    for save, verdict in zip(batch, verdicts, strict=True):
        loops.setdefault(save.answer.get_loop(), []).append((save.answer, verdict))
    for loop, answers in loops.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_set, answers)


def _set(answers: list[tuple["asyncio.Future[int]", _Verdict]]) -> None:
    for future, verdict in answers:
        if future.done():
            continue  # the caller was cancelled
        if isinstance(verdict, int):
            future.set_result(verdict)
        else:
            future.set_exception(verdict)


_INSERT_SESSION = insert(sessions).inline()
_INSERT_HEAD = insert(heads)
_INSERT_MEMBER = insert(members)
_INSERT_RECORD = insert(records)
_CHANGED = ("version", "at", "finished", "holds", "head", "chain", "digest")
_ABSENT: tuple[int, str] = (0, "")
_UPDATE_HEAD = (
    update(heads)
    .where(heads.c.id == bindparam("of"), heads.c.version == bindparam("expected"))
    .values({name: bindparam(name) for name in _CHANGED})
)
_PRESENT = (
    select(heads.c.id, heads.c.version, heads.c.chain)
    .where(heads.c.id.in_(bindparam("ids", expanding=True)))
    # Always in the same order, so that two processes with overlapping batches do not wait for each other.
    .order_by(heads.c.id)
    .with_for_update()
)


class _Outrun(Exception):
    """What this process remembered about a session is not so any more: another one has moved it on."""


class _Turn:
    """
    One transaction in the making: which saves go through, and the rows that they write.

    Args:
        known: Version and chain of sessions, as this process wrote them last; `None` to ask the database.
    """

    def __init__(self, connection: Connection, batch: list[_Save], known: Mapping[str, tuple[int, str]] | None) -> None:
        self.connection = connection
        self.batch = batch
        self.known = known
        self.present: dict[str, tuple[int, str]] = {}
        self.digests: dict[int, str] = {}
        self.rows: dict[Any, list[dict[str, Any]]] = {}

    def decide(self) -> list[_Verdict]:
        """The verdict on each save; what is written is written when this returns, but not yet committed."""
        if any(save.limits for save in self.batch) and not is_sqlite(self.connection.engine):
            # First of all locks. Who takes places does it alone; who gives them back needs no lock.
            self.connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        if self.known is None or not self._fits(self.known):
            ids = sorted({save.id for save in self.batch})
            for id_, version, chain in self.connection.execute(_PRESENT, {"ids": ids}):
                self.present[id_] = (version, chain)
        verdicts = [self._one(index, save) for index, save in enumerate(self.batch)]
        self._flush()
        return verdicts

    def _fits(self, known: Mapping[str, tuple[int, str]]) -> bool:
        """Whether the first save of each session expects what is known of it; then that is taken for present."""
        for save in self.batch:
            if save.id not in self.present:
                self.present[save.id] = known.get(save.id, _ABSENT)
                if self.present[save.id][0] != save.expected:
                    self.present.clear()
                    return False
        return True

    def _one(self, index: int, save: _Save) -> _Verdict:
        version, chain = self.present.get(save.id, _ABSENT)
        if version != save.expected:
            return StaleVersion(f"session {save.id} has version {version}, not {save.expected}")
        if save.limits is not None and save.holds:
            reached = self._reached(save.session, save.limits)
            if reached is not None:
                return LimitReached(f"session {save.id}: there are {reached} already")
        self._write(index, save, version + 1, chain)
        return version + 1

    def _write(self, index: int, save: _Save, version: int, before: str) -> None:
        spec, id_ = save.session.spec, save.id
        chain = record_digest(before, id_, version, save.at, save.event)
        head = _head_row(save.session, version, save.at, save.holds, chain, save.head)
        if save.spec is not None:
            self._add(_INSERT_SESSION, _session_row(spec, save.spec))
            self._add(
                _INSERT_HEAD, {"id": id_, "owner": escaped(spec.key.owner), "system": escaped(spec.system), **head}
            )
            for group in sorted(set(spec.groups)):
                self._add(_INSERT_MEMBER, {"member_of": escaped(group), "id": id_})
        else:
            self._add(_UPDATE_HEAD, {"of": id_, "expected": save.expected, **head})
        self._add(
            _INSERT_RECORD,
            {"id": id_, "version": version, "at": save.at, "event": save.event, "digest": chain},
        )
        self.present[id_] = (version, chain)
        self.digests[index] = chain

    def _add(self, statement: Any, row: dict[str, Any]) -> None:
        self.rows.setdefault(statement, []).append(row)

    def _flush(self) -> None:
        """Write what was gathered: parents before children, creations before changes of the same session."""
        for statement in (_INSERT_SESSION, _INSERT_HEAD, _INSERT_MEMBER, _UPDATE_HEAD, _INSERT_RECORD):
            rows = self.rows.pop(statement, None)
            if rows:
                if statement is _UPDATE_HEAD:
                    # So that two processes with overlapping batches do not wait for each other. What is created
                    # keeps its order: it is the order of age.
                    rows.sort(key=itemgetter("of"))
                changed = self.connection.execute(statement, rows).rowcount
                if statement is _UPDATE_HEAD and changed != len(rows):
                    raise _Outrun

    def _reached(self, session: Session, limits: Limits) -> str | None:
        """Which limit leaves no place; counted with what this very transaction has written so far."""
        self._flush()
        spec = session.spec
        owner, system = escaped(spec.key.owner), escaped(spec.system)
        held = heads.c.id != spec.id  # a session that has a place does not stand in its own way
        taken = Taken()
        counted = select(
            func.count(),
            func.count().filter(heads.c.owner == owner),
            func.count().filter(heads.c.system == system),
        ).where(holding, held)
        taken.in_all, taken.owners[spec.key.owner], taken.systems[spec.system] = self.connection.execute(counted).one()
        for group in spec.groups:
            if group in limits.per_group:
                inside = select(func.count()).select_from(members.join(heads, heads.c.id == members.c.id))
                inside = inside.where(members.c.member_of == escaped(group), holding, held)
                taken.groups[group] = self.connection.execute(inside).scalar_one()
        return taken.reached(session, limits)


def _head_row(session: Session, version: int, at: Instant, holds: bool, chain: str, head: str) -> dict[str, Any]:
    return {
        "version": version,
        "at": at,
        "finished": int(session.over),
        "holds": int(holds),
        "head": head,
        "chain": chain,
        "digest": head_digest(session.spec.id, version, at, session.over, holds, chain, head),
    }


def _session_row(spec: SessionSpec, form: str) -> dict[str, Any]:
    return {
        "id": spec.id,
        "hub": escaped(spec.key.hub),
        "owner": escaped(spec.key.owner),
        "name": escaped(spec.key.name),
        "spec": form,
        "digest": spec_digest(spec.id, form),
    }


# Reading --------------------------------------------------------------------------------------------------------------

_STORED = select(
    heads.c.id,
    heads.c.version,
    heads.c.at,
    heads.c.finished,
    heads.c.holds,
    heads.c.head,
    heads.c.chain,
    heads.c.digest,
    sessions.c.spec,
    sessions.c.digest.label("spec_digest"),
).select_from(heads.join(sessions, sessions.c.id == heads.c.id))


class _Damaged(Exception):
    """A row that does not fit its digest, or a form that nobody can read."""


def _load(connection: Connection, session: SessionId) -> Stored | None:
    row = connection.execute(_STORED.where(heads.c.id == session)).one_or_none()
    return None if row is None else _stored_or_rebuilt(connection, row)


def _latest(connection: Connection, key: SessionKey) -> Stored | None:
    same = (
        sessions.c.owner == escaped(key.owner),
        sessions.c.name == escaped(key.name),
        sessions.c.hub == escaped(key.hub),
    )
    row = connection.execute(_STORED.where(*same).order_by(sessions.c.number.desc()).limit(1)).one_or_none()
    return None if row is None else _stored_or_rebuilt(connection, row)


def _prune(connection: Connection, before: Instant, most: int) -> int:
    old = select(heads.c.id).where(heads.c.finished == 1, heads.c.at < before).order_by(heads.c.at).limit(most)
    with writing(connection):
        ids = list(connection.execute(old).scalars())
        for table in (records, members, heads, sessions):
            connection.execute(delete(table).where(table.c.id.in_(ids)))
    return len(ids)


def _unfinished(connection: Connection) -> list[Stored]:
    found = []
    for row in connection.execute(_STORED.where(unfinished).order_by(sessions.c.number)).all():
        with suppress(StoreFailed):  # said aloud already; the others go on
            found.append(_stored_or_rebuilt(connection, row))
    return found


def _stored_or_rebuilt(connection: Connection, row: Any) -> Stored:
    try:
        return _stored(row)
    except _Damaged as damage:
        return _rebuild(connection, row, damage)


def _stored(row: Any) -> Stored:
    try:
        digest = head_digest(row.id, row.version, row.at, row.finished, row.holds, row.chain, row.head)
        if digest != row.digest:
            raise _Damaged("its row does not fit its digest")
        if spec_digest(row.id, row.spec) != row.spec_digest:
            raise _Damaged("its specification does not fit its digest")
        return Stored(load_head(row.head, load_spec(row.spec)), row.version)
    except WireError as error:
        raise _Damaged(f"it cannot be read: {error}") from None


def _rebuild(connection: Connection, row: Any, damage: _Damaged) -> Stored:
    """
    The session as its log tells it: only if the log is whole and the row still agrees about where it ends.

    A shorter log is not used: the decision that is missing may have submitted a job.
    """
    session = SessionId(row.id)
    try:
        entries = list(_verified(connection, session, end=None))
        rebuilt = _replayed(entries)
    except _Damaged as second:
        _alarm(session, f"{damage}, and its log does not help: {second}; it is left alone")
    last = entries[-1]
    if last.version != row.version and last.digest != row.chain:
        _alarm(session, f"{damage}, and its log seems to have lost its end; it is left alone")
    log.critical("session %s: %s; made anew from its log", session, damage)
    _repair(connection, row, rebuilt, last)
    return Stored(rebuilt, last.version)


def _repair(connection: Connection, row: Any, session: Session, last: "_Entry") -> None:
    """Write the row anew, unless somebody has written it meanwhile."""
    head, spec = dump_head(session).decode(), dump_spec(session.spec).decode()
    made = _head_row(session, last.version, last.at, takes_place(session), last.digest, head)
    connection.rollback()
    with writing(connection):
        connection.execute(update(heads).where(heads.c.id == row.id, heads.c.digest == row.digest).values(made))
        same = (sessions.c.id == row.id, sessions.c.digest == row.spec_digest)
        connection.execute(update(sessions).where(*same).values(_session_row(session.spec, spec)))


def _alarm(session: SessionId, what: str) -> NoReturn:
    log.critical("session %s: %s", session, what)
    raise StoreFailed(f"session {session}: {what}")


@frozen
class _Entry:
    """A log record that fits its digest."""

    version: int
    at: Instant
    form: str
    digest: str


def _verified(
    connection: Connection, session: SessionId, end: int | None, after: int = 0, limit: int | None = None
) -> Iterator[_Entry]:
    """
    Log records one by one, as long as they are whole and in order; then `_Damaged` if there is more.

    Args:
        end: The version that the log has to reach, if that is known.
    """
    before = "" if after < 1 else connection.execute(_digest_of(session, after)).scalar()
    wanted = select(records).where(records.c.id == session, records.c.version > after)
    count, version = 0, max(0, after)
    for row in connection.execute(wanted.order_by(records.c.version).limit(limit)):
        if row.version != version + 1:
            break
        if record_digest(str(before), session, row.version, row.at, row.event) != row.digest:
            raise _Damaged(f"record {row.version} of its log does not fit its digest")
        yield _Entry(row.version, row.at, row.event, row.digest)
        count, version, before = count + 1, row.version, row.digest
    if count != limit and end is not None and version < end:
        raise _Damaged(f"record {version + 1} of its log is missing")


def _digest_of(session: SessionId, version: int) -> Select[Any]:
    return select(records.c.digest).where(records.c.id == session, records.c.version == version)


def _replayed(entries: Sequence[_Entry]) -> Session:
    """The session that the log leads to."""
    if not entries:
        raise _Damaged("there is none")
    try:
        session = load_session(entries[0].form)
    except WireError as error:
        raise _Damaged(f"its beginning cannot be read: {error}") from None
    for entry in entries[1:]:
        session = step(session, _event(entry), entry.at).session
    return session


def _event(entry: _Entry) -> Event:
    try:
        event = load_event(entry.form)
    except WireError as error:
        raise _Damaged(f"record {entry.version} of its log cannot be read: {error}") from None
    if isinstance(event, Kept):
        raise _Damaged(f"record {entry.version} of its log is kept, but of a kind unknown here: {event.kind[:60]!a}")
    return event


def _log(connection: Connection, session: SessionId, after: int, limit: int) -> list[Logged]:
    found: list[Logged] = []
    end = connection.execute(select(heads.c.version).where(heads.c.id == session)).scalar()
    try:
        for entry in _verified(connection, session, end, after, limit):
            found.append(Logged(entry.version, entry.at, None if entry.version == 1 else _event(entry)))
    except _Damaged as damage:
        if not found:
            _alarm(session, str(damage))
        log.critical("session %s: %s; what comes before it is used", session, damage)
    return found


def _newest(connection: Connection) -> Instant:
    return Instant(connection.execute(select(func.max(heads.c.at))).scalar() or 0)


def _check(connection: Connection) -> list[Damage]:
    found: list[Damage] = []
    for row in connection.execute(_STORED.order_by(sessions.c.number)).all():
        session = SessionId(row.id)
        stored = None
        try:
            stored = _stored(row)
        except _Damaged as damage:
            found.append(Damage(session, 0, str(damage)))
        entries: list[_Entry] = []
        try:
            for entry in _verified(connection, session, row.version):
                entries.append(entry)
            replayed = _replayed(entries)
            if stored is not None and (replayed != stored.session or entries[-1].version != stored.version):
                found.append(Damage(session, 0, "it is not what its log leads to"))
        except _Damaged as damage:
            found.append(Damage(session, len(entries) + 1, str(damage)))
    return found
