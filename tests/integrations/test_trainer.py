"""The mixin in transformers' Trainer and in TRL's SFTTrainer against plain PyTorch; and the examples as they are."""

import os
import re
import runpy
import subprocess
import sys
from collections import Counter
from itertools import groupby
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig, SFTTrainer

from wmss.core.mixing import branch_cross_entropy, mixed_linear_cross_entropy
from wmss.integrations.trainer import WeakDriven, WeakDrivenTrainer
from wmss.models.loading import load_model, load_tokenizer
from wmss.rounds.scores.request import score_file
from wmss.tasks.arithmetic import make_problems, write_jsonl

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")


class WeakDrivenSFTTrainer(WeakDriven, SFTTrainer):
    pass


def rows(tokenizer):
    texts = [problem["messages"][1]["content"] for problem in make_problems(8, seed=1)]
    return [{"input_ids": ids, "labels": ids} for ids in (tokenizer(text).input_ids for text in texts)]


def by_hand(checkpoints, samples, *, mixing_weight, frozen, steps, lr):
    """The same steps in plain PyTorch on single samples; returns losses and both models."""
    strong, weak = load_model(checkpoints["qwen3"]), load_model(checkpoints["qwen3_wide"])
    models = [strong] if frozen else [strong, weak]
    parameters = [parameter for model in models for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
    losses = []
    for sample in samples[:steps]:
        ids = torch.tensor([sample["input_ids"]])
        states = [model.base_model(ids).last_hidden_state[0, :-1] for model in (strong, weak)]
        heads = [model.lm_head.weight for model in (strong, weak)]
        loss = mixed_linear_cross_entropy(
            states[0], heads[0], states[1], heads[1], ids[0, 1:], mixing_weight=mixing_weight
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        strong.zero_grad()
        weak.zero_grad()
        losses.append(float(loss))
    return losses, strong, weak


class InOrder(WeakDrivenTrainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("frozen", [False, True])
def test_trainer_takes_the_same_steps_as_plain_pytorch(checkpoints, tmp_path, frozen):
    samples = rows(load_tokenizer(checkpoints["qwen3"]))
    weak = load_model(checkpoints["qwen3_wide"])
    trainer = InOrder(
        model=load_model(checkpoints["qwen3"]),
        weak_model=weak,
        mixing_weight=0.3,
        weak_update="frozen" if frozen else "joint",
        train_dataset=Dataset.from_list(samples),
        args=TrainingArguments(
            output_dir=str(tmp_path),
            use_cpu=True,
            max_steps=5,
            per_device_train_batch_size=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            max_grad_norm=0.5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            optim="adamw_torch",
            disable_tqdm=True,
        ),
    )
    trainer.train()
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    losses, strong, expected_weak = by_hand(checkpoints, samples, mixing_weight=0.3, frozen=frozen, steps=5, lr=1e-3)
    assert logged == pytest.approx(losses, rel=1e-4)
    for name, tensor in strong.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    for name, tensor in expected_weak.state_dict().items():
        torch.testing.assert_close(weak.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    assert not any(name.startswith("weak_model") for name in trainer.model.state_dict())


def sft_trainer(checkpoints, folder, **changes):
    return WeakDrivenSFTTrainer(
        model=load_model(checkpoints["qwen3"]),
        processing_class=load_tokenizer(checkpoints["qwen3"]),
        train_dataset=Dataset.from_list(make_problems(16, seed=2)),
        args=SFTConfig(
            output_dir=str(folder),
            use_cpu=True,
            bf16=False,
            max_steps=2,
            per_device_train_batch_size=4,
            save_steps=1,
            report_to="none",
            disable_tqdm=True,
        ),
        **({"weak_model": load_model(checkpoints["qwen3_wide"]), "mixing_weight": 0.5} | changes),
    )


def test_sft_trainer_saves_the_strong_branch_alone(checkpoints, tmp_path):
    trainer = sft_trainer(checkpoints, tmp_path)
    trainer.train()
    saved = load_model(tmp_path / "checkpoint-2")
    assert saved.num_parameters() == load_model(checkpoints["qwen3"]).num_parameters()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, trainer.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixing_weight": 1.5}, r"mixing_weight: expected a number in \[0, 1\], got 1.5"),
        ({"weak_update": "none"}, 'weak_update: expected "joint" or "frozen"'),
    ],
)
def test_refusals(checkpoints, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        sft_trainer(checkpoints, tmp_path, **changes)


def test_resuming_is_refused(checkpoints, tmp_path):
    with pytest.raises(ValueError, match="checkpoints hold the strong branch only"):
        sft_trainer(checkpoints, tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("name", ["plain_loop", "trl_sft"])
def test_examples_run_as_they_are(checkpoints, tmp_path, name):
    data = tmp_path / "data.jsonl"
    write_jsonl(make_problems(8, seed=1), data)
    run_example(name, checkpoints["qwen3_other"], checkpoints["qwen3"], data, tmp_path / "out")
    assert load_model(tmp_path / "out").num_parameters() == load_model(checkpoints["qwen3"]).num_parameters()


def run_example(name, *arguments):
    """The example's own process, from another folder than the repository's; returns what it printed."""
    command = [sys.executable, ROOT / f"examples/{name}.py", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, capture_output=True, text=True, cwd=arguments[-1].parent, env=environment)
    assert run.returncode == 0, run.stderr
    return run.stdout


CHAT = [
    {"role": "system", "content": "Count."},
    {"role": "user", "content": "2+3"},
    {"role": "assistant", "content": "2+3=5 #### 5"},
    {"role": "user", "content": "9-4"},
    {"role": "assistant", "content": "9-4=5 #### 5"},
]


@pytest.mark.parametrize("name", ["plain_loop", "trl_sft"])
def test_examples_learn_the_assistants_tokens_alone(checkpoints, tmp_path, monkeypatch, name):
    """The labels that the loss was given, of a chat of two turns and one of one turn."""
    data = tmp_path / "data.jsonl"
    # The shorter row is padded to the longer one's length by TRL.
    write_jsonl([{"messages": CHAT}, {"messages": CHAT[:3]}], data)
    given = []

    def recording(loss, place):
        def record(*arguments, **named):
            given.append(arguments[place])
            return loss(*arguments, **named)

        return record

    monkeypatch.setattr("wmss.core.mixing.mixed_linear_cross_entropy", recording(mixed_linear_cross_entropy, 4))
    monkeypatch.setattr("wmss.integrations.trainer.branch_cross_entropy", recording(branch_cross_entropy, 1))
    folders = (checkpoints["qwen3_other"], checkpoints["qwen3"], data, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", [name, *map(str, folders)])
    runpy.run_path(str(ROOT / f"examples/{name}.py"), run_name="__main__")
    tokenizer = load_tokenizer(checkpoints["qwen3"])
    spans = sorted(tokenizer.decode(span) for labels in given for span in supervised_spans(labels.tolist()))
    assert spans == ["2+3=5 #### 5<|im_end|>"] * 2 + ["9-4=5 #### 5<|im_end|>"]


def supervised_spans(labels):
    """Runs of neighbouring labels that are not ignored."""
    return [list(run) for supervised, run in groupby(labels, lambda label: label != -100) if supervised]


def test_the_whole_method_runs_as_it_is(checkpoints, tmp_path):
    train, held_out = tmp_path / "train.jsonl", tmp_path / "held_out.jsonl"
    write_jsonl(make_problems(16, seed=1), train)
    write_jsonl(make_problems(4, seed=2), held_out)
    weak, strong, output = checkpoints["qwen3_other"], checkpoints["qwen3"], tmp_path / "out"
    printed = run_example("whole_method", weak, strong, train, held_out, output)
    result = load_model(output)
    before = load_model(strong)
    assert {n: t.shape for n, t in result.state_dict().items()} == {n: t.shape for n, t in before.state_dict().items()}
    assert any(not torch.equal(t, before.state_dict()[n]) for n, t in result.state_dict().items())
    said = re.findall(r"held-out NLL of (\w+): ([\d.]+) nats a token", printed)
    expected = {"weak": weak, "strong": strong, "result": output}
    assert [name for name, _ in said] == list(expected)
    for name, figure in said:
        assert float(figure) == pytest.approx(
            score_file(held_out, expected[name], engine="torch").token_nll, abs=6e-5
        ), name


def test_the_whole_method_learns_the_assistants_tokens_of_what_was_drawn(checkpoints, tmp_path, monkeypatch):
    data = tmp_path / "train.jsonl"
    rows = [{"messages": CHAT}, {"messages": CHAT[:3]}, *make_problems(6, seed=1)]
    write_jsonl(rows, data)
    given = []

    def loss(branches, labels, **named):
        given.extend(labels.tolist())
        return branch_cross_entropy(branches, labels, **named)

    monkeypatch.setattr("wmss.training.branches.branch_cross_entropy", loss)
    folders = (checkpoints["qwen3_other"], checkpoints["qwen3"], data, data, tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["whole_method", *map(str, folders)])
    drawn = runpy.run_path(str(ROOT / "examples/whole_method.py"), run_name="__main__")["drawn"]
    turns = [turn["content"] for i in drawn for turn in rows[i]["messages"] if turn["role"] == "assistant"]
    text = load_tokenizer(checkpoints["qwen3"]).decode(given)
    assert Counter(text.split("<|im_end|>")[:-1]) == Counter(turns)
    assert text.endswith("<|im_end|>")


@pytest.mark.parametrize("name", ["plain_loop", "whole_method"])
def test_the_examples_are_short(name):
    code = (ROOT / f"examples/{name}.py").read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
