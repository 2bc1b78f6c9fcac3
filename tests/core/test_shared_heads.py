"""Branches on one frozen head are one product; what differs between them, a bias, is not shared."""

import pytest
import torch

from wmss.core.mixing import mixed_linear_cross_entropy


@pytest.mark.parametrize("biases", [(0, 1), (None, 1), (0, None), (0, 0), (None, None)])
def test_each_branch_keeps_its_own_bias(biases):
    generator = torch.Generator().manual_seed(0)
    strong_RD, weak_RD, head_VD, stored = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((5, 8), (5, 8), (11, 8), (2, 11))
    )
    strong_V, weak_V = (None if number is None else stored[number].clone().requires_grad_() for number in biases)
    if biases == (0, 0):
        weak_V = strong_V
    labels = torch.arange(5)
    logits = [
        hidden @ head_VD.T + (0 if bias is None else bias)
        for hidden, bias in ((strong_RD, strong_V), (weak_RD, weak_V))
    ]
    expected = torch.nn.functional.cross_entropy(0.3 * logits[0] + 0.7 * logits[1], labels)
    loss = mixed_linear_cross_entropy(
        strong_RD, head_VD, weak_RD, head_VD, labels, mixing_weight=0.3, strong_bias=strong_V, weak_bias=weak_V
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    trained = list({id(bias): bias for bias in (strong_V, weak_V) if bias is not None}.values())
    if trained:
        for found, wanted in zip(
            torch.autograd.grad(loss, trained), torch.autograd.grad(expected, trained), strict=True
        ):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)
