"""How many samples a round does each curriculum need? Our reconstruction of the theory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from wmss.theory.recursion import (
    check_at_least_zero,
    check_unit,
    fixed_points,
    largest_ratio,
)


@dataclass(frozen=True)
class SampleThresholds:
    """Samples a round must have more than, for a guarantee on the hardest level; infinite where none is enough."""

    easy_to_hard: float
    uniform: float
    hard_only: float


def curriculum_thresholds(starts: Sequence[float], *, complexity: float, alpha: float = 1.0) -> SampleThresholds:
    """Budgets per round above which each curriculum's bound ends at its ceiling on the hardest level.

    `starts` are the acceptances of the levels at the start, easy to hard. Neighbours are taken to keep at least the
    ratio κ = min(1, start of the harder / start of the easier) while the model improves. Easy-to-hard trains a level
    to V₊(a/n) before it goes on, so level l + 1 begins at max(κ V₊, its own start), which must exceed V₋; a uniform
    mixture has n/L samples for each level; hard-only must begin above V₋. With equal κ, α = 1 and a start that clears
    V₋: a (1+κ)²/κ, L times that, and a / (v_L (1−v_L)).
    """
    rates = checked_starts(starts)
    check_at_least_zero("complexity", complexity)
    ratios = level_ratios(rates)

    def stages_work(c: float) -> bool:
        if not _takes_off(rates[0], c, alpha):
            return False
        points = fixed_points(c, alpha=alpha)
        ceiling = points[1] if points else 0.0
        return all(
            _takes_off(max(ratio * ceiling, own), c, alpha) for ratio, own in zip(ratios, rates[1:], strict=True)
        )

    staged = complexity / _largest(stages_work, alpha)
    alone = complexity / _largest(lambda c: _takes_off(rates[-1], c, alpha), alpha)
    return SampleThresholds(easy_to_hard=staged, uniform=len(rates) * staged, hard_only=alone)


def checked_starts(starts: Sequence[float]) -> list[float]:
    """The acceptances of the levels; refused where there is none, or one is not between 0 and 1."""
    if not len(starts):
        raise ValueError("starts: expected the acceptance of at least one level, got none")
    for place, rate in enumerate(starts):
        check_unit(f"starts[{place}]", rate)
    return [float(rate) for rate in starts]


def level_ratios(rates: Sequence[float]) -> list[float]:
    """κ of every pair of neighbours, [num_levels − 1], in [0, 1]; 0 where the easier level is never accepted."""
    return [min(1.0, harder / easier) if easier else 0.0 for easier, harder in pairwise(rates)]


def _takes_off(rate: float, c: float, alpha: float) -> bool:
    points = fixed_points(c, alpha=alpha)
    return points is not None and rate > points[0]


def _largest(holds: Callable[[float], bool], alpha: float) -> float:
    """The largest c up to the fold for which a condition holds that larger c only make harder; 0+ where none does."""
    low, high = 0.0, largest_ratio(alpha=alpha)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low or math.ulp(0.0)
