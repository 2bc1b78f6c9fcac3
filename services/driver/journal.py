"""A job's memory in the job database."""

from typing import Any

from services.jobs.fence import Fence, NewEvent
from services.jobs.store import Store
from services.settings import Settings
from wmss.rounds.journal import Artifacts


class DatabaseJournal:
    """The library's `Journal`, kept in the job database under this driver's fence."""

    def __init__(self, store: Store, fence: Fence, job_id: str, settings: Settings) -> None:
        self._fence = fence
        self._settings = settings
        self._finished = {row.name: row.artifacts for row in store.phases(job_id) if row.artifacts is not None}

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase recorded, in this attempt or an earlier one."""
        return self._finished.get(phase)

    def start(self, phase: str) -> None:
        """A phase begins."""
        self._fence.start_phase(phase)

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done."""
        self._fence.finish_phase(phase, artifacts)
        self._finished[phase] = artifacts

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase is."""
        self._fence.progress(phase, done, total)

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Tell the owner."""
        message = self._settings.for_clients(message)
        self._fence.record_events([NewEvent(message, level=level, data=data)])
