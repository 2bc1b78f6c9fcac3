"""Engines and a journal for work that one process does from start to end: `wmss score --local`, `wmss plan`, Python."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from wmss.choices import DType, EngineChoice
from wmss.errors import ConfigError, WmssError
from wmss.rounds.before.preflight import Findings
from wmss.rounds.journal import Artifacts
from wmss.scoring import torch_scorer, vllm_families, vllm_scorer
from wmss.scoring.interfaces import Sampler, Scorer
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.vllm_sampler import VllmSampler


@dataclass(frozen=True)
class InProcess:
    """Engines in this process, for one checkpoint at a time."""

    engine: Literal["vllm", "torch"]
    dtype: DType = "float32"

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """Architectures that vLLM cannot score."""
        found = Findings()
        for param, checkpoint in checkpoints.items() if self.engine == "vllm" else ():
            found.attempt(vllm_families.check_family, checkpoint, param=param)
        return found.problems

    @contextlib.contextmanager
    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> Iterator[Scorer]:
        """The engine; vLLM's keeps its memory until the process ends."""
        if self.engine == "vllm":
            yield vllm_scorer.VllmEntropyScorer(
                checkpoint, max_length=max_length, dtype=self.dtype, keep_states=keep_states
            )
        else:
            yield torch_scorer.TorchEntropyScorer(
                checkpoint,
                dtype=getattr(torch, self.dtype),
                device=vllm_scorer.device_here(),
                keep_states=keep_states,
            )

    @contextlib.contextmanager
    def sampler(self, checkpoint: Path, *, max_length: int) -> Iterator[Sampler]:
        """What draws responses; vLLM's keeps its memory until the process ends."""
        if self.engine == "vllm":
            yield VllmSampler(checkpoint, max_length=max_length, dtype=self.dtype)
        else:
            yield TorchSampler(
                max_length=max_length, dtype=getattr(torch, self.dtype), device=vllm_scorer.device_here()
            )

    def provenance(self) -> dict[str, Any]:
        """What the engine says of itself."""
        if self.engine == "vllm":
            return vllm_scorer.provenance(self.dtype, vllm_scorer.device_here())
        return torch_scorer.provenance(getattr(torch, self.dtype), vllm_scorer.device_here())


def in_process(engine: EngineChoice, dtype: DType) -> InProcess:
    """Engines in this process; "auto" = vLLM where it is installed, else torch."""
    installed = find_spec("vllm") is not None
    if engine == "vllm" and not installed:
        raise ConfigError("engine: 'vllm' is not installed here; install it or use 'torch'", param="engine")
    return InProcess("vllm" if installed and engine != "torch" else "torch", dtype)


class PassingJournal:
    """A journal in memory, for work that one process does from start to end."""

    def __init__(self, *, tell: Callable[[str], None], progress: Callable[[str, int, int], None]) -> None:
        """`tell` takes messages, `progress` how many samples of all are done in a phase."""
        self.finished: dict[str, Artifacts] = {}
        """What the phases left."""
        self.progress = progress
        self._tell = tell

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase left."""
        return self.finished.get(phase)

    def start(self, phase: str) -> None:
        """A phase begins."""

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done."""
        self.finished[phase] = artifacts

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Pass a message on."""
        self._tell(message)
