"""Two workers compute what one computes: same losses, norms and weights, with weights replicated or divided.

All cases share one pair of processes, which is most of their cost.
"""

import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.control.supervisor import free_port
from tests.training.runs import LocalHost, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.config.base import changed
from wmss.data.sampler import micro_batches
from wmss.data.tokenization import load_tokenized
from wmss.training.loop import train
from wmss.training.run import ModelSource, TrainingRun


class SharedHost(LocalHost):
    """One of two workers; both put their part of a checkpoint into one folder, as Ray does."""

    world_size = 2

    def __init__(self, folder: Path, rank: int) -> None:
        super().__init__(folder)
        self.rank = rank

    def checkpoint(self, folder, metrics):
        shutil.copytree(folder, self.folder / f"step-{int(metrics['step']):04d}", dirs_exist_ok=True)
        torch.distributed.barrier()


def worker(rank: int, folder: Path, runs: dict[str, str], port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),  # workers that wait for each other fail instead of hanging
    )
    for name, run_json in runs.items():
        host = SharedHost(folder / name, rank)
        train(TrainingRun.model_validate_json(run_json), host)
        (folder / f"{name}_{rank}.json").write_text(json.dumps(host.metrics))
    torch.distributed.destroy_process_group()


LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def runs(checkpoints, samples_file):
    """Everything that both one worker and two are asked for, by name."""

    def run(parallelism, *, batch_size=13, knobs=None, **changes):
        # 40 samples in batches of 13: the last batch of an epoch has one sample, so one worker has none; and with
        # 150 tokens to a micro-batch the two have different numbers of them.
        values = {"learning_rate": 1e-4, "micro_batch_tokens": 150} | (knobs or {})
        return make_run(
            checkpoints,
            samples_file,
            batch_size=batch_size,
            parallelism=parallelism,
            hyperparameters=Hyperparameters(**values),
            held_out=samples_file,
            **changes,
        )

    own = {"weak": (ModelSource(folder=checkpoints["qwen3"]),), "knobs": {"lora": LORA, "max_steps": 4}}
    return {
        "ddp": run("ddp"),
        "fsdp": run("fsdp"),
        "ddp_frozen": run("ddp", weak_frozen=True, knobs={"max_steps": 4}),
        "fsdp_frozen": run("fsdp", weak_frozen=True, knobs={"max_steps": 4}),
        "ddp_adapters": run("ddp", **own),
        "fsdp_adapters": run("fsdp", **own),
        "fsdp_adapter_off": run("fsdp", weak_frozen=True, **own),
        "two_times_four": run("ddp", batch_size=8, num_epochs=1, knobs={"learning_rate": 1e-5}),
    }


@pytest.fixture(scope="module")
def alone(runs, tmp_path_factory):
    """What one worker makes of each run; how its weights would be divided does not matter to it."""
    hosts, done = {}, {}
    for name, run in runs.items():
        key = changed(run, parallelism="ddp").model_dump_json()
        if key not in done:
            done[key] = LocalHost(tmp_path_factory.mktemp(name))
            train(run, done[key])
        hosts[name] = done[key]
    return hosts


@pytest.fixture(scope="module")
def together(runs, alone, tmp_path_factory):
    """Folder of what two workers made of all runs, and of two that one worker began."""
    folder = tmp_path_factory.mktemp("together")
    both = {name: run.model_dump_json() for name, run in runs.items()}
    for name in ("ddp", "fsdp"):
        shutil.copytree(alone[name].folder / "step-0004", folder / f"{name}_resumed" / "step-0004")
        both[f"{name}_resumed"] = both[name]
    torch.multiprocessing.spawn(worker, (folder, both, free_port()), nprocs=2)
    return folder


def metrics_of(folder, name):
    assert (folder / f"{name}_1.json").read_text() == "[]"  # only rank 0 logs
    return json.loads((folder / f"{name}_0.json").read_text())


def assert_same_metrics(actual, expected, *, loss=1e-5, norm=1e-4):
    assert [m["step"] for m in actual] == [m["step"] for m in expected]
    judged = [m for m in expected if "valid_loss" in m]
    assert [m["step"] for m in judged] == [m["step"] for m in actual if "valid_loss" in m]
    held_out = [m["valid_loss"] for m in actual if "valid_loss" in m]
    assert held_out == pytest.approx([m["valid_loss"] for m in judged], rel=loss)
    for name in sorted({name for m in expected for name in m if name.startswith(("train_loss", "grad_norm"))}):
        tolerance = loss if name == "train_loss" else norm
        assert [m[name] for m in actual] == pytest.approx([m[name] for m in expected], rel=tolerance), name
    for name in ("num_targets", "num_tokens", "learning_rate", "mixing_weight"):
        assert [m[name] for m in actual] == [m[name] for m in expected]


def assert_same_files(actual, expected):
    names = sorted(file.relative_to(expected) for file in expected.rglob("*.safetensors"))
    assert names == sorted(file.relative_to(actual) for file in actual.rglob("*.safetensors"))
    for name in names:
        tensors, others = load_file(expected / name), load_file(actual / name)
        assert tensors.keys() == others.keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(others[key], tensor, rtol=1e-3, atol=1e-5, msg=f"{name} {key}")


EVERY_RUN = [
    "ddp",
    "fsdp",
    "ddp_frozen",
    "fsdp_frozen",
    "ddp_adapters",
    "fsdp_adapters",
    "fsdp_adapter_off",
    "two_times_four",
]
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("name", EVERY_RUN)
def test_two_workers_equal_one(runs, alone, together, name):
    assert list(runs) == EVERY_RUN
    assert_same_metrics(metrics_of(together, name), alone[name].metrics)
    last = sorted(alone[name].folder.glob("step-*"))[-1].name
    assert_same_files(together / name / last, alone[name].folder / last)


def test_two_workers_with_four_samples_each_equal_one_with_eight(runs, alone, together):
    run = runs["two_times_four"]
    samples, batch = load_tokenized(run.samples), run.sampler().batch(0).tolist()
    shares = [micro_batches(batch, samples, max_tokens=150, packing=True, rank=r, world_size=2) for r in (0, 1)]
    assert [sum(map(len, share)) for share in shares] == [4, 4]
    found = metrics_of(together, "two_times_four")
    assert_same_metrics(found, alone["two_times_four"].metrics, loss=1e-6, norm=1e-5)


def test_workers_do_not_have_the_same_number_of_micro_batches(runs):
    """Or the cases above would not show that divided weights stand it."""
    run = runs["fsdp"]
    samples = load_tokenized(run.samples)
    counts = [
        [
            len(
                micro_batches(
                    run.sampler().batch(step).tolist(), samples, max_tokens=150, packing=True, rank=r, world_size=2
                )
            )
            for r in (0, 1)
        ]
        for step in range(run.sampler().num_steps)
    ]
    assert any(first != second and min(first, second) > 0 for first, second in counts)
    assert any(min(pair) == 0 for pair in counts)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_two_workers_go_on_from_the_checkpoint_of_one(alone, together, name):
    found = metrics_of(together, f"{name}_resumed")
    assert [m["step"] for m in found] == [5, 6, 7, 8]
    assert_same_metrics(found, alone[name].metrics[4:])
    assert_same_files(together / f"{name}_resumed" / "step-0008", alone[name].folder / "step-0008")


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_one_worker_goes_on_from_the_checkpoint_of_two(runs, alone, together, tmp_path, name):
    shutil.copytree(together / name / "step-0004", tmp_path / "step-0004")
    host = LocalHost(tmp_path)
    train(runs[name], host)
    assert [m["step"] for m in host.metrics] == [5, 6, 7, 8]
    assert_same_metrics(host.metrics, alone[name].metrics[4:])
    assert_same_files(tmp_path / "step-0008", alone[name].folder / "step-0008")
