"""A run that dies anywhere and is started again is, bit for bit, the run that was never interrupted."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.training.runs import LocalHost, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.training.branches import Branches
from wmss.training.loop import train
from wmss.training.run import ModelSource

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Like a kill, nothing catches it."""


def random_run(checkpoints, samples_file, seed):
    """Every kind of run in turn, its other settings at random."""
    rng = np.random.default_rng(seed)
    kind = ("joint", "joint", "frozen", "adapters")[seed % 4]
    knobs = {
        "learning_rate": 1e-3,
        "packing": bool(rng.integers(2)),
        "micro_batch_tokens": int(rng.choice([1, 60, 150, 1000])),
        "telemetry_every": int(rng.integers(1, 4)),
        "neftune_alpha": float(rng.choice([0.0, 5.0])) or None,
        "lora": LoraConfig(rank=4, alpha=8, dropout=0.1) if kind == "adapters" else None,
    }
    weak = checkpoints["qwen3" if kind == "adapters" else "qwen3_wide"]
    return rng, make_run(
        checkpoints,
        samples_file,
        weak=(ModelSource(folder=weak),),
        weak_frozen=kind == "frozen",
        batch_size=int(rng.integers(3, 14)),
        checkpoint_every=int(rng.integers(1, 6)),
        num_epochs=2,
        seed=seed,
        hyperparameters=Hyperparameters(**knobs),
    )


def assert_same_end(whole, again):
    """The last checkpoint in every file: weights, optimizer, schedule, generator; and the metrics but for the clock."""
    last = sorted(whole.glob("step-*"))[-1].name
    assert sorted(again.glob("step-*"))[-1].name == last
    files = sorted(file.relative_to(whole) for file in (whole / last).rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(again) for file in (again / last).rglob("*") if file.is_file())
    for file in files:
        one, other = whole / file, again / file
        if file.suffix == ".pt":  # pickles of equal values may differ
            assert same(torch.load(one, weights_only=True), torch.load(other, weights_only=True)), file
        elif file.name == "metrics.json":
            metrics = [json.loads(path.read_text(encoding="utf-8")) for path in (one, other)]
            assert without_clock(metrics[0]) == without_clock(metrics[1])
        elif not file.name.startswith("digests"):
            assert one.read_bytes() == other.read_bytes(), file


def same(one, other):
    """Equality of nested values, tensors by their bits."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def without_clock(metrics):
    return {name: value for name, value in metrics.items() if name not in ("tokens_per_s", "total_s")}


@pytest.mark.parametrize("seed", range(20))
def test_killed_at_a_random_micro_batch(checkpoints, samples_file, tmp_path, monkeypatch, seed):
    rng, run = random_run(checkpoints, samples_file, seed)
    forward, passes = Branches.forward, []

    def counted(self, *args):
        passes.append(1)
        if len(passes) == deadline:
            raise Killed
        return forward(self, *args)

    monkeypatch.setattr(Branches, "forward", counted)
    deadline = None
    whole = LocalHost(tmp_path / "whole")
    train(run, whole)
    total = len(passes)
    # Twice: the second kill hits the resumed run.
    kills = 0
    for _ in range(2):
        passes.clear()
        deadline = int(rng.integers(1, total + 1))
        try:
            train(run, LocalHost(tmp_path / "again"))
        except Killed:
            kills += 1
    deadline = None
    again = LocalHost(tmp_path / "again")
    train(run, again)
    assert kills >= 1
    logged = {m["step"]: without_clock(m) for m in whole.metrics}
    assert all(without_clock(m) == logged[m["step"]] for m in again.metrics)
    assert_same_end(tmp_path / "whole", tmp_path / "again")


@pytest.mark.parametrize("seed", range(100, 104))
def test_killed_by_the_system(checkpoints, samples_file, tmp_path, seed):
    """SIGKILL of the process between two lines it prints: wherever it is then, also while it writes a checkpoint."""
    rng, run = random_run(checkpoints, samples_file, seed)
    (tmp_path / "run.json").write_text(run.model_dump_json(), encoding="utf-8")

    def start(folder):
        return subprocess.Popen(
            [sys.executable, "-m", "tests.training.resuming", str(tmp_path / "run.json"), str(tmp_path / folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    with start("whole") as process:
        total = len(process.stdout.read().splitlines())
    assert process.returncode == 0
    assert total >= run.sampler().num_steps
    deadline = int(rng.integers(total // 2, total))
    with start("again") as process:
        for _ in range(deadline):
            assert process.stdout.readline() == "micro-batch\n"
        process.kill()
    assert process.returncode == -9
    with start("again") as process:
        left = len(process.stdout.read().splitlines())
    assert process.returncode == 0
    assert 0 < left <= total
    assert_same_end(tmp_path / "whole", tmp_path / "again")
