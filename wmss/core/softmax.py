"""From one chunk of mixed logits to its losses and to the gradient of the logits.

Shape suffixes: C rows of one chunk, V vocabulary.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from wmss.core.products import operand


def loss_and_logit_gradient_(
    z_CV: Tensor, labels_C: Tensor, *, scale: float, rounded_to: torch.dtype | None, wants_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """−log softmax(z)[label] of each row [C], and scale · (softmax(z) − onehot) [C, V] as a factor of a product.

    The logits `z_CV` are **overwritten**.
    """
    if rounded_to is not None and z_CV.is_cuda and wants_gradient:
        return _fused()(z_CV, labels_C, scale, rounded_to)
    label_C1 = labels_C.unsqueeze(1)
    z_CV.sub_(z_CV.amax(dim=1, keepdim=True))
    target_C1 = z_CV.gather(1, label_C1)
    z_CV.exp_()
    normaliser_C1 = z_CV.sum(dim=1, keepdim=True)
    nll_C = (normaliser_C1.log() - target_C1).squeeze(1)
    if not wants_gradient:
        return nll_C, None
    # In place: a second [C, V] tensor would double the peak.
    z_CV.div_(normaliser_C1)
    z_CV.scatter_add_(1, label_C1, torch.full_like(target_C1, -1.0))
    z_CV.mul_(scale)
    return nll_C, operand(z_CV, dtype=z_CV.dtype, rounded_to=rounded_to)


def _loss_and_logit_gradient(
    z_CV: Tensor, labels_C: Tensor, scale: float, rounded_to: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The same out of place, for a compiler to fuse: two passes over the logits in place of ten."""
    maximum_C1 = z_CV.amax(dim=1, keepdim=True)
    normaliser_C1 = (z_CV - maximum_C1).exp().sum(dim=1, keepdim=True)
    log_normaliser_C1 = maximum_C1 + normaliser_C1.log()
    label_C1 = labels_C.unsqueeze(1)
    nll_C = (log_normaliser_C1 - z_CV.gather(1, label_C1)).squeeze(1)
    onehot_CV = torch.arange(z_CV.shape[1], device=z_CV.device) == label_C1
    gradient_CV = ((z_CV - log_normaliser_C1).exp() - onehot_CV.to(z_CV.dtype)) * scale
    return nll_C, gradient_CV.to(rounded_to)


@cache
def _fused() -> Callable[[Tensor, Tensor, float, torch.dtype], tuple[Tensor, Tensor]]:
    """Compiled once a process; `dynamic`, or the last chunk, which is shorter, would be compiled anew."""
    return torch.compile(_loss_and_logit_gradient, dynamic=True)
