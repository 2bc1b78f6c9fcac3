"""Matrix products whose factors may be rounded to bfloat16 while their sums stay float32."""

import torch
from torch import Tensor


def operand(tensor: Tensor, *, dtype: torch.dtype, rounded_to: torch.dtype | None) -> Tensor:
    """`tensor` as a factor of `add_product_`: in `dtype`, or rounded to `rounded_to`.

    A CPU has no product of rounded factors with float32 sums, so there the rounded values are held in `dtype`: a
    product of two bfloat16 numbers is exact in float32, so the result is the same.
    """
    if rounded_to is None:
        return tensor.to(dtype)
    rounded = tensor.to(rounded_to)
    return rounded if tensor.is_cuda else rounded.to(dtype)


def add_product_(out: Tensor, left: Tensor, right: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> None:
    """out [M, N] ← beta · out + alpha · left [M, K] · right [K, N], in place, with sums in `out`'s precision."""
    if left.dtype == out.dtype:
        out.addmm_(left, right, beta=beta, alpha=alpha)
    else:
        torch.addmm(out, left, right, out.dtype, beta=beta, alpha=alpha, out=out)
