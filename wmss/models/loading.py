"""From a checkpoint folder to a model, a tokenizer and a digest; and whether two checkpoints may be mixed.

Only safetensors weights are read, and no code that comes with a checkpoint is ever run.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from wmss.errors import ModelError
from wmss.models.packed_attention import PACKED, Runs
from wmss.records import CheckpointDigests

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def check_checkpoint(path: Path, *, param: str) -> None:
    """Raise `ModelError` unless `path` is a complete, safe causal-LM folder (config, safetensors, tokenizer)."""
    if not path.is_dir():
        raise ModelError(f"{param}: expected a folder with a model, found none at {path}", param=param)
    for name in ("config.json", "tokenizer.json"):
        if not (path / name).is_file():
            raise ModelError(f"{param}: {path} has no {name}; save the model and its tokenizer there", param=param)
    if not list(path.glob("*.safetensors")):
        raise ModelError(
            f"{param}: {path} has no *.safetensors; pickled weights are not read, convert them", param=param
        )
    config = _read_json(path / "config.json", param)
    if _mentions_auto_map(config):
        raise ModelError(
            f"{param}: {path}/config.json asks to run its own code (auto_map); that is refused", param=param
        )
    if "quantization_config" in config:
        raise ModelError(f"{param}: {path} is quantised; training needs unquantised weights", param=param)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or [_is_causal(str(name)) for name in architectures] != [True]:
        raise ModelError(f"{param}: expected one *ForCausalLM architecture, got {architectures} ({path})", param=param)
    model_config(path, param=param)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = set(_read_json(index, param).get("weight_map", {}).values())
        lost = sorted(name for name in shards if not (path / str(name)).is_file())
        if lost:
            raise ModelError(f"{param}: {path} lacks {lost}, which its index names; copy it again", param=param)
    for file in path.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{param}: {file} cannot be read: {error}; copy it again", param=param) from error


def _is_causal(architecture: str) -> bool:
    # GPT-2's class is older than the convention.
    return architecture.endswith("ForCausalLM") or architecture == "GPT2LMHeadModel"


def _read_json(file: Path, param: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{param}: {file} is not valid JSON: {error}", param=param) from error
    if not isinstance(value, dict):
        raise ModelError(f"{param}: {file}: expected an object, got {type(value).__name__}", param=param)
    return value


def model_config(path: Path, *, param: str = "model") -> PretrainedConfig:
    """The configuration at `path`; raises `ModelError` if transformers does not know the model or a value is wrong."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
        sizes = [int(config.vocab_size), int(config.max_position_embeddings)]
    except Exception as error:  # transformers raises errors of many kinds while parsing
        raise ModelError(f"{param}: {path}/config.json cannot be used: {error}", param=param) from error
    if min(sizes) < 1:
        raise ModelError(f"{param}: {path}/config.json: expected sizes above 0, got {sizes}", param=param)
    return config


def _mentions_auto_map(value: Any) -> bool:
    if isinstance(value, dict):
        return "auto_map" in value or any(_mentions_auto_map(item) for item in value.values())
    return isinstance(value, list) and any(_mentions_auto_map(item) for item in value)


def load_model(
    path: Path, *, dtype: torch.dtype = torch.float32, param: str = "model", packing: bool = False
) -> PreTrainedModel:
    """The causal LM at `path`, on the CPU; `param` is the field that named it, `packing` makes it take packed rows."""
    model: PreTrainedModel
    model, report = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        attn_implementation=PACKED if packing else attention_unpacked(model_config(path, param=param)),
    )
    # transformers makes up what is missing, differently at every load.
    wrong = {kind: sorted(report[kind]) for kind in ("missing_keys", "mismatched_keys") if report[kind]}
    if wrong:
        raise ModelError(
            f"{param}: the weights in {path} do not fit its config.json: {wrong}; save it again", param=param
        )
    return model


def attention_unpacked(config: PretrainedConfig) -> str:
    """transformers' name of the attention that such a model runs with where nothing is packed.

    Its SDPA attention leaves out what it has no argument for, such as a cap on scores, so not every family has it
    right that says it supports it.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if kind is not None and kind._supports_sdpa and not capped else "eager"


def load_tokenizer(path: Path, *, param: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; `param` is the field that named it."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the tokenizer library raises bare Exception for a file it cannot read
        raise ModelError(
            f"{param}: the tokenizer in {path} cannot be read: {error}; save it again", param=param
        ) from error
    return tokenizer


def context_length(path: Path) -> int:
    """The longest sequence the model at `path` was made for, in tokens."""
    return int(model_config(path).max_position_embeddings)


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """States [B, T, D] that enter the output head, for input_ids and attention_mask [B, T]."""
    output: Tensor = model.base_model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return output


def batch_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, runs: Runs | None) -> Tensor:
    """As `hidden_states`, for samples packed into one row (`runs` set), or each in a right-padded row.

    Padding comes after the tokens, where causal attention never looks, so nothing needs to mask it.
    """
    packed = {} if runs is None else {"packed_runs": runs}
    output: Tensor = model.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed
    ).last_hidden_state
    return output


def output_head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The output head's weight [V, D] and its bias [V] or None."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), f"expected a linear output head, got {type(head).__name__}"
    return head.weight, head.bias


def load_head(path: Path) -> tuple[Tensor, Tensor | None]:
    """The output head of the checkpoint at `path`: weight [V, D] and bias [V] or None."""
    weight, bias = output_head(load_model(path))
    return weight.detach().clone(), None if bias is None else bias.detach().clone()


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether the model's logits are its head times its hidden states.

    Some families scale, cap or shift their logits afterwards (Gemma 2, Granite, Cohere, Falcon-H1); no list of config
    fields would ever be complete, so the model itself is asked.
    """
    input_ids = torch.arange(4, device=model.device)[None] % int(model.config.vocab_size)
    logits = model(input_ids=input_ids, use_cache=False).logits
    head = model.get_output_embeddings()
    # Soft-capping hardly changes small logits, so the one family that has it is known by its field.
    same = isinstance(head, nn.Linear) and getattr(model.config, "final_logit_softcapping", None) is None
    if same:
        expected = head(hidden_states(model, input_ids, torch.ones_like(input_ids)))
        # A model whose weights are not finite is the training loop's to report, at its first step.
        error = (logits - expected).norm() / expected.norm()
        same = logits.shape == expected.shape and not float(error) > 1e-4
    return same


def check_output_head(model: PreTrainedModel, *, param: str) -> None:
    """Raise `ModelError` unless the model has a plain head, as the losses assume: training on unscaled logits would
    silently be another objective."""
    if not has_plain_head(model):
        raise ModelError(
            f"{param}: {type(model).__name__} changes its logits after the output head (scaling or soft-capping), "
            "which is not supported yet; choose another model",
            param=param,
        )


PACKING_TOLERANCE = 1e-4
"""Largest relative difference of packed states from those of the family's own attention, in float32."""
_SHORT_WINDOW = 4


@torch.no_grad()
def check_packing(model: PreTrainedModel, *, param: str) -> None:
    """Raise `ModelError` unless samples packed into one row give the states that each has alone under the family's own
    (eager) attention.

    A model that keeps a state along the row (recurrent, convolutional), or whose attention is more than packed rows
    have (sinks, a cap on scores, a window that only its mask knows), would train on other states without a word. Its
    windows are made short for the time of the check, so that a few tokens are longer than they.
    """
    lengths = [3, 2 * _SHORT_WINDOW + 1]
    input_ids = torch.arange(sum(lengths), device=model.device)[None] % int(model.config.vocab_size)
    position_ids = torch.cat([torch.arange(length, device=model.device) for length in lengths])[None]
    parts = torch.split(input_ids, lengths, dim=1)
    training = model.training
    try:
        with _short_windows(model):
            model.eval()
            packed = batch_states(model, input_ids, position_ids, Runs(lengths))[0]
            model.set_attn_implementation("eager")
            alone = torch.cat([hidden_states(model, part, torch.ones_like(part))[0] for part in parts])
    finally:
        model.train(training)
        model.set_attn_implementation(PACKED)
    if float((packed - alone).norm() / alone.norm()) > PACKING_TOLERANCE:
        raise ModelError(
            f"{param}: {type(model).__name__} does not keep packed samples apart, or attends otherwise than packed "
            "rows do; set hyperparameters.packing to false",
            param=param,
        )


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Every window of attention no longer than a few tokens, in the configuration and in the layers that copied it."""
    holders: list[Any] = [
        *model.modules(),
        *{id(m.config): m.config for m in model.modules() if _has_config(m)}.values(),
    ]
    found = [
        (holder, name, value)
        for holder in holders
        for name, value in vars(holder).items()
        if name in _WINDOWS and type(value) is int and value > _SHORT_WINDOW
    ]
    try:
        for holder, name, _ in found:
            setattr(holder, name, _SHORT_WINDOW)
        yield
    finally:
        for holder, name, value in found:
            setattr(holder, name, value)


def _has_config(module: nn.Module) -> bool:
    return isinstance(getattr(module, "config", None), PretrainedConfig)


_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "attention_chunk_size")


def weight_files(path: Path) -> list[Path]:
    """What decides a checkpoint's arithmetic: its configuration and its weights."""
    return [path / "config.json", *sorted(path.glob("*.safetensors"))]


def tokenizer_files(path: Path) -> list[Path]:
    """What decides which tokens a text becomes; not every tokenizer has all of them."""
    return [path / name for name in TOKENIZER_FILES if (path / name).is_file()]


def checkpoint_digest(path: Path) -> str:
    """SHA-256 over weights, architecture and tokenizer: equal digests score and generate alike."""
    return _digest([*weight_files(path), *tokenizer_files(path)])


def checkpoint_digests(path: Path) -> CheckpointDigests:
    """The same in two parts, to tell a new tokenizer from new weights."""
    return CheckpointDigests(weights=_digest(weight_files(path)), tokenizer=_digest(tokenizer_files(path)))


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            continue
        digest.update(file.name.encode())
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def check_digests(path: Path, expected: CheckpointDigests, *, param: str) -> None:
    """Raise `ModelError` unless the checkpoint is still the one whose digests were taken. Reads every byte of it."""
    found = checkpoint_digests(path)
    changed = [name for name in ("weights", "tokenizer") if getattr(found, name) != getattr(expected, name)]
    if changed:
        raise ModelError(
            f"{param}: {' and '.join(changed)} in {path} changed since the checkpoint was registered; register it "
            "again and name the new id",
            param=param,
        )


def num_parameters(path: Path) -> int:
    """Parameters of the checkpoint at `path` as stored, tied weights once. Reads the headers of its weights only."""
    count = 0
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            count += sum(prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118
    return count


def check_pair(strong: Path, weak: Path, *, param: str) -> None:
    """Raise `ModelError` unless both checkpoints give every token the same id and have heads of the same size."""
    sizes = [int(model_config(path, param=param).vocab_size) for path in (strong, weak)]
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"{param}: strong and weak vocabulary sizes differ: {sizes[0]} vs {sizes[1]} ({strong} vs {weak}); "
            "choose checkpoints of one model family",
            param=param,
        )
    difference = _first_difference(*(load_tokenizer(path, param=param).get_vocab() for path in (strong, weak)))
    if difference is not None:
        raise ModelError(
            f"{param}: the tokenizers of {strong} and {weak} differ, {difference}; logits can only be mixed over one "
            "vocabulary, choose checkpoints with the same tokenizer",
            param=param,
        )


def check_same_tokenizer(folders: Mapping[str, Path]) -> None:
    """Raise `ModelError` unless all checkpoints {field: folder} give every token the same id.

    Their heads may be of different sizes, as padding makes them. The error names the first field and the one that
    differs from it, `param` is the latter.
    """
    vocabularies = {param: load_tokenizer(folder, param=param).get_vocab() for param, folder in folders.items()}
    (first, expected), *others = vocabularies.items()
    for param, vocabulary in others:
        difference = _first_difference(expected, vocabulary)
        if difference is not None:
            raise ModelError(
                f"{param}: its tokenizer ({folders[param]}) differs from that of {first} ({folders[first]}), "
                f"{difference}; entropies over different tokens cannot be compared, choose checkpoints with the same "
                "tokenizer",
                param=param,
            )


def _first_difference(one: dict[str, int], other: dict[str, int]) -> str | None:
    """The first token, in alphabetical order, to which two vocabularies give different ids."""
    if one == other:
        return None
    token = next(token for token in sorted({**one, **other}) if one.get(token) != other.get(token))
    return f"first at token {token!r} (ids {one.get(token)} and {other.get(token)})"
