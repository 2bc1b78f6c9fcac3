"""Self-improvement, told in order: rounds of plan, generate, verify, select, train, evaluate, decide.

Every phase is recorded when it ends and reads only what was recorded and written before, so a job that starts again
goes on where it stopped, with the same responses: the seed of each is a function of the job's seed, the round, the task
and its number. What a round needs to know of those before it is in the `LoopState` that DECIDE leaves.

Source: the loop of arXiv 2602.10014 as its abstract tells it; details are our reconstruction.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from wmss.config import SelfImprovementConfig, SelfImprovementMethod
from wmss.core.difficulty import level_at, levels_of, lowest_rates
from wmss.core.levels import Curriculum, LevelState, plan_round, start
from wmss.core.selection import Candidate, Key, manifest_digest, select
from wmss.data.tokenization import save_tokenized
from wmss.errors import DataError, TrainingError, raise_all
from wmss.records import Split, TokenizedSample, Verdict
from wmss.rounds.before.improvement_warnings import NO_TEST_ROWS, improvement_warnings
from wmss.rounds.before.preflight import examine
from wmss.rounds.before.task_files import TaskFile, TaskFiles, read_task_files
from wmss.rounds.export import export_result
from wmss.rounds.improvement import messages
from wmss.rounds.improvement.decisions import Best, Decision, HeldOut, LoopState, Round, decide
from wmss.rounds.improvement.judging import (
    Judged,
    change_errors,
    level_counts,
    pass_rates,
    refuse_hopeless,
    scores,
    test_scores,
)
from wmss.rounds.improvement.responses import Panel, Wanted
from wmss.rounds.improvement.rollouts import Rollout, read_judged, read_rollouts, shards_in, write_judged
from wmss.rounds.job import Checkpoint, Engines, Job, StoredCheckpoint, once
from wmss.rounds.journal import Artifacts, Journal
from wmss.rounds.messages import phase_done
from wmss.rounds.phases import IMPROVEMENT_ROUND, in_round, phases_of
from wmss.rounds.training import train_phase
from wmss.scoring.rollouts import sample_seed
from wmss.training.run import TrainingRun
from wmss.verifiers.audit import round_alarms

PILOT_SAMPLES = 8
"""Responses to each training task whose level is estimated."""
HELD_OUT, PILOT = 0, -1
"""What stands for a round's number in the seeds of other responses. Held-out tasks are asked with the same seeds after
every round, so that differences between rounds are less noisy than either."""


def improve(job: Job, engines: Engines, journal: Journal) -> Artifacts:
    """Run all phases of a self-improvement job, skipping what an earlier attempt finished; returns those of `export`.

    Raises:
        TrainingError: rounds ended without any of them having trained; says why, and what to change.
    """
    loop = _Loop(job, engines, journal)
    loop.once("validate", loop.validate)
    state = LoopState.model_validate(loop.once("pilot", loop.pilot)["state"])
    stop = None
    while stop is None:
        decision = Decision.model_validate(loop.round(state))
        state, stop = decision.state, decision.stop
    if state.trained_rounds == 0:
        least = loop.knobs.accept.min_accepted
        raise TrainingError(
            f"nothing was trained: no round accepted the {least} responses that an update needs ({stop.message}); take "
            "easier tasks, raise samples_per_round or lower accept.min_accepted; the responses are kept",
            param="method.self_improvement.accept.min_accepted",
        )
    best = _read(state.best.checkpoint)
    exported = loop.once("export", lambda: loop.export(best, state.best.round))
    loop.once("final_test", loop.final_test)
    return exported


def _read(artifacts: Artifacts) -> Checkpoint:
    return StoredCheckpoint(checkpoint=artifacts["checkpoint"], source=artifacts.get("source")).model


@dataclass
class _Loop:
    """The phases themselves. Each reads and writes files and returns a small JSON record of what it did."""

    job: Job
    engines: Engines
    journal: Journal

    def once(self, phase: str, run: Callable[[], Artifacts]) -> Artifacts:
        """Run a phase unless its artifacts are already recorded."""
        return once(self.journal, phase, run, done=partial(self._done, phase))

    def round(self, state: LoopState) -> Artifacts:
        """The round after `state`; returns the record of its decision."""
        number = state.round + 1
        phases = {kind: in_round(kind, number) for kind in IMPROVEMENT_ROUND}
        plan = self.once(phases["plan"], lambda: self.plan(state))
        self.once(phases["generate"], lambda: self.generate(phases["generate"], state, plan))
        self.once(phases["verify"], lambda: self.verify(phases["verify"], number))
        selected = self.once(phases["select"], lambda: self.select(number))
        trained = self.once(phases["train"], lambda: self.train(phases["train"], state, selected))
        judged = self.once(phases["evaluate"], lambda: self.evaluate(phases["evaluate"], state, trained))
        return self.once(phases["decide"], lambda: self.decide(state, selected, trained, judged))

    def validate(self) -> Artifacts:
        """Refuse what cannot work before an engine is started."""
        job = self.job
        found = examine(job.sources, partial(self.engines.refusals, scoring=True))
        raise_all(found.problems)
        files = found.tasks
        assert files is not None and found.max_length is not None and found.batch_size is not None
        self._files_read = files  # the phases that follow in this attempt need not read them again
        for name, file in (("training file", files.training), ("validation file", files.held_out)):
            self.journal.event(messages.tasks_read(name, file.tasks))
        for warning in improvement_warnings(job.spec, files):
            self.journal.event(f"{warning.param}: {warning.message}", level="warn", data=warning.model_dump())
        return {
            "num_tasks": len(files.training.tasks),
            "num_held_out": len(files.held_out.tasks),
            "end_token_ids": files.end_token_ids,
            "max_length": found.max_length,
            "batch_size": found.batch_size,
        }

    def pilot(self) -> Artifacts:
        """Where the start model stands, and, where levels are to be estimated, which tasks are hard for it."""
        base = Checkpoint.whole(self.job.base)
        began_at = time.time()
        judged = self._judged_held_out("pilot", base, self._folder("pilot") / "held_out", ("validation", "ood"))
        refuse_hopeless(judged)
        levels = None
        held_out_file = self._files.held_out
        if self.knobs.estimate_levels is not None:
            levels = self._estimated_levels(base, self.knobs.estimate_levels)
            held_out_file = held_out_file.with_levels(levels["held_out"])
        held_out = scores(judged, held_out_file, samples_per_task=self.knobs.evaluation_samples)
        state = LoopState(
            current=base.record().model_dump(mode="json"),
            standing=held_out,
            best=Best(round=0, held_out=held_out, checkpoint=base.record().model_dump(mode="json")),
            history=(held_out,),
            curriculum=start(self._curriculum(len(held_out.levels))).to_dict(),
        )
        self.journal.event(messages.stands("the start model", held_out), data=held_out.model_dump())
        return {"state": state.model_dump(mode="json"), "began_at": began_at, "estimated_levels": levels}

    def plan(self, state: LoopState) -> Artifacts:
        """Choose a round's prompts: levels by the curriculum, prompts of a level at random."""
        knobs, number = self.knobs, state.round + 1
        curriculum = self._curriculum(len(state.history[0].levels))
        group_size = knobs.samples_per_prompt
        shares = plan_round(
            curriculum,
            LevelState.from_dict(state.curriculum),
            num_groups=knobs.samples_per_round // group_size,
            group_size=group_size,
        )
        asked: list[dict[str, Any]] = []
        for share in shares:
            level = share.level + 1
            pool = self._files.training.of(level=level)
            # A stream for every round and level: what one level is asked does not depend on the others.
            rng = np.random.default_rng([self.job.spec.seed, number, level])
            cycles = -(-share.num_groups // len(pool))
            order = np.concatenate([rng.permutation(pool) for _ in range(cycles)])[: share.num_groups]
            asked += [
                {"index": int(index), "level": level, "purpose": share.purpose, "first": group_size * (i // len(pool))}
                for i, index in enumerate(order)
            ]
        folder = self._folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(asked), encoding="utf-8")
        levels = [{"level": s.level + 1, "purpose": s.purpose, "num_prompts": s.num_groups} for s in shares]
        self.journal.event(messages.planned(number, levels, group_size), data={"levels": levels})
        return {"levels": levels, "num_prompts": len(asked), "num_samples": group_size * len(asked)}

    def generate(self, phase: str, state: LoopState, plan: Artifacts) -> Artifacts:
        """Responses to the round's prompts, shard by shard: those on disk are not drawn again."""
        number = state.round + 1
        asked = json.loads((self._folder(number) / "plan.json").read_text(encoding="utf-8"))
        wanted = [
            Wanted(each["index"], each["level"], each["purpose"], each["first"] + i)
            for each in asked
            for i in range(self.knobs.samples_per_prompt)
        ]
        started = time.monotonic()
        model, folder = _read(state.current), self._folder(number) / "rollouts"
        rollouts = self._panel.ask(phase, self._files.training, wanted, model, round=number, folder=folder)
        num_tokens = sum(len(each.completion.token_ids) for each in rollouts)
        cut = sum(each.completion.finish_reason == "length" for each in rollouts)
        self.journal.event(messages.generated(phase, len(rollouts), num_tokens, cut, time.monotonic() - started))
        return {"num_samples": len(rollouts), "num_tokens": num_tokens, "num_truncated": cut}

    def verify(self, phase: str, number: int) -> Artifacts:
        """Which responses are right."""
        rollouts = read_rollouts(shards_in(self._folder(number) / "rollouts"))
        verdicts = self._panel.judge(phase, self._files.training, rollouts)
        write_judged(rollouts, verdicts, self._judged_file(number))
        reasons = Counter(f"{verdict.label}: {verdict.detail}" for verdict in verdicts)
        self.journal.event(messages.verified(phase, verdicts), data={"reasons": dict(reasons)})
        self._tell_alarms(number, rollouts, verdicts)
        return {
            "reasons": dict(reasons.most_common()),
            "num_accepted": Judged(rollouts, verdicts).num_accepted,
            "table": str(self._judged_file(number)),
        }

    def select(self, number: int) -> Artifacts:
        """Which of the right ones are learned from, and the file to train on, in its order."""
        accept = self.knobs.accept
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
        return {
            "counts": chosen.counts,
            "num_selected": len(rollouts),
            "levels": {str(level): count for level, count in sorted(levels.items())},
            "manifest_sha256": digest,
        }

    def train(self, phase: str, state: LoopState, selected: Artifacts) -> Artifacts:
        """Maximum likelihood on what was selected, or weak-driven training on it."""
        knobs, number = self.knobs, state.round + 1
        num_samples = selected["num_selected"]
        if num_samples < knobs.accept.min_accepted:
            message = messages.too_few(phase, num_samples, knobs.accept.min_accepted)
            self.journal.event(message, level="warn")
            return {"checkpoint": None, "num_steps": 0}
        current = Checkpoint.whole(self.job.base) if knobs.start_from == "restart" else _read(state.current)
        batch_size = self._recorded("validate")["batch_size"]
        steps, epochs = knobs.steps_per_round, knobs.hyperparameters.num_epochs
        if steps is not None:
            epochs = -(-steps // -(-num_samples // batch_size))
        rate = knobs.hyperparameters.peak_learning_rate * state.learning_rate_factor
        changed = {"max_steps": steps, "learning_rate": rate, "learning_rate_multiplier": None}
        run = TrainingRun(
            phase=phase,
            strong=current.source,
            samples=self._folder(number) / "train.parquet",
            indices=tuple(range(num_samples)),
            batch_size=batch_size,
            num_epochs=epochs,
            hyperparameters=knobs.hyperparameters.model_copy(update=changed),
            parallelism=self.job.spec.resources.parallelism,
            seed=self._seed(number),
            checkpoint_every=self.job.spec.checkpointing.every_steps,
        )
        if state.weak_driven and state.previous is not None:
            run = run.model_copy(
                update={
                    "weak": (_read(state.previous).source,),
                    "weak_shares": (1.0,),
                    "weak_frozen": knobs.weak_driven.weak_update == "frozen",
                    "mixing_weight": knobs.weak_driven.mixing_weight,
                }
            )
        return train_phase(self.job, self.engines, self.journal, run)[1].model_dump(mode="json")

    def evaluate(self, phase: str, state: LoopState, trained: Artifacts) -> Artifacts:
        """How good the new model is on the held-out tasks; one that did not change is not asked again."""
        if trained["checkpoint"] is None:
            return {"held_out": state.standing.model_dump(mode="json"), "errors": None}
        folder = self._folder(state.round + 1) / "held_out"
        judged = self._judged_held_out(phase, _read(trained), folder, ("validation", "ood"))
        held_out = scores(judged, self._files.held_out, samples_per_task=self.knobs.evaluation_samples)
        standing = state.standing_round
        before = Judged(*read_judged(_table_of(self._folder(standing or "pilot") / "held_out")))
        errors = change_errors(pass_rates(before), pass_rates(judged), self._files.held_out)
        self.journal.event(
            messages.stands(f"the model of round {state.round + 1}", held_out), data=held_out.model_dump()
        )
        return {
            "held_out": held_out.model_dump(mode="json"),
            "errors": [[level, error] for level, error in errors.items()],
        }

    def decide(self, state: LoopState, selected: Artifacts, trained: Artifacts, judged: Artifacts) -> Artifacts:
        """How the round went, and what comes next."""
        held_out = HeldOut.model_validate(judged["held_out"])
        done = Round(
            levels=level_counts(self._judged(state.round + 1), selected["levels"], len(held_out.levels)),
            held_out=held_out,
            # Without training nothing can have changed.
            errors={level.level: 0.0 for level in held_out.levels}
            if judged["errors"] is None
            else dict(judged["errors"]),
            checkpoint=None if trained["checkpoint"] is None else trained,
            hours=(time.time() - self._recorded("pilot")["began_at"]) / 3600,
        )
        decision = decide(self.knobs, self._curriculum(len(held_out.levels)), state, done)
        for message in messages.decided(decision):
            self.journal.event(message, data=None)
        return decision.model_dump(mode="json")

    def export(self, best: Checkpoint, number: int) -> Artifacts:
        """The best round's model, not the last one's."""
        if number == 0:
            self.journal.event(
                "no round was better than the start model on the held-out tasks: it is the result", level="warn"
            )
        end_token_ids = self._recorded("validate")["end_token_ids"]
        record = export_result(
            self.job, self.journal, best.folder, end_token_ids=end_token_ids, origin={"round": number}
        )
        return record.model_dump(mode="json")

    def final_test(self) -> Artifacts:
        """The start model and the result on the rows of split `test`, which decided nothing."""
        if not self._files.held_out.of(split="test"):
            self.journal.event(NO_TEST_ROWS, level="warn")
            return {"results": None}
        results = {}
        for label, folder in (("base", self.job.base), ("result", self.job.result)):
            model = Checkpoint.whole(folder)
            judged = self._judged_held_out("final_test", model, self._folder("final_test") / label, ("test",))
            results[label] = [each.model_dump(mode="json") for each in test_scores(judged, self._files.held_out)]
        self.journal.event(messages.tested(results), data=results)
        return {"results": results}

    def _estimated_levels(self, base: Checkpoint, num_levels: int) -> Artifacts:
        """Levels of all tasks from the start model's pass rates; held-out ones take that of equally hard training
        tasks.

        These responses serve nothing else: a score from those that sorted the tasks would flatter the easy levels.
        """
        rates = self._pilot_rates(base, self._files.training, "training")
        found = levels_of(rates, num_levels)
        lowest = lowest_rates(rates, found)
        of_held_out = [level_at(rate, lowest) for rate in self._pilot_rates(base, self._files.held_out, "sorting")]
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
        return {"training": found.tolist(), "held_out": of_held_out}

    def _pilot_rates(self, base: Checkpoint, file: TaskFile, name: str) -> list[float]:
        """Pass rate of every task of a file under the start model."""
        wanted = [Wanted(i, 0, "pilot", sample) for i in range(len(file.tasks)) for sample in range(PILOT_SAMPLES)]
        folder = self._folder("pilot") / name
        rollouts = self._panel.ask("pilot", file, wanted, base, round=PILOT, folder=folder)
        rates = pass_rates(Judged(rollouts, self._panel.judge("pilot", file, rollouts)))
        return [rates[task.line] for task in file.tasks]

    def _judged_held_out(self, phase: str, model: Checkpoint, folder: Path, splits: Sequence[Split]) -> Judged:
        """Responses of a model to the held-out tasks of some splits; the purpose of each is its split."""
        file = self._files.held_out
        wanted = [
            Wanted(index, file.tasks[index].level or 0, split, sample)
            for split in splits
            for index in file.of(split=split)
            for sample in range(self.knobs.evaluation_samples)
        ]
        rollouts = self._panel.ask(phase, file, wanted, model, round=HELD_OUT, folder=folder)
        judged = Judged(rollouts, self._panel.judge(phase, file, rollouts))
        write_judged(judged.rollouts, judged.verdicts, _table_of(folder))
        return judged

    def _judged(self, number: int) -> Judged:
        """The responses of a round that is verified."""
        return Judged(*read_judged(self._judged_file(number)))

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
        plans = [self._recorded(in_round("plan", earlier)) for earlier in range(1, number)]
        before = {share["level"] for plan in plans for share in plan["levels"]}
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
    def _panel(self) -> Panel:
        found = self._recorded("validate")
        return Panel(
            self.job,
            self.engines,
            self.journal,
            self.knobs,
            max_length=found["max_length"],
            end_token_ids=found["end_token_ids"],
        )

    @property
    def _files(self) -> TaskFiles:
        """Both files; as soon as levels are estimated, with them."""
        piloted = self.journal.artifacts("pilot")
        estimated = None if piloted is None else piloted["estimated_levels"]
        return self._files_read if estimated is None else self._files_with_levels

    @cached_property
    def _files_read(self) -> TaskFiles:
        max_length = self._recorded("validate")["max_length"]
        job = self.job
        assert job.validation_file is not None
        return read_task_files(job.spec, job.base, job.training_file, job.validation_file, max_length=max_length)

    @cached_property
    def _files_with_levels(self) -> TaskFiles:
        levels, files = self._recorded("pilot")["estimated_levels"], self._files_read
        return replace(
            files,
            training=files.training.with_levels(levels["training"]),
            held_out=files.held_out.with_levels(levels["held_out"]),
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

    def _recorded(self, phase: str) -> Artifacts:
        artifacts = self.journal.artifacts(phase)
        assert artifacts is not None, f"phase {phase} has not run"
        return artifacts

    def _done(self, phase: str, seconds: float) -> str:
        return phase_done(phases_of(self.job.spec), phase, seconds)


def _table_of(folder: Path) -> Path:
    """Where the judged responses lie whose shards are in a folder."""
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
