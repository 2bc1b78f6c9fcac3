"""What state is a run of self-improvement in, and where will it end? Read from its rounds so far.

Our reconstruction: rounds are compared with the recursion of `wmss.theory.recursion`, whose one unknown, the difficulty
a, is estimated from them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low
from typing import Literal

import numpy as np

from wmss.theory.recursion import (
    check_alpha,
    check_at_least_zero,
    check_count,
    check_unit,
    fixed_points,
    slope_is_unstable,
)

LoopLabel = Literal["improving", "saturated", "starved", "regressed", "flat"]
WINDOW = 3
"""Latest rounds whose estimates of the difficulty count, by their median."""
MIN_ROUNDS_FOR_RATE = 4
MIN_SPREAD = 0.1
"""Standard deviation of the log of the accepted counts below which they say nothing of the rate of learning."""


@dataclass(frozen=True)
class RoundOutcome:
    """One round: responses sampled and accepted, and the held-out score before and after learning from them.

    Scores are rates in [0, 1]; `standard_error` is that of their difference (of differences task by task, where both
    models answered the same tasks). `num_accepted` counts accepted responses, before any selection among them.
    """

    num_sampled: int
    num_accepted: int
    score_before: float
    score_after: float
    standard_error: float

    def __post_init__(self) -> None:
        check_count("num_sampled", self.num_sampled)
        if not 0 <= self.num_accepted <= self.num_sampled:
            raise ValueError(
                f"num_accepted: expected between 0 and num_sampled ({self.num_sampled}), got {self.num_accepted}"
            )
        check_unit("score_before", self.score_before)
        check_unit("score_after", self.score_after)
        check_at_least_zero("standard_error", self.standard_error)

    def complexity(self, alpha: float) -> float:
        """a of 1 − score = (a/m)^α."""
        return self.num_accepted * math.pow(1 - self.score_after, 1 / alpha)


@dataclass(frozen=True)
class LoopReading:
    """What the latest round says. Points are None where the ratio is past the fold: the budget sustains no plateau."""

    label: LoopLabel
    """Improving; saturated at its ceiling; starved (too little is accepted to take off); regressed; or flat, which is
    none of these within the error of the scores."""
    complexity: float
    """Estimate of a, in accepted samples: the median over the latest rounds."""
    ratio: float
    """c = a / samples of the latest round."""
    v_minus: float | None
    """Take-off threshold."""
    v_plus: float | None
    """Predicted ceiling."""
    v_plus_doubled: float | None
    """The ceiling with twice the samples a round."""
    predicted_next: float
    """What the recursion gives for the next round's score, at least 0."""
    fitted_alpha: float | None
    """Rate of learning fitted to all rounds; for information, nothing here uses it. None with fewer than 4 rounds, or
    where the accepted counts are too much alike."""


def classify(
    outcomes: Sequence[RoundOutcome], *, min_gain: float, min_accepted: int = 64, alpha: float = 1.0
) -> LoopReading:
    """The state of a run after the rounds so far, oldest first.

    In this order: *regressed* or *improving* if the score moved by more than two standard errors (and, upwards, by
    `min_gain`); *starved* with fewer than `min_accepted` accepted, or on the unstable side of the recursion, where
    acceptance cannot lift itself (below √c for α = 1); *saturated* if the recursion has a ceiling and gives less than
    `min_gain` for the next round; else *flat*.

    Args:
        min_gain: smallest gain in score that counts, in (0, 1). Below twice the standard error none can be seen.
        alpha: rate of learning in (0, 1].

    Raises:
        ValueError: no rounds, or a number out of its range.
    """
    if not outcomes:
        raise ValueError("outcomes: expected at least one round, got none")
    if not 0.0 < min_gain < 1.0:
        raise ValueError(f"min_gain: expected a number strictly between 0 and 1, got {min_gain}")
    check_count("min_accepted", min_accepted, least=0)
    check_alpha(alpha)
    latest = outcomes[-1]
    complexity = median_low([outcome.complexity(alpha) for outcome in outcomes[-WINDOW:]])
    ratio = complexity / latest.num_sampled
    score = latest.score_after
    predicted = max(1 - math.pow(ratio / score, alpha), 0.0) if score > 0 else 0.0
    points = fixed_points(ratio, alpha=alpha)
    doubled = fixed_points(ratio / 2, alpha=alpha)
    can_saturate = points is not None and predicted - score < min_gain
    return LoopReading(
        label=_label(latest, min_gain, min_accepted, slope_is_unstable(score, ratio, alpha=alpha), can_saturate),
        complexity=complexity,
        ratio=ratio,
        v_minus=points[0] if points else None,
        v_plus=points[1] if points else None,
        v_plus_doubled=doubled[1] if doubled else None,
        predicted_next=predicted,
        fitted_alpha=_fitted_rate(outcomes),
    )


def _label(latest: RoundOutcome, min_gain: float, min_accepted: int, unstable: bool, can_saturate: bool) -> LoopLabel:
    gain = latest.score_after - latest.score_before
    if gain < -2 * latest.standard_error:
        return "regressed"
    if gain > max(min_gain, 2 * latest.standard_error):
        return "improving"
    if unstable or latest.num_accepted < min_accepted:
        return "starved"
    return "saturated" if can_saturate else "flat"


def _fitted_rate(outcomes: Sequence[RoundOutcome]) -> float | None:
    """α of the least-squares line log(1 − score) = A − α log m."""
    points = [
        (math.log(outcome.num_accepted), math.log(1 - outcome.score_after))
        for outcome in outcomes
        if outcome.num_accepted and outcome.score_after < 1
    ]
    if len(points) < MIN_ROUNDS_FOR_RATE:
        return None
    accepted, failures = np.array(points).T
    spread = accepted.std()
    if spread < MIN_SPREAD:
        return None
    return float(-np.mean((accepted - accepted.mean()) * (failures - failures.mean())) / spread**2)
