"""The job database: the source of truth."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, delete, func, null, or_, select, update
from sqlalchemy.exc import IntegrityError

from services.jobs.attempts import AttemptEnd
from services.jobs.database import Database, changed_row, insert_into
from services.jobs.fence import NewEvent, add_events, close_job, unchanged
from services.jobs.kinds import Kind
from services.jobs.states import ACTIVE, State
from services.jobs.tables import Base, CheckpointRow, EventRow, FileRow, JobRow, PhaseRow, WeakCheckpointRow
from wmss.ids import CHECKPOINT, event_number, new_id

FILE_FIELDS = ("training_file", "validation_file", "file")
"""Fields of a job's request that name uploaded files."""

Row = TypeVar("Row", bound=Base)
Listed = TypeVar("Listed", FileRow, JobRow, CheckpointRow, WeakCheckpointRow)


class UnknownFileError(ValueError):
    """A job names a file that is not there."""


class UnknownCheckpointError(ValueError):
    """A job names a registered checkpoint that is not there."""


class KeyTakenError(ValueError):
    """A job with this Idempotency-Key exists."""


class UnknownCursorError(ValueError):
    """`after` names nothing in the list."""


class Store(Database):
    """Files, registered checkpoints, and jobs with all that belongs to them; every method is one transaction."""

    # Files

    def add_file(self, file_id: str, *, filename: str, purpose: str, size: int, sha256: str) -> FileRow:
        """Record an uploaded file."""
        row = FileRow(
            id=file_id, created_at=int(time.time()), filename=filename, purpose=purpose, bytes=size, sha256=sha256
        )
        with self.sessions.begin() as session:
            session.add(row)
        return row

    def file(self, file_id: str) -> FileRow | None:
        """One file."""
        return self._one(FileRow, FileRow.id == file_id)

    def file_names(self, spec: Any) -> dict[str, str]:
        """What messages call the uploads that a job or a request names, by field: their owner's names, with the ids."""
        named = {param: getattr(spec, param, None) for param in FILE_FIELDS}
        rows = {param: self.file(file_id) for param, file_id in named.items() if file_id is not None}
        return {param: f"{row.filename} ({row.id})" for param, row in rows.items() if row is not None}

    def files(self, *, after: str | None, limit: int, oldest_first: bool) -> tuple[list[FileRow], bool]:
        """Newest first unless told otherwise, after the file with id `after`."""
        return self._page(FileRow, [], after=after, limit=limit, oldest_first=oldest_first)

    def delete_file(self, file_id: str) -> list[str]:
        """Forget a file unless live jobs need it; returns those jobs."""
        named = or_(*(JobRow.spec[key].as_string() == file_id for key in FILE_FIELDS))
        with self.sessions.begin() as session:
            # Locks the row against creates under way (`create_job`): the next statement then sees the jobs they make.
            session.execute(update(FileRow).where(FileRow.id == file_id).values(id=file_id))
            needed_by = select(JobRow.id).where(JobRow.state.in_(ACTIVE), named)
            deleted = delete(FileRow).where(FileRow.id == file_id, ~needed_by.exists())
            return [] if changed_row(session, deleted) else list(session.scalars(needed_by))

    # Registered checkpoints

    def add_weak_checkpoint(self, **values: Any) -> WeakCheckpointRow:
        """Register a checkpoint (the columns of its row). The same content under the same name keeps its row, which
        then says where it lies now."""
        row = {"id": new_id(CHECKPOINT), "created_at": int(time.time())} | values
        where = {column: values[column] for column in ("path", "revision", "files")}
        with self.sessions.begin() as session:
            insert = insert_into(session, WeakCheckpointRow).on_conflict_do_update(
                index_elements=["content_key"], set_=where
            )
            session.execute(insert, [row])
            same = select(WeakCheckpointRow).where(WeakCheckpointRow.content_key == values["content_key"])
            return session.scalars(same).one()

    def weak_checkpoint(self, checkpoint_id: str) -> WeakCheckpointRow | None:
        """One registered checkpoint."""
        return self._one(WeakCheckpointRow, WeakCheckpointRow.id == checkpoint_id)

    def weak_checkpoints(self, *, after: str | None, limit: int) -> tuple[list[WeakCheckpointRow], bool]:
        """Newest first, after the one with id `after`."""
        return self._page(WeakCheckpointRow, [], after=after, limit=limit)

    def is_registered(self, path: Path) -> bool:
        """Whether any registered checkpoint lies in this folder."""
        with self.sessions() as session:
            return session.scalar(select(WeakCheckpointRow.id).where(WeakCheckpointRow.path == str(path))) is not None

    def delete_weak_checkpoint(self, checkpoint_id: str) -> list[str]:
        """Forget a registered checkpoint unless live jobs name it; returns those jobs."""
        this = WeakCheckpointRow.id == checkpoint_id
        with self.sessions.begin() as session:
            # Locks the row against creates under way, as `delete_file` does.
            session.execute(update(WeakCheckpointRow).where(this).values(id=checkpoint_id))
            live = session.scalars(select(JobRow).where(JobRow.state.in_(ACTIVE)).order_by(JobRow.number))
            named_by = [job.id for job in live if checkpoint_id in registered_ids(job.paths)]
            if not named_by:
                session.execute(delete(WeakCheckpointRow).where(this))
            return named_by

    # Jobs, as their owner sees them

    def create_job(
        self,
        job_id: str,
        *,
        spec: dict[str, Any],
        paths: dict[str, Any],
        fine_tuned_model: str | None,
        request_digest: str,
        request_key: str | None = None,
        kind: Kind = Kind.FINE_TUNING,
    ) -> JobRow:
        """Accept a job: from here on it is never lost. A `request_key` that has a job raises `KeyTakenError`.

        `paths` are the folders of its models; under `registered`, by field, what is known of those that were named by
        the id of a registered checkpoint.
        """
        row = JobRow(
            id=job_id,
            created_at=int(time.time()),
            kind=kind,
            state=State.QUEUED,
            spec=spec,
            paths=paths,
            fine_tuned_model=fine_tuned_model,
            request_key=request_key,
            request_digest=request_digest,
            attempt=0,
            failed_attempts=0,
        )
        try:
            with self.sessions.begin() as session:
                session.add(row)
                session.flush()
                # Locked: a file deleted since it was looked up is seen, and one that is there stays. SQLite's write
                # lock, held since the insert, does the same.
                for file_id in map(spec.get, FILE_FIELDS):
                    file = select(FileRow.id).where(FileRow.id == file_id).with_for_update(read=True)
                    if file_id and session.scalar(file) is None:
                        raise UnknownFileError(file_id)
                for checkpoint_id in registered_ids(paths):
                    known = select(WeakCheckpointRow.id).where(WeakCheckpointRow.id == checkpoint_id)
                    if session.scalar(known.with_for_update(read=True)) is None:
                        raise UnknownCheckpointError(checkpoint_id)
                add_events(session, job_id, [NewEvent("Job accepted; it starts when a place is free")])
        except IntegrityError as error:
            if request_key is not None and self.job_of_key(request_key) is not None:
                raise KeyTakenError(request_key) from error
            raise
        return row

    def job_of_key(self, request_key: str) -> JobRow | None:
        """The job that a create with this Idempotency-Key made."""
        return self._one(JobRow, JobRow.request_key == request_key)

    def recent_job_of_body(self, request_digest: str, *, within_s: float) -> JobRow | None:
        """The newest job that a create with the same body made in the last `within_s` seconds."""
        with self.sessions() as session:
            query = select(JobRow).where(
                JobRow.request_digest == request_digest, JobRow.created_at >= time.time() - within_s
            )
            return session.scalars(query.order_by(JobRow.number.desc()).limit(1)).one_or_none()

    def job(self, job_id: str) -> JobRow | None:
        """One job."""
        return self._one(JobRow, JobRow.id == job_id)

    def job_of_model(self, name: str) -> JobRow | None:
        """The succeeded job that made the model of this name."""
        return self._one(JobRow, JobRow.fine_tuned_model == name, JobRow.state == State.SUCCEEDED)

    def jobs(
        self, *, after: str | None, limit: int, metadata: dict[str, str], kind: Kind = Kind.FINE_TUNING
    ) -> tuple[list[JobRow], bool]:
        """Of one kind, newest first, after the job with id `after`; the flag says whether more follow."""
        conditions = [JobRow.spec["metadata"][key].as_string() == value for key, value in metadata.items()]
        return self._page(JobRow, [JobRow.kind == kind, *conditions], after=after, limit=limit)

    def succeeded_jobs(self) -> list[JobRow]:
        """All jobs that did what was asked, oldest first."""
        with self.sessions() as session:
            query = select(JobRow).where(JobRow.state == State.SUCCEEDED).order_by(JobRow.number)
            return list(session.scalars(query))

    def request_cancel(self, job_id: str) -> State:
        """Mark a job for cancelling; a queued one is cancelled at once. Returns the state found."""
        with self.sessions.begin() as session:
            queued = (JobRow.id == job_id, JobRow.state == State.QUEUED)
            if close_job(session, job_id, queued, State.CANCELLED, error=None, message="Cancelled before it started"):
                return State.QUEUED
            running = (JobRow.id == job_id, JobRow.state == State.RUNNING)
            if changed_row(session, update(JobRow).where(*running).values(state=State.CANCELLING)):
                add_events(session, job_id, [NewEvent("Cancelling: stopping training and engines")])
                return State.RUNNING
            return State(session.scalars(select(JobRow.state).where(JobRow.id == job_id)).one())

    def events(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[EventRow], bool]:
        """Newest first."""
        number = None if after is None else event_number(after)
        with self.sessions() as session:
            query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.number.desc())
            if after is not None:
                known = select(EventRow.number).where(EventRow.job_id == job_id, EventRow.number == number)
                if number is None or session.scalar(known) is None:
                    raise UnknownCursorError(after)
                query = query.where(EventRow.number < number)
            rows = list(session.scalars(query.limit(limit + 1)))
        return rows[:limit], len(rows) > limit

    def trained_tokens(self, job_id: str) -> int:
        """Tokens of all training steps, each counted once however often a crash made it run."""
        with self.sessions() as session:
            tokens = func.sum(EventRow.data["num_tokens"].as_float())
            return int(session.scalar(select(tokens).where(EventRow.job_id == job_id, EventRow.type == "metrics")) or 0)

    def checkpoints(self, job_id: str, *, after: str | None, limit: int) -> tuple[list[CheckpointRow], bool]:
        """Newest first."""
        return self._page(CheckpointRow, [CheckpointRow.job_id == job_id], after=after, limit=limit)

    def checkpoint_of_model(self, name: str) -> CheckpointRow | None:
        """The training checkpoint with this model name."""
        return self._one(CheckpointRow, CheckpointRow.model_name == name)

    def phases(self, job_id: str) -> list[PhaseRow]:
        """In the order they began."""
        with self.sessions() as session:
            return list(
                session.scalars(select(PhaseRow).where(PhaseRow.job_id == job_id).order_by(PhaseRow.started_at))
            )

    def phase(self, job_id: str, name: str) -> PhaseRow | None:
        """One phase of a job, if it has begun."""
        return self._one(PhaseRow, PhaseRow.job_id == job_id, PhaseRow.name == name)

    # Jobs, as the reconcile loop sees them

    def active_jobs(self) -> list[JobRow]:
        """Jobs that have not ended, oldest first."""
        with self.sessions() as session:
            return list(session.scalars(select(JobRow).where(JobRow.state.in_(ACTIVE)).order_by(JobRow.number)))

    def claim(self, job: JobRow, *, message: str, level: str = "info", after: AttemptEnd | None = None) -> int | None:
        """Start the next attempt at a job, `after` one that ended so; None if the job has changed meanwhile.

        The old driver is fenced off at once.
        """
        now = time.time()
        failed, lost = after is not None and after.counts, after is not None and not after.counts
        with self.sessions.begin() as session:
            claimed = update(JobRow).where(*unchanged(job), JobRow.state.in_((State.QUEUED, State.RUNNING)))
            values = {
                "attempt": job.attempt + 1,
                "state": State.RUNNING,
                "failed_attempts": JobRow.failed_attempts + int(failed),
                "lost_since": func.coalesce(JobRow.lost_since, now) if lost else JobRow.lost_since,
                "attempt_end": null(),
                "claimed_at": now,
                "lease_expires_at": None,
            }
            if not changed_row(session, claimed.values(values)):
                return None
            add_events(session, job.id, [NewEvent(message, level=level)])
        return job.attempt + 1

    def note_end(self, job_id: str, attempt: int, end: AttemptEnd) -> None:
        """Say from outside how an attempt ended; nothing happens if it is not the current one any more."""
        with self.sessions.begin() as session:
            current = (JobRow.id == job_id, JobRow.attempt == attempt, JobRow.state == State.RUNNING)
            session.execute(update(JobRow).where(*current).values(attempt_end=end.as_json()))

    def end_job(self, job: JobRow, state: State, *, error: dict[str, Any] | None, message: str) -> bool:
        """Close a job from outside its driver; False if its attempt or state has changed meanwhile."""
        with self.sessions.begin() as session:
            return close_job(session, job.id, unchanged(job), state, error=error, message=message)

    # Internals

    def _one(self, table: type[Row], *conditions: ColumnElement[bool]) -> Row | None:
        with self.sessions() as session:
            return session.scalars(select(table).where(*conditions)).one_or_none()

    def _page(
        self,
        table: type[Listed],
        conditions: Sequence[ColumnElement[bool]],
        *,
        after: str | None,
        limit: int,
        oldest_first: bool = False,
    ) -> tuple[list[Listed], bool]:
        with self.sessions() as session:
            query = select(table).where(*conditions)
            query = query.order_by(table.number.asc() if oldest_first else table.number.desc())
            if after is not None:
                number = session.scalar(select(table.number).where(table.id == after, *conditions))
                if number is None:
                    raise UnknownCursorError(after)
                query = query.where(table.number > number if oldest_first else table.number < number)
            rows = list(session.scalars(query.limit(limit + 1)))
        return rows[:limit], len(rows) > limit


def registered_ids(paths: dict[str, Any]) -> list[str]:
    """Ids of the registered checkpoints that a job with these paths names."""
    return [entry["id"] for entry in paths.get("registered", {}).values()]
