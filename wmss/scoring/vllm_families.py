"""Which architectures vLLM generates text with, and so can be scored. Asking imports nothing of vLLM."""

import ast
import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from wmss.errors import ModelError

_GENERATES_TEXT = "_TEXT_GENERATION_MODELS"
_TRANSFORMERS = "_TRANSFORMERS_SUPPORTED_MODELS"
"""Those that vLLM runs on transformers' own modelling code (Phi, OLMo, GPT-NeoX); some of them are multimodal."""
_MULTIMODAL = "_MULTIMODAL_MODELS"


def check_family(checkpoint: Path, *, param: str = "model") -> str:
    """Architecture of a checkpoint; raises `ModelError` if the entropy plugin cannot wrap it. Starts nothing."""
    file = checkpoint / "config.json"
    names = json.loads(file.read_text(encoding="utf-8")).get("architectures") or []
    if len(names) != 1 or names[0] not in families():
        raise ModelError(
            f"{param}: expected a decoder-only text model that vLLM runs (Llama, Qwen, Gemma, Mistral, Phi, GPT-2 or "
            f"another of its {len(families())} text-generation architectures), got {names} ({file}); choose another "
            "model",
            param=param,
        )
    return str(names[0])


@cache
def families() -> frozenset[str]:
    """Architectures in vLLM's registry that generate text from text alone; raises `ModelError` without vLLM."""
    tables = _registry_tables()
    known = tables[_GENERATES_TEXT] | tables[_TRANSFORMERS]
    # A few multimodal classes stand among the text models too.
    multimodal = set(tables[_MULTIMODAL].values())
    return frozenset(
        name
        for name, model in known.items()
        if model not in multimodal and "MultiModal" not in model[1] and not name.endswith("ForConditionalGeneration")
    )


def _registry_tables() -> dict[str, dict[str, tuple[str, str]]]:
    """vLLM's tables {architecture: (module, class)}, read from its source: parsing the file takes 10 ms, importing the
    module 4 s and hundreds of megabytes, in an API process that starts no engine."""
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        raise ModelError("vllm is not installed; install requirements/cpu.lock or requirements/cuda.lock")
    source = (Path(found.origin).parent / "model_executor/models/registry.py").read_text(encoding="utf-8")
    tables: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in (_GENERATES_TEXT, _TRANSFORMERS, _MULTIMODAL):
                tables[name] = ast.literal_eval(node.value)
    assert tables.keys() == {_GENERATES_TEXT, _TRANSFORMERS, _MULTIMODAL}, f"vLLM's registry has only {list(tables)}"
    return tables
