"""Counts and scores of judged responses."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wmss.core.arrays import FloatArray
from wmss.core.estimators import wilson_interval
from wmss.core.selection import normalized
from wmss.errors import DataError, TrainingError
from wmss.records import Split, Verdict
from wmss.rounds.before.task_files import TaskFile
from wmss.rounds.improvement.decisions import HeldOut, LevelCount, LevelScore
from wmss.rounds.improvement.rollouts import Rollout

TRIVIAL = 0.98
"""Acceptance of every level above which there is nothing to learn, or the verifier accepts everything."""
Z_90 = 1.644854


@dataclass(frozen=True)
class Judged:
    """Responses with their verdicts, in one order."""

    rollouts: Sequence[Rollout]
    verdicts: Sequence[Verdict]

    def pairs(self) -> Iterator[tuple[Rollout, bool]]:
        """Each response, and whether it may be learned from: right, and ended by itself."""
        for rollout, verdict in zip(self.rollouts, self.verdicts, strict=True):
            yield rollout, verdict.accepted and rollout.completion.finish_reason == "stop"

    @property
    def num_accepted(self) -> int:
        """How many may be learned from."""
        return sum(accepted for _, accepted in self.pairs())


def pass_rates(judged: Judged) -> dict[int, float]:
    """Share of accepted responses by the line of their task."""
    counts: dict[int, list[bool]] = defaultdict(list)
    for rollout, accepted in judged.pairs():
        counts[rollout.line].append(accepted)
    return {line: sum(found) / len(found) for line, found in counts.items()}


def score(rates: Sequence[float], *, level: int) -> LevelScore:
    """Score of a level from the pass rates of its tasks, at least one."""
    found = np.asarray(rates)
    return LevelScore(
        level=level,
        num_tasks=len(found),
        pass_at_1=float(found.mean()),
        standard_error=_mean_error(found),
        pass_at_k=float((found > 0).mean()),
    )


def _mean_error(values: FloatArray) -> float:
    """Standard error of the mean of one value a task. Where all tasks agree, their number still allows another: the
    error is at least that of a share of half a task."""
    half = 0.5 / (len(values) + 1)
    least = (half * (1 - half) / len(values)) ** 0.5
    spread = values.std(ddof=1) if len(values) > 1 else 0.5
    return float(max(spread / len(values) ** 0.5, least))


def change_errors(before: Mapping[int, float], after: Mapping[int, float], file: TaskFile) -> dict[int, float]:
    """Standard error of the change of pass@1 by level, from the pass rates {line: rate} of two models on the same
    validation tasks: what tasks differ in cancels out."""
    differences: dict[int, list[float]] = defaultdict(list)
    for task in file.tasks:
        if task.split == "validation":
            assert task.level is not None
            differences[task.level].append(after[task.line] - before[task.line])
    return {level: _mean_error(np.asarray(found)) for level, found in differences.items()}


def scores(judged: Judged, file: TaskFile, *, samples_per_task: int) -> HeldOut:
    """Scores by level of the held-out tasks that decide, and of those out of distribution."""
    rates = pass_rates(judged)
    ood = [rates[task.line] for task in file.tasks if task.split == "ood"]
    return HeldOut(
        levels=_by_level(rates, file, "validation"),
        out_of_distribution=score(ood, level=0) if ood else None,
        samples_per_task=samples_per_task,
    )


def test_scores(judged: Judged, file: TaskFile) -> tuple[LevelScore, ...]:
    """Scores by level of the tasks that decided nothing."""
    return _by_level(pass_rates(judged), file, "test")


def _by_level(rates: Mapping[int, float], file: TaskFile, split: Split) -> tuple[LevelScore, ...]:
    found: dict[int, list[float]] = defaultdict(list)
    for task in file.tasks:
        if task.split == split:
            assert task.level is not None
            found[task.level].append(rates[task.line])
    return tuple(score(some, level=level) for level, some in sorted(found.items()))


def level_counts(judged: Judged, selected: Mapping[str, int], num_levels: int) -> tuple[LevelCount, ...]:
    """What became of every level's responses; `selected` counts those learned from, by level."""
    found: dict[int, list[tuple[Rollout, bool]]] = defaultdict(list)
    for rollout, accepted in judged.pairs():
        found[rollout.level].append((rollout, accepted))
    return tuple(_level_count(level, found[level], selected.get(str(level), 0)) for level in range(1, num_levels + 1))


def _level_count(level: int, pairs: Sequence[tuple[Rollout, bool]], num_selected: int) -> LevelCount:
    accepted = [rollout for rollout, right in pairs if right]
    purposes = Counter(rollout.purpose for rollout, _ in pairs)
    return LevelCount(
        level=level,
        purpose=purposes.most_common(1)[0][0] if purposes else "none",
        num_sampled=len(pairs),
        num_accepted=len(accepted),
        interval_90=wilson_interval(len(accepted), len(pairs), z=Z_90) if pairs else None,
        num_truncated=sum(rollout.completion.finish_reason == "length" for rollout, _ in pairs),
        num_distinct=len({(rollout.line, normalized(rollout.text)) for rollout in accepted}),
        num_selected=num_selected,
    )


def refuse_hopeless(judged: Judged) -> None:
    """Raise where the start model's responses to the held-out tasks show that no round could teach anything."""
    cut = [each for each in judged.rollouts if each.completion.finish_reason == "length"]
    if len(cut) == len(judged.rollouts):
        raise TrainingError(
            f"sampling.max_new_tokens: none of {len(cut)} responses of the start model ended by itself, so none could "
            "ever be learned from; raise it, or start from a model that was trained to end its answers",
            param="method.self_improvement.sampling.max_new_tokens",
        )
    rates: dict[str, list[float]] = defaultdict(list)
    by_line = pass_rates(judged)
    for rollout in judged.rollouts:
        rates[f"{rollout.purpose} {rollout.level}"].append(by_line[rollout.line])
    if all(np.mean(found) >= TRIVIAL for found in rates.values()):
        raise DataError(
            f"validation_file: the start model is right on {np.mean(list(by_line.values())):.1%} of the held-out tasks "
            "of every level: there is nothing to learn, or the verifier accepts everything; look at the responses, and "
            "take harder tasks or a stricter verifier",
            param="validation_file",
        )
