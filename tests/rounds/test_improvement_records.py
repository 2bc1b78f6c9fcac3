"""What the phases of self-improvement leave: jobs of the release before are read, and no wrong field gets in."""

import pytest
from pydantic import ValidationError

from tests.release_before import recorded
from wmss.config.base import changed
from wmss.rounds.improvement import loop
from wmss.rounds.improvement.round_records import (
    Decision,
    FinalTest,
    LevelCount,
    LevelScore,
    LoopState,
    RoundUpdate,
    StartModel,
    TaskCounts,
)
from wmss.rounds.job import Trained
from wmss.rounds.phase_records import Exported, ReadBack
from wmss.rounds.phases import IMPROVEMENT_ROUND, kind_and_round

OTHERS = {
    "validate": TaskCounts,
    "pilot": StartModel,
    "export": Exported,
    "read_back": ReadBack,
    "final_test": FinalTest,
}
RECORDS = OTHERS | {kind: step.record for kind, step in loop._ROUND}
JOBS = {name: job["phases"] for name, job in recorded().items() if name.startswith("self_improvement")}


@pytest.mark.parametrize(("job", "phase"), [(job, phase) for job, phases in JOBS.items() for phase in phases])
def test_what_the_release_before_recorded_is_read_and_written_the_same(job, phase):
    artifacts = JOBS[job][phase]
    record = RECORDS[kind_and_round(phase)[0]].model_validate(artifacts)
    again = record.model_dump(mode="json")
    assert again == artifacts
    assert list(again) == list(artifacts)


def test_the_jobs_of_the_release_before_left_every_kind_of_record():
    assert {kind_and_round(phase)[0] for phases in JOBS.values() for phase in phases} == set(RECORDS) - {"read_back"}
    decisions = [Decision.model_validate(a) for p in JOBS.values() for n, a in p.items() if n.startswith("decide")]
    assert any(decision.reading is None for decision in decisions)
    assert any(decision.state.weak_driven for decision in decisions)
    updates = [RoundUpdate.model_validate(a) for p in JOBS.values() for n, a in p.items() if n.startswith("train")]
    assert {update.trained is None for update in updates} == {True, False}


def test_a_round_runs_the_phases_that_are_planned_for_it():
    assert tuple(kind for kind, _ in loop._ROUND) == IMPROVEMENT_ROUND


@pytest.fixture
def state():
    return StartModel.model_validate(JOBS["self_improvement"]["pilot"]).state


@pytest.mark.parametrize(
    "fields",
    [
        {"weak_drivn": True},
        {"learning_rate_factor": 0.0},
        {"learning_rate_factor": 2.0},
        {"round": -1},
        {"saturated": -1},
        {"trained_rounds": None},
        {"current": {"checkpoint": "a", "steps": 3}},
        {"curriculum": {"round": 0, "focus": 0, "counts": [], "best": [], "patience": 1}},
        {"outcomes": [{"num_sampled": 4, "num_accepted": 5, "score_before": 0, "score_after": 0, "standard_error": 0}]},
    ],
)
def test_a_state_refuses_a_misspelt_or_out_of_range_field(state, fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        changed(state, **fields)
    with pytest.raises(ValidationError, match=next(iter(fields))):
        LoopState.model_validate(state.model_dump() | fields)


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (LevelScore, {"pass_at_1": 1.5}),
        (LevelScore, {"standard_error": -0.1}),
        (LevelScore, {"num_tasks": 0}),
        (LevelCount, {"num_accepted": -1}),
        (LevelCount, {"interval_90": (0.5, 1.1)}),
    ],
)
def test_counts_and_rates_are_bounded(record, fields):
    decision = Decision.model_validate(JOBS["self_improvement"]["decide"])
    known = decision.held_out.levels[0] if record is LevelScore else decision.levels[0]
    with pytest.raises(ValidationError, match=next(iter(fields))):
        changed(known, **fields)


def test_a_trained_model_keeps_its_number_of_steps_in_the_state(state):
    trained = Trained(checkpoint="a", num_steps=3)
    after = changed(state, current=trained, previous=state.current)
    assert LoopState.model_validate_json(after.model_dump_json()) == after
    assert after.model_dump(mode="json")["current"]["num_steps"] == 3
    assert "num_steps" not in after.model_dump(mode="json")["previous"]


def test_a_round_without_training_has_no_source():
    assert RoundUpdate.of(None).model_dump(mode="json") == {"checkpoint": None, "num_steps": 0}
