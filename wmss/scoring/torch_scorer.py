"""Exact entropy per token with plain PyTorch: for machines without vLLM, and as the check on the vLLM scorer."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wmss.core.entropy import token_entropy
from wmss.core.rows import DEFAULT_IGNORE_INDEX
from wmss.models.loading import hidden_states, load_model, output_head


class TorchEntropyScorer:
    """Scores token sequences under one checkpoint, one sequence at a time. `dtype` float64 gives the reference."""

    calls_at_once = 1

    def __init__(
        self, checkpoint: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", keep_states: bool = False
    ) -> None:
        self._keep_states = keep_states
        self._model = load_model(checkpoint, dtype=dtype).to(device).eval()
        self._device = torch.device(device)

    @torch.no_grad()
    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`; float64 for a float64 model."""
        head, bias = output_head(self._model)
        results = []
        for ids, start in zip(sequences, starts or [0] * len(sequences), strict=True):
            input_ids = torch.tensor([ids], device=self._device)
            hidden = hidden_states(self._model, input_ids, torch.ones_like(input_ids))[0, start:]
            labels = torch.cat([input_ids[0, start + 1 :], input_ids.new_full((1,), DEFAULT_IGNORE_INDEX)])
            entropy, nll, logsumexp, top1 = token_entropy(hidden, head, labels, bias=bias)
            assert nll is not None and top1 is not None
            statistics = torch.stack([entropy, nll, logsumexp, top1], dim=1)
            if self._keep_states:
                statistics = torch.cat([statistics, hidden], dim=1)
            results.append(statistics.cpu().numpy())
        return results

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._model.dtype)


def provenance(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Where an entropy figure comes from; known without loading a model. Sequences are scored one by one."""
    return {
        "engine": "torch",
        "version": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "batch_invariant": True,
    }
