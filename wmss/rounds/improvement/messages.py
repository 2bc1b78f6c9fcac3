"""What the owner of a self-improvement job is told: plain sentences of at most some 120 characters."""

from collections import Counter
from collections.abc import Mapping, Sequence

from wmss.records import Task, Verdict
from wmss.rounds.improvement.round_records import Decision, FinalScores, HeldOut, PlannedLevel
from wmss.units import duration


def tasks_read(name: str, tasks: Sequence[Task]) -> str:
    """What is in a task file."""
    levels = Counter(task.level for task in tasks if task.level is not None)
    by_level = ", ".join(f"level {level}: {count:,}" for level, count in sorted(levels.items()))
    return f"{name}: {len(tasks):,} tasks ({by_level or 'levels to be estimated'})"


def levels_estimated(levels: Sequence[int], lowest: Sequence[float], asked: int) -> str:
    """What the start model's pass rates made of the tasks."""
    counts = Counter(levels)
    told = ", ".join(f"level {i}: {counts[i]:,} (pass rate from {rate:.2f})" for i, rate in enumerate(lowest, start=1))
    fewer = f"; {asked} were asked for, but too many tasks have the same rate" if len(lowest) < asked else ""
    return f"levels from the start model's pass rates: {told}{fewer}"


def stands(who: str, held_out: HeldOut) -> str:
    """How good a model is on the held-out tasks."""
    levels = ", ".join(f"level {each.level} {each.pass_at_1:.1%}" for each in held_out.levels)
    ood = held_out.out_of_distribution
    other = "" if ood is None else f"; out of distribution {ood.pass_at_1:.1%}"
    return f"{who}: pass@1 {held_out.pass_at_1:.1%} on held-out tasks ({levels}){other}"


def planned(number: int, levels: Sequence[PlannedLevel], group_size: int) -> str:
    """What a round asks."""
    shares = ", ".join(f"{each.num_prompts:,} of level {each.level} ({each.purpose})" for each in levels)
    return f"round {number}: prompts: {shares}; {group_size} responses to each"


def generated(phase: str, num_samples: int, num_tokens: int, num_cut: int, seconds: float) -> str:
    """What drawing responses took."""
    return (
        f"{phase}: {num_samples:,} responses, {num_tokens:,} tokens in {duration(seconds)}; {num_cut:,} cut at "
        "max_new_tokens"
    )


def verified(phase: str, verdicts: Sequence[Verdict]) -> str:
    """How many responses are right, and what is wrong with the others."""
    labels = Counter(verdict.label for verdict in verdicts)
    others = ", ".join(f"{count:,} {label}" for label, count in labels.most_common() if label != "correct")
    return f"{phase}: {labels['correct']:,} of {len(verdicts):,} responses are right" + (
        f"; {others}" if others else ""
    )


def selected(number: int, counts: Mapping[str, int]) -> str:
    """What every step of the selection left."""
    steps = " → ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in counts.items())
    return f"round {number}: {steps}"


def too_few(phase: str, num_selected: int, needed: int) -> str:
    """That a round does not train."""
    return (
        f"{phase}: {num_selected} selected responses are fewer than min_accepted ({needed}), so nothing is trained: "
        "the model would learn a handful of lucky samples by heart; they are kept"
    )


def decided(decision: Decision) -> list[str]:
    """How a round went, and what follows."""
    rates = ", ".join(
        f"level {each.level} {each.num_accepted}/{each.num_sampled}" for each in decision.levels if each.num_sampled
    )
    told = [f"round {decision.round}: {decision.label}: {decision.reason} (accepted: {rates})"]
    reading = decision.reading
    if reading is not None and reading.v_minus is not None and reading.v_plus is not None:
        told.append(
            f"round {decision.round}: take-off above {reading.v_minus:.3f}, predicted ceiling {reading.v_plus:.3f} "
            f"(difficulty {reading.complexity:.0f} accepted responses)"
        )
    if decision.stop is not None:
        told.append(f"no further round: {decision.stop.message}")
    return told


def tested(scores: FinalScores) -> str:
    """The result beside the start model on tasks that decided nothing."""
    changes = ", ".join(
        f"level {after.level} {before.pass_at_1:.1%} → {after.pass_at_1:.1%} (± {after.standard_error:.1%})"
        for before, after in zip(scores.base, scores.result, strict=True)
    )
    num_tasks = sum(score.num_tasks for score in scores.result)
    return f"pass@1 on {num_tasks} test tasks, which decided nothing: {changes}"
