"""A training checkpoint on disk: the strong branch as an ordinary model folder, and the state to resume from.

strong/             config, safetensors, tokenizer: loads anywhere
training_state.pt   weak branch, optimizer, schedule, step (tensors and numbers only)
rng_rank{r}.pt      random-number state of each worker
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedModel

from wmss.models.loading import TOKENIZER_FILES
from wmss.records import STRONG_FOLDER

_STATE = "training_state.pt"
_METRICS = "metrics.json"
_INDEX = "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer_from: Path) -> None:
    """Save a model as safetensors with the tokenizer files of another checkpoint of its family."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    for name in (*TOKENIZER_FILES, _GENERATION):
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Everything but the strong weights: written by rank 0."""
    torch.save(state, folder / _STATE)


def save_metrics(folder: Path, metrics: dict[str, float]) -> None:
    """Metrics of the checkpoint's step, for whoever finds it later."""
    (folder / _METRICS).write_text(json.dumps(metrics), encoding="utf-8")


def load_metrics(folder: Path) -> dict[str, float]:
    """What `save_metrics` wrote."""
    metrics: dict[str, float] = json.loads((folder / _METRICS).read_text(encoding="utf-8"))
    return metrics


def save_rng(folder: Path, rank: int) -> None:
    """This worker's random-number state."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / f"rng_rank{rank}.pt")


def load_training_state(folder: Path) -> dict[str, Any]:
    """What `save_training_state` wrote; only tensors and plain values are unpickled."""
    state: dict[str, Any] = torch.load(folder / _STATE, map_location="cpu", weights_only=True)
    return state


def load_strong_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put the strong branch of a checkpoint into an existing model of the same shape."""
    weights: dict[str, torch.Tensor] = {}
    for file in sorted((folder / STRONG_FOLDER).glob("*.safetensors")):
        weights.update(load_file(file))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    # Tied weights are saved once, under one of their names.
    state = model.state_dict()
    loaded = {state[name].data_ptr() for name in weights if name in state}
    lost = [name for name in missing if state[name].data_ptr() not in loaded]
    assert not unexpected and not lost, f"checkpoint and model differ: {lost} missing, {unexpected} unexpected"


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
    index = checkpoint / _INDEX
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
        values["metadata"]["total_size"] = size
        (target / _INDEX).write_text(json.dumps(values, indent=2), encoding="utf-8")
    for name in ("config.json", *TOKENIZER_FILES):
        if (base / name).is_file():
            shutil.copyfile(base / name, target / name)
    generation = GenerationConfig.from_pretrained(base) if (base / _GENERATION).is_file() else GenerationConfig()
    known = generation.eos_token_id
    known_ids = known if isinstance(known, list) else [] if known is None else [known]
    generation.eos_token_id = sorted({*known_ids, *end_token_ids})
    generation.save_pretrained(target)


def _stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Precision of every tensor in a model folder."""
    dtypes: dict[str, str] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            dtypes |= {name: handle.get_slice(name).get_dtype() for name in handle.keys()}  # noqa: SIM118
    return {name: _DTYPES[dtype] for name, dtype in dtypes.items() if dtype in _DTYPES}


def load_rng(folder: Path, rank: int) -> None:
    """Restore this worker's random-number state; a worker that did not exist then keeps its fresh one."""
    file = folder / f"rng_rank{rank}.pt"
    if not file.is_file():
        return
    state = torch.load(file, map_location="cpu", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
