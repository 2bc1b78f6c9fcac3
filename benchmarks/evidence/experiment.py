"""One seed of one setting: its data, its checkpoints and its arms, all trained by the product's own loop.

Everything lies under one folder and is made when it is first asked for, so an interrupted run goes on where it was.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.evidence.plan import ARMS, CHECKPOINTS, TESTS, Arm, Base, Setting, Training, digest_of
from benchmarks.evidence.rows import Row
from benchmarks.evidence.task import make_samples, make_tokenizer, misconceptions
from wmss.config import Hyperparameters
from wmss.config.base import changed
from wmss.core.sample_weights import draw, sampling_weights
from wmss.core.saturation import is_saturated
from wmss.data.dataset import Sample
from wmss.data.tokenization import save_tokenized, tokenize_samples
from wmss.records import STRONG_FOLDER, TokenizedSample
from wmss.scoring.evaluation import verified_accuracy
from wmss.scoring.tables import EntropyTable, score_samples
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.training.checkpoint_files import load_metrics, load_readings
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun

MAX_LENGTH = 128
SCORED_ROWS = 500
"""Training samples whose NLL and entropy are measured after training."""
_BASE_DATA, _TRAINING_DATA, _TEST_DATA, _MISCONCEPTIONS = 1, 2, 3, 4
"""Streams of random numbers of a seed."""


class FolderHost:
    """The loop's `Host` in this process: one worker on the CPU, checkpoints in a folder, the newest one kept."""

    rank, world_size, device = 0, 1, torch.device("cpu")

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        yield self._folder if self._folder.is_dir() else None

    def log(self, metrics: dict[str, float]) -> None:
        """Readings of the margin are kept with the checkpoint; nothing else is looked at."""

    def checkpoint(self, folder: Path, metrics: dict[str, float]) -> None:
        fresh = self._folder.with_suffix(".new")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(folder, fresh)
        shutil.rmtree(self._folder, ignore_errors=True)
        os.replace(fresh, self._folder)


class Experiment:
    """Checkpoints and figures of one (setting, seed), kept under `cache`; settings with the same `base` share M0."""

    def __init__(self, setting: Setting, seed: int, cache: Path) -> None:
        self.setting = setting
        self.seed = seed
        self._base_folder = cache / f"base-{digest_of(asdict(setting.base))}" / f"seed-{seed}"
        self._folder = cache / f"{setting.name}-{setting.digest}" / f"seed-{seed}"
        self._tokenizer = make_tokenizer()

    def row(self, arm: str) -> Row:
        """Train `arm` (or `base`, `strong`) where that is still to be done, and measure it."""
        checkpoint = self.trained(arm)
        model = checkpoint / STRONG_FOLDER
        metrics, readings = load_metrics(checkpoint), load_readings(checkpoint)
        margins = [reading.margin for reading in readings]
        flat = (readings[n - 1].step for n in range(1, len(margins) + 1) if is_saturated(margins[:n]))
        training = self._score(model, self._training_tokens[:SCORED_ROWS])
        return {
            "setting": self.setting.name,
            "digest": self.setting.digest,
            "seed": self.seed,
            "arm": arm,
            "num_steps": int(metrics["step"]),
            "num_drawn": len(self._indices(ARMS[arm])) if arm in ARMS else None,
            "tests": {name: self._measure(model, samples) for name, samples in self._tests.items()},
            "training_nll": training.token_nll,
            "training_entropy": training.mean_entropy,
            "margin": margins[-1],
            "saturated_at": next(flat, None),
            "training_s": metrics["total_s"],
        }

    @cached_property
    def _training_samples(self) -> list[Sample]:
        setting = self.setting
        return make_samples(
            setting.num_rows,
            seed=(self.seed, _TRAINING_DATA),
            lengths=setting.lengths,
            wrong_share=setting.wrong_share,
        )

    @cached_property
    def _training_tokens(self) -> list[TokenizedSample]:
        return self._tokens(self._training_samples)

    @cached_property
    def _tests(self) -> dict[str, list[Sample]]:
        """Problems whose prompts are not in the training set, short ones first."""
        setting = self.setting
        known = {sample.prompt for sample in self._training_samples}
        return {
            name: sorted(
                make_samples(
                    setting.num_problems, seed=(self.seed, _TEST_DATA, number), lengths=lengths, exclude=known
                ),
                key=lambda sample: len(sample.prompt),
            )
            for number, (name, lengths) in enumerate(zip(TESTS, (setting.lengths, setting.harder_lengths), strict=True))
        }

    def _tokens(self, samples: list[Sample]) -> list[TokenizedSample]:
        return tokenize_samples(samples, self._tokenizer, max_length=MAX_LENGTH, source="the task")[0]

    def trained(self, name: str) -> Path:
        """Checkpoint folder of `base`, `strong` or an arm, trained to its end."""
        folder = (self._base_folder if name == "base" else self._folder) / name
        if not folder.is_dir():  # a checkpoint is only written by the last step
            if name == "base":
                run = self._base_run()
            elif name == "strong":
                run = self._run(name, self.trained("base") / STRONG_FOLDER, self.setting.strong)
            else:
                run = self._arm_run(ARMS[name])
            train(run, FolderHost(folder))
        return folder

    def _base_run(self) -> TrainingRun:
        base = self.setting.base
        random_model = self._base_folder / "random"
        save_random_model(random_model, base, seed=self.seed)
        samples = make_samples(
            base.training.num_steps * base.training.batch_size,
            seed=(self.seed, _BASE_DATA),
            lengths=base.lengths,
            wrong_share=base.wrong_share,
            wrong_facts=misconceptions(base.misconceived_share, seed=(self.seed, _MISCONCEPTIONS)),
            distinct=False,
        )
        file = self._base_folder / "samples.parquet"
        save_tokenized(self._tokens(samples), file)
        return self._training_run("base", random_model, base.training, file, range(len(samples)))

    def _arm_run(self, arm: Arm) -> TrainingRun:
        base, strong = (self.trained(name) / STRONG_FOLDER for name in CHECKPOINTS)
        run = self._run(arm.name, strong, self.setting.arms, indices=self._indices(arm))
        if arm.mixing == "off":
            return run
        changes: dict[str, Any] = {"mixing_weight": arm.mixing_weight}
        if arm.mixing == "logits":
            changes |= {"weak": (ModelSource(folder=base),), "weak_shares": (1.0,), "weak_frozen": arm.weak_frozen}
        return changed(run, **changes)

    def _indices(self, arm: Arm) -> list[int]:
        """Which training samples an arm sees; those drawn come round more often, since steps are equal."""
        tokens = self._training_tokens
        if not arm.draws:
            return list(range(len(tokens)))
        weak, strong = (self._score(self.trained(name) / STRONG_FOLDER, tokens).entropy for name in CHECKPOINTS)
        weights = sampling_weights(weak, strong, weighting="v2")
        return [int(index) for index in draw(weights, num_draws=len(tokens), seed=self.seed, deduplicate=True)]

    def _run(self, name: str, start: Path, training: Training, *, indices: Sequence[int] | None = None) -> TrainingRun:
        """Plain supervised fine-tuning from `start` on the setting's samples, or on some of them."""
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{name}.parquet"
        save_tokenized(self._training_tokens, file)
        return self._training_run(name, start, training, file, indices or range(len(self._training_tokens)))

    def _training_run(
        self, name: str, start: Path, training: Training, samples: Path, indices: Sequence[int]
    ) -> TrainingRun:
        return TrainingRun(
            phase=name,
            strong=ModelSource(folder=start),
            samples=samples,
            indices=tuple(indices),
            mixing_weight=1.0,
            batch_size=training.batch_size,
            num_epochs=training.num_steps,  # more than enough: max_steps ends it
            hyperparameters=Hyperparameters(
                learning_rate=training.learning_rate,
                max_steps=training.num_steps,
                warmup_ratio=training.warmup_ratio,
                lr_schedule=training.lr_schedule,
            ),
            seed=self.seed,
            checkpoint_every=training.num_steps,
        )

    def _score(self, model: Path, tokens: list[TokenizedSample]) -> EntropyTable:
        return score_samples(tokens, TorchEntropyScorer(model), batch_tokens=8192, progress=lambda done, total: None)

    def _measure(self, model: Path, samples: list[Sample]) -> dict[str, float]:
        tokens = self._tokens(samples)
        accuracy = verified_accuracy(
            samples,
            tokens,
            model,
            TorchSampler(max_length=MAX_LENGTH),
            end_token_ids=[self._tokenizer.eos_token_id],
            progress=lambda done, total: None,
        )
        return {
            "num_correct": accuracy["num_correct"],
            "num_problems": accuracy["num_problems"],
            "nll": self._score(model, tokens).token_nll,
        }


def save_random_model(folder: Path, base: Base, *, seed: int) -> None:
    """A Qwen3 with random weights, and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=base.hidden_size,
        intermediate_size=base.intermediate_size,
        num_hidden_layers=base.num_layers,
        num_attention_heads=base.num_heads,
        num_key_value_heads=base.num_heads // 2,
        head_dim=base.hidden_size // base.num_heads,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
