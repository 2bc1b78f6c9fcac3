"""What does one round guarantee, and how many samples does each curriculum need? Our reconstruction of the theory."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from wmss.theory.recursion import (
    FloatArray,
    check_at_least_zero,
    check_count,
    check_unit,
    fixed_points,
    largest_ratio,
)


def failure_bound(num_accepted: int, *, log_class_size: float, delta: float, coverage: float = 1.0) -> float:
    """Bound on 1 − V after one round of maximum likelihood on `num_accepted` responses: (2/γ) ln(|Π|/δ) / m.

    Holds with probability at least 1 − δ over the accepted responses, for a class Π that contains the start model
    conditioned on being right.

    Args:
        log_class_size: ln |Π|, nats, >= 0.
        delta: δ in (0, 1).
        coverage: γ in (0, 1] with p(x) >= γ V for every prompt x; 1 where all prompts are equally hard.
    """
    check_count("num_accepted", num_accepted)
    return 2 * _log_over_delta(log_class_size, delta) / (_checked_coverage(coverage) * num_accepted)


def complexity_of(*, log_class_size: float, delta: float, rounds: int, coverage: float = 1.0) -> float:
    """a = (4/γ) ln(2 T |Π| / δ): the difficulty of the recursion for a finite class, by a union over T rounds.

    As a number it is far too large for a neural network; `classify` and pilots estimate a from runs.
    """
    check_count("rounds", rounds)
    return 4 * (math.log(2 * rounds) + _log_over_delta(log_class_size, delta)) / _checked_coverage(coverage)


def _log_over_delta(log_class_size: float, delta: float) -> float:
    check_at_least_zero("log_class_size", log_class_size)
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta: expected a number strictly between 0 and 1, got {delta}")
    return log_class_size - math.log(delta)


def _checked_coverage(coverage: float) -> float:
    if not 0.0 < coverage <= 1.0:
        raise ValueError(f"coverage: expected a number above 0 and at most 1, got {coverage}")
    return coverage


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


def kept_per_prompt(pass_rates: npt.ArrayLike, *, group_size: int, cap: int | None = None) -> FloatArray:
    """Expected responses kept of each prompt, E min(M, Binomial(K, p)), of the shape of `pass_rates`.

    K = `group_size` responses are drawn and at most M = `cap` right ones are kept. M = 1 gives 1 − (1−p)^K, which is
    pass@K; no cap gives K p, so that prompts weigh as much as they are solved.
    """
    rates = np.asarray(pass_rates, dtype=np.float64)
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"pass_rates: expected numbers between 0 and 1, got {pass_rates!r}")
    check_count("group_size", group_size)
    most = group_size if cap is None else cap
    if not 1 <= most <= group_size:
        raise ValueError(f"cap: expected between 1 and group_size ({group_size}), got {cap}")
    kept = np.zeros_like(rates)
    for number in range(1, group_size + 1):
        chance = math.comb(group_size, number) * rates**number * (1 - rates) ** (group_size - number)
        kept += min(number, most) * chance
    return kept


def level_to_train(step_accuracy: float) -> float:
    """Number of steps k at which an accepted sample shows most unlearned steps: k q^(k−1) is largest at k = −1/ln q.

    There the acceptance q^k is 1/e = 0.37, whatever the accuracy q of a step: the level to train
    is the one accepted about that often.
    """
    if not 0.0 < step_accuracy < 1.0:
        raise ValueError(f"step_accuracy: expected a number strictly between 0 and 1, got {step_accuracy}")
    return -1 / math.log(step_accuracy)


def log_odds_gain(true_positive: float, false_positive: float) -> float:
    """ln(t_p/f_p): what a round adds to the log-odds of being right with a noisy verifier and unlimited data.

    It is positive, so that rounds help, only if t_p > f_p; infinite for a verifier that accepts nothing wrong.
    """
    _check_verifier(true_positive, false_positive)
    return math.inf if false_positive == 0 else math.log(true_positive / false_positive)


def noisy_step(v: float, *, true_positive: float, false_positive: float, c: float = 0.0) -> float:
    """Expected acceptance by the truth after a round with a noisy verifier, at least 0.

    The purity of what was accepted, t_p V / (t_p V + f_p (1−V)), less c / (t_p V + f_p (1−V)) for n = a/c samples.
    """
    check_unit("v", v)
    check_at_least_zero("c", c)
    _check_verifier(true_positive, false_positive)
    accepted = true_positive * v + false_positive * (1 - v)
    return max((true_positive * v - c) / accepted, 0.0) if accepted > 0 else v


def _check_verifier(true_positive: float, false_positive: float) -> None:
    check_unit("true_positive", true_positive)
    check_unit("false_positive", false_positive)
    if true_positive == 0:
        raise ValueError(
            "true_positive: expected a number above 0, a verifier that accepts nothing right teaches nothing"
        )
