"""From a checkpoint folder to a model, a tokenizer and a digest; and whether two checkpoints may be mixed.

Only safetensors weights are read, and no code that comes with a checkpoint is ever run.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
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

from wmss.errors import ModelError, WmssError
from wmss.models.packed_attention import PACKED, Runs
from wmss.records import CheckpointDigests

INDEX = "model.safetensors.index.json"
"""Which tensor lies in which file of a model whose weights are split."""
NO_LIMIT = 2**20
"""Tokens of a sequence under a model that names no longest one."""
MAX_CAUSE = 400
"""Of what a library said, in characters."""
MAX_NAMES = 4
"""Of tensors that do not fit, those that are named."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


@contextmanager
def loader_errors(what: str, *, param: str, remedy: str = "save it again, or choose another model") -> Iterator[None]:
    """Around calls of transformers: whatever they raise becomes a `ModelError` with the cause and a remedy.

    `what` names the folder and begins the message. Only a `MemoryError` passes: it says nothing about the folder.
    """
    try:
        yield
    except (WmssError, MemoryError):
        raise
    except Exception as error:  # transformers and its libraries raise errors of many kinds, some of them bare
        raise ModelError(f"{param}: {what}: {_cause(error)}; {remedy}", param=param) from error


def _cause(error: Exception) -> str:
    """The error on one line, cut, and with its kind: `KeyError: 'foo'` says more than 'foo'."""
    text = " ".join(str(error).split())
    if len(text) > MAX_CAUSE:
        text = f"{text[:MAX_CAUSE]}..."
    return f"{type(error).__name__}: {text}"


def model_config(path: Path, *, param: str = "model") -> PretrainedConfig:
    """The configuration at `path`; raises `ModelError` if transformers does not know the model or a value is wrong."""
    with loader_errors(f"{path}/config.json cannot be used", param=param, remedy="correct it, or choose another model"):
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False)
        sizes = [int(config.vocab_size), context_of(config)]
    if min(sizes) < 1:
        raise ModelError(f"{param}: {path}/config.json: expected sizes above 0, got {sizes}", param=param)
    return config


def context_of(config: PretrainedConfig) -> int:
    """The longest sequence such a model was made for, in tokens; `NO_LIMIT` where its family names none (Mamba)."""
    limit = getattr(config, "max_position_embeddings", None)
    return NO_LIMIT if limit is None else int(limit)


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    param: str = "model",
    packing: bool = False,
    state_dict: dict[str, Tensor] | None = None,
) -> PreTrainedModel:
    """The causal LM at `path`, on the CPU; `param` is the field that named it, `packing` makes it take packed rows, and
    `state_dict` stands in for the weights of the files."""
    attention = PACKED if packing else None
    model, misfits = load_reporting(path, dtype=dtype, param=param, attention=attention, state_dict=state_dict)
    # transformers makes up what is missing, differently at every load.
    wrong = {kind: names for kind, names in misfits.items() if kind != "unexpected" and names}
    if wrong:
        raise ModelError(misfit_message(path, wrong, param=param), param=param)
    return model


def attention_unpacked(config: PretrainedConfig) -> str:
    """transformers' name of the attention that such a model runs with where nothing is packed.

    Its SDPA attention leaves out what it has no argument for, such as a cap on scores, so not every family has it
    right that says it supports it.
    """
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if kind is not None and kind._supports_sdpa and not capped else "eager"


def load_reporting(
    path: Path,
    *,
    param: str,
    dtype: torch.dtype = torch.float32,
    attention: str | None = None,
    state_dict: dict[str, Tensor] | None = None,
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """As `load_model`, also where weights and config.json do not fit: then with the names of the tensors that are
    "missing", "mismatched" or "unexpected". `attention` None = that of unpacked rows; `state_dict` stands in for the
    weights of the files."""
    config = model_config(path, param=param)
    # What the file asks for may not be installed here, and is chosen by the caller in any case.
    config._attn_implementation = None
    model: PreTrainedModel
    with loader_errors(f"the model in {path} cannot be loaded", param=param):
        # transformers takes tensors only of a class that is known, and without a path.
        kind = AutoModelForCausalLM if state_dict is None else type(AutoModelForCausalLM.from_config(config))
        model, report = kind.from_pretrained(
            path if state_dict is None else None,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported
            attn_implementation=attention or attention_unpacked(config),
            state_dict=state_dict,
            trust_remote_code=False,
        )
    shapes = [f"{name} {list(stored)} for {list(expected)}" for name, stored, expected in report["mismatched_keys"]]
    return model, {
        "missing": sorted(report["missing_keys"]),
        "mismatched": sorted(shapes),
        "unexpected": sorted(report["unexpected_keys"]),
    }


def misfit_message(path: Path, misfits: Mapping[str, Sequence[str]], *, param: str) -> str:
    """Which tensors do not fit config.json, the first few by name."""
    told = "; ".join(
        f"{kind} {', '.join(names[:MAX_NAMES])}" + (f" and {len(names) - MAX_NAMES} more" * (len(names) > MAX_NAMES))
        for kind, names in misfits.items()
        if names
    )
    return f"{param}: the weights in {path} do not fit its config.json: {told}; save the model again with its config"


def load_tokenizer(path: Path, *, param: str = "model") -> PreTrainedTokenizerBase:
    """The tokenizer at `path`; `param` is the field that named it."""
    with loader_errors(f"the tokenizer in {path} cannot be read", param=param, remedy="save it again"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return tokenizer


def context_length(path: Path) -> int:
    """The longest sequence the model at `path` was made for, in tokens."""
    return context_of(model_config(path))


def body_of(model: PreTrainedModel) -> nn.Module:
    """What of a model gives the states that enter its head."""
    body: nn.Module = model.base_model
    if body is model:  # of Llama 4 the whole causal model is what a multimodal one is based on
        body = next(child for child in model.children() if isinstance(child, PreTrainedModel))
    return body


def hidden_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """States [B, T, D] that enter the output head, for input_ids and attention_mask [B, T]."""
    output: Tensor = body_of(model)(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    return output


def batch_states(model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor, runs: Runs | None) -> Tensor:
    """As `hidden_states`, for samples packed into one row (`runs` set), or each in a right-padded row.

    Padding comes after the tokens, where causal attention never looks, so nothing needs to mask it.
    """
    packed = {} if runs is None else {"packed_runs": runs}
    output: Tensor = body_of(model)(
        input_ids=input_ids, position_ids=position_ids, use_cache=False, **packed
    ).last_hidden_state
    return output


def output_head(model: PreTrainedModel) -> tuple[Tensor, Tensor | None]:
    """The output head's weight [V, D] and its bias [V] or None."""
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Linear), f"expected a linear output head, got {type(head).__name__}"
    return head.weight, head.bias


def weight_files(path: Path) -> list[Path]:
    """What decides a checkpoint's arithmetic: its configuration, its weights, and of shards which of them are read."""
    index = [path / INDEX] if (path / INDEX).is_file() else []
    return [path / "config.json", *index, *sorted(path.glob("*.safetensors"))]


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


def _digest_without_index(path: Path) -> str | None:
    """The digest of weights as earlier releases took it, without the index; None where there is no index."""
    files = [file for file in weight_files(path) if file.name != INDEX]
    return _digest(files) if len(files) < len(weight_files(path)) else None


def check_digests(path: Path, expected: CheckpointDigests, *, param: str) -> None:
    """Raise `ModelError` unless the checkpoint is still the one whose digests were taken. Reads every byte of it."""
    found = checkpoint_digests(path)
    if found.weights != expected.weights and expected.weights == _digest_without_index(path):
        raise ModelError(
            f"{param}: the digest of {path} was taken by a release that left out {INDEX}, so nothing tells whether "
            "that file changed since; register the checkpoint again and name the new id",
            param=param,
        )
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
        with safe_open(file, framework="np") as handle:
            count += sum(prod(handle.get_slice(name).get_shape()) for name in handle.keys())  # noqa: SIM118
    return count


def check_pair(strong: Path, weak: Path, *, param: str) -> None:
    """Raise `ModelError` unless both checkpoints give every token the same id and have heads of the same size."""
    one, other = (load_tokenizer(path, param=param).get_vocab() for path in (strong, weak))
    difference = _first_difference(one, other)
    if difference is not None:
        raise ModelError(
            f"{param}: the tokenizers of {strong} and {weak} differ, {difference}; logits can only be mixed over one "
            "vocabulary, choose checkpoints with the same tokenizer",
            param=param,
        )
    sizes = [int(model_config(path, param=param).vocab_size) for path in (strong, weak)]
    if sizes[0] == sizes[1]:
        return
    small, large = sorted(sizes)
    message = f"{param}: strong and weak vocabulary sizes differ: {sizes[0]} vs {sizes[1]} ({strong} vs {weak})"
    last = max(one.values())
    if last < small:
        message += (
            f"; their tokenizers agree, rows {small} to {large - 1} of the larger head are padding without a token: "
            f"save that model again after resize_token_embeddings({small})"
        )
    else:
        token = next(token for token, number in one.items() if number == last)
        message += (
            f"; token {token!r} has id {last}, for which the smaller head has no row: save that model again after "
            f"resize_token_embeddings({large}), or choose checkpoints of one model family"
        )
    raise ModelError(message, param=param)


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
