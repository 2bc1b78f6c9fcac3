"""Plain fine-tuning by the product's own loop against TRL's SFTTrainer: same model, tokens, batches and optimizer.

All start from one saved checkpoint and take the same steps; the losses of every step must agree. The time is that of
the steps alone, from the end of the first to the end of the last: batches, forward, backward, clip and AdamW. TRL's
fused output head falls back to slow operations on a CPU and TRL has no other, so transformers' own Trainer, on full
logits, runs as well.

python -m benchmarks.sft_parity
"""

import contextlib
import importlib.util
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers.utils import logging

from benchmarks.measure import REPETITIONS, Line, Target, interleave, line, print_lines, require_close, skipped
from benchmarks.models import Shape, make_model, make_samples
from wmss.config import Hyperparameters
from wmss.data.tokenization import save_tokenized
from wmss.models.loading import load_model
from wmss.records import TokenizedSample
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun

SHAPE = Shape(vocabulary=32_768, width=256, layers=4)
STEPS, BATCH_SIZE = 3, 4
EQUAL, RAGGED = "equal lengths", "ragged lengths"
LEARNING_RATE, SEED = 1e-3, 0
TARGET = Target("P-T9", at_most=1.05)
TOLERANCE = 1e-4
"""Of the loss of every step, relative."""
NOTES = {
    "ours packed": "telemetry is off; what it costs is in step_ratio",
    "transformers padded": "the stronger peer on a CPU: TRL's fused head has no fast path there",
}


class Job(NamedTuple):
    """One comparison: a checkpoint, the samples in the order of training, and how often the weights change."""

    folder: Path
    samples: Sequence[TokenizedSample]
    num_steps: int


class Clocked(list[float]):
    """Losses of the steps so far, and the CPU seconds between the ends of the first and of the last."""

    started = ended = 0.0

    def end_of_step(self, loss: float) -> None:
        self.append(loss)
        self.ended = time.process_time()
        if len(self) == 1:
            self.started = self.ended

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class _Host:
    """Runs the loop in this process and throws its checkpoints away."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self) -> None:
        self.steps = Clocked()

    def latest_checkpoint(self) -> contextlib.AbstractContextManager[Path | None]:
        return contextlib.nullcontext(None)

    def log(self, metrics: dict[str, float]) -> None:
        self.steps.end_of_step(metrics["train_loss"])

    def checkpoint(self, folder: Path, metrics: dict[str, float]) -> None:
        pass


def train_ours(job: Job, *, packing: bool) -> Clocked:
    """The product's loop."""
    host = _Host()
    train(make_run(job, packing=packing), host)
    return host.steps


def make_run(job: Job, *, packing: bool) -> TrainingRun:
    """The phase as the product describes it."""
    return TrainingRun(
        phase="sft",
        strong=ModelSource(folder=job.folder),
        samples=job.folder / "samples.parquet",
        indices=tuple(range(len(job.samples))),
        mixing_weight=1.0,
        batch_size=BATCH_SIZE,
        num_epochs=1,
        hyperparameters=Hyperparameters(
            learning_rate=LEARNING_RATE, warmup_ratio=0.0, packing=packing, telemetry_every=None
        ),
        seed=SEED,
        checkpoint_every=job.num_steps,
    )


def train_with(make_trainer: Callable[[Job], Any], job: Job) -> Clocked:
    """A transformers-style trainer on the same batches."""
    from transformers import PrinterCallback, TrainerCallback

    steps = Clocked()

    class EndOfStep(TrainerCallback):
        """Clocks the steps."""

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            steps.end_of_step(float(trainer.last_loss))

    with warnings.catch_warnings():
        # Padding-free rows are meant for FlashAttention; TRL says so, and on a CPU a block mask serves.
        warnings.simplefilter("ignore")
        trainer = make_trainer(job)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(EndOfStep())
        trainer.train()
    return steps


def make_trl(job: Job, *, padding_free: bool) -> Any:
    """TRL's trainer with the product's hyperparameters."""
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    # TRL asks for a tokenizer to find the padding token, and tokenizes nothing with it.
    words = Tokenizer(WordLevel({"0": 0, "1": 1}, unk_token="0"))
    return _remembering(SFTTrainer)(
        load_model(job.folder),
        args=SFTConfig(padding_free=padding_free, max_length=None, shuffle_dataset=False, **_arguments(job)),
        train_dataset=_dataset(job),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1"),
    )


def make_transformers(job: Job) -> Any:
    """transformers' own trainer, on TRL's padded batches."""
    from transformers import Trainer, TrainingArguments
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return _remembering(Trainer)(
        load_model(job.folder),
        args=TrainingArguments(**_arguments(job)),
        train_dataset=_dataset(job),
        data_collator=DataCollatorForLanguageModeling(pad_token_id=0),
    )


def _remembering(trainer: type) -> type:
    class Remembering(trainer):
        """Remembers the loss of the step under way."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.last_loss: torch.Tensor = super().training_step(*args, **kwargs)
            return self.last_loss

    return Remembering


def _dataset(job: Job) -> Any:
    """The samples as rows, in the order in which the product's sampler takes them."""
    from datasets import Dataset

    order = make_run(job, packing=True).sampler()
    rows = [job.samples[index] for step in range(order.num_steps) for index in order.batch(step)]
    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids.tolist() for row in rows],
            "labels": [np.where(row.target_mask, row.input_ids, -100).tolist() for row in rows],
        }
    )


def _arguments(job: Job) -> dict[str, Any]:
    """The product's hyperparameters; everything beside training is off."""
    return {
        "output_dir": str(job.folder / "trainer"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": BATCH_SIZE,
        "num_train_epochs": 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "linear",
        "max_grad_norm": 1.0,
        "train_sampling_strategy": "sequential",
        "dataloader_pin_memory": False,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }


def settings(num_samples: int) -> dict[str, list[int]]:
    """Lengths of the samples: all alike, and ragged as instruction data are."""
    rng = np.random.default_rng(0)
    ragged = np.clip(rng.lognormal(math.log(100), 0.8, num_samples), 16, 512).astype(int)
    return {EQUAL: [128] * num_samples, RAGGED: ragged.tolist()}


def run(*, shape: Shape = SHAPE, num_steps: int = STEPS, repetitions: int = REPETITIONS) -> Iterator[Line]:
    """Both kinds of lengths; each side in the better of its two layouts."""
    if not importlib.util.find_spec("trl"):
        yield skipped("sft_parity", "trl", "trl is not installed")
        return
    logging.disable_progress_bar()
    for name, lengths in settings(num_steps * BATCH_SIZE).items():
        with tempfile.TemporaryDirectory() as folder:
            samples = make_samples(lengths, vocabulary=shape.vocabulary, prompt_share=0.25)
            make_model(shape, seed=0).save_pretrained(folder)
            save_tokenized(samples, Path(folder) / "samples.parquet")
            yield from _run(name, shape, Job(Path(folder), samples, num_steps), repetitions=repetitions)


def _run(name: str, shape: Shape, job: Job, *, repetitions: int) -> Iterator[Line]:
    trainers: dict[str, Callable[[], Clocked]] = {
        "ours packed": lambda: train_ours(job, packing=True),
        "trl padded": lambda: train_with(partial(make_trl, padding_free=False), job),
        "transformers padded": lambda: train_with(make_transformers, job),
    }
    if name == RAGGED:
        trainers["ours padded"] = lambda: train_ours(job, packing=False)
        trainers["trl padding-free"] = lambda: train_with(partial(make_trl, padding_free=True), job)
    results: dict[str, list[Clocked]] = {arm: [] for arm in trainers}
    # The arms clock their steps themselves: loading and preparing are left out.
    arms = {arm: (lambda arm=arm: results[arm].append(trainers[arm]())) for arm in trainers}
    interleave(arms, repetitions=repetitions)
    truth = _by_step(results["transformers padded"][0])
    for arm, runs in results.items():
        for found in runs:
            require_close(f"sft_parity {name}, {arm}", _by_step(found), truth, tolerance=TOLERANCE)
    # As `interleave` does, the first run is not counted.
    seconds = {arm: [steps.seconds for steps in runs[1:]] for arm, runs in results.items()}
    best_trl = min(min(seconds[arm]) for arm in trainers if arm.startswith("trl"))
    for arm in trainers:
        yield line(
            "sft_parity",
            arm,
            {**shape._asdict(), "lengths": name, "batch_size": BATCH_SIZE, "steps": job.num_steps - 1},
            seconds=seconds[arm],
            figures={
                "time_over_best_trl": min(seconds[arm]) / best_trl,
                "time_over_transformers": min(seconds[arm]) / min(seconds["transformers padded"]),
            },
            # Packed is the product's default.
            targets={"time_over_best_trl": TARGET, "time_over_transformers": TARGET} if arm == "ours packed" else {},
            note=NOTES.get(arm),
        )


def _by_step(losses: Sequence[float]) -> dict[str, torch.Tensor]:
    return {f"loss of step {number}": torch.tensor(loss) for number, loss in enumerate(losses, start=1)}


if __name__ == "__main__":
    print_lines(run())
