"""Exact entropy per token with plain PyTorch: for machines without vLLM, and as the check on the vLLM scorer."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wmss.core.entropy import entropy_of_logits_, token_entropy
from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype
from wmss.models.heads import PLAIN, head_form
from wmss.models.loading import hidden_states, output_head
from wmss.scoring.interfaces import Weights
from wmss.scoring.weights import model_with


class TorchEntropyScorer:
    """Scores token sequences under one model, one sequence at a time. `dtype` float64 gives the reference."""

    calls_at_once = 1

    def __init__(
        self, weights: Weights, *, dtype: torch.dtype = torch.float32, device: str = "cpu", keep_states: bool = False
    ) -> None:
        self._keep_states = keep_states
        self._model = model_with(weights, dtype=dtype).to(device).eval()
        self._device = torch.device(device)
        self._plain_head = head_form(self._model) == PLAIN

    @torch.no_grad()
    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """As `Scorer.score`; float64 for a float64 model."""
        results = []
        for ids, start in zip(sequences, starts or [0] * len(sequences), strict=True):
            input_ids = torch.tensor([ids], device=self._device)
            labels = torch.cat([input_ids[0, start + 1 :], input_ids.new_full((1,), DEFAULT_IGNORE_INDEX)])
            results.append(self._rows(input_ids, labels).cpu().numpy())
        return results

    def _rows(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """Statistics, and states if they are kept, at the last len(labels) positions of input_ids [1, T]."""
        columns: list[Tensor | None] = []
        if self._plain_head or self._keep_states:
            hidden = hidden_states(self._model, input_ids, torch.ones_like(input_ids))[0, -len(labels) :]
        if self._plain_head:
            head, bias = output_head(self._model)
            columns += token_entropy(hidden, head, labels, bias=bias)
        else:
            # What such a model does to its logits is its own affair: they are taken whole, [T, V].
            logits = self._model(input_ids=input_ids, use_cache=False, logits_to_keep=len(labels)).logits[0]
            columns += entropy_of_logits_(logits.to(compute_dtype(logits)), labels)
        statistics = torch.stack([column for column in columns if column is not None], dim=1)
        return torch.cat([statistics, hidden], dim=1) if self._keep_states else statistics

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return provenance(self._model.dtype, self._device.type)


def provenance(dtype: torch.dtype = torch.float32, device: str = "cpu") -> dict[str, Any]:
    """Where an entropy figure comes from; known without loading a model. Sequences are scored one by one."""
    return {
        "engine": "torch",
        "version": torch.__version__,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "batch_invariant": True,
    }
