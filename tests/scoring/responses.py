"""Random prompts, and the probabilities of responses to them by definition: what every sampler is compared with."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from wmss.models.loading import load_model
from wmss.records import Completion
from wmss.scoring.interfaces import Sampling
from wmss.scoring.torch_scorer import TorchEntropyScorer

PLAIN = Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=12)
FILTERED = Sampling(temperature=0.8, top_p=0.9, top_k=20, max_new_tokens=1)
ENDS = [3, 4, 5, 6, 7, 8]
"""End tokens, so many that random models end now and then."""


def prompts_of(count: int, *, seed: int, shortest: int = 2, longest: int = 40) -> list[list[int]]:
    """Prompts of `shortest` to `longest` - 1 random tokens."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 277, int(rng.integers(shortest, longest))).tolist() for _ in range(count)]


def exact_probabilities(checkpoint: Path, prompt: list[int], sampling: Sampling) -> np.ndarray:
    """Probabilities [V] of the next token in float64, by the definitions of temperature, top_k and top_p."""
    model = load_model(checkpoint, dtype=torch.float64)
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].numpy()
    probabilities = np.exp(logits / sampling.temperature - (logits / sampling.temperature).max())
    order = np.argsort(-probabilities, kind="stable")
    probabilities[order[sampling.top_k or len(order) :]] = 0
    probabilities /= probabilities.sum()
    kept = np.searchsorted(np.cumsum(probabilities[order]), sampling.top_p) + 1
    probabilities[order[kept:]] = 0
    return probabilities / probabilities.sum()


def agreement(tokens: np.ndarray, probabilities: np.ndarray) -> float:
    """p of the chi-square test of tokens against probabilities; those expected less than 5 times count as one."""
    counts, expected = np.bincount(tokens, minlength=len(probabilities)), probabilities * len(tokens)
    assert counts[probabilities == 0].sum() == 0, "a token that may not be drawn was drawn"
    rare = expected < 5
    seen, hoped = (np.append(values[~rare], values[rare].sum()) for values in (counts, expected))
    terms = (seen - hoped)[hoped > 0] ** 2 / hoped[hoped > 0]
    return float(torch.special.gammaincc(torch.tensor((len(terms) - 1) / 2), torch.tensor(terms.sum() / 2)))


def logprobs_by_torch(checkpoint: Path, prompts: Sequence[list[int]], completions: Sequence[Completion]) -> np.ndarray:
    """Sum of log p of each response, from a forward over prompt and response at once."""
    sequences = [[*prompt, *found.token_ids] for prompt, found in zip(prompts, completions, strict=True)]
    rows = TorchEntropyScorer(checkpoint).score(sequences, [len(prompt) - 1 for prompt in prompts])
    return np.array([-row[:-1, 1].sum() for row in rows])
