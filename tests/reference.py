"""Independent truths for the tests: float64 formulas written from the paper, in another form than the product's."""

import numpy as np
import torch
from torch import Tensor


def mixed_cross_entropy(
    strong_hidden: Tensor,
    strong_head: Tensor,
    weak_hidden: Tensor,
    weak_head: Tensor,
    labels: Tensor,
    *,
    mixing_weight: float,
    strong_bias: Tensor | None = None,
    weak_bias: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The loss as a product of experts (identity D1): P_mix = P_s^λ P_w^(1-λ) / C; no logits are ever mixed."""

    def log_probabilities(hidden: Tensor, head: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.einsum("nd,vd->nv", hidden, head)
        return torch.log_softmax(logits if bias is None else logits + bias, dim=-1)

    log_strong = log_probabilities(strong_hidden, strong_head, strong_bias)
    log_weak = log_probabilities(weak_hidden, weak_head, weak_bias)
    joint = mixing_weight * log_strong + (1.0 - mixing_weight) * log_weak
    losses = [
        torch.logsumexp(row, dim=0) - row[label]
        for row, label in zip(joint, labels.tolist(), strict=True)
        if label >= 0
    ]
    total = torch.stack(losses).sum() if losses else joint.sum() * 0.0
    return total / len(losses) if reduction == "mean" else total


def entropy(logits: Tensor) -> Tensor:
    """Entropy by its definition, through an independent implementation."""
    return torch.distributions.Categorical(logits=logits.double()).entropy()


def weights_v2(weak: np.ndarray, strong: np.ndarray, alpha: float, beta: float, gamma: float) -> np.ndarray:
    """Eq. 9, one sample at a time."""
    p = [
        alpha * max(w - s, 0.0) + beta * s + gamma * max(s - w, 0.0)
        for w, s in zip(weak.tolist(), strong.tolist(), strict=True)
    ]
    return np.array([value / sum(p) for value in p])
