"""Who may change a job: its driver while its attempt is the current one, others while the job is as they read it.

What a driver writes goes through `Fence`, which touches the job's row first under the condition that the attempt is
still the current one; a driver that lost its job can change nothing.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, update
from sqlalchemy.orm import Session

from services.jobs.attempts import AttemptEnd
from services.jobs.database import Database, changed_row, insert_into
from services.jobs.states import State
from services.jobs.tables import CheckpointRow, EventRow, JobRow, PhaseRow
from wmss.config.job import Checkpointing
from wmss.ids import JOB_CHECKPOINT, new_id


class LostLeaseError(RuntimeError):
    """This driver's attempt is no longer the current one: another driver has the job, or the job has ended."""


@dataclass(frozen=True)
class NewEvent:
    """An event to be recorded."""

    message: str
    level: str = "info"
    type: str = "message"
    data: dict[str, Any] | None = None
    key: str | None = None


class Fence:
    """One driver's (or its workers') hand on the database, valid while its attempt is the current one."""

    def __init__(self, database: Database, job_id: str, attempt: int, *, lease_s: float) -> None:
        self._database = database
        self.job_id = job_id
        self.attempt = attempt
        self._lease_s = lease_s

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A transaction that renews the lease; raises `LostLeaseError` if the attempt is not the current one."""
        with self._database.sessions.begin() as session:
            current = (JobRow.id == self.job_id, JobRow.attempt == self.attempt, JobRow.state == State.RUNNING)
            renewed = update(JobRow).where(*current).values(lease_expires_at=time.time() + self._lease_s)
            if not changed_row(session, renewed):
                raise LostLeaseError(f"attempt {self.attempt} at {self.job_id} is not the current one any more")
            yield session

    def _made_progress(self, session: Session) -> None:
        session.execute(update(JobRow).where(JobRow.id == self.job_id).values(failed_attempts=0, lost_since=None))

    def renew(self) -> None:
        """Keep the lease."""
        with self.transaction():
            pass

    def record_events(self, events: Sequence[NewEvent]) -> None:
        """Tell the owner."""
        with self.transaction() as session:
            add_events(session, self.job_id, events)

    def start_phase(self, name: str) -> None:
        """A phase begins, or begins again."""
        with self.transaction() as session:
            session.merge(
                PhaseRow(job_id=self.job_id, name=name, started_at=time.time(), finished_at=None, done=0, total=0)
            )

    def progress(self, name: str, done: int, total: int) -> None:
        """How far a phase is."""
        with self.transaction() as session:
            session.execute(
                update(PhaseRow)
                .where(PhaseRow.job_id == self.job_id, PhaseRow.name == name)
                .values(done=done, total=total)
            )

    def finish_phase(self, name: str, artifacts: dict[str, Any]) -> None:
        """A phase is done."""
        with self.transaction() as session:
            self._made_progress(session)
            row = session.get_one(PhaseRow, (self.job_id, name))
            row.finished_at, row.artifacts = time.time(), artifacts
            row.total = max(row.total, 1)
            row.done = row.total

    def record_checkpoint(
        self,
        *,
        phase: str,
        step: int,
        path: Path,
        model_name: str,
        metrics: dict[str, Any],
        checkpointing: Checkpointing,
    ) -> None:
        """A checkpoint exists; those of the phase that retention has removed are forgotten."""
        with self.transaction() as session:
            same_phase = (CheckpointRow.job_id == self.job_id, CheckpointRow.phase == phase)
            newest = session.scalar(select(func.max(CheckpointRow.step)).where(*same_phase))
            if newest is None or step > newest:  # a resumed run records the checkpoint that it starts from once more
                self._made_progress(session)
            session.execute(delete(CheckpointRow).where(*same_phase, CheckpointRow.step == step))
            session.add(
                CheckpointRow(
                    id=new_id(JOB_CHECKPOINT),
                    job_id=self.job_id,
                    created_at=int(time.time()),
                    phase=phase,
                    step=step,
                    path=str(path),
                    model_name=model_name,
                    metrics=metrics,
                )
            )
            session.flush()
            rows = session.scalars(select(CheckpointRow).where(*same_phase).order_by(CheckpointRow.step.desc())).all()
            for row in forgotten(rows, checkpointing):
                session.delete(row)

    def note_end(self, end: AttemptEnd) -> None:
        """Say how this attempt ends; the job goes on."""
        with self.transaction() as session:
            session.execute(update(JobRow).where(JobRow.id == self.job_id).values(attempt_end=end.as_json()))

    def end(self, state: State, *, error: dict[str, Any] | None, message: str, trained_tokens: int | None) -> None:
        """Close the job."""
        with self.transaction() as session:
            close_job(session, self.job_id, (JobRow.id == self.job_id,), state, error=error, message=message)
            session.execute(update(JobRow).where(JobRow.id == self.job_id).values(trained_tokens=trained_tokens))


def forgotten(rows: Sequence[CheckpointRow], checkpointing: Checkpointing) -> Sequence[CheckpointRow]:
    """Those of a phase's checkpoints, newest first, that retention has removed: Ray Train's rule, by loss or age."""
    if checkpointing.keep == "last":
        return rows[checkpointing.keep_last :]
    ranked = sorted(rows, key=lambda row: (row.metrics["valid_loss"], -row.step))
    return [row for row in ranked[checkpointing.keep_last :] if row is not rows[0]]


# Every change of state is one conditional UPDATE: a read first would let two writers both believe they won.


def unchanged(job: JobRow) -> tuple[ColumnElement[bool], ...]:
    """The job is still as this row says."""
    return (
        JobRow.id == job.id,
        JobRow.attempt == job.attempt,
        JobRow.state == job.state,
        JobRow.failed_attempts == job.failed_attempts,  # less, once there is progress
    )


def close_job(
    session: Session,
    job_id: str,
    conditions: Sequence[ColumnElement[bool]],
    state: State,
    *,
    error: dict[str, Any] | None,
    message: str,
) -> bool:
    """Close a job if the conditions hold."""
    closed = update(JobRow).where(*conditions)
    values = {"state": state, "error": error, "finished_at": int(time.time()), "lease_expires_at": None}
    if not changed_row(session, closed.values(values)):
        return False
    add_events(session, job_id, [NewEvent(message, level="error" if state is State.FAILED else "info")])
    return True


def add_events(session: Session, job_id: str, events: Sequence[NewEvent]) -> None:
    """Record events. One message after the same message is counted there, not told again."""
    if not events or (len(events) == 1 and _is_counted(session, job_id, events[0])):
        return
    rows = [
        {
            "job_id": job_id,
            "key": item.key,
            "created_at": int(time.time()),
            "level": item.level,
            "type": item.type,
            "message": item.message,
            "data": item.data,
        }
        for item in events
    ]
    insert = insert_into(session, EventRow).on_conflict_do_nothing(index_elements=["job_id", "key"])
    session.execute(insert, rows)


def _is_counted(session: Session, job_id: str, event: NewEvent) -> bool:
    """Whether the job's newest event says the same; it then says how often, and when last."""
    if event.type != "message" or event.key is not None or event.data is not None:
        return False
    query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.number.desc()).limit(1)
    newest = session.scalars(query).one_or_none()
    if newest is None or (newest.type, newest.level, newest.message) != (event.type, event.level, event.message):
        return False
    if newest.key is not None or (newest.data is not None and "times" not in newest.data):
        return False
    times = 1 if newest.data is None else int(newest.data["times"])
    newest.data = {"times": times + 1, "last_at": int(time.time())}
    return True
