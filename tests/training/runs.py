"""Small training runs in this process."""

import contextlib
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from wmss.config import Hyperparameters
from wmss.data.dataset import Sample
from wmss.data.tokenization import save_tokenized, tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.tasks.arithmetic import make_problems
from wmss.training.run import ModelSource, TrainingRun

NUM_SAMPLES = 40
SFT = {"phase": "sft", "weak": (), "weak_shares": (), "mixing_weight": 1.0}


class LocalHost:
    """A `Host` in this process; `die_at` raises after that step, as a crash would."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, folder: Path, *, die_at: int | None = None) -> None:
        self.folder = folder
        self.metrics: list[dict[str, float]] = []
        self._die_at = die_at

    @contextlib.contextmanager
    def latest_checkpoint(self):
        found = sorted(self.folder.glob("step-*")) if self.folder.exists() else []
        yield found[-1] if found else None

    def log(self, metrics):
        self.metrics.append(metrics)
        if metrics["step"] == self._die_at:
            raise KeyboardInterrupt

    def checkpoint(self, folder, metrics):
        self.saved = metrics
        # Under its name only when whole: a kill may come at any moment.
        partial = self.folder / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder, partial)
        partial.rename(self.folder / f"step-{int(metrics['step']):04d}")


def write_samples(path: Path, checkpoint: Path) -> None:
    """Forty short problems, tokenized."""
    rows = make_problems(NUM_SAMPLES, seed=5)
    samples = [Sample(line=i, messages=tuple(row["messages"])) for i, row in enumerate(rows, start=1)]
    tokenized, _ = tokenize_samples(samples, load_tokenizer(checkpoint), max_length=256, source="x")
    save_tokenized(tokenized, path)


def make_run(checkpoints, samples_file, **changes):
    values = {
        "phase": "joint",
        "strong": ModelSource(folder=checkpoints["qwen3"]),
        "weak": (ModelSource(folder=checkpoints["qwen3_wide"]),),
        "weak_shares": (1.0,),
        "samples": samples_file,
        "indices": tuple(range(NUM_SAMPLES)),
        "mixing_weight": 0.5,
        "weak_frozen": False,
        "batch_size": 8,
        "num_epochs": 2,
        "hyperparameters": Hyperparameters(learning_rate=1e-3, micro_batch_tokens=200),
        "seed": 3,
        "checkpoint_every": 4,
    }
    return TrainingRun(**(values | changes))


def losses(host):
    return [m["train_loss"] for m in host.metrics]


def last_weights(host):
    folder = sorted(host.folder.glob("step-*"))[-1]
    weak = folder / "weak_0" / "model.safetensors"
    return load_file(folder / "strong" / "model.safetensors"), load_file(weak) if weak.exists() else None
