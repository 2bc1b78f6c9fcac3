"""Independent truths for the tests: float64 formulas written from the paper, in another form than the product's."""

import math
from collections.abc import Sequence

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
    """The loss as a product of experts (D1, docs/method.md): P_mix = P_s^λ P_w^(1-λ) / C; logits are never mixed."""

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


def probabilities(logits: Sequence[float]) -> list[float]:
    """P(k) from the margins alone (Lemma 4): 1 / P(k) = Σ_j exp(z_j − z_k)."""
    return [1.0 / math.fsum(math.exp(other - own) for other in logits) for own in logits]


def product_of_experts(experts: Sequence[Sequence[float]], weights: Sequence[float]) -> tuple[list[float], float]:
    """P(k) = Π_i P_i(k)^{w_i} / C of probabilities [experts, V], and C."""
    products = [math.prod(p**w for p, w in zip(column, weights, strict=True)) for column in zip(*experts, strict=True)]
    total = math.fsum(products)
    return [product / total for product in products], total


def statistics(logits: Sequence[Tensor], weights: Sequence[float], labels: Tensor) -> dict[str, float]:
    """Telemetry of rows of full logits, strong first, [N, V] each: means over rows, word by word, from probabilities.

    A word is a hard negative where the weak model's odds against the target exceed the strong model's (Lemma 4).
    """
    rows = [
        _row_statistics([model[row].tolist() for model in logits], weights, label)
        for row, label in enumerate(labels.tolist())
        if label >= 0
    ]
    return {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}


def _row_statistics(logits: Sequence[Sequence[float]], weights: Sequence[float], label: int) -> dict[str, float]:
    def surprise(distribution: Sequence[float]) -> tuple[float, float]:
        return -math.log(distribution[label]), -math.fsum(p * math.log(p) for p in distribution)

    experts = [probabilities(z) for z in logits]
    strong = experts[0]
    words = [k for k in range(len(strong)) if k != label]
    found = dict(zip(("nll_strong", "entropy_strong"), surprise(strong), strict=True))
    found["margin"] = math.fsum(math.log(strong[label] / strong[k]) for k in words) / len(words)
    if len(experts) == 1:
        return found
    shares = [w / sum(weights[1:]) for w in weights[1:]]
    weak, _ = product_of_experts(experts[1:], shares)
    mix, normaliser = product_of_experts(experts, weights)
    found |= dict(zip(("nll_weak", "entropy_weak"), surprise(weak), strict=True))
    found |= dict(zip(("nll_mix", "entropy_mix"), surprise(mix), strict=True))
    found["divergence"] = -math.log(normaliser)
    found["hard_negative_mass"] = math.fsum(mix[k] for k in words if weak[k] / weak[label] > strong[k] / strong[label])
    return found


def sampling_weights(
    weak: np.ndarray, strong: np.ndarray, weighting: str, alpha: float, beta: float, gamma: float
) -> np.ndarray:
    """The three published weightings, one sample at a time."""
    pairs = list(zip(weak.tolist(), strong.tolist(), strict=True))
    drops = [w - s if w > s else 0.0 for w, s in pairs]
    rises = [s - w if s > w else 0.0 for w, s in pairs]
    first, second = {
        "v2": (drops, [s for _, s in pairs]),
        "v1": ([w for w, _ in pairs], drops),
        "per_term": ([w for w, _ in pairs], drops),
    }[weighting]
    terms = [(alpha, first), (beta, second), (gamma, rises)]
    if weighting == "per_term":
        terms = [(c / math.fsum(values), values) for c, values in terms if math.fsum(values) > 0]
    masses = [math.fsum(c * values[i] for c, values in terms) for i in range(len(pairs))]
    return np.array([mass / math.fsum(masses) for mass in masses])


def attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], *, sliding_window: int | None = None
) -> Tensor:
    """Causal attention of query [H, N, d] over key, value [K, N, d] of packed samples: all N² scores, most masked."""
    sample = [number for number, length in enumerate(lengths) for _ in range(length)]
    outputs = []
    for head in range(query.shape[0]):
        shared = head * key.shape[0] // query.shape[0]
        scores = query[head] @ key[shared].T / math.sqrt(query.shape[-1])
        for i in range(len(sample)):
            for j in range(len(sample)):
                seen = sample[i] == sample[j] and j <= i and (sliding_window is None or i - j < sliding_window)
                if not seen:
                    scores = scores.index_put((torch.tensor(i), torch.tensor(j)), torch.tensor(-torch.inf).to(scores))
        outputs.append(torch.softmax(scores, dim=-1) @ value[shared])
    return torch.stack(outputs)


def adamw_first_step(parameter: Tensor, gradient: Tensor, *, learning_rate: float, weight_decay: float = 0.0) -> Tensor:
    """A parameter after AdamW's first step, whose corrected moments are the gradient and its square."""
    decayed = parameter * (1.0 - learning_rate * weight_decay)
    return decayed - learning_rate * gradient / (gradient.abs() + 1e-8)
