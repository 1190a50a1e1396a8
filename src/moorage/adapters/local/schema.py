"""The tables of the store. A change here brings a migration and a new `SCHEMA`."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, MetaData, SmallInteger, String, Table, Text, text

SCHEMA = "0001"
"""The latest migration; what databases with a higher number say, this program does not understand."""

VERSION_TABLE = "moorage_schema"
"""Alembic's own table, under a name of ours: the Hub, which also uses Alembic, may live in the same database."""

metadata = MetaData()

_Number = BigInteger().with_variant(Integer, "sqlite")

sessions = Table(
    "moorage_sessions",
    metadata,
    Column("number", _Number, primary_key=True, autoincrement=True, doc="in the order of creation"),
    Column("id", String, nullable=False, unique=True),
    Column("hub", String, nullable=False),
    Column("owner", String, nullable=False),
    Column("name", String, nullable=False),
    Column("spec", Text, nullable=False, doc="stored form"),
    Column("digest", String, nullable=False, doc="of id and spec"),
    Index("moorage_sessions_by_key", "owner", "name", "hub", "number"),
    sqlite_autoincrement=True,
)
"""What never changes: one row per session. Key columns hold escaped text (`records.escaped`)."""

heads = Table(
    "moorage_heads",
    metadata,
    Column("id", String, ForeignKey(sessions.c.id), primary_key=True),
    Column("version", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False, doc="milliseconds, when the last event was handled"),
    Column("finished", SmallInteger, nullable=False, doc="1: ended, and nothing is left"),
    Column("holds", SmallInteger, nullable=False, doc="1: takes a place within the limits"),
    Column("owner", String, nullable=False),
    Column("system", String, nullable=False),
    Column("head", Text, nullable=False, doc="stored form"),
    Column("chain", String, nullable=False, doc="digest of the last log record"),
    Column("digest", String, nullable=False, doc="of everything else in this row"),
)
"""The session as it is now: one row per session, rewritten with every event."""

# As literal text in index and query alike: SQLite uses a partial index only if it sees its condition in the query.
unfinished = text("finished = 0")
holding = text("holds = 1")

Index("moorage_heads_unfinished", heads.c.id, sqlite_where=unfinished, postgresql_where=unfinished)
# All that the limits count by, so that counting does not touch the rows.
Index(
    "moorage_heads_holding", heads.c.owner, heads.c.system, heads.c.id, sqlite_where=holding, postgresql_where=holding
)

members = Table(
    "moorage_members",
    metadata,
    Column("member_of", String, primary_key=True, doc="a group of the owner"),
    Column("id", String, ForeignKey(sessions.c.id), primary_key=True),
    sqlite_with_rowid=False,
)

records = Table(
    "moorage_log",
    metadata,
    Column("id", String, ForeignKey(sessions.c.id), primary_key=True),
    Column("version", BigInteger, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("event", Text, nullable=False, doc="stored form; of the whole session in version 1"),
    Column("digest", String, nullable=False, doc="of this record and the digest of the one before"),
)
"""
The log: appended to, never rewritten. Not `WITHOUT ROWID`: there, a row of more than 1 kB takes a page of its own.
"""
