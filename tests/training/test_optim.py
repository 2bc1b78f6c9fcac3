"""The schedule by hand, and which parameters are decayed."""

import shutil

import pytest
import torch

from tests.training.runs import LocalHost, losses, make_run
from wmss.config import Hyperparameters
from wmss.training.loop import train
from wmss.training.optim import make_optimizer, schedule_factor


def factors(num_steps, **knobs):
    return [schedule_factor(step, Hyperparameters(**knobs), num_steps=num_steps) for step in range(num_steps)]


def test_linear_by_hand():
    assert factors(5, warmup_ratio=0.2, lr_schedule="linear") == [0.5, 1.0, 0.75, 0.5, 0.25]
    assert factors(4, warmup_ratio=0.0, lr_schedule="linear") == [1.0, 0.75, 0.5, 0.25]


def test_cosine_and_constant_by_hand():
    assert factors(4, warmup_ratio=0.0, lr_schedule="cosine") == pytest.approx([1.0, 0.853553, 0.5, 0.146447], abs=1e-6)
    assert factors(3, warmup_ratio=1 / 3, lr_schedule="constant") == [0.5, 1.0, 1.0]


def test_one_step_still_learns():
    assert factors(1, warmup_ratio=0.1) == [0.5]


def test_vectors_are_not_decayed():
    module = torch.nn.Linear(3, 2)
    groups = make_optimizer(module, Hyperparameters(weight_decay=0.1)).param_groups
    decay = {parameter.dim(): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay == {2: 0.1, 1: 0.0}


def test_the_multiplier_reaches_the_optimizer():
    [group] = make_optimizer(
        torch.nn.Linear(3, 2, bias=False), Hyperparameters(learning_rate_multiplier=3)
    ).param_groups
    assert group["lr"] == pytest.approx(3e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_eight_bit_moments_train_and_resume(checkpoints, samples_file, tmp_path):
    """Nearly the losses of 32-bit moments in nearly half of the state, and a resumed run goes on."""
    pytest.importorskip("torchao", reason="torchao is in the cuda extra only")
    sizes, hosts = {}, {}
    for name in ("adamw", "adamw_8bit"):
        hosts[name] = LocalHost(tmp_path / name)
        knobs = Hyperparameters(learning_rate=1e-3, optimizer=name, max_steps=8)
        train(make_run(checkpoints, samples_file, hyperparameters=knobs), hosts[name])
        sizes[name] = (tmp_path / name / "step-0008" / "training_state.pt").stat().st_size
    assert losses(hosts["adamw_8bit"]) == pytest.approx(losses(hosts["adamw"]), rel=1e-3)
    assert sizes["adamw_8bit"] < 0.6 * sizes["adamw"]
    shutil.rmtree(tmp_path / "adamw_8bit" / "step-0008")
    again = LocalHost(tmp_path / "adamw_8bit")
    train(make_run(checkpoints, samples_file, hyperparameters=knobs), again)
    assert losses(again) == pytest.approx(losses(hosts["adamw_8bit"])[4:], rel=1e-3)
