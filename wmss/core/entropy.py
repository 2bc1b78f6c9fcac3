"""Exact predictive entropy per token from hidden states and an output head, in row chunks.

Shape suffixes: N rows (token positions), C rows of one chunk, V vocabulary, D hidden width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size, supervised_rows


class TokenStatistics(NamedTuple):
    """What one pass over a row of logits z [V] tells, as columns of the same length and precision."""

    entropy: Tensor
    """H = −Σ_v p_v log p_v of p = softmax(z), in nats, 0 <= H <= log V."""
    nll: Tensor | None
    """−log p_label, in nats; NaN for a row without a label; None where no labels were given."""
    logsumexp: Tensor
    """log Σ_v e^{z_v}."""
    top1: Tensor | None
    """1 where no logit is above the label's, else 0; NaN and None as for `nll`."""


@torch.no_grad()
def token_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    chunk_size: int | None = None,
) -> TokenStatistics:
    """Entropy of the full-vocabulary distribution at every row, and the negative log-likelihood of its label.

        H = −Σ_v p_v log p_v,   NLL = −log p_label,   p = softmax(h Wᵀ + b)

    Args:
        hidden: [N, D], hidden states that enter the output head.
        head: [V, D].
        labels: [N] integers in [0, V), -100 for a row without a label (its NLL is NaN), or None.
        bias: [V] or None.
        chunk_size: rows projected at a time; None chooses 256 on CPU and 2048 elsewhere.

    Returns:
        Statistics of N rows, float32, or float64 for float64 inputs.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Eq. 7 before its mean over positions.
    """
    if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            f"hidden and head: expected [N, D] and [V, D], got {list(hidden.shape)} and {list(head.shape)}"
        )
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"bias: expected [{head.shape[0]}], got {list(bias.shape)}")
    if labels is not None:
        if labels.shape != hidden.shape[:1]:
            raise ValueError(f"labels: expected [{hidden.shape[0]}], got {list(labels.shape)}")
        supervised_rows(labels, vocab_size=head.shape[0])
    dtype = compute_dtype(hidden, head)
    head_VD = head.to(dtype)
    rows = resolve_chunk_size(chunk_size, hidden.device)
    parts = []
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        logits_CV = hidden[chunk].to(dtype) @ head_VD.t()
        if bias is not None:
            logits_CV.add_(bias.to(dtype))
        parts.append(entropy_of_logits_(logits_CV, None if labels is None else labels[chunk]))
    if not parts:
        parts.append(entropy_of_logits_(hidden.new_empty(0, head.shape[0], dtype=dtype), labels))
    entropy, nll, logsumexp, top1 = zip(*parts, strict=True)
    return TokenStatistics(
        entropy=torch.cat(entropy),
        nll=None if labels is None else torch.cat(nll),
        logsumexp=torch.cat(logsumexp),
        top1=None if labels is None else torch.cat(top1),
    )


def entropy_of_logits_(logits_CV: Tensor, labels_C: Tensor | None) -> TokenStatistics:
    """Statistics of C rows of logits [C, V], which are **overwritten**.

    With m = max z and s = Σ e^{z−m}:  H = log s − Σ e^{z−m}(z−m) / s, one pass after the projection.
    """
    maximum_C1 = logits_CV.amax(dim=1, keepdim=True)
    logits_CV.sub_(maximum_C1)
    # A logit of -inf (padded vocabulary) has probability 0 and adds 0, but 0·(−inf) would be NaN.
    logits_CV.clamp_(min=torch.finfo(logits_CV.dtype).min)
    target_C = None
    if labels_C is not None:
        target_C = logits_CV.gather(1, labels_C.long().clamp(min=0).unsqueeze(1)).squeeze(1)
    exp_CV = logits_CV.exp()
    normaliser_C = exp_CV.sum(dim=1)
    log_normaliser_C = normaliser_C.log()
    entropy_C = log_normaliser_C - exp_CV.mul_(logits_CV).sum(dim=1) / normaliser_C
    # Rounding can leave a sharp row a hair below its lower bound.
    entropy_C.clamp_(min=0.0)
    logsumexp_C = maximum_C1.squeeze(1) + log_normaliser_C
    if labels_C is None or target_C is None:
        return TokenStatistics(entropy_C, None, logsumexp_C, None)
    unlabelled_C = labels_C == DEFAULT_IGNORE_INDEX
    nll_C = (log_normaliser_C - target_C).masked_fill_(unlabelled_C, torch.nan)
    top1_C = (target_C == 0).to(target_C.dtype).masked_fill_(unlabelled_C, torch.nan)
    return TokenStatistics(entropy_C, nll_C, logsumexp_C, top1_C)
