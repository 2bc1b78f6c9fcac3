"""Difficulty levels from pass rates, for tasks that come without levels."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]


def levels_of(pass_rates: Sequence[float], num_levels: int) -> IntArray:
    """Level of each task, [n] in 1..L with L <= `num_levels`: 1 = solved most often, about as many tasks on each.

    Tasks of equal rate share a level, so levels that would only split a tie are left out and the others renumbered.
    """
    rates = np.asarray(pass_rates, dtype=np.float64)
    if rates.size == 0 or not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError("pass_rates: expected at least one number, all in [0, 1]")
    _, which, counts = np.unique(-rates, return_inverse=True, return_counts=True)
    middle = (np.cumsum(counts) - 0.5 * counts) / rates.size  # quantile of each tie's middle; 0 = solved most often
    wanted = np.minimum(num_levels - 1, (middle[which] * num_levels).astype(np.int64))
    return np.unique(wanted, return_inverse=True)[1].astype(np.int64) + 1


def lowest_rates(pass_rates: Sequence[float], levels: IntArray) -> list[float]:
    """Lowest pass rate of every level: a new task belongs to the first level whose lowest rate it reaches."""
    rates = np.asarray(pass_rates, dtype=np.float64)
    return [float(rates[levels == level].min()) for level in range(1, int(levels.max()) + 1)]


def level_at(pass_rate: float, lowest: Sequence[float]) -> int:
    """Level (1-based) of a task by its pass rate, where `lowest` are the levels' lowest rates, falling."""
    return next((level for level, least in enumerate(lowest, start=1) if pass_rate >= least), len(lowest))
