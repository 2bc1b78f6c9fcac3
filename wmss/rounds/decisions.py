"""DECIDE: from what a round of self-improvement did, whether another follows and with what. Pure, so it can be read and
tested without a model.

The labels of a round come from the feedback loop (`wmss.theory.classify`, our reconstruction of the theory of arXiv
2602.10014); what follows from them is policy, and stands here.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wmss.config import SelfImprovementConfig
from wmss.core.levels import LevelState, Share, observe
from wmss.theory import Reading, RoundOutcome, classify

MAX_REGRESSIONS = 1
"""Rounds that may make the model worse: the first is taken back, with half the learning rate; the second ends it."""
REVERSAL_ROUNDS = 2
"""Rounds over which a fall beside a rise counts as a reversal."""

StopCode = Literal[
    "rounds", "saturated", "starved", "regressed", "reversal", "max_samples", "max_hours"
]


class _Record(BaseModel):
    """Plain values that are recorded when a phase ends and read back by the next."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class LevelCount(_Record):
    """What became of one level's responses in a round."""

    level: int
    purpose: str
    """focus, probe, replay, or none where nothing was asked."""
    num_sampled: int
    num_accepted: int
    """Found correct, before selection."""
    interval_90: tuple[float, float] | None
    """Of the acceptance; null where nothing was sampled."""
    num_truncated: int
    num_distinct: int
    """Different responses among the correct ones, by text."""
    num_selected: int
    """Learned from."""


class LevelScore(_Record):
    """How good a model is on the held-out tasks of one level."""

    level: int
    num_tasks: int
    pass_at_1: float
    """Mean over tasks of the share of correct responses."""
    standard_error: float
    """Of pass@1, over tasks: the responses to one task are not independent."""
    pass_at_k: float
    """Share of tasks with a correct response among all of theirs."""


class HeldOut(_Record):
    """How good a model is on the held-out tasks that decide."""

    levels: tuple[LevelScore, ...]
    out_of_distribution: LevelScore | None
    """Of the rows of split `ood`, all levels together."""
    samples_per_task: int
    """k of pass@k."""

    @property
    def pass_at_1(self) -> float:
        """Mean over levels, each counting the same however many tasks it has."""
        return _mean([level.pass_at_1 for level in self.levels])

    @property
    def pass_at_k(self) -> float:
        """The same of pass@k."""
        return _mean([level.pass_at_k for level in self.levels])

    def of(self, levels: Sequence[int]) -> tuple[float, float]:
        """Pass@1 over some levels, and its standard error."""
        chosen = [score for score in self.levels if score.level in levels]
        return _mean([s.pass_at_1 for s in chosen]), sum(s.standard_error**2 for s in chosen) ** 0.5 / len(chosen)


class Best(_Record):
    """The best model so far on the held-out tasks."""

    round: int
    """0 = the start model."""
    pass_at_1: float
    checkpoint: dict[str, Any]


class Stop(_Record):
    """Why no further round follows."""

    code: StopCode
    message: str


class LoopState(_Record):
    """Everything a round needs to know of those before it."""

    round: int = 0
    """The last one that ended."""
    current: dict[str, Any]
    """The checkpoint the next round samples from."""
    previous: dict[str, Any] | None = None
    """The one of the round before: the weak model of an update on mixed logits."""
    best: Best
    history: tuple[HeldOut, ...]
    """Of the start model and of every round's."""
    curriculum: dict[str, Any]
    outcomes: tuple[dict[str, Any], ...] = ()
    """What the feedback loop is read from: rounds in a row on the same levels."""
    active: tuple[int, ...] = ()
    """Those levels."""
    saturated: int = 0
    """Rounds in a row that looked saturated."""
    starved: int = 0
    regressions: int = 0
    weak_driven: bool = False
    """Whether the next update is on mixed logits."""
    learning_rate_factor: float = 1.0
    num_sampled: int = 0
    trained_rounds: int = 0


class Decision(_Record):
    """What DECIDE leaves."""

    round: int
    label: str
    reading: dict[str, Any] | None
    """The feedback loop's, with V₋ and V₊; null for a round that did not train."""
    reason: str
    stop: Stop | None
    levels: tuple[LevelCount, ...]
    held_out: HeldOut
    state: LoopState


class Round(_Record):
    """What the phases before DECIDE found."""

    levels: tuple[LevelCount, ...]
    held_out: HeldOut
    checkpoint: dict[str, Any] | None
    """The trained one; null where too few responses were accepted to train on."""
    hours: float
    """Since the job's first response was drawn."""


def decide(knobs: SelfImprovementConfig, curriculum: Curriculum, state: LoopState, done: Round) -> Decision:
    """Judge a round and say what follows."""
    number = state.round + 1
    sampled = sum(level.num_sampled for level in done.levels)
    state = state.model_copy(update={"round": number, "num_sampled": state.num_sampled + sampled})
    if done.checkpoint is None:
        label, reading = "starved", None
        after = state.model_copy(update={"starved": state.starved + 1, "saturated": 0})
        reason = (
            f"fewer than {knobs.accept.min_accepted} responses were accepted, so nothing was trained: a handful of "
            "lucky samples would be learned by heart"
        )
    else:
        outcomes, active = _outcomes(state, done)
        reading = classify([RoundOutcome(**each) for each in outcomes], min_gain=knobs.stop.min_gain)
        label = reading.label
        after = _counted(state, label).model_copy(update={"outcomes": outcomes, "active": active})
        after = _with_model(after, done.checkpoint, done.held_out, number, taken_back=label == "regressed")
        reason = _REASONS[label]
    after, promoted = _next_levels(knobs, curriculum, after, done)
    stop = _stop(knobs, curriculum, after, done, reading)
    if stop is None and label == "saturated" and after.saturated >= knobs.stop.patience and not promoted:
        if knobs.weak_driven.when == "on_saturation" and not after.weak_driven:
            after = after.model_copy(update={"weak_driven": True, "saturated": 0})
            reason += "; the next updates are on mixed logits, with the model of the round before as the weak one"
    return Decision(
        round=number,
        label=label,
        reading=None if reading is None else reading.as_dict(),
        reason=reason,
        stop=stop,
        levels=done.levels,
        held_out=done.held_out,
        state=after,
    )
