"""The phases of one job, told in order. Engines and bookkeeping come from outside, so this runs with or without Ray.

Every phase is idempotent: its artifacts are recorded in the journal when it ends, and a job that starts again skips
what is recorded. Files are written under `Job.folder` and `Job.cache`; `export` alone writes `Job.result`.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmss import __version__
from wmss.config import Hyperparameters, JobSpec, WmssConfig, WmssMethod
from wmss.core.curriculum import TERMS, draw, sampling_weights, weighting_terms
from wmss.data.dataset import Sample, read_samples
from wmss.data.tokenization import load_tokenized, save_tokenized, tokens_digest
from wmss.errors import ConfigError, WmssError, raise_all
from wmss.models.checkpoints import export_model
from wmss.models.loading import checkpoint_digest, load_tokenizer
from wmss.records import STRONG_FOLDER
from wmss.rounds import messages
from wmss.rounds.dry_run import file_figures, plan, warnings
from wmss.rounds.phases import needs_engine
from wmss.rounds.preflight import Sources, examine
from wmss.rounds.report import gigabytes
from wmss.scoring.evaluation import verified_accuracy
from wmss.scoring.interfaces import Generator, Progress, Scorer
from wmss.scoring.rewards import is_verifiable
from wmss.scoring.tables import EntropyTable, score_samples
from wmss.training.checkpoints import load_metrics
from wmss.training.run import ModelSource, TrainingRun

Artifacts = dict[str, Any]
SCORE_BATCH_TOKENS = 32768
CACHE_VERSION = 2
"""Part of every cache key; raise it when the same question would get another answer (positions, pooler, verifier)."""


@dataclass(frozen=True)
class Job:
    """One job with every name resolved to a path."""

    id: str
    spec: JobSpec
    base: Path
    """The checkpoint that `model` names, M0."""
    weak: Path
    strong: Path | None
    """The strong checkpoint if the caller gave one."""
    training_file: Path
    validation_file: Path | None
    folder: Path
    """Where this job's artifacts lie."""
    cache: Path
    """Where scores and evaluations lie that any job may use again."""
    result: Path
    """Where the finished model goes."""
    result_name: str

    @property
    def sources(self) -> Sources:
        """What the job's names lead to, by field."""
        models = {"model": self.base, "method.wmss.weak_model": self.weak, "method.wmss.strong_model": self.strong}
        files = {"training_file": self.training_file, "validation_file": self.validation_file}
        return Sources(
            spec=self.spec,
            models={param: folder for param, folder in models.items() if folder is not None},
            files={param: file for param, file in files.items() if file is not None},
        )


class Engines(Protocol):
    """What runs models. Each context manager frees its engine on the way out."""

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """Why these engines could not train, score or generate with checkpoints {field: folder}; empty if they can."""

    def train(self, run: TrainingRun, *, name: str) -> Path:
        """Run one training phase to its end; returns its last checkpoint folder. The same name resumes."""

    def scorer(self, checkpoint: Path, *, max_length: int) -> AbstractContextManager[Scorer]:
        """An entropy scorer."""

    def generator(self, checkpoint: Path, *, max_length: int) -> AbstractContextManager[Generator]:
        """A text generator."""

    def provenance(self) -> dict[str, Any]:
        """What a scorer or generator of these engines would say of itself, known without starting one."""


class Journal(Protocol):
    """Durable memory of a job: what is done, and what its owner is told."""

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase recorded, or None."""

    def start(self, phase: str) -> None:
        """A phase begins."""

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done; its artifacts become visible to a restarted job at once."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase is."""

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Tell the owner."""


def run_job(job: Job, engines: Engines, journal: Journal) -> Artifacts:
    """Run all phases of a job, skipping what an earlier attempt finished; returns the artifacts of the last ones."""
    stage = _Stage(job, engines, journal)
    spec = job.spec
    stage.once("validate", stage.validate)
    if isinstance(spec.method, WmssMethod):
        wmss = spec.method.wmss
        strong = job.strong
        if strong is None:
            num_epochs = wmss.hyperparameters.sft_epochs
            assert num_epochs is not None, "the configuration resolves sft_epochs where the phase runs"
            tuned = stage.once("sft", lambda: stage.sft(wmss.hyperparameters, num_epochs))
            strong = Path(tuned["checkpoint"])
        weak_scores = stage.once("score_weak", lambda: stage.score(job.weak, "score_weak"))
        strong_scores = stage.once("score_strong", lambda: stage.score(strong, "score_strong"))
        drawn = stage.once("weigh", lambda: stage.weigh(wmss, weak_scores, strong_scores))
        trained = stage.once("joint", lambda: stage.joint(wmss, strong, drawn))
        compared = {"base": job.base, "strong_before": strong}
    else:
        knobs = spec.hyperparameters
        trained = stage.once("sft", lambda: stage.sft(knobs, knobs.num_epochs))
        compared = {"base": job.base}
    exported = stage.once("export", lambda: stage.export(Path(trained["checkpoint"])))
    if job.validation_file is not None:
        stage.once("evaluate", lambda: stage.evaluate({**compared, "result": job.result}))
    return exported


@dataclass
class _Stage:
    """The phases themselves. Each reads and writes files and returns a small JSON record of what it did."""

    job: Job
    engines: Engines
    journal: Journal

    def once(self, phase: str, run: Callable[[], Artifacts]) -> Artifacts:
        """Run a phase unless its artifacts are already recorded."""
        done = self.journal.artifacts(phase)
        if done is not None:
            return done
        self.journal.start(phase)
        started = time.monotonic()
        artifacts = run()
        self.journal.finish(phase, artifacts)
        self.journal.event(messages.phase_done(self.job.spec, phase, time.monotonic() - started))
        return artifacts

    @property
    def _samples_file(self) -> Path:
        return self.job.folder / "samples.parquet"

    @property
    def _validation_samples_file(self) -> Path:
        return self.job.folder / "validation_samples.parquet"

    def validate(self) -> Artifacts:
        """Refuse what cannot work before an engine is started; tokenize once for every later phase."""
        job, spec = self.job, self.job.spec
        found = examine(job.sources, partial(self.engines.refusals, scoring=needs_engine(spec)))
        raise_all(found.problems)
        training, held_out = found.training, found.validation
        assert training is not None and found.max_length is not None and found.batch_size is not None
        job.folder.mkdir(parents=True, exist_ok=True)
        save_tokenized(training.tokenized, self._samples_file)
        end_token_ids = {s.last_target for s in training.tokenized if len(s.input_ids) < found.max_length}
        if held_out is not None:
            save_tokenized(held_out.tokenized, self._validation_samples_file)
            end_token_ids |= {sample.last_target for sample in held_out.tokenized}
        tokenizer = load_tokenizer(job.base)
        figures = file_figures(training, tokenizer)
        self.journal.event(messages.file_read("training file", figures), data=figures.model_dump())
        if held_out is not None:
            held_out_figures = file_figures(held_out, tokenizer)
            self.journal.event(
                messages.file_read("validation file", held_out_figures), data=held_out_figures.model_dump()
            )
        self.journal.event(f"at most {found.max_length:,} tokens a sample; {found.batch_size:,} samples a step")
        for warning in warnings(spec, found, figures, plan(job.sources, found)):
            self.journal.event(f"{warning.param}: {warning.message}", level="warn", data=warning.model_dump())
        return {
            "num_samples": figures.num_rows,
            "num_tokens": figures.num_tokens,
            "num_targets": figures.num_targets,
            "num_truncated": figures.num_cut,
            "end_token_ids": sorted(end_token_ids),
            "max_length": found.max_length,
            "batch_size": found.batch_size,
        }

    def sft(self, knobs: Hyperparameters, num_epochs: int) -> Artifacts:
        """Supervised fine-tuning of the base on every sample."""
        validated = self._recorded("validate")
        return self._train(
            phase="sft",
            strong=self.job.base,
            weak=None,
            indices=range(validated["num_samples"]),
            batch_size=validated["batch_size"],
            num_epochs=num_epochs,
            knobs=knobs,
        )

    def score(self, checkpoint: Path, phase: str) -> Artifacts:
        """Exact entropy of every training sample (and validation sample) under a checkpoint."""
        scored = self._score_files(checkpoint, phase)
        table = EntropyTable.load(scored.tables["training"])
        found = {"mean_entropy": table.mean_entropy, "nll": table.token_nll}
        self.journal.event(
            f"{phase}: mean entropy {table.mean_entropy:.4f} nat, NLL {table.token_nll:.4f} nat/token", data=found
        )
        cost = {"num_tokens": scored.num_tokens, "seconds": scored.seconds}
        self.journal.event(messages.scoring_cost(phase, scored.num_tokens, scored.seconds), data=cost)
        return {"table": str(scored.tables["training"]), **found, "provenance": self.engines.provenance()}

    def weigh(self, wmss: WmssConfig, weak_scores: Artifacts, strong_scores: Artifacts) -> Artifacts:
        """Turn both entropies into sampling weights and draw the samples of the weak-driven phase."""
        weak = EntropyTable.load(Path(weak_scores["table"]))
        strong = EntropyTable.load(Path(strong_scores["table"]))
        try:
            weights = sampling_weights(weak.entropy, strong.entropy, weighting=wmss.weighting, **wmss.coefficients)
        except ValueError as error:
            raise ConfigError(str(error), param="method.wmss.weighting") from error
        indices = draw(weights, num_draws=len(weights), seed=self.job.spec.seed, deduplicate=wmss.deduplicate)
        # The same draw with its repetitions, which say more about a sample than that it is in the set.
        every_draw = draw(weights, num_draws=len(weights), seed=self.job.spec.seed, deduplicate=False)
        times_drawn = np.bincount(every_draw, minlength=len(weights))
        table = self.job.folder / "curriculum.parquet"
        columns = {
            "line": weak.line,
            "weak_entropy": weak.entropy,
            "strong_entropy": strong.entropy,
            "weight": weights,
            "times_drawn": times_drawn,
        }
        pq.write_table(pa.table(columns), table)
        masses = {}
        if wmss.weighting != "uniform":
            terms = weighting_terms(weak.entropy, strong.entropy, weighting=wmss.weighting, **wmss.coefficients)
            shares = terms.sum(axis=1) / terms.sum()
            masses = dict(zip(TERMS[wmss.weighting], shares.tolist(), strict=True))
        unique = int((times_drawn > 0).sum())
        found = {
            "term_masses": masses,
            "num_unique": unique,
            "effective_sample_size": float(1.0 / np.square(weights).sum()),
            "mean_entropy_weak": weak.mean_entropy,
            "mean_entropy_strong": strong.mean_entropy,
        }
        self.journal.event(messages.entropy_shift(weak.entropy, strong.entropy), data=found)
        if masses:
            self.journal.event(messages.term_masses(masses))
        self.journal.event(messages.drawn(len(indices), unique, len(weights)))
        self._tell_extremes(weak, strong, weights, times_drawn)
        return {"table": str(table), "indices": indices.tolist(), **found}

    def _tell_extremes(self, weak: EntropyTable, strong: EntropyTable, weights: Any, times_drawn: Any) -> None:
        """The sample drawn most often, and of those never drawn the least likely one, for a person to look at."""
        samples = load_tokenized(self._samples_file)
        tokenizer = load_tokenizer(self.job.base)
        most = int(np.argmax(times_drawn))
        chosen = {f"drawn most often, {times_drawn[most]} x": most}
        if (times_drawn == 0).any():
            chosen["never drawn"] = int(np.argmin(np.where(times_drawn == 0, weights, np.inf)))
        for label, index in chosen.items():
            answer = samples[index].input_ids[samples[index].last_completion_start :]
            values = {"line": int(weak.line[index])} | {
                name: float(table.entropy[index]) for name, table in (("weak", weak), ("strong", strong))
            }
            text = str(tokenizer.decode(answer.tolist(), skip_special_tokens=True))
            self.journal.event(
                messages.one_sample(label, **values, text=text),  # type: ignore[arg-type]
                data={**values, "times_drawn": int(times_drawn[index])},
            )

    def joint(self, wmss: WmssConfig, strong: Path, drawn: Artifacts) -> Artifacts:
        """Train strong (and weak) on the mixed logits of the drawn samples."""
        return self._train(
            phase="joint",
            strong=strong,
            weak=self.job.weak,
            indices=drawn["indices"],
            batch_size=self._recorded("validate")["batch_size"],
            num_epochs=wmss.hyperparameters.num_epochs,
            knobs=wmss.hyperparameters,
            mixing_weight=wmss.mixing_weight,
            weak_frozen=wmss.weak_update == "frozen",
        )

    def _train(
        self,
        *,
        phase: Any,
        strong: Path,
        weak: Path | None,
        indices: Any,
        batch_size: int,
        num_epochs: int,
        knobs: Hyperparameters,
        mixing_weight: float = 1.0,
        weak_frozen: bool = True,
    ) -> Artifacts:
        run = TrainingRun(
            phase=phase,
            strong=ModelSource(folder=strong),
            weak=() if weak is None else (ModelSource(folder=weak),),
            weak_shares=() if weak is None else (1.0,),
            samples=self._samples_file,
            indices=tuple(indices),
            mixing_weight=mixing_weight,
            weak_frozen=weak_frozen,
            batch_size=batch_size,
            num_epochs=num_epochs,
            hyperparameters=Hyperparameters(**knobs.model_dump(include=set(Hyperparameters.model_fields))),
            seed=self.job.spec.seed,
            checkpoint_every=self.job.spec.checkpointing.every_steps,
        )
        num_steps = run.sampler().num_steps
        self.journal.event(
            f"{phase}: {num_steps:,} steps, {len(run.indices):,} samples an epoch, learning rate up to "
            f"{knobs.peak_learning_rate:g}" + (f", mixing weight {mixing_weight:g}" if weak is not None else "")
        )
        folder = self.engines.train(run, name=f"{self.job.id}-{phase}-1")
        metrics = load_metrics(folder)
        self.journal.event(messages.trained(phase, metrics), data=metrics)
        return {"checkpoint": str(folder / STRONG_FOLDER), "num_steps": num_steps}

    def export(self, checkpoint: Path) -> Artifacts:
        """Put the strong branch, alone, where finished models lie, with a record of where it comes from."""
        job = self.job
        staging = job.folder / "export"
        shutil.rmtree(staging, ignore_errors=True)
        export_model(checkpoint, staging, base=job.base, end_token_ids=self._recorded("validate")["end_token_ids"])
        digest = checkpoint_digest(staging)
        card = {
            "name": job.result_name,
            "job": job.id,
            "wmss_version": __version__,
            "base": str(job.base),
            "weak": str(job.weak),
            "strong": str(job.strong) if job.strong else None,
            "method": job.spec.method.model_dump(mode="json"),
            "seed": job.spec.seed,
            "digest": digest,
        }
        (staging / "wmss.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        if job.result.exists():
            shutil.rmtree(job.result)  # left by an attempt that died before it could record this phase
        job.result.parent.mkdir(parents=True, exist_ok=True)
        staging.rename(job.result)
        num_bytes = sum(file.stat().st_size for file in job.result.iterdir())
        found = {"path": str(job.result), "name": job.result_name, "digest": digest, "num_bytes": num_bytes}
        self.journal.event(
            f"model saved as {job.result_name}: {gigabytes(num_bytes)}, digest {digest[:12]}", data=found
        )
        return found

    def evaluate(self, checkpoints: dict[str, Path]) -> Artifacts:
        """NLL and verified accuracy of several checkpoints on the validation file; each is computed once, ever."""
        results = {label: self._evaluate_one(path) for label, path in checkpoints.items()}
        for label, result in results.items():
            self.journal.event(messages.judged(label, result), data=result)
        before = [label for label in results if label != "result"][-1]
        self.journal.event(messages.compared(before, results))
        if not results["result"]["accuracy"]:
            self.journal.event(
                "no pass@1: not every reference answer of the validation file ends in '#### value'", level="warn"
            )
        return {"results": results}

    def _evaluate_one(self, checkpoint: Path) -> Artifacts:
        job = self.job
        assert job.validation_file is not None
        tokenized = load_tokenized(self._validation_samples_file)
        validated = self._recorded("validate")
        max_length = validated["max_length"]
        samples: list[Sample] = read_samples(job.validation_file, param="validation_file")
        key = _cache_key(
            checkpoint_digest(checkpoint),
            tokens_digest(tokenized),
            [sample.answer for sample in samples],
            validated["end_token_ids"],
            self.engines.provenance(),
            max_length,
        )
        cached = job.cache / "evaluations" / f"{key}.json"
        if cached.is_file():
            return json.loads(cached.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        table = EntropyTable.load(self._score_files(checkpoint, "evaluate", only_validation=True).tables["validation"])
        accuracy = None
        if all(is_verifiable(sample.answer) for sample in samples):
            with self.engines.generator(checkpoint, max_length=max_length) as generator:
                accuracy = verified_accuracy(
                    samples,
                    tokenized,
                    load_tokenizer(checkpoint),
                    generator,
                    end_token_ids=validated["end_token_ids"],
                    max_length=max_length,
                    progress=self._reporter("evaluate"),
                )
        result = {"nll": table.token_nll, "mean_entropy": table.mean_entropy, "accuracy": accuracy}
        cached.parent.mkdir(parents=True, exist_ok=True)
        partial = cached.with_suffix(f".{job.id}.partial")
        partial.write_text(json.dumps(result), encoding="utf-8")
        partial.rename(cached)
        return result

    def _score_files(self, checkpoint: Path, phase: str, *, only_validation: bool = False) -> "_Scored":
        """Entropy tables of the job's files under a checkpoint, from the cache where they are known already."""
        files = {} if only_validation else {"training": self._samples_file}
        if self.job.validation_file is not None:
            files["validation"] = self._validation_samples_file
        samples = {name: load_tokenized(path) for name, path in files.items()}
        max_length = self._recorded("validate")["max_length"]
        digest = checkpoint_digest(checkpoint)
        folder = self.job.cache / "entropy"
        folder.mkdir(parents=True, exist_ok=True)
        provenance = self.engines.provenance()
        tables = {
            name: folder / f"{_cache_key(digest, tokens_digest(rows), provenance)}.parquet"
            for name, rows in samples.items()
        }
        missing = [name for name, table in tables.items() if not table.is_file()]
        if not missing:
            return _Scored(tables)
        with self.engines.scorer(checkpoint, max_length=max_length) as scorer:
            assert scorer.provenance() == provenance, f"{scorer.provenance()} is not the promised {provenance}"
            started = time.monotonic()
            for name in missing:
                table = score_samples(
                    samples[name], scorer, batch_tokens=SCORE_BATCH_TOKENS, progress=self._reporter(phase)
                )
                partial_file = tables[name].with_suffix(f".{self.job.id}.partial")
                table.save(partial_file)
                partial_file.rename(tables[name])
            seconds = time.monotonic() - started
        num_tokens = sum(len(sample.input_ids) for name in missing for sample in samples[name])
        return _Scored(tables, num_tokens, seconds)

    def _recorded(self, phase: str) -> Artifacts:
        artifacts = self.journal.artifacts(phase)
        assert artifacts is not None, f"phase {phase} has not run"
        return artifacts

    def _reporter(self, phase: str) -> Progress:
        return lambda done, total: self.journal.progress(phase, done, total)


@dataclass(frozen=True)
class _Scored:
    """Entropy tables by file, and what it took to make those that were not known; the engine's start not counted."""

    tables: dict[str, Path]
    num_tokens: int = 0
    seconds: float = 0.0


def _cache_key(*parts: Any) -> str:
    text = json.dumps([CACHE_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
