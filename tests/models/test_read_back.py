"""An exported folder read back by plain transformers in a fresh process: what is right passes, each fault is named."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.families import save_family
from wmss.errors import ResultError
from wmss.models.checkpoints import check_export, export_model
from wmss.models.loading import load_model


@pytest.fixture
def exported(checkpoints, tmp_path):
    """A base in bfloat16, a float32 checkpoint of the same shape, and its export."""
    base = shutil.copytree(checkpoints["qwen3"], tmp_path / "base")
    load_model(checkpoints["qwen3"]).bfloat16().save_pretrained(base)
    export_model(checkpoints["qwen3_other"], tmp_path / "result", base=base, end_token_ids=[2])
    return checkpoints["qwen3_other"], tmp_path / "result", base


def test_an_export_is_what_was_trained_rounded_to_its_bases_precision(exported):
    checkpoint, result, base = exported
    assert check_export(result, checkpoint, base=base) == len(load_file(result / "model.safetensors"))


@pytest.mark.slow
def test_a_base_of_two_precisions_is_read_back(exported):
    checkpoint, result, base = exported
    tensors = load_file(base / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    shutil.rmtree(result)
    export_model(checkpoint, result, base=base, end_token_ids=[2])
    assert check_export(result, checkpoint, base=base) == len(tensors)


@pytest.mark.slow
def test_experts_are_read_back(checkpoints, tmp_path):
    base = save_family("Mixtral", tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    export_model(base, tmp_path / "result", base=base, end_token_ids=[2])
    assert check_export(tmp_path / "result", base, base=base) > 20


def changed_bit(tensors):
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name].view(torch.int16)[0, 0] ^= 1


def lost(tensors):
    del tensors["model.layers.1.mlp.up_proj.weight"]


def renamed(tensors):
    tensors["model.layers.1.mlp.base_layer.up_proj.weight"] = tensors.pop("model.layers.1.mlp.up_proj.weight")


@pytest.mark.slow  # a process that imports transformers, each
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
        check_export(result, checkpoint, base=base)


@pytest.mark.slow
def test_a_configuration_that_computes_something_else_is_no_result(exported):
    checkpoint, result, base = exported
    config = json.loads((result / "config.json").read_text(encoding="utf-8"))
    config["rms_norm_eps"] = 0.5
    (result / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ResultError, match="its logits differ by"):
        check_export(result, checkpoint, base=base)
