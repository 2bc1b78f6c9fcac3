"""Paired comparison over seeds: arms of one seed share data, order and starting checkpoints, so seeds are the pairs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

T_975 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""97.5 % quantiles of Student's t with 1 to 10 degrees of freedom."""


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences with its 95 % interval, and how many pairs went which way."""

    mean: float
    low: float
    high: float
    above: int
    below: int
    num_pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0.0 or self.high < 0.0


def paired_difference(values: Sequence[float], references: Sequence[float]) -> Difference:
    """95 % t interval of the mean of values[i] − references[i], taken as normally distributed over pairs.

    Raises:
        ValueError: fewer than 2 or more than 11 pairs, or lists of different length.
    """
    if len(values) != len(references):
        raise ValueError(f"expected as many references as values, got {len(references)} and {len(values)}")
    if not 2 <= len(values) <= len(T_975) + 1:
        raise ValueError(f"expected 2 to {len(T_975) + 1} pairs, got {len(values)}")
    differences = [value - reference for value, reference in zip(values, references, strict=True)]
    mean = statistics.fmean(differences)
    half = T_975[len(differences) - 2] * statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(
        mean=mean,
        low=mean - half,
        high=mean + half,
        above=sum(d > 0 for d in differences),
        below=sum(d < 0 for d in differences),
        num_pairs=len(differences),
    )
