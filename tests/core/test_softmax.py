"""Losses and gradients of a chunk of logits: in place as on CPUs, and out of place as a compiler fuses it on GPUs.

pytest tests/core/test_softmax.py
"""

import pytest
import torch
from torch.nn import functional

from wmss.core import softmax
from wmss.core.softmax import loss_and_logit_gradient_

SCALE = 0.125


def chunk():
    generator = torch.Generator().manual_seed(0)
    # One row is certain of its label: its gradient is a difference of almost equal numbers.
    logits = torch.randn(6, 40, generator=generator) * 3
    labels = torch.randint(40, (6,), generator=generator)
    logits[2, labels[2]] = 25.0
    return logits, labels


def truth(logits, labels):
    exact = logits.double().requires_grad_()
    losses = functional.cross_entropy(exact, labels, reduction="none")
    (losses.sum() * SCALE).backward()
    return losses.detach(), exact.grad


def test_in_place():
    logits, labels = chunk()
    losses, gradient = truth(logits, labels)
    buffer = logits.clone()
    found, factor = loss_and_logit_gradient_(buffer, labels, scale=SCALE, rounded_to=None, wants_gradient=True)
    torch.testing.assert_close(found.double(), losses, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factor.double(), gradient, rtol=1e-5, atol=1e-8)
    assert factor.data_ptr() == buffer.data_ptr()


def test_without_a_gradient():
    logits, labels = chunk()
    losses, _ = truth(logits, labels)
    found, factor = loss_and_logit_gradient_(logits, labels, scale=SCALE, rounded_to=None, wants_gradient=False)
    torch.testing.assert_close(found.double(), losses, rtol=1e-6, atol=1e-7)
    assert factor is None


def test_out_of_place():
    logits, labels = chunk()
    losses, gradient = truth(logits, labels)
    found, factor = softmax._loss_and_logit_gradient(logits, labels, SCALE, torch.bfloat16)
    torch.testing.assert_close(found.double(), losses, rtol=1e-6, atol=1e-6)
    assert factor.dtype == torch.bfloat16
    # Rounded once, after the label's 1 was taken away: the certain row keeps its digits.
    torch.testing.assert_close(factor.double(), gradient, rtol=2**-8, atol=1e-7)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")
def test_compiled():
    logits, labels = chunk()
    for rows in (6, 4):
        expected = softmax._loss_and_logit_gradient(logits[:rows], labels[:rows], SCALE, torch.bfloat16)
        found = softmax._fused()(logits[:rows], labels[:rows], SCALE, torch.bfloat16)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-6)
