"""Knobs together: what a job with several of them leaves, costs and survives."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.rounds.engines import LocalEngines, MemoryJournal, job_of, make_job, run_wmss
from tests.rounds.test_preflight import look
from tests.training.runs import LocalHost
from wmss.data.states import StateWriter
from wmss.data.tokenization import load_tokenized
from wmss.errors import ConfigError, TrainingError
from wmss.models.loading import load_model
from wmss.rounds.phases import phases_of
from wmss.rounds.run import run_job
from wmss.rounds.scores import cache as scores
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.training.loop import train
from wmss.units import gigabytes

FROZEN = {"weak_update": "frozen"}


class DyingEngines(LocalEngines):
    """Engines whose training dies after its third step, as a crash would."""

    calls_at_once = 1

    def train(self, run, *, name):
        train(run, LocalHost(self.folder / name, die_at=3))
        raise AssertionError("training went on")


@pytest.mark.parametrize(
    "knobs",
    [
        {"rounds": 2, **FROZEN, "weak_cache": True, "hyperparameters": {"lora": {"rank": 4, "dropout": 0.1}}},
        {"rounds": 2, "weak_model": "w", "hyperparameters": {"lora": {"rank": 4}}},
        {"more_weak_models": ["w"], "weak_shares": [0.3, 0.7], "hyperparameters": {"neftune_alpha": 5.0}},
        {"preset": "wmss-v1", **FROZEN, "weak_cache": True, "hyperparameters": {"packing": False}},
        {
            "start_at": "saturation",
            "hyperparameters": {"lora": {}, "learning_rate": 1e-9, "max_steps": 12, "sft_epochs": 8}
            | {"telemetry_every": 1},
        },
    ],
    ids=["adapters, states, rounds", "another weak model", "two weak models", "duplicates", "saturation"],
)
def test_a_job_killed_in_every_phase_ends_as_the_uninterrupted_one(tmp_path, checkpoints, files, knobs):
    other = checkpoints["qwen3_wide"]
    models = {"weak": other if "weak_model" in knobs else None}
    models["more_weak"] = (other,) if "more_weak_models" in knobs else ()
    whole = job_of(tmp_path / "whole", checkpoints, files, models=models, **knobs)
    run_job(whole, LocalEngines(tmp_path / "whole" / "runs"), MemoryJournal())

    job, journal = job_of(tmp_path / "killed", checkpoints, files, models=models, **knobs), MemoryJournal()
    runs = tmp_path / "killed" / "runs"
    for phase in phases_of(job.spec):
        journal.die_at = phase
        with pytest.raises(KeyboardInterrupt):
            run_job(job, LocalEngines(runs), journal)
        journal.die_at = None
        if phase.startswith(("sft", "joint")):
            with pytest.raises(KeyboardInterrupt):
                run_job(job, DyingEngines(runs), journal)
    run_job(job, LocalEngines(runs), journal)
    expected, found = (load_model(folder).state_dict() for folder in (whole.result, job.result))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_job_begun_before_sources_were_recorded_goes_on(tmp_path, checkpoints, files):
    job, engines = make_job(tmp_path, checkpoints, files, validation_file=None), LocalEngines(tmp_path / "runs")
    journal = MemoryJournal(die_at="joint")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, engines, journal)
    for name in ("source", "saturated_at", "useful_weak"):
        del journal.finished["sft"][name]
    for phase in ("score_weak", "score_strong"):
        del journal.finished[phase]["states"]
    journal.die_at = None
    run_job(job, engines, journal)
    assert job.result.is_dir()


def test_what_is_evaluated_is_the_model_that_is_handed_out(monkeypatch, tmp_path, checkpoints, files):
    """Export rounds to the precision of the base: the checkpoint that it was made from is another model."""
    asked = []
    original = LocalEngines.sampler
    monkeypatch.setattr(
        LocalEngines, "sampler", lambda self, folder, **named: asked.append(folder) or original(self, folder, **named)
    )
    job, _, journal = run_wmss(
        tmp_path, checkpoints, files, job_changes={"validation_file": files / "validation.jsonl"}
    )
    assert asked == [job.base, Path(journal.finished["sft"]["checkpoint"]), job.result]


def test_states_are_gone_when_nothing_reads_them_any_more(tmp_path, checkpoints, files):
    """Each round's are as large as the data times the width."""
    job, _, journal = run_wmss(tmp_path, checkpoints, files, preset="efficient", weak_cache=True, rounds=2)
    assert all(journal.finished[phase]["states"] for phase in ("score_weak", "score_strong"))
    assert not list((job.folder / "states").iterdir())


def test_a_model_that_did_not_change_keeps_its_states_for_the_next_round(tmp_path, checkpoints, files):
    """λ = 0 trains the weak model alone, so both rounds share one set of states."""
    knobs = {"weak_update": "frozen", "weak_cache": True, "rounds": 3, "mixing_weight": 0.0}
    job, _, _ = run_wmss(
        tmp_path, checkpoints, files, job_changes={"strong": checkpoints["qwen3"]}, strong_model="s", **knobs
    )
    assert not list((job.folder / "states").iterdir())


def test_states_that_somebody_removed_are_named(tmp_path, checkpoints, files):
    job = job_of(tmp_path, checkpoints, files, **FROZEN, weak_cache=True)
    journal = MemoryJournal(die_at="joint")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    shutil.rmtree(job.folder / "states")
    journal.die_at = None
    with pytest.raises(TrainingError, match=r"weak_cache: expected the weak model's hidden states in .*states"):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)


def test_states_that_somebody_changed_are_not_trained_on(tmp_path, checkpoints, files):
    job = job_of(tmp_path, checkpoints, files, **FROZEN, weak_cache=True)
    journal = MemoryJournal(die_at="joint")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    recorded = journal.finished["score_weak"]
    file = Path(recorded["states"]) / "states.npy"
    file.write_bytes(file.read_bytes()[:-4] + b"0000")
    journal.die_at = None
    with pytest.raises(TrainingError, match="its content has changed"):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)


def test_states_are_announced_and_refused_where_there_is_no_room(tmp_path, checkpoints, files, monkeypatch):
    job = job_of(tmp_path, checkpoints, files, **FROZEN, weak_cache=True)
    disk = shutil.disk_usage(tmp_path)
    journal, engines = MemoryJournal(), LocalEngines(tmp_path / "runs")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: disk._replace(free=1000))
    with pytest.raises(ConfigError, match=r"weak_cache: the hidden states of .* are free in .*; make room") as caught:
        run_job(job, engines, journal)
    assert caught.value.param == "method.wmss.weak_cache"
    assert "scorer" not in engines.started
    monkeypatch.undo()
    run_job(job, engines, journal)
    num_targets = journal.finished["validate"]["num_targets"]
    said = next(event for event in journal.events if event.startswith("the hidden states of"))
    assert f"{num_targets:,} supervised tokens take {gigabytes(4 * 64 * num_targets)} of disk" in said


def test_cost_counts_the_states_on_disk(tmp_path, checkpoints, files):
    def disk(**knobs):
        return look(job_of(tmp_path, checkpoints, files, **FROZEN, **knobs)).cost.temporary_disk_bytes

    job, _, _ = run_wmss(tmp_path, checkpoints, files, hyperparameters={"max_steps": 1})
    num_targets = sum(sample.num_targets for sample in load_tokenized(job.folder / "samples.parquet"))
    one = 4 * 64 * num_targets
    assert disk(weak_cache=True) - disk() == one
    assert disk(weak_cache=True, rounds=3) - disk(rounds=3) == 2 * one
    half = {"hyperparameters": {"precision": "bfloat16"}}
    assert disk(weak_cache=True, **half) - disk(**half) == one // 2


@pytest.mark.parametrize(("precision", "stored"), [("float32", "float32"), ("bfloat16", "uint16")])
def test_states_are_kept_in_the_precision_that_trains_on_them(
    tmp_path, checkpoints, files, monkeypatch, precision, stored
):
    seen = []
    close = StateWriter.close
    monkeypatch.setattr(StateWriter, "close", lambda self: seen.append(self._rows.dtype.name) or close(self))
    run_wmss(tmp_path, checkpoints, files, **FROZEN, weak_cache=True, hyperparameters={"precision": precision})
    assert seen == [stored]


def test_cost_knows_that_later_rounds_mix_two_strong_models(tmp_path, checkpoints, files):
    def memory(**knobs):
        models = {"weak": checkpoints["qwen3"], "strong": checkpoints["qwen3_wide"]}
        job = job_of(tmp_path, checkpoints, files, models=models, weak_model="w", strong_model="s", **knobs)
        return look(job).cost.worker_memory_bytes

    assert memory(rounds=2) > memory(rounds=1)


def test_a_bound_on_shares_that_no_draw_can_keep_is_refused_before_anything_runs(tmp_path, checkpoints, files):
    job, engines = job_of(tmp_path, checkpoints, files, max_share=0.02), LocalEngines(tmp_path / "runs")
    [problem] = look(job).problems
    assert problem.message.startswith("max_share: expected at least 0.0208333, 1 over the 48 samples")
    assert problem.param == "method.wmss.max_share"
    with pytest.raises(ConfigError):
        run_job(job, engines, MemoryJournal())
    assert engines.started == []


def test_stored_states_are_those_that_a_frozen_model_has_beside_noise(tmp_path, checkpoints, files):
    """NEFTune's noise is for what learns."""
    weights = []
    for name, cache in (("live", False), ("cached", True)):
        knobs = {"weak_cache": cache, "hyperparameters": {"neftune_alpha": 5.0}}
        job, _, _ = run_wmss(tmp_path / name, checkpoints, files, preset="efficient", **knobs)
        weights.append(load_model(job.result).state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("start", "end", "said"), [(1.0, 0.0, "1 to 0"), (0.5, 0.25, "0.5 to 0.25"), (0.5, None, "0.5")]
)
def test_a_schedule_is_told_with_both_ends(tmp_path, checkpoints, files, start, end, said):
    schedule = {} if end is None else {"mixing_schedule": "linear", "mixing_weight_end": end}
    _, _, journal = run_wmss(
        tmp_path,
        checkpoints,
        files,
        mixing="strong_scaled",
        mixing_weight=start,
        hyperparameters={"max_steps": 1},
        **schedule,
    )
    assert any(event.startswith("joint: ") and event.endswith(f", mixing weight {said}") for event in journal.events)


def test_no_call_of_a_scorer_with_states_is_larger_than_asked(monkeypatch, tmp_path, checkpoints, files):
    """Of the validation file neither: its states are not kept, but they come."""
    sizes = []
    original = TorchEntropyScorer.score

    def score(self, sequences, starts=None):
        sizes.append((self._keep_states, sum(map(len, sequences))))
        return original(self, sequences, starts)

    monkeypatch.setattr(TorchEntropyScorer, "score", score)
    monkeypatch.setattr(scores, "STATES_BATCH_TOKENS", 200)
    changes = {"validation_file": files / "validation.jsonl"}
    run_wmss(tmp_path, checkpoints, files, preset="efficient", weak_cache=True, job_changes=changes)
    assert max(size for keeps, size in sizes if keeps) <= 200 < max(size for keeps, size in sizes if not keeps)


@pytest.mark.parametrize(
    ("knobs", "warned"), [({}, True), ({"mixing_schedule": "linear", "mixing_weight_end": 1.0}, False)]
)
def test_a_mix_that_never_trains_what_is_kept_is_warned_of(tmp_path, checkpoints, files, knobs, warned):
    found = look(job_of(tmp_path, checkpoints, files, mixing_weight=0.0, **knobs)).warnings
    assert any(w.code == "strong_untrained" and w.param == "method.wmss.mixing_weight" for w in found) == warned
