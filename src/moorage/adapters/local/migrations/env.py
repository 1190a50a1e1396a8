"""Run by Alembic, on the connection and in the transaction that `database.py` hands over."""

from alembic import context

from moorage.adapters.local.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # SQLite can do it, too, once its driver is kept from committing by itself (see `database.py`).
    transactional_ddl=True,
)
context.run_migrations()
