"""Which engine answers chat requests, and which requests it is answering; kept in the job database.

States of the engine, moved by conditional updates only:

    wanted    a request asked for the model             -> starting (reconcile loop)
    starting  its Ray job deploys it                     -> ready, failed (reconcile loop)
    ready     answers                                    -> leaving (idle, another model wanted, no room, lost)
    failed    could not start; kept a moment to be told  -> leaving (reconcile loop)
    leaving   takes no new requests                      -> gone (reconcile loop)
"""

import time
from enum import StrEnum

from sqlalchemy import delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from services.jobs.database import Database, changed_row
from services.jobs.tables import ChatEngineRow, ChatRequestRow
from wmss.ids import CHAT_ENGINE, CHAT_REQUEST, new_id

LEASE_S = 30.0
"""Life of a request's lease. The relay of the answer renews it three times as often."""


class ChatState(StrEnum):
    """State of the chat engine."""

    WANTED = "wanted"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    LEAVING = "leaving"


class ChatStore:
    """The chat engine's part of the database; every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self._sessions = database.sessions

    def engine(self) -> ChatEngineRow | None:
        """The engine in place, in any state."""
        with self._sessions() as session:
            return session.scalars(select(ChatEngineRow)).one_or_none()

    def want(self, model: str, path: str) -> bool:
        """Ask for an engine for a model; False if the place is taken."""
        now = time.time()
        row = ChatEngineRow(
            app=new_id(CHAT_ENGINE), model=model, path=path, state=ChatState.WANTED, since=now, used_at=now
        )
        try:
            with self._sessions.begin() as session:
                session.add(row)
        except IntegrityError:
            return False
        return True

    def move(self, row: ChatEngineRow, state: ChatState, *, error: str | None = None) -> bool:
        """Change the state of the engine; False if it changed, or took a request, since `row` was read."""
        unchanged = (
            ChatEngineRow.app == row.app,
            ChatEngineRow.state == row.state,
            ChatEngineRow.used_at == row.used_at,
        )
        values = {"state": state, "since": time.time(), "error": error}
        with self._sessions.begin() as session:
            return changed_row(session, update(ChatEngineRow).where(*unchanged).values(values))

    def remove(self, app: str) -> None:
        """The engine is gone."""
        with self._sessions.begin() as session:
            session.execute(delete(ChatEngineRow).where(ChatEngineRow.app == app))
            session.execute(delete(ChatRequestRow).where(ChatRequestRow.app == app))

    def begin_request(self, app: str) -> str | None:
        """A lease on the ready engine `app` for one request; None if it is not ready any more."""
        now = time.time()
        ready = (ChatEngineRow.app == app, ChatEngineRow.state == ChatState.READY)
        request = new_id(CHAT_REQUEST)
        with self._sessions.begin() as session:
            # The engine's row first: either an eviction sees that the engine was used, or this sees that it is leaving.
            if not changed_row(session, update(ChatEngineRow).where(*ready).values(used_at=now)):
                return None
            session.execute(insert(ChatRequestRow).values(id=request, app=app, expires_at=now + LEASE_S))
        return request

    def renew_request(self, request: str) -> None:
        """The request goes on."""
        with self._sessions.begin() as session:
            mine = update(ChatRequestRow).where(ChatRequestRow.id == request)
            session.execute(mine.values(expires_at=time.time() + LEASE_S))

    def end_request(self, app: str, request: str) -> None:
        """The request is answered, or given up."""
        with self._sessions.begin() as session:
            session.execute(update(ChatEngineRow).where(ChatEngineRow.app == app).values(used_at=time.time()))
            session.execute(delete(ChatRequestRow).where(ChatRequestRow.id == request))

    def in_use(self, app: str) -> bool:
        """Whether the engine is answering a request."""
        with self._sessions() as session:
            answering = exists().where(ChatRequestRow.app == app, ChatRequestRow.expires_at > time.time())
            return bool(session.scalar(select(answering)))
