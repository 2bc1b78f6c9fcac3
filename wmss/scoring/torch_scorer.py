"""Exact entropy per token with plain PyTorch: for machines without vLLM, and as the check on the vLLM scorer."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wmss.core.entropy import token_entropy
from wmss.models.loading import hidden_states, load_model, output_head


class TorchEntropyScorer:
    """Scores token sequences under one checkpoint, one sequence at a time. `dtype` float64 gives the reference."""

    def __init__(
        self, checkpoint: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", keep_states: bool = False
    ) -> None:
        self._keep_states = keep_states
        self._model = load_model(checkpoint, dtype=dtype).to(device).eval()
        self._device = torch.device(device)

    @torch.no_grad()
    def score(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Per sequence of T token ids: [T, 2], entropy (nats) at each position and NLL of the next token (last NaN).

        With `keep_states` [T, 2 + D]: the states that enter the output head come after.
        """
        head, bias = output_head(self._model)
        results = []
        for ids in sequences:
            input_ids = torch.tensor([ids], device=self._device)
            hidden = hidden_states(self._model, input_ids, torch.ones_like(input_ids))[0]
            labels = torch.cat([input_ids[0, 1:], input_ids.new_full((1,), -100)])
            entropy, nll = token_entropy(hidden, head, labels, bias=bias)
            assert nll is not None
            statistics = torch.stack([entropy, nll], dim=1)
            if self._keep_states:
                statistics = torch.cat([statistics, hidden], dim=1)
            results.append(statistics.cpu().numpy())
        return results

    def provenance(self) -> dict[str, Any]:
        """Engine, version and precision."""
        return {"engine": "torch", "version": torch.__version__, "dtype": str(self._model.dtype).removeprefix("torch.")}
