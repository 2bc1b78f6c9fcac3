"""What phases leave: the records read and write the artifacts of the release before, key for key, and refuse others."""

import dataclasses
import json

import pytest
from pydantic import ValidationError

from tests.release_before import recorded as release_before
from tests.rounds.engines import LocalEngines, MemoryJournal, job_of, make_job
from wmss.errors import RecordError
from wmss.rounds.job import Trained, Tuned
from wmss.rounds.journal import once, parsed, recorded, required
from wmss.rounds.phase_records import (
    Evaluated,
    Exported,
    ReadBack,
    RequestScored,
    RequestValidated,
    Scored,
    Validated,
    Weighed,
)
from wmss.rounds.phases import kind_and_round, phases_of
from wmss.rounds.run import run_job

KINDS = {
    "validate": Validated,
    "sft": Tuned,
    "score_weak": Scored,
    "score_strong": Scored,
    "weigh": Weighed,
    "joint": Trained,
    "export": Exported,
    "read_back": ReadBack,
    "evaluate": Evaluated,
}
"""Records of weak-driven and supervised jobs by kind of phase."""
OF_REQUESTS = {"validate": RequestValidated, "score": RequestScored}
"""Records of requests for scores."""


OPTIONAL = {"source", "saturated_at", "useful_weak", "states", "states_digest"}
"""Fields that releases before that one did not record yet."""
ABSENT = {"term_masses", "mean_entropy_weak", "mean_entropy_strong"}
"""Fields that a draw without entropies does not have."""


def stored_phases():
    """Every phase of the jobs of the release before, but those of self-improvement: its name, record and artifacts."""
    return [
        pytest.param(
            phase,
            (OF_REQUESTS if job == "scores" else KINDS)[kind_and_round(phase)[0]],
            artifacts,
            id=f"{job}-{phase}",
        )
        for job, made in release_before().items()
        if "self_improvement" not in job
        for phase, artifacts in made["phases"].items()
    ]


STORED = pytest.mark.parametrize(("phase", "kind", "artifacts"), stored_phases())


@STORED
def test_what_the_release_before_recorded_is_read_and_written_alike(phase, kind, artifacts):
    record = parsed(artifacts, phase, kind)
    assert json.dumps(record.model_dump(mode="json")) == json.dumps(artifacts)  # the order of keys too


@STORED
def test_a_missing_or_misspelt_field_is_refused_by_phase_and_field(phase, kind, artifacts):
    for field in artifacts:
        others = {name: value for name, value in artifacts.items() if name != field}
        misspelt = others | {f"{field}x": artifacts[field]}
        with pytest.raises(RecordError, match=f"phase {phase}: .*{field}x .*submit it again") as caught:
            parsed(misspelt, phase, kind)
        assert caught.value.code == "other_release"
        if field not in OPTIONAL | ABSENT:
            with pytest.raises(RecordError, match=rf"phase {phase}: expected .*{kind.__name__}.* {field} \(.*required"):
                parsed(others, phase, kind)


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        (Validated, "batch_size", 0),
        (Validated, "num_samples", -1),
        (Trained, "num_steps", -1),
        (Weighed, "largest_share", 1.5),
        (Weighed, "indices", [-1]),
    ],
)
def test_a_value_out_of_range_is_refused_at_construction(kind, field, value):
    made = release_before()["wmss"]["phases"]
    [phase] = [phase for phase, of in KINDS.items() if of is kind]
    with pytest.raises(ValidationError, match=field):
        kind(**made[phase] | {field: value})


def test_a_record_does_not_change_once_it_is_made():
    record = parsed(release_before()["wmss"]["phases"]["validate"], "validate", Validated)
    with pytest.raises(ValidationError, match="frozen"):
        record.batch_size = 3


def test_a_phase_leaves_the_record_that_is_read_back():
    made = release_before()["wmss"]["phases"]
    journal = MemoryJournal()
    with pytest.raises(AssertionError, match="phase joint left Exported, not Trained"):
        once(journal, "joint", Trained, lambda: Exported(**made["export"]), done=str)
    assert journal.finished == {} and recorded(journal, "joint", Trained) is None
    with pytest.raises(AssertionError, match="phase joint has not run"):
        required(journal, "joint", Trained)


def rerooted(value, roots):
    """Recorded JSON with the paths of the machine that made it led to folders of this one."""
    text = json.dumps(value)
    for old, new in roots.items():
        text = text.replace(f'"{old}', f'"{new}')
    return json.loads(text)


def test_a_job_of_the_release_before_goes_on(tmp_path, checkpoints, files):
    """Its files are made here up to the phase `weigh`; its records are those of that release."""
    job = job_of(tmp_path, checkpoints, files)
    journal = MemoryJournal(die_at="joint")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    made = release_before()["wmss"]["phases"]
    roots = {"/home/wmss/qwen3": job.base, "/home/wmss": tmp_path}
    begun = {phase: rerooted(made[phase], roots) for phase in journal.finished}
    journal.finished, journal.seen, journal.die_at = begun, [], None
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert tuple(journal.seen) == phases_of(job.spec)[-3:] == ("joint", "export", "read_back")
    assert job.result.is_dir()
    assert {phase: journal.finished[phase] for phase in begun} == begun


def test_a_job_of_an_unknown_release_is_refused_before_it_starts_anything(tmp_path, checkpoints, files):
    job, engines, journal = make_job(tmp_path, checkpoints, files), LocalEngines(tmp_path / "runs"), MemoryJournal()
    journal.finished["validate"] = release_before()["wmss"]["phases"]["validate"] | {"num_rows": 48}
    with pytest.raises(RecordError, match=r"phase validate: .*num_rows \(Extra.*finish it with that one, or cancel"):
        run_job(dataclasses.replace(job, validation_file=None), engines, journal)
    assert engines.started == journal.seen == []
