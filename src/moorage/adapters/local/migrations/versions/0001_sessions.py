"""Sessions, their heads, their logs, and the groups of their owners."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "moorage_sessions",
        sa.Column("number", number, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String, nullable=False, unique=True),
        sa.Column("hub", sa.String, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("moorage_sessions_by_key", "moorage_sessions", ["owner", "name", "hub", "number"])
    op.create_table(
        "moorage_heads",
        sa.Column("id", sa.String, sa.ForeignKey("moorage_sessions.id"), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("finished", sa.SmallInteger, nullable=False),
        sa.Column("holds", sa.SmallInteger, nullable=False),
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("system", sa.String, nullable=False),
        sa.Column("head", sa.Text, nullable=False),
        sa.Column("chain", sa.String, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
    for name, columns, condition in (
        ("moorage_heads_unfinished", ["id"], sa.text("finished = 0")),
        ("moorage_heads_holding", ["owner", "system", "id"], sa.text("holds = 1")),
    ):
        op.create_index(name, "moorage_heads", columns, sqlite_where=condition, postgresql_where=condition)
    op.create_table(
        "moorage_members",
        sa.Column("member_of", sa.String, primary_key=True),
        sa.Column("id", sa.String, sa.ForeignKey("moorage_sessions.id"), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "moorage_log",
        sa.Column("id", sa.String, sa.ForeignKey("moorage_sessions.id"), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("at", sa.BigInteger, nullable=False),
        sa.Column("event", sa.Text, nullable=False),
        sa.Column("digest", sa.String, nullable=False),
    )
