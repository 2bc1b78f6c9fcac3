"""Exact predictive entropy per token from hidden states and an output head, in row chunks.

Shape suffixes: N rows (token positions), C rows of one chunk, V vocabulary, D hidden width.
"""

import torch
from torch import Tensor

from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size, supervised_rows


@torch.no_grad()
def token_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Entropy of the full-vocabulary distribution at every row, and the negative log-likelihood of its label.

        H = −Σ_v p_v log p_v,   NLL = −log p_label,   p = softmax(h Wᵀ + b)

    Args:
        hidden: [N, D], hidden states that enter the output head.
        head: [V, D].
        labels: [N] integers in [0, V), -100 for a row without a label (its NLL is NaN), or None.
        bias: [V] or None.
        chunk_size: rows projected at a time; None chooses 256 on CPU and 2048 elsewhere.

    Returns:
        (entropy [N] in nats, NLL [N] in nats or None without labels), float32, or float64 for float64 inputs.

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
    entropy_N = hidden.new_empty(hidden.shape[0], dtype=dtype)
    nll_N = None if labels is None else torch.empty_like(entropy_N)
    for start in range(0, hidden.shape[0], rows):
        chunk = slice(start, start + rows)
        logits_CV = hidden[chunk].to(dtype) @ head_VD.t()
        if bias is not None:
            logits_CV.add_(bias.to(dtype))
        entropy_N[chunk], nll_C = entropy_of_logits_(logits_CV, None if labels is None else labels[chunk])
        if nll_N is not None and nll_C is not None:
            nll_N[chunk] = nll_C
    return entropy_N, nll_N


def entropy_of_logits_(logits_CV: Tensor, labels_C: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Entropy [C] and label NLL [C] of logits [C, V], which are **overwritten**.

    With m = max z and s = Σ e^{z−m}:  H = log s − Σ e^{z−m}(z−m) / s, one pass after the projection.
    """
    logits_CV.sub_(logits_CV.amax(dim=1, keepdim=True))
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
    if labels_C is None or target_C is None:
        return entropy_C, None
    nll_C = (log_normaliser_C - target_C).masked_fill_(labels_C == DEFAULT_IGNORE_INDEX, torch.nan)
    return entropy_C, nll_C
