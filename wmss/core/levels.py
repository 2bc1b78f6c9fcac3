"""Which difficulty levels do a round's prompts come from? Curriculum policies as pure functions with plain state.

The policies are our reconstruction of easy-to-hard curricula (in the spirit of arXiv 2602.10014, whose own schedule we
do not know). Levels are numbered from 0, the easiest. `clock`, `uniform`, `hard_only` and `hard_to_easy` follow the
number of the round alone and neither probe nor replay; `acceptance_target` follows measured acceptance.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from wmss.choices import (
    DEFAULT_BAND,
    DEFAULT_MIN_ACCEPTED,
    DEFAULT_PATIENCE,
    DEFAULT_PROBE_FRACTION,
    DEFAULT_REPLAY_FRACTION,
    DEFAULT_TARGET,
    CurriculumPolicy,
    check_curriculum,
)
from wmss.core.estimators import Z_90, wilson_interval

Purpose = Literal["probe", "focus", "replay"]
Counts = tuple[float, float]
"""Accepted and sampled responses."""

POLICIES: tuple[CurriculumPolicy, ...] = get_args(CurriculumPolicy)
MIN_PROBES = 32
"""Responses below which a level's measured acceptance is mostly noise."""
MEMORY = MIN_PROBES
"""Responses as which all rounds before the latest count: half of what a small probe says, next to nothing where a round
measures a level well, because a model that learns soon makes old counts wrong."""
HYSTERESIS = 0.05
"""Acceptance above the band's lower end that a promotion needs, so that noise does not turn it back at once; and the
rise of the focus above its best that makes a round worth waiting for."""
DEMOTE_AFTER = 2
"""Rounds in a row below the band after which the focus moves down."""
MASTERED = 0.95
REPLAY_FLOOR = 0.05
"""Part of a lower level's replay weight that does not depend on how far it has fallen."""


@dataclass(frozen=True)
class Curriculum:
    """The numbers a policy runs on.

    `target` is the acceptance to train at, `low` and `high` the band around it; `probe_fraction` and `replay_fraction`
    are shares of a round, together below 1; `patience` counts rounds without promotion; `min_accepted` is the number of
    accepted responses below which a level cannot be trained on.

    Raises:
        ValueError: a number is out of its range, or a clock has fewer rounds than levels.
    """

    policy: str
    num_levels: int
    num_rounds: int
    target: float = DEFAULT_TARGET
    low: float = DEFAULT_BAND[0]
    high: float = DEFAULT_BAND[1]
    probe_fraction: float = DEFAULT_PROBE_FRACTION
    replay_fraction: float = DEFAULT_REPLAY_FRACTION
    patience: int = DEFAULT_PATIENCE
    min_accepted: int = DEFAULT_MIN_ACCEPTED

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy: expected one of {list(POLICIES)}, got {self.policy!r}")
        for name in ("num_levels", "num_rounds", "patience", "min_accepted"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a positive number, got {getattr(self, name)}")
        check_curriculum(
            target=self.target,
            band=(self.low, self.high),
            probe_fraction=self.probe_fraction,
            replay_fraction=self.replay_fraction,
        )
        if self.policy in ("clock", "hard_to_easy") and self.num_rounds < self.num_levels:
            raise ValueError(
                f"num_rounds: expected at least one round for each of the {self.num_levels} levels with policy "
                f"{self.policy!r}, got {self.num_rounds}; raise it, or take another policy"
            )


@dataclass(frozen=True)
class LevelState:
    """What a curriculum remembers between rounds."""

    round: int
    """Rounds observed so far."""
    focus: int | None
    """Level trained on in the next round; None before the first, and where `starved`. With `uniform`, the hardest."""
    counts: tuple[Counts, ...]
    """Per level: accepted and sampled responses, all older rounds together as at most `MEMORY` of them."""
    best: tuple[float, ...]
    """Per level: highest acceptance so far, 0 where never measured."""
    budget_factor: int = 1
    """Times a round's groups; 2 once patience has run out."""
    rounds_below: int = 0
    """Rounds in a row in which the focus was accepted less than the band's lower end."""
    rounds_waiting: int = 0
    """Rounds since the focus moved or the budget was doubled, those in which the focus rose left out."""
    reason: str = ""
    """Why the focus is what it is, for a person: levels count from 1 there."""

    @property
    def starved(self) -> bool:
        """Whether no level is worth another round; `reason` says why."""
        return self.round > 0 and self.focus is None

    def acceptance(self, level: int) -> float | None:
        """Running acceptance of a level; None where it was never measured."""
        accepted, sampled = self.counts[level]
        return accepted / sampled if sampled else None


class LevelShare(NamedTuple):
    """Prompts of a round that come from one level; each gets a group of responses."""

    level: int
    purpose: Purpose
    num_groups: int


class Choice(NamedTuple):
    """A level, None for none, and why."""

    level: int | None
    reason: str


def affords_probes(
    num_levels: int, *, num_groups: int, group_size: int, probe_fraction: float = DEFAULT_PROBE_FRACTION
) -> bool:
    """Whether a round is large enough for `acceptance_target`; `clock` is better where it is not.

    The first round must give every level `MIN_PROBES` responses, and the probe share of a later one must give as many
    to the level above the focus (320 responses a round at 10 %).
    """
    if num_levels == 1:
        return True
    needed = -(-MIN_PROBES // group_size)
    return num_groups // num_levels >= needed and int(probe_fraction * num_groups) >= needed


def start(curriculum: Curriculum) -> LevelState:
    """The state before the first round."""
    unmeasured = ((0.0, 0.0),) * curriculum.num_levels
    state = LevelState(round=0, focus=None, counts=unmeasured, best=(0.0,) * curriculum.num_levels)
    if curriculum.policy == "acceptance_target":
        return replace(state, reason="every level is probed first")
    return _follow_the_clock(curriculum, state)


def plan_round(
    curriculum: Curriculum, state: LevelState, *, num_groups: int, group_size: int
) -> tuple[LevelShare, ...]:
    """The levels of the next round's prompts, in whole groups that sum to `num_groups` times the budget factor.

    The first round of `acceptance_target` probes every level alike. Its later ones give at most `probe_fraction` to
    the level above the focus and those below it, at least `MIN_PROBES` responses each (the level above comes first
    where that is not enough for all), `replay_fraction` to the levels below, most to those that have fallen most, and
    the rest to the focus. All are trained on.

    Raises:
        ValueError: the state is starved, or there are fewer groups than levels that must each have one.
    """
    total = num_groups * state.budget_factor
    if min(num_groups, group_size) < 1:
        raise ValueError(f"num_groups, group_size: expected positive numbers, got {num_groups} and {group_size}")
    if curriculum.policy == "uniform":
        return _spread(curriculum, state, total, "focus")
    if curriculum.policy == "acceptance_target" and state.round == 0:
        return _spread(curriculum, state, total, "probe")
    if state.focus is None:
        raise ValueError(f"state: expected a level to train on, got none ({state.reason}); no round can be planned")
    if curriculum.policy != "acceptance_target":
        return (LevelShare(state.focus, "focus", total),)
    probes = _probes(curriculum, state.focus, total, group_size)
    replays = _replays(curriculum, state, state.focus, total)
    left = total - sum(share.num_groups for share in (*probes, *replays))
    return (*probes, LevelShare(state.focus, "focus", left), *replays)


def observe(
    curriculum: Curriculum, state: LevelState, counts: Sequence[tuple[int, int]], *, promote: bool = False
) -> LevelState:
    """The state after a round in which `counts` [num_levels] of (accepted, sampled) responses were seen.

    `acceptance_target` chooses its first focus freely; from then on it moves up by at most one level a round, when the
    chosen level is harder and the next one clears the band's lower end by `HYSTERESIS`, and down by one when the focus
    stayed below the band for `DEMOTE_AFTER` rounds. `patience` rounds in which it neither moves nor rises above its
    best by `HYSTERESIS` double the budget, once; as many again are starvation. The hardest level waits for nothing.

    Args:
        counts: (0, 0) for a level that was not sampled.
        promote: the feedback loop calls the focus saturated: move up even if the next level is not in the band. Where
            levels follow the number of the round this changes nothing.

    Raises:
        ValueError: not one pair per level, or not 0 <= accepted <= sampled.
    """
    before, state = state, _remember(curriculum, state, counts)
    if curriculum.policy != "acceptance_target":
        return _follow_the_clock(curriculum, state)
    num_samples = sum(sampled for _, sampled in counts)
    if num_samples == 0:
        raise ValueError("counts: expected at least one sampled response, got none")
    choice = choose_focus(curriculum, state.counts, num_samples)
    if choice.level is None:
        return _rescued_by_budget(curriculum, state, num_samples)
    if state.focus is None:
        return _moved(state, choice.level, choice.reason)
    focus = state.focus
    accepted, sampled = counts[focus]
    rate = accepted / sampled if sampled else None
    rose = rate is not None and rate > before.best[focus] + HYSTERESIS
    below = state.rounds_below + 1 if rate is not None and rate < curriculum.low else 0
    state = replace(state, rounds_below=below, rounds_waiting=state.rounds_waiting + (not rose))
    harder = choice.level > focus and _clears_band(curriculum, state, focus + 1, num_samples)
    if focus < curriculum.num_levels - 1 and (promote or harder):
        why = f"level {focus + 1} is saturated" if promote else choice.reason
        return _moved(state, focus + 1, f"up to {focus + 2}: {why}")
    if below >= DEMOTE_AFTER and focus > 0:
        why = f"level {focus + 1} stayed below {curriculum.low:g} for {below} rounds"
        return _moved(state, focus - 1, f"down to {focus}: {why}")
    return _wait(curriculum, replace(state, reason=f"stays at {focus + 1}: {choice.reason}"))


def choose_focus(curriculum: Curriculum, counts: Sequence[Counts], num_samples: int) -> Choice:
    """The level whose acceptance is nearest the target, of those that `num_samples` responses could train on.

    None only if no level would have `min_accepted` accepted responses. Levels that surely lie below the band are left
    out as long as another reaches it; where all lie above it, the hardest is taken.
    """
    rates = [accepted / sampled if sampled else 0.0 for accepted, sampled in counts]
    usable = [level for level, rate in enumerate(rates) if num_samples * rate >= curriculum.min_accepted]
    if not usable:
        return Choice(None, f"starved: no level would have {curriculum.min_accepted} accepted responses")
    reaching = [level for level in usable if wilson_interval(*counts[level], z=Z_90)[1] >= curriculum.low]
    if not reaching:
        easiest = max(usable, key=lambda level: (rates[level], level))
        return Choice(easiest, f"below the band: level {easiest + 1} is accepted most ({rates[easiest]:.2f})")
    last = len(counts) - 1
    if all(sampled and wilson_interval(accepted, sampled, z=Z_90)[0] > MASTERED for accepted, sampled in counts):
        return Choice(last, "mastered: every level is accepted")
    inside = [level for level in reaching if rates[level] <= curriculum.high]
    if not inside:
        return Choice(reaching[-1], f"above the band: level {reaching[-1] + 1} is the hardest in reach")
    nearest = min(inside, key=lambda level: (abs(rates[level] - curriculum.target), -level))
    return Choice(nearest, f"in the band: level {nearest + 1} ({rates[nearest]:.2f}) is nearest {curriculum.target:g}")


def _follow_the_clock(curriculum: Curriculum, state: LevelState) -> LevelState:
    last = curriculum.num_levels - 1
    stage = min(state.round * curriculum.num_levels // curriculum.num_rounds, last)
    focus, reason = {
        "clock": (stage, f"round {state.round + 1} of {curriculum.num_rounds}: level {stage + 1}"),
        "hard_to_easy": (last - stage, f"round {state.round + 1} of {curriculum.num_rounds}: level {last - stage + 1}"),
        "hard_only": (last, "the hardest level only"),
        "uniform": (last, "all levels alike"),
    }[curriculum.policy]
    return replace(state, focus=focus, reason=reason)


def _spread(curriculum: Curriculum, state: LevelState, total: int, purpose: Purpose) -> tuple[LevelShare, ...]:
    levels = curriculum.num_levels
    if total < levels:
        raise ValueError(
            f"num_groups: expected at least one for each of the {levels} levels, got {total}; raise the samples of a "
            "round, or lower the samples of a prompt"
        )
    each, rest = divmod(total, levels)
    # The odd groups go round the levels from round to round, so that none has more in the long run.
    return tuple(LevelShare(level, purpose, each + ((level - state.round) % levels < rest)) for level in range(levels))


def _probes(curriculum: Curriculum, focus: int, total: int, group_size: int) -> tuple[LevelShare, ...]:
    groups = int(curriculum.probe_fraction * total)
    order = ([focus + 1] if focus + 1 < curriculum.num_levels else []) + list(range(focus - 1, -1, -1))
    if groups == 0 or not order:
        return ()
    affordable = groups // -(-MIN_PROBES // group_size)
    probed = sorted(order[: max(affordable, 1)])
    each, rest = divmod(groups, len(probed))
    # The level above the focus is the last of `probed`: what is over goes to the harder levels.
    shares = [each + (place >= len(probed) - rest) for place in range(len(probed))]
    return tuple(LevelShare(level, "probe", share) for level, share in zip(probed, shares, strict=True))


def _replays(curriculum: Curriculum, state: LevelState, focus: int, total: int) -> tuple[LevelShare, ...]:
    groups = int(curriculum.replay_fraction * total)
    if groups == 0 or focus == 0:
        return ()
    fallen = [state.best[level] - (state.acceptance(level) or 0.0) + REPLAY_FLOOR for level in range(focus)]
    shares = apportion(groups, fallen)
    return tuple(LevelShare(level, "replay", share) for level, share in enumerate(shares) if share)


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that sum to `total` in proportion to `weights` (>= 0, not all 0), by largest remainders."""
    exact = [total * weight / sum(weights) for weight in weights]
    shares = [int(share) for share in exact]
    by_remainder = sorted(range(len(shares)), key=lambda place: (shares[place] - exact[place], place))
    for place in by_remainder[: total - sum(shares)]:
        shares[place] += 1
    return shares


def _remember(curriculum: Curriculum, state: LevelState, counts: Sequence[tuple[int, int]]) -> LevelState:
    if len(counts) != curriculum.num_levels:
        raise ValueError(f"counts: expected one pair for each of {curriculum.num_levels} levels, got {len(counts)}")
    kept, best = [], []
    for level, (accepted, sampled) in enumerate(counts):
        if not 0 <= accepted <= sampled:
            raise ValueError(f"counts: expected 0 <= accepted <= sampled, got {accepted} of {sampled} (level {level})")
        before = state.counts[level]
        kept_share = min(1.0, MEMORY / before[1]) if before[1] else 0.0
        now = (kept_share * before[0] + accepted, kept_share * before[1] + sampled) if sampled else before
        kept.append(now)
        best.append(max(state.best[level], now[0] / now[1] if now[1] else 0.0))
    return replace(state, round=state.round + 1, counts=tuple(kept), best=tuple(best))


def _rescued_by_budget(curriculum: Curriculum, state: LevelState, num_samples: int) -> LevelState:
    """No level can be trained on with this budget: twice the budget, if that helps and was not spent, or starvation."""
    doubled = choose_focus(curriculum, state.counts, 2 * num_samples)
    if state.budget_factor == 1 and doubled.level is not None:
        reason = f"too few accepted responses: the samples of a round are doubled; {doubled.reason}"
        focus = doubled.level if state.focus is None else min(doubled.level, state.focus + 1)
        return replace(_moved(state, focus, reason), budget_factor=2)
    starved = choose_focus(curriculum, state.counts, num_samples)
    return replace(state, focus=None, reason=starved.reason)


def _clears_band(curriculum: Curriculum, state: LevelState, level: int, num_samples: int) -> bool:
    rate = state.acceptance(level) or 0.0
    return rate >= curriculum.low + HYSTERESIS and num_samples * rate >= curriculum.min_accepted


def _moved(state: LevelState, focus: int, reason: str) -> LevelState:
    return replace(state, focus=focus, rounds_below=0, rounds_waiting=0, reason=reason)


def _wait(curriculum: Curriculum, state: LevelState) -> LevelState:
    """The state where the focus stays: patience runs, except on the hardest level."""
    assert state.focus is not None
    if state.focus == curriculum.num_levels - 1:
        return replace(state, rounds_waiting=0)
    if state.rounds_waiting < curriculum.patience:
        return state
    waited = f"{state.rounds_waiting} rounds without promotion from level {state.focus + 1}"
    if state.budget_factor == 1:
        return replace(state, budget_factor=2, rounds_waiting=0, reason=f"{waited}: the samples of a round are doubled")
    return replace(state, focus=None, reason=f"starved: {waited} at twice the samples")
