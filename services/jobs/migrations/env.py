"""Alembic's entry: runs revisions on the engine that `Store.migrate` hands over."""

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection, func, select

from services.jobs.tables import Base

MIGRATION_LOCK = 0x776D7373
"""Key of PostgreSQL's advisory lock: "wmss" in ASCII."""


@contextmanager
def without_references(connection: Connection) -> Iterator[None]:
    """SQLite changes a column by copying its table: for a moment the table that others refer to is missing.

    The pragma has no effect inside a transaction, and the pool's next user of the connection needs it on again.
    """
    if connection.dialect.name != "sqlite":
        yield
        return
    connection.connection.cursor().execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        connection.connection.cursor().execute("PRAGMA foreign_keys=ON")


with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with without_references(connection), context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Of processes that start at once, one migrates; the others wait here and find nothing left to do.
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        context.run_migrations()
