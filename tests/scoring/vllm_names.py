"""Which names of vLLM we use, and which of them are gone; in a process of its own.

`python -m tests.scoring.vllm_names` reads a JSON list of [module, name, attribute, file], of which name and attribute
may be null, and writes the problems as JSON.
"""

import ast
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from importlib import import_module
from typing import Any, NamedTuple

from tests.imports import ROOT


class Use(NamedTuple):
    """A name of vLLM, and the file of ours that uses it."""

    module: str
    name: str | None
    attribute: str | None
    file: str


ATTRIBUTES = {
    "wmss/scoring/vllm_engine.py": {
        "vllm.v1.engine.core_client:MPClient": ("ensure_alive",),
        "vllm:LLM": ("llm_engine", "collective_rpc", "reset_prefix_cache"),
        "vllm.v1.engine.llm_engine:LLMEngine": ("engine_core", "model_config"),
        "vllm.config:ModelConfig": ("using_transformers_backend",),
    },
    "wmss/scoring/vllm_entropy.py": {
        "vllm:ModelRegistry": ("register_model", "_try_load_model_cls"),
        "vllm:PoolingParams": ("extra_kwargs",),
        "vllm.model_executor.layers.pooler:Pooler": ("get_supported_tasks", "get_pooling_updates", "forward"),
        "vllm.model_executor.layers.pooler:PoolingParamsUpdate": ("requires_token_ids",),
        "vllm.v1.pool.metadata:PoolingMetadata": (
            "pooling_params",
            "pooling_states",
            "get_pooling_cursor",
            "get_prompt_token_ids_cpu",
        ),
        "vllm.v1.pool.metadata:PoolingCursor": ("num_scheduled_tokens_cpu", "seq_lens_cpu", "prompt_lens_cpu"),
        "vllm.v1.pool.metadata:PoolingStates": ("hidden_states_cache", "clean"),
    },
    "wmss/scoring/vllm_scorer.py": {"vllm:LLM": ("encode",)},
    "wmss/scoring/vllm_sampler.py": {"vllm:LLM": ("generate",)},
    "wmss/scoring/vllm_weights.py": {
        "vllm.v1.worker.gpu_worker:Worker": ("reload_weights", "model_runner"),
        "vllm.v1.worker.gpu_model_runner:GPUModelRunner": ("get_model",),
        "vllm.model_executor.layers.vocab_parallel_embedding:ParallelLMHead": ("quant_method",),
        "vllm.model_executor.layers.quantization.base_config:QuantizeMethodBase": ("process_weights_after_loading",),
    },
    "wmss/scoring/vllm_families.py": {
        "vllm.model_executor.models.registry": (
            "_TEXT_GENERATION_MODELS",
            "_TRANSFORMERS_SUPPORTED_MODELS",
            "_MULTIMODAL_MODELS",
        ),
    },
    "services/chat/engine.py": {
        "vllm.engine.arg_utils:AsyncEngineArgs": ("from_cli_args",),
        "vllm.v1.engine.async_llm:AsyncLLM": (
            "from_engine_args",
            "get_supported_tasks",
            "model_config",
            "check_health",
        ),
    },
}
"""What is reached through an object: by file of ours, then by `module:class` (or module), the attributes."""


def imported(source: str, file: str) -> list[Use]:
    """Every name that a file of ours imports from vLLM, also inside functions."""
    uses = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm":
            uses += [Use(node.module, alias.name, None, file) for alias in node.names]
        elif isinstance(node, ast.Import):
            uses += [Use(alias.name, None, None, file) for alias in node.names if alias.name.split(".")[0] == "vllm"]
    return uses


def all_uses() -> list[Use]:
    """Every name of vLLM in our source, and `ATTRIBUTES`."""
    files = [file for folder in ("wmss", "services") for file in sorted((ROOT / folder).rglob("*.py"))]
    uses = [
        use for file in files for use in imported(file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix())
    ]
    for path, owners in ATTRIBUTES.items():
        for owner, attributes in owners.items():
            module, _, name = owner.partition(":")
            uses += [Use(module, name or None, attribute, path) for attribute in attributes]
    return uses


def problems(uses: Iterable[Use]) -> list[str]:
    """What is not where we look for it, each with the file of ours that needs it."""
    return [f"{use.file}: {problem}" for use in uses if (problem := _problem(use)) is not None]


def _problem(use: Use) -> str | None:
    try:
        found: Any = import_module(use.module)
    except ImportError as error:
        return f"{use.module} cannot be imported: {error}"
    if use.name is not None:
        if not hasattr(found, use.name):
            return f"{use.module} has no {use.name}"
        found = getattr(found, use.name)
    if use.attribute is not None and not _has(found, use.attribute):
        return f"{'.'.join(filter(None, use[:2]))} has no {use.attribute}"
    return None


def _has(owner: Any, attribute: str) -> bool:
    """Whether an object has an attribute, or, of a class, its instances: declared, in slots, or set by a method."""
    if hasattr(owner, attribute) or not isinstance(owner, type):
        return hasattr(owner, attribute)
    for each in owner.__mro__[:-1]:
        if attribute in inspect.get_annotations(each):
            return True
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        except (OSError, TypeError, SyntaxError):  # of C, or of a decorator's making
            continue
        targets = (
            node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        )
        if any(node.attr == attribute and ast.unparse(node.value) == "self" for node in targets):
            return True
    return False


if __name__ == "__main__":
    print(json.dumps(problems(Use(*each) for each in json.load(sys.stdin))))
