"""The loss and the entropy on a CUDA device, against the float64 reference on the CPU.

pytest -m gpu tests/gpu
"""

import pytest
import torch

from benchmarks.models import Shape, loss_and_gradients, make_batch, make_model, make_samples
from tests import reference
from tests.core.mixes import make_inputs, relative_error
from wmss.config import Hyperparameters
from wmss.core.entropy import token_entropy
from wmss.core.mixing import mixed_linear_cross_entropy
from wmss.models.packed_attention import Runs, _varlen_kernel, packed_attention
from wmss.training.branches import Branches, WeakModel
from wmss.training.optim import make_optimizer

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
    entropy = token_entropy(hidden.float().cuda(), head.float().cuda()).entropy
    truth = reference.entropy(hidden.float().double() @ head.float().double().T)
    torch.testing.assert_close(entropy.double().cpu(), truth, rtol=0, atol=1e-4)


def test_bfloat16_products_are_no_worse_than_full_logits_in_bfloat16():
    tensors, labels = make_inputs(rows=3000, vocabulary=5000, strong_width=256, weak_width=128, bias=False)
    truth, truth_grads = _run(reference.mixed_cross_entropy, tensors, labels, torch.float64)
    naive, naive_grads = _run(reference.mixed_cross_entropy, tensors, labels, torch.bfloat16)
    loss, grads = _run(
        mixed_linear_cross_entropy, tensors, labels, torch.float32, operand_dtype=torch.bfloat16, chunk_size=700
    )
    assert relative_error(loss.cpu(), truth.cpu()) <= relative_error(naive.cpu(), truth.cpu())
    for name in tensors:
        ours, theirs = (relative_error(found[name], truth_grads[name]) for found in (grads, naive_grads))
        assert ours <= theirs, name


def _run(function, tensors, labels, dtype, **options):
    leaves = {name: tensor.to("cuda", dtype).requires_grad_() for name, tensor in tensors.items()}
    loss = function(**leaves, labels=labels.cuda(), mixing_weight=0.4, **options)
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.skipif(_varlen_kernel() is None, reason="this torch has no varlen attention with windows")
@pytest.mark.parametrize("window", [None, 5])
def test_varlen_attention_equals_runs_of_sdpa(window):
    torch.manual_seed(0)
    lengths = [40, 17, 17, 3]
    q, k, v = (
        torch.randn(1, heads, sum(lengths), 64, device="cuda", dtype=torch.float64, requires_grad=True)
        for heads in (8, 2, 2)
    )
    found = {}
    for dtype in (torch.float64, torch.bfloat16):
        output, _ = packed_attention(
            None, *(t.to(dtype) for t in (q, k, v)), None, packed_runs=Runs(lengths), sliding_window=window
        )
        found[dtype] = (output, *torch.autograd.grad(output.double().square().sum(), (q, k, v)))
    for near, exact in zip(found[torch.bfloat16], found[torch.float64], strict=True):
        assert relative_error(near, exact) <= 1e-2


@pytest.mark.parametrize("trained", [True, False], ids=["joint", "frozen"])
def test_a_step_in_bfloat16_is_near_float32(trained):
    shape = Shape(vocabulary=4096, width=256, layers=3)
    batch = make_batch(make_samples([100, 60, 60, 7], vocabulary=4096), device="cuda")
    found = {}
    for bfloat16 in (False, True):
        weak = WeakModel(make_model(shape, seed=1), trained=trained)
        branches = Branches(make_model(shape, seed=0), [weak], bfloat16=bfloat16).cuda()
        found[bfloat16] = loss_and_gradients(branches, batch)
    for name, exact in found[False].items():
        assert relative_error(found[True][name], exact) <= 3e-2, name


def test_8_bit_moments_move_weights_as_32_bit_ones_do():
    pytest.importorskip("torchao")
    moved = {}
    for optimizer in ("adamw", "adamw_8bit"):
        torch.manual_seed(0)
        model = torch.nn.Linear(512, 512, bias=False, device="cuda")
        start = model.weight.detach().clone()
        stepper = make_optimizer(model, Hyperparameters(learning_rate=1e-3, optimizer=optimizer))
        inputs = torch.randn(256, 512, device="cuda")
        for _ in range(10):
            (model(inputs) - inputs).square().mean().backward()
            stepper.step()
            stepper.zero_grad(set_to_none=True)
        moved[optimizer] = model.weight.detach() - start
    assert 0 < relative_error(moved["adamw_8bit"], moved["adamw"]) <= 0.1
