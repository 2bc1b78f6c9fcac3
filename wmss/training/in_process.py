"""Weak-driven training in the calling process: a file and two checkpoints in, the better model out. No service."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from wmss.config import Hyperparameters, JobSpec, SupervisedMethod, resolve_batch_size, resolve_max_length
from wmss.config.job import SupervisedConfig
from wmss.data.tokenization import save_tokenized, tokenize_file
from wmss.errors import ConfigError
from wmss.models.checkpoints import export_model
from wmss.models.examination import examine_folder
from wmss.models.loading import check_pair, context_length, load_tokenizer
from wmss.records import STRONG_FOLDER, TokenizedSample
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun

Report = Callable[[dict[str, float]], None]
"""Called with the metrics of every step: `step`, `num_steps`, `train_loss`, `learning_rate`, ..."""


def train_jointly(
    file: str | Path,
    *,
    strong: str | Path,
    weak: str | Path,
    output: str | Path,
    mixing_weight: float,
    indices: Sequence[int] | npt.NDArray[np.int64] | None = None,
    weak_update: Literal["joint", "frozen"] = "joint",
    hyperparameters: Hyperparameters | None = None,
    seed: int = 42,
    report: Report = lambda metrics: None,
) -> dict[str, float]:
    """Train a strong model on logits mixed with a weak one's, and save the strong branch alone.

        L = −Σ log softmax(λ z_strong + (1-λ) z_weak)[token] / number of supervised tokens     (Eq. 5 and 6)

    Args:
        file: JSON lines, as a training file: chat `messages`, or `prompt` and `completion`. Every assistant turn is
            supervised, and nothing else.
        strong, weak: model folders of one vocabulary.
        output: folder to make, an ordinary model folder of the strong model's shape and precision.
        mixing_weight: λ in [0, 1], the weight of the strong logits; the paper takes 0.5.
        indices: [k], samples to train on, counted from 0 in file order, as `draw` gives them; None = each once.
        weak_update: train the weak model too, or hold it fixed.
        hyperparameters: learning rate, batch size, epochs and the rest; None = the defaults of a job.
        seed: of the order of samples, first weights of adapters, and dropout.
        report: called after every step.

    Returns:
        Metrics of the last step, and `first_loss`, `total_tokens`, `total_s` of the whole run.

    Raises:
        WmssError: the file, a checkpoint or an argument cannot be used, or the loss is not finite; the message says
            why.
        ValidationError: a number is out of bounds; it names the field.
    """
    strong, weak, output = Path(strong), Path(weak), Path(output)
    if output.exists():
        raise ConfigError(f"output: expected a folder to make, {output} exists already; remove it", param="output")
    for param, folder in (("strong", strong), ("weak", weak)):
        examine_folder(folder, param=param)
    check_pair(strong, weak, param="weak")
    method = SupervisedMethod(supervised=SupervisedConfig(hyperparameters=hyperparameters or Hyperparameters()))
    spec = JobSpec(model=str(strong), training_file=str(file), method=method, seed=seed)
    max_length = resolve_max_length(spec, min(context_length(strong), context_length(weak)))
    samples = tokenize_file(file, load_tokenizer(strong), max_length=max_length)
    chosen = _checked_indices(indices, samples)
    with tempfile.TemporaryDirectory(prefix="wmss-joint-") as scratch:
        samples_file = Path(scratch) / "samples.parquet"
        save_tokenized(samples, samples_file)
        run = TrainingRun(
            phase="joint",
            strong=ModelSource(folder=strong),
            weak=(ModelSource(folder=weak),),
            weak_shares=(1.0,),
            weak_frozen=weak_update == "frozen",
            samples=samples_file,
            indices=chosen,
            mixing_weight=mixing_weight,
            batch_size=resolve_batch_size(spec, len(samples)),
            num_epochs=spec.hyperparameters.num_epochs,
            hyperparameters=spec.hyperparameters,
            seed=seed,
            checkpoint_every=10**9,
        )
        end_token_ids = {each.last_target for each in samples if len(each.input_ids) < max_length}
        host = _ThisProcess(base=strong, output=output, end_token_ids=sorted(end_token_ids), report=report)
        train(run, host)
    return host.metrics


def _checked_indices(
    indices: Sequence[int] | npt.NDArray[np.int64] | None, samples: Sequence[TokenizedSample]
) -> tuple[int, ...]:
    if indices is None:
        return tuple(range(len(samples)))
    chosen = tuple(int(index) for index in indices)
    if not chosen or min(chosen) < 0 or max(chosen) >= len(samples):
        got = f"numbers from {min(chosen)} to {max(chosen)}" if chosen else "none"
        raise ConfigError(
            f"indices: expected numbers from 0 to {len(samples) - 1}, the samples of the file, got {got}; draw from "
            "the scores of the same file",
            param="indices",
        )
    return chosen


class _ThisProcess:
    """The loop's `Host`: one worker, which keeps the strong branch of the run's end and nothing to resume from."""

    rank, world_size = 0, 1

    def __init__(self, *, base: Path, output: Path, end_token_ids: list[int], report: Report) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.metrics: dict[str, float] = {}
        self._base, self._output, self._end_token_ids = base, output, end_token_ids
        self._report = report

    @contextlib.contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """None: every run begins at its start."""
        yield None

    def log(self, metrics: dict[str, float]) -> None:
        """Pass a step's metrics on."""
        self._report(metrics)

    def checkpoint(self, folder: Path, metrics: dict[str, float]) -> None:
        """Save the model; it is called once, at the end."""
        export_model(folder / STRONG_FOLDER, self._output, base=self._base, end_token_ids=self._end_token_ids)
        self.metrics = metrics
