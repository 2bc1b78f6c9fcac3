"""Losses of three fixed runs of twenty steps, as stored in golden.json.

`python -m tests.training.golden` writes the file again; do that only where a change of the losses is meant, and say why
in the commit.
"""

import json
import tempfile
from pathlib import Path

import torch

from tests.checkpoints import make_checkpoint
from tests.training.runs import SFT, LocalHost, losses, make_run, write_samples
from wmss.config import Hyperparameters
from wmss.training.loop import train

FILE = Path(__file__).with_name("golden.json")
RUNS = {"joint": {}, "frozen": {"weak_frozen": True}, "sft": SFT}
TOLERANCE = 1e-5
"""Relative. The order of float32 sums is all that may differ between machines: other micro-batches, and padding in
place of packing, or a second thread, moved these losses by less than 1e-7."""


def golden_losses(name, checkpoints, samples_file, folder, **knobs):
    """Losses of the twenty steps of one of `RUNS`."""
    values = Hyperparameters(**{"learning_rate": 1e-4, "micro_batch_tokens": 200, "weight_decay": 0.01, **knobs})
    host = LocalHost(folder)
    run = make_run(checkpoints, samples_file, **RUNS[name], num_epochs=4, checkpoint_every=20, hyperparameters=values)
    train(run, host)
    return losses(host)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoints = {
            "qwen3": make_checkpoint(folder / "qwen3", "qwen3", seed=1),
            "qwen3_wide": make_checkpoint(folder / "qwen3_wide", "qwen3", seed=3, hidden_size=96),
        }
        write_samples(folder / "samples.parquet", checkpoints["qwen3"])
        found = {run: golden_losses(run, checkpoints, folder / "samples.parquet", folder / run) for run in RUNS}
    FILE.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
