"""Can the model in a folder be trained and run here? All that can be told without its weights, in one look.

A folder may come from strangers: ask through `wmss.models.limited`, which does this in a process with limits
on memory and time, unless the folder is the caller's own.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from wmss.config import LoraConfig
from wmss.errors import ModelError
from wmss.models.adapters import STRONG_ADAPTER, add_adapter
from wmss.models.heads import check_output_head
from wmss.models.loading import (
    INDEX,
    attention_unpacked,
    context_of,
    load_reporting,
    load_tokenizer,
    loader_errors,
    misfit_message,
    model_config,
)

SINGLE_FILE = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_NO_THREADS = "HF_DEACTIVATE_ASYNC_LOAD"
_SAFETENSORS = ".safetensors"
_QUESTION, _ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
_CHATS = ([_QUESTION, _ANSWER], [{"role": "system", "content": "Be brief."}, _QUESTION, _ANSWER])
"""A template that takes neither can render no chat of ours; some insist on a system turn."""

Shapes = dict[str, tuple[int, ...]]
"""Stored tensors by name."""


@dataclass(frozen=True)
class ModelFolder:
    """What is known of a folder whose model can be trained and run."""

    architecture: str
    num_parameters: int
    """As stored: tied weights once, unless the file has them twice."""
    vocab_size: int
    """Rows of the output head, with padding."""
    num_tokens: int
    """Of the tokenizer."""
    context_length: int
    """The longest sequence the model was made for, in tokens."""


@dataclass(frozen=True)
class StoredModel:
    """A folder's configuration as written, and the shapes in the headers of its weights."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Shapes, ...]
    """What transformers reads. Where a single file lies beside shards, engines read the latter: both, then."""


def examine_folder(path: Path, *, param: str, lora: LoraConfig | None = None) -> ModelFolder:
    """What the model in `path` is; with `lora`, also whether such an adapter can be put on it.

    Raises:
        ModelError: a job would fail on this folder; the message has the file, the cause and a remedy.
        ExtraError: `lora` needs a package that is not installed.
    """
    return examine_stored(read_stored(path, param=param), param=param, lora=lora)


def read_stored(path: Path, *, param: str) -> StoredModel:
    """The files of a folder; of its weights only the headers, though they are mapped into memory whole."""
    if not path.is_dir():
        raise ModelError(f"{param}: expected a folder with a model, found none at {path}", param=param)
    with loader_errors(f"{path} cannot be read", param=param, remedy="copy it again"):
        _check_kinds(path, param)
        _check_no_adapter(path, param)
        for name in ("config.json", "tokenizer.json"):
            if not (path / name).is_file():
                raise ModelError(f"{param}: {path} has no {name}; save the model and its tokenizer there", param=param)
        headers = _headers(path, param)
        return StoredModel(path, _read_json(path / "config.json", param), _weights(path, headers, param))


def examine_stored(stored: StoredModel, *, param: str, lora: LoraConfig | None = None) -> ModelFolder:
    """As `examine_folder`, once the files are read."""
    path = stored.path
    with loader_errors(f"{path} cannot be used", param=param):
        architecture = _check_config(stored, param)
        _check_generation_config(path, param)
        tokenizer = load_tokenizer(path, param=param)
        _check_template(tokenizer, path, param)
        for shapes in stored.weights:
            model = _without_weights(path, shapes, param)
        check_output_head(model, param=param)
        if lora is not None:
            with (
                loader_errors(f"no LoRA adapter fits the model in {path}", param=param, remedy="leave lora out"),
                torch.device("meta"),
            ):
                add_adapter(AutoModelForCausalLM.from_config(model.config), STRONG_ADAPTER, lora)
        return ModelFolder(
            architecture=architecture,
            num_parameters=sum(map(prod, stored.weights[0].values())),
            vocab_size=int(model.config.vocab_size),
            num_tokens=len(tokenizer),
            context_length=context_of(model.config),
        )


def _check_kinds(path: Path, param: str) -> None:
    """Nothing but files and folders, links followed: a pipe or a device would be opened and never end."""
    for entry in sorted(path.iterdir()):
        if not entry.exists():  # a link that leads nowhere; it matters where the file is needed
            continue
        mode = entry.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise ModelError(
                f"{param}: {entry} is neither a file nor a folder (a pipe, a socket or a device); remove it",
                param=param,
            )


def _check_no_adapter(path: Path, param: str) -> None:
    if not any((path / name).is_file() for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)):
        return
    if any((path / name).is_file() for name in (SINGLE_FILE, INDEX)):
        raise ModelError(
            f"{param}: {path} has an adapter beside the model's own weights, and transformers would put it on the "
            f"model; merge it, or remove {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
            param=param,
        )
    raise ModelError(
        f"{param}: {path} is a LoRA adapter, not a model; merge it into its base first (PEFT: merge_and_unload, then "
        "save_pretrained) and save the tokenizer beside it",
        param=param,
    )


def _headers(path: Path, param: str) -> dict[str, Shapes]:
    """{file: shapes of its tensors}."""
    files = sorted(path.glob(f"*{_SAFETENSORS}"))
    if not files:
        raise ModelError(
            f"{param}: {path} has no *{_SAFETENSORS}; pickled weights are not read, convert them", param=param
        )
    headers = {}
    for file in files:
        if not file.is_file():
            raise ModelError(f"{param}: {file} is no file, or a link that leads nowhere; copy it again", param=param)
        try:
            with safe_open(file, framework="np") as handle:  # torch's map of a file counts as memory
                names = handle.keys()
                headers[file.name] = {name: tuple(handle.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{param}: {file} cannot be read: {error}; copy it again", param=param) from error
    return headers


def _weights(path: Path, headers: Mapping[str, Shapes], param: str) -> tuple[Shapes, ...]:
    found = [headers[SINGLE_FILE]] if SINGLE_FILE in headers else []
    if (path / INDEX).is_file():
        found.append(_sharded(path, headers, param))
    if not found:
        raise ModelError(
            f"{param}: {path} has {_listed(headers)}, but neither {SINGLE_FILE} nor {INDEX}, which says what lies "
            "where; copy the index too, or save the model again",
            param=param,
        )
    if not all(found):
        raise ModelError(f"{param}: the weights in {path} hold no tensors; save the model again", param=param)
    return tuple(found)


def _sharded(path: Path, headers: Mapping[str, Shapes], param: str) -> Shapes:
    """The tensors of the files that the index names, each where the index says."""
    file = path / INDEX
    places = _read_json(file, param).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise ModelError(
            f"{param}: {file}: weight_map: expected an object of names of files, got another value; save the model "
            "again",
            param=param,
        )
    shards = sorted(set(places.values()))
    strange = [name for name in shards if "/" in name or "\\" in name or not name.endswith(_SAFETENSORS)]
    if strange:
        raise ModelError(
            f"{param}: {file}: expected names of *{_SAFETENSORS} in the same folder, got {_listed(strange)}; other "
            "weights are not read, save the model again",
            param=param,
        )
    lost = [name for name in shards if name not in headers]
    if lost:
        raise ModelError(f"{param}: {path} lacks {_listed(lost)}, which its index names; copy it again", param=param)
    absent = sorted(tensor for tensor, name in places.items() if tensor not in headers[name])
    if absent:
        raise ModelError(
            f"{param}: {file} names tensors that its files lack: {_listed(absent)}; save the model again", param=param
        )
    return {tensor: shape for name in shards for tensor, shape in headers[name].items()}


def _check_config(stored: StoredModel, param: str) -> str:
    """The architecture; refuses what only config.json tells, before transformers builds anything from it."""
    path, config = stored.path, stored.config
    if _mentions_auto_map(config):
        raise ModelError(
            f"{param}: {path}/config.json asks to run its own code (auto_map); that is refused", param=param
        )
    if "quantization_config" in config:
        raise ModelError(f"{param}: {path} is quantised; training needs unquantised weights", param=param)
    if "transformers_weights" in config:
        raise ModelError(
            f"{param}: {path}/config.json names its weights itself (transformers_weights); remove the field, they are "
            f"read from {SINGLE_FILE} or by {INDEX}",
            param=param,
        )
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or [_is_causal(str(name)) for name in architectures] != [True]:
        raise ModelError(f"{param}: expected one *ForCausalLM architecture, got {architectures} ({path})", param=param)
    for name in _LAYERS:
        layers, tensors = config.get(name), len(stored.weights[0])
        if isinstance(layers, int) and layers > tensors:
            raise ModelError(
                f"{param}: {path}/config.json: {name}: expected no more layers than the weights have tensors, "
                f"{tensors}, got {layers}; correct it, or copy the weights again",
                param=param,
            )
    return str(architectures[0])


def _is_causal(architecture: str) -> bool:
    # GPT-2's class is older than the convention.
    return architecture.endswith("ForCausalLM") or architecture == "GPT2LMHeadModel"


def _mentions_auto_map(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(_mentions_auto_map(item) for item in value.values())
    return isinstance(value, list) and any(_mentions_auto_map(item) for item in value)


def _check_generation_config(path: Path, param: str) -> None:
    """What transformers refuses at load. What only its saving refuses does not matter: the file is never saved so."""
    file = path / GENERATION_CONFIG
    if not file.exists():
        return
    _read_json(file, param)
    with loader_errors(f"{file} cannot be used", param=param, remedy="correct the field, or remove the file"):
        GenerationConfig.from_pretrained(path)


def _check_template(tokenizer: PreTrainedTokenizerBase, path: Path, param: str) -> None:
    """Without a template a model still takes rows that are prompts and completions."""
    if tokenizer.chat_template is None:
        return
    remedy = "correct the template, or remove it and use prompt/completion rows"
    with loader_errors(f"the chat template in {path} renders no short chat", param=param, remedy=remedy):
        first, second = _CHATS
        try:
            tokenizer.apply_chat_template(first, tokenize=False)
        except TemplateError:
            tokenizer.apply_chat_template(second, tokenize=False)


def _without_weights(path: Path, shapes: Shapes, param: str) -> PreTrainedModel:
    """The model as transformers loads it, from tensors that have shapes but no memory.

    The loader itself renames, merges and ties; a comparison of names of our own would refuse what it takes, such as
    experts that are stored one by one.
    """
    # Families make a few constants of their own, which are no such tensors.
    with FakeTensorMode(allow_non_fake_inputs=True), _one_thread():
        needed = _without_copies(path, shapes, param)
        state_dict: dict[str, Tensor] = {name: torch.empty(shape) for name, shape in needed.items()}
        model, misfits = load_reporting(path, param=param, state_dict=state_dict)
    if any(misfits.values()):
        raise ModelError(misfit_message(path, misfits, param=param), param=param)
    return model


def _without_copies(path: Path, shapes: Shapes, param: str) -> Shapes:
    """Without tensors that are stored although they are tied to another: the loader would compare their numbers."""
    config = model_config(path, param=param)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention_unpacked(config))
    tied = model.all_tied_weights_keys
    return {name: shape for name, shape in shapes.items() if name not in tied or shapes.get(tied[name]) != shape}


@contextmanager
def _one_thread() -> Iterator[None]:
    """transformers loads in one thread: tensors without memory are not made for several."""
    before = os.environ.get(_NO_THREADS)
    os.environ[_NO_THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_THREADS]
        else:
            os.environ[_NO_THREADS] = before


def _read_json(file: Path, param: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{param}: {file} is not valid JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise ModelError(f"{param}: {file}: expected an object, got {type(value).__name__}", param=param)
    return value


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    """The first few."""
    shown = [repr(name) for name in list(names)[:4]]
    return ", ".join(shown) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
