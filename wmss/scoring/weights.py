"""Weights that an engine is given: which they are, whether they fit, and the tensors of those that lie in no folder."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from wmss.errors import ModelError
from wmss.models.files import file_stamps
from wmss.models.loading import INDEX, MAX_NAMES, load_model, model_config, weight_files
from wmss.scoring.interfaces import Line, Weights

_MAY_DIFFER = {
    "_name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
}
"""Fields of config.json that say nothing of a model's arithmetic or shape. Engines take and give token ids."""


def config_folder(weights: Weights) -> Path:
    """The folder whose configuration the weights have."""
    return weights.strong if isinstance(weights, Line) else weights


def weights_id(weights: Weights) -> str:
    """Another one whenever an engine has to load: other folders, another step, or files that were written to since."""
    folders = [weights.weak, weights.strong] if isinstance(weights, Line) else [weights]
    stamps = [[str(folder), sorted(file_stamps(weight_files(folder)).items())] for folder in folders]
    text = json.dumps([stamps, weights.step if isinstance(weights, Line) else None])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def architecture(folder: Path) -> dict[str, Any]:
    """What of config.json decides a model's arithmetic and shape."""
    return {name: value for name, value in model_config(folder).to_dict().items() if name not in _MAY_DIFFER}


def architecture_digest(folder: Path) -> str:
    """Models of one digest can take each other's place in an engine."""
    text = json.dumps(architecture(folder), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_same_architecture(made_for: Path, weights: Weights) -> None:
    """Raise `ModelError` unless an engine that was made for one folder can take these weights."""
    ours = architecture(made_for)
    for folder in (weights.strong, weights.weak) if isinstance(weights, Line) else (weights,):
        theirs = architecture(folder)
        differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        if differing:
            told = ", ".join(f"{name} {ours.get(name)!r} and {theirs.get(name)!r}" for name in differing[:3])
            raise ModelError(
                f"weights: {folder} is a model of another shape than {made_for}, for which this engine was "
                f"made ({told}); start another engine for it",
                param="weights",
            )


def model_with(weights: Weights, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The causal LM with these weights, on the CPU."""
    if not isinstance(weights, Line):
        return load_model(weights, dtype=dtype)
    return load_model(weights.strong, dtype=dtype, state_dict=dict(line_tensors(weights)))


def line_tensors(line: Line) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a point on the line, by name, in float32; no more than one of them is in memory at a time.

    Raises `ModelError` where the two checkpoints hold different tensors.
    """
    with ExitStack() as files:
        weak, strong = (_Tensors(folder, files) for folder in (line.weak, line.strong))
        if weak.names != strong.names:
            told = ", ".join(sorted(weak.names ^ strong.names)[:MAX_NAMES])
            raise ModelError(
                f"weights: {line.weak} and {line.strong} hold different tensors (only one has {told}); save both again "
                "with the same release of transformers",
                param="weights",
            )
        for name in sorted(strong.names):
            ours, theirs = strong.read(name), weak.read(name)
            if ours.shape != theirs.shape:
                raise ModelError(
                    f"weights: {name} is {list(theirs.shape)} in {line.weak} and {list(ours.shape)} in {line.strong}; "
                    "choose two checkpoints of one model",
                    param="weights",
                )
            yield name, ours.mul_(1 + line.step).sub_(theirs.mul_(line.step))


class _Tensors:
    """The tensors of a checkpoint folder, by name."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        index = folder / INDEX
        named: dict[str, str] | None = None
        if index.is_file():
            named = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({*named.values()}) if named else sorted(file.name for file in folder.glob("*.safetensors"))
        self._files: dict[str, Any] = {}
        for shard in shards:
            file = stack.enter_context(safe_open(folder / shard, framework="pt"))
            self._files |= {name: file for name in file.keys() if named is None or named.get(name) == shard}  # noqa: SIM118
        self.names = frozenset(self._files)

    def read(self, name: str) -> Tensor:
        """A copy in float32."""
        tensor: Tensor = self._files[name].get_tensor(name).to(torch.float32, copy=True)
        return tensor
