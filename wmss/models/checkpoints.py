"""Model folders on disk: written whole and complete, and exported in their base's form."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from wmss.errors import ModelError, shown
from wmss.models.file_modes import share_weights
from wmss.models.loading import TOKENIZER_FILES, load_tokenizer, model_config

_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_model(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path, *, tokenizer_from: Path) -> None:
    """Write `weights`, whole, as a folder of the model's kind, with another checkpoint's tokenizer.

    `model` gives the configuration only: what it holds may be sharded, or have adapters on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(stored_form(model, weights), str(folder))
    share_weights(folder)
    model.config.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, _GENERATION):
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def stored_form(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model's folder: `weights` by the names and in the shapes that the model was loaded from.

    In memory transformers fuses what lies apart on disk, such as the experts of a layer; engines read the form on disk.
    """
    # Tied weights are saved once, under the name they are loaded from.
    tied = model.all_tied_weights_keys if getattr(model.config, "tie_word_embeddings", False) else {}
    kept = {name: tensor for name, tensor in weights.items() if name not in tied}
    # Parts of a fused tensor are views of it, which safetensors would take for one tensor under several names.
    return {name: tensor.clone() if tensor._is_view() else tensor for name, tensor in _reverted(model, kept).items()}


def _reverted(model: PreTrainedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    stored: dict[str, Tensor] = revert_weight_conversion(model, weights)
    return stored


def export_model(checkpoint: Path, target: Path, *, base: Path, end_token_ids: list[int]) -> None:
    """Write a trained checkpoint as a model like its base: the base's own config and precision, safetensors only.

    Training keeps float32 weights; a base stored in bfloat16 gets them rounded to bfloat16, and its size back. The
    tokens that end an answer join the base's in `generation_config.json`, or engines would generate past them (a
    base model's end-of-text token is not its chat template's end-of-turn token).
    """
    target.mkdir(parents=True)
    size = 0
    for name, tensors in published_tensors(checkpoint, base):
        size += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, target / name, metadata={"format": "pt"})
    share_weights(target)
    index = checkpoint / _INDEX
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
        values["metadata"]["total_size"] = size
        (target / _INDEX).write_text(json.dumps(values, indent=2), encoding="utf-8")
    for name in ("config.json", *TOKENIZER_FILES):
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    # Edited as JSON: transformers refuses to save settings that contradict each other, and many models come with such.
    generation = generation_settings(base)
    generation["eos_token_id"] = sorted(_ids(generation.get("eos_token_id")) | {*end_token_ids})
    (target / _GENERATION).write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def published_tensors(checkpoint: Path, base: Path) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Files of a trained checkpoint by name, with their tensors in the precision of the base's."""
    dtypes = stored_dtypes(base)
    common = set(dtypes.values())
    for file in sorted(checkpoint.glob("*.safetensors")):
        # A base saved under other tensor names still has one precision, as a rule.
        yield (
            file.name,
            {
                name: tensor.to(dtypes.get(name, next(iter(common)) if len(common) == 1 else tensor.dtype))
                for name, tensor in load_file(file).items()
            },
        )


def generation_settings(folder: Path, *, param: str = "model") -> dict[str, Any]:
    """What `generation_config.json` of a model folder holds; empty without one.

    Raises:
        ModelError: it is no JSON object, or its end tokens are no ids.
    """
    file = folder / _GENERATION
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{param}: {file} is not valid JSON: {error}; mend or remove it", param=param) from error
    if not isinstance(settings, dict):
        kind = type(settings).__name__
        raise ModelError(f"{param}: {file}: expected an object, got {kind}; mend or remove it", param=param)
    ends = settings.get("eos_token_id")
    if not all(type(each) is int for each in (ends if isinstance(ends, list) else [0 if ends is None else ends])):
        message = f"{param}: {file}: eos_token_id: expected an id or a list of them, got {shown(ends)}; mend it"
        raise ModelError(message, param=param)
    return settings


def own_end_ids(folder: Path) -> set[int]:
    """Ids at which vLLM ends an answer of this model unless told otherwise: the end token of its tokenizer, and those
    of generation_config.json, or else of config.json."""
    if (folder / _GENERATION).is_file():
        ends = generation_settings(folder).get("eos_token_id")
    else:
        ends = GenerationConfig.from_model_config(model_config(folder)).eos_token_id
    return _ids(ends) | _ids(load_tokenizer(folder).eos_token_id)


def _ids(ends: int | list[int] | None) -> set[int]:
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Precision of every tensor in a model folder."""
    dtypes: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            dtypes |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return {name: _DTYPES[dtype] for name, dtype in dtypes.items() if dtype in _DTYPES}
