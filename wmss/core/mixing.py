"""The mixed-logit loss: cross-entropy of λ·z_strong + (1-λ)·z_weak, without ever holding an [N, V] tensor.

Shape suffixes: N rows (token positions), R supervised rows, C rows of one chunk, V vocabulary, D hidden width.
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from wmss.choices import MixingSchedule
from wmss.core.products import add_product_, operand
from wmss.core.rows import DEFAULT_IGNORE_INDEX, compute_dtype, resolve_chunk_size, supervised_rows
from wmss.core.softmax import loss_and_logit_gradient_


class LogitBranch(NamedTuple):
    """One model's side of a mix: logits z = cap(scale · (hidden · headᵀ + bias)), and the weight they enter with."""

    hidden: Tensor
    """[N, D], hidden states that enter the output head; D may differ between branches."""
    head: Tensor
    """[V, D]."""
    bias: Tensor | None = None
    """[V] or None."""
    weight: float = 1.0
    """Finite and >= 0: λ for the strong branch; those of the weak ones sum to 1-λ."""
    scale: float = 1.0
    """Finite, not 0: what the model multiplies its logits by."""
    cap: float | None = None
    """Above 0: the model's soft cap, cap · tanh(x / cap); None = none."""

    def cap_(self, product: Tensor) -> Tensor:
        """Logits of hidden · headᵀ + bias, which are **overwritten**."""
        if self.scale != 1.0:
            product.mul_(self.scale)
        return product if self.cap is None else product.div_(self.cap).tanh_().mul_(self.cap)


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
    operand_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of the mixed logits of a strong and a weak model, as a scalar.

        z_mix = λ (h_s W_sᵀ + b_s) + (1-λ) (h_w W_wᵀ + b_w),    L = Σ_rows −log softmax(z_mix)[label]

    `branch_cross_entropy` for the pair of the paper; it has what is common to both.

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
        operand_dtype: as of `branch_cross_entropy`.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Eq. 5 and 6; gradients Eq. 22.
    """
    if not 0.0 <= mixing_weight <= 1.0:
        raise ValueError(f"mixing_weight: expected a number in [0, 1], got {mixing_weight}")
    return branch_cross_entropy(
        [
            LogitBranch(strong_hidden, strong_head, strong_bias, mixing_weight),
            LogitBranch(weak_hidden, weak_head, weak_bias, 1.0 - mixing_weight),
        ],
        labels,
        ignore_index=ignore_index,
        chunk_size=chunk_size,
        reduction=reduction,
        operand_dtype=operand_dtype,
    )


def branch_cross_entropy(
    branches: Sequence[LogitBranch],
    labels: Tensor,
    *,
    ignore_index: int = DEFAULT_IGNORE_INDEX,
    chunk_size: int | None = None,
    reduction: str = "mean",
    operand_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of z_mix = Σ_i weight_i · z_i against the labels, as a scalar in nats; z_i = h_i W_iᵀ + b_i.

    Where a model scales its logits or caps them softly, z_i = cap(scale · (h_i W_iᵀ + b_i)).

    The strong branch comes first. One branch of weight 1 is plain fine-tuning; one of weight λ is the control without
    a weak model, softmax(λ z_s); several weak branches share 1-λ.

    The specification is that formula on full logits; this function walks over the supervised rows in chunks,
    accumulates the products in one [C, V] buffer and computes the exact gradients in the same pass, so memory
    does not grow with N·V. A product whose weight is 0, or a gradient that is not asked for, is not computed;
    branches that share one frozen head need one product for all of them.

    Args:
        branches: at least one; see `LogitBranch`.
        labels: [N] integers in [0, V), or `ignore_index` for a row that carries no loss.
        chunk_size: rows projected at a time; None chooses 256 on CPU and 2048 elsewhere.
        reduction: "mean" over supervised rows, or "sum".
        operand_dtype: precision to which the factors of every product are rounded (states, heads, and the gradient of
            the logits); sums, softmax and gradients stay float32. bfloat16 uses a GPU's tensor cores. None = as given.

    Returns:
        Scalar loss in float32 or, for float64 inputs, float64. It can be differentiated once.

    Raises:
        ValueError: shapes, weights, labels or `reduction` out of range; or "mean" over no supervised row.

    Source: Weak-Driven Learning (arXiv 2602.08222 v2), Eq. 5 and 6; gradients Eq. 22.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f'reduction: expected "mean" or "sum", got {reduction!r}')
    if not branches:
        raise ValueError("branches: expected at least one")
    names = branch_names(len(branches))
    for name, branch in zip(names, branches, strict=True):
        _check_branch(name, branch, labels)
        if branch.head.shape[0] != branches[0].head.shape[0]:
            raise ValueError(
                f"strong and {name} vocabulary sizes differ: {branches[0].head.shape[0]} vs {branch.head.shape[0]} "
                f"({name}_head); mix checkpoints that share one tokenizer and one vocabulary"
            )
    rows_R = supervised_rows(labels, vocab_size=branches[0].head.shape[0], ignore_index=ignore_index)
    if reduction == "mean" and rows_R.numel() == 0:
        raise ValueError(
            'labels: expected at least one supervised row, got only ignore_index; use reduction="sum" for empty shards'
        )
    scale = 1.0 / rows_R.numel() if reduction == "mean" else 1.0
    merged = _merge_shared_heads(branches)
    loss: Tensor = _BranchCrossEntropy.apply(  # type: ignore[no-untyped-call]
        labels,
        rows_R,
        [_Form(branch.weight, branch.scale, branch.cap) for branch in merged],
        resolve_chunk_size(chunk_size, labels.device),
        scale,
        torch.is_grad_enabled(),
        operand_dtype,
        *chain.from_iterable((branch.hidden, branch.head, branch.bias) for branch in merged),
    )
    return loss


def mixing_weight_at(
    step: int, *, num_steps: int, start: float, end: float | None = None, schedule: MixingSchedule = "constant"
) -> float:
    """λ of optimizer step `step` (0-based): from `start` in the first step to `end` in the last.

        constant  λ = start;    with p = step / (num_steps − 1):
        linear    λ = start + p (end − start)
        cosine    λ = end + (start − end) (1 + cos πp) / 2

    The paper holds λ constant.
    """
    if schedule == "constant" or end is None:
        return start
    progress = step / max(1, num_steps - 1)
    # Written as a weighted mean, so that both ends are met exactly.
    share = progress if schedule == "linear" else 0.5 * (1.0 - math.cos(math.pi * progress))
    return (1.0 - share) * start + share * end


def branch_names(num_branches: int) -> list[str]:
    """What the branches are called: strong, weak; with several weak ones weak, weak_2, weak_3, ..."""
    return ["strong", "weak", *(f"weak_{number}" for number in range(2, num_branches))][:num_branches]


def _merge_shared_heads(branches: Sequence[LogitBranch]) -> list[LogitBranch]:
    """Branches of one and the same frozen head and bias as one: Σ w_i (h_i Wᵀ + b) = (Σ w_i h_i) Wᵀ + b Σ w_i.

    Not where they are capped, or scaled differently.
    """
    groups: dict[tuple[Any, ...], list[LogitBranch]] = {}
    for branch in branches:
        alone = branch.head.requires_grad or branch.cap is not None
        key: tuple[Any, ...] = (id(branch),) if alone else (id(branch.head), id(branch.bias), branch.scale)
        groups.setdefault(key, []).append(branch)
    merged = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1:
            merged.append(first)
            continue
        # Each state is rounded to its own precision once only: in bf16 a product λh would lose a digit.
        dtype = compute_dtype(*(branch.hidden for branch in group))
        hidden_ND = sum(branch.hidden.to(dtype) * branch.weight for branch in group)
        total = math.fsum(branch.weight for branch in group)
        bias_V = None if first.bias is None else first.bias * total
        merged.append(LogitBranch(hidden_ND, first.head, bias_V, 1.0, first.scale))  # type: ignore[arg-type]
    return merged


class _Form(NamedTuple):
    """How the product of one branch enters the mix: as in `LogitBranch`."""

    weight: float
    scale: float
    cap: float | None


class _Inputs(NamedTuple):
    """The tensors of one branch that may have a gradient."""

    hidden: Tensor
    head: Tensor
    bias: Tensor | None


class _Needs(NamedTuple):
    """Which of them asks for one."""

    hidden: bool
    head: bool
    bias: bool


class _Side(NamedTuple):
    """One branch in the chunk loop: its supervised rows and head as factors of products, and the gradients asked for.

    The gradients are accumulated in place, in the common precision, chunk by chunk; None = not asked for.
    """

    form: _Form
    hidden_RD: Tensor
    head_VD: Tensor
    bias_V: Tensor | None
    grad_hidden_RD: Tensor | None
    grad_head_VD: Tensor | None
    grad_bias_V: Tensor | None
    tanh_CV: Tensor | None
    """A buffer of capped logits, in units of the cap; None without a cap."""

    @property
    def weight(self) -> float:
        """Of the product: the branch's, times its scale."""
        return self.form.weight * self.form.scale

    def add_logits_(self, z_CV: Tensor, chunk: slice) -> None:
        """z ← z + weight · z_branch."""
        if self.form.cap is None or self.tanh_CV is None:
            self._add_product_(z_CV, chunk, self.weight)
            return
        tanh_CV = self.tanh_CV[: len(z_CV)].zero_()
        self._add_product_(tanh_CV, chunk, self.form.scale / self.form.cap)
        z_CV.add_(tanh_CV.tanh_(), alpha=self.form.weight * self.form.cap)

    def _add_product_(self, out_CV: Tensor, chunk: slice, alpha: float) -> None:
        add_product_(out_CV, self.hidden_RD[chunk], self.head_VD.t(), alpha=alpha)
        if self.bias_V is not None:
            out_CV.add_(self.bias_V, alpha=alpha)

    def accumulate_gradients(self, grad_CV: Tensor, chunk: slice) -> None:
        """∂L/∂z_branch = weight · (P_mix − onehot), carried on to this branch's inputs (Eq. 22).

        A cap multiplies by its slope, 1 − tanh².
        """
        if self.tanh_CV is not None:
            tanh_CV = self.tanh_CV[: len(grad_CV)]
            grad_CV = (grad_CV * (1.0 - tanh_CV * tanh_CV)).to(grad_CV.dtype)
        if self.grad_hidden_RD is not None:
            add_product_(self.grad_hidden_RD[chunk], grad_CV, self.head_VD, beta=0.0, alpha=self.weight)
        if self.grad_head_VD is not None:
            add_product_(self.grad_head_VD, grad_CV.t(), self.hidden_RD[chunk], alpha=self.weight)
        if self.grad_bias_V is not None:
            self.grad_bias_V.add_(grad_CV.sum(dim=0, dtype=self.grad_bias_V.dtype), alpha=self.weight)

    def gradients_of(self, branch: _Inputs, rows_R: Tensor) -> list[Tensor | None]:
        """The accumulated gradients in the shapes and precisions of the branch's hidden states, head and bias."""
        hidden = self.grad_hidden_RD
        if hidden is not None and hidden.shape != branch.hidden.shape:
            # Rows that carry no loss have gradient 0.
            hidden = hidden.new_zeros(branch.hidden.shape).index_copy_(0, rows_R, hidden)
        found = (hidden, self.grad_head_VD, self.grad_bias_V)
        return [
            None if gradient is None or tensor is None else gradient.to(tensor.dtype)
            for gradient, tensor in zip(found, branch, strict=True)
        ]


def _side(
    branch: _Inputs,
    needs: _Needs,
    *,
    form: _Form,
    rows_R: Tensor,
    dtype: torch.dtype,
    chunk_size: int,
    operand_dtype: torch.dtype | None = None,
) -> _Side:
    every_row = rows_R.numel() == branch.hidden.shape[0]
    hidden_RD = branch.hidden if every_row else branch.hidden.index_select(0, rows_R)
    hidden_RD, head_VD = (operand(factor, dtype=dtype, rounded_to=operand_dtype) for factor in (hidden_RD, branch.head))
    bias_V = None if branch.bias is None else branch.bias.to(dtype)
    shape_CV = (min(chunk_size, rows_R.numel()), head_VD.shape[0])
    return _Side(
        form,
        hidden_RD,
        head_VD,
        bias_V,
        grad_hidden_RD=torch.zeros_like(hidden_RD, dtype=dtype) if needs.hidden else None,
        grad_head_VD=torch.zeros_like(head_VD, dtype=dtype) if needs.head else None,
        grad_bias_V=torch.zeros_like(bias_V) if needs.bias and bias_V is not None else None,
        tanh_CV=None if form.cap is None else hidden_RD.new_empty(shape_CV, dtype=dtype),
    )


class _BranchCrossEntropy(torch.autograd.Function):
    """Inputs after the fixed ones: hidden, head and bias of every branch, one after the other.

    autograd takes tensors as flat arguments only; `_Inputs` and `_Needs` give the three of a branch their names back.
    """

    NUM_FIXED = 7

    @staticmethod
    def forward(
        ctx: Any,
        labels: Tensor,
        rows_R: Tensor,
        forms: list[_Form],
        chunk_size: int,
        scale: float,
        grad_enabled: bool,
        operand_dtype: torch.dtype | None,
        *inputs: Tensor | None,
    ) -> Tensor:
        needed = [grad_enabled and each for each in ctx.needs_input_grad[_BranchCrossEntropy.NUM_FIXED :]]
        starts = range(0, len(inputs), len(_Inputs._fields))
        branches = [_Inputs(*inputs[start : start + len(_Inputs._fields)]) for start in starts]  # type: ignore[arg-type]
        needs = [_Needs(*needed[start : start + len(_Needs._fields)]) for start in starts]
        # All products go into one buffer, so one precision serves every branch.
        dtype = compute_dtype(*(tensor for tensor in inputs if tensor is not None))
        sides = [
            _side(
                branch,
                asked,
                form=form,
                rows_R=rows_R,
                dtype=dtype,
                chunk_size=chunk_size,
                operand_dtype=operand_dtype,
            )
            for branch, asked, form in zip(branches, needs, forms, strict=True)
        ]
        seen = [side for side in sides if side.weight != 0.0]
        labels_R = labels.index_select(0, rows_R).long()
        num_rows, vocab_size = rows_R.numel(), sides[0].head_VD.shape[0]
        buffer_CV = labels.new_empty((min(chunk_size, num_rows), vocab_size), dtype=dtype)
        # The sum over rows is taken in float64: it is one number, and float32 would lose a digit over long batches.
        total = torch.zeros((), dtype=torch.float64, device=labels.device)

        for start in range(0, num_rows, chunk_size):
            chunk = slice(start, min(start + chunk_size, num_rows))
            z_CV = buffer_CV[: chunk.stop - chunk.start].zero_()
            for side in seen:
                side.add_logits_(z_CV, chunk)
            nll_C, grad_CV = loss_and_logit_gradient_(
                z_CV, labels_R[chunk], scale=scale, rounded_to=operand_dtype, wants_gradient=any(needed)
            )
            total += nll_C.sum(dtype=torch.float64)
            if grad_CV is not None:
                for side in seen:
                    side.accumulate_gradients(grad_CV, chunk)

        of_each = (side.gradients_of(branch, rows_R) for side, branch in zip(sides, branches, strict=True))
        ctx.gradients = list(chain.from_iterable(of_each))
        return (total * scale).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("this loss can be differentiated once only; compute it again")
        # In place: a second [V, D] tensor for each head would be the largest of the whole step.
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss.to(gradient.dtype))
        return (*(None,) * _BranchCrossEntropy.NUM_FIXED, *gradients)


def _check_branch(name: str, branch: LogitBranch, labels: Tensor) -> None:
    hidden, head, bias = branch.hidden, branch.head, branch.bias
    if not (math.isfinite(branch.weight) and branch.weight >= 0.0):
        raise ValueError(f"weight of the {name} branch: expected a finite number >= 0, got {branch.weight}")
    if not (math.isfinite(branch.scale) and branch.scale != 0.0):
        raise ValueError(f"scale of the {name} branch: expected a finite number other than 0, got {branch.scale}")
    if branch.cap is not None and not (math.isfinite(branch.cap) and branch.cap > 0.0):
        raise ValueError(f"cap of the {name} branch: expected a finite number > 0 or None, got {branch.cap}")
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
