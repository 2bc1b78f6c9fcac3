"""LoRA adapters on a causal LM: put on, switched, saved, and merged into ordinary weights. PEFT does the layers."""

import contextlib
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from wmss.config import LoraConfig
from wmss.extras import needs_extra
from wmss.models.file_modes import share_weights

if TYPE_CHECKING:  # PEFT is imported where adapters are used: not every machine that trains has it
    from peft import LoraConfig as PeftLoraConfig
    from peft.tuners.lora import LoraLayer

STRONG_ADAPTER = "strong"
_WEIGHTS = "adapter_model.safetensors"


def check_adapters(*, param: str = "lora") -> None:
    """Raise `ExtraError` unless adapters can be trained here; `param` is the field that asked for them."""
    with needs_extra("lora", "lora: training adapters", param=param):
        if find_spec("peft") is None:
            raise ModuleNotFoundError(name="peft")


def add_adapter(model: PreTrainedModel, name: str, knobs: LoraConfig, *, weights: Path | None = None) -> None:
    """Put a low-rank adapter on every linear layer of the blocks; `weights` is a folder that `save_adapter` wrote.

    A new adapter changes nothing: its B is zero. All other weights of the model are held fixed from here on.
    """
    config = _peft_config(knobs, target_modules="all-linear")
    with warnings.catch_warnings():
        # Two adapters on one model are what is meant here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        model.add_adapter(config, adapter_name=name)
    if weights is not None:
        stored = load_file(weights / _WEIGHTS)
        own = adapter_parameters(model, name)
        found = {key.removeprefix("base_model.model."): tensor for key, tensor in stored.items()}
        assert found.keys() == own.keys(), f"{weights} does not fit: {sorted(found.keys() ^ own.keys())[:4]}"
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(found[key])


def adapter_parameters(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """The A and B matrices of one adapter, by their names in an adapter file."""
    return {
        key.replace(f".{name}.", "."): parameter for key, parameter in model.named_parameters() if f".{name}." in key
    }


def switch_on(model: PreTrainedModel, trained: set[str | None]) -> None:
    """Run with the strong adapter, and train the named ones: the last one added is otherwise the only one of both."""
    for layer in _layers(model):
        layer.set_adapter(STRONG_ADAPTER)
        for name in layer.lora_A:
            for matrix in (layer.lora_A, layer.lora_B):
                matrix[name].requires_grad_(name in trained)


def _layers(model: PreTrainedModel) -> "list[LoraLayer]":
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


@contextlib.contextmanager
def using_adapter(model: PreTrainedModel, name: str | None) -> Iterator[None]:
    """Run with another adapter, or with none; afterwards the strong one is back.

    PEFT freezes what it switches off, and autograd skips a frozen leaf even where the graph already holds it: the
    flags are put back before any backward pass.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    layers = _layers(model)
    try:
        for layer in layers:
            if name is None:
                layer.enable_adapters(False)
            else:
                layer.set_adapter(name)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
            layer.set_adapter(STRONG_ADAPTER)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def merged_weights(state: dict[str, Tensor], name: str, knobs: LoraConfig) -> dict[str, Tensor]:
    """Weights of the model without adapters that computes the same: W + (alpha / rank) B A.

    `state` holds all of the model's tensors, on the CPU and whole, however they were sharded.
    """
    merged = {}
    for key, tensor in state.items():
        if ".lora_" in key:
            continue
        layer, found, parameter = key.partition(".base_layer.")
        if not found:
            merged[key] = tensor
            continue
        low_rank = [state.get(f"{layer}.lora_{matrix}.{name}.weight") for matrix in "BA"]
        if parameter == "weight" and low_rank[0] is not None and low_rank[1] is not None:
            tensor = tensor + (knobs.alpha / knobs.rank) * (low_rank[0] @ low_rank[1])
        merged[f"{layer}.{parameter}"] = tensor
    return merged


def save_adapter(state: dict[str, Tensor], folder: Path, name: str, knobs: LoraConfig, *, base: Path) -> None:
    """Write one adapter in PEFT's format: `PeftModel.from_pretrained(base_model, folder)` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{key.replace(f'.{name}.', '.')}": tensor.contiguous()
        for key, tensor in state.items()
        if f".{name}." in key
    }
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    share_weights(folder)
    layers = {key.split(".lora_")[0].rsplit(".", 1)[1] for key in tensors}
    config = _peft_config(knobs, target_modules=[])
    # Assigned, not passed: PEFT would make a set of it, whose order in the file differs from process to process.
    config.target_modules = sorted(layers)
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _peft_config(knobs: LoraConfig, *, target_modules: str | list[str]) -> "PeftLoraConfig":
    check_adapters()
    from peft import LoraConfig as PeftLoraConfig

    return PeftLoraConfig(
        r=knobs.rank,
        lora_alpha=knobs.alpha,
        lora_dropout=knobs.dropout,
        target_modules=target_modules,
        task_type="CAUSAL_LM",
    )
