"""Estimates against reality: bytes on disk and in memory of a real run of the loop, and torch's own count of FLOPs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from tests.checkpoints import make_checkpoint
from tests.memory import PeakTensorBytes
from tests.training.runs import LocalHost
from wmss.config import Hyperparameters, LoraConfig
from wmss.data.dataset import read_samples
from wmss.data.tokenization import save_tokenized, tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.rounds.before.estimates import (
    WorkerModel,
    checkpoint_bytes,
    measure_flops,
    read_shape,
    training_flops,
    worker_tensor_bytes,
)
from wmss.tasks.arithmetic import make_problems, write_jsonl
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun

CASES = {
    "sft": (None, True, False),
    "joint": ("llama", True, False),
    "frozen": ("llama", False, False),
    "adapter": (None, True, True),
    "two adapters": ("qwen3", True, True),
    "adapter and its base": ("qwen3", False, True),
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Large enough that tensors, not bookkeeping, decide."""
    folder = tmp_path_factory.mktemp("larger")
    return {family: make_checkpoint(folder / family, family, seed=5, hidden_size=256) for family in ("qwen3", "llama")}


def prepare(tmp_path, larger, case):
    weak, trained, adapters = CASES[case]
    lora = LoraConfig(rank=8) if adapters else None
    rows = tmp_path / "rows.jsonl"
    write_jsonl(make_problems(32, seed=3), rows)
    samples, _ = tokenize_samples(read_samples(rows), load_tokenizer(larger["qwen3"]), max_length=256, source="")
    save_tokenized(samples, tmp_path / "samples.parquet")
    run = TrainingRun(
        phase="sft" if weak is None else "joint",
        strong=ModelSource(folder=larger["qwen3"]),
        weak=() if weak is None else (ModelSource(folder=larger[weak]),),
        weak_shares=() if weak is None else (1.0,),
        samples=tmp_path / "samples.parquet",
        indices=tuple(range(32)),
        mixing_weight=1.0 if weak is None else 0.5,
        weak_frozen=not trained,
        batch_size=32,
        num_epochs=2,
        hyperparameters=Hyperparameters(micro_batch_tokens=256, lora=lora),
        seed=1,
        checkpoint_every=1,
    )
    branches = [WorkerModel(read_shape(run.strong.folder), lora=lora)]
    branches += [
        WorkerModel(read_shape(source.folder), trained=trained, lora=lora, shares_weights=adapters)
        for source in run.weak
    ]
    return run, branches


@pytest.mark.parametrize("case", CASES)
def test_disk_and_memory_are_what_training_takes(tmp_path, larger, case):
    """Disk within 2 %, memory of the tensors within 15 %, of a real run of the loop."""
    run, branches = prepare(tmp_path, larger, case)
    host = LocalHost(tmp_path / "run")
    with PeakTensorBytes() as memory:
        train(run, host)
    checkpoint = sorted(host.folder.glob("step-*"))[-1]
    written = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    # Adapters are many small tensors, whose names weigh something too.
    assert checkpoint_bytes(branches) == pytest.approx(written, rel=0.04 if "adapter" in case else 0.02)
    # The weights themselves are mapped from their files, past the operators at which the counter looks.
    peak = memory.peak + sum(4 * branch.shape.num_parameters for branch in branches if not branch.shares_weights)
    estimated = worker_tensor_bytes(branches, micro_batch_tokens=256, num_workers=1, on_gpu=False)
    print(f"{case}: disk {checkpoint_bytes(branches) / written:.3f}, memory {estimated / peak:.3f} of the real")
    assert estimated == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("family", ["qwen3", "llama"])
@pytest.mark.parametrize("trained", [True, False])
def test_flops_against_torchs_own_count(larger, family, trained):
    """Torch counts every matrix product of the model's plain forward and backward pass, with logits everywhere."""
    model = AutoModelForCausalLM.from_pretrained(larger[family], attn_implementation="eager").requires_grad_(trained)
    length = 60
    with FlopCounterMode(display=False) as counter:
        logits = model(input_ids=torch.arange(length)[None]).logits
        if trained:
            logits.sum().backward()
    branch = WorkerModel(read_shape(larger[family]), trained=trained)
    estimated = training_flops([branch], num_tokens=length, num_targets=length, squared_lengths=length**2)
    assert estimated == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_speed_is_measured(larger):
    assert measure_flops(read_shape(larger["qwen3"]), rows=64, num_threads=1) > 1e7


def test_sizes_are_those_of_the_model(larger):
    shape = read_shape(larger["llama"])
    model = AutoModelForCausalLM.from_pretrained(larger["llama"])
    assert shape.num_parameters == model.num_parameters()
    assert shape.stored_bytes == (larger["llama"] / "model.safetensors").stat().st_size
    assert shape.body_parameters == model.num_parameters() - 2 * model.lm_head.weight.numel()
