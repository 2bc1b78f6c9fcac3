"""What each phase of self-improvement leaves: frozen records, checked when they are made and when they are read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wmss.core.levels import LevelState, Purpose
from wmss.rounds.job import StoredCheckpoint, Trained
from wmss.rounds.journal import Artifacts, Record, parsed
from wmss.rounds.phase_records import Count, Fraction
from wmss.rounds.phases import kind_and_round
from wmss.theory import LoopLabel, LoopReading, RoundOutcome
from wmss.training.run import ModelSource

StopCode = Literal["rounds", "saturated", "starved", "regressed", "reversal", "max_samples", "max_hours"]

AnyCheckpoint = Trained | StoredCheckpoint
"""The start model, or a trained one, which has the number of its steps beside it."""


class TaskCounts(Record):
    """What `validate` leaves."""

    num_tasks: Count
    num_held_out: Count
    end_token_ids: tuple[int, ...]
    """What a response ends with."""
    max_length: int = Field(ge=1)
    """Tokens of prompt and response together."""
    batch_size: int = Field(ge=1)


class LevelCount(Record):
    """What became of one level's responses in a round."""

    level: int = Field(ge=1)
    purpose: str
    """focus, probe, replay, or none where nothing was asked."""
    num_sampled: Count
    num_accepted: Count
    """Found correct, before selection."""
    interval_90: tuple[Fraction, Fraction] | None
    """Of the acceptance; null where nothing was sampled."""
    num_truncated: Count
    num_distinct: Count
    """Different responses among the correct ones, by text."""
    num_selected: Count
    """Learned from."""


class LevelScore(Record):
    """How good a model is on the held-out tasks of one level."""

    level: Count
    """0 = all levels together."""
    num_tasks: int = Field(ge=1)
    pass_at_1: Fraction
    """Mean over tasks of the share of correct responses."""
    standard_error: float = Field(ge=0)
    """Of pass@1, over tasks: the responses to one task are not independent."""
    pass_at_k: Fraction
    """Share of tasks with a correct response among all of theirs."""


class HeldOut(Record):
    """How good a model is on the held-out tasks that decide."""

    levels: tuple[LevelScore, ...]
    out_of_distribution: LevelScore | None
    """Of the rows of split `ood`, all levels together."""
    samples_per_task: int = Field(ge=1)
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


class Best(Record):
    """The best model so far on the held-out tasks."""

    round: Count
    """0 = the start model."""
    held_out: HeldOut
    checkpoint: AnyCheckpoint


class LoopState(Record):
    """The state that one round passes to the next."""

    round: Count = 0
    """The last one that ended."""
    current: AnyCheckpoint
    """The checkpoint the next round samples from."""
    standing: HeldOut
    """How good that one is."""
    previous: AnyCheckpoint | None = None
    """The one of the round before: the weak model of an update on mixed logits."""
    best: Best
    standing_round: Count = 0
    """The round it comes from; 0 = the start model."""
    history: tuple[HeldOut, ...]
    """Of the start model and of the rounds whose models were kept, oldest first."""
    curriculum: LevelState
    outcomes: tuple[RoundOutcome, ...] = ()
    """What the feedback loop is read from: rounds in a row on the same levels."""
    active: tuple[int, ...] = ()
    """Those levels."""
    saturated: Count = 0
    """Rounds in a row that looked saturated."""
    starved: Count = 0
    """Rounds in a row that looked starved."""
    regressions: Count = 0
    """Rounds that were taken back."""
    weak_driven: bool = False
    """Whether the next update is on mixed logits."""
    learning_rate_factor: float = Field(default=1.0, gt=0, le=1)
    num_sampled: Count = 0
    trained_rounds: Count = 0


class EstimatedLevels(Record):
    """Levels (1 = easiest) from the start model's pass rates, in the order of each file's tasks."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


class StartModel(Record):
    """What `pilot` leaves."""

    state: LoopState
    """The state of the first round."""
    began_at: float
    """Unix time, s."""
    estimated_levels: EstimatedLevels | None
    """Null where the rows of the task files name their levels."""


class PlannedLevel(Record):
    """Prompts of a round that come from one level, for one purpose."""

    level: int = Field(ge=1)
    purpose: Purpose
    num_prompts: Count


class PlannedPrompt(Record):
    """One prompt of a round, in the file that `plan` leaves."""

    index: Count
    """Of the task in its file."""
    level: int = Field(ge=1)
    purpose: Purpose
    first: Count
    """Number of its first response: a prompt that is planned twice in a round gets other responses."""


class RoundPlan(Record):
    """What `plan` leaves."""

    levels: tuple[PlannedLevel, ...]
    num_prompts: Count
    num_samples: Count


class DrawnResponses(Record):
    """What `generate` leaves."""

    num_samples: Count
    num_tokens: Count
    num_truncated: Count


class VerifiedResponses(Record):
    """What `verify` leaves."""

    reasons: dict[str, Count]
    """Counts of "label: detail", the most frequent first."""
    num_accepted: Count
    """Right, and ended by themselves."""
    table: Path
    """Parquet file of all responses of the round with their verdicts."""


class SelectedResponses(Record):
    """What `select` leaves."""

    counts: dict[str, Count]
    """Responses left after each step of the selection, in order."""
    num_selected: Count
    levels: dict[int, Count]
    """Selected responses by level."""
    manifest_sha256: str
    """Of what is learned from, in order."""


class RoundUpdate(Record):
    """What `train` leaves."""

    checkpoint: Path | None
    """Null where too few responses were accepted to train on."""
    source: ModelSource | None = Field(default=None, exclude_if=lambda source: source is None)
    num_steps: Count

    @classmethod
    def of(cls, trained: Trained | None) -> "RoundUpdate":
        """From what a training phase left; None where nothing was trained."""
        if trained is None:
            return cls(checkpoint=None, num_steps=0)
        return cls(**dict(trained))

    @property
    def trained(self) -> Trained | None:
        """The trained model; None where nothing was trained."""
        if self.checkpoint is None:
            return None
        return Trained(checkpoint=self.checkpoint, source=self.source, num_steps=self.num_steps)


class EvaluatedRound(Record):
    """What `evaluate` leaves."""

    held_out: HeldOut
    errors: tuple[tuple[int, Annotated[float, Field(ge=0)]], ...] | None
    """(level, standard error of the change of pass@1); null where nothing was trained, so nothing can have changed."""


class Stop(Record):
    """Why no further round follows."""

    code: StopCode
    message: str


class Decision(Record):
    """What `decide` leaves."""

    round: int = Field(ge=1)
    label: LoopLabel
    reading: LoopReading | None
    """The feedback loop's, with V₋ and V₊; null for a round that did not train."""
    reason: str
    stop: Stop | None
    levels: tuple[LevelCount, ...]
    held_out: HeldOut
    state: LoopState


class FinalScores(Record):
    """Scores by level of the tasks that decided nothing."""

    base: tuple[LevelScore, ...]
    result: tuple[LevelScore, ...]


class FinalTest(Record):
    """What `final_test` leaves."""

    results: FinalScores | None
    """Null where the held-out file has no rows of split `test`."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def decisions(recorded: Mapping[str, Artifacts]) -> dict[int, Decision]:
    """What `decide` left in each round, by round, from the records of a job by phase.

    Raises:
        RecordError: a round was decided by another release, see `wmss.rounds.journal.parsed`.
    """
    rounds = {kind_and_round(phase)[1]: phase for phase in recorded if kind_and_round(phase)[0] == "decide"}
    return {number: parsed(recorded[rounds[number]], rounds[number], Decision) for number in sorted(rounds)}


def rounds_decided(recorded: Mapping[str, Artifacts]) -> int | None:
    """How many rounds a job has in all; None until one of them has stopped it."""
    return next((number for number, decision in decisions(recorded).items() if decision.stop is not None), None)
