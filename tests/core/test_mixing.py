"""The mixed loss against the full-logit float64 reference: values, all gradients, edges, and memory.

pytest tests/core/test_mixing.py
"""

import pytest
import torch

from tests import reference
from tests.core.mixes import make_inputs, relative_error
from wmss.core import mixing
from wmss.core.mixing import LogitBranch, _side, branch_cross_entropy, mixed_linear_cross_entropy, mixing_weight_at

NAMES = ("strong_hidden", "strong_head", "weak_hidden", "weak_head", "strong_bias", "weak_bias")


def run(function, tensors, labels, *, dtype, frozen=(), **options):
    leaves = {name: tensor.detach().to(dtype).requires_grad_(name not in frozen) for name, tensor in tensors.items()}
    loss = function(
        leaves["strong_hidden"],
        leaves["strong_head"],
        leaves["weak_hidden"],
        leaves["weak_head"],
        labels,
        strong_bias=leaves.get("strong_bias"),
        weak_bias=leaves.get("weak_bias"),
        **options,
    )
    loss.backward()
    return loss.detach(), {name: leaf.grad for name, leaf in leaves.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize("mixing_weight", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("frozen", [(), ("weak_hidden", "weak_head", "weak_bias")])
def test_equals_full_logit_reference(dtype, tolerance, mixing_weight, bias, reduction, frozen):
    tensors, labels = make_inputs(bias=bias)
    options = {"mixing_weight": mixing_weight, "reduction": reduction}
    truth, truth_grads = run(reference.mixed_cross_entropy, tensors, labels, dtype=torch.float64, **options)
    loss, grads = run(mixed_linear_cross_entropy, tensors, labels, dtype=dtype, frozen=frozen, chunk_size=7, **options)
    assert relative_error(loss, truth) <= tolerance
    for name in tensors:
        if name in frozen:
            assert grads[name] is None
        else:
            assert relative_error(grads[name], truth_grads[name]) <= tolerance, name


@pytest.mark.parametrize("chunk_size", [1, 2, 29, 30, 31, 1000, None])
def test_chunk_size_changes_nothing(chunk_size):
    tensors, labels = make_inputs()
    truth, truth_grads = run(mixed_linear_cross_entropy, tensors, labels, dtype=torch.float64, mixing_weight=0.42)
    loss, grads = run(
        mixed_linear_cross_entropy, tensors, labels, dtype=torch.float64, mixing_weight=0.42, chunk_size=chunk_size
    )
    assert relative_error(loss, truth) <= 1e-14
    assert max(relative_error(grads[name], truth_grads[name]) for name in tensors) <= 1e-13


def test_branches_of_different_precision():
    tensors, labels = make_inputs()
    single = {name: t.float() if name.startswith("weak") else t for name, t in tensors.items()}
    loss = mixed_linear_cross_entropy(**single, labels=labels.int(), mixing_weight=0.5)
    rounded = {name: t.double() for name, t in single.items()}
    truth = reference.mixed_cross_entropy(**rounded, labels=labels, mixing_weight=0.5)
    assert loss.dtype == torch.float64
    assert relative_error(loss, truth) <= 1e-14


def test_by_hand():
    # Two words; strong logits (2, 0), weak logits (0, 2), λ = 0.75: mixed (1.5, 0.5), loss of word 0 = log(1 + e^-1).
    hidden = torch.ones(1, 1, dtype=torch.float64)
    strong_head = torch.tensor([[2.0], [0.0]], dtype=torch.float64)
    weak_head = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    loss = mixed_linear_cross_entropy(hidden, strong_head, hidden, weak_head, torch.tensor([0]), mixing_weight=0.75)
    assert float(loss) == pytest.approx(0.31326168751822286, rel=1e-15)


def test_gradient_of_strong_rows_is_closed_form():
    """Eq. 22: with an identity head, ∂L/∂z_strong = λ (P_mix − onehot); its rows sum to 0 and ignored rows are 0."""
    vocabulary = 11
    logits = torch.randn(2, 6, vocabulary, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([3, -100, 0, 10, -100, 5])
    eye = torch.eye(vocabulary, dtype=torch.float64)
    strong = logits[0].clone().requires_grad_()
    mixed_linear_cross_entropy(strong, eye, logits[1], eye, labels, mixing_weight=0.3, reduction="sum").backward()
    mixed = torch.softmax(0.3 * logits[0] + 0.7 * logits[1], dim=-1)
    expected = 0.3 * (mixed - torch.nn.functional.one_hot(labels.clamp(min=0), vocabulary))
    expected[labels < 0] = 0
    torch.testing.assert_close(strong.grad, expected, rtol=1e-12, atol=1e-14)
    assert strong.grad.sum(dim=1).abs().max() < 1e-14


def test_identical_branches_make_the_mixing_weight_irrelevant():
    tensors, labels = make_inputs(weak_width=12)
    same = tensors | {"weak_hidden": tensors["strong_hidden"], "weak_head": tensors["strong_head"]}
    same["weak_bias"] = same["strong_bias"]
    losses = [
        run(mixed_linear_cross_entropy, same, labels, dtype=torch.float64, mixing_weight=w)[0] for w in (0.0, 0.4, 1.0)
    ]
    assert max(losses) - min(losses) < 1e-13


def test_micro_batches_add_up_to_the_batch():
    tensors, labels = make_inputs()
    whole, whole_grads = run(
        mixed_linear_cross_entropy, tensors, labels, dtype=torch.float64, mixing_weight=0.5, reduction="sum"
    )
    parts = []
    for rows in (slice(0, 10), slice(10, 37)):
        part = tensors | {name: tensors[name][rows] for name in ("strong_hidden", "weak_hidden")}
        parts.append(
            run(mixed_linear_cross_entropy, part, labels[rows], dtype=torch.float64, mixing_weight=0.5, reduction="sum")
        )
    assert relative_error(parts[0][0] + parts[1][0], whole) <= 1e-14
    for name in ("strong_head", "weak_head", "strong_bias"):
        assert relative_error(parts[0][1][name] + parts[1][1][name], whole_grads[name]) <= 1e-13


def test_products_of_bfloat16_factors_are_no_worse_than_full_logits_in_bfloat16():
    tensors, labels = make_inputs(rows=400, vocabulary=300, strong_width=64, weak_width=48)
    truth, truth_grads = run(reference.mixed_cross_entropy, tensors, labels, dtype=torch.float64, mixing_weight=0.5)
    naive, naive_grads = run(reference.mixed_cross_entropy, tensors, labels, dtype=torch.bfloat16, mixing_weight=0.5)
    options = {"mixing_weight": 0.5, "operand_dtype": torch.bfloat16, "chunk_size": 150}
    loss, grads = run(mixed_linear_cross_entropy, tensors, labels, dtype=torch.float32, **options)
    assert relative_error(loss, truth) <= relative_error(naive, truth)
    for name in tensors:
        assert grads[name].dtype == torch.float32
        assert relative_error(grads[name], truth_grads[name]) <= relative_error(naive_grads[name], truth_grads[name])


def test_factors_are_rounded_to_bfloat16_and_sums_are_not():
    tensors, labels = make_inputs()
    rounded = {name: t.bfloat16().double() if "bias" not in name else t for name, t in tensors.items()}
    truth, _ = run(reference.mixed_cross_entropy, rounded, labels, dtype=torch.float64, mixing_weight=0.5)
    options = {"mixing_weight": 0.5, "operand_dtype": torch.bfloat16}
    loss, _ = run(mixed_linear_cross_entropy, tensors, labels, dtype=torch.float32, **options)
    assert relative_error(loss, truth) <= 2e-6


def test_bfloat16_is_no_worse_than_full_logits_in_bfloat16():
    tensors, labels = make_inputs(rows=64, vocabulary=256, strong_width=64, weak_width=64, bias=False)
    rounded = {name: tensor.bfloat16().double() for name, tensor in tensors.items()}
    truth, truth_grads = run(reference.mixed_cross_entropy, rounded, labels, dtype=torch.float64, mixing_weight=0.5)
    naive, naive_grads = run(reference.mixed_cross_entropy, rounded, labels, dtype=torch.bfloat16, mixing_weight=0.5)
    loss, grads = run(mixed_linear_cross_entropy, rounded, labels, dtype=torch.bfloat16, mixing_weight=0.5)
    assert loss.dtype == torch.float32
    assert relative_error(loss, truth) <= relative_error(naive, truth) + 1e-6
    for name in rounded:
        error, naive_error = (relative_error(g[name], truth_grads[name]) for g in (grads, naive_grads))
        assert error <= naive_error + 1e-6, name
        assert error <= 4e-3, name


def test_large_logits_do_not_overflow():
    tensors, labels = make_inputs()
    huge = {name: tensor * 200 for name, tensor in tensors.items()}
    truth, _ = run(reference.mixed_cross_entropy, huge, labels, dtype=torch.float64, mixing_weight=0.5)
    loss, grads = run(mixed_linear_cross_entropy, huge, labels, dtype=torch.float32, mixing_weight=0.5)
    assert relative_error(loss, truth) <= 2e-6
    assert all(torch.isfinite(grad).all() for grad in grads.values())


def test_no_supervised_row():
    tensors, labels = make_inputs()
    ignored = torch.full_like(labels, -100)
    loss, grads = run(
        mixed_linear_cross_entropy, tensors, ignored, dtype=torch.float32, mixing_weight=0.5, reduction="sum"
    )
    assert float(loss) == 0.0
    assert all(float(grad.abs().max()) == 0.0 for grad in grads.values())
    with pytest.raises(ValueError, match=r"labels: expected at least one supervised row.*reduction=\"sum\""):
        run(mixed_linear_cross_entropy, tensors, ignored, dtype=torch.float32, mixing_weight=0.5)


def test_nothing_is_computed_for_what_needs_no_gradient():
    tensors, labels = make_inputs(bias=False)
    with torch.no_grad():
        loss = mixed_linear_cross_entropy(*(tensors[name] for name in NAMES[:4]), labels, mixing_weight=0.5)
    assert not loss.requires_grad
    hidden = tensors["strong_hidden"].clone().requires_grad_()
    rest = [tensors[name] for name in NAMES[1:4]]
    loss = mixed_linear_cross_entropy(hidden, *rest, labels, mixing_weight=0.5)
    assert [None if g is None else g.shape for g in loss.grad_fn.gradients] == [hidden.shape, *(None,) * 5]


def test_second_backward_is_refused():
    tensors, labels = make_inputs(bias=False)
    hidden = tensors["strong_hidden"].clone().requires_grad_()
    loss = mixed_linear_cross_entropy(hidden, *(tensors[name] for name in NAMES[1:4]), labels, mixing_weight=0.5)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once only"):
        loss.backward()


def softmax_of_sum(branches, labels):
    logits = sum(b.weight * (b.hidden @ b.head.T + (0 if b.bias is None else b.bias)) for b in branches)
    return torch.nn.functional.cross_entropy(logits, labels)


def leaf(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("num_weak", [0, 1, 3])
def test_any_number_of_branches(num_weak):
    labels = make_inputs()[1]
    weights = [0.4, *(0.1 * number for number in range(1, num_weak + 1))]
    branches = [
        LogitBranch(leaf(37, 5 + i, seed=i), leaf(53, 5 + i, seed=10 + i), leaf(53, seed=20 + i), weight)
        for i, weight in enumerate(weights)
    ]
    inputs = [tensor for branch in branches for tensor in branch[:3]]
    loss, truth = branch_cross_entropy(branches, labels, chunk_size=8), softmax_of_sum(branches, labels)
    assert relative_error(loss, truth) <= 1e-14
    expected = torch.autograd.grad(truth, inputs)
    for gradient, true_gradient in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
        assert relative_error(gradient, true_gradient) <= 1e-13


def test_frozen_head_of_several_branches_is_projected_once(monkeypatch):
    labels = make_inputs()[1]
    head, bias = leaf(53, 6, seed=1).detach(), leaf(53, seed=2).detach()
    branches = [LogitBranch(leaf(37, 6, seed=3 + i), head, bias, weight) for i, weight in enumerate((0.4, 0.35, 0.25))]
    hidden = [branch.hidden for branch in branches]
    sides = []
    monkeypatch.setattr(mixing, "_side", lambda *a, **k: sides.append(side := _side(*a, **k)) or side)
    loss, truth = branch_cross_entropy(branches, labels), softmax_of_sum(branches, labels)
    assert len(sides) == 1
    assert relative_error(loss, truth) <= 1e-14
    expected = torch.autograd.grad(truth, hidden)
    for gradient, true_gradient in zip(torch.autograd.grad(loss, hidden), expected, strict=True):
        assert relative_error(gradient, true_gradient) <= 1e-13


def test_schedule_of_the_mixing_weight():
    def values(schedule, num_steps=5):
        return [
            mixing_weight_at(step, num_steps=num_steps, start=0.5, end=0.9, schedule=schedule)
            for step in range(num_steps)
        ]

    assert values("constant") == [0.5] * 5
    assert values("linear") == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9], abs=1e-15)
    assert values("cosine") == pytest.approx([0.5, 0.558579, 0.7, 0.841421, 0.9], abs=1e-6)
    assert values("linear")[-1] == values("cosine")[-1] == 0.9
    assert values("linear", num_steps=1) == [0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixing_weight": 1.1}, r"mixing_weight: expected a number in \[0, 1\], got 1.1"),
        ({"mixing_weight": float("nan")}, r"mixing_weight: expected"),
        ({"reduction": "none"}, r'reduction: expected "mean" or "sum"'),
        ({"weak_head": torch.zeros(52, 7)}, r"vocabulary sizes differ: 53 vs 52"),
        ({"weak_head": torch.zeros(53, 8)}, r"weak_hidden and weak_head: expected \[N, D\] and \[V, D\]"),
        ({"labels": torch.zeros(36, dtype=torch.long)}, r"labels: expected \[37\]"),
        ({"labels": torch.full((37,), 53)}, r"labels: expected values in \[0, 53\) or -100, got 53..53"),
        ({"labels": torch.zeros(37)}, r"labels: expected int64 or int32, got torch.float32"),
        ({"labels": torch.full((37,), -1)}, r"labels: expected values in \[0, 53\)"),
        ({"strong_bias": torch.zeros(52)}, r"strong_bias: expected \[53\], got \[52\]"),
        ({"chunk_size": 0}, r"chunk_size: expected a positive number of rows, got 0"),
    ],
)
def test_refusals(change, message):
    tensors, labels = make_inputs(bias=False)
    arguments = {**tensors, "labels": labels, "mixing_weight": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        mixed_linear_cross_entropy(**arguments)


def peak_bytes(rows: int, vocabulary: int) -> int:
    """Most tensor bytes alive at once inside the loss and its backward, beyond inputs and their gradients."""
    from tests.memory import PeakTensorBytes

    tensors, labels = make_inputs(rows=rows, vocabulary=vocabulary, strong_width=4, weak_width=4, bias=False)
    leaves = {name: tensor.float().requires_grad_() for name, tensor in tensors.items()}
    with PeakTensorBytes() as tracker:
        mixed_linear_cross_entropy(**leaves, labels=labels, mixing_weight=0.5, chunk_size=16).backward()
    # Gradients (and the copies of supervised rows) grow with N·D and V·D, which no implementation can avoid.
    linear = sum(4 * tensor.numel() for tensor in leaves.values())
    return tracker.peak - 3 * linear


def test_memory_does_not_grow_with_rows_times_vocabulary():
    vocabulary = 8192
    few, many = peak_bytes(128, vocabulary), peak_bytes(4096, vocabulary)
    full_logits = 4 * (4096 - 128) * vocabulary
    assert many - few < 0.02 * full_logits
    assert many < 0.05 * 4 * 4096 * vocabulary


def test_a_capped_and_a_scaled_branch_equal_full_logits():
    """Values and all gradients, also where both share one frozen head, which must not be merged then."""
    tensors, labels = make_inputs()
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    strong, weak = (
        LogitBranch(leaves[f"{name}_hidden"], leaves[f"{name}_head"], leaves[f"{name}_bias"], weight, scale, cap)
        for name, weight, scale, cap in (("strong", 0.6, 0.7, 2.0), ("weak", 0.4, 3.0, None))
    )
    loss = branch_cross_entropy([strong, weak], labels, chunk_size=7)
    found = torch.autograd.grad(loss, list(leaves.values()))
    logits = [each.hidden @ each.head.t() + each.bias for each in (strong, weak)]
    mixed = 0.6 * 2.0 * torch.tanh(0.7 * logits[0] / 2.0) + 0.4 * 3.0 * logits[1]
    truth = torch.nn.functional.cross_entropy(mixed, labels)
    wanted = torch.autograd.grad(truth, list(leaves.values()))
    assert relative_error(loss, truth) <= 1e-14
    for gradient, true in zip(found, wanted, strict=True):
        assert relative_error(gradient, true) <= 1e-12
    frozen = strong._replace(head=strong.head.detach(), bias=strong.bias.detach())
    pair = [frozen, frozen._replace(hidden=frozen.hidden * 2, weight=0.4, cap=None)]
    parts = [each.weight * each.cap_(each.hidden @ each.head.t() + each.bias) for each in pair]
    shared = torch.nn.functional.cross_entropy(sum(parts), labels)
    assert relative_error(branch_cross_entropy(pair, labels), shared) <= 1e-14


@pytest.mark.parametrize("form", [{"scale": 0.0}, {"scale": float("nan")}, {"cap": 0.0}, {"cap": float("inf")}])
def test_forms_of_logits_out_of_range_are_refused(form):
    tensors, labels = make_inputs()
    branch = LogitBranch(tensors["strong_hidden"], tensors["strong_head"], **form)
    with pytest.raises(ValueError, match=f"{next(iter(form))} of the strong branch: expected a finite number"):
        branch_cross_entropy([branch], labels)
