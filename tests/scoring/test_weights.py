"""Weights on the line through two checkpoints, their ids, and which architectures can take each other's."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import make_checkpoint
from wmss.errors import ConfigError, ModelError
from wmss.models.loading import load_model
from wmss.scoring.interfaces import Line, Sampling
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.weights import (
    architecture_digest,
    check_same_architecture,
    line_tensors,
    model_with,
    weights_id,
)


@pytest.fixture(scope="module")
def pair(checkpoints):
    return checkpoints["qwen3"], checkpoints["qwen3_other"]


@pytest.mark.parametrize("step", [0.0, -1.0, 0.5, 3.0])
def test_points_on_the_line(pair, step):
    """Equal to θ1 + step·(θ1 - θ0) in float64, and at 0 and -1 to the checkpoints themselves."""
    weak, strong = (load_file(folder / "model.safetensors") for folder in pair)
    found = dict(line_tensors(Line(*pair, step)))
    assert found.keys() == strong.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        exact = strong[name].double() + step * (strong[name].double() - weak[name].double())
        if step in (0.0, -1.0):
            assert torch.equal(tensor, (strong if step == 0 else weak)[name])
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_model_of_a_line_has_its_weights(pair):
    line, strong = Line(*pair, 0.5), load_model(pair[1]).state_dict()
    model = model_with(line).state_dict()
    tensors = dict(line_tensors(line))
    assert model.keys() == strong.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(model[name], tensor, rtol=0, atol=0)


def test_checkpoints_in_several_files_and_of_other_precision(pair, tmp_path):
    weak, strong = pair
    tensors = {name: value.bfloat16() for name, value in load_file(strong / "model.safetensors").items()}
    split = shutil.copytree(strong, tmp_path / "split")
    (split / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, mine in parts.items():
        save_file({name: tensors[name] for name in mine}, split / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, mine in parts.items() for name in mine}}
    (split / "model.safetensors.index.json").write_text(json.dumps(index))
    found = dict(line_tensors(Line(weak, split, 0.0)))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name].float()) for name in names)


def test_checkpoints_that_do_not_lie_on_a_line(pair, tmp_path):
    lacking = shutil.copytree(pair[1], tmp_path / "lacking")
    tensors = load_file(lacking / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"hold different tensors \(only one has model\.norm\.weight\); save both"):
        list(line_tensors(Line(pair[0], lacking, 1.0)))
    wider = make_checkpoint(tmp_path / "wider", "qwen3", seed=1, hidden_size=96)
    with pytest.raises(ModelError, match=r"is \[.*\] in .* and \[.*\] in .*choose two checkpoints of one model"):
        list(line_tensors(Line(pair[0], wider, 1.0)))
    with pytest.raises(ConfigError, match="step: expected a finite number, got nan"):
        Line(*pair, float("nan"))


def test_ids_are_of_folders_steps_and_files(pair, tmp_path):
    weak, strong = (shutil.copytree(folder, tmp_path / folder.name) for folder in pair)
    ids = [weights_id(each) for each in (weak, strong, Line(weak, strong, 1.0), Line(weak, strong, 2.0))]
    ids += [weights_id(Line(strong, weak, 1.0))]
    assert len(set(ids)) == len(ids)
    assert weights_id(Line(weak, strong, 1.0)) == ids[2]
    file = weak / "model.safetensors"
    stamp = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(stamp, stamp))
    assert weights_id(weak) != ids[0]
    assert weights_id(strong) == ids[1]
    assert weights_id(Line(weak, strong, 1.0)) != ids[2]


def test_an_architecture_is_all_of_the_configuration_but_names_and_tokens(pair, checkpoints, tmp_path):
    other = shutil.copytree(pair[1], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"eos_token_id": 5, "use_cache": False, "dtype": "float16"}))
    assert architecture_digest(other) == architecture_digest(pair[0])
    check_same_architecture(pair[0], Line(pair[1], other, 1.0))
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert architecture_digest(other) != architecture_digest(pair[0])
    for weights in (other, Line(pair[0], other, 1.0), Line(other, pair[0], 1.0)):
        with pytest.raises(ModelError, match=r"is a model of another shape than .*\(rms_norm_eps 1e-06 and 0.001\)"):
            check_same_architecture(pair[0], weights)
    with pytest.raises(ModelError, match="start another engine for it"):
        check_same_architecture(pair[0], checkpoints["llama"])


def test_plain_pytorch_samples_from_a_line(pair):
    sampler = TorchSampler(max_length=64)
    greedy = {"sampling": Sampling(temperature=0.0, top_p=1.0, top_k=None, max_new_tokens=12), "end_token_ids": []}
    ends, strong, weak = (
        sampler.sample(weights, [[5, 6, 7]], [0], **greedy) for weights in (Line(*pair, 0.0), pair[1], pair[0])
    )
    assert ends == strong != weak
