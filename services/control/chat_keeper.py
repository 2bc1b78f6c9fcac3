"""Starts, watches and ends the chat engine: a part of the reconcile loop, which alone touches Ray."""

import logging
import time
from collections.abc import Callable
from typing import Protocol

from services.chat.chat_store import ChatState, ChatStore
from services.control.ray_jobs import DriverStatus
from services.jobs.tables import ChatEngineRow
from services.settings import Settings

logger = logging.getLogger(__name__)

FAILED_S = 15.0
"""How long a failed start is kept, for the requests that wait for it to be told why."""
GRACE_S = 30.0
"""How long requests under way may go on once their engine has to leave."""


class ChatCluster(Protocol):
    """What Ray does for the chat engine."""

    def status(self, submission_id: str) -> DriverStatus | None:
        """Status of the Ray job that deploys an engine."""

    def start_chat(self, app: str, checkpoint: str, model: str) -> None:
        """Start deploying an engine."""

    def error_tail(self, submission_id: str) -> str:
        """The last line that a Ray job wrote."""

    def stop(self, submission_id: str) -> None:
        """Stop a Ray job."""

    def delete_engines(self, apps: list[str]) -> None:
        """Delete Serve applications."""


class ChatKeeper:
    """Moves the engine in place on by one step at a time."""

    def __init__(
        self, store: ChatStore, cluster: ChatCluster, settings: Settings, has_room: Callable[[], bool]
    ) -> None:
        self._store = store
        self._cluster = cluster
        self._settings = settings
        self._has_room = has_room

    def pass_once(self) -> bool:
        """One step; True if the next one will not take long to be due."""
        row = self._store.engine()
        if row is None:
            return False
        match ChatState(row.state):
            case ChatState.WANTED:
                if self._store.move(row, ChatState.STARTING):
                    self._cluster.start_chat(row.app, row.path, row.model)
            case ChatState.STARTING:
                self._watch_start(row)
            case ChatState.READY:
                self._watch_use(row)
            case ChatState.FAILED:
                if time.time() > row.since + FAILED_S:
                    self._store.move(row, ChatState.LEAVING)
            case ChatState.LEAVING:
                if not self._store.in_use(row.app) or time.time() > row.since + GRACE_S:
                    self._cluster.delete_engines([row.app])
                    self._store.remove(row.app)
                    return False
        return row.state != ChatState.READY

    def _watch_start(self, row: ChatEngineRow) -> None:
        status = self._cluster.status(row.app)
        if status is DriverStatus.SUCCEEDED:
            self._store.move(row, ChatState.READY)
        elif status is None:
            self._fail(row, "Ray does not know its start; send the request again")
        elif status.ended:
            self._fail(row, self._cluster.error_tail(row.app))
        elif time.time() > row.since + self._settings.chat_start_s:
            self._cluster.stop(row.app)
            self._fail(row, f"not ready after {self._settings.chat_start_s:g} s (WMSS_CHAT_START_S)")

    def _fail(self, row: ChatEngineRow, reason: str) -> None:
        logger.error("the chat engine for %s could not start: %s", row.model, reason)
        text = f"the engine for {row.model} could not start: {reason} (Ray job {row.app})"
        self._store.move(row, ChatState.FAILED, error=text)

    def _watch_use(self, row: ChatEngineRow) -> None:
        idle = time.time() > row.used_at + self._settings.chat_idle_s and not self._store.in_use(row.app)
        if idle or not self._has_room():
            self._store.move(row, ChatState.LEAVING)
