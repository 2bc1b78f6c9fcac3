"""DECIDE: from what a round of self-improvement did, whether another follows and with what. Pure, so it can be read and
tested without a model.

The labels of a round come from the feedback loop (`wmss.theory.classify`, our reconstruction of the theory of arXiv
2602.10014); what follows from them is policy, and stands here.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from wmss.config import SelfImprovementConfig
from wmss.core.levels import Curriculum, LevelState, observe
from wmss.theory import Label, Reading, RoundOutcome, classify

MAX_REGRESSIONS = 1
"""Rounds that may make the model worse: the first is taken back, with half the learning rate; the second ends it."""
REVERSAL_ROUNDS = 2
"""Rounds over which a fall beside a rise counts as a reversal."""

StopCode = Literal["rounds", "saturated", "starved", "regressed", "reversal", "max_samples", "max_hours"]


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

    @property
    def pass_at_k_error(self) -> float:
        """Its standard error, a share of tasks on every level."""
        variances = [one.pass_at_k * (1 - one.pass_at_k) / one.num_tasks for one in self.levels]
        return float(sum(variances) ** 0.5 / len(variances))

    def of(self, levels: Sequence[int]) -> float:
        """Pass@1 over some levels."""
        return _mean([score.pass_at_1 for score in self.levels if score.level in levels])


class Best(_Record):
    """The best model so far on the held-out tasks."""

    round: int
    """0 = the start model."""
    held_out: HeldOut
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
    standing: HeldOut
    """How good that one is."""
    previous: dict[str, Any] | None = None
    """The one of the round before: the weak model of an update on mixed logits."""
    best: Best
    standing_round: int = 0
    """The round it comes from; 0 = the start model."""
    history: tuple[HeldOut, ...]
    """Of the start model and of the rounds whose models were kept, oldest first."""
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
    errors: dict[int, float]
    """By level, the standard error of the change of pass@1 since the model that the round began with, task by task."""
    checkpoint: dict[str, Any] | None
    """The trained one; null where too few responses were accepted to train on."""
    hours: float
    """Since the start model's first response was drawn."""

    @property
    def active(self) -> tuple[int, ...]:
        """The levels it was about: those in focus, or all that were asked where none was."""
        focus = tuple(level.level for level in self.levels if level.purpose == "focus")
        return focus or tuple(level.level for level in self.levels if level.num_sampled)


_REASONS = {
    "improving": "held-out pass@1 rose by more than chance",
    "flat": "held-out pass@1 did not move by more than chance",
    "saturated": "accepted responses are just enough to keep the score they come from",
    "starved": "too little is accepted for acceptance to lift itself",
    "regressed": "held-out pass@1 fell by more than chance",
}


def decide(knobs: SelfImprovementConfig, curriculum: Curriculum, state: LoopState, done: Round) -> Decision:
    """Judge a round, and say what follows: the state that the next one begins with, or why there is none."""
    outcomes = _outcomes(state, done)
    reading = (
        None
        if done.checkpoint is None
        else classify(outcomes, min_gain=knobs.stop.min_gain, min_accepted=knobs.accept.min_accepted)
    )
    label: Label = "starved" if reading is None else reading.label
    # What fell on the levels in focus may have risen on all together, by which models are chosen: it stays then.
    taken_back = label == "regressed" and done.held_out.pass_at_1 <= state.standing.pass_at_1
    levels = _observed(knobs, curriculum, state, done, label)
    after = _with_model(state, done, taken_back=taken_back)
    after = _counted(after, label, same_levels=done.active == state.active).model_copy(
        update={
            "round": state.round + 1,
            "curriculum": levels.to_dict(),
            # A round that did not train says nothing of how training goes.
            "outcomes": tuple(asdict(each) for each in (outcomes[:-1] if reading is None else outcomes)),
            "active": done.active,
            "num_sampled": state.num_sampled + sum(level.num_sampled for level in done.levels),
        }
    )
    earlier = LevelState.from_dict(state.curriculum)
    if (levels.focus, levels.budget_factor) != (earlier.focus, earlier.budget_factor):
        after = after.model_copy(update={"saturated": 0, "starved": 0})  # the next round is another experiment
    stop = _stop(knobs, curriculum, after, levels, done, reading)
    if stop is not None and stop.code == "saturated" and _may_turn_weak_driven(knobs, after):
        stop, after = None, after.model_copy(update={"weak_driven": True, "saturated": 0})
    return Decision(
        round=after.round,
        label=label,
        reading=None if reading is None else asdict(reading),
        reason=f"{_REASONS[label]}{' and it is taken back' if taken_back else ''}; {levels.reason}",
        stop=stop,
        levels=done.levels,
        held_out=done.held_out,
        state=after,
    )


def _outcomes(state: LoopState, done: Round) -> list[RoundOutcome]:
    """The rounds in a row that were about the same levels, this one included: their difficulty is one number."""
    active = [level for level in done.levels if level.level in done.active]
    latest = RoundOutcome(
        num_sampled=sum(level.num_sampled for level in active),
        num_accepted=sum(level.num_accepted for level in active),
        score_before=state.standing.of(done.active),
        score_after=done.held_out.of(done.active),
        standard_error=sum(done.errors[level] ** 2 for level in done.active) ** 0.5 / len(done.active),
    )
    earlier = [RoundOutcome(**each) for each in state.outcomes] if state.active == done.active else []
    return [*earlier, latest]


def _observed(
    knobs: SelfImprovementConfig, curriculum: Curriculum, state: LoopState, done: Round, label: Label
) -> LevelState:
    """The curriculum after the round; a level that stays saturated is left for the next."""
    counts = [(level.num_accepted, level.num_sampled) for level in done.levels]
    promote = label == "saturated" and state.saturated + 1 >= knobs.stop.patience
    return observe(curriculum, LevelState.from_dict(state.curriculum), counts, promote=promote)


def _with_model(state: LoopState, done: Round, *, taken_back: bool) -> LoopState:
    """The model that the next round samples from: the new one, or the best one so far where it is taken back."""
    if done.checkpoint is None:
        return state
    trained = state.model_copy(update={"trained_rounds": state.trained_rounds + 1})
    if done.held_out.pass_at_1 > state.best.held_out.pass_at_1:
        best = Best(round=state.round + 1, held_out=done.held_out, checkpoint=done.checkpoint)
        trained = trained.model_copy(update={"best": best})
    if taken_back:
        return trained.model_copy(
            update={
                "current": trained.best.checkpoint,
                "standing": trained.best.held_out,
                "standing_round": trained.best.round,
                # The one before the best is not known any more, and a model is no weak one of itself.
                "previous": None,
                "regressions": state.regressions + 1,
                "learning_rate_factor": state.learning_rate_factor / 2,
            }
        )
    return trained.model_copy(
        update={
            "current": done.checkpoint,
            "standing": done.held_out,
            "standing_round": state.round + 1,
            "previous": state.current,
            "history": (*state.history, done.held_out),
        }
    )


def _counted(state: LoopState, label: Label, *, same_levels: bool) -> LoopState:
    """Rounds in a row, on the same levels, with a label that ends a job."""
    before = {name: getattr(state, name) if same_levels else 0 for name in ("saturated", "starved")}
    counters = {name: number + 1 if label == name else 0 for name, number in before.items()}
    return state.model_copy(update=counters)


def _stop(
    knobs: SelfImprovementConfig,
    curriculum: Curriculum,
    state: LoopState,
    levels: LevelState,
    done: Round,
    reading: Reading | None,
) -> Stop | None:
    """Why no round follows, the most telling reason first; None if one does."""
    nothing = done.checkpoint is None and sum(level.num_accepted for level in done.levels) == 0
    if nothing and not _easier_to_come(curriculum, state):
        num_sampled = sum(level.num_sampled for level in done.levels)
        message = (
            f"none of the round's {num_sampled} responses was accepted: look at the verdicts' reasons; the verifier "
            "may refuse every form of answer, or the tasks need an easier level"
        )
        return Stop(code="starved", message=message)
    if state.regressions > MAX_REGRESSIONS:
        return Stop(code="regressed", message="two rounds made the model worse: lower the learning rate or the steps")
    fallen = _reversal(knobs, state)
    if fallen is not None:
        return Stop(code="reversal", message=fallen)
    # By acceptance, the curriculum has its own remedies: an easier level, then twice the samples.
    waits = curriculum.policy == "acceptance_target" or _easier_to_come(curriculum, state)
    if levels.starved or (state.starved >= knobs.stop.patience and not waits):
        message = (
            f"starved ({levels.reason}): too few responses are accepted for acceptance to lift itself; take easier "
            f"levels, raise samples_per_round above {knobs.samples_per_round}, or learn from more rounds "
            "(accept.window)"
        )
        return Stop(code="starved", message=message)
    if state.saturated >= knobs.stop.patience and not _more_to_come(curriculum, levels):
        assert reading is not None
        return Stop(code="saturated", message=_saturated(reading, knobs))
    if state.round >= knobs.rounds:
        return Stop(code="rounds", message=f"all {knobs.rounds} rounds are done")
    following = knobs.samples_per_round * levels.budget_factor
    most, hours = knobs.stop.max_samples, knobs.stop.max_hours
    if most is not None and state.num_sampled + following > most:
        message = f"another {following} responses would be more than stop.max_samples ({most})"
        return Stop(code="max_samples", message=message)
    if hours is not None and done.hours >= hours:
        return Stop(code="max_hours", message=f"{done.hours:.2f} hours have passed, stop.max_hours is {hours:g}")
    return None


def _reversal(knobs: SelfImprovementConfig, state: LoopState) -> str | None:
    """What fell while pass@1 rose, over the last rounds; None if nothing did."""
    if len(state.history) <= REVERSAL_ROUNDS:
        return None
    before, now = state.history[-1 - REVERSAL_ROUNDS], state.history[-1]
    if now.pass_at_1 <= before.pass_at_1:
        return None
    error = (before.pass_at_k_error**2 + now.pass_at_k_error**2) ** 0.5
    falls = {f"pass@{now.samples_per_task}": (before.pass_at_k - now.pass_at_k, error)}
    old, new = before.out_of_distribution, now.out_of_distribution
    if old is not None and new is not None:
        error = (old.standard_error**2 + new.standard_error**2) ** 0.5
        falls["pass@1 out of distribution"] = (old.pass_at_1 - new.pass_at_1, error)
    for name, (fall, error) in falls.items():
        if fall > max(knobs.stop.max_drop, 2 * error):
            return (
                f"{name} fell by {fall:.3f} over {REVERSAL_ROUNDS} rounds while pass@1 rose: the model sharpens on "
                "what it can do; raise sampling.temperature, lower accept.max_per_prompt, or stop here"
            )
    return None


def _easier_to_come(curriculum: Curriculum, state: LoopState) -> bool:
    return curriculum.policy == "hard_to_easy" and state.round < curriculum.num_rounds


def _more_to_come(curriculum: Curriculum, levels: LevelState) -> bool:
    """Whether a policy goes on to levels that are not saturated."""
    last = {"clock": curriculum.num_levels - 1, "hard_to_easy": 0}
    return curriculum.policy in last and levels.focus != last[curriculum.policy]


def _may_turn_weak_driven(knobs: SelfImprovementConfig, state: LoopState) -> bool:
    return (
        knobs.weak_driven.when == "on_saturation"
        and not state.weak_driven
        and state.previous is not None
        and state.round < knobs.rounds
    )


def _saturated(reading: Reading, knobs: SelfImprovementConfig) -> str:
    """What a saturated job's owner is told: where it ends, and what would lift that."""
    if reading.v_plus is None:
        ceiling = "no ceiling can be predicted from it"
    else:
        ceiling = f"the predicted ceiling is {reading.v_plus:.3f}"
    if reading.v_plus is not None and reading.v_plus_doubled is not None:
        ceiling += f", and {reading.v_plus_doubled:.3f} with twice the samples a round"
    offer = "" if knobs.weak_driven.when == "on_saturation" else "; weak_driven.when = 'on_saturation' would go on"
    return f"saturated for {knobs.stop.patience} rounds in a row: {ceiling}{offer}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
