"""Model folders on disk: written whole and complete, and exported in their base's form."""

import json
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from wmss.models.file_modes import share_weights
from wmss.models.loading import TOKENIZER_FILES, load_tokenizer, model_config

_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_model(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path, *, tokenizer_from: Path) -> None:
    """Write `weights`, whole and on the CPU, as a folder of the model's kind, with another checkpoint's tokenizer.

    `model` gives the configuration only: what it holds may be sharded, or have adapters on it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Tied weights are saved once, under the name they are loaded from.
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    save_torch_state_dict({name: tensor for name, tensor in weights.items() if name not in tied}, str(folder))
    share_weights(folder)
    model.config.save_pretrained(folder)
    for name in (*TOKENIZER_FILES, _GENERATION):
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def export_model(checkpoint: Path, target: Path, *, base: Path, end_token_ids: list[int]) -> None:
    """Write a trained checkpoint as a model like its base: the base's own config and precision, safetensors only.

    Training keeps float32 weights; a base stored in bfloat16 gets them rounded to bfloat16, and its size back. The
    tokens that end an answer join the base's in `generation_config.json`, or engines would generate past them (a
    base model's end-of-text token is not its chat template's end-of-turn token).
    """
    target.mkdir(parents=True)
    dtypes = _stored_dtypes(base)
    common = set(dtypes.values())
    size = 0
    for file in sorted(checkpoint.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            # A base saved under other tensor names still has one precision, as a rule.
            stored = dtypes.get(name, next(iter(common)) if len(common) == 1 else tensor.dtype)
            tensors[name] = tensor.to(stored)
            size += tensors[name].nbytes
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    share_weights(target)
    index = checkpoint / _INDEX
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
        values["metadata"]["total_size"] = size
        (target / _INDEX).write_text(json.dumps(values, indent=2), encoding="utf-8")
    for name in ("config.json", *TOKENIZER_FILES):
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    generation = GenerationConfig.from_pretrained(base) if (base / _GENERATION).is_file() else GenerationConfig()
    generation.eos_token_id = sorted(_ids(generation.eos_token_id) | {*end_token_ids})
    generation.save_pretrained(target)


def own_end_ids(folder: Path) -> set[int]:
    """Ids at which vLLM ends an answer of this model unless told otherwise: the end token of its tokenizer, and those
    of generation_config.json, or else of config.json."""
    if (folder / _GENERATION).is_file():
        generation = GenerationConfig.from_pretrained(folder)
    else:
        generation = GenerationConfig.from_model_config(model_config(folder))
    return _ids(generation.eos_token_id) | _ids(load_tokenizer(folder).eos_token_id)


def _ids(ends: int | list[int] | None) -> set[int]:
    return set(ends) if isinstance(ends, list) else set() if ends is None else {ends}


def _stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Precision of every tensor in a model folder."""
    dtypes: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            dtypes |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return {name: _DTYPES[dtype] for name, dtype in dtypes.items() if dtype in _DTYPES}
