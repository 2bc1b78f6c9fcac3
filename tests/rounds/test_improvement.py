"""Self-improvement in this process: real training, real sampling (torch), no Ray. And what a restart does."""

import dataclasses
import json
from collections import defaultdict
from pathlib import Path

import pytest

from tests.rounds import echo
from tests.rounds.engines import MemoryJournal, SamplingEngines
from wmss.config import parse_job
from wmss.data.tokenization import load_tokenized
from wmss.errors import ConfigError, DataError, TrainingError
from wmss.models.loading import load_model
from wmss.rounds.improvement.rollouts import read_judged, read_rollouts, shards_in
from wmss.rounds.improvement.round_records import Decision, rounds_decided
from wmss.rounds.job import Job
from wmss.rounds.phases import phases_of
from wmss.rounds.run import run_job

KNOBS = {
    "verifier": {"type": "exact"},
    "rounds": 2,
    "samples_per_round": 64,
    "samples_per_prompt": 2,
    "curriculum": {"policy": "clock"},
    "sampling": {"max_new_tokens": echo.MAX_NEW_TOKENS},
    "accept": {"min_accepted": 4},
    "steps_per_round": 3,
    "evaluation_samples": 2,
    "hyperparameters": {"learning_rate": 3e-4, "batch_size": 16},
}


@pytest.fixture(scope="session")
def echo_base(tmp_path_factory):
    return echo.make_echo_base(tmp_path_factory.mktemp("echo") / "base")


rows = echo.make_tasks


def bare(num, seed):
    """Rows without levels."""
    return [{key: value for key, value in task.items() if key != "level"} for task in rows(num, seed=seed)]


def write(path, tasks):
    path.write_text("".join(json.dumps(task) + "\n" for task in tasks))
    return path


@pytest.fixture
def make(tmp_path, echo_base):
    """A job that says words again; keyword arguments change its knobs."""

    def job(training=None, held_out=None, folder="job", **changes):
        values = {
            "model": "echo",
            "training_file": "t",
            "validation_file": "v",
            "method": {"type": "self_improvement", "self_improvement": KNOBS | changes},
        }
        return Job(
            id="ftjob-1",
            spec=parse_job(values),
            base=echo_base,
            weak=None,
            more_weak=(),
            strong=None,
            training_file=write(tmp_path / "train.jsonl", training or rows(80, seed=1)),
            validation_file=write(tmp_path / "held_out.jsonl", held_out or rows(24, seed=2)),
            folder=tmp_path / folder,
            cache=tmp_path / "cache",
            result=tmp_path / f"result-{folder}",
            result_name="ft:echo::ftjob-1",
        )

    return job


def run(job, *, journal=None, runs="runs", engines=None):
    journal = journal or MemoryJournal()
    run_job(job, engines or SamplingEngines(job.folder.parent / runs), journal)
    return journal


def decisions(journal):
    return [Decision.model_validate(v) for k, v in journal.finished.items() if k.startswith("decide")]


def manifests(journal):
    return [v["manifest_sha256"] for k, v in journal.finished.items() if k.startswith("select")]


def test_rounds_leave_a_model_of_the_same_shape_and_every_response(make):
    job = make(held_out=rows(24, seed=2) + rows(8, seed=3, split="test") + rows(8, seed=4, split="ood"))
    engines = SamplingEngines(job.folder.parent / "runs")
    journal = run(job, engines=engines)
    assert tuple(journal.seen) == phases_of(job.spec)
    assert list(engines.prepared) == ["ftjob-1-train-1", "ftjob-1-train-2"]
    assert load_model(job.result).num_parameters() == load_model(job.base).num_parameters()
    first, second = decisions(journal)
    assert second.stop.code == "rounds" and rounds_decided(journal.finished) == 2
    assert [level.num_sampled for level in first.levels] == [64, 0]  # the clock: level 1, then level 2
    assert [level.num_sampled for level in second.levels] == [0, 64]
    assert first.held_out.out_of_distribution.num_tasks == 8
    assert sum(level.num_tasks for level in first.held_out.levels) == 24
    rollouts, verdicts = read_judged(Path(journal.finished["verify"]["table"]))
    assert len(rollouts) == len(verdicts) == 64
    right = [r for r, v in zip(rollouts, verdicts, strict=True) if v.accepted and r.completion.finish_reason == "stop"]
    assert first.levels[0].num_accepted == len(right) >= 4
    answers = {line: task["answer"] for line, task in enumerate(rows(80, seed=1), start=1)}
    assert all(rollout.text == answers[rollout.line] for rollout in right)
    test = journal.finished["final_test"]["results"]
    assert sum(each["num_tasks"] for each in test["base"]) == sum(each["num_tasks"] for each in test["result"]) == 8
    assert journal.finished["export"]["name"] == job.result_name
    card = json.loads((job.result / "wmss.json").read_text())
    assert card["round"] == second.state.best.round and card["method"]["type"] == "self_improvement"


def test_what_is_trained_on_is_what_was_drawn_token_by_token(make):
    job = make(rounds=2, curriculum={"policy": "uniform"})
    journal = run(job)
    rollouts, _ = read_judged(Path(journal.finished["verify"]["table"]))
    drawn = {(r.line, r.completion.token_ids) for r in rollouts}
    samples = load_tokenized(job.folder / "round-001" / "train.parquet")
    assert len(samples) == journal.finished["select"]["num_selected"] > 0
    for sample in samples:
        assert (sample.line, tuple(sample.input_ids[sample.target_mask].tolist())) in drawn
        level = 1 + (sample.line - 1) % 2
        num_prompt_tokens = echo.LENGTHS[level] + 1
        assert not sample.target_mask[:num_prompt_tokens].any()
        assert sample.target_mask[num_prompt_tokens:].all()


RESUMED = ["pilot", "plan", "generate", "verify", "select", "train", "evaluate", "decide", "generate_2", "export"]
"""Killed between `export` and `read_back`, a job goes on as one of the other methods: see `test_weak_driven.py`."""


@pytest.mark.parametrize("phase", RESUMED)
def test_a_job_killed_in_any_phase_ends_with_the_same_manifests(make, phase):
    undisturbed = run(make(folder="undisturbed"))
    job, dying = make(folder="killed"), MemoryJournal(die_at=phase)
    with pytest.raises(KeyboardInterrupt):
        run(job, journal=dying, runs="other-runs")
    dying.die_at = None
    run(job, journal=dying, runs="other-runs")
    assert manifests(dying) == manifests(undisturbed)
    assert dying.finished["export"]["digest"] == undisturbed.finished["export"]["digest"]


def test_shards_on_disk_are_not_drawn_again(make, monkeypatch):
    monkeypatch.setattr("wmss.rounds.improvement.responses.SHARD_REQUESTS", 16)
    undisturbed = run(make(folder="undisturbed"))
    job, journal = make(folder="killed"), MemoryJournal()
    engines = SamplingEngines(job.folder.parent / "other-runs")
    engines.die_after = 3 + 2  # the pilot asks 48 responses in 3 calls, the first round 64 in 4
    with pytest.raises(KeyboardInterrupt):
        run_job(job, engines, journal)
    assert len(list((job.folder / "round-001" / "rollouts").glob("shard-*.parquet"))) == 2
    engines.die_after = 2 + 3 + 4 + 3  # what is left, in calls
    run_job(job, engines, journal)
    assert manifests(journal) == manifests(undisturbed)


def test_levels_are_estimated_from_the_start_models_pass_rates(make):
    job_rows = rows(40, seed=1)
    job = make(
        training=bare(40, 1),
        held_out=bare(24, 2),
        estimate_levels=2,
        rounds=2,
    )
    journal = run(job)
    estimated = journal.finished["pilot"]["estimated_levels"]
    assert set(estimated["training"]) == set(estimated["held_out"]) == {1, 2}
    right = defaultdict(int)
    for rollout in read_rollouts(shards_in(job.folder / "pilot" / "training")):
        right[rollout.line - 1] += rollout.text == job_rows[rollout.line - 1]["answer"]
    easy, hard = ([right[i] for i, level in enumerate(estimated["training"]) if level == wanted] for wanted in (1, 2))
    assert min(easy) > max(hard)


def test_starved_job_keeps_its_responses_and_says_what_to_change(make):
    job = make(accept={"min_accepted": 64})
    journal = MemoryJournal()
    with pytest.raises(TrainingError, match=r"nothing was trained.*raise samples_per_round"):
        run(job, journal=journal)
    assert (job.folder / "round-002" / "rollouts.parquet").is_file()
    assert "train" in journal.finished and journal.finished["train"]["num_steps"] == 0


def test_weak_driven_update_takes_the_round_before_as_weak_model(make, monkeypatch):
    """S-T33 of the service: the run is the trainer's weak-driven one, frozen, with the model of two rounds ago."""
    seen = []
    train = SamplingEngines.train

    def spy(self, run, *, name):
        seen.append(run)
        return train(self, run, name=name)

    monkeypatch.setattr(SamplingEngines, "train", spy)
    # Held-out tasks barely move in three steps: everything looks flat or saturated.
    monkeypatch.setattr("wmss.rounds.improvement.decisions.classify", _saturated)
    journal = run(make(rounds=4, curriculum={"policy": "uniform"}, weak_driven={"when": "on_saturation"}))
    assert [bool(run.weak) for run in seen] == [False, False, True, True]
    assert seen[2].weak[0].folder == Path(journal.finished["train"]["checkpoint"])
    assert seen[2].weak_frozen and seen[2].mixing_weight == 0.5


def _saturated(outcomes, **options):
    from wmss.theory import classify

    return dataclasses.replace(classify(outcomes, **options), label="saturated")


def test_lora_and_restart(make):
    lora = {"learning_rate": 3e-4, "batch_size": 16, "lora": {"rank": 4, "alpha": 8}}
    journal = run(make(folder="lora", hyperparameters=lora))
    assert journal.finished["train_2"]["source"]["adapter"] is not None
    journal = run(make(folder="restart", start_from="restart"), runs="restart-runs")
    assert any("restart" in message or "start model again" in message for message in journal.events)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"training": rows(8, seed=1, levels=(1, 3))}, DataError, "level 2 has no prompts"),
        ({"held_out": rows(8, seed=2, levels=(1,))}, DataError, "level 2 of the training file has no held-out task"),
        ({"held_out": rows(9, seed=2, levels=(1, 2, 3))}, DataError, "level 3 is not in the training file"),
        ({"held_out": rows(8, seed=1)}, DataError, "expected prompts that are not trained on, got 8"),
        ({"estimate_levels": 2}, ConfigError, "estimate_levels: the rows of training_file name their levels"),
        ({"samples_per_round": 4, "samples_per_prompt": 4}, ConfigError, "fewer than the 2 levels"),
        (
            {
                "training": bare(20, 1),
                "held_out": bare(2, 2),
                "estimate_levels": 5,
                "curriculum": {"policy": "uniform"},
            },
            DataError,
            "no held-out task is as hard",
        ),
        ({"training": bare(20, 1), "estimate_levels": 2}, ConfigError, "the rows of validation_file name their levels"),
        ({"rounds": 1}, ConfigError, "rounds: expected at least 2, one for each level"),
        ({"sampling": {"max_new_tokens": 32}}, ConfigError, "max_new_tokens: expected less than max_length"),
        ({"sampling": {"max_new_tokens": 28}}, DataError, "expected a prompt of at most 4 tokens"),
        ({"sampling": {"max_new_tokens": 1}}, TrainingError, "none of 48 responses of the start model ended by itself"),
    ],
)
def test_what_cannot_work_is_refused_with_its_field(make, changes, error, message):
    with pytest.raises(error, match=message):
        run(make(**changes))


def test_a_verifier_that_accepts_everything_is_refused(make):
    verifier = {"type": "python", "source": "def verify(task, response):\n    return True"}
    with pytest.raises(DataError, match="nothing to learn, or the verifier accepts everything"):
        run(make(verifier=verifier))
