"""Merged adapters of families whose experts lie fused in memory: against PEFT's own, and as files like the base's."""

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from benchmarks.families.tiny import make_tiny, save_tiny
from tests.models.families import make_family, save_family
from tests.training.runs import SFT, LocalHost, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.errors import ConfigError
from wmss.models.adapters import (
    STRONG_ADAPTER,
    adapter_parameters,
    add_adapter,
    check_mergeable,
    save_adapter,
)
from wmss.models.checkpoints import export_model
from wmss.models.loading import load_model
from wmss.training.loop import train

LORA = LoraConfig(rank=4, alpha=8)


def tensors_in(folder):
    """{name: (shape, dtype)} of a model folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118
            found |= {name: (part.get_shape(), part.get_dtype()) for name, part in slices.items()}
    return found


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match")  # PEFT's, of its own ranks
@pytest.mark.parametrize("family", ["Mixtral", "Qwen3Moe", "DeepseekV3", "Qwen3Next", "GptOss"])
def test_a_merged_mixture_of_experts_is_the_adapted_one_in_its_bases_form(checkpoints, samples_file, tmp_path, family):
    base = save_family(family, tmp_path / "base", tokenizer_from=checkpoints["qwen3"])
    run = make_run(
        {"qwen3": base, "qwen3_wide": base},
        samples_file,
        **SFT,
        checkpoint_every=100,
        hyperparameters=Hyperparameters(lora=LORA, learning_rate=1e-2, max_steps=2, packing=False),
    )
    host = LocalHost(tmp_path / "run")
    train(run, host)
    (folder,) = (tmp_path / "run").glob("step-*")
    export_model(folder / "strong", tmp_path / "result", base=base, end_token_ids=[2])
    assert tensors_in(tmp_path / "result") == tensors_in(base)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        plain = load_model(base)(ids).logits
        merged = load_model(tmp_path / "result")(ids).logits
        adapted = PeftModel.from_pretrained(load_model(base), folder / "adapter").eval()(ids).logits
    assert float((merged - adapted).norm() / adapted.norm()) < 1e-5
    assert float((merged - plain).norm() / plain.norm()) > 1e-3


def test_adapters_that_a_model_does_not_take_are_refused_before_it_is_loaded():
    config = make_family("Mixtral").config
    check_mergeable(config, LORA)
    with pytest.raises(ConfigError, match=r"lora: .* mixtral model: .*lora_dropout != 0.*set lora.dropout to 0"):
        check_mergeable(config, LoraConfig(rank=4, alpha=8, dropout=0.1))


def test_layers_that_peft_refuses_in_state_space_blocks_are_left_out():
    model = make_tiny("falcon_h1")
    check_mergeable(model.config, LORA)
    add_adapter(model, STRONG_ADAPTER, LORA)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in adapter_parameters(model, STRONG_ADAPTER)}
    assert {"q_proj", "in_proj"} <= adapted
    assert "out_proj" not in adapted


@pytest.mark.filterwarnings("ignore")
def test_an_adapters_file_names_its_layers_as_peft_does(tmp_path):
    """The last part of a name is not enough: in Gemma 3n it is a number, which the blocks have too."""
    save_tiny("gemma3n_text", tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_adapter(model, STRONG_ADAPTER, LORA)
    with torch.no_grad():
        for matrix in adapter_parameters(model, STRONG_ADAPTER).values():
            matrix.normal_(0, 0.1)
    save_adapter(model, model.state_dict(), tmp_path / "adapter", STRONG_ADAPTER, base=tmp_path / "base")
    ids = torch.arange(9)[None]
    with torch.no_grad():
        adapted = model.eval()(ids).logits
        read = PeftModel.from_pretrained(load_model(tmp_path / "base"), tmp_path / "adapter").eval()(ids).logits
    assert torch.equal(adapted, read)
