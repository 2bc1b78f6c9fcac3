"""Self-improvement, told in order: rounds of plan, generate, verify, select, train, evaluate, decide.

Every phase is recorded when it ends and reads only what was recorded and written before, so a job that starts again
goes on where it stopped, with the same responses: the seed of each is a function of the job's seed, the round, the task
and its number. State carried from one round to the next is a `LoopState`; `decide` records it at the end of each round.

Source: the loop of arXiv 2602.10014 as its abstract tells it; details are our reconstruction.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter

from wmss.config import SelfImprovementConfig, SelfImprovementMethod
from wmss.config.base import changed
from wmss.core.difficulty import level_at, levels_of, lowest_rates
from wmss.core.levels import Curriculum, plan_round, start
from wmss.core.selection import Candidate, Key, manifest_digest, select
from wmss.data.tokenization import save_tokenized
from wmss.errors import DataError, TrainingError, raise_all
from wmss.records import Progress, Split, TokenizedSample, Verdict, in_parts
from wmss.rounds.before.improvement_warnings import NO_TEST_ROWS, improvement_warnings
from wmss.rounds.before.preflight import examine
from wmss.rounds.before.task_files import TaskFile, TaskFiles, read_task_files
from wmss.rounds.before.warnings import padded
from wmss.rounds.export import export_result, read_result_back
from wmss.rounds.improvement import messages
from wmss.rounds.improvement.decisions import Round, decide
from wmss.rounds.improvement.judging import (
    JudgedRollouts,
    change_errors,
    final_scores,
    level_counts,
    pass_rates,
    refuse_hopeless,
    scores,
)
from wmss.rounds.improvement.responses import ResponseSampler, Wanted
from wmss.rounds.improvement.rollouts import Rollout, read_judged, read_rollouts, shards_in, write_judged
from wmss.rounds.improvement.round_records import (
    Best,
    Decision,
    DrawnResponses,
    EstimatedLevels,
    EvaluatedRound,
    FinalScores,
    FinalTest,
    LoopState,
    PlannedLevel,
    PlannedPrompt,
    RoundPlan,
    RoundUpdate,
    SelectedResponses,
    StartModel,
    TaskCounts,
    VerifiedResponses,
)
from wmss.rounds.job import Checkpoint, Engines, Job
from wmss.rounds.journal import Journal, Record, RecordKind, once, recorded, required
from wmss.rounds.messages import phase_done
from wmss.rounds.phase_records import Exported, ReadBack
from wmss.rounds.phases import IMPROVEMENT_ROUND, in_round, phases_of
from wmss.rounds.training import prepare_training, train_phase
from wmss.scoring.rollouts import sample_seed
from wmss.training.run import TrainingRun
from wmss.verifiers.audit import round_alarms

PILOT_SAMPLES = 8
"""Responses to each training task whose level is estimated."""
HELD_OUT, PILOT = 0, -1
"""What stands for a round's number in the seeds of other responses. Held-out tasks are asked with the same seeds after
every round, so that differences between rounds are less noisy than either."""

_PROMPTS = TypeAdapter(list[PlannedPrompt])
"""What the file `plan.json` of a round holds."""


def improve(job: Job, engines: Engines, journal: Journal) -> Exported:
    """Run all phases of a self-improvement job, skipping what an earlier attempt finished; returns that of `export`.

    Raises:
        TrainingError: rounds ended without any of them having trained; says why, and what to change.
    """
    loop = _Loop(job, engines, journal)
    loop.once("validate", TaskCounts, loop.validate)
    state = loop.once("pilot", StartModel, loop.pilot).state
    stop = None
    while stop is None:
        decision = loop.round(state)
        state, stop = decision.state, decision.stop
    if state.trained_rounds == 0:
        least = loop.knobs.accept.min_accepted
        raise TrainingError(
            f"nothing was trained: no round accepted the {least} responses that an update needs ({stop.message}); take "
            "easier tasks, raise samples_per_round or lower accept.min_accepted; the responses are kept",
            param="method.self_improvement.accept.min_accepted",
        )
    best = state.best.checkpoint.model
    exported = loop.once("export", Exported, lambda: loop.export(best, state.best.round))
    loop.once("read_back", ReadBack, lambda: read_result_back(job, journal, best.folder))
    loop.once("final_test", FinalTest, loop.final_test)
    return exported


@dataclass
class _Loop:
    """The phases themselves. Each reads and writes files and returns a small record of what it did."""

    job: Job
    engines: Engines
    journal: Journal

    def once(self, phase: str, kind: type[RecordKind], run: Callable[[], RecordKind]) -> RecordKind:
        """Run a phase unless its record is already there."""
        return once(self.journal, phase, kind, run, done=partial(phase_done, phases_of(self.job.spec), phase))

    def round(self, state: LoopState) -> Decision:
        """The round after `state`; returns its decision."""
        record: Record | None = None
        prepare_training(self.job, self.engines, self.journal, in_round("train", state.round + 1))
        for kind, step in _ROUND:
            record = self.once(in_round(kind, state.round + 1), step.record, partial(step.run, self, state))
        assert isinstance(record, Decision), "expected `decide` as the last phase of a round"
        return record

    def validate(self) -> TaskCounts:
        """Refuse what cannot work before an engine is started."""
        job = self.job
        found = examine(job.sources, partial(self.engines.refusals, scoring=True))
        raise_all(found.problems)
        files = found.tasks
        assert files is not None and found.max_length is not None and found.batch_size is not None
        self._files_read = files  # the phases that follow in this attempt need not read them again
        for name, file in (("training file", files.training), ("validation file", files.held_out)):
            self.journal.event(messages.tasks_read(name, file.tasks))
        for warning in (*improvement_warnings(job.spec, files), *padded(found, job.spec)):
            self.journal.event(f"{warning.param}: {warning.message}", level="warn", data=warning.model_dump())
        return TaskCounts(
            num_tasks=len(files.training.tasks),
            num_held_out=len(files.held_out.tasks),
            end_token_ids=tuple(files.end_token_ids),
            max_length=found.max_length,
            batch_size=found.batch_size,
        )

    def pilot(self) -> StartModel:
        """Where the start model stands, and, where levels are to be estimated, which tasks are hard for it."""
        base = Checkpoint.whole(self.job.base)
        began_at = time.time()
        training, held_out_file = self._files.training, self._files.held_out
        files = () if self.knobs.estimate_levels is None else (training, held_out_file)
        sizes = [2 * PILOT_SAMPLES * len(file.tasks) for file in files]
        asked = self._held_out(("validation", "ood"))
        progress, *sorting = in_parts(partial(self.journal.progress, "pilot"), [2 * len(asked), *sizes])
        judged = self._judged_held_out(progress, base, self._folder("pilot") / "held_out", asked)
        refuse_hopeless(judged)
        levels = None
        if self.knobs.estimate_levels is not None:
            levels = self._estimated_levels(base, self.knobs.estimate_levels, sorting)
            held_out_file = held_out_file.with_levels(levels.held_out)
        held_out = scores(judged, held_out_file, samples_per_task=self.knobs.evaluation_samples)
        state = LoopState(
            current=base.record(),
            standing=held_out,
            best=Best(round=0, held_out=held_out, checkpoint=base.record()),
            history=(held_out,),
            curriculum=start(self._curriculum(len(held_out.levels))),
        )
        self.journal.event(messages.stands("the start model", held_out), data=held_out.model_dump())
        return StartModel(state=state, began_at=began_at, estimated_levels=levels)

    def plan(self, state: LoopState) -> RoundPlan:
        """Choose a round's prompts: levels by the curriculum, prompts of a level at random."""
        knobs, number = self.knobs, state.round + 1
        curriculum = self._curriculum(len(state.history[0].levels))
        group_size = knobs.samples_per_prompt
        shares = plan_round(
            curriculum,
            state.curriculum,
            num_groups=knobs.samples_per_round // group_size,
            group_size=group_size,
        )
        asked: list[PlannedPrompt] = []
        for share in shares:
            level = share.level + 1
            pool = self._files.training.of(level=level)
            # A stream for every round and level: what one level is asked does not depend on the others.
            rng = np.random.default_rng([self.job.spec.seed, number, level])
            cycles = -(-share.num_groups // len(pool))
            order = np.concatenate([rng.permutation(pool) for _ in range(cycles)])[: share.num_groups]
            asked += [
                PlannedPrompt(index=index, level=level, purpose=share.purpose, first=group_size * (i // len(pool)))
                for i, index in enumerate(order.tolist())
            ]
        folder = self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_bytes(_PROMPTS.dump_json(asked))
        levels = tuple(PlannedLevel(level=s.level + 1, purpose=s.purpose, num_prompts=s.num_groups) for s in shares)
        told = {"levels": [level.model_dump() for level in levels]}
        self.journal.event(messages.planned(number, levels, group_size), data=told)
        return RoundPlan(levels=levels, num_prompts=len(asked), num_samples=group_size * len(asked))

    def generate(self, state: LoopState) -> DrawnResponses:
        """Responses to the round's prompts, shard by shard: those on disk are not drawn again."""
        number = state.round + 1
        phase = in_round("generate", number)
        asked = _PROMPTS.validate_json((self._folder(number) / "plan.json").read_bytes())
        wanted = [
            Wanted(each.index, each.level, each.purpose, each.first + i)
            for each in asked
            for i in range(self.knobs.samples_per_prompt)
        ]
        started = time.monotonic()
        model, folder = state.current.model, self._folder(number) / "rollouts"
        progress = partial(self.journal.progress, phase)
        rollouts = self._sampler.ask(progress, self._files.training, wanted, model, round=number, folder=folder)
        num_tokens = sum(len(each.completion.token_ids) for each in rollouts)
        cut = sum(each.completion.finish_reason == "length" for each in rollouts)
        self.journal.event(messages.generated(phase, len(rollouts), num_tokens, cut, time.monotonic() - started))
        return DrawnResponses(num_samples=len(rollouts), num_tokens=num_tokens, num_truncated=cut)

    def verify(self, state: LoopState) -> VerifiedResponses:
        """Which responses are right."""
        number = state.round + 1
        phase = in_round("verify", number)
        rollouts = read_rollouts(shards_in(self._folder(number) / "rollouts"))
        verdicts = self._sampler.judge(partial(self.journal.progress, phase), self._files.training, rollouts)
        write_judged(rollouts, verdicts, self._judged_file(number))
        reasons = Counter(f"{verdict.label}: {verdict.detail}" for verdict in verdicts)
        self.journal.event(messages.verified(phase, verdicts), data={"reasons": dict(reasons)})
        self._tell_alarms(number, rollouts, verdicts)
        return VerifiedResponses(
            reasons=dict(reasons.most_common()),
            num_accepted=JudgedRollouts(rollouts, verdicts).num_accepted,
            table=self._judged_file(number),
        )

    def select(self, state: LoopState) -> SelectedResponses:
        """Which of the right ones are learned from, and the file to train on, in its order."""
        accept, number = self.knobs.accept, state.round + 1
        first = 1 if accept.window is None else max(1, number - accept.window + 1)
        candidates: dict[Key, tuple[Candidate, Rollout]] = {}
        for earlier in range(first, number + 1):
            for rollout, accepted in self._judged(earlier).pairs():
                key = (earlier, rollout.line, rollout.sample)
                candidates[key] = _candidate(key, rollout, accepted), rollout
        chosen = select(
            (candidate for candidate, _ in candidates.values()),
            seed=self._seed(number),
            deduplicate=accept.deduplicate,
            max_per_prompt=accept.max_per_prompt,
            max_level_share=accept.max_level_share,
            min_kept=accept.min_accepted,
        )
        rollouts = [candidates[key][1] for key in chosen.keys]
        digest = manifest_digest(chosen.keys, [each.completion.token_ids for each in rollouts])
        folder = self._folder(number)
        save_tokenized([self._sample(each) for each in rollouts], folder / "train.parquet")
        manifest = {"keys": [list(key) for key in chosen.keys], "counts": chosen.counts, "sha256": digest}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        levels = Counter(each.level for each in rollouts)
        self.journal.event(messages.selected(number, chosen.counts), data=chosen.counts)
        return SelectedResponses(
            counts=chosen.counts,
            num_selected=len(rollouts),
            levels=dict(sorted(levels.items())),
            manifest_sha256=digest,
        )

    def train(self, state: LoopState) -> RoundUpdate:
        """Maximum likelihood on what was selected, or weak-driven training on it."""
        knobs, number = self.knobs, state.round + 1
        phase = in_round("train", number)
        num_samples = required(self.journal, in_round("select", number), SelectedResponses).num_selected
        if num_samples < knobs.accept.min_accepted:
            message = messages.too_few(phase, num_samples, knobs.accept.min_accepted)
            self.journal.event(message, level="warn")
            return RoundUpdate.of(None)
        current = Checkpoint.whole(self.job.base) if knobs.start_from == "restart" else state.current.model
        batch_size = self._validated.batch_size
        steps, epochs = knobs.steps_per_round, knobs.hyperparameters.num_epochs
        if steps is not None:
            epochs = -(-steps // -(-num_samples // batch_size))
        rate = knobs.hyperparameters.peak_learning_rate * state.learning_rate_factor
        run = TrainingRun(
            phase=phase,
            strong=current.source,
            samples=self._folder(number) / "train.parquet",
            indices=tuple(range(num_samples)),
            batch_size=batch_size,
            num_epochs=epochs,
            mixing_weight=1.0,
            hyperparameters=changed(
                knobs.hyperparameters, max_steps=steps, learning_rate=rate, learning_rate_multiplier=None
            ),
            parallelism=self.job.spec.resources.parallelism,
            seed=self._seed(number),
            checkpoint_every=self.job.spec.checkpointing.every_steps,
        )
        if state.weak_driven and state.previous is not None:
            run = changed(
                run,
                weak=(state.previous.model.source,),
                weak_shares=(1.0,),
                weak_frozen=knobs.weak_driven.weak_update == "frozen",
                mixing_weight=knobs.weak_driven.mixing_weight,
            )
        return RoundUpdate.of(train_phase(self.job, self.engines, self.journal, run)[1])

    def evaluate(self, state: LoopState) -> EvaluatedRound:
        """How good the new model is on the held-out tasks; one that did not change is not asked again."""
        number, files = state.round + 1, self._files
        trained = required(self.journal, in_round("train", number), RoundUpdate).trained
        if trained is None:
            return EvaluatedRound(held_out=state.standing, errors=None)
        folder, phase = self._folder(number) / "held_out", in_round("evaluate", number)
        progress = partial(self.journal.progress, phase)
        judged = self._judged_held_out(progress, trained.model, folder, self._held_out(("validation", "ood")))
        held_out = scores(judged, files.held_out, samples_per_task=self.knobs.evaluation_samples)
        before = JudgedRollouts(*read_judged(_table_of(self._folder(state.standing_round or "pilot") / "held_out")))
        errors = change_errors(pass_rates(before), pass_rates(judged), files.held_out)
        self.journal.event(messages.stands(f"the model of round {number}", held_out), data=held_out.model_dump())
        return EvaluatedRound(held_out=held_out, errors=tuple(errors.items()))

    def decide(self, state: LoopState) -> Decision:
        """How the round went, and what comes next."""
        number = state.round + 1
        selected = required(self.journal, in_round("select", number), SelectedResponses)
        evaluated = required(self.journal, in_round("evaluate", number), EvaluatedRound)
        num_levels = len(evaluated.held_out.levels)
        # Without training nothing can have changed.
        unchanged = {level.level: 0.0 for level in evaluated.held_out.levels}
        done = Round(
            levels=level_counts(self._judged(number), selected.levels, num_levels),
            held_out=evaluated.held_out,
            errors=unchanged if evaluated.errors is None else dict(evaluated.errors),
            checkpoint=required(self.journal, in_round("train", number), RoundUpdate).trained,
            hours=(time.time() - required(self.journal, "pilot", StartModel).began_at) / 3600,
        )
        decision = decide(self.knobs, self._curriculum(num_levels), state, done)
        for message in messages.decided(decision):
            self.journal.event(message, data=None)
        return decision

    def export(self, best: Checkpoint, number: int) -> Exported:
        """The best round's model, not the last one's."""
        if number == 0:
            self.journal.event(
                "no round was better than the start model on the held-out tasks: it is the result", level="warn"
            )
        end_token_ids = list(self._validated.end_token_ids)
        return export_result(self.job, self.journal, best.folder, end_token_ids=end_token_ids, origin={"round": number})

    def final_test(self) -> FinalTest:
        """The start model and the result on the rows of split `test`, which decided nothing."""
        file = self._files.held_out
        if not file.of(split="test"):
            self.journal.event(NO_TEST_ROWS, level="warn")
            return FinalTest(results=None)
        asked = self._held_out(("test",))
        parts = in_parts(partial(self.journal.progress, "final_test"), [2 * len(asked)] * 2)
        base, result = (
            self._judged_held_out(progress, Checkpoint.whole(model), self._folder("final_test") / label, asked)
            for progress, label, model in zip(parts, ("base", "result"), (self.job.base, self.job.result), strict=True)
        )
        tested = FinalScores(base=final_scores(base, file), result=final_scores(result, file))
        self.journal.event(messages.tested(tested), data=tested.model_dump())
        return FinalTest(results=tested)

    def _estimated_levels(self, base: Checkpoint, num_levels: int, progress: Sequence[Progress]) -> EstimatedLevels:
        """Levels of all tasks from the start model's pass rates; held-out ones take that of equally hard training
        tasks.

        These responses serve nothing else: a score from those that sorted the tasks would flatter the easy levels.
        """
        rates = self._pilot_rates(base, self._files.training, "training", progress[0])
        found = levels_of(rates, num_levels)
        lowest = lowest_rates(rates, found)
        held_out_rates = self._pilot_rates(base, self._files.held_out, "sorting", progress[1])
        of_held_out = [level_at(rate, lowest) for rate in held_out_rates]
        self.journal.event(messages.levels_estimated(found.tolist(), lowest, num_levels))
        tasks = self._files.held_out.tasks
        judged = {level for task, level in zip(tasks, of_held_out, strict=True) if task.split == "validation"}
        unjudged = sorted(set(found.tolist()) - judged)
        if unjudged:
            raise DataError(
                f"validation_file: no held-out task is as hard as the estimated level {unjudged[0]} of {max(found)}; "
                "add held-out tasks like those of the training file, or lower estimate_levels",
                param="validation_file",
            )
        return EstimatedLevels(training=tuple(found.tolist()), held_out=tuple(of_held_out))

    def _pilot_rates(self, base: Checkpoint, file: TaskFile, name: str, progress: Progress) -> list[float]:
        """Pass rate of every task of a file under the start model."""
        wanted = [Wanted(i, 0, "pilot", sample) for i in range(len(file.tasks)) for sample in range(PILOT_SAMPLES)]
        folder = self._folder("pilot") / name
        asking, judging = in_parts(progress, (len(wanted), len(wanted)))
        rollouts = self._sampler.ask(asking, file, wanted, base, round=PILOT, folder=folder)
        rates = pass_rates(JudgedRollouts(rollouts, self._sampler.judge(judging, file, rollouts)))
        return [rates[task.line] for task in file.tasks]

    def _held_out(self, splits: Sequence[Split]) -> list[Wanted]:
        """Responses to the held-out tasks of some splits; the purpose of each is its split."""
        file = self._files.held_out
        return [
            Wanted(index, file.tasks[index].level or 0, split, sample)
            for split in splits
            for index in file.of(split=split)
            for sample in range(self.knobs.evaluation_samples)
        ]

    def _judged_held_out(
        self, progress: Progress, model: Checkpoint, folder: Path, wanted: Sequence[Wanted]
    ) -> JudgedRollouts:
        """Responses of a model to held-out tasks with their verdicts; `progress` is over both."""
        file = self._files.held_out
        asking, judging = in_parts(progress, (len(wanted), len(wanted)))
        rollouts = self._sampler.ask(asking, file, wanted, model, round=HELD_OUT, folder=folder)
        judged = JudgedRollouts(rollouts, self._sampler.judge(judging, file, rollouts))
        write_judged(judged.rollouts, judged.verdicts, _table_of(folder))
        return judged

    def _judged(self, number: int) -> JudgedRollouts:
        """The responses of a round that is verified."""
        return JudgedRollouts(*read_judged(self._judged_file(number)))

    def _judged_file(self, number: int) -> Path:
        return self._folder(number) / "rollouts.parquet"

    def _sample(self, rollout: Rollout) -> TokenizedSample:
        """A response to learn from: the very tokens that were drawn, since text may be cut into others."""
        prompt = self._prompts[rollout.line]
        ids = np.array([*prompt, *rollout.completion.token_ids], dtype=np.int32)
        return TokenizedSample(line=rollout.line, input_ids=ids, target_mask=np.arange(len(ids)) >= len(prompt))

    def _tell_alarms(self, number: int, rollouts: Sequence[Rollout], verdicts: Sequence[Verdict]) -> None:
        tasks = self._files.training.at_line
        judged = [(tasks[each.line], each.text, verdict) for each, verdict in zip(rollouts, verdicts, strict=True)]
        plans = [required(self.journal, in_round("plan", earlier), RoundPlan) for earlier in range(1, number)]
        before = {share.level for plan in plans for share in plan.levels}
        fresh = {rollout.level for rollout in rollouts} - before
        for alarm in round_alarms(judged, fresh_levels=fresh):
            self.journal.event(alarm.message, level="warn", data={"code": alarm.code, **alarm.data})

    def _curriculum(self, num_levels: int) -> Curriculum:
        knobs = self.knobs.curriculum
        low, high = knobs.band
        return Curriculum(
            policy=knobs.policy,
            num_levels=num_levels,
            num_rounds=self.knobs.rounds,
            target=knobs.target,
            low=low,
            high=high,
            probe_fraction=knobs.probe_fraction,
            replay_fraction=knobs.replay_fraction,
            patience=knobs.patience,
            min_accepted=self.knobs.accept.min_accepted,
        )

    @property
    def knobs(self) -> SelfImprovementConfig:
        """The method's."""
        method = self.job.spec.method
        assert isinstance(method, SelfImprovementMethod)
        return method.self_improvement

    @cached_property
    def _sampler(self) -> ResponseSampler:
        return ResponseSampler(
            self.job,
            self.engines,
            self.knobs,
            max_length=self._validated.max_length,
            end_token_ids=self._validated.end_token_ids,
        )

    @cached_property
    def _validated(self) -> TaskCounts:
        return required(self.journal, "validate", TaskCounts)

    @property
    def _files(self) -> TaskFiles:
        """Both files; as soon as levels are estimated, with them."""
        piloted = recorded(self.journal, "pilot", StartModel)
        estimated = None if piloted is None else piloted.estimated_levels
        return self._files_read if estimated is None else self._files_with_levels

    @cached_property
    def _files_read(self) -> TaskFiles:
        job = self.job
        return read_task_files(job.spec, job.base, job.sources.named_files, max_length=self._validated.max_length)

    @cached_property
    def _files_with_levels(self) -> TaskFiles:
        levels, files = required(self.journal, "pilot", StartModel).estimated_levels, self._files_read
        assert levels is not None
        return replace(
            files,
            training=files.training.with_levels(levels.training),
            held_out=files.held_out.with_levels(levels.held_out),
        )

    @cached_property
    def _prompts(self) -> dict[int, list[int]]:
        file = self._files_read.training
        return {task.line: prompt for task, prompt in zip(file.tasks, file.prompts, strict=True)}

    def _seed(self, number: int) -> int:
        """Of a round's selection and training. Hashed: jobs with neighbouring seeds share no round's."""
        return sample_seed(self.job.spec.seed, number, 0, 0) % 2**32

    def _folder(self, part: int | str) -> Path:
        """Where the files of a round, or of another phase, lie."""
        return self.job.folder / (part if isinstance(part, str) else f"round-{part:03d}")


class _Step(NamedTuple):
    """A phase of a round: what it leaves, and what runs it."""

    record: type[Record]
    run: Callable[[_Loop, LoopState], Record]


_STEPS = {
    "plan": _Step(RoundPlan, _Loop.plan),
    "generate": _Step(DrawnResponses, _Loop.generate),
    "verify": _Step(VerifiedResponses, _Loop.verify),
    "select": _Step(SelectedResponses, _Loop.select),
    "train": _Step(RoundUpdate, _Loop.train),
    "evaluate": _Step(EvaluatedRound, _Loop.evaluate),
    "decide": _Step(Decision, _Loop.decide),
}
_ROUND = [(kind, _STEPS[kind]) for kind in IMPROVEMENT_ROUND]
"""The phases of a round in their order. A phase without a step fails here, when the file is imported."""


def _table_of(folder: Path) -> Path:
    """The file of the judged responses for a folder of shards."""
    return folder.with_suffix(".parquet")


def _candidate(key: Key, rollout: Rollout, accepted: bool) -> Candidate:
    return Candidate(
        key=key,
        prompt=rollout.line,
        level=rollout.level,
        token_ids=rollout.completion.token_ids,
        text=rollout.text,
        finish_reason=rollout.completion.finish_reason,
        accepted=accepted,
    )
