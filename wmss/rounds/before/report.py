"""The answer to a dry run, field by field. Importing this loads no torch."""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Finding(_Part):
    """Something to mend, or to know."""

    code: str
    message: str
    param: str | None


class FileFigures(_Part):
    """What is in a file, after cutting at `max_length`."""

    num_rows: int
    num_tokens: int
    num_targets: int
    """Supervised tokens."""
    supervised_share: float
    length_min: int
    length_median: float
    length_p95: float
    length_max: int
    num_cut: int
    """Rows longer than `max_length`."""
    cut_lines: list[int]
    """The first 20 of them."""
    longest_uncut: int
    """Tokens of the longest row before cutting, of those that are not left out."""
    num_dropped: int = 0
    """Rows left out: longer than `max_length`. Nothing else counts them."""
    dropped_lines: list[int] = []
    """The first 20 of them."""


class LevelFigures(_Part):
    """Tasks of one level."""

    level: int | None
    """Null = to be estimated."""
    num_training: int
    num_validation: int
    num_test: int
    num_ood: int


class TaskFigures(_Part):
    """What is in the task files of a self-improvement job."""

    levels: list[LevelFigures]
    prompt_min: int
    """Tokens, as of the next two."""
    prompt_median: float
    prompt_max: int
    end_token_ids: list[int]
    """What a response ends with."""
    first_prompt: str
    """As the model sees it."""


class Segment(_Part):
    """A run of tokens that are all supervised, or all not, as text."""

    text: str
    supervised: bool


class RenderedSample(_Part):
    """One row as the model sees it."""

    line: int
    num_tokens: int
    segments: list[Segment]


class PlannedPhase(_Part):
    """A phase, and for a training phase its steps."""

    name: str
    num_epochs: int | None = None
    num_steps: int | None = None
    at_most: bool = False
    """Whether `num_steps` is an upper bound: how many samples are drawn is known only after scoring."""
    num_samples: int | None = None
    """Samples of one epoch (of a bound: at most)."""


class Plan(_Part):
    """What would be done, in order."""

    phases: list[PlannedPhase]
    batch_size: int
    max_length: int
    peak_learning_rate: float
    max_rounds: int = 1
    """Of self-improvement: how often `plan` to `decide` run at most."""


class Cost(_Part):
    """Estimates; the formulas stand in `wmss/rounds/before/estimates.py`."""

    worker_memory_bytes: int
    """Peak of one training worker; on a GPU, of its memory."""
    num_workers: int
    engine_memory_bytes: int | None
    """Of the scoring or generation engine on a CPU; null if the job needs none, or takes its share of a GPU."""
    checkpoint_bytes: int
    """One checkpoint of the largest training phase."""
    disk_bytes: int
    """Everything the job leaves: the checkpoints that are kept, and the finished model."""
    temporary_disk_bytes: int
    """More that is needed for a while: a checkpoint is written before an older one goes; cached hidden states."""
    training_flops: float
    scoring_flops: float
    """Reading every sample once under each checkpoint; generated answers come on top."""
    training_s: float | None
    """Null where it was not measured."""
    basis: str
    """What the time rests on."""


class Report(_Part):
    """The answer to a dry run."""

    object: Literal["fine_tuning.job.validation"] = "fine_tuning.job.validation"
    valid: bool
    """Whether the job would be taken and pass its `validate` phase."""
    problems: list[Finding]
    warnings: list[Finding]
    training_file: FileFigures | None = None
    validation_file: FileFigures | None = None
    tasks: TaskFigures | None = None
    """Both files of a self-improvement job, in place of the two above."""
    sample: RenderedSample | None = None
    """The first row of the training file."""
    plan: Plan | None = None
    cost: Cost | None = None


class Machine(_Part):
    """Where a job would run, as far as that is known."""

    on_gpu: bool
    num_threads: int
    """Of a training worker."""
    num_cores: int
    kv_cache_bytes: int
    """That a CPU engine reserves."""
    memory_bytes: int | None = None
    free_disk_bytes: int | None = None
