"""Alembic's entry: runs revisions on the engine that `Store.migrate` hands over."""

from alembic import context

from services.jobs.tables import Base

with context.config.attributes["engine"].connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
