"""Open a database, or say in words why it is not opened."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from moorage.core.secret import Secret
from moorage.ports.errors import StoreFailed

from .safety import private_directory, private_file, refuse_network
from .schema import SCHEMA, VERSION_TABLE

READERS = 4
"""Connections for reading, besides the one that writes: `follow` and `get` of many users are short."""

CONNECT_S = 10
STATEMENT_S = 60
"""No statement of ours takes a second; one that takes a minute hangs (dead disk, dead network)."""

LOCK_KEY = 0x6D6F6F72
"""Advisory lock on PostgreSQL ("moor") around migrations and around admissions."""


def open_database(where: str | Path, password: Secret | None = None, lock_s: float = 30) -> Engine:
    """
    An engine for a database with the tables of this version; they are made, or brought up to date, if need be.

    Args:
        where: Path of an SQLite file, or a URL: `sqlite:///file`, `postgresql://user@host/name`.
        lock_s: How long a lock that another process holds is waited for.

    Raises:
        StoreFailed: The file is unsafe or damaged, the schema is newer than this program, or the database does not
            answer. The message says which, and nothing was changed.
    """
    url = _url(where)
    shown = url.render_as_string(hide_password=True)
    if url.get_backend_name() == "sqlite":
        _check_file(url)
        engine = _sqlite(url, lock_s)
    elif url.get_backend_name() == "postgresql":
        engine = _postgresql(url.set(password=password.reveal()) if password else url, lock_s)
    else:
        raise StoreFailed(f"{shown}: use sqlite or postgresql")
    try:
        _bring_up_to_date(engine, shown)
    except (SQLAlchemyError, engine.dialect.loaded_dbapi.Error) as error:  # the latter while connecting
        engine.dispose()
        raise StoreFailed(f"{shown} cannot be used: {reason(error)}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def is_sqlite(engine: Engine) -> bool:
    """Whether the database is a file of ours."""
    return engine.dialect.name == "sqlite"


def reason(error: BaseException) -> str:
    """What the database said, in one line and without the statement and its values."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:300]


@contextmanager
def writing(connection: Connection) -> Iterator[Connection]:
    """A transaction that may write from its beginning on; committed at the end."""
    with connection.execution_options(moorage_writes=True).begin():
        yield connection


# SQLite ---------------------------------------------------------------------------------------------------------------


def _url(where: str | Path) -> URL:
    try:
        url = (
            make_url(where) if isinstance(where, str) and "://" in where else URL.create("sqlite", database=str(where))
        )
    except ArgumentError as error:
        raise StoreFailed(f"no address of a database: {error}") from None
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    return url


def _check_file(url: URL) -> None:
    if not url.database or url.database == ":memory:":
        raise StoreFailed("sessions have to survive the process: name a file")
    path = Path(url.database).expanduser()
    try:
        directory = private_directory(path.parent)
        refuse_network(directory)
        private_file(directory / path.name)
    except OSError as error:
        raise StoreFailed(f"{path} is not used: {error}") from error


def _sqlite(url: URL, lock_s: float) -> Engine:
    path = Path(url.database or "").expanduser().resolve()
    engine = create_engine(
        url.set(database=str(path)),
        connect_args={"timeout": lock_s, "check_same_thread": False},
        pool_size=1 + READERS,
        max_overflow=0,
    )

    @event.listens_for(engine, "connect")
    def _connect(connection: sqlite3.Connection, _: object) -> None:
        # The driver is to begin and commit nothing by itself. Source: SQLAlchemy, "SQLite: serializable isolation".
        connection.isolation_level = None
        # A flipped bit makes one text unreadable, not the whole query.
        connection.text_factory = _decode
        for pragma in (
            "journal_mode = WAL",
            # FULL: a commit is on the disk when it returns, also after a power cut. NORMAL could lose the last ones.
            "synchronous = FULL",
            "foreign_keys = ON",
            "trusted_schema = OFF",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # IMMEDIATE: who will write waits for the lock at the beginning; later it could only fail.
        writes = connection.get_execution_options().get("moorage_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


# PostgreSQL -----------------------------------------------------------------------------------------------------------


def _postgresql(url: URL, lock_s: float) -> Engine:
    settings = {
        "lock_timeout": int(lock_s * 1000),
        "statement_timeout": STATEMENT_S * 1000,
        # A process that hangs in a transaction must not hold up the others for ever.
        "idle_in_transaction_session_timeout": 2 * STATEMENT_S * 1000,
    }
    try:
        engine = create_engine(
            url,
            connect_args={
                "connect_timeout": CONNECT_S,
                "application_name": "moorage",
                "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
                # A server that vanished is noticed within half a minute.
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
                "tcp_user_timeout": 30_000,
            },
            pool_size=1 + READERS,
            max_overflow=0,
        )
    except ImportError as error:
        raise StoreFailed("PostgreSQL needs the package psycopg: install moorage[postgres]") from error

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _: object) -> None:
        # What we call saved has to be saved, however careless the server's default.
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'"
            )
        connection.commit()

    return engine


# Schema ---------------------------------------------------------------------------------------------------------------


def _bring_up_to_date(engine: Engine, shown: str) -> None:
    with engine.connect() as connection:
        if is_sqlite(engine):
            _check_pages(connection, shown)
        found = _schema(connection)
        connection.rollback()
        if found == SCHEMA:
            return
        _refuse_newer(found, shown)
        with writing(connection):
            if not is_sqlite(engine):
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
            found = _schema(connection)  # another process may have been faster
            _refuse_newer(found, shown)
            if found != SCHEMA:
                _migrate(connection)


def _schema(connection: Connection) -> str | None:
    """The version that the database has, `None` for one without our tables."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608 (a constant)
    return None if found is None else str(found)


def _refuse_newer(found: str | None, shown: str) -> None:
    if found is not None and not (found.isdecimal() and int(found) <= int(SCHEMA)):
        raise StoreFailed(
            f"{shown} has schema {found}, and this moorage knows schemas up to {SCHEMA}: "
            "use the newer moorage that wrote it. Nothing was changed."
        )


def _migrate(connection: Connection) -> None:
    # Only here: a database that is up to date does not pay for the import.
    from alembic import command
    from alembic.config import Config

    with resources.as_file(resources.files("moorage.adapters.local") / "migrations") as folder:
        config = Config()
        config.set_main_option("script_location", str(folder).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _check_pages(connection: Connection, shown: str) -> None:
    """Refuse a file whose pages are damaged: writing to it would make it worse."""
    answers = connection.execute(text("PRAGMA quick_check(1)")).scalars().all()
    if answers != ["ok"]:
        raise StoreFailed(f"{shown} is damaged ({answers[0] if answers else 'no answer'}): restore it from a backup")
