"""One training phase as plain values: what to train, on which samples, and how."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from wmss.choices import KeptCheckpoint, MixingSchedule, Parallelism
from wmss.config import Hyperparameters
from wmss.config.base import BatchSize, Knobs, MixingWeight, Seed, Share, Steps, check_shares
from wmss.data.sampler import BatchSampler


class ModelSource(Knobs):
    """Where a branch comes from."""

    model_config = ConfigDict(strict=False)  # paths travel as JSON strings

    folder: Path
    """Checkpoint, an ordinary model folder."""
    adapter: Path | None = None
    """Adapter on top of it; None = none, or a new one on a branch that trains adapters."""
    states: Path | None = None
    """Cached hidden states, in place of running a frozen model."""


class TrainingRun(Knobs):
    """One training phase, complete: its JSON is the `train_loop_config` of every worker.

    Without weak models it trains on softmax(λ z_strong): supervised fine-tuning with λ = 1, else the control at
    matched scale. A changed copy is made with `wmss.config.base.changed`, which checks these bounds again.
    """

    model_config = ConfigDict(strict=False)  # paths and tuples travel as JSON strings and lists

    phase: Annotated[str, Field(min_length=1)]
    """Name of the phase, e.g. `sft`, `joint`, `joint_2`."""
    strong: ModelSource
    """Checkpoint the strong branch starts from."""
    weak: tuple[ModelSource, ...] = ()
    """Checkpoints of the weak branches."""
    weak_shares: tuple[Share, ...] = ()
    """How 1-λ is divided among them: one number each, which sum to 1."""
    weak_frozen: bool = False
    """Hold the weak branches fixed."""
    samples: Path
    """Tokenized samples (parquet)."""
    indices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    """Which of them to train on, counted from 0, duplicates included."""
    mixing_weight: MixingWeight
    """λ, the weight of the strong logits, in the first step."""
    mixing_weight_end: MixingWeight | None = None
    """λ of the last step; None = constant."""
    mixing_schedule: MixingSchedule = "constant"
    """How λ goes from one to the other."""
    batch_size: BatchSize
    """Samples per optimizer step over all workers."""
    num_epochs: Annotated[int, Field(ge=1)]
    """Passes over `indices`."""
    hyperparameters: Hyperparameters
    """How the models are trained."""
    parallelism: Parallelism = "ddp"
    """How several workers share the work."""
    stop_at_saturation: bool = False
    """End the phase as soon as the logit margin has flattened."""
    seed: Seed
    """Order of the samples, first weights of adapters, noise."""
    checkpoint_every: Steps
    """Steps between checkpoints."""
    held_out: Path | None = None
    """Tokenized samples (parquet) whose loss is read at every checkpoint; None = none."""
    keep: KeptCheckpoint = "last"
    """The checkpoint that is the phase's result."""

    @model_validator(mode="after")
    def _best_on_held_out_samples(self) -> Self:
        if self.keep == "best" and self.held_out is None:
            raise ValueError("keep: 'best' is told by held_out samples; give their file")
        return self

    @model_validator(mode="after")
    def _one_share_for_each_weak_model(self) -> Self:
        check_shares(self.weak_shares, len(self.weak))
        return self

    def sampler(self) -> BatchSampler:
        """The order of batches, and with it the number of steps."""
        return BatchSampler(
            self.indices,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            max_steps=self.hyperparameters.max_steps,
            seed=self.seed,
        )
