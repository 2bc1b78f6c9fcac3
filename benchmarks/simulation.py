"""Simulated acceptance over 60 rounds, 4,000 repetitions at once: against a loop over repetitions.

python -m benchmarks.simulation
"""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.measure import REPETITIONS, Line, Target, interleave, line, print_lines, require_close
from wmss.core.arrays import FloatArray
from wmss.theory import simulate_acceptance

RUNS, ROUNDS = 4000, 60
SAMPLES, COMPLEXITY, START, SEED = 2000, 300.0, 0.5, 0
RATIO = Target("simulation", at_most=0.2, aim=0.1)
SECONDS = Target("simulation", at_most=2.0)
TOLERANCE = 1e-12


def ours(num_runs: int, rounds: int) -> FloatArray:
    """The product's simulation."""
    return simulate_acceptance(
        num_samples=SAMPLES, complexity=COMPLEXITY, start=START, rounds=rounds, repetitions=num_runs, seed=SEED
    )


def naive(num_runs: int, rounds: int) -> FloatArray:
    """One number at a time. Rounds come first, so that the generator's numbers go to the same runs."""
    rng = np.random.default_rng(SEED)
    trace = [[START] * num_runs]
    for _ in range(rounds):
        after = []
        for v in trace[-1]:
            accepted = int(rng.binomial(SAMPLES, v))
            after.append(max(1 - COMPLEXITY / accepted, 0.0) if accepted else v)
        trace.append(after)
    return np.array(trace)


def run(*, num_runs: int = RUNS, rounds: int = ROUNDS, repetitions: int = REPETITIONS) -> Iterator[Line]:
    """Both arms on the same random numbers."""
    found, expected = (torch.from_numpy(arm(num_runs, rounds)) for arm in (ours, naive))
    require_close("simulation", {"acceptance": found}, {"acceptance": expected}, tolerance=TOLERANCE)
    arms = {"ours": lambda: ours(num_runs, rounds), "naive": lambda: naive(num_runs, rounds)}
    seconds = interleave(arms, repetitions=repetitions)
    best = {name: min(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        compared = {"seconds": best["ours"], "time_over_naive": best["ours"] / best["naive"]} if name == "ours" else {}
        yield line(
            "simulation",
            name,
            {"runs": num_runs, "rounds": rounds},
            seconds=taken,
            figures={"microseconds_a_run": 1e6 * best[name] / num_runs, **compared},
            targets={"seconds": SECONDS, "time_over_naive": RATIO} if name == "ours" else {},
        )


if __name__ == "__main__":
    print_lines(run())
