"""What may be asked of the service: a fine-tuning job, or entropy scores; and what their "auto" means."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from wmss.choices import KeptCheckpoint, Parallelism, TooLong
from wmss.config.base import FileName, Knobs, MaxLength, Metadata, ModelName, Seed, Steps, Suffix
from wmss.config.hyperparameters import Hyperparameters
from wmss.config.improvement import IMPROVEMENT_BATCH_SIZE, SelfImprovementMethod
from wmss.config.weak_driven import PRESET_BATCH_SIZE, WmssMethod
from wmss.errors import ConfigError


class SupervisedConfig(Knobs):
    """Plain supervised fine-tuning (`method.supervised`)."""

    hyperparameters: Hyperparameters = Hyperparameters()
    """How the model is trained."""


class SupervisedMethod(Knobs):
    """Plain supervised fine-tuning."""

    type: Literal["supervised"] = "supervised"
    """Which algorithm runs."""
    supervised: SupervisedConfig = SupervisedConfig()
    """Its knobs."""


class Resources(Knobs):
    """What a job may occupy."""

    num_workers: int = Field(default=1, ge=1, le=1024)
    """Training workers; each takes its share of every batch."""
    parallelism: Parallelism = "ddp"
    """Several workers: each with a copy of the model(s), or weights, gradients and optimizer divided among them."""
    use_gpu: bool | None = None
    """One GPU per training worker and engine; null = if the cluster has any."""


class Checkpointing(Knobs):
    """When training state is saved, for resuming and for use as a model."""

    every_steps: Steps = 100
    """Optimizer steps between checkpoints; the end of a phase always makes one."""
    keep_last: int = Field(default=2, ge=1, le=10_000)
    """Checkpoints kept per training phase; with keep "best" the best ones, and the newest to resume from."""
    keep: KeptCheckpoint = "last"
    """The checkpoint that a training phase goes on with: its last one, or the one with the lowest loss on the
    validation file, `valid_loss`."""


UNSUPPORTED = {
    "hyperparameters": 'deprecated by OpenAI; move it into the method: {"type": "supervised", "supervised": '
    '{"hyperparameters": ...}}, or "wmss" twice in place of "supervised"',
    "integrations": "not supported; remove it, and read the metrics of every step from the job's events",
}
"""Members of OpenAI's request that may only be empty, and what to do instead."""


class JobSpec(Knobs):
    """A fine-tuning job, as posted to `/v1/fine_tuning/jobs` or written in a TOML file."""

    model: ModelName
    """Start checkpoint: a folder under an allowed root, or the name of a finished job's model."""
    training_file: FileName
    """File id (REST) or path (TOML, CLI) of JSON lines: chat `messages`, or `prompt` and `completion`; with
    self_improvement, tasks: a prompt with the answer a verifier compares, and a level."""
    validation_file: FileName | None = None
    """Held-out file of the same form, for the `evaluate` phase; null = that phase is skipped. Self-improvement needs
    it: held-out tasks decide when rounds stop, and which round's model is kept."""
    method: Annotated[SupervisedMethod | WmssMethod | SelfImprovementMethod, Field(discriminator="type")] = (
        SupervisedMethod()
    )
    """The algorithm and its knobs."""
    seed: Seed = 42
    """Seed of the draw and of the order of samples."""
    suffix: Suffix | None = None
    """Part of the finished model's name, up to 64 letters, digits, '.', '_' or '-'."""
    metadata: Metadata | None = None
    """Up to 16 pairs of your own, for filtering the job list; keys of up to 64 characters without quotes, brackets or
    backslashes, values of up to 512."""
    resources: Resources = Resources()
    """What the job may occupy."""
    checkpointing: Checkpointing = Checkpointing()
    """When training state is saved."""

    @model_validator(mode="before")
    @classmethod
    def _nothing_asked_of_what_is_not_supported(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if key not in UNSUPPORTED or value not in (None, [], {})}

    @model_validator(mode="after")
    def _held_out_tasks(self) -> Self:
        if isinstance(self.method, SelfImprovementMethod) and self.validation_file is None:
            raise ValueError(
                "validation_file: required with self_improvement, held-out tasks decide when rounds stop; add one"
            )
        return self

    @model_validator(mode="after")
    def _held_out_rows(self) -> Self:
        read_losses = {
            "checkpointing.keep": self.checkpointing.keep == "best",
            f"method.{self.method.type}.hyperparameters.eval_every": self.hyperparameters.eval_every is not None,
        }
        for knob in (knob for knob, given in read_losses.items() if given):
            if isinstance(self.method, SelfImprovementMethod):
                raise ValueError(f"{knob}: unused with self_improvement, whose rounds are judged by answers; remove it")
            if self.validation_file is None:
                raise ValueError(
                    f"{knob}: expected a validation_file, whose loss it reads; add one, or remove the knob"
                )
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of whichever method was chosen."""
        method = self.method
        match method:
            case WmssMethod():
                return method.wmss.hyperparameters
            case SelfImprovementMethod():
                return method.self_improvement.hyperparameters
            case SupervisedMethod():
                return method.supervised.hyperparameters


class ScoreSpec(Knobs):
    """A request for entropy scores, as posted to `/v1/entropy_scores`: every sample of a file under each checkpoint."""

    file: FileName
    """File id (REST) or path (CLI) of JSON lines, as a training file."""
    models: list[ModelName] = Field(min_length=1, max_length=8)
    """1 to 8 checkpoints with one tokenizer, each scored in turn; the first one's chat template renders the file."""
    max_length: MaxLength = "auto"
    """Tokens per sample; for longer rows see `too_long`. "auto" = 4096 or the shortest context if shorter."""
    too_long: TooLong = "auto"
    """Rows longer than `max_length`: "refuse" the file, "drop" them, or "cut" their ends; a row that has no supervised
    token left then is dropped. "auto" = cut, but such rows refuse the file."""
    tokens: bool = False
    """A table of every supervised token as well as the one of every sample."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the models; entropies are float32 sums either way. Scores of two precisions are not comparable."""
    num_replicas: int = Field(default=1, ge=1, le=1024)
    """Engines that share the samples of one checkpoint, each with a CPU or a GPU of its own."""
    use_gpu: bool | None = None
    """One GPU per engine; null = if the cluster has any."""
    metadata: Metadata | None = None
    """Up to 16 pairs of your own, as in a job."""

    @property
    def resources(self) -> Resources:
        """What the request may occupy, in a job's terms."""
        return Resources(num_workers=self.num_replicas, use_gpu=self.use_gpu)


def resolve_batch_size(spec: JobSpec, num_samples: int) -> int:
    """Samples per optimizer step: as given, or min(the preset's, an eighth of the samples), at least 1; in
    self-improvement 32."""
    given = spec.hyperparameters.batch_size
    if given != "auto":
        return given
    if isinstance(spec.method, SelfImprovementMethod):
        return IMPROVEMENT_BATCH_SIZE
    preset = spec.method.wmss.preset if isinstance(spec.method, WmssMethod) else "wmss-v2"
    return max(1, min(PRESET_BATCH_SIZE[preset], num_samples // 8))


def resolve_max_length(spec: JobSpec | ScoreSpec, context_length: int) -> int:
    """Tokens per sample: as given (refused above the model's context), or 4096 capped by the context."""
    if isinstance(spec, JobSpec):
        given, param = spec.hyperparameters.max_length, f"method.{spec.method.type}.hyperparameters.max_length"
    else:
        given, param = spec.max_length, "max_length"
    if given == "auto":
        return min(4096, context_length)
    if given > context_length:
        raise ConfigError(
            f"max_length: expected at most the model's context of {context_length} tokens, got {given}", param=param
        )
    return given
