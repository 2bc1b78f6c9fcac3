"""DECIDE: from what a round of self-improvement did, whether another follows and with what. Pure, so it can be read and
tested without a model.

The labels of a round come from the feedback loop (`wmss.theory.classify`, our reconstruction of the theory of arXiv
2602.10014); what follows from them is policy, and stands here. docs/self_improvement.md ("From a label to the next
round") has all transitions in one table.
"""

from wmss.config import SelfImprovementConfig
from wmss.config.base import changed
from wmss.core.levels import Curriculum, LevelState, observe
from wmss.rounds.improvement.round_records import Best, Decision, HeldOut, LevelCount, LoopState, Stop
from wmss.rounds.job import Trained
from wmss.rounds.journal import Record
from wmss.theory import LoopLabel, LoopReading, RoundOutcome, classify

MAX_REGRESSIONS = 1
"""Rounds that may make the model worse: the first is taken back, with half the learning rate; the second ends it."""
REVERSAL_ROUNDS = 2
"""Rounds over which a fall beside a rise counts as a reversal."""


class Round(Record):
    """What the phases before DECIDE found."""

    levels: tuple[LevelCount, ...]
    held_out: HeldOut
    errors: dict[int, float]
    """By level, the standard error of the change of pass@1 since the model that the round began with, task by task."""
    checkpoint: Trained | None
    """The trained one; None where too few responses were accepted to train on."""
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
    label: LoopLabel = "starved" if reading is None else reading.label
    # What fell on the levels in focus may have risen on all together, by which models are chosen: it stays then.
    taken_back = label == "regressed" and done.held_out.pass_at_1 <= state.standing.pass_at_1
    levels = _observed(knobs, curriculum, state, done, label)
    after = _with_model(state, done, taken_back=taken_back)
    after = changed(
        _counted(after, label, same_levels=done.active == state.active),
        round=state.round + 1,
        curriculum=levels,
        # A round that did not train says nothing of how training goes.
        outcomes=outcomes[:-1] if reading is None else outcomes,
        active=done.active,
        num_sampled=state.num_sampled + sum(level.num_sampled for level in done.levels),
    )
    if (levels.focus, levels.budget_factor) != (state.curriculum.focus, state.curriculum.budget_factor):
        after = changed(after, saturated=0, starved=0)  # the next round is another experiment
    stop = _stop(knobs, curriculum, after, levels, done, reading)
    if stop is not None and stop.code == "saturated" and _may_turn_weak_driven(knobs, after):
        stop, after = None, changed(after, weak_driven=True, saturated=0)
    return Decision(
        round=after.round,
        label=label,
        reading=reading,
        reason=f"{_REASONS[label]}{' and it is taken back' if taken_back else ''}; {levels.reason}",
        stop=stop,
        levels=done.levels,
        held_out=done.held_out,
        state=after,
    )


def _outcomes(state: LoopState, done: Round) -> tuple[RoundOutcome, ...]:
    """The rounds in a row that were about the same levels, this one included: their difficulty is one number."""
    active = [level for level in done.levels if level.level in done.active]
    latest = RoundOutcome(
        num_sampled=sum(level.num_sampled for level in active),
        num_accepted=sum(level.num_accepted for level in active),
        score_before=state.standing.of(done.active),
        score_after=done.held_out.of(done.active),
        standard_error=sum(done.errors[level] ** 2 for level in done.active) ** 0.5 / len(done.active),
    )
    return (*(state.outcomes if state.active == done.active else ()), latest)


def _observed(
    knobs: SelfImprovementConfig, curriculum: Curriculum, state: LoopState, done: Round, label: LoopLabel
) -> LevelState:
    """The curriculum after the round; a level that stays saturated is left for the next."""
    counts = [(level.num_accepted, level.num_sampled) for level in done.levels]
    promote = label == "saturated" and state.saturated + 1 >= knobs.stop.patience
    return observe(curriculum, state.curriculum, counts, promote=promote)


def _with_model(state: LoopState, done: Round, *, taken_back: bool) -> LoopState:
    """The model that the next round samples from: the new one, or the best one so far where it is taken back."""
    if done.checkpoint is None:
        return state
    trained = changed(state, trained_rounds=state.trained_rounds + 1)
    if done.held_out.pass_at_1 > state.best.held_out.pass_at_1:
        trained = changed(trained, best=Best(round=state.round + 1, held_out=done.held_out, checkpoint=done.checkpoint))
    if taken_back:
        return changed(
            trained,
            current=trained.best.checkpoint,
            standing=trained.best.held_out,
            standing_round=trained.best.round,
            # The one before the best is not known any more, and a model is no weak one of itself.
            previous=None,
            regressions=state.regressions + 1,
            learning_rate_factor=state.learning_rate_factor / 2,
        )
    return changed(
        trained,
        current=done.checkpoint,
        standing=done.held_out,
        standing_round=state.round + 1,
        previous=state.current,
        history=(*state.history, done.held_out),
    )


def _counted(state: LoopState, label: LoopLabel, *, same_levels: bool) -> LoopState:
    """Rounds in a row, on the same levels, with a label that ends a job."""
    saturated, starved = (state.saturated, state.starved) if same_levels else (0, 0)
    return changed(
        state,
        saturated=saturated + 1 if label == "saturated" else 0,
        starved=starved + 1 if label == "starved" else 0,
    )


def _stop(
    knobs: SelfImprovementConfig,
    curriculum: Curriculum,
    state: LoopState,
    levels: LevelState,
    done: Round,
    reading: LoopReading | None,
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


def _saturated(reading: LoopReading, knobs: SelfImprovementConfig) -> str:
    """What a saturated job's owner is told: where it ends, and what would lift that."""
    if reading.v_plus is None:
        ceiling = "no ceiling can be predicted from it"
    else:
        ceiling = f"the predicted ceiling is {reading.v_plus:.3f}"
    if reading.v_plus is not None and reading.v_plus_doubled is not None:
        ceiling += f", and {reading.v_plus_doubled:.3f} with twice the samples a round"
    offer = "" if knobs.weak_driven.when == "on_saturation" else "; weak_driven.when = 'on_saturation' would go on"
    return f"saturated for {knobs.stop.patience} rounds in a row: {ceiling}{offer}"
