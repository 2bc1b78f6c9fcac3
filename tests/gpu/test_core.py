"""The loss and the entropy on a CUDA device, against the float64 reference on the CPU.

pytest -m gpu tests/gpu
"""

import pytest
import torch

from tests import reference
from tests.core.mixes import make_inputs, relative_error
from wmss.core.entropy import token_entropy
from wmss.core.mixing import mixed_linear_cross_entropy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6), (torch.bfloat16, 4e-3)]
)
def test_mixed_loss(dtype, tolerance):
    tensors, labels = make_inputs(rows=3000, vocabulary=1000, strong_width=64, weak_width=32)
    rounded = {name: tensor.to(dtype).double().requires_grad_() for name, tensor in tensors.items()}
    truth = reference.mixed_cross_entropy(**rounded, labels=labels, mixing_weight=0.3)
    truth.backward()
    leaves = {name: tensor.detach().to("cuda", dtype).requires_grad_() for name, tensor in rounded.items()}
    loss = mixed_linear_cross_entropy(**leaves, labels=labels.cuda(), mixing_weight=0.3)
    loss.backward()
    assert relative_error(loss.detach().cpu(), truth.detach()) <= tolerance
    for name, leaf in leaves.items():
        assert relative_error(leaf.grad.cpu(), rounded[name].grad) <= tolerance, name


def test_entropy():
    tensors, _ = make_inputs(rows=3000, vocabulary=1000, strong_width=64, bias=False)
    hidden, head = tensors["strong_hidden"], tensors["strong_head"]
    entropy, _ = token_entropy(hidden.float().cuda(), head.float().cuda())
    truth = reference.entropy(hidden.float().double() @ head.float().double().T)
    torch.testing.assert_close(entropy.double().cpu(), truth, rtol=0, atol=1e-4)
