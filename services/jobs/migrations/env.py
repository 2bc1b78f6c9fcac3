"""Alembic's entry: runs revisions on the engine that `Store.migrate` hands over."""

from alembic import context
from sqlalchemy import func, select

from services.jobs.tables import Base

MIGRATION_LOCK = 0x776D7373
"""Key of PostgreSQL's advisory lock: "wmss" in ASCII."""

with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            # Of processes that start at once, one migrates; the others wait here and find nothing left to do.
            connection.execute(select(func.pg_advisory_xact_lock(MIGRATION_LOCK)))
        context.run_migrations()
