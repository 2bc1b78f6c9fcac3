"""Weak-driven training in one call: the loop's own result, exported; and what it refuses."""

import pytest
import torch
from safetensors.torch import load_file

from tests.training.runs import LocalHost, last_weights, make_run
from wmss.config import Hyperparameters
from wmss.data.tokenization import save_tokenized, tokenize_file
from wmss.errors import WmssError
from wmss.models.loading import load_tokenizer
from wmss.tasks.arithmetic import make_problems, write_jsonl
from wmss.training.in_process import train_jointly
from wmss.training.loop import train

KNOBS = Hyperparameters(learning_rate=1e-3, batch_size=4)


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "data.jsonl"
    write_jsonl(make_problems(16, seed=1), file)
    return file


@pytest.fixture
def arguments(checkpoints, tmp_path, data):
    return {
        "file": data,
        "strong": checkpoints["qwen3"],
        "weak": checkpoints["qwen3_wide"],
        "output": tmp_path / "out",
        "mixing_weight": 0.5,
        "hyperparameters": KNOBS,
    }


@pytest.mark.parametrize("weak_update", ["joint", "frozen"])
def test_it_is_the_loop_of_a_job(checkpoints, tmp_path, data, arguments, weak_update):
    drawn = [3, 1, 4, 1, 5, 9, 2, 6]
    steps = []
    given = arguments | {"indices": drawn, "weak_update": weak_update, "mixing_weight": 0.3, "seed": 7}
    metrics = train_jointly(**given, report=steps.append)
    samples = tokenize_file(data, load_tokenizer(checkpoints["qwen3"]), max_length=256)
    save_tokenized(samples, tmp_path / "samples.parquet")
    host = LocalHost(tmp_path / "by_hand")
    run = make_run(
        checkpoints,
        tmp_path / "samples.parquet",
        indices=tuple(drawn),
        mixing_weight=0.3,
        weak_frozen=weak_update == "frozen",
        batch_size=4,
        num_epochs=1,
        hyperparameters=KNOBS,
        seed=7,
    )
    train(run, host)
    assert [step["train_loss"] for step in steps] == [step["train_loss"] for step in host.metrics]
    assert metrics["step"] == metrics["num_steps"] == 2
    expected, _ = last_weights(host)
    result = load_file(tmp_path / "out" / "model.safetensors")
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)


def test_batch_size_auto_is_a_jobs(arguments):
    metrics = train_jointly(**arguments | {"hyperparameters": None})
    assert metrics["num_steps"] == 8  # an eighth of 16 samples a step


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"indices": [0, 16]}, r"indices: expected numbers from 0 to 15, .*got numbers from 0 to 16"),
        ({"indices": []}, "indices: .*got none"),
        ({"strong": "no-such-folder"}, "strong: expected a folder with a model"),
        ({"mixing_weight": 1.5}, "mixing_weight"),
    ],
)
def test_refusals(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        train_jointly(**arguments | changes)
    assert not arguments["output"].exists()


def test_a_folder_that_is_there_is_not_written_over(arguments, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(WmssError, match="output: expected a folder to make"):
        train_jointly(**arguments)
