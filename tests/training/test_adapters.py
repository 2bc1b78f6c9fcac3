"""Merged adapters of families whose experts lie fused in memory: against PEFT's own, and as files like the base's."""

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open

from tests.models.families import make_family, save_family
from tests.training.runs import SFT, LocalHost, make_run
from wmss.config import Hyperparameters, LoraConfig
from wmss.errors import ConfigError
from wmss.models.adapters import check_mergeable
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
