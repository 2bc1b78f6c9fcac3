"""One training phase as plain values: what to train, on which samples, and how."""

from pathlib import Path

from pydantic import ConfigDict

from wmss.config import Hyperparameters, Knobs
from wmss.core.mixing import MixingSchedule
from wmss.data.sampler import BatchSampler
from wmss.training.parallel import Parallelism


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
    matched scale.
    """

    model_config = ConfigDict(strict=False)  # paths and tuples travel as JSON strings and lists

    phase: str
    """Name of the phase, e.g. `sft`, `joint`, `joint_2`."""
    strong: ModelSource
    """Checkpoint the strong branch starts from."""
    weak: tuple[ModelSource, ...] = ()
    """Checkpoints of the weak branches."""
    weak_shares: tuple[float, ...] = ()
    """How 1-λ is divided among them; sums to 1."""
    weak_frozen: bool = False
    """Hold the weak branches fixed."""
    samples: Path
    """Tokenized samples (parquet)."""
    indices: tuple[int, ...]
    """Which of them to train on, duplicates included."""
    mixing_weight: float = 1.0
    """λ, the weight of the strong logits, in the first step."""
    mixing_weight_end: float | None = None
    """λ of the last step; None = constant."""
    mixing_schedule: MixingSchedule = "constant"
    """How λ goes from one to the other."""
    batch_size: int
    """Samples per optimizer step over all workers."""
    num_epochs: int
    """Passes over `indices`."""
    hyperparameters: Hyperparameters
    """How the models are trained."""
    parallelism: Parallelism = "ddp"
    """How several workers share the work."""
    stop_at_saturation: bool = False
    """End the phase as soon as the logit margin has flattened."""
    seed: int
    """Order of the samples, first weights of adapters, noise."""
    checkpoint_every: int
    """Steps between checkpoints."""

    def sampler(self) -> BatchSampler:
        """The order of batches, and with it the number of steps."""
        return BatchSampler(
            self.indices,
            batch_size=self.batch_size,
            num_epochs=self.num_epochs,
            max_steps=self.hyperparameters.max_steps,
            seed=self.seed,
        )
