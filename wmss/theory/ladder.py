"""The bounds of several levels, with random acceptance and the product's own curriculum. Our reconstruction.

Level l + 1 is taken to be accepted at least κ_l times as often as level l, with the κ_l of the start, because harder
tasks are made of the same steps. Each level learns from its own accepted samples, all with one difficulty a.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from wmss.core.arrays import BoolArray, FloatArray, IntArray
from wmss.core.levels import Curriculum, LevelState, observe, plan_round, start
from wmss.theory.bounds import checked_starts, level_ratios
from wmss.theory.feedback import RoundOutcome, classify
from wmss.theory.recursion import check_alpha, check_at_least_zero, check_count
from wmss.theory.simulation import learn

MIN_GAIN = 0.005
"""Gain in acceptance that counts, the service's default."""
SCORE_ERROR = 0.01
"""Standard error of a held-out score: 2500 responses at 1/2."""


class Ladder(NamedTuple):
    """Levels and how hard they are to learn."""

    starts: Sequence[float]
    """Acceptance of every level before the first round, easy to hard, in [0, 1]."""
    complexity: float
    """a >= 0, in accepted samples."""
    alpha: float = 1.0
    """Rate of learning, in (0, 1]."""


def simulate_levels(
    ladder: Ladder,
    curriculum: Curriculum,
    *,
    num_groups: int,
    group_size: int,
    repetitions: int,
    keep_best: bool = False,
    seed: int = 0,
) -> FloatArray:
    """Acceptance of every level over the curriculum's rounds, float64 [num_rounds + 1, repetitions, num_levels].

    A level that is not sampled, or accepts nothing, stays as it is, and so does a starved run to its end. A level that
    is only probed or replayed can rise but not fall: the few samples of it do not undo what was learned from more.
    `acceptance_target` goes up, as in the service, when the feedback loop has called its level saturated twice.

    Args:
        num_groups, group_size: prompts of a round, and responses to each.
        keep_best: no level ever falls: the better of two models is kept.
    """
    rates = checked_starts(ladder.starts)
    check_at_least_zero("complexity", ladder.complexity)
    check_alpha(ladder.alpha)
    check_count("repetitions", repetitions)
    if len(rates) != curriculum.num_levels:
        raise ValueError(f"starts: expected one for each of {curriculum.num_levels} levels, got {len(rates)}")
    rng = np.random.default_rng(seed)
    # Only measured acceptance makes plans differ between repetitions.
    adaptive = curriculum.policy == "acceptance_target"
    states = [start(curriculum)] * (repetitions if adaptive else 1)
    loops = [_FeedbackLoop() for _ in states]
    trace = np.empty((curriculum.num_rounds + 1, repetitions, len(rates)))
    trace[0] = rates
    for t in range(curriculum.num_rounds):
        plans = [_plan(curriculum, state, num_groups, group_size) for state in states]
        samples, focused = (np.stack(each) for each in zip(*plans, strict=True))
        accepted = rng.binomial(samples, trace[t])
        trace[t + 1] = _improve(trace[t], accepted, ladder, may_fall=focused & (not keep_best))
        states = [
            loop.observe(curriculum, state, samples[place], accepted[place], trace[t : t + 2, place])
            for place, (loop, state) in enumerate(zip(loops, states, strict=True))
        ]
    return trace


class _FeedbackLoop:
    """Tells a curriculum, as the service does, when the level in focus has looked saturated twice in a row."""

    def __init__(self) -> None:
        self._focus: int | None = None
        self._outcomes: list[RoundOutcome] = []
        self._saturated = 0

    def observe(
        self, curriculum: Curriculum, state: LevelState, samples: IntArray, accepted: IntArray, rates: FloatArray
    ) -> LevelState:
        """The state after a round of these counts [num_levels] and rates before and after it [2, num_levels]."""
        if state.starved:
            return state
        if curriculum.policy != "acceptance_target":
            return observe(curriculum, state, [(0, 0)] * curriculum.num_levels)
        counts = list(zip(accepted.tolist(), samples.tolist(), strict=True))
        promote = state.focus is not None and self._is_saturated(curriculum, state.focus, counts[state.focus], rates)
        return observe(curriculum, state, counts, promote=promote)

    def _is_saturated(self, curriculum: Curriculum, focus: int, counts: tuple[int, int], rates: FloatArray) -> bool:
        if focus != self._focus:
            self._focus, self._outcomes, self._saturated = focus, [], 0
        before, after = (float(rate) for rate in rates[:, focus])
        self._outcomes.append(RoundOutcome(counts[1], counts[0], before, after, SCORE_ERROR))
        reading = classify(self._outcomes, min_gain=MIN_GAIN, min_accepted=curriculum.min_accepted)
        self._saturated = self._saturated + 1 if reading.label == "saturated" else 0
        return self._saturated >= 2


def _plan(curriculum: Curriculum, state: LevelState, num_groups: int, group_size: int) -> tuple[IntArray, BoolArray]:
    """Samples of every level in the next round, and whether the level is in its focus."""
    samples = np.zeros(curriculum.num_levels, dtype=np.int64)
    focused = np.zeros(curriculum.num_levels, dtype=bool)
    if not state.starved:
        for share in plan_round(curriculum, state, num_groups=num_groups, group_size=group_size):
            samples[share.level] += share.num_groups * group_size
            focused[share.level] |= share.purpose == "focus"
    return samples, focused


def _improve(v: FloatArray, accepted: IntArray, ladder: Ladder, *, may_fall: BoolArray) -> FloatArray:
    """Acceptances [..., num_levels] after learning, each level at least κ times the one below it."""
    learned = learn(v, accepted, complexity=ladder.complexity, alpha=ladder.alpha)
    after = np.where(may_fall, learned, np.maximum(v, learned))
    for level, ratio in enumerate(level_ratios(ladder.starts), start=1):
        after[..., level] = np.maximum(after[..., level], ratio * after[..., level - 1])
    return after
