"""What a training step looks like from the logits: quantities that do not change when a constant is added to them.

Shape suffixes: N rows (token positions), R supervised rows, C rows of one chunk, V vocabulary, D hidden width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from wmss.core.entropy import entropy_of_logits_
from wmss.core.mixing import LogitBranch
from wmss.core.rows import compute_dtype, supervised_rows

STRONG_STATISTICS = ("nll_strong", "entropy_strong", "margin")
PAIR_STATISTICS = ("nll_weak", "entropy_weak", "nll_mix", "entropy_mix", "divergence", "hard_negative_mass")

CHUNK_ROWS = 64
"""Some eight [C, V] tensors live at once here, where the loss has one: with the loss's 256 rows a reading would set the
memory peak of a whole run, and take half as long again on a CPU."""


def statistics_of(num_branches: int) -> tuple[str, ...]:
    """Names of what `mix_statistics` returns for that many branches, in order."""
    return STRONG_STATISTICS if num_branches == 1 else STRONG_STATISTICS + PAIR_STATISTICS


@torch.no_grad()
def mix_statistics(
    branches: Sequence[LogitBranch], labels: Tensor, *, max_rows: int, chunk_size: int = CHUNK_ROWS
) -> Tensor:
    """Sums over at most `max_rows` supervised rows, evenly spaced, of what `statistics_of` names; last, their number.

    With margins m_k(z) = z[y] − z[k] of the target y over another word k, per row:

        nll_i, entropy_i    −log P_i[y] and −Σ P_i log P_i, in nats, of the strong model, the weak one and the mix
        margin              z_s[y] − mean_{k≠y} z_s[k]: grows early in fine-tuning, then flattens
        divergence          D_λ = −log Σ_v Π_i P_i[v]^{w_i} = Σ_i w_i lse(z_i) − lse(z_mix); 0 where all agree, and
                            >= 0 where the weights sum to 1; CE_mix = Σ_i w_i CE_i − D_λ
        hard_negative_mass  Σ_{k: m_k(z_w) < m_k(z_s)} P_mix[k]: probability of the words on which the weak model
                            makes the target harder

    Several weak branches count as their weighted mean, z_w = Σ w_i z_i / Σ w_i; all weights 0 as their plain mean.

    Args:
        branches: strong first; a strong branch alone gives its own statistics (weight aside).
        labels: [N], as for the loss.
        max_rows: bound on the rows looked at: each costs one row of full logits a branch, and no gradient.
        chunk_size: rows projected at a time.

    Returns:
        float64 [number of statistics + 1].

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), section 2.3 and appendices B and D; the identity of D_λ is
    ours, docs/method.md, "Telemetry". Means of raw logits are left out on purpose: a constant added to all of a row's
    logits changes them and nothing else.
    """
    rows_R = supervised_rows(labels, vocab_size=branches[0].head.shape[0])
    rows_R = rows_R[:: max(1, -(-rows_R.numel() // max_rows))]
    labels_R = labels[rows_R].long()
    dtype = compute_dtype(*(branch.hidden for branch in branches))
    sums = torch.zeros(len(statistics_of(len(branches))) + 1, dtype=torch.float64, device=labels.device)
    for start in range(0, rows_R.numel(), chunk_size):
        chunk = slice(start, start + chunk_size)
        logits = [_logits(branch, rows_R[chunk], dtype) for branch in branches]
        weights = [branch.weight for branch in branches]
        columns = _strong_columns(logits[0], labels_R[chunk])
        if len(branches) > 1:
            columns += _pair_columns(logits, weights, labels_R[chunk])
        sums[:-1] += torch.stack([column.sum(dtype=torch.float64) for column in columns])
    sums[-1] = rows_R.numel()
    return sums


def _logits(branch: LogitBranch, rows_C: Tensor, dtype: torch.dtype) -> Tensor:
    z_CV = branch.hidden[rows_C].to(dtype) @ branch.head.to(dtype).t()
    return branch.cap_(z_CV if branch.bias is None else z_CV + branch.bias.to(dtype))


def _strong_columns(z_CV: Tensor, labels_C: Tensor) -> list[Tensor]:
    target_C = z_CV.gather(1, labels_C.unsqueeze(1)).squeeze(1)
    others_C = (z_CV.sum(dim=1) - target_C) / (z_CV.shape[1] - 1)
    own = entropy_of_logits_(z_CV.clone(), labels_C)
    assert own.nll is not None
    return [own.nll, own.entropy, target_C - others_C]


def _pair_columns(logits: list[Tensor], weights: list[float], labels_C: Tensor) -> list[Tensor]:
    strong_CV, weak = logits[0], logits[1:]
    shares = weights[1:] if any(weights[1:]) else [1.0] * len(weak)
    weak_CV = sum((w * z for w, z in zip(shares, weak, strict=True)), torch.zeros_like(strong_CV)) / sum(shares)
    mix_CV = sum((w * z for w, z in zip(weights, logits, strict=True)), torch.zeros_like(strong_CV))
    log_mix_CV = torch.log_softmax(mix_CV, dim=1)
    label_C1 = labels_C.unsqueeze(1)
    # Where the weak margin is smaller: z_w[y] − z_w[k] < z_s[y] − z_s[k]. The target itself is no negative.
    gap_CV = strong_CV - weak_CV
    harder_CV = gap_CV < gap_CV.gather(1, label_C1)
    mass_C = log_mix_CV.exp().masked_fill_(~harder_CV.scatter(1, label_C1, False), 0.0).sum(dim=1)
    divergence_C = sum(
        (w * torch.logsumexp(z, dim=1) for w, z in zip(weights, logits, strict=True)),
        -torch.logsumexp(mix_CV, dim=1),
    )
    weak_own = entropy_of_logits_(weak_CV, labels_C)
    mixed = entropy_of_logits_(mix_CV, labels_C)
    assert weak_own.nll is not None and mixed.nll is not None
    return [weak_own.nll, weak_own.entropy, mixed.nll, mixed.entropy, divergence_C, mass_C]
