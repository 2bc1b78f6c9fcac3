"""What the service answers: OpenAI's object shapes, with our additions named `x_...`."""

from collections.abc import Sequence
from typing import Any, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from services.jobs.kinds import Kind
from services.jobs.states import State, public_status
from services.jobs.tables import CheckpointRow, EventRow, JobRow, PhaseRow
from wmss.config import ScoreSpec
from wmss.ids import event_id
from wmss.rounds.improvement.round_records import Decision, SelectedResponses
from wmss.rounds.journal import parsed
from wmss.rounds.phase_records import RequestScored, RequestValidated
from wmss.rounds.phases import score_phases

Item = TypeVar("Item")
OPENAI_KNOBS = ("n_epochs", "batch_size", "learning_rate_multiplier")
"""What OpenAI's job object repeats at its top."""


class Page(BaseModel, Generic[Item]):
    """A list; the id of its last item is the `after` of the next page."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class RowObject(BaseModel):
    """What is shown of a row as it is kept; a field with another name in the row says so."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, row: object) -> Self:
        """From its row."""
        return cls.model_validate(row)


class FileObject(RowObject):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    x_sha256: str = Field(validation_alias="sha256")


class DeletedFile(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class WeakCheckpointObject(RowObject):
    """A registered checkpoint; its id can be used wherever a job names a model."""

    id: str
    object: Literal["weak_checkpoint"] = "weak_checkpoint"
    created_at: int
    model: str = Field(validation_alias="name")
    path: str
    revision: str | None
    architecture: str
    num_parameters: int
    vocab_size: int
    weights_digest: str
    tokenizer_digest: str
    metadata: dict[str, str] | None = Field(validation_alias="labels")


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
            **row.spec,  # as it was accepted, also where a later release has other defaults
        )


class EventObject(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event", "entropy_scores.event"]
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None

    @classmethod
    def of(cls, row: EventRow, kind: str) -> "EventObject":
        """From its row and the kind of its job."""
        return cls(
            id=event_id(row.number),
            object="entropy_scores.event" if kind == Kind.ENTROPY_SCORES else "fine_tuning.job.event",
            created_at=row.created_at,
            level=row.level,
            type=row.type,
            message=row.message,
            data=row.data,
        )


_LOSSES = ("train_loss", "valid_loss")


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
            metrics={"step": row.step, **{name: row.metrics[name] for name in _LOSSES if name in row.metrics}},
            x_phase=row.phase,
        )


class PhaseProgress(BaseModel):
    """How far a phase is: `done` of `total` in its own unit (steps, samples, problems). A phase that reads several
    files, or asks several models, counts their sum: `done` goes back only when a driver or a worker starts again."""

    name: str
    status: Literal["pending", "running", "finished"]
    started_at: float | None = None
    finished_at: float | None = None
    done: int = 0
    total: int = 0

    @classmethod
    def in_order(cls, names: Sequence[str], rows: Sequence[PhaseRow]) -> list[Self]:
        """All phases of a job in order, those to come included."""
        known = {row.name: row for row in rows}
        return [cls.of(known[name]) if name in known else cls(name=name, status="pending") for name in names]

    @classmethod
    def of(cls, row: PhaseRow, **more: Any) -> Self:
        """From its row."""
        return cls(
            name=row.name,
            status="running" if row.finished_at is None else "finished",
            started_at=row.started_at,
            finished_at=row.finished_at,
            done=row.done,
            total=row.total,
            **more,
        )


_UNSEEN = ("indices", "estimated_levels", "state")
"""What phases record for the next ones: a file's worth of numbers, and what else is told in /rounds."""


class PhaseObject(PhaseProgress):
    """The same with what the phase left."""

    # Shown as it is stored, not through its record: jobs of every release before are listed here.

    artifacts: dict[str, Any] | None = None

    @classmethod
    def of(cls, row: PhaseRow, **more: Any) -> Self:
        """From its row."""
        artifacts = {k: v for k, v in row.artifacts.items() if k not in _UNSEEN} if row.artifacts else row.artifacts
        return super().of(row, artifacts=artifacts, **more)


class ScoreResult(BaseModel):
    """What scoring a file under one checkpoint gave (entropies and NLL in nats), made with what, and at what cost."""

    model: str
    digest: str
    """SHA-256 of weights, architecture and tokenizer."""
    provenance: dict[str, Any]
    """Engine, version, precision and batch invariance: scores that differ in any of them are not comparable."""
    mean_entropy: float
    """Mean over samples of the mean over supervised tokens."""
    nll: float
    """Mean over supervised tokens."""
    top1: float
    """Share of supervised tokens that no token is likelier than."""
    num_samples: int
    num_tokens: int
    num_targets: int
    num_tokens_scored: int
    """Computed for this request; 0 = the answer was known."""
    seconds: float
    """Of scoring, without the start of an engine."""


class ScoresObject(BaseModel):
    """A request for entropy scores, every default resolved, with the results of the checkpoints scored so far."""

    id: str
    object: Literal["entropy_scores"] = "entropy_scores"
    created_at: int
    finished_at: int | None
    status: str
    file: str
    models: list[str]
    max_length: int | str
    too_long: str = "auto"
    tokens: bool
    dtype: str
    num_replicas: int
    use_gpu: bool | None
    metadata: dict[str, str] | None
    progress: list[PhaseProgress]
    results: list[ScoreResult]
    error: dict[str, Any] | None

    @classmethod
    def of(cls, row: JobRow, phases: Sequence[PhaseRow]) -> "ScoresObject":
        """From its row and those of its phases."""
        names = score_phases(ScoreSpec.model_validate(row.spec))
        left = {phase.name: phase.artifacts for phase in phases if phase.artifacts is not None}
        results = []
        for name, model in zip(names[1:], row.spec["models"], strict=True):
            if name in left:
                counts = parsed(left["validate"], "validate", RequestValidated)
                scored = parsed(left[name], name, RequestScored)
                results.append(ScoreResult.model_validate({"model": model} | dict(counts) | dict(scored)))
        return cls(
            id=row.id,
            created_at=row.created_at,
            finished_at=row.finished_at,
            status=public_status(State(row.state)),
            progress=PhaseProgress.in_order(names, phases),
            results=results,
            error=row.error,
            **row.spec,
        )


class SampleObject(BaseModel):
    """A training sample as a draw saw it; null is what the draw did not read, and the text of a deleted file."""

    id: str
    object: Literal["fine_tuning.job.sample"] = "fine_tuning.job.sample"
    line: int
    num_targets: int | None
    weak_entropy: float | None
    strong_entropy: float | None
    entropy_delta: float | None
    """H_strong - H_weak: below 0 where training has made the model surer."""
    weak_nll: float | None
    strong_nll: float | None
    weight: float
    """Probability of each draw; 1 over all samples."""
    times_drawn: int
    prompt: str | None = None
    completion: str | None = None
    shortened: bool | None = None


class SamplePage(Page[SampleObject]):
    """Samples of one round's draw; `total` counts those that pass the filters, on all pages."""

    total: int
    round: int


class RoundObject(BaseModel):
    """A round of self-improvement, as it was decided."""

    id: str
    object: Literal["fine_tuning.job.round"] = "fine_tuning.job.round"
    round: int
    label: str
    """improving, flat, saturated, starved or regressed, as the feedback loop's theory reads it."""
    reason: str
    levels: list[dict[str, Any]]
    """Per level: responses sampled and accepted, with the acceptance's 90 % interval, and those learned from."""
    held_out: dict[str, Any]
    """Per level: pass@1 with its standard error, and pass@k, of the round's model."""
    reading: dict[str, Any] | None
    """Estimated difficulty, take-off threshold V₋ and ceiling V₊; null where the round did not train."""
    selection: dict[str, int]
    """Responses left after each step of the selection."""
    manifest_sha256: str
    """Of what was learned from, in order."""
    best_round: int
    """The best one so far on the held-out tasks; 0 = the start model."""
    stop: dict[str, Any] | None
    """Why no round followed; null if one did."""

    @classmethod
    def of(cls, number: int, decision: Decision, selected: SelectedResponses) -> "RoundObject":
        """From what the phases `decide` and `select` of the round recorded."""
        shown = decision.model_dump(mode="json", include={"label", "reason", "levels", "held_out", "reading", "stop"})
        return cls(
            id=f"round-{number}",
            round=number,
            selection=selected.counts,
            manifest_sha256=selected.manifest_sha256,
            best_round=decision.state.best.round,
            **shown,
        )


class RolloutObject(BaseModel):
    """One response, and what the verifier said of it."""

    id: str
    object: Literal["fine_tuning.job.rollout"] = "fine_tuning.job.rollout"
    round: int
    line: int
    """Of its task in the training file."""
    level: int
    purpose: str
    sample: int
    """Number among the responses to this task."""
    seed: int
    text: str
    finish_reason: str
    logprob: float
    """Sum over its tokens, in nats, under the model that gave it."""
    label: str
    """The verdict; only `correct` ones that ended by themselves are learned from."""
    detail: str
    ms: float
    """What the verdict took."""


class RolloutPage(Page[RolloutObject]):
    """Responses of one round; `total` counts those that pass the filters, on all pages."""

    total: int
    round: int


class ModelObject(RowObject):
    """A model that can be named in a job."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(validation_alias="created_at")
    owned_by: str
