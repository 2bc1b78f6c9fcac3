"""LoRA adapters on a causal LM: put on, switched, saved, and merged into ordinary weights.

PEFT does the layers and the merge: it alone knows where it wraps experts whose weights lie fused in one tensor.
"""

import contextlib
import copy
import warnings
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import Linear
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from wmss.config import LoraConfig
from wmss.errors import ConfigError, shortened
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
    with _without_false_warnings():
        model.add_adapter(_peft_config(knobs, model), adapter_name=name)
    if weights is not None:
        stored = load_file(weights / _WEIGHTS)
        own = adapter_parameters(model, name)
        found = {key.removeprefix("base_model.model."): tensor for key, tensor in stored.items()}
        assert found.keys() == own.keys(), f"{weights} does not fit: {sorted(found.keys() ^ own.keys())[:4]}"
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(found[key])


@contextlib.contextmanager
def _without_false_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # Two adapters on one model are what is meant here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        # PEFT's own rank for fused experts, which it looks for among layers only.
        warnings.filterwarnings("ignore", message="The following (rank|alpha)_pattern keys did not match")
        yield


def adapter_parameters(model: PreTrainedModel, name: str) -> dict[str, Tensor]:
    """The A and B matrices of one adapter, by their names in an adapter file."""
    parameters = dict(model.named_parameters())
    return {key.replace(f".{name}.", "."): parameters[key] for key in adapter_keys(parameters, name)}


def adapter_keys(state: Iterable[str], name: str) -> list[str]:
    """Those names of tensors that belong to one adapter."""
    return [key for key in state if ".lora_" in key and f".{name}." in key]


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


def check_mergeable(config: PretrainedConfig, knobs: LoraConfig, *, param: str = "lora") -> None:
    """Raise `ConfigError` unless a model of this configuration takes adapters, and can be merged with them again.

    Tried on a model without memory (torch's meta device), so it costs as little for a large model as for a small one.
    """
    try:
        _AdaptedTwin(_without_memory(config), STRONG_ADAPTER, knobs)
    except Exception as error:  # PEFT refuses in errors of many kinds
        raise ConfigError(
            f"{param}: adapters cannot be put on a {config.model_type} model: {shortened(str(error))}; train all "
            "weights (lora null)" + (", or set lora.dropout to 0" if knobs.dropout else ""),
            param=param,
        ) from error


def merged_model(model: PreTrainedModel, state: dict[str, Tensor], name: str, knobs: LoraConfig) -> PreTrainedModel:
    """The model without adapters that computes the same as `model` with the adapter `name`, merged by PEFT.

    `state` holds all of the model's tensors, whole, however they were sharded. It is left as it is: of the merged model
    only the weights under an adapter are new, all others are those of `state`.
    """
    others = {key for other in model.peft_config if other != name for key in adapter_keys(state, other)}
    # First weights of the adapters are drawn, and a run that saves must go on as one that does not.
    with torch.random.fork_rng(devices=[]):
        twin = _AdaptedTwin(_without_memory(model.config, type(model)), name, knobs)
    # Gathered from shards, tied weights are two equal tensors; assigned as such they would be tied no longer.
    ties = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    twin.model.load_state_dict({key: state[ties.get(key, key)] for key in state.keys() - others}, assign=True)
    merged: PreTrainedModel = twin.adapted.merge_and_unload(safe_merge=True)
    # How the model's tensors are called on disk: see `save_model`.
    merged._weight_conversions = getattr(model, "_weight_conversions", None)
    return merged


class _AdaptedTwin:
    """A model and PEFT's wrapper around it."""

    def __init__(self, model: PreTrainedModel, name: str, knobs: LoraConfig) -> None:
        from peft import get_peft_model

        self.model = model
        with torch.device("meta"), _without_false_warnings():
            self.adapted = get_peft_model(model, _peft_config(knobs, model), adapter_name=name)


def _without_memory(config: PretrainedConfig, kind: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    config = copy.deepcopy(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config) if kind is None else kind(config)


def save_adapter(model: PreTrainedModel, state: dict[str, Tensor], folder: Path, name: str, *, base: Path) -> None:
    """Write one adapter in PEFT's format: `PeftModel.from_pretrained(base_model, folder)` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"base_model.model.{key.replace(f'.{name}.', '.')}": state[key].contiguous()
        for key in adapter_keys(state, name)
    }
    save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
    share_weights(folder)
    config = copy.deepcopy(model.peft_config[name])
    # Assigned, not passed: PEFT would make sets of them, whose order in the file differs from process to process.
    config.target_modules = sorted(config.target_modules)
    config.target_parameters = sorted(config.target_parameters) if config.target_parameters else None
    config.base_model_name_or_path = str(base)
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _peft_config(knobs: LoraConfig, model: PreTrainedModel) -> "PeftLoraConfig":
    check_adapters()
    from peft import LoraConfig as PeftLoraConfig

    config = PeftLoraConfig(
        r=knobs.rank,
        lora_alpha=knobs.alpha,
        lora_dropout=knobs.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    config.exclude_modules = _refused_modules(config, model)
    return config


def _refused_modules(config: "PeftLoraConfig", model: PreTrainedModel) -> list[str] | None:
    """Names of linear layers that PEFT refuses to adapt in such a model although it counts them among "all-linear":
    those whose weights a state-space block reads past the layer."""
    from peft.tuners import tuners_utils

    check = getattr(tuners_utils, "_check_lora_target_modules_mamba", None)
    refused = []
    for name in sorted({name.rsplit(".", 1)[-1] for name, each in model.named_modules() if isinstance(each, Linear)}):
        try:
            if check is not None:
                check(config, model, name)
        except ValueError:
            refused.append(name)
    return refused or None
