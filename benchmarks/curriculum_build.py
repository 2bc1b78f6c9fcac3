"""From the entropies of a million samples to the indices of a round: against a loop over rows, as first written.

python -m benchmarks.curriculum_build
"""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from benchmarks.measure import REPETITIONS, Line, Target, interleave, line, print_lines, require_close, skipped
from wmss.core.arrays import FloatArray, IntArray
from wmss.core.sample_weights import draw, sampling_weights

SAMPLES, DATASET_ROWS = 1_000_000, 50_000
ALPHA, BETA, GAMMA, SEED = 0.1, 0.8, 0.1, 0
TARGET = Target("curriculum_build", at_most=0.1)
TOLERANCE = 1e-12
NOTES = {
    "naive data set": "what the official code does: a loop over rows that a data set decodes one by one",
    "naive rows": "the same loop when all rows are Python objects in memory already",
}


def ours(weak: FloatArray, strong: FloatArray) -> tuple[FloatArray, IntArray]:
    """The product's weights and draw."""
    weights = sampling_weights(weak, strong, weighting="v2", alpha=ALPHA, beta=BETA, gamma=GAMMA)
    return weights, draw(weights, num_draws=weights.size, seed=SEED, deduplicate=True)


def naive(rows: Iterable[dict[str, Any]]) -> tuple[FloatArray, IntArray]:
    """One row of the data set at a time: its terms, its weight, then the draw and a set of what was drawn."""
    totals = []
    for row in rows:
        change = row["entropy_strong"] - row["entropy_weak"]
        totals.append(ALPHA * max(-change, 0.0) + BETA * row["entropy_strong"] + GAMMA * max(change, 0.0))
    mass = sum(totals)
    weights = np.array([total / mass for total in totals])
    size = weights.size
    drawn = np.random.default_rng(SEED).choice(size, size=size, replace=True, p=weights / weights.sum())
    return weights, np.array(sorted(set(drawn.tolist())))


def run(*, num_samples: int = SAMPLES, num_rows: int = DATASET_ROWS, repetitions: int = REPETITIONS) -> Iterator[Line]:
    """Weights, draw and de-duplication of `num_samples` samples; `num_rows` of them for the slow arm."""
    rng = np.random.default_rng(0)
    weak = rng.gamma(4.0, 0.13, num_samples)
    strong = np.maximum(weak + rng.normal(-0.08, 0.07, num_samples), 0.0)
    rows = [{"entropy_weak": w, "entropy_strong": s} for w, s in zip(weak.tolist(), strong.tolist(), strict=True)]
    _check(ours(weak, strong), naive(rows))
    arms: dict[str, Callable[[], object]] = {"ours": lambda: ours(weak, strong), "naive rows": lambda: naive(rows)}
    sizes = {"ours": num_samples, "naive rows": num_samples}
    if importlib.util.find_spec("datasets"):
        dataset = _dataset(weak[:num_rows], strong[:num_rows])
        arms["naive data set"], sizes["naive data set"] = lambda: naive(dataset), num_rows
    else:
        yield skipped("curriculum_build", "naive data set", "datasets is not installed")
    seconds = interleave(arms, repetitions=repetitions)
    per_sample = {name: min(taken) / sizes[name] for name, taken in seconds.items()}
    for name, taken in seconds.items():
        peers = {
            f"time_over_{peer.replace(' ', '_')}": per_sample[name] / per_sample[peer] for peer in arms if peer != name
        }
        gated = name == "ours" and "naive data set" in arms
        yield line(
            "curriculum_build",
            name,
            {"samples": sizes[name]},
            seconds=taken,
            figures={"microseconds_a_sample": 1e6 * per_sample[name], **(peers if name == "ours" else {})},
            targets={"time_over_naive_data_set": TARGET} if gated else {},
            note=NOTES.get(name),
        )


def _check(found: tuple[FloatArray, IntArray], expected: tuple[FloatArray, IntArray]) -> None:
    weights, truth = (torch.from_numpy(each[0]) for each in (found, expected))
    require_close("curriculum_build", {"weights": weights}, {"weights": truth}, tolerance=TOLERANCE)
    # A weight that differs in its last bit may move a draw by one; more would be another draw.
    common = np.intersect1d(found[1], expected[1]).size / max(found[1].size, expected[1].size)
    drawn, whole = {"share of equal draws": torch.tensor(common)}, {"share of equal draws": torch.tensor(1.0)}
    require_close("curriculum_build", drawn, whole, tolerance=1e-4)


def _dataset(weak: FloatArray, strong: FloatArray) -> Iterable[dict[str, Any]]:
    """A data set on disk's format whose rows are decoded one by one, text and all."""
    from datasets import Dataset

    dataset: Iterable[dict[str, Any]] = Dataset.from_dict(
        {
            "prompt": ["a question of some words " * 4] * weak.size,
            "completion": ["an answer of more words " * 10] * weak.size,
            "entropy_weak": weak,
            "entropy_strong": strong,
        }
    )
    return dataset


if __name__ == "__main__":
    print_lines(run())
