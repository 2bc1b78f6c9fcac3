"""What the service answers: OpenAI's object shapes, with our additions named `x_...`."""

from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel

from services.jobs.states import State, public_status
from services.jobs.tables import CheckpointRow, EventRow, FileRow, JobRow, PhaseRow, WeakCheckpointRow
from services.models import KnownModel
from wmss.config import JobSpec
from wmss.rounds.phases import phases_of

Item = TypeVar("Item")
OPENAI_KNOBS = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""What OpenAI's job object repeats at its top."""


class Page(BaseModel, Generic[Item]):
    """A list; the id of its last item is the `after` of the next page."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    x_sha256: str

    @classmethod
    def of(cls, row: FileRow) -> "FileObject":
        """From its row."""
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=row.created_at,
            filename=row.filename,
            purpose=row.purpose,
            x_sha256=row.sha256,
        )


class DeletedFile(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class WeakCheckpointObject(BaseModel):
    """A registered checkpoint; its id can be used wherever a job names a model."""

    id: str
    object: Literal["weak_checkpoint"] = "weak_checkpoint"
    created_at: int
    model: str
    path: str
    revision: str | None
    architecture: str
    num_parameters: int
    vocab_size: int
    weights_digest: str
    tokenizer_digest: str
    metadata: dict[str, str] | None

    @classmethod
    def of(cls, row: WeakCheckpointRow) -> "WeakCheckpointObject":
        """From its row."""
        return cls(
            id=row.id,
            created_at=row.created_at,
            model=row.name,
            path=row.path,
            revision=row.revision,
            architecture=row.architecture,
            num_parameters=row.num_parameters,
            vocab_size=row.vocab_size,
            weights_digest=row.weights_digest,
            tokenizer_digest=row.tokenizer_digest,
            metadata=row.labels,
        )


class DeletedWeakCheckpoint(BaseModel):
    """A registered checkpoint that is forgotten."""

    id: str
    object: Literal["weak_checkpoint"] = "weak_checkpoint"
    deleted: Literal[True] = True


class JobObject(BaseModel):
    """A fine-tuning job; `method` and the rest are echoed with every default resolved."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int
    finished_at: int | None
    status: str
    x_state: str
    x_attempt: int
    model: str
    fine_tuned_model: str | None
    training_file: str
    validation_file: str | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    seed: int
    suffix: str | None
    metadata: dict[str, str] | None
    resources: dict[str, Any]
    checkpointing: dict[str, Any]
    trained_tokens: int | None
    result_files: list[str] = []
    organization_id: str = "local"
    error: dict[str, Any] | None

    @classmethod
    def of(cls, row: JobRow) -> "JobObject":
        """From its row."""
        state = State(row.state)
        method = row.spec["method"]
        knobs = method[method["type"]]["hyperparameters"]
        return cls(
            id=row.id,
            created_at=row.created_at,
            finished_at=row.finished_at,
            status=public_status(state),
            x_state=state,
            x_attempt=row.attempt,
            fine_tuned_model=row.fine_tuned_model if state is State.SUCCEEDED else None,
            hyperparameters={name: knobs[name] for name in OPENAI_KNOBS if name in knobs},
            trained_tokens=row.trained_tokens,
            error=row.error,
            **row.spec,  # as it was accepted, whatever later versions would say of it
        )


class EventObject(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: EventRow) -> "EventObject":
        """From its row."""
        return cls(
            id=f"ftevent-{row.number}",
            created_at=row.created_at,
            level=row.level,
            type=row.type,
            message=row.message,
            data=row.data,
        )


class CheckpointObject(BaseModel):
    """A training checkpoint; its model name can be used as `model` of a further job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any]
    x_phase: str

    @classmethod
    def of(cls, row: CheckpointRow) -> "CheckpointObject":
        """From its row."""
        return cls(
            id=row.id,
            created_at=row.created_at,
            fine_tuning_job_id=row.job_id,
            fine_tuned_model_checkpoint=row.model_name,
            step_number=row.step,
            metrics={"step": row.step, "train_loss": row.metrics["train_loss"]},
            x_phase=row.phase,
        )


class PhaseObject(BaseModel):
    """A phase of a job: `done` of `total` in the phase's own unit (steps, samples, problems)."""

    name: str
    status: Literal["pending", "running", "finished"]
    started_at: float | None = None
    finished_at: float | None = None
    done: int = 0
    total: int = 0
    artifacts: dict[str, Any] | None = None

    @classmethod
    def plan(cls, job: JobRow, rows: list[PhaseRow]) -> list["PhaseObject"]:
        """All phases of a job in order, those to come included."""
        known = {row.name: row for row in rows}
        names = phases_of(JobSpec.model_validate(job.spec))
        return [cls._of(name, known.get(name)) for name in names]

    @classmethod
    def _of(cls, name: str, row: PhaseRow | None) -> "PhaseObject":
        if row is None:
            return cls(name=name, status="pending")
        # The drawn indices are a file's worth of numbers; they stay in the database.
        artifacts = {k: v for k, v in row.artifacts.items() if k != "indices"} if row.artifacts else row.artifacts
        return cls(
            name=name,
            status="running" if row.finished_at is None else "finished",
            started_at=row.started_at,
            finished_at=row.finished_at,
            done=row.done,
            total=row.total,
            artifacts=artifacts,
        )


class ModelObject(BaseModel):
    """A model that can be named in a job."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str

    @classmethod
    def of(cls, model: KnownModel) -> "ModelObject":
        """From the registry."""
        return cls(id=model.id, created=model.created_at, owned_by=model.owned_by)
