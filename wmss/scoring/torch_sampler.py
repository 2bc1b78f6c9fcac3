"""Responses drawn with plain PyTorch: for machines without vLLM, and as the check on the vLLM sampler."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from wmss.records import Completion
from wmss.scoring import torch_scorer
from wmss.scoring.interfaces import Sampling, Weights, response_limits
from wmss.scoring.weights import model_with, weights_id

BATCH = 128
"""Responses that grow together: prompts of one length, so that nothing is padded and no family needs a mask."""


class TorchSampler:
    """Draws responses from one model at a time. A response depends on its own prompt and seed, and on its neighbours in
    a batch through rounding alone."""

    calls_at_once = 1

    def __init__(self, *, max_length: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        """`max_length` bounds prompt and response together."""
        self._max_length = max_length
        self._dtype = dtype
        self._device = torch.device(device)
        self._loaded: str | None = None

    def sample(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        end_token_ids: Sequence[int],
    ) -> list[Completion]:
        """As `Sampler.sample`; PyTorch is what other engines are probed with, so nothing is probed here."""
        limits = response_limits(prompts, sampling, max_length=self._max_length)
        self._load(weights)
        found: list[Completion | None] = [None] * len(prompts)
        for batch in _batches(prompts):
            rows = _Rows([seeds[i] for i in batch], [limits[i] for i in batch])
            self._draw(
                torch.tensor([list(prompts[i]) for i in batch], device=self._device), rows, sampling, end_token_ids
            )
            for number, index in enumerate(batch):
                found[index] = rows.completion(number, end_token_ids)
        return [completion for completion in found if completion is not None]

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance."""
        return torch_scorer.provenance(self._dtype, self._device.type) | {"batch_invariant": False}

    def _load(self, weights: Weights) -> None:
        wanted = weights_id(weights)
        if self._loaded != wanted:
            self._loaded = None
            self._model = model_with(weights, dtype=self._dtype).to(self._device).eval()
            self._loaded = wanted

    @torch.no_grad()
    def _draw(self, input_ids: Tensor, rows: "_Rows", sampling: Sampling, end_token_ids: Sequence[int]) -> None:
        """Let the responses to input_ids [B, T] grow in `rows`; one that ends leaves the batch."""
        cache = DynamicCache(config=self._model.config)
        ends = torch.tensor(list(end_token_ids), dtype=torch.long, device=self._device)
        growing = torch.arange(len(input_ids), device=self._device)
        for step in range(rows.most_tokens):
            logits = self._model(input_ids=input_ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[
                :, -1
            ]
            logprobs = logits.double().log_softmax(dim=-1)
            chosen = _choose(logprobs, rows.draws(growing, step), sampling)
            rows.append(growing, chosen, logprobs.gather(1, chosen[:, None])[:, 0])
            on = ~torch.isin(chosen, ends) & (rows.limits.to(self._device)[growing] > step + 1)
            if not on.any():
                return
            if not on.all():
                cache.batch_select_indices(on.nonzero()[:, 0])
            growing, input_ids = growing[on], chosen[on][:, None]


class _Rows:
    """The responses of a batch as they grow."""

    def __init__(self, seeds: Sequence[int], limits: Sequence[int]) -> None:
        self.limits = torch.tensor(limits)
        self.most_tokens = max(limits)
        # A response's draws are its seed's own: neither its batch nor its place there matters.
        self._draws = np.stack([np.random.default_rng(seed).random(self.most_tokens) for seed in seeds])
        self._ids: list[list[int]] = [[] for _ in seeds]
        self._logprobs: list[list[float]] = [[] for _ in seeds]

    def draws(self, rows: Tensor, step: int) -> Tensor:
        """Uniform in [0, 1), one for each of `rows`."""
        return torch.from_numpy(self._draws[rows.cpu().numpy(), step]).to(rows.device)

    def append(self, rows: Tensor, ids: Tensor, logprobs: Tensor) -> None:
        """Each of `rows` gets a token."""
        for row, token, logprob in zip(rows.tolist(), ids.tolist(), logprobs.tolist(), strict=True):
            self._ids[row].append(token)
            self._logprobs[row].append(logprob)

    def completion(self, row: int, end_token_ids: Sequence[int]) -> Completion:
        """The response of a row that has ended."""
        stopped = self._ids[row][-1] in end_token_ids
        return Completion(tuple(self._ids[row]), "stop" if stopped else "length", sum(self._logprobs[row]))


def _choose(logprobs: Tensor, draws: Tensor, sampling: Sampling) -> Tensor:
    """One token of each row of logprobs [B, V]: the one at which the cumulative probability passes its draw [B]."""
    if sampling.temperature == 0:
        return logprobs.argmax(dim=-1)
    scaled = logprobs / sampling.temperature
    if sampling.top_k is None and sampling.top_p == 1:
        return _invert(scaled.softmax(dim=-1), draws)
    ordered, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered[:, sampling.top_k :] = -torch.inf
    probabilities = ordered.softmax(dim=-1)
    # The token that reaches top_p is the last that may be drawn.
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities[before >= sampling.top_p] = 0
    return tokens.gather(1, _invert(probabilities, draws)[:, None])[:, 0]


def _invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(dim=-1)
    # Scaled by the sum, which the filters and rounding leave near 1: a draw below it is always passed somewhere.
    return torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]


def _batches(prompts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Indices of prompts of one length, `BATCH` at most, in order."""
    by_length: Iterable[int] = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for _, group in groupby(by_length, key=lambda index: len(prompts[index])):
        indices = list(group)
        yield from (indices[start : start + BATCH] for start in range(0, len(indices), BATCH))
