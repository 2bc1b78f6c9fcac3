"""From a pilot to a plan: which curriculum with this start, difficulty and budget, and where would it end?

Our reconstruction, in the spirit of arXiv 2602.10014 and with none of its constants: `wmss.theory.forecast` on what a
pilot measured. The difficulty a, in accepted responses, cannot be known before a round has trained. Where it may lie
can be said in words that the first round checks: after a round on the level accepted nearest one half, with m accepted
responses, failures of about a/m are left. So a = m (1 − acceptance) is the difficulty at which a round teaches nothing,
and a tenth of that the one at which it takes away nine tenths of the failures.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from wmss.config import SelfImprovementConfig
from wmss.rounds.improvement.pilot import PilotLevel
from wmss.theory import Forecast, fixed_points, forecast
from wmss.theory.forecast import GOOD_START

FAILURES_LEFT = (0.1, 0.5, 0.9)
"""Shares of the failures that the first round may leave: a task that is learned at once, one that is not, and one that
is barely learned."""
WIDE_GAP = 0.2
"""Acceptance of a level over that of the easier one below which tasks in between are advised."""
BUDGETS = (1, 2, 4)
"""Times the samples of a round for which the ceiling is told."""


@dataclass(frozen=True)
class Case:
    """The forecast for one difficulty."""

    complexity: float
    failures_left: float | None
    """Share of the failures that the first round would leave; None where the difficulty was given."""
    forecast: Forecast
    ceilings: tuple[tuple[int, float | None], ...]
    """(samples a round, V₊) of a level that gets them all; None where that budget sustains no plateau."""
    guaranteed_above: tuple[str, float] | None
    """The policy that needs fewest samples a round for a guarantee on the hardest level, and how many; None where no
    budget gives one."""


@dataclass(frozen=True)
class Outlook:
    """What a pilot lets expect."""

    starts: tuple[float, ...]
    """Acceptance of every level, as the forecast took it."""
    cases: tuple[Case, ...]
    """Easy to hard; empty where nothing, or everything, was accepted."""
    policy: str | None
    """The curriculum to take, or None where none gets anywhere."""
    reason: str


def look_ahead(levels: Sequence[PilotLevel], knobs: SelfImprovementConfig, complexity: float | None) -> Outlook:
    """The outlook of a job with these levels at its start.

    Where none of N responses was accepted the forecast takes 1/(2N): the theory takes 0 for never.

    Args:
        complexity: a > 0 where it is known, e.g. from the reading of an earlier job.
    """
    starts = tuple(max(each.acceptance, 0.5 / each.num_sampled) for each in levels)
    accepted = sum(each.num_accepted for each in levels)
    if accepted == 0:
        return Outlook(starts, (), None, "no response was accepted, so nothing can be learned from: see the gates")
    if accepted == sum(each.num_sampled for each in levels):
        return Outlook(starts, (), None, "every response was accepted: there is nothing to learn")
    cases = tuple(_case(starts, knobs, *each) for each in _complexities(starts, knobs.samples_per_round, complexity))
    policy, reason = _recommended(starts, cases)
    return Outlook(starts, cases, policy, reason)


def _complexities(starts: Sequence[float], num_samples: int, given: float | None) -> list[tuple[float, float | None]]:
    if given is not None:
        return [(given, None)]
    useless = num_samples * max(start * (1 - start) for start in starts)
    return [(left * useless, left) for left in FAILURES_LEFT]


def _case(
    starts: Sequence[float], knobs: SelfImprovementConfig, complexity: float, failures_left: float | None
) -> Case:
    num_samples = knobs.samples_per_round
    found = forecast(
        starts,
        complexity=complexity,
        num_samples=num_samples,
        rounds=knobs.rounds,
        group_size=knobs.samples_per_prompt,
    )
    ceilings = []
    for times in BUDGETS:
        points = fixed_points(complexity / (times * num_samples))
        ceilings.append((times * num_samples, points[1] if points else None))
    needs = [(each.policy, each.needed) for each in found.policies if each.needed is not None]
    finite = [(policy, needed) for policy, needed in needs if needed < float("inf")]
    least = min(finite, key=lambda each: each[1], default=None)
    return Case(complexity, failures_left, found, tuple(ceilings), least)


def _recommended(starts: Sequence[float], cases: Sequence[Case]) -> tuple[str | None, str]:
    hardest = starts[-1]
    offered = [each.policy for each in cases[0].forecast.policies]
    without_stages = [policy for policy in ("hard_only", "uniform") if policy in offered]
    if hardest > GOOD_START and without_stages:
        best = max(without_stages, key=lambda policy: sum(case.forecast.of(policy).speed for case in cases))
        return best, (
            f"the hardest level is accepted {hardest:.0%} of the time already, above {GOOD_START:.0%}: stages on "
            "easier ones would waste rounds"
        )
    votes = Counter(case.forecast.recommended for case in cases)
    votes.pop(None, None)
    if not votes:
        middle = cases[len(cases) // 2].forecast
        return None, "; ".join([*middle.reasons, *_gap(starts)])
    policy, number = votes.most_common(1)[0]
    return policy, f"ahead in {number} of {len(cases)} cases" if len(cases) > 1 else "ahead at this difficulty"


def _gap(starts: Sequence[float]) -> list[str]:
    """What to do where one level is much harder than the one before."""
    for level, (easier, harder) in enumerate(pairwise(starts), start=1):
        if harder < WIDE_GAP * easier:
            return [
                f"level {level + 1} is far from level {level} (accepted {harder:.2g} and {easier:.2g} of the time): "
                "tasks in between lower what is needed"
            ]
    return []
