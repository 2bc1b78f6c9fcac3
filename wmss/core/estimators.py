"""Estimates from counts, with their uncertainty."""

import math

Z_90 = 1.644854
"""Quantile of the normal distribution for a two-sided interval of 90 %."""


def wilson_interval(num_correct: float, num_trials: float, *, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval (low, high) of a proportion; z = 1.959964 gives 95 %. It stays inside [0, 1].

    Counts that were averaged over rounds need not be whole.
    """
    if not 0 <= num_correct <= num_trials or num_trials == 0:
        raise ValueError(f"expected 0 <= num_correct <= num_trials > 0, got {num_correct} of {num_trials}")
    p = num_correct / num_trials
    denominator = 1 + z * z / num_trials
    centre = (p + z * z / (2 * num_trials)) / denominator
    half = z * math.sqrt(p * (1 - p) / num_trials + z * z / (4 * num_trials**2)) / denominator
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(
    num_correct: int, num_trials: int, num_correct_before: int, num_trials_before: int
) -> tuple[float, float]:
    """95 % interval (low, high) of the difference of two proportions, new minus before, each in [0, 1].

    Taken as independent, which is cautious where both answered the same problems.

    Source: Newcombe (1998), Interval estimation for the difference between independent proportions, method 10.
    """
    new, before = num_correct / num_trials, num_correct_before / num_trials_before
    low, high = wilson_interval(num_correct, num_trials)
    low_before, high_before = wilson_interval(num_correct_before, num_trials_before)
    difference = new - before
    return (
        difference - math.hypot(new - low, high_before - before),
        difference + math.hypot(high - new, before - low_before),
    )
