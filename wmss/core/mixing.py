"""The mixed-logit loss: cross-entropy of λ·z_strong + (1-λ)·z_weak, without ever holding an [N, V] tensor.

Shape suffixes: N rows (token positions), R supervised rows, C rows of one chunk, V vocabulary, D hidden width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size, supervised_rows


def mixed_linear_cross_entropy(
    strong_hidden: Tensor,
    strong_head: Tensor,
    weak_hidden: Tensor,
    weak_head: Tensor,
    labels: Tensor,
    *,
    mixing_weight: float,
    strong_bias: Tensor | None = None,
    weak_bias: Tensor | None = None,
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    chunk_size: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of the mixed logits of a strong and a weak model, as a scalar.

        z_mix = λ (h_s W_sᵀ + b_s) + (1-λ) (h_w W_wᵀ + b_w),    L = Σ_rows −log softmax(z_mix)[label]

    The specification is that formula on full logits; this function walks over the supervised rows in chunks,
    accumulates both products in one [C, V] buffer and computes the exact gradients in the same pass, so memory
    does not grow with N·V. A product whose weight is 0, or a gradient nobody asks for, is not computed.

    Args:
        strong_hidden: [N, D_s], hidden states that enter the strong model's output head.
        strong_head: [V, D_s], its output head.
        weak_hidden: [N, D_w]; the width may differ from the strong one's.
        weak_head: [V, D_w].
        labels: [N] integers in [0, V), or `ignore_index` for a row that carries no loss.
        mixing_weight: λ in [0, 1], the weight of the *strong* logits.
        strong_bias, weak_bias: [V] or None.
        chunk_size: rows projected at a time; None chooses 256 on CPU and 2048 elsewhere.
        reduction: "mean" over supervised rows, or "sum".

    Returns:
        Scalar loss in nats, in float32 or, for float64 inputs, float64.

    Raises:
        ValueError: shapes, λ, labels or `reduction` out of range; or "mean" over no supervised row.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Eq. 5 and 6; gradients Eq. 22.
    """
    if not 0.0 <= mixing_weight <= 1.0:
        raise ValueError(f"mixing_weight: expected a number in [0, 1], got {mixing_weight}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction: expected "mean" or "sum", got {reduction!r}')
    _check_branch("strong", strong_hidden, strong_head, strong_bias, labels)
    _check_branch("weak", weak_hidden, weak_head, weak_bias, labels)
    if strong_head.shape[0] != weak_head.shape[0]:
        raise ValueError(
            f"strong and weak vocabulary sizes differ: {strong_head.shape[0]} vs {weak_head.shape[0]} (weak_head); "
            "mix checkpoints that share one tokenizer and one vocabulary"
        )
    rows_R = supervised_rows(labels, vocab_size=strong_head.shape[0], ignore_index=ignore_index)
    if reduction == "mean" and rows_R.numel() == 0:
        raise ValueError(
            'labels: expected at least one supervised row, got only ignore_index; use reduction="sum" for empty shards'
        )
    scale = 1.0 / rows_R.numel() if reduction == "mean" else 1.0
    loss: Tensor = _MixedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        strong_hidden,
        strong_head,
        strong_bias,
        weak_hidden,
        weak_head,
        weak_bias,
        labels,
        rows_R,
        float(mixing_weight),
        resolve_chunk_size(chunk_size, strong_hidden.device),
        scale,
        torch.is_grad_enabled(),
    )
    return loss


class _Branch:
    """One model's side of the chunk loop: its product into the shared logits, its gradients out of them."""

    def __init__(
        self,
        hidden: Tensor,
        head: Tensor,
        bias: Tensor | None,
        rows_R: Tensor,
        weight: float,
        needs_grad: tuple[bool, bool, bool],
        dtype: torch.dtype,
    ) -> None:
        self.weight = weight
        self.hidden_RD = hidden.index_select(0, rows_R).to(dtype)
        self.head_VD = head.to(dtype)
        self.bias_V = None if bias is None else bias.to(dtype)
        needs_hidden, needs_head, needs_bias = needs_grad
        self.grad_hidden_RD = torch.zeros_like(self.hidden_RD) if needs_hidden else None
        self.grad_head_VD = torch.zeros_like(self.head_VD) if needs_head else None
        self.grad_bias_V = torch.zeros_like(self.bias_V) if needs_bias and self.bias_V is not None else None

    def add_logits(self, z_CV: Tensor, chunk: slice) -> None:
        if self.weight == 0.0:
            return
        z_CV.addmm_(self.hidden_RD[chunk], self.head_VD.t(), alpha=self.weight)
        if self.bias_V is not None:
            z_CV.add_(self.bias_V, alpha=self.weight)

    def accumulate_gradients(self, grad_CV: Tensor, chunk: slice) -> None:
        """∂L/∂z_branch = weight · (P_mix − onehot), carried on to this branch's inputs (Eq. 22)."""
        if self.weight == 0.0:
            return
        if self.grad_hidden_RD is not None:
            self.grad_hidden_RD[chunk].addmm_(grad_CV, self.head_VD, beta=0.0, alpha=self.weight)
        if self.grad_head_VD is not None:
            self.grad_head_VD.addmm_(grad_CV.t(), self.hidden_RD[chunk], alpha=self.weight)
        if self.grad_bias_V is not None:
            self.grad_bias_V.add_(grad_CV.sum(dim=0), alpha=self.weight)


class _MixedLinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        strong_hidden: Tensor,
        strong_head: Tensor,
        strong_bias: Tensor | None,
        weak_hidden: Tensor,
        weak_head: Tensor,
        weak_bias: Tensor | None,
        labels: Tensor,
        rows_R: Tensor,
        mixing_weight: float,
        chunk_size: int,
        scale: float,
        grad_enabled: bool,
    ) -> Tensor:
        needs = [grad_enabled and needed for needed in ctx.needs_input_grad[:6]]
        # Both products go into one buffer, so one precision serves both branches.
        dtype = compute_dtype(strong_hidden, strong_head, weak_hidden, weak_head)
        strong_needs, weak_needs = (needs[0], needs[1], needs[2]), (needs[3], needs[4], needs[5])
        strong = _Branch(strong_hidden, strong_head, strong_bias, rows_R, mixing_weight, strong_needs, dtype)
        weak = _Branch(weak_hidden, weak_head, weak_bias, rows_R, 1.0 - mixing_weight, weak_needs, dtype)
        labels_R = labels.index_select(0, rows_R).long()
        num_rows = rows_R.numel()
        buffer_CV = strong.head_VD.new_empty((min(chunk_size, num_rows), strong.head_VD.shape[0]), dtype=dtype)
        # The sum over rows is taken in float64: it is one number, and float32 would lose a digit over long batches.
        total = torch.zeros((), dtype=torch.float64, device=strong_hidden.device)

        for start in range(0, num_rows, chunk_size):
            chunk = slice(start, min(start + chunk_size, num_rows))
            z_CV = buffer_CV[: chunk.stop - chunk.start].zero_()
            strong.add_logits(z_CV, chunk)
            weak.add_logits(z_CV, chunk)
            label_C1 = labels_R[chunk].unsqueeze(1)
            z_CV.sub_(z_CV.amax(dim=1, keepdim=True))
            target_C1 = z_CV.gather(1, label_C1)
            z_CV.exp_()
            normaliser_C1 = z_CV.sum(dim=1, keepdim=True)
            total += (normaliser_C1.log() - target_C1).sum(dtype=torch.float64)
            if any(needs):
                z_CV.div_(normaliser_C1)
                z_CV.scatter_add_(1, label_C1, torch.full_like(target_C1, -1.0))
                z_CV.mul_(scale)
                strong.accumulate_gradients(z_CV, chunk)
                weak.accumulate_gradients(z_CV, chunk)

        inputs = (strong_hidden, strong_head, strong_bias, weak_hidden, weak_head, weak_bias)
        gradients = (
            _spread(strong.grad_hidden_RD, rows_R, strong_hidden),
            strong.grad_head_VD,
            strong.grad_bias_V,
            _spread(weak.grad_hidden_RD, rows_R, weak_hidden),
            weak.grad_head_VD,
            weak.grad_bias_V,
        )
        ctx.save_for_backward(
            *(None if g is None or x is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True))
        )
        return (total * scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (None if grad is None else grad * grad_loss.to(grad.dtype) for grad in ctx.saved_tensors)
        return (*gradients, *(None,) * 6)


def _spread(grad_RD: Tensor | None, rows_R: Tensor, like_ND: Tensor) -> Tensor | None:
    """Gradients of the supervised rows, put back among the rows that carry no loss (whose gradient is 0)."""
    if grad_RD is None:
        return None
    return grad_RD.new_zeros(like_ND.shape).index_copy_(0, rows_R, grad_RD)


def _check_branch(name: str, hidden: Tensor, head: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    if hidden.dim() != 2 or head.dim() != 2 or hidden.shape[1] != head.shape[1]:
        raise ValueError(
            f"{name}_hidden and {name}_head: expected [N, D] and [V, D], "
            f"got {list(hidden.shape)} and {list(head.shape)}"
        )
    if labels.shape != hidden.shape[:1]:
        raise ValueError(
            f"labels: expected [{hidden.shape[0]}] to match {name}_hidden {list(hidden.shape)}, "
            f"got {list(labels.shape)}"
        )
    if bias is not None and bias.shape != head.shape[:1]:
        raise ValueError(f"{name}_bias: expected [{head.shape[0]}], got {list(bias.shape)}")
