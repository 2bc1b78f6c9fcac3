"""Every variant of the method, from a TOML file over REST to a finished model, on the real service. Takes minutes.

pytest -m slow tests/integration/test_variants.py
"""

import json

import pytest

from services.commands import client as service
from tests.integration.stack import messages, metrics, wait_for_end
from wmss.config import parse_job, read_toml

pytestmark = [pytest.mark.slow, pytest.mark.stack]

VARIANTS = {
    "wmss_v1": '[wmss]\npreset = "wmss-v1"',
    "v1_weights_capped": '[wmss]\nweighting = "v1"\nmax_share = 0.05\ndeduplicate = false',
    "frozen_cached_two_rounds": '[wmss]\npreset = "efficient"\nweak_cache = true\nrounds = 2',
    "joint_adapters_two_rounds": "[wmss]\nrounds = 2\n[wmss.hyperparameters.lora]\nrank = 4",
    "frozen_adapter_selective": """[wmss]
weak_update = "frozen"
[wmss.hyperparameters]
activation_checkpointing = "selective"
lora = {rank = 4, dropout = 0.1}""",
    "strong_scaled": '[wmss]\nmixing = "strong_scaled"\nweighting = "uniform"',
    "curriculum_only": '[wmss]\nmixing = "off"',
    "mixing_only_scheduled": """[wmss]
weighting = "all"
mixing_schedule = "cosine"
mixing_weight_end = 0.9""",
    "three_weak_models": """[wmss]
weighting = "all"
more_weak_models = ["qwen3_other", "qwen3"]
weak_shares = [0.5, 0.3, 0.2]""",
    "from_saturation": """[wmss]
start_at = "saturation"
[wmss.hyperparameters]
sft_epochs = 20
telemetry_every = 1""",
    "noise_bfloat16_padded": """[supervised.hyperparameters]
neftune_alpha = 5.0
precision = "bfloat16"
activation_checkpointing = "full"
packing = false""",
    "two_sharded_workers": """[resources]
num_workers = 2
parallelism = "fsdp"
[wmss]
weighting = "all\"""",
}


def spec_of(stack, files, tmp_path, table):
    file = tmp_path / "job.toml"
    file.write_text(f'model = "qwen3"\ntraining_file = "t"\n{table}\n')
    values = read_toml(file) | {"training_file": service.upload(stack.client, files / "train.jsonl")}
    name, method = values["method"]["type"], values["method"]
    knobs = {"learning_rate": 1e-3, "max_steps": 30 if "saturation" in table else 3}
    method[name]["hyperparameters"] = knobs | method[name].get("hyperparameters", {})
    return parse_job(values)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant(stack, files, tmp_path, variant):
    spec = spec_of(stack, files, tmp_path, VARIANTS[variant])
    job = wait_for_end(stack, service.submit(stack.client, spec), timeout_s=550)
    assert job.status == "succeeded", (job.error, messages(stack, job.id))
    steps = metrics(stack, job.id)
    print(json.dumps({"variant": variant, "last": steps[-1]}))
    assert {step["phase"] for step in steps} >= {"sft"}
    assert all(step["train_loss"] > 0 for step in steps)


def test_eight_bit_moments_need_their_package(stack, files, tmp_path):
    spec = spec_of(stack, files, tmp_path, '[supervised.hyperparameters]\noptimizer = "adamw_8bit"')
    job = wait_for_end(stack, service.submit(stack.client, spec))
    assert (job.status, job.error.param) == ("failed", "method.supervised.hyperparameters.optimizer")
    assert "torchao, which is not installed" in job.error.message
