"""A training checkpoint on disk: the strong branch as an ordinary model folder, and the state to resume from.

strong/             config, safetensors, tokenizer: loads anywhere
training_state.pt   weak branch, optimizer, schedule, step (tensors and numbers only)
rng_rank{r}.pt      random-number state of each worker
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from wmss.models.loading import TOKENIZER_FILES

STRONG = "strong"
_STATE = "training_state.pt"


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer_from: Path) -> None:
    """Save a model as safetensors with the tokenizer files of another checkpoint of its family."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    for name in (*TOKENIZER_FILES, "generation_config.json"):
        if (tokenizer_from / name).is_file():
            shutil.copyfile(tokenizer_from / name, folder / name)


def save_training_state(folder: Path, state: dict[str, Any]) -> None:
    """Everything but the strong weights: written by rank 0."""
    torch.save(state, folder / _STATE)


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
    for file in sorted((folder / STRONG).glob("*.safetensors")):
        weights.update(load_file(file))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    model.tie_weights()
    tied = {name for name in missing if name not in weights and model.config.tie_word_embeddings}
    assert not unexpected and set(missing) <= tied, f"checkpoint and model differ: {missing}, {unexpected}"


def load_rng(folder: Path, rank: int) -> None:
    """Restore this worker's random-number state; a worker that did not exist then keeps its fresh one."""
    file = folder / f"rng_rank{rank}.pt"
    if not file.is_file():
        return
    state = torch.load(file, map_location="cpu", weights_only=True)
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
