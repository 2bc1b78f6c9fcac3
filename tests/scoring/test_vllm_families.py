"""Which checkpoints vLLM's entropy plugin takes; vLLM itself is never imported."""

import json
from importlib.util import find_spec

import pytest

from tests.imports import loaded_by
from wmss.errors import ModelError
from wmss.scoring.vllm_families import check_family, families

pytestmark = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")

SUPPORTED = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Gemma3ForCausalLM",
    "MistralForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "GPT2LMHeadModel",
)


@pytest.fixture
def checkpoint(tmp_path):
    def make(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return make


@pytest.mark.parametrize("name", SUPPORTED)
def test_text_models_are_taken(checkpoint, name):
    assert check_family(checkpoint(architectures=[name])) == name


@pytest.mark.parametrize(
    "names",
    [
        ["Qwen2VLForConditionalGeneration"],
        ["Gemma3ForConditionalGeneration"],
        ["WhisperForConditionalGeneration"],
        ["T5ForConditionalGeneration"],
        ["InklingForConditionalGeneration"],
        ["MolmoForCausalLM"],
        ["BertModel"],
        ["Qwen2ForRewardModel"],
        ["EagleLlamaForCausalLM"],
        ["XForCausalLM"],
        ["LlamaForCausalLM", "Qwen3ForCausalLM"],
        [],
        None,
    ],
)
def test_other_models_are_refused_by_field(checkpoint, names):
    with pytest.raises(
        ModelError, match=r"method.wmss.weak_model: expected a decoder-only text model.*got \["
    ) as error:
        check_family(checkpoint(architectures=names), param="method.wmss.weak_model")
    assert error.value.param == "method.wmss.weak_model"


def test_asking_does_not_import_vllm():
    (loaded,) = loaded_by("from wmss.scoring.vllm_families import families; families()")
    assert "vllm" not in loaded


def test_there_are_many():
    assert len(families()) > 100
