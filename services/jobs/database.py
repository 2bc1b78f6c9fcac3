"""The connection to the job database: options, timeouts, retries."""

import logging
import sqlite3
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import CursorResult, Delete, Dialect, Update, create_engine, event, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from services.jobs.tables import Base
from wmss.extras import needs_extra

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5
"""Timeout of connecting to a database server; `?connect_timeout=` in the address overrides it."""
PATIENCE_S = 120.0
"""How long drivers and training workers retry while the database server is away."""
RETRY_S = 0.5
"""Pause between two retries."""
RETRIED_SQLSTATES = ("08", "40", "53", "57")
"""PostgreSQL's transient error classes: connections, transactions rolled back (a deadlock), resources, shutdown."""


def may_be_retried(error: Exception) -> bool:
    """Whether the error is transient: the database was away, busy or out of connections; the statement is not wrong."""
    if isinstance(error, PoolTimeoutError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated or not isinstance(error, OperationalError):
        return error.connection_invalidated
    if isinstance(error.orig, sqlite3.Error):
        return any(sign in str(error.orig) for sign in ("locked", "unable to open"))
    state: str | None = getattr(error.orig, "sqlstate", None)  # none: there was no connection
    return state is None or state[:2] in RETRIED_SQLSTATES


def is_full(error: Exception) -> bool:
    """Whether the database found no room on its disk."""
    cause = getattr(error, "orig", None)
    if isinstance(cause, sqlite3.Error):
        return cause.sqlite_errorcode == sqlite3.SQLITE_FULL
    return getattr(cause, "sqlstate", None) == "53100"


class Database:
    """Sessions on one database; safe to share between threads.

    Connecting to a server that is away is retried for `patience_s` seconds before a call fails.
    """

    def __init__(self, url: str, *, patience_s: float = 0.0) -> None:
        self.url = url
        with needs_extra("postgres", "WMSS_DATABASE_URL: a PostgreSQL server"):
            self._engine = create_engine(url, pool_pre_ping=True, **_server_options(url))
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _configure_sqlite)
            # The driver's own transactions do not cover CREATE TABLE: a migration cut short would never start again.
            event.listen(self._engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
        else:
            event.listen(self._engine, "do_connect", partial(_connect, patience_s=patience_s))
        self.sessions = sessionmaker(self._engine, expire_on_commit=False)
        """Makes sessions on this database."""

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema up to a revision, the newest unless told otherwise."""
        # Here, since drivers and training workers, which never migrate, would wait for it whenever they start.
        from alembic import command
        from alembic.config import Config as AlembicConfig

        config = AlembicConfig()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
        config.attributes["engine"] = self._engine
        command.upgrade(config, revision)

    def ping(self) -> None:
        """Raise unless the database answers."""
        with self.sessions() as session:
            session.execute(select(1))

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def changed_row(session: Session, statement: Update | Delete) -> bool:
    """Whether the statement changed its one row."""
    result = cast("CursorResult[Any]", session.execute(statement))
    return bool(result.rowcount == 1)


def insert_into(session: Session, table: type[Base]) -> Any:
    """An INSERT that can say what a conflict means; both databases have it, each in a module of its own."""
    dialect = sqlite if session.get_bind().dialect.name == "sqlite" else postgresql
    return dialect.insert(table)


def _server_options(url: str) -> dict[str, Any]:
    """What a database server, and only that, is asked for."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        return {}
    timeout = {} if "connect_timeout" in address.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    # Every conditional UPDATE relies on it: one that waited for another writer looks at the row again.
    return {"isolation_level": "READ COMMITTED", "connect_args": timeout}


def _connect(
    dialect: Dialect, _record: Any, arguments: list[Any], options: dict[str, Any], *, patience_s: float
) -> Any:
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.OperationalError as error:
            if time.monotonic() >= deadline:
                raise
            logger.warning("the job database cannot be reached (%s); retrying", type(error).__name__)
        time.sleep(RETRY_S)


def _configure_sqlite(connection: Any, _record: Any) -> None:
    """Readers beside one writer (WAL), waiting instead of failing, and no accepted job lost to a power cut."""
    connection.isolation_level = None  # SQLAlchemy's "begin" event opens transactions instead
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA busy_timeout=30000")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
