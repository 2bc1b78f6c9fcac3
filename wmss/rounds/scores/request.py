"""Entropy scores as a product of their own: of a request's checkpoints in turn, or of one file from Python."""

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from wmss.config import MaxLength, ScoreSpec, parse_scores
from wmss.data.tokenization import load_tokenized, save_tokenized
from wmss.errors import ConfigError, WmssError, raise_all
from wmss.models.loading import load_tokenizer
from wmss.records import CheckpointDigests
from wmss.rounds import messages
from wmss.rounds.before.dry_run import file_figures
from wmss.rounds.before.preflight import Findings, examine_scores
from wmss.rounds.job import ScoringEngines, once
from wmss.rounds.journal import Artifacts, Journal
from wmss.rounds.phases import score_phases
from wmss.rounds.scores.cache import Scores, tell_scores
from wmss.scoring import torch_scorer, vllm_families, vllm_scorer
from wmss.scoring.interfaces import Progress, Sampler, Scorer
from wmss.scoring.tables import EntropyTable, check_comparable
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.vllm_sampler import VllmSampler

DType = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ScoreJob:
    """A request for entropy scores with every name resolved to a path."""

    id: str
    spec: ScoreSpec
    checkpoints: tuple[Path, ...]
    file: Path
    folder: Path
    """Where its tokenized samples lie."""
    cache: Path
    """Where scores lie that anyone may use again."""
    digests: Mapping[str, CheckpointDigests] = field(default_factory=dict)
    """What the folders of registered checkpoints must still hold, by field."""

    @property
    def models(self) -> dict[str, Path]:
        """Its checkpoints by field."""
        return {f"models.{number}": folder for number, folder in enumerate(self.checkpoints)}


def run_scores(job: ScoreJob, engines: ScoringEngines, journal: Journal) -> None:
    """Run all phases of a request, skipping what an earlier attempt finished: `validate`, then one per checkpoint.

    One checkpoint is loaded at a time. `score_1` and so on leave the paths of the tables, what they say on average, and
    what it took. Raises a `WmssError` for whatever the caller can cause.
    """
    samples_file = job.folder / "samples.parquet"
    phases = score_phases(job.spec)
    done = partial(messages.phase_done, phases)

    def validate() -> Artifacts:
        refusals = partial(engines.refusals, scoring=True)
        found = examine_scores(job.spec, job.models, job.file, job.digests, refusals)
        raise_all(found.problems)
        assert found.training is not None
        job.folder.mkdir(parents=True, exist_ok=True)
        save_tokenized(found.training.tokenized, samples_file)
        figures = file_figures(found.training, load_tokenizer(job.checkpoints[0]))
        journal.event(messages.file_read("file", figures), data=figures.model_dump())
        return {
            "num_samples": figures.num_rows,
            "num_tokens": figures.num_tokens,
            "num_targets": figures.num_targets,
            "num_truncated": figures.num_cut,
            "max_length": found.max_length,
        }

    def score(phase: str, checkpoint: Path) -> Artifacts:
        samples = load_tokenized(samples_file)
        scored = scores.score(checkpoint, [samples], partial(journal.progress, phase), tokens=job.spec.tokens)
        return tell_scores(journal, phase, scored) | {
            "tokens": scored.tokens and str(scored.tokens),
            "digest": scored.digest,
            "num_tokens_scored": scored.num_tokens,
            "seconds": scored.seconds,
        }

    validated = once(journal, "validate", validate, done=partial(done, "validate"))
    scores = Scores(engines, cache=job.cache, max_length=validated["max_length"], owner=job.id, tell=journal.event)
    recorded = [
        once(
            journal,
            phase,
            partial(score, phase, checkpoint),
            done=partial(done, phase),
            # Scores of before and after an upgrade of the engines cannot be compared.
            still_valid=lambda artifacts: artifacts["provenance"] == engines.provenance(),
        )
        for phase, checkpoint in zip(phases[1:], job.checkpoints, strict=True)
    ]
    if len(recorded) == 2:
        first, second = (EntropyTable.load(Path(artifacts["table"])) for artifacts in recorded)
        check_comparable(first, second)
        journal.event(messages.entropy_shift(first.entropy, second.entropy, " → ".join(job.spec.models)))


@dataclass(frozen=True)
class InProcess:
    """Engines in this process, for one checkpoint at a time."""

    engine: Literal["vllm", "torch"]
    dtype: DType = "float32"

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """Architectures that vLLM cannot score."""
        found = Findings()
        for param, checkpoint in checkpoints.items() if self.engine == "vllm" else ():
            found.attempt(vllm_families.check_family, checkpoint, param=param)
        return found.problems

    @contextlib.contextmanager
    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> Iterator[Scorer]:
        """The engine; vLLM's keeps its memory until the process ends."""
        if self.engine == "vllm":
            yield vllm_scorer.VllmEntropyScorer(
                checkpoint, max_length=max_length, dtype=self.dtype, keep_states=keep_states
            )
        else:
            yield torch_scorer.TorchEntropyScorer(
                checkpoint,
                dtype=getattr(torch, self.dtype),
                device=vllm_scorer.device_here(),
                keep_states=keep_states,
            )

    @contextlib.contextmanager
    def sampler(self, checkpoint: Path, *, max_length: int) -> Iterator[Sampler]:
        """What draws responses; vLLM's keeps its memory until the process ends."""
        if self.engine == "vllm":
            yield VllmSampler(checkpoint, max_length=max_length, dtype=self.dtype)
        else:
            yield TorchSampler(
                max_length=max_length, dtype=getattr(torch, self.dtype), device=vllm_scorer.device_here()
            )

    def provenance(self) -> dict[str, Any]:
        """What the engine says of itself."""
        if self.engine == "vllm":
            return vllm_scorer.provenance(self.dtype, vllm_scorer.device_here())
        return torch_scorer.provenance(getattr(torch, self.dtype), vllm_scorer.device_here())


def in_process(engine: Literal["auto", "vllm", "torch"], dtype: DType) -> InProcess:
    """Engines in this process; "auto" = vLLM where it is installed, else torch."""
    installed = find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise ConfigError("engine: 'vllm' is not installed here; install it or use 'torch'", param="engine")
    return InProcess("vllm" if installed and engine != "torch" else "torch", dtype)


class PassingJournal:
    """A journal for a request that is run from its beginning to its end by one process."""

    def __init__(self, *, tell: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
        """`tell` takes messages, `progress` how many samples of all are done in a phase."""
        self.finished: dict[str, Artifacts] = {}
        """What the phases left."""
        self.progress = progress
        self._tell = tell

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase left."""
        return self.finished.get(phase)

    def start(self, phase: str) -> None:
        """A phase begins."""

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done."""
        self.finished[phase] = artifacts

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Pass a message on."""
        self._tell(message)


def score_file(
    file: str | Path,
    checkpoint: str | Path,
    *,
    engine: Literal["auto", "vllm", "torch"] = "auto",
    dtype: DType = "float32",
    max_length: MaxLength = "auto",
    tokens: str | Path | None = None,
    cache: str | Path | None = None,
    progress: Progress = lambda done, total: None,
) -> EntropyTable:
    """Exact entropy of every sample of a file under a checkpoint, in this process, without a service.

        from wmss.rounds.scores.request import score_file
        from wmss.scoring.tables import entropy_change

        weak = score_file("train.jsonl", "models/base", cache="cache")
        strong = score_file("train.jsonl", "models/tuned", cache="cache", tokens="tuned-tokens.parquet")
        print(weak.mean_entropy, strong.mean_entropy, (entropy_change(weak, strong) < 0).mean())

    Args:
        file: JSON lines, as a training file: chat `messages`, or `prompt` and `completion`.
        checkpoint: model folder: config, safetensors, tokenizer with a chat template where rows are chats.
        engine: "vllm"; "torch", which needs nothing else installed but is several times slower; "auto" = vLLM where it
            is installed.
        dtype: precision of the model. Scores of different engines or precisions are not comparable.
        max_length: tokens per sample; longer completions are cut. "auto" = 4096 or the model's context if shorter.
        tokens: parquet file to make, with a row for every supervised token (see `TokenTableWriter`).
        cache: folder in which scores are kept and looked up, e.g. `cache` in the home of a service; None = nowhere.
        progress: called with (samples done, samples in all).

    Returns:
        One row per sample, in file order.

    Raises:
        WmssError: the file, the checkpoint or an argument cannot be used; the message says why.
    """
    values = {"file": str(file), "models": [str(checkpoint)], "dtype": dtype, "max_length": max_length}
    spec = parse_scores(values | {"tokens": tokens is not None})
    with tempfile.TemporaryDirectory() as scratch:
        job = ScoreJob(
            id=f"local-{secrets.token_hex(6)}",
            spec=spec,
            checkpoints=(Path(checkpoint),),
            file=Path(file),
            folder=Path(scratch),
            cache=Path(scratch) if cache is None else Path(cache),
        )
        journal = PassingJournal(tell=lambda message: None, progress=lambda phase, done, total: progress(done, total))
        run_scores(job, in_process(engine, dtype), journal)
        left = journal.finished["score_1"]
        if tokens is not None:
            shutil.copyfile(left["tokens"], tokens)
        return EntropyTable.load(Path(left["table"]))
