"""When has fine-tuning stopped learning, and which earlier checkpoint is still different enough to be a weak model?"""

from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 5
"""Readings of the margin in each of the two windows that are compared."""
MIN_GROWTH = 0.02
"""Growth of the mean margin from one window to the next below which it counts as flat."""
MIN_ENTROPY_GAP = 0.02
"""Nats of entropy by which a weak checkpoint must exceed the strong one; nearer pairs taught nothing in the paper."""


def is_saturated(margins: Sequence[float], *, window: int = WINDOW, min_growth: float = MIN_GROWTH) -> bool:
    """Whether the logit margin of the readings so far (oldest first) has flattened.

    With m̄_1 and m̄_2 the means of the last two windows of `window` readings: m̄_2 − m̄_1 < min_growth · |m̄_1|. The
    margin z[y] − mean_{k≠y} z[k] grows while fine-tuning still separates the target from the rest. Fewer than two
    windows, or a window with a reading that is not finite, give False.

    Source: Weak-Driven Learning (arXiv 2602.08222), the saturation figure; the rule itself is ours.
    """
    if window < 1:
        raise ValueError(f"window: expected a positive number of readings, got {window}")
    recent = np.asarray(margins[-2 * window :], dtype=np.float64)
    if recent.size < 2 * window or not np.isfinite(recent).all():
        return False
    before, after = recent[:window].mean(), recent[window:].mean()
    return bool(after - before < min_growth * abs(before))


def useful_weak(
    entropies: Mapping[int, float], strong_entropy: float, *, min_gap: float = MIN_ENTROPY_GAP
) -> int | None:
    """The latest of the checkpoints {step: mean entropy} that is still far enough from the strong one; None if none is.

    Far enough is H_weak − H_strong >= max(min_gap, half of the largest gap there is): the paper found the quality
    about equal down to some distance and then falling, so the gap need not be the largest, but must not be small.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), appendix B.5; the threshold is ours.
    """
    gaps = {step: entropy - strong_entropy for step, entropy in entropies.items()}
    needed = max(min_gap, 0.5 * max(gaps.values(), default=0.0))
    far = [step for step, gap in gaps.items() if gap >= needed]
    return max(far, default=None)
