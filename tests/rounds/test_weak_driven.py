"""All phases of a job in this process: real training, real scoring (torch), no Ray. And what a restart does."""

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from tests.rounds.engines import LocalEngines, MemoryJournal, make_job, run_wmss
from tests.scoring.exact import truth
from wmss.config import parse_job
from wmss.config.base import changed
from wmss.data.tokenization import load_tokenized
from wmss.errors import ConfigError, DataError, ModelError, ResultError, TrainingError
from wmss.models.loading import load_model, load_tokenizer
from wmss.records import Completion
from wmss.rounds.journal import recorded
from wmss.rounds.messages import compared
from wmss.rounds.phase_records import Accuracy, Evaluation, Weighed
from wmss.rounds.phases import phases_of
from wmss.rounds.run import run_job
from wmss.rounds.weighing import drawn_indices
from wmss.training.checkpoint_files import load_metrics


def test_wmss_job_leaves_a_model_of_the_same_shape(tmp_path, checkpoints, files):
    job, engines, journal = make_job(tmp_path, checkpoints, files), LocalEngines(tmp_path / "runs"), MemoryJournal()
    run_job(job, engines, journal)
    assert tuple(journal.seen) == phases_of(job.spec)
    # Each training phase is told of as soon as the one before has ended.
    assert engines.prepared == {"ftjob-1-sft-1": 0, "ftjob-1-joint-1": 1}
    base, result = load_model(job.base), load_model(job.result)
    assert result.num_parameters() == base.num_parameters()
    assert result.config.architectures == base.config.architectures
    assert {file.suffix for file in job.result.iterdir()} == {".json", ".jinja", ".safetensors"}
    assert (job.result / "config.json").read_bytes() == (job.base / "config.json").read_bytes()
    trained = load_model(Path(journal.finished["joint"]["checkpoint"]))
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), result.parameters(), strict=True))
    card = json.loads((job.result / "wmss.json").read_text())
    assert card["method"]["wmss"]["mixing_weight"] == 0.5
    results = journal.finished["evaluate"]["results"]
    assert set(results) == {"base", "strong_before", "result"}
    assert results["result"]["nll"] < results["base"]["nll"]
    assert results["base"]["accuracy"]["num_problems"] == 12
    # 48 training rows and 12 validation rows are one sum; so are rows and problems of three models.
    assert journal.told["score_weak"][-1] == journal.told["score_strong"][-1] == (60, 60)
    assert journal.told["evaluate"][-1] == (72, 72)


def test_result_has_the_precision_and_config_of_its_base(tmp_path, checkpoints, files):
    base = tmp_path / "bfloat16"
    shutil.copytree(checkpoints["qwen3"], base)
    load_model(checkpoints["qwen3"]).bfloat16().save_pretrained(base)
    job = make_job(tmp_path, checkpoints, files, base=base, validation_file=None)
    journal = MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert (job.result / "config.json").read_bytes() == (base / "config.json").read_bytes()
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (job.result, base)]
    assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)
    trained = load_model(Path(journal.finished["joint"]["checkpoint"])).bfloat16()
    result = load_model(job.result, dtype=torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), result.parameters(), strict=True))


def test_the_token_that_ends_a_turn_ends_generation(tokenizer_with_other_eos, tmp_path, checkpoints, files):
    """A base model's end-of-text token is not its template's end-of-turn token, which is what training teaches."""
    base = tokenizer_with_other_eos
    job = make_job(tmp_path, checkpoints, files, base=base, validation_file=None)
    journal = MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert journal.finished["validate"]["end_token_ids"] == [2]
    assert json.loads((job.result / "generation_config.json").read_text())["eos_token_id"] == [0, 2]


@pytest.fixture
def tokenizer_with_other_eos(tmp_path, checkpoints):
    base = tmp_path / "other_eos"
    shutil.copytree(checkpoints["qwen3"], base)
    tokenizer = load_tokenizer(base)
    tokenizer.eos_token = "<|endoftext|>"
    tokenizer.save_pretrained(base)
    for name in ("config.json", "generation_config.json"):
        values = json.loads((base / name).read_text()) | {"eos_token_id": 0}
        (base / name).write_text(json.dumps(values))
    return base


def test_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path, checkpoints, files):
    base = tmp_path / "short"
    shutil.copytree(checkpoints["qwen3"], base)
    config = Qwen3Config.from_pretrained(base)
    config.vocab_size = 20
    Qwen3ForCausalLM(config).save_pretrained(base)
    job = make_job(tmp_path, checkpoints, files, base=base)
    with pytest.raises(ModelError, match=r"its tokenizer gives ids up to \d+, its config.json has a vocabulary of 20"):
        run_job(job, LocalEngines(tmp_path / "runs"), MemoryJournal())


def test_curriculum_is_the_formula_on_both_tables(tmp_path, checkpoints, files):
    job, journal = make_job(tmp_path, checkpoints, files, validation_file=None), MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    table = pq.read_table(journal.finished["weigh"]["table"])
    weak, strong, weight, drawn = (
        table[name].to_numpy() for name in ("weak_entropy", "strong_entropy", "weight", "times_drawn")
    )
    exact = truth(job.base, load_tokenized(job.folder / "samples.parquet"))
    np.testing.assert_allclose(weak, [statistics[:, 0].mean() for statistics in exact], atol=1e-5)
    np.testing.assert_allclose(table["weak_nll"], [statistics[:, 1].mean() for statistics in exact], atol=1e-5)
    assert table["num_targets"].to_pylist() == [len(statistics) for statistics in exact]
    assert table["entropy_delta"].to_pylist() == (strong - weak).tolist()
    origin = json.loads(table.schema.metadata[b"wmss"])
    assert (origin["job"], origin["round"], origin["weighting"]) == (job.id, 1, "v2")
    assert origin["weak_provenance"] == origin["strong_provenance"] == journal.finished["score_weak"]["provenance"]
    expected = 0.1 * np.maximum(weak - strong, 0) + 0.8 * strong + 0.1 * np.maximum(strong - weak, 0)
    np.testing.assert_allclose(weight, expected / expected.sum(), rtol=1e-12)
    assert sorted(drawn_indices(recorded(journal, "weigh", Weighed))) == np.flatnonzero(drawn).tolist()
    assert journal.finished["weigh"]["indices"] == str(job.folder / "curriculum.npy")
    assert sum(journal.finished["weigh"]["term_masses"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("phase", ["score_weak", "weigh", "joint", "export", "read_back", "evaluate"])
def test_restarted_job_goes_on_where_it_stopped(tmp_path, checkpoints, files, phase):
    engines, journal = LocalEngines(tmp_path / "runs"), MemoryJournal(die_at=phase)
    job = make_job(tmp_path, checkpoints, files)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, engines, journal)
    before, engines.started, engines.prepared = list(engines.started), [], {}
    journal.die_at, journal.seen = None, []
    run_job(job, engines, journal)
    assert tuple(journal.seen) == phases_of(job.spec)[phases_of(job.spec).index(phase) :]
    trained = [name for name in before + engines.started if name.startswith("ftjob")]
    assert trained == ["ftjob-1-sft-1", "ftjob-1-joint-1"]
    ahead = [] if phase in ("export", "read_back", "evaluate") else ["ftjob-1-joint-1"]
    assert list(engines.prepared) == ahead, "no workers are started for what is done"


def test_a_result_that_changed_after_export_fails_the_job(tmp_path, checkpoints, files):
    journal = MemoryJournal(die_at="read_back")
    job = make_job(tmp_path, checkpoints, files)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    tensors = load_file(job.result / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, job.result / "model.safetensors", metadata={"format": "pt"})
    journal.die_at = None
    with pytest.raises(ResultError, match=r"is not the one that was trained: tensor model\.norm\.weight differs"):
        run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert journal.seen[-1] == "read_back" and journal.finished.keys().isdisjoint({"read_back", "evaluate"})


def test_scores_and_evaluations_are_never_computed_twice(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files)
    first = LocalEngines(tmp_path / "runs")
    run_job(job, first, MemoryJournal())
    # weak: training and validation in one engine; strong likewise; evaluation scores only the result anew.
    assert (first.started.count("scorer"), first.started.count("sampler")) == (3, 3)
    shutil.rmtree(tmp_path / "runs")
    second = LocalEngines(tmp_path / "runs")
    again = dataclasses.replace(job, folder=tmp_path / "job2", result=tmp_path / "result2")
    run_job(again, second, MemoryJournal())
    assert [name for name in second.started if not name.startswith("ftjob")] == []


def test_other_reference_answers_are_another_evaluation(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files)
    plain, marked = tmp_path / "plain.jsonl", tmp_path / "marked.jsonl"
    marked.write_text('{"prompt": "1", "completion": "#### 1"}\n')
    plain.write_text('{"prompt": "1", "completion": "#### 2"}\n')
    found = []
    for number, file in enumerate((plain, marked)):
        again = dataclasses.replace(
            job, validation_file=file, folder=tmp_path / f"job{number}", result=tmp_path / f"result{number}"
        )
        journal = MemoryJournal()
        run_job(again, LocalEngines(tmp_path / f"runs{number}"), journal)
        found.append(sorted((job.cache / "evaluations").iterdir()))
    assert len(found[1]) == 2 * len(found[0])


def test_the_answer_judged_is_the_last_supervised_one(tmp_path, checkpoints, files):
    """Later turns of weight 0 are neither prompted with nor compared with, and earlier ones are context."""
    turns = [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "#### 3", "weight": 0},
        {"role": "user", "content": "no"},
        {"role": "assistant", "content": "#### 2"},
    ]
    trailing = [{"role": "user", "content": "ok"}, {"role": "assistant", "content": "no mark here", "weight": 0}]
    weighted = tmp_path / "weighted.jsonl"
    weighted.write_text(json.dumps({"messages": turns + trailing}) + "\n")
    knobs = {"max_steps": 1}
    job = make_job(tmp_path, checkpoints, files, {"type": "supervised", "supervised": {"hyperparameters": knobs}})
    prompts = []

    class RecordingEngines(LocalEngines):
        @contextlib.contextmanager
        def sampler(self, checkpoint, *, max_length):
            tokenizer = load_tokenizer(checkpoint)

            class Parrot:
                calls_at_once = 1

                def sample(self, weights, asked, seeds, *, sampling, end_token_ids):
                    prompts.extend(tokenizer.decode(ids) for ids in asked)
                    return [Completion(tuple(tokenizer("#### 2")["input_ids"]), "length", 0.0) for _ in asked]

            yield Parrot()

    journal = MemoryJournal()
    run_job(dataclasses.replace(job, validation_file=weighted), RecordingEngines(tmp_path / "runs"), journal)
    accuracy = journal.finished["evaluate"]["results"]["result"]["accuracy"]
    assert accuracy["num_correct"] == accuracy["num_problems"] == 1
    tokenizer = load_tokenizer(checkpoints["qwen3"])
    assert accuracy["max_new_tokens"] == 2 * len(tokenizer("#### 2<|im_end|>\n")["input_ids"])
    assert prompts[0].endswith("no<|im_end|>\n<|im_start|>assistant\n") and "#### 3<|im_end|>" in prompts[0]


def test_validation_rows_that_would_be_cut_are_refused(tmp_path, checkpoints, files):
    knobs = {"max_steps": 1, "max_length": 40}
    job = make_job(tmp_path, checkpoints, files, {"type": "supervised", "supervised": {"hyperparameters": knobs}})
    with pytest.raises(DataError, match=r"validation_file: \d+ rows are longer than max_length 40"):
        run_job(job, LocalEngines(tmp_path / "runs"), MemoryJournal())


def test_curriculum_without_mass_names_the_knob(tmp_path, checkpoints, files):
    method = {"type": "wmss", "wmss": {"strong_model": "same", "beta": 0.0}}
    job = make_job(tmp_path, checkpoints, files, method, strong=checkpoints["qwen3"], validation_file=None)
    with pytest.raises(ConfigError, match="no term has any mass") as caught:
        run_job(job, LocalEngines(tmp_path / "runs"), MemoryJournal())
    assert caught.value.param == "method.wmss.weighting"


class UpgradedEngines(LocalEngines):
    """The same arithmetic, said to be of another release."""

    def provenance(self):
        return super().provenance() | {"version": "next"}

    @contextlib.contextmanager
    def scorer(self, checkpoint, *, max_length, keep_states):
        with super().scorer(checkpoint, max_length=max_length, keep_states=keep_states) as scorer:
            scorer.provenance = self.provenance
            yield scorer


@pytest.mark.parametrize(
    ("rounds", "die_at", "weigh"), [(1, "score_strong", "weigh"), (2, "score_strong_2", "weigh_2")]
)
def test_scores_of_before_and_after_an_upgrade_are_not_compared(tmp_path, checkpoints, files, rounds, die_at, weigh):
    method = {"type": "wmss", "wmss": {"rounds": rounds, "hyperparameters": {"max_steps": 2}}}
    job = make_job(tmp_path, checkpoints, files, method, validation_file=None)
    journal, engines = MemoryJournal(die_at=die_at), LocalEngines(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, engines, journal)
    journal.die_at = None
    upgraded = UpgradedEngines(tmp_path / "runs")
    run_job(job, upgraded, journal)
    # The strong model, and the weak one once more: in the second round that is the strong one of the first.
    assert upgraded.started.count("scorer") == 2
    assert sum(event.startswith("weak and strong were scored by different engines") for event in journal.events) == 1
    weighed = pq.read_table(journal.finished[weigh]["table"])
    origin = json.loads(weighed.schema.metadata[b"wmss"])
    assert origin["weak_provenance"] == origin["strong_provenance"] == upgraded.provenance()
    # What was recorded keeps saying where it came from.
    assert journal.finished["score_weak"]["provenance"] == engines.provenance()


def test_scores_of_a_release_without_provenance_are_made_anew(tmp_path, checkpoints, files):
    job = make_job(tmp_path, checkpoints, files, validation_file=None)
    journal, engines = MemoryJournal(die_at="weigh"), LocalEngines(tmp_path / "runs")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, engines, journal)
    old = tmp_path / "old.parquet"
    columns = ["line", "num_targets", "entropy", "nll"]
    pq.write_table(
        pq.read_table(journal.finished["score_weak"]["table"], columns=columns).replace_schema_metadata(), old
    )
    journal.finished["score_weak"]["table"] = str(old)
    journal.die_at = None
    run_job(job, engines, journal)
    assert engines.started.count("scorer") == 2  # this release knows both answers
    assert any("scored by different engines" in event for event in journal.events)


def test_given_strong_model_skips_fine_tuning(tmp_path, checkpoints, files):
    method = {"type": "wmss", "wmss": {"strong_model": "other", "hyperparameters": {"max_steps": 2}}}
    job = make_job(tmp_path, checkpoints, files, method, strong=checkpoints["qwen3_other"], validation_file=None)
    engines, journal = LocalEngines(tmp_path / "runs"), MemoryJournal()
    run_job(job, engines, journal)
    named = {"model": "qwen3", "method.wmss.strong_model": "qwen3_other"}
    assert engines.checked == ({param: checkpoints[name] for param, name in named.items()}, True)
    assert "sft" not in journal.seen
    assert engines.started == ["scorer", "scorer", "ftjob-1-joint-1"]


def test_supervised_job(tmp_path, checkpoints, files):
    method = {"type": "supervised", "supervised": {"hyperparameters": {"learning_rate": 1e-3, "n_epochs": 2}}}
    job = make_job(tmp_path, checkpoints, files, method)
    journal = MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert journal.seen == ["validate", "sft", "export", "read_back", "evaluate"]
    assert journal.finished["sft"]["num_steps"] == 16  # 48 samples, batch 48 // 8 = 6, two epochs
    assert set(journal.finished["evaluate"]["results"]) == {"base", "result"}


def test_the_checkpoint_of_the_lowest_held_out_loss_is_the_result(tmp_path, checkpoints, files):
    """A learning rate that rises until it harms, so that the best checkpoint is neither the first nor the last."""
    knobs = {"learning_rate": 0.1, "warmup_ratio": 1.0, "lr_schedule": "constant", "max_steps": 6}
    job = make_job(tmp_path, checkpoints, files, {"type": "supervised", "supervised": {"hyperparameters": knobs}})
    values = job.spec.model_dump(exclude_unset=True) | {"checkpointing": {"every_steps": 1, "keep": "best"}}
    job = dataclasses.replace(job, spec=parse_job(values))
    engines, journal = LocalEngines(tmp_path / "runs"), MemoryJournal()
    run_job(job, engines, journal)
    stored = sorted((engines.folder / "ftjob-1-sft-1").glob("step-*"))
    losses = [load_metrics(folder)["valid_loss"] for folder in stored]
    best = min(range(6), key=losses.__getitem__)
    assert 0 < best < 5
    kept = journal.finished["sft"]
    assert (Path(kept["checkpoint"]).parent, kept["num_steps"]) == (stored[best], 6)
    trained = load_file(stored[best] / "strong" / "model.safetensors")
    for name, tensor in load_file(job.result / "model.safetensors").items():
        assert torch.equal(tensor, trained[name].to(tensor.dtype)), name
    assert any(event.startswith(f"sft: keeps step {best + 1} of 6, valid_loss") for event in journal.events)
    result = journal.finished["evaluate"]["results"]["result"]
    assert result["nll"] == pytest.approx(losses[best], rel=1e-3)


def test_truncation_is_told_and_unverifiable_answers_have_no_accuracy(tmp_path, checkpoints, files):
    knobs = {"max_steps": 1, "max_length": 40}
    job = make_job(tmp_path, checkpoints, files, {"type": "supervised", "supervised": {"hyperparameters": knobs}})
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"prompt": "say", "completion": "hello"}\n')
    journal = MemoryJournal()
    run_job(dataclasses.replace(job, validation_file=plain), LocalEngines(tmp_path / "runs"), journal)
    assert journal.finished["validate"]["num_truncated"] > 0
    assert any("rows are cut and do not learn to stop" in event for event in journal.events)
    assert journal.finished["evaluate"]["results"]["result"]["accuracy"] is None
    assert any(event.startswith("no pass@1") for event in journal.events)


@pytest.mark.parametrize(
    ("knobs", "error", "message"),
    [
        (
            {"max_length": 5},
            DataError,
            r"lines 1, 2, 3 and 45 more, such as: 0 supervised tokens: the prompt of \d+ tokens fills max_length 5",
        ),
        ({"max_length": 9999}, ConfigError, "at most the model's context of 256 tokens"),
        ({"batch_size": 49}, ConfigError, "at most the 48 samples of the training file, got 49"),
    ],
)
def test_validation_refuses_before_any_engine(tmp_path, checkpoints, files, knobs, error, message):
    job = make_job(tmp_path, checkpoints, files, {"type": "wmss", "wmss": {"hyperparameters": knobs}})
    engines = LocalEngines(tmp_path / "runs")
    with pytest.raises(error, match=message):
        run_job(job, engines, MemoryJournal())
    assert engines.started == []


def test_owner_is_told_what_each_phase_found_and_what_comes_next(tmp_path, checkpoints, files):
    job, journal = make_job(tmp_path, checkpoints, files), MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)

    def told(start):
        [number] = [n for n, event in enumerate(journal.events) if event.startswith(start)]
        return journal.events[number], journal.data[number]

    assert max(map(len, journal.events)) <= 130
    order = [event.split(" took ")[0] for event in journal.events if " took " in event]
    assert order == list(phases_of(job.spec))
    assert "next is sft: supervised fine-tuning" in told("validate took")[0]
    assert told("evaluate took")[0].endswith(", the last phase")

    message, figures = told("training file: ")
    assert "48 rows" in message and f"{figures['supervised_share']:.0%} of them supervised, none cut" in message
    message, metrics = told("sft: 4 steps, loss")
    assert f"loss {metrics['first_loss']:.4f} → {metrics['train_loss']:.4f}" in message
    assert metrics["train_loss"] < metrics["first_loss"]
    assert f"{metrics['total_tokens']:,.0f} tokens in " in message
    assert told("score_weak: mean entropy")[1]["mean_entropy"] == journal.finished["score_weak"]["mean_entropy"]
    both = sum(
        len(s.input_ids) for name in ("", "validation_") for s in load_tokenized(job.folder / f"{name}samples.parquet")
    )
    assert told(f"score_weak: {both:,} tokens in ")[1]["num_tokens"] == both

    table = pq.read_table(journal.finished["weigh"]["table"]).to_pydict()
    fell = sum(strong < weak for weak, strong in zip(table["weak_entropy"], table["strong_entropy"], strict=True))
    assert f"it fell on {fell}, rose on {48 - fell}" in told("entropy weak → strong: ")[0]
    masses = journal.finished["weigh"]["term_masses"]
    assert f"{masses['strong']:.1%} what strong is unsure of" in told("weight: ")[0]
    assert f"{journal.finished['weigh']['num_unique']} of 48 samples" in told("drawn: ")[0]
    message, most = told("drawn most often")
    assert most["times_drawn"] == max(table["times_drawn"]) > 1
    answer = json.loads(job.training_file.read_text().splitlines()[most["line"] - 1])["messages"][-1]["content"]
    assert f"line {most['line']}, " in message and answer[:30] in message
    assert told("never drawn: line ")[1]["times_drawn"] == 0

    assert f"digest {journal.finished['export']['digest'][:12]}" in told("model saved as ft:qwen3::ftjob-1: ")[0]
    low, high = journal.finished["evaluate"]["results"]["result"]["accuracy"]["interval_95"]
    assert f"({low:.1%} to {high:.1%})" in told("result: pass@1")[0]
    assert "may be chance)" in told("result against strong_before: ")[0]


def test_scores_from_the_cache_are_said_to_be(tmp_path, checkpoints, files):
    method = {"type": "wmss", "wmss": {"strong_model": "same", "hyperparameters": {"max_steps": 1}}}
    job = make_job(tmp_path, checkpoints, files, method, strong=checkpoints["qwen3"], validation_file=None)
    journal = MemoryJournal()
    run_job(job, LocalEngines(tmp_path / "runs"), journal)
    assert any(event.startswith("score_strong: from the cache") for event in journal.events)


@pytest.mark.parametrize(
    ("before", "after", "problems", "verdict"),
    [(240, 270, 300, "+4.3 to +15.7: hardly chance"), (264, 270, 300, "may be chance"), (0, 1, 16, "may be chance")],
)
def test_a_difference_is_told_with_its_interval(before, after, problems, verdict):
    results = {
        label: Evaluation(
            nll=nll,
            mean_entropy=1.0,
            accuracy=Accuracy(
                pass_at_1=correct / problems,
                interval_95=(0.0, 1.0),
                num_correct=correct,
                num_problems=problems,
                truncated_share=0.0,
                max_new_tokens=8,
            ),
        )
        for label, correct, nll in (("base", before, 0.5), ("result", after, 0.25))
    }
    said = compared("base", results)
    assert verdict in said
    assert f"pass@1 {100 * (after - before) / problems:+.1f} points" in said
    assert "NLL -0.2500" in said


def spy_on_runs(monkeypatch):
    runs = []
    original = LocalEngines.train
    monkeypatch.setattr(
        LocalEngines, "train", lambda self, run, *, name: runs.append(run) or original(self, run, name=name)
    )
    return runs


def test_rounds_pair_each_model_with_its_predecessor(monkeypatch, tmp_path, checkpoints, files):
    """Algorithm 1: in round t the weak model is M_{t-1}, whose entropy is known from the round before."""
    runs = spy_on_runs(monkeypatch)
    changes = {"validation_file": files / "validation.jsonl"}
    job, engines, journal = run_wmss(tmp_path, checkpoints, files, rounds=3, job_changes=changes)
    joint = runs[1:]
    assert [run.phase for run in runs] == ["sft", "joint", "joint_2", "joint_3"]
    results = [Path(journal.finished[phase]["checkpoint"]) for phase in ("sft", "joint", "joint_2", "joint_3")]
    assert [run.weak[0].folder for run in joint] == [job.base, *results[:2]]
    assert [run.strong.folder for run in joint] == results[:3]
    scores = journal.finished
    assert "score_weak_2" not in scores
    weak_means = [scores[name]["mean_entropy_weak"] for name in ("weigh", "weigh_2", "weigh_3")]
    strong_means = [scores[name]["mean_entropy_strong"] for name in ("weigh", "weigh_2", "weigh_3")]
    assert weak_means[1:] == strong_means[:2]
    draws = [drawn_indices(recorded(journal, name, Weighed)) for name in ("weigh", "weigh_2", "weigh_3")]
    assert draws[0] != draws[1]
    assert list(scores["evaluate"]["results"]) == ["base", "strong_before", "round_1", "round_2", "result"]
    assert engines.started.count("scorer") == 2 + 2 + 1  # weak, strong; strong of two rounds; the result
    assert engines.started[0].endswith("-sft-1") and "ftjob-1-joint-3" in engines.started


def test_a_draw_whose_file_is_gone_or_broken(tmp_path):
    figures = {"num_unique": 1, "num_duplicates": 0, "effective_sample_size": 1.0, "largest_share": 1.0}
    record = Weighed(table=tmp_path / "t.parquet", indices=tmp_path / "t.npy", **figures)
    with pytest.raises(TrainingError, match=r"samples of an epoch in .*t.npy: .*No such file.*start the job again"):
        drawn_indices(record)
    record.indices.write_bytes(b"\x93NUMPY")
    with pytest.raises(TrainingError, match="samples of an epoch in"):
        drawn_indices(record)
    assert drawn_indices(changed(record, indices=(3, 3, 1))) == (3, 3, 1)


def test_a_draw_of_all_needs_no_scores(monkeypatch, tmp_path, checkpoints, files):
    runs = spy_on_runs(monkeypatch)
    _, engines, journal = run_wmss(tmp_path, checkpoints, files, weighting="all")
    assert journal.seen == ["validate", "sft", "joint", "export", "read_back"]
    assert runs[-1].indices == tuple(range(journal.finished["validate"]["num_samples"]))
    assert "scorer" not in engines.started


@pytest.mark.parametrize(("mixing", "weight"), [("strong_scaled", 0.5), ("off", 1.0)])
def test_controls_train_the_strong_model_alone(monkeypatch, tmp_path, checkpoints, files, mixing, weight):
    runs = spy_on_runs(monkeypatch)
    run_wmss(tmp_path, checkpoints, files, mixing=mixing)
    assert (runs[-1].weak, runs[-1].mixing_weight) == ((), weight)
    assert runs[-1].phase == "joint" and len(runs[-1].indices) < 40


def test_cached_states_are_the_live_frozen_model(tmp_path, checkpoints, files):
    outcomes = []
    for name, cache in (("live", False), ("cached", True)):
        _, _, journal = run_wmss(tmp_path / name, checkpoints, files, preset="efficient", weak_cache=cache, rounds=2)
        weights = [load_model(Path(journal.finished[p]["checkpoint"])).state_dict() for p in ("joint", "joint_2")]
        outcomes.append(weights)
        states = [journal.finished[p]["states"] for p in ("score_weak", "score_strong", "score_strong_2")]
        assert [path is not None for path in states] == [cache, cache, False]
    for live, cached in zip(*outcomes, strict=True):
        for name, tensor in live.items():
            torch.testing.assert_close(cached[name], tensor, rtol=1e-3, atol=2e-5)


def test_adapters_share_the_base_through_the_rounds(monkeypatch, tmp_path, checkpoints, files):
    runs = spy_on_runs(monkeypatch)
    job, _, journal = run_wmss(tmp_path, checkpoints, files, rounds=2, hyperparameters={"lora": {"rank": 4}})
    base = job.base
    assert [run.strong.folder for run in runs] == [base] * 3
    assert [run.weak[0].folder for run in runs[1:]] == [base] * 2
    adapters = [journal.finished[phase]["source"]["adapter"] for phase in ("sft", "joint")]
    assert runs[1].weak[0].adapter is None
    assert [str(run.strong.adapter) for run in runs[1:]] == adapters
    assert str(runs[2].weak[0].adapter) == adapters[0]
    assert load_model(job.result).num_parameters() == load_model(base).num_parameters()


def test_several_weak_models_share_what_is_left(monkeypatch, tmp_path, checkpoints, files):
    runs = spy_on_runs(monkeypatch)
    more = {"more_weak": (checkpoints["qwen3_other"], checkpoints["llama"])}
    names = {"more_weak_models": ["qwen3_other", "llama"], "weak_shares": [0.5, 0.3, 0.2]}
    run_wmss(tmp_path, checkpoints, files, job_changes=more, **names)
    assert [source.folder for source in runs[-1].weak] == [checkpoints[n] for n in ("qwen3", "qwen3_other", "llama")]
    assert runs[-1].weak_shares == (0.5, 0.3, 0.2)


def test_no_sample_takes_more_than_its_share(tmp_path, checkpoints, files):
    _, _, journal = run_wmss(tmp_path, checkpoints, files, max_share=0.03, deduplicate=False)
    assert journal.finished["weigh"]["largest_share"] <= 0.03 + 1e-12
    with pytest.raises(ConfigError, match=r"max_share: expected at least .*, got 0.001; raise it") as caught:
        run_wmss(tmp_path / "less", checkpoints, files, max_share=0.001)
    assert caught.value.param == "method.wmss.max_share"


def test_weak_driven_training_begins_where_the_margin_is_flat(monkeypatch, tmp_path, checkpoints, files):
    """With a learning rate of next to nothing the margin is flat as soon as ten readings are there to see it."""
    runs = spy_on_runs(monkeypatch)
    _, _, journal = run_wmss(
        tmp_path,
        checkpoints,
        files,
        start_at="saturation",
        hyperparameters={"learning_rate": 1e-9, "max_steps": 40, "sft_epochs": 8, "telemetry_every": 1},
        checkpointing={"every_steps": 4, "keep_last": 10},
    )
    sft = journal.finished["sft"]
    assert 10 <= sft["saturated_at"] == sft["num_steps"] < 20 < runs[0].sampler().num_steps
    assert any(event.startswith("sft: at most 40 steps") for event in journal.events)
    assert any("no stored checkpoint is far enough" in event for event in journal.events)
