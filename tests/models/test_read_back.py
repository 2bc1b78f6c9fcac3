"""An exported folder read back by plain transformers in a fresh process: what is right passes, each fault is named."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import save_family
from wmss.errors import ResultError
from wmss.models import limited
from wmss.models.checkpoints import export_model
from wmss.models.loading import load_model
from wmss.models.read_back import compare, expected_of, read_back


@pytest.fixture
def exported(checkpoints, tmp_path):
    """A base in bfloat16, a float32 checkpoint of the same shape, and its export."""
    base = shutil.copytree(checkpoints["qwen3"], tmp_path / "base")
    load_model(checkpoints["qwen3"]).bfloat16().save_pretrained(base)
    export_model(checkpoints["qwen3_other"], tmp_path / "result", base=base, end_token_ids=[2])
    return checkpoints["qwen3_other"], tmp_path / "result", base


def test_an_export_is_what_was_trained_rounded_to_its_bases_precision(exported):
    checkpoint, result, base = exported
    assert read_back(result, checkpoint, base=base) == len(load_file(result / "model.safetensors"))


def test_a_base_of_two_precisions_is_read_back(exported):
    checkpoint, result, base = exported
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(result)
    export_model(checkpoint, result, base=base, end_token_ids=[2])
    assert read_back(result, checkpoint, base=base) == len(tensors)


def test_experts_are_read_back(checkpoints, tmp_path):
    base = save_family("Mixtral", tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    export_model(base, tmp_path / "result", base=base, end_token_ids=[2])
    assert read_back(tmp_path / "result", base, base=base) > 20


def changed_bit(tensors):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(torch.int16)[0, 0] ^= 1


def lost(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def renamed(tensors):
    tensors["model.layers.1.mlp.base_layer.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed_bit, "tensor model.layers.1.mlp.up_proj.weight differs"),
        (lost, "do not fit its config.json: .*missing_keys.*up_proj"),
        (renamed, "do not fit its config.json: .*unexpected_keys.*base_layer"),
    ],
)
def test_a_damaged_export_is_no_result(exported, damage, said):
    checkpoint, result, base = exported
    file = result / "model.safetensors"
    tensors = load_file(file)
    damage(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ResultError, match=said):
        read_back(result, checkpoint, base=base)


def test_a_configuration_that_computes_something_else_is_no_result(exported):
    checkpoint, result, base = exported
    config = json.loads((result / "config.json").read_text(encoding="utf-8"))
    config["rms_norm_eps"] = 0.5
    (result / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ResultError, match="its logits differ by"):
        read_back(result, checkpoint, base=base)


def test_a_result_whose_logits_are_not_finite_is_none(exported):
    checkpoint, result, base = exported
    expected = expected_of(checkpoint, base=base)
    assert compare(result, expected) is None
    config = json.loads((result / "config.json").read_text(encoding="utf-8"))
    config["rms_norm_eps"] = float("nan")
    (result / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert compare(result, expected) == "277 of its 277 logits are not finite"


@pytest.mark.slow  # another process that loads the libraries
def test_nothing_is_read_on_once_the_process_that_asked_was_killed(tmp_path):
    """A large model takes minutes and much memory, and the job may run elsewhere by then."""
    asking = (
        "from wmss.models import limited\n"
        f"limited.ask('{__name__}:sleep_long', {{'file': {str(tmp_path / 'pid')!r}}}, what='it', because='',"
        " param='model', limits=limited.Limits(time_s=600))"
    )
    root = Path(limited.__file__).parents[2]
    with subprocess.Popen([sys.executable, "-c", asking], cwd=root) as asker:
        pid = int(wait_for((tmp_path / "pid").read_text))
        os.kill(pid, 0)
        asker.kill()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())


def sleep_long(*, file):
    part = Path(file).with_suffix(".part")
    part.write_text(str(os.getpid()), encoding="utf-8")
    part.rename(file)
    time.sleep(600)


def wait_for(look, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):
            if found := look():
                return found
        time.sleep(0.05)
    raise AssertionError("expected it within two minutes")
