"""With this start, difficulty and budget: which curriculum, and where does it end?

Our reconstruction: the bounds of every level under each of the product's policies. They say what is guaranteed in a
simple model of learning, not what a neural network will do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wmss.core.arrays import FloatArray
from wmss.core.levels import POLICIES, Curriculum, affords_probes
from wmss.theory.bounds import curriculum_thresholds
from wmss.theory.ladder import Ladder, simulate_levels
from wmss.theory.recursion import check_count, fixed_points, largest_ratio

TIE = 0.02
"""Difference in the simulated end below which two policies count as equal."""
GOOD_START = 0.2
"""Acceptance of the hardest level at the start above which stages are a waste of rounds."""
INTERVAL = (0.05, 0.95)
"""Quantiles of the repetitions."""


@dataclass(frozen=True)
class PolicyForecast:
    """Acceptance of the hardest level under one policy."""

    policy: str
    needed: float | None
    """Samples a round must have more than, for the guarantee to hold; None where the theory has no threshold."""
    points: tuple[float, float] | None
    """Take-off threshold and ceiling of a level that gets what this policy gives the hardest when it trains on it."""
    predicted: float | None
    """The ceiling, where it is guaranteed if rounds are enough; None where it is not."""
    end: float
    """Simulated after the last round: mean over the repetitions."""
    interval: tuple[float, float]
    """5 % and 95 % of the repetitions."""
    speed: float
    """Mean over the rounds: what separates policies with one end."""
    verdict: str
    trace: FloatArray
    """Mean acceptance over the repetitions, [rounds + 1, num_levels]."""


@dataclass(frozen=True)
class Forecast:
    """All policies that can run, and which to take."""

    policies: tuple[PolicyForecast, ...]
    left_out: dict[str, str]
    """Policies that cannot run with this budget, and why."""
    v_minus: float | None
    """Take-off threshold of a level that gets all samples; None where the budget sustains no plateau."""
    v_plus: float | None
    """Its ceiling."""
    recommended: str | None
    """A policy, or None where none gets anywhere."""
    reasons: tuple[str, ...]

    def of(self, policy: str) -> PolicyForecast:
        """The forecast of one policy."""
        return next(each for each in self.policies if each.policy == policy)


def forecast(
    starts: Sequence[float],
    *,
    complexity: float,
    num_samples: int,
    rounds: int,
    group_size: int = 1,
    repetitions: int = 200,
    alpha: float = 1.0,
    seed: int = 0,
) -> Forecast:
    """What each policy guarantees for the hardest level, and what the bounds do with random acceptance.

    All policies have the same samples: patience, after which the service doubles them, is as long as the run.

    Args:
        starts: acceptance of every level at the start, easy to hard, in [0, 1].
        complexity: a >= 0, the difficulty in accepted samples; the same for all levels.
        num_samples: responses in a round, a multiple of `group_size`, the responses to one prompt.
        repetitions: of the simulation.

    Raises:
        ValueError: a number is out of its range.
    """
    check_count("num_samples", num_samples)
    check_count("group_size", group_size)
    check_count("rounds", rounds)
    if num_samples % group_size:
        raise ValueError(f"num_samples: expected a multiple of group_size ({group_size}), got {num_samples}")
    ladder = Ladder(starts, complexity, alpha)
    thresholds = curriculum_thresholds(starts, complexity=complexity, alpha=alpha)
    needed = {"clock": thresholds.easy_to_hard, "uniform": thresholds.uniform, "hard_only": thresholds.hard_only}
    left_out = _left_out(len(starts), num_samples // group_size, group_size, rounds)
    found = []
    for policy in POLICIES:
        if policy in left_out:
            continue
        curriculum = Curriculum(policy, len(starts), rounds, patience=rounds)
        trace = simulate_levels(
            ladder,
            curriculum,
            num_groups=num_samples // group_size,
            group_size=group_size,
            repetitions=repetitions,
            seed=seed,
        )
        share = 1 / len(starts) if policy == "uniform" else 1.0
        own = fixed_points(complexity / (share * num_samples), alpha=alpha)
        found.append(_judged(policy, trace, needed.get(policy), own, num_samples))
    points = fixed_points(complexity / num_samples, alpha=alpha)
    recommended, reasons = _recommend(found, left_out, starts, num_samples, complexity, alpha, needed)
    return Forecast(
        policies=tuple(found),
        left_out=left_out,
        v_minus=points[0] if points else None,
        v_plus=points[1] if points else None,
        recommended=recommended,
        reasons=reasons,
    )


def _left_out(num_levels: int, num_groups: int, group_size: int, rounds: int) -> dict[str, str]:
    reasons: dict[str, str] = {}
    if num_levels == 1:
        return dict.fromkeys([policy for policy in POLICIES if policy != "uniform"], "one level is always trained on")
    if rounds < num_levels:
        staged = f"{rounds} rounds are fewer than {num_levels} levels"
        reasons |= {"clock": staged, "hard_to_easy": staged}
    if num_groups < num_levels:
        reasons["uniform"] = f"{num_groups} prompts a round are fewer than {num_levels} levels"
    if not affords_probes(num_levels, num_groups=num_groups, group_size=group_size):
        reasons["acceptance_target"] = "a round is too small to measure levels (32 responses each, a tenth of a round)"
    return reasons


def _judged(
    policy: str, trace: FloatArray, needed: float | None, points: tuple[float, float] | None, num_samples: int
) -> PolicyForecast:
    hardest = trace[:, :, -1]
    end = float(hardest[-1].mean())
    low, high = (float(each) for each in np.quantile(hardest[-1], INTERVAL))
    predicted = points[1] if points is not None and needed is not None and num_samples > needed else None
    return PolicyForecast(
        policy=policy,
        needed=needed,
        points=points,
        predicted=predicted,
        end=end,
        interval=(low, high),
        speed=float(hardest[1:].mean()),
        verdict=_verdict(needed, predicted, end),
        trace=trace.mean(axis=1),
    )


def _verdict(needed: float | None, predicted: float | None, end: float) -> str:
    if needed is None:
        return "no bound"
    if predicted is None:
        return "never guaranteed" if np.isinf(needed) else "no guarantee"
    return "guaranteed" if end >= predicted - TIE else "needs more rounds"


def _recommend(
    found: Sequence[PolicyForecast],
    left_out: dict[str, str],
    starts: Sequence[float],
    num_samples: int,
    complexity: float,
    alpha: float,
    needed: dict[str, float],
) -> tuple[str | None, tuple[str, ...]]:
    reasons = []
    fold = complexity / largest_ratio(alpha=alpha)
    if num_samples < fold:
        reasons.append(f"below {fold:,.0f} samples a round no level keeps what it learns, whatever the policy")
    candidates = [each for each in found if each.policy != "hard_to_easy" and each.end > starts[-1] + TIE]
    if not candidates:
        least = min(needed.values())
        reasons.append("no policy lifts the hardest level in these rounds")
        if np.isfinite(least) and num_samples <= least:
            reasons.append(f"the smallest budget with a guarantee is over {least:,.0f} samples a round")
        elif np.isinf(least):
            reasons.append("a level that is never accepted cannot be learned: add a level between, or easier tasks")
        else:
            reasons.append("the budget is enough: give it more rounds")
        return None, tuple(reasons)
    best_end = max(each.end for each in candidates)
    best = max((each for each in candidates if each.end >= best_end - TIE), key=lambda each: each.speed)
    reasons.append(f"{best.policy} ends at {best.end:.2f} in the simulation, and none ends more than {TIE:g} above it")
    slower = [each.policy for each in candidates if each is not best and each.end >= best_end - TIE]
    if slower:
        reasons.append(f"as high, but no sooner: {', '.join(slower)}")
    if len(starts) > 1 and starts[-1] > GOOD_START and best.policy == "hard_only":
        reasons.append(f"the hardest level starts at {starts[-1]:.2f}, so stages on easier ones would waste rounds")
    if best.predicted is None:
        reasons.append("it has no guarantee: near a threshold some runs take off and others do not")
    for why in dict.fromkeys(left_out.values()):
        reasons.append(f"left out: {', '.join(policy for policy in left_out if left_out[policy] == why)}; {why}")
    return best.policy, tuple(reasons)
