"""Counts and scores of judged responses."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wmss.core.arrays import FloatArray
from wmss.core.estimators import Z_90, wilson_interval
from wmss.core.selection import normalized
from wmss.errors import DataError, TrainingError
from wmss.records import Split, Verdict
from wmss.rounds.before.task_files import TaskFile
from wmss.rounds.improvement.rollouts import Rollout
from wmss.rounds.improvement.round_records import HeldOut, LevelCount, LevelScore

TRIVIAL = 0.98
"""Acceptance of every level above which there is nothing to learn, or the verifier accepts everything."""


@dataclass(frozen=True)
class JudgedRollouts:
    """Responses with their verdicts, in one order."""

    rollouts: Sequence[Rollout]
    verdicts: Sequence[Verdict]

    def pairs(self) -> Iterator[tuple[Rollout, bool]]:
        """Each response, and whether it may be learned from: right, and ended by itself."""
        for rollout, verdict in zip(self.rollouts, self.verdicts, strict=True):
            yield rollout, verdict.accepted and rollout.completion.finish_reason == "stop"

    def where(self, keep: Callable[[Rollout], bool]) -> "JudgedRollouts":
        """Those responses that a condition holds for."""
        kept = [pair for pair in zip(self.rollouts, self.verdicts, strict=True) if keep(pair[0])]
        return JudgedRollouts([rollout for rollout, _ in kept], [verdict for _, verdict in kept])

    def of_level(self, level: int) -> "JudgedRollouts":
        """The responses to the tasks of a level."""
        return self.where(lambda rollout: rollout.level == level)

    @property
    def accepted(self) -> list[Rollout]:
        """Those that may be learned from."""
        return [rollout for rollout, accepted in self.pairs() if accepted]

    @property
    def num_accepted(self) -> int:
        """How many may be learned from."""
        return len(self.accepted)

    @property
    def num_truncated(self) -> int:
        """How many were cut at the most tokens allowed."""
        return sum(rollout.completion.finish_reason == "length" for rollout in self.rollouts)


def num_distinct(rollouts: Sequence[Rollout]) -> int:
    """Different responses, by task and by text without case and spaces."""
    return len({(rollout.line, normalized(rollout.text)) for rollout in rollouts})


def pass_rates(judged: JudgedRollouts) -> dict[int, float]:
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


def scores(judged: JudgedRollouts, file: TaskFile, *, samples_per_task: int) -> HeldOut:
    """Scores by level of the held-out tasks that decide, and of those out of distribution."""
    rates = pass_rates(judged)
    ood = [rates[task.line] for task in file.tasks if task.split == "ood"]
    return HeldOut(
        levels=_by_level(rates, file, "validation"),
        out_of_distribution=score(ood, level=0) if ood else None,
        samples_per_task=samples_per_task,
    )


def final_scores(judged: JudgedRollouts, file: TaskFile) -> tuple[LevelScore, ...]:
    """Scores by level of the tasks that decided nothing."""
    return _by_level(pass_rates(judged), file, "test")


def _by_level(rates: Mapping[int, float], file: TaskFile, split: Split) -> tuple[LevelScore, ...]:
    found: dict[int, list[float]] = defaultdict(list)
    for task in file.tasks:
        if task.split == split:
            assert task.level is not None
            found[task.level].append(rates[task.line])
    return tuple(score(some, level=level) for level, some in sorted(found.items()))


def level_counts(judged: JudgedRollouts, selected: Mapping[int, int], num_levels: int) -> tuple[LevelCount, ...]:
    """What became of every level's responses; `selected` counts those learned from, by level."""
    return tuple(
        _level_count(level, judged.of_level(level), selected.get(level, 0)) for level in range(1, num_levels + 1)
    )


def _level_count(level: int, judged: JudgedRollouts, num_selected: int) -> LevelCount:
    num_sampled, num_accepted = len(judged.rollouts), judged.num_accepted
    purposes = Counter(rollout.purpose for rollout in judged.rollouts)
    return LevelCount(
        level=level,
        purpose=purposes.most_common(1)[0][0] if purposes else "none",
        num_sampled=num_sampled,
        num_accepted=num_accepted,
        interval_90=wilson_interval(num_accepted, num_sampled, z=Z_90) if num_sampled else None,
        num_truncated=judged.num_truncated,
        num_distinct=num_distinct(judged.accepted),
        num_selected=num_selected,
    )


def refuse_hopeless(judged: JudgedRollouts) -> None:
    """Raise where the start model's responses to the held-out tasks show that no round could teach anything."""
    if judged.num_truncated == len(judged.rollouts):
        raise TrainingError(
            f"sampling.max_new_tokens: none of {len(judged.rollouts)} responses of the start model ended by itself, so "
            "none could ever be learned from; raise it, or start from a model that was trained to end its answers",
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
