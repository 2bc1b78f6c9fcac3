"""The phases of one job, told in order. Engines and bookkeeping come from outside, so this runs with or without Ray.

Every phase is idempotent: its artifacts are recorded in the journal when it ends, and a job that starts again skips
what is recorded. Files are written under `Job.folder` and `Job.cache`; `export` alone writes `Job.result`.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from wmss.config import Hyperparameters, SelfImprovementMethod, SupervisedMethod, WmssConfig
from wmss.core.sample_weights import TERMS, cap_weights, draw, sampling_weights, weighting_terms
from wmss.core.saturation import MIN_ENTROPY_GAP, WINDOW, useful_weak
from wmss.data.dataset import read_samples
from wmss.data.states import check_states
from wmss.data.tokenization import load_tokenized, save_tokenized
from wmss.errors import ConfigError, ScoreTableError, raise_all
from wmss.models.loading import load_tokenizer
from wmss.records import TokenizedSample
from wmss.rounds import messages
from wmss.rounds.before.dry_run import file_figures, plan, warnings
from wmss.rounds.before.preflight import examine
from wmss.rounds.export import export_result
from wmss.rounds.improvement.loop import improve
from wmss.rounds.job import Checkpoint, Engines, Job, StoredCheckpoint, once
from wmss.rounds.journal import Artifacts, Journal
from wmss.rounds.phases import in_round, needs_engine, phases_of
from wmss.rounds.scores.cache import Evaluations, Scores, tell_scores
from wmss.rounds.training import train_phase
from wmss.scoring.interfaces import Progress
from wmss.scoring.tables import EntropyTable, check_comparable, entropy_change
from wmss.training.checkpoints import MarginReading, is_complete, load_metrics, load_readings
from wmss.training.run import ModelSource, TrainingRun


def run_job(job: Job, engines: Engines, journal: Journal) -> Artifacts:
    """Run all phases of a job, skipping what an earlier attempt finished; returns the artifacts of `export`."""
    method = job.spec.method
    if isinstance(method, SelfImprovementMethod):
        return improve(job, engines, journal).model_dump(mode="json")
    stage = _Stage(job, engines, journal)
    stage.once("validate", stage.validate)
    if isinstance(method, SupervisedMethod):
        knobs = method.supervised.hyperparameters
        tuned = stage.once("sft", lambda: stage.sft(knobs, knobs.num_epochs))
        models = {"base": Checkpoint.whole(job.base), "result": _read(tuned)}
        weak = None
    else:
        models, weak = _weak_driven(stage, method.wmss)
    exported = stage.once("export", lambda: stage.export(models["result"].folder, weak))
    if job.validation_file is not None:
        # The model that is handed out, not the checkpoint it was made from: export rounds to the base's precision.
        folders = {name: model.folder for name, model in models.items()} | {"result": job.result}
        stage.once("evaluate", lambda: stage.evaluate(folders))
    return exported


def _read(artifacts: Artifacts) -> Checkpoint:
    return StoredCheckpoint(checkpoint=artifacts["checkpoint"], source=artifacts.get("source")).model


def _weak_driven(stage: "_Stage", wmss: WmssConfig) -> tuple[dict[str, Checkpoint], Path]:
    """Supervised fine-tuning, then the rounds; returns the models to compare, the result last, and the first weak one.

    In round t the weak model is M_{t-1} and the strong one M_t; the strong branch becomes M_{t+1}, the trained weak one
    is thrown away, and H(M_t) serves again as the next round's weak entropy.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Algorithm 1.
    """
    job = stage.job
    weak = Checkpoint.whole(job.weak or job.base)
    if job.strong is not None:
        strong = Checkpoint.whole(job.strong)
    else:
        num_epochs = wmss.hyperparameters.sft_epochs
        assert num_epochs is not None, "the configuration resolves sft_epochs where the phase runs"
        until_flat = wmss.start_at == "saturation"
        tuned = stage.once("sft", lambda: stage.sft(wmss.hyperparameters, num_epochs, until_flat=until_flat))
        strong = _read(tuned)
        if until_flat and job.weak is None and tuned["useful_weak"] is not None:
            weak = StoredCheckpoint.model_validate(tuned["useful_weak"]).model
    models = {"base": Checkpoint.whole(job.base), "strong_before": strong}
    first_weak = weak.folder
    weak_scores: Artifacts | None = None
    for number in range(1, wmss.rounds + 1):
        result, strong_scores = _one_round(stage, wmss, number, weak, strong, weak_scores)
        weak, strong, weak_scores = strong, result, strong_scores
        models["result" if number == wmss.rounds else f"round_{number}"] = result
    return models, first_weak


def _one_round(
    stage: "_Stage",
    wmss: WmssConfig,
    number: int,
    weak: Checkpoint,
    strong: Checkpoint,
    weak_scores: Artifacts | None,
) -> tuple[Checkpoint, Artifacts | None]:
    """Round `number` with what is known of its weak model; returns its result and what it learned of its strong one."""
    planned = phases_of(stage.job.spec)
    score_weak, score_strong, weigh, joint = (
        in_round(kind, number) for kind in ("score_weak", "score_strong", "weigh", "joint")
    )
    strong_scores: Artifacts | None = None
    drawn: Artifacts | None = None
    if score_weak in planned:
        weak_scores = stage.once(score_weak, lambda: stage.score(weak, score_weak, keep_states=wmss.weak_cache))
    if score_strong in planned:
        keep = wmss.weak_cache and number < wmss.rounds
        strong_scores = stage.once(score_strong, lambda: stage.score(strong, score_strong, keep_states=keep))
    if weigh in planned:
        scored = ((weak, weak_scores), (strong, strong_scores))
        drawn = stage.once(weigh, lambda: stage.weigh(wmss, number, *scored))
    cached = weak_scores if wmss.weak_cache else None
    trained = stage.once(joint, lambda: stage.joint(wmss, joint, weak, strong, drawn, cached))
    if cached is not None and (strong_scores is None or strong_scores["states"] != cached["states"]):
        shutil.rmtree(cached["states"], ignore_errors=True)  # as large as the data times the width, and read here only
    return _read(trained), strong_scores


_Scored = tuple[Checkpoint, Artifacts | None]
"""A model, and what was recorded when it was scored."""


@dataclass
class _Stage:
    """The phases themselves. Each reads and writes files and returns a small JSON record of what it did."""

    job: Job
    engines: Engines
    journal: Journal

    def once(self, phase: str, run: Callable[[], Artifacts]) -> Artifacts:
        """Run a phase unless its artifacts are already recorded."""
        return once(self.journal, phase, run, done=partial(messages.phase_done, phases_of(self.job.spec), phase))

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

    def sft(self, knobs: Hyperparameters, num_epochs: int, *, until_flat: bool = False) -> Artifacts:
        """Supervised fine-tuning of the base on every sample; `until_flat` ends it where the margin has flattened."""
        run = self._training_run(
            "sft",
            Checkpoint.whole(self.job.base),
            knobs,
            num_epochs=num_epochs,
            indices=range(self._recorded("validate")["num_samples"]),
            mixing_weight=1.0,
            stop_at_saturation=until_flat,
        )
        folder, artifacts = self._train(run)
        return artifacts | self._saturation(run, folder)

    def _saturation(self, run: TrainingRun, folder: Path) -> Artifacts:
        """Whether the margin flattened in a run of supervised fine-tuning, and which stored checkpoint could be weak.

        Entropies are those of the run's own readings, smoothed; the base counts as step 0.
        """
        metrics, readings = load_metrics(folder), load_readings(folder)
        saturated_at = metrics.get("saturated_at")
        if not readings:
            return {"saturated_at": saturated_at, "useful_weak": None}
        # A worker that was killed while it copied a checkpoint leaves a part of it.
        whole = [other for other in folder.parent.glob("step-*") if is_complete(other)]
        stored = {int(load_metrics(other)["step"]): other for other in whole}
        steps = [step for step in stored if step < metrics["step"]]
        entropies = {0: readings[0].entropy} | {step: _entropy_at(step, readings) for step in steps}
        strong_entropy = _entropy_at(int(metrics["step"]), readings)
        step = useful_weak(entropies, strong_entropy)
        weak = None
        if step is not None:
            base = Checkpoint.whole(self.job.base)
            weak = (base if step == 0 else Checkpoint.of_training(stored[step], run)).record().model_dump(mode="json")
        gap = None if step is None else entropies[step] - strong_entropy
        self.journal.event(
            messages.saturation(saturated_at, step, gap), data={"saturated_at": saturated_at, "weak_step": step}
        )
        return {"saturated_at": saturated_at, "useful_weak": weak}

    def score(self, model: Checkpoint, phase: str, *, keep_states: bool = False) -> Artifacts:
        """Exact entropy of every training sample (and validation sample) under a checkpoint."""
        files = [self._samples_file]
        if self.job.validation_file is not None:  # while the engine is there
            files.append(self._validation_samples_file)
        scored = self._scores.score(
            model.folder,
            [load_tokenized(file) for file in files],
            self._reporter(phase),
            states_in=self.job.folder / "states" if keep_states else None,
        )
        states = {"states": scored.states and str(scored.states), "states_digest": scored.states_digest}
        return tell_scores(self.journal, phase, scored) | states

    def _comparable_tables(self, phase: str, *scored: _Scored) -> list[EntropyTable]:
        """The recorded entropies of weak and strong. Where an upgrade of the engines came between the two, both are
        scored by those of now; what these have scored already costs nothing."""
        try:
            tables = [EntropyTable.load(Path(recorded["table"])) for _, recorded in scored if recorded is not None]
            check_comparable(*tables)
        except ScoreTableError as error:
            self.journal.event(
                "weak and strong were scored by different engines; scoring both anew",
                level="warn",
                data={"why": str(error)},
            )
            tables = [EntropyTable.load(Path(self.score(model, phase)["table"])) for model, _ in scored]
            check_comparable(*tables)
        return tables

    def weigh(self, wmss: WmssConfig, number: int, *scored: _Scored) -> Artifacts:
        """Turn the entropies of weak and strong into sampling weights and draw the samples of a round's weak-driven
        phase."""
        num_samples: int = self._recorded("validate")["num_samples"]
        phase = in_round("weigh", number)
        weak, strong = self._comparable_tables(phase, *scored) if wmss.reads_entropy else (None, None)
        weights = _weights(wmss, num_samples, weak, strong)
        # Another stream of random numbers for every round, the same for every restart.
        seed = self.job.spec.seed if number == 1 else [self.job.spec.seed, number]
        every_draw = draw(weights, num_draws=num_samples, seed=seed, deduplicate=False)
        times_drawn = np.bincount(every_draw, minlength=num_samples)
        indices = np.flatnonzero(times_drawn) if wmss.deduplicate else every_draw
        table = self.job.folder / f"{in_round('curriculum', number)}.parquet"
        samples = load_tokenized(self._samples_file)
        columns: dict[str, Any] = {
            "line": [sample.line for sample in samples],
            "num_targets": [sample.num_targets for sample in samples],
            "weight": weights,
            "times_drawn": times_drawn,
        }
        unique = int((times_drawn > 0).sum())
        found: Artifacts = {
            "num_unique": unique,
            "num_duplicates": num_samples - unique,
            "effective_sample_size": float(1.0 / np.square(weights).sum()),
            "largest_share": float(weights.max()),
        }
        if weak is not None and strong is not None:
            columns |= {
                "weak_entropy": weak.entropy,
                "strong_entropy": strong.entropy,
                "entropy_delta": entropy_change(weak, strong),
                "weak_nll": weak.nll,
                "strong_nll": strong.nll,
            }
            terms = weighting_terms(weak.entropy, strong.entropy, weighting=wmss.weighting, **wmss.coefficients)
            masses = dict(zip(TERMS[wmss.weighting], (terms.sum(axis=1) / terms.sum()).tolist(), strict=True))
            found |= {
                "term_masses": masses,
                "mean_entropy_weak": weak.mean_entropy,
                "mean_entropy_strong": strong.mean_entropy,
            }
            self.journal.event(messages.entropy_shift(weak.entropy, strong.entropy), data=found)
            self.journal.event(messages.term_masses(masses))
            gap = weak.mean_entropy - strong.mean_entropy
            if gap < MIN_ENTROPY_GAP:
                self.journal.event(messages.close_pair(gap), level="warn", data={"entropy_gap": gap})
        origin = {
            "job": self.job.id,
            "round": number,
            "weighting": wmss.weighting,
            "weak_provenance": weak and weak.provenance,
            "strong_provenance": strong and strong.provenance,
        }
        pq.write_table(pa.table(columns, metadata={"wmss": json.dumps(origin)}), table)
        self.journal.event(messages.drawn(len(indices), unique, num_samples), data=found)
        if weak is not None and strong is not None:
            self._tell_extremes(samples, weak, strong, weights, times_drawn)
        return {"table": str(table), "indices": indices.tolist(), **found}

    def _tell_extremes(
        self,
        samples: Sequence[TokenizedSample],
        weak: EntropyTable,
        strong: EntropyTable,
        weights: Any,
        times_drawn: Any,
    ) -> None:
        """The sample drawn most often, and of those never drawn the least likely one, for a person to look at."""
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

    def joint(
        self,
        wmss: WmssConfig,
        phase: str,
        weak: Checkpoint,
        strong: Checkpoint,
        drawn: Artifacts | None,
        cached: Artifacts | None,
    ) -> Artifacts:
        """Train strong (and weak) on the mixed logits of the drawn samples, or of all; or run one of the controls.

        `cached` is what was recorded with the weak model's hidden states. They are verified here, once for all workers
        and before any of them starts, at the price of one more reading than every epoch costs anyway.
        """
        states = None if cached is None else Path(cached["states"])
        if cached is not None and states is not None and cached.get("states_digest") is not None:
            check_states(states, cached["states_digest"])
        num_samples = self._recorded("validate")["num_samples"]
        run = self._training_run(
            phase,
            strong,
            wmss.hyperparameters,
            num_epochs=wmss.hyperparameters.num_epochs,
            indices=range(num_samples) if drawn is None else drawn["indices"],
            mixing_weight=1.0 if wmss.mixing == "off" else wmss.mixing_weight,
            mixing_weight_end=wmss.mixing_weight_end,
            mixing_schedule=wmss.mixing_schedule,
        )
        if wmss.mixing == "logits":
            others = [ModelSource(folder=folder) for folder in self.job.more_weak]
            first = weak.source if states is None else ModelSource(folder=weak.folder, states=states)
            run = run.model_copy(
                update={
                    "weak": (first, *others),
                    "weak_shares": wmss.shares,
                    "weak_frozen": wmss.weak_update == "frozen",
                }
            )
        return self._train(run)[1]

    def _training_run(
        self,
        phase: str,
        strong: Checkpoint,
        knobs: Hyperparameters,
        *,
        num_epochs: int,
        indices: Iterable[int],
        **others: Any,
    ) -> TrainingRun:
        spec = self.job.spec
        return TrainingRun(
            phase=phase,
            strong=strong.source,
            samples=self._samples_file,
            indices=tuple(indices),
            batch_size=self._recorded("validate")["batch_size"],
            num_epochs=num_epochs,
            hyperparameters=Hyperparameters(**knobs.model_dump(include=set(Hyperparameters.model_fields))),
            parallelism=spec.resources.parallelism,
            seed=spec.seed,
            checkpoint_every=spec.checkpointing.every_steps,
            **others,
        )

    def _train(self, run: TrainingRun) -> tuple[Path, Artifacts]:
        folder, trained = train_phase(self.job, self.engines, self.journal, run)
        return folder, trained.model_dump(mode="json")

    def export(self, checkpoint: Path, weak: Path | None) -> Artifacts:
        """Put the strong branch, alone, where finished models lie; the weak model of its record is the first
        round's."""
        strong = self.job.strong
        exported = export_result(
            self.job,
            self.journal,
            checkpoint,
            end_token_ids=self._recorded("validate")["end_token_ids"],
            origin={"weak": str(weak) if weak else None, "strong": str(strong) if strong else None},
        )
        return exported.model_dump(mode="json")

    def evaluate(self, checkpoints: dict[str, Path]) -> Artifacts:
        """NLL and verified accuracy of several checkpoints on the validation file; each is computed once, ever."""
        results = {
            label: self._evaluations.evaluate(folder, self._reporter("evaluate"))
            for label, folder in checkpoints.items()
        }
        for label, result in results.items():
            self.journal.event(messages.judged(label, result), data=result)
        before = "strong_before" if "strong_before" in results else "base"
        self.journal.event(messages.compared(before, results))
        if not results["result"]["accuracy"]:
            self.journal.event(
                "no pass@1: not every reference answer of the validation file ends in '#### value'", level="warn"
            )
        return {"results": results}

    @property
    def _samples_file(self) -> Path:
        return self.job.folder / "samples.parquet"

    @property
    def _validation_samples_file(self) -> Path:
        return self.job.folder / "validation_samples.parquet"

    @cached_property
    def _scores(self) -> Scores:
        return Scores(
            self.engines,
            cache=self.job.cache,
            max_length=self._recorded("validate")["max_length"],
            owner=self.job.id,
            tell=self.journal.event,
        )

    @cached_property
    def _evaluations(self) -> Evaluations:
        validated = self._recorded("validate")
        assert self.job.validation_file is not None
        return Evaluations(
            self._scores,
            self.engines,
            read_samples(self.job.validation_file, param="validation_file"),
            load_tokenized(self._validation_samples_file),
            cache=self.job.cache,
            max_length=validated["max_length"],
            end_token_ids=validated["end_token_ids"],
        )

    def _recorded(self, phase: str) -> Artifacts:
        artifacts = self.journal.artifacts(phase)
        assert artifacts is not None, f"phase {phase} has not run"
        return artifacts

    def _reporter(self, phase: str) -> Progress:
        return lambda done, total: self.journal.progress(phase, done, total)


def _weights(
    wmss: WmssConfig, num_samples: int, weak: EntropyTable | None, strong: EntropyTable | None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Sampling probabilities as the configuration asks for them."""
    if weak is None or strong is None:
        weights = np.full(num_samples, 1.0 / num_samples)
    else:
        try:
            weights = sampling_weights(weak.entropy, strong.entropy, weighting=wmss.weighting, **wmss.coefficients)
        except ValueError as error:
            raise ConfigError(str(error), param="method.wmss.weighting") from error
    if wmss.max_share is None:
        return weights
    try:
        return cap_weights(weights, wmss.max_share)
    except ValueError as error:
        raise ConfigError(str(error), param="method.wmss.max_share") from error


def _entropy_at(step: int, readings: list[MarginReading]) -> float:
    """Mean of the last readings up to a step: one alone is a handful of samples."""
    return float(np.mean([reading.entropy for reading in readings if reading.step <= step][-WINDOW:]))
