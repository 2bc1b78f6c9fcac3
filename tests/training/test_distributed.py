"""Two workers compute what one computes: same losses, norms and weights, also where a worker has no sample."""

import json

import pytest
import torch
from safetensors.torch import load_file

from services.supervisor import free_port
from tests.training.runs import LocalHost, last_weights, losses, make_run
from wmss.config import Hyperparameters
from wmss.training.loop import train
from wmss.training.run import TrainingRun


def worker(rank: int, run_json: str, folder, port: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    host = LocalHost(folder / str(rank))
    host.rank, host.world_size = rank, 2
    train(TrainingRun.model_validate_json(run_json), host)
    (folder / f"losses{rank}.json").write_text(json.dumps([(m["train_loss"], m["grad_norm"]) for m in host.metrics]))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_two_workers_equal_one(checkpoints, samples_file, tmp_path):
    # 40 samples in batches of 13: the last batch of an epoch has one sample, so one worker has none.
    knobs = Hyperparameters(learning_rate=1e-4, micro_batch_tokens=150)
    run = make_run(checkpoints, samples_file, batch_size=13, hyperparameters=knobs, checkpoint_every=100)
    alone = LocalHost(tmp_path / "alone")
    train(run, alone)
    torch.multiprocessing.spawn(worker, (run.model_dump_json(), tmp_path, free_port()), nprocs=2)
    together = json.loads((tmp_path / "losses0.json").read_text())
    assert (tmp_path / "losses1.json").read_text() == "[]"  # only rank 0 logs
    assert len(together) == len(alone.metrics) == 8
    assert [loss for loss, _ in together] == pytest.approx(losses(alone), rel=1e-5)
    assert [norm for _, norm in together] == pytest.approx([m["grad_norm"] for m in alone.metrics], rel=1e-4)
    expected, _ = last_weights(alone)
    actual = load_file(tmp_path / "0" / "step-0008" / "strong" / "model.safetensors")
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-3, atol=1e-5)
