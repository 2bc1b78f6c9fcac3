"""The recursion with random acceptance, many repetitions at once (simulation A). Our reconstruction."""

import numpy as np

from wmss.core.arrays import FloatArray, IntArray
from wmss.theory.recursion import check_alpha, check_at_least_zero, check_count, check_unit


def simulate_acceptance(
    *,
    num_samples: int,
    complexity: float,
    start: float,
    rounds: int,
    repetitions: int,
    alpha: float = 1.0,
    accumulate: bool = False,
    seed: int = 0,
) -> FloatArray:
    """Acceptance over rounds when the number of accepted samples is random, float64 [rounds + 1, repetitions].

    A round accepts m ~ Binomial(num_samples, V) and gives V' = max(1 − (a/m)^α, 0); one that accepts nothing changes
    nothing.

    Args:
        complexity: a >= 0, the difficulty of the task in accepted samples.
        start: acceptance before the first round, in [0, 1].
        accumulate: m counts all rounds so far, and a model that is worse than the one before is not taken. There is
            then neither take-off threshold nor saturation.
        seed: of NumPy's generator; the same arguments give the same numbers.
    """
    for name, value in (("num_samples", num_samples), ("rounds", rounds), ("repetitions", repetitions)):
        check_count(name, value)
    check_at_least_zero("complexity", complexity)
    check_unit("start", start)
    check_alpha(alpha)
    rng = np.random.default_rng(seed)
    trace = np.empty((rounds + 1, repetitions))
    trace[0] = start
    learned_from = np.zeros(repetitions)
    for t in range(rounds):
        accepted = rng.binomial(num_samples, trace[t])
        learned_from = learned_from + accepted if accumulate else accepted
        learned = learn(trace[t], learned_from, complexity=complexity, alpha=alpha)
        trace[t + 1] = np.maximum(trace[t], learned) if accumulate else learned
    return trace


def learn(v: FloatArray, num_accepted: FloatArray | IntArray, *, complexity: float, alpha: float = 1.0) -> FloatArray:
    """max(1 − (a/m)^α, 0) of every entry, and `v` itself where nothing was accepted; arrays of one shape."""
    ratio = complexity / np.maximum(num_accepted, 1)
    return np.where(num_accepted > 0, np.maximum(1 - (ratio if alpha == 1.0 else ratio**alpha), 0.0), v)
