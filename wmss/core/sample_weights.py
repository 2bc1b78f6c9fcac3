"""From the entropies of two checkpoints: how often is each sample drawn?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wmss.choices import DEFAULT_ALPHA, DEFAULT_BETA, DEFAULT_GAMMA, Weighting
from wmss.core.arrays import FloatArray, IntArray

TERMS: dict[str, tuple[str, str, str]] = {
    "v2": ("drop", "strong", "rise"),
    "v1": ("weak", "drop", "rise"),
    "per_term": ("weak", "drop", "rise"),
}
"""Which quantity alpha, beta and gamma multiply: H_weak, H_strong, the entropy's drop or its rise."""


def sampling_weights(
    weak_entropy: npt.ArrayLike,
    strong_entropy: npt.ArrayLike,
    *,
    weighting: Weighting = "v2",
    alpha: float = DEFAULT_ALPHA,
    beta: float = DEFAULT_BETA,
    gamma: float = DEFAULT_GAMMA,
) -> FloatArray:
    """Sampling probability of every sample, float64 [n], sum 1.

    With ΔH = H_strong − H_weak and [u]₊ = max(u, 0):

        v2        p ∝ α [−ΔH]₊  + β H_strong + γ [ΔH]₊      (Eq. 9 of the current text)
        v1        p ∝ α H_weak  + β [−ΔH]₊   + γ [ΔH]₊      (the first version's meaning)
        per_term  as v1, each term first scaled to sum 1     (what the official code runs)
        uniform   p = 1/n                                    (control; `all` has the same and is not drawn from)

    Args:
        weak_entropy, strong_entropy: [n], mean entropy per sample in nats, finite and >= 0.
        alpha, beta, gamma: non-negative coefficients of the three terms.

    Raises:
        ValueError: shapes differ, a value is negative or not finite, or no term has any mass.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Eq. 8 and 9, appendix B.6.
    """
    weak = _entropies("weak_entropy", weak_entropy)
    strong = _entropies("strong_entropy", strong_entropy)
    if weak.shape != strong.shape:
        raise ValueError(f"strong_entropy: expected the shape of weak_entropy {weak.shape}, got {strong.shape}")
    if weighting in ("uniform", "all"):
        return np.full(weak.size, 1.0 / weak.size)
    terms = weighting_terms(weak, strong, weighting=weighting, alpha=alpha, beta=beta, gamma=gamma)
    total = terms.sum(axis=0)
    mass = total.sum()
    if not np.isfinite(mass):
        raise ValueError("alpha, beta, gamma: the weights overflow; choose smaller coefficients")
    if not mass > 0.0:
        raise ValueError(
            f"weighting {weighting!r}: no term has any mass (all entropies or all coefficients of non-empty terms "
            'are 0); use weighting="uniform" or another weak checkpoint'
        )
    return np.asarray(total / mass)


def weighting_terms(
    weak_entropy: FloatArray,
    strong_entropy: FloatArray,
    *,
    weighting: Weighting,
    alpha: float,
    beta: float,
    gamma: float,
) -> FloatArray:
    """The three terms of a weighting before their sum is normalised, float64 [3, n], in the order of `TERMS`."""
    for name, value in (("alpha", alpha), ("beta", beta), ("gamma", gamma)):
        if not (np.isfinite(value) and value >= 0.0):
            raise ValueError(f"{name}: expected a finite number >= 0, got {value}")
    if weighting not in TERMS:
        raise ValueError(f"weighting: expected one of {[*TERMS, 'uniform']}, got {weighting!r}")
    delta = strong_entropy - weak_entropy
    quantity = {
        "weak": weak_entropy,
        "strong": strong_entropy,
        "drop": np.maximum(-delta, 0.0),
        "rise": np.maximum(delta, 0.0),
    }
    parts = np.stack([quantity[name] for name in TERMS[weighting]])
    if weighting == "per_term":
        # A term without mass drops out and the others share its part when the sum is normalised.
        sums = parts.sum(axis=1, keepdims=True)
        parts = np.divide(parts, sums, out=np.zeros_like(parts), where=sums > 0.0)
    return np.asarray(np.array([[alpha], [beta], [gamma]]) * parts)


def cap_weights(weights: npt.ArrayLike, max_share: float) -> FloatArray:
    """Probabilities [n] with none above `max_share`; what is cut off goes to the others in proportion.

    Of all such distributions this is the one nearest to `weights` in relative entropy. Samples of weight 0 stay at 0.

    Raises:
        ValueError: too few samples have any weight to share it out: their number times `max_share` is below 1.
    """
    p = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    possible = int((p > 0).sum())
    if not 0.0 < max_share <= 1.0 or possible * max_share < 1.0 - 1e-12:
        raise ValueError(
            f"max_share: expected between {1 / possible:g} (1 over the {possible} samples that have any weight) and 1, "
            f"got {max_share}; raise it"
        )
    capped = np.zeros(p.size, dtype=bool)
    while True:
        # What the capped ones leave over, shared among the others in proportion.
        left = 1.0 - max_share * capped.sum()
        total = p[~capped].sum()
        shared = np.where(capped, max_share, p * (left / total if total > 0 else 0.0))
        above = (shared > max_share * (1 + 1e-12)) & ~capped
        if not above.any():
            return shared
        capped |= above


def draw(weights: npt.ArrayLike, *, num_draws: int, seed: int | Sequence[int], deduplicate: bool) -> IntArray:
    """Indices drawn with replacement from `weights` [n]; with `deduplicate`, each drawn index once.

    De-duplicated indices come in ascending order (a set has no order; the trainer shuffles). The same arguments
    give the same indices.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), section 4.2.
    """
    probabilities = np.asarray(weights, dtype=np.float64)
    if probabilities.ndim != 1 or probabilities.size == 0:
        raise ValueError(f"weights: expected a non-empty vector, got shape {probabilities.shape}")
    if not np.isfinite(probabilities).all() or (probabilities < 0).any() or not probabilities.sum() > 0:
        raise ValueError("weights: expected finite numbers >= 0 with a positive sum")
    if num_draws < 1:
        raise ValueError(f"num_draws: expected a positive number, got {num_draws}")
    rng = np.random.default_rng(seed)
    drawn = rng.choice(probabilities.size, size=num_draws, replace=True, p=probabilities / probabilities.sum())
    # Counting needs no sort: at a million draws it takes a fortieth of np.unique's time.
    return np.flatnonzero(np.bincount(drawn)) if deduplicate else drawn


def _entropies(name: str, values: npt.ArrayLike) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty vector [n], got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        bad = int(np.flatnonzero(~(np.isfinite(array) & (array >= 0)))[0])
        raise ValueError(f"{name}: expected finite values >= 0 in nats, got {array[bad]} at index {bad}")
    return array
