"""Weak-driven and supervised jobs: what each phase of the lists in `phases.py` does.

In round t the weak model is M_{t-1} and the strong one M_t, with M_0 the base (or the weak model that the job names)
and M_1 the fine-tuned or given strong one. The strong branch becomes M_{t+1}; the trained weak one is thrown away, and
H(M_t) serves again as the next round's weak entropy.

Source: Weak-Driven Learning (arXiv 2602.08222 v2), Algorithm 1.
"""

import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, assert_never

import numpy as np

from wmss.config import Hyperparameters, WmssConfig, WmssMethod
from wmss.config.base import changed
from wmss.core.saturation import WINDOW, useful_weak
from wmss.data.dataset import read_samples
from wmss.data.states import check_states
from wmss.data.tokenization import load_tokenized, save_tokenized
from wmss.errors import ScoreTableError, raise_all
from wmss.models.loading import load_tokenizer
from wmss.records import in_parts
from wmss.rounds import messages
from wmss.rounds.before.figures import file_figures
from wmss.rounds.before.plan import plan
from wmss.rounds.before.preflight import examine
from wmss.rounds.before.warnings import warnings
from wmss.rounds.export import export_result, read_result_back
from wmss.rounds.job import Checkpoint, Engines, Job, Trained, Tuned
from wmss.rounds.journal import Journal, RecordKind, once, recorded, required
from wmss.rounds.phase_records import Evaluated, Exported, ReadBack, Scored, Validated, Weighed
from wmss.rounds.phases import (
    in_round,
    needs_engine,
    next_training,
    num_epochs,
    num_rounds,
    phases_of,
    weak_driven_phases,
)
from wmss.rounds.scores.cache import Evaluations, Scores, record_scores
from wmss.rounds.training import prepare_training, train_phase
from wmss.rounds.weighing import Pair, draw_samples, drawn_indices, save_draw, tell_extremes, tell_weights, weighed
from wmss.scoring.interfaces import Progress
from wmss.scoring.tables import EntropyTable, check_comparable
from wmss.training.checkpoint_files import MarginReading, is_complete, load_metrics, load_readings
from wmss.training.run import ModelSource, TrainingRun


def run_weak_driven(job: Job, engines: Engines, journal: Journal) -> None:
    """Run the phases that a weak-driven or supervised job has, in their order, skipping those that are recorded."""
    stage = _Stage(job, engines, journal)
    phases = weak_driven_phases(job.spec)
    for place, (kind, number) in enumerate(phases):
        phase = in_round(kind, number)
        prepare_training(job, engines, journal, next_training(phases[place:]))
        match kind:
            case "validate":
                stage.once(phase, Validated, stage.validate)
            case "sft":
                stage.once(phase, Tuned, stage.sft)
            case "score_weak":
                stage.once(phase, Scored, partial(stage.score, "weak", number))
            case "score_strong":
                stage.once(phase, Scored, partial(stage.score, "strong", number))
            case "weigh":
                stage.once(phase, Weighed, partial(stage.weigh, number))
            case "joint":
                stage.once(phase, Trained, partial(stage.joint, number))
                stage.drop_states(number)
            case "export":
                stage.once(phase, Exported, stage.export)
            case "read_back":
                stage.once(phase, ReadBack, stage.read_back)
            case "evaluate":
                stage.once(phase, Evaluated, stage.evaluate)
            case _:
                assert_never(kind)


@dataclass
class _Stage:
    """The phases themselves. Each reads and writes files and returns a small record of what it did; what it needs of
    earlier phases it reads from their records."""

    job: Job
    engines: Engines
    journal: Journal

    def once(self, phase: str, kind: type[RecordKind], run: Callable[[], RecordKind]) -> RecordKind:
        """Run a phase unless it is recorded."""
        done = partial(messages.phase_done, phases_of(self.job.spec), phase)
        return once(self.journal, phase, kind, run, done=done)

    def strong(self, number: int) -> Checkpoint:
        """M_t, the strong model of round `number`; of the round after the last one, the result."""
        if number > 1:
            return required(self.journal, in_round("joint", number - 1), Trained).model
        if self.job.strong is not None:
            return Checkpoint.whole(self.job.strong)
        return required(self.journal, "sft", Tuned).model

    def weak(self, number: int) -> Checkpoint:
        """M_{t-1}, the weak model of round `number`."""
        if number > 1:
            return self.strong(number - 1)
        if self.job.weak is None and self.wmss.start_at == "saturation":
            useful = required(self.journal, "sft", Tuned).useful_weak
            if useful is not None:
                return useful.model
        return Checkpoint.whole(self.job.weak or self.job.base)

    def weak_scores(self, number: int) -> Scored | None:
        """What is known of the entropies of `weak(number)`: scored in this round, or as the strong model of the one
        before."""
        own = recorded(self.journal, in_round("score_weak", number), Scored)
        return own if own is not None or number == 1 else self.strong_scores(number - 1)

    def strong_scores(self, number: int) -> Scored | None:
        """The same of `strong(number)`."""
        return recorded(self.journal, in_round("score_strong", number), Scored)

    def validate(self) -> Validated:
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
        for warning in warnings(spec, found, figures, plan(spec, found)):
            self.journal.event(f"{warning.param}: {warning.message}", level="warn", data=warning.model_dump())
        return Validated(
            num_samples=figures.num_rows,
            num_tokens=figures.num_tokens,
            num_targets=figures.num_targets,
            num_truncated=figures.num_cut,
            end_token_ids=sorted(end_token_ids),
            max_length=found.max_length,
            batch_size=found.batch_size,
        )

    def sft(self) -> Tuned:
        """Supervised fine-tuning of the base on every sample, or only until the margin has flattened."""
        run = self._training_run("sft", 1, Checkpoint.whole(self.job.base), indices=range(self._validated.num_samples))
        if isinstance(self.job.spec.method, WmssMethod):
            run = changed(run, stop_at_saturation=self.wmss.start_at == "saturation")
        folder, trained = train_phase(self.job, self.engines, self.journal, run)
        return self._with_saturation(trained, run, folder)

    def _with_saturation(self, trained: Trained, run: TrainingRun, folder: Path) -> Tuned:
        """Whether the margin flattened in a run of supervised fine-tuning, and which stored checkpoint could be weak.

        Entropies are those of the run's own readings, smoothed; the base counts as step 0.
        """
        metrics, readings = load_metrics(folder), load_readings(folder)
        tuned = Tuned(**dict(trained), saturated_at=metrics.get("saturated_at"))
        if not readings:
            return tuned
        # A worker that was killed while it copied a checkpoint leaves a part of it.
        whole = [other for other in folder.parent.glob("step-*") if is_complete(other)]
        stored = {int(load_metrics(other)["step"]): other for other in whole}
        kept = int(load_metrics(trained.checkpoint.parent)["step"])
        steps = [step for step in stored if step < kept]
        entropies = {0: readings[0].entropy} | {step: _entropy_at(step, readings) for step in steps}
        strong_entropy = _entropy_at(kept, readings)
        step = useful_weak(entropies, strong_entropy)
        gap = None if step is None else entropies[step] - strong_entropy
        self.journal.event(
            messages.saturation(tuned.saturated_at, step, gap),
            data={"saturated_at": tuned.saturated_at, "weak_step": step},
        )
        if step is None:
            return tuned
        weak = Checkpoint.whole(self.job.base) if step == 0 else Checkpoint.of_training(stored[step], run)
        return changed(tuned, useful_weak=weak.record())

    def score(self, which: Literal["weak", "strong"], number: int) -> Scored:
        """Exact entropy of every training sample (and validation sample) under a model of round `number`.

        Hidden states are kept where a round trains on them: the weak model's, in this round or, as weak, in the next.
        """
        if which == "weak":
            return self._score(self.weak(number), in_round("score_weak", number), keep_states=self.wmss.weak_cache)
        keep = self.wmss.weak_cache and number < self.wmss.rounds
        return self._score(self.strong(number), in_round("score_strong", number), keep_states=keep)

    def _score(
        self, model: Checkpoint, phase: str, *, keep_states: bool = False, progress: Progress | None = None
    ) -> Scored:
        files = [self._samples_file]
        if self.job.validation_file is not None:  # while the engine is there
            files.append(self._validation_samples_file)
        outcome = self._scores.score(
            model.folder,
            [load_tokenized(file) for file in files],
            progress or self._reporter(phase),
            states_in=self.job.folder / "states" if keep_states else None,
            states_dtype=self.job.spec.hyperparameters.precision,
        )
        table = record_scores(self.journal, phase, outcome)
        return Scored(**dict(table), states=outcome.states, states_digest=outcome.states_digest)

    def weigh(self, number: int) -> Weighed:
        """Turn the entropies of weak and strong into sampling weights and draw the samples of a round."""
        wmss, job = self.wmss, self.job
        pair = self._comparable_tables(number) if wmss.reads_entropy else None
        # Another stream of random numbers for every round, the same for every restart.
        seed = job.spec.seed if number == 1 else [job.spec.seed, number]
        drawn = draw_samples(wmss, self._validated.num_samples, pair, seed=seed)
        samples = load_tokenized(self._samples_file)
        table = job.folder / f"{in_round('curriculum', number)}.parquet"
        save_draw(drawn, samples, pair, table, origin={"job": job.id, "round": number, "weighting": wmss.weighting})
        record = weighed(wmss, drawn, pair, table=table)
        tell_weights(self.journal, record, drawn, pair)
        if pair is not None:
            tell_extremes(self.journal, drawn, samples, pair, load_tokenizer(job.base))
        return record

    def _comparable_tables(self, number: int) -> Pair:
        """The recorded entropies of weak and strong. If the engines were upgraded between the two, both are scored by
        the new ones; what these have scored before is a cache hit."""
        found = (self.weak_scores(number), self.strong_scores(number))
        try:
            tables = [EntropyTable.load(scored.table) for scored in found if scored is not None]
            check_comparable(*tables)
        except ScoreTableError as error:
            self.journal.event(
                "weak and strong were scored by different engines; scoring both again",
                level="warn",
                data={"why": str(error)},
            )
            models, phase = (self.weak(number), self.strong(number)), in_round("weigh", number)
            parts = in_parts(self._reporter(phase), [self._validated.num_samples] * 2)
            scored = [self._score(model, phase, progress=part) for model, part in zip(models, parts, strict=True)]
            tables = [EntropyTable.load(each.table) for each in scored]
            check_comparable(*tables)
        return Pair(*tables)

    def joint(self, number: int) -> Trained:
        """Train strong (and weak) on the mixed logits of the drawn samples, or of all; or run one of the controls."""
        wmss = self.wmss
        drawn = recorded(self.journal, in_round("weigh", number), Weighed)
        indices = range(self._validated.num_samples) if drawn is None else drawn_indices(drawn)
        run = changed(
            self._training_run("joint", number, self.strong(number), indices=indices),
            mixing_weight=1.0 if wmss.mixing == "off" else wmss.mixing_weight,
            mixing_weight_end=wmss.mixing_weight_end,
            mixing_schedule=wmss.mixing_schedule,
        )
        if wmss.mixing == "logits":
            others = [ModelSource(folder=folder) for folder in self.job.more_weak]
            run = changed(
                run,
                weak=(self._weak_source(number), *others),
                weak_shares=wmss.shares,
                weak_frozen=wmss.weak_update == "frozen",
            )
        return train_phase(self.job, self.engines, self.journal, run)[1]

    def _weak_source(self, number: int) -> ModelSource:
        """The weak model of a round, or its hidden states where they are cached.

        States are verified here, once for all workers and before any of them starts: one more read than the one that
        every epoch costs.
        """
        weak = self.weak(number)
        cached = self.weak_scores(number) if self.wmss.weak_cache else None
        if cached is None or cached.states is None:
            return weak.source
        if cached.states_digest is not None:
            check_states(cached.states, cached.states_digest)
        return ModelSource(folder=weak.folder, states=cached.states)

    def drop_states(self, number: int) -> None:
        """Delete the states that only round `number` reads: they are as large as the data times the width."""
        cached = self.weak_scores(number) if self.wmss.weak_cache else None
        if cached is None or cached.states is None:
            return
        strong = self.strong_scores(number)
        if strong is None or strong.states != cached.states:
            shutil.rmtree(cached.states, ignore_errors=True)

    def _training_run(
        self, kind: Literal["sft", "joint"], number: int, strong: Checkpoint, *, indices: Iterable[int]
    ) -> TrainingRun:
        spec = self.job.spec
        epochs = num_epochs(spec, kind)
        assert epochs is not None, "the configuration resolves the epochs of a phase that runs"
        knobs = spec.hyperparameters.model_dump(include=set(Hyperparameters.model_fields))
        return TrainingRun(
            phase=in_round(kind, number),
            strong=strong.source,
            samples=self._samples_file,
            indices=tuple(indices),
            mixing_weight=1.0,
            batch_size=self._validated.batch_size,
            num_epochs=epochs,
            hyperparameters=Hyperparameters(**knobs),
            parallelism=spec.resources.parallelism,
            seed=spec.seed,
            checkpoint_every=spec.checkpointing.every_steps,
            held_out=None if self.job.validation_file is None else self._validation_samples_file,
            keep=spec.checkpointing.keep,
        )

    def export(self) -> Exported:
        """Put the strong branch, alone, where finished models lie; the weak model of its card is the first round's."""
        weak, strong = self.weak(1).folder if self._num_rounds else None, self.job.strong
        return export_result(
            self.job,
            self.journal,
            self._trained.folder,
            end_token_ids=self._validated.end_token_ids,
            origin={"weak": str(weak) if weak else None, "strong": str(strong) if strong else None},
        )

    def read_back(self) -> ReadBack:
        """Load the result as its users will, and compare it with the strong branch that it was made from."""
        return read_result_back(self.job, self.journal, self._trained.folder)

    def evaluate(self) -> Evaluated:
        """NLL and verified accuracy of the models on the validation file, each a cache hit if it was computed before.

        Of the result the model that is handed out, not the checkpoint it was made from: export rounds to the base's
        precision.
        """
        folders = {"base": self.job.base}
        if self._num_rounds:
            folders["strong_before"] = self.strong(1).folder
        folders |= {f"round_{number}": self.strong(number + 1).folder for number in range(1, self._num_rounds)}
        folders["result"] = self.job.result
        parts = in_parts(self._reporter("evaluate"), [self._evaluations.num_asked] * len(folders))
        results = {
            label: self._evaluations.evaluate(folder, part)
            for (label, folder), part in zip(folders.items(), parts, strict=True)
        }
        for label, result in results.items():
            self.journal.event(messages.judged(label, result), data=result.model_dump(mode="json"))
        before = "strong_before" if "strong_before" in results else "base"
        self.journal.event(messages.compared(before, results))
        if results["result"].accuracy is None:
            self.journal.event(
                "no pass@1: not every reference answer of the validation file ends in '#### value'", level="warn"
            )
        return Evaluated(results=results)

    @property
    def wmss(self) -> WmssConfig:
        """The knobs of a weak-driven job; a supervised one has no phase that asks for them."""
        method = self.job.spec.method
        assert isinstance(method, WmssMethod), f"a job of method {method.type} has no weak-driven phase"
        return method.wmss

    @property
    def _trained(self) -> Checkpoint:
        """What the result is made from."""
        return self.strong(self._num_rounds + 1)

    @property
    def _num_rounds(self) -> int:
        return num_rounds(self.job.spec)

    @property
    def _validated(self) -> Validated:
        return required(self.journal, "validate", Validated)

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
            max_length=self._validated.max_length,
            owner=self.job.id,
            tell=self.journal.event,
        )

    @cached_property
    def _evaluations(self) -> Evaluations:
        assert self.job.validation_file is not None
        tokenized = load_tokenized(self._validation_samples_file)
        kept = {sample.line for sample in tokenized}
        samples = read_samples(self.job.validation_file, param="validation_file")
        return Evaluations(
            self._scores,
            self.engines,
            [sample for sample in samples if sample.line in kept],
            tokenized,
            cache=self.job.cache,
            max_length=self._validated.max_length,
            end_token_ids=self._validated.end_token_ids,
        )

    def _reporter(self, phase: str) -> Progress:
        return lambda done, total: self.journal.progress(phase, done, total)


def _entropy_at(step: int, readings: list[MarginReading]) -> float:
    """Mean of the last readings up to a step: one alone is a handful of samples."""
    return float(np.mean([reading.entropy for reading in readings if reading.step <= step][-WINDOW:]))
