"""Statements about the mixed loss (T1 to T10) and what follows from them (D1 to D5); a test's name says its statement.

Logits are tabular: hidden states that go through an identity head. "Amplified" is said of one of two quantities, and
every test names its own: the gradient on the *fused* logits, P_mix(k) against P_s(k), which is what the paper
compares; or the gradient that the *strong branch* receives, λ P_mix(k) against the P_s(k) of plain fine-tuning.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from wmss.core.mixing import LogitBranch, branch_cross_entropy, mixed_linear_cross_entropy
from wmss.core.telemetry import mix_statistics, statistics_of

ROWS, VOCABULARY = 40, 30
EYE = torch.eye(VOCABULARY, dtype=torch.float64)
every_weight = pytest.mark.parametrize("mixing_weight", [0.02, 0.3, 0.5, 0.8, 0.98])
every_draw = pytest.mark.parametrize("seed", [0, 1, 2])


def draw(seed: int, *, rows: int = ROWS, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor, Tensor]:
    """Strong and weak logits [rows, V], related as two checkpoints of one run are, and targets [rows]."""
    generator = torch.Generator().manual_seed(seed)
    strong = 2.0 * torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, vocabulary, generator=generator, dtype=torch.float64)
    return strong, 0.6 * strong + noise, torch.randint(vocabulary, (rows,), generator=generator)


def identity(logits: Tensor) -> Tensor:
    return torch.eye(logits.shape[1], dtype=logits.dtype)


def differentiate(branches, labels: Tensor) -> tuple[float, list[Tensor]]:
    """The product's summed loss of logits with weights, and its gradients."""
    leaves = [logits.clone().requires_grad_() for logits, _ in branches]
    sides = [
        LogitBranch(leaf, identity(leaf), None, weight) for leaf, (_, weight) in zip(leaves, branches, strict=True)
    ]
    loss = branch_cross_entropy(sides, labels, reduction="sum")
    loss.backward()
    return float(loss.detach()), [leaf.grad for leaf in leaves]


def mix(strong: Tensor, weak: Tensor, labels: Tensor, mixing_weight: float) -> Tensor:
    """P_mix as the product computes it: a third branch of zeros with weight 1 receives P_mix − e_y itself."""
    zeros = torch.zeros_like(strong)
    branches = [(strong, mixing_weight), (weak, 1.0 - mixing_weight), (zeros, 1.0)]
    return differentiate(branches, labels)[1][2] + one_hot(labels, strong)


def sft(strong: Tensor, labels: Tensor) -> Tensor:
    """P_s as the product computes it in plain fine-tuning."""
    return differentiate([(strong, 1.0)], labels)[1][0] + one_hot(labels, strong)


def one_hot(labels: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, like.shape[1]).to(like.dtype)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """m_k(z) = z[y] − z[k], [rows, V]."""
    return logits.gather(1, labels.unsqueeze(1)) - logits


def of_target(values: Tensor, labels: Tensor) -> Tensor:
    return values.gather(1, labels.unsqueeze(1))


def negatives(labels: Tensor, like: Tensor) -> Tensor:
    return one_hot(labels, like) == 0


def telemetry(strong: Tensor, weak: Tensor, labels: Tensor, mixing_weight: float) -> dict[str, float]:
    branches = [
        LogitBranch(strong, identity(strong), None, mixing_weight),
        LogitBranch(weak, identity(weak), None, 1.0 - mixing_weight),
    ]
    sums = mix_statistics(branches, labels, max_rows=len(labels))
    return dict(zip(statistics_of(2), (sums[:-1] / sums[-1]).tolist(), strict=True))


@every_weight
@every_draw
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_T1_branch_gradients_are_weighted_errors_of_the_mix(seed, mixing_weight, dtype, tolerance):
    """Also that each row's gradient sums to 0. Differentiated by autograd on full float64 logits."""
    strong, weak, labels = (t.to(dtype) if t.is_floating_point() else t for t in draw(seed))
    _, (to_strong, to_weak) = differentiate([(strong, mixing_weight), (weak, 1.0 - mixing_weight)], labels)
    mixed = mixing_weight * strong.double() + (1.0 - mixing_weight) * weak.double()
    leaf = mixed.requires_grad_()
    torch.nn.functional.cross_entropy(leaf, labels, reduction="sum").backward()
    error = torch.softmax(mixed.detach(), dim=1) - one_hot(labels, mixed)
    torch.testing.assert_close(leaf.grad, error, rtol=0, atol=1e-14)
    for gradient, weight in ((to_strong, mixing_weight), (to_weak, 1.0 - mixing_weight)):
        torch.testing.assert_close(gradient.double(), weight * error, rtol=0, atol=tolerance)
        assert gradient.sum(dim=1).abs().max() < tolerance


@every_weight
@every_draw
def test_T2_margins_mix_linearly(seed, mixing_weight):
    strong, weak, labels = draw(seed)
    log_mix = mix(strong, weak, labels, mixing_weight).log()
    expected = mixing_weight * margins(strong, labels) + (1.0 - mixing_weight) * margins(weak, labels)
    torch.testing.assert_close(margins(log_mix, labels), expected, rtol=0, atol=1e-8)


@every_weight
@every_draw
def test_T3_hard_negatives_gain_odds_on_the_fused_logits(seed, mixing_weight):
    """P_mix(k)/P_mix(y) > P_s(k)/P_s(y) for exactly the k in H, whose mass the telemetry reports."""
    strong, weak, labels = draw(seed)
    p_mix, p_strong = mix(strong, weak, labels, mixing_weight), sft(strong, labels)
    torch.testing.assert_close(
        (p_strong / of_target(p_strong, labels)).log(), -margins(strong, labels), rtol=0, atol=1e-8
    )
    hard = (margins(weak, labels) < margins(strong, labels)) & negatives(labels, strong)
    gains = p_mix / of_target(p_mix, labels) > p_strong / of_target(p_strong, labels)
    assert 0 < hard.sum() < hard.numel() - len(labels)
    assert torch.equal(gains & negatives(labels, strong), hard)
    mass = float((p_mix * hard).sum(dim=1).mean())
    assert telemetry(strong, weak, labels, mixing_weight)["hard_negative_mass"] == pytest.approx(mass, rel=1e-10)


@every_weight
@every_draw
def test_T4_when_a_negative_is_amplified_on_the_fused_logits(seed, mixing_weight):
    """P_mix(k) >= P_s(k) if and only if P_mix(y)/P_s(y) >= exp(−(1−λ) Δm_k)."""
    strong, weak, labels = draw(seed)
    p_mix, p_strong = mix(strong, weak, labels, mixing_weight), sft(strong, labels)
    gap = margins(strong, labels) - margins(weak, labels)
    of_targets = of_target(p_mix, labels) / of_target(p_strong, labels)
    torch.testing.assert_close(p_mix / p_strong, of_targets * torch.exp((1.0 - mixing_weight) * gap), rtol=1e-7, atol=0)
    amplified = (p_mix >= p_strong)[negatives(labels, strong)]
    condition = (of_targets >= torch.exp(-(1.0 - mixing_weight) * gap))[negatives(labels, strong)]
    assert torch.equal(amplified, condition)
    assert 0 < amplified.sum() < amplified.numel()


@every_weight
@every_draw
def test_T4_when_a_negative_is_amplified_in_the_gradient_of_the_strong_branch(seed, mixing_weight):
    """λ P_mix(k) > P_s(k) if and only if P_mix(k)/P_s(k) > 1/λ: fewer negatives than on the fused logits."""
    strong, weak, labels = draw(seed)
    _, (received, _) = differentiate([(strong, mixing_weight), (weak, 1.0 - mixing_weight)], labels)
    _, (plain,) = differentiate([(strong, 1.0)], labels)
    words = negatives(labels, strong)
    ratio = (mix(strong, weak, labels, mixing_weight) / sft(strong, labels))[words]
    stronger_push = received[words] > plain[words]
    assert torch.equal(stronger_push, ratio > 1.0 / mixing_weight)
    assert stronger_push.sum() < (ratio > 1.0).sum()


@every_weight
@every_draw
def test_T5_weak_margins_below_all_strong_ones_raise_negative_mass_on_the_fused_logits(seed, mixing_weight):
    strong, _, labels = draw(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    # Every other word comes nearer to the target, or stays.
    nearer = 3.0 * torch.rand(strong.shape, generator=generator, dtype=torch.float64) * negatives(labels, strong)
    weak = strong + nearer
    p_mix, p_strong = mix(strong, weak, labels, mixing_weight), sft(strong, labels)
    assert (of_target(p_mix, labels) <= of_target(p_strong, labels)).all()
    words = negatives(labels, strong)
    mass, plain_mass = (p_mix * words).sum(dim=1), (p_strong * words).sum(dim=1)
    assert (mass >= plain_mass).all()


def test_T5_says_nothing_of_the_gradient_of_the_strong_branch():
    """The same premise, and yet λ (1 − P_mix(y)) falls below 1 − P_s(y): what it receives is less than in SFT."""
    strong, _, labels = draw(0)
    weak = strong + 0.5 * negatives(labels, strong)
    received = differentiate([(strong, 0.5), (weak, 0.5)], labels)[1][0]
    plain = differentiate([(strong, 1.0)], labels)[1][0]
    assert (of_target(received, labels).abs() < of_target(plain, labels).abs()).all()


@every_weight
@every_draw
@pytest.mark.parametrize("moved", [0, 1])
def test_T6_a_shift_of_either_models_logits_changes_nothing(seed, mixing_weight, moved):
    strong, weak, labels = draw(seed)
    branches = [(strong, mixing_weight), (weak, 1.0 - mixing_weight)]
    loss, gradients = differentiate(branches, labels)
    shift = torch.linspace(-200.0, 300.0, ROWS, dtype=torch.float64).unsqueeze(1)
    branches[moved] = (branches[moved][0] + shift, branches[moved][1])
    shifted_loss, shifted_gradients = differentiate(branches, labels)
    assert shifted_loss == pytest.approx(loss, rel=1e-12)
    for gradient, shifted in zip(gradients, shifted_gradients, strict=True):
        torch.testing.assert_close(shifted, gradient, rtol=0, atol=1e-12)


def hessians(strong: Tensor, weak: Tensor, label: int, mixing_weight: float) -> tuple[Tensor, Tensor]:
    """∂²L/∂z_s∂z_s and ∂²L/∂z_w∂z_s, [V, V] each, by central differences of the product's gradients, one row a step."""
    size, step = len(strong), 1e-4
    labels = torch.full((2 * size,), label)
    steps = torch.cat([torch.eye(size), -torch.eye(size)]).double() * step
    _, (to_strong, to_weak) = differentiate(
        [(strong + steps, mixing_weight), (weak.expand(2 * size, -1), 1.0 - mixing_weight)], labels
    )
    return tuple((g[:size] - g[size:]) / (2 * step) for g in (to_strong, to_weak))


@every_weight
@every_draw
def test_T7_hessian_is_positive_semidefinite_and_couples_the_branches(seed, mixing_weight):
    strong, weak, labels = draw(seed, rows=1, vocabulary=8)
    p = mix(strong, weak, labels, mixing_weight)[0]
    fisher = torch.diag(p) - torch.outer(p, p)
    own, cross = hessians(strong[0], weak[0], int(labels), mixing_weight)
    torch.testing.assert_close(own, mixing_weight**2 * fisher, rtol=0, atol=1e-8)
    torch.testing.assert_close(cross, mixing_weight * (1.0 - mixing_weight) * fisher, rtol=0, atol=1e-8)
    assert torch.linalg.eigvalsh((own + own.T) / 2).min() > -1e-8
    assert (own @ torch.ones(8).double()).abs().max() < 1e-8


def test_T7_hessian_and_gradient_vanish_as_the_mix_becomes_certain():
    """Gradient shielding: of both branches, and of the coupling between them."""
    strong, weak, labels = draw(0, rows=1, vocabulary=8)
    sizes = []
    for bonus in (5.0, 15.0, 25.0):
        raised = weak + bonus * one_hot(labels, weak)
        _, gradients = differentiate([(strong, 0.5), (raised, 0.5)], labels)
        both = (*gradients, *hessians(strong[0], raised[0], int(labels), 0.5))
        sizes.append([float(value.norm()) for value in both])
    for earlier, later in pairwise(sizes):
        assert all(b < 0.05 * a for a, b in zip(earlier, later, strict=True))


@every_draw
def test_T8_limits_are_plain_fine_tuning_bit_for_bit(seed):
    strong, weak, labels = draw(seed)
    for branches, one, other in (([(strong, 1.0), (weak, 0.0)], 0, 1), ([(strong, 0.0), (weak, 1.0)], 1, 0)):
        loss, gradients = differentiate(branches, labels)
        plain, [gradient] = differentiate([branches[one]], labels)
        assert loss == plain
        assert torch.equal(gradients[one], gradient)
        assert not gradients[other].any()


@every_weight
@every_draw
def test_T8_equal_models_mix_to_themselves(seed, mixing_weight):
    strong, _, labels = draw(seed)
    torch.testing.assert_close(
        mix(strong, strong + 3.0, labels, mixing_weight), sft(strong, labels), rtol=0, atol=1e-13
    )


def test_T9_which_branch_takes_the_larger_share_of_the_squared_gradient_norm():
    """S(λ) = (1−λ)² + aλ² with the paper's centred norms; head gradients are λ (P−e) h_sᵀ and (1−λ) (P−e) h_wᵀ."""
    ratio = (1240.10 / 1191.33) ** 2
    crossover = 1.0 / (1.0 + math.sqrt(ratio))
    assert ratio == pytest.approx(1.0836, abs=5e-5)
    assert crossover == pytest.approx(0.490, abs=5e-4)
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(VOCABULARY, 4, generator=generator, dtype=torch.float64)
    state = torch.nn.functional.normalize(torch.randn(1, 4, generator=generator, dtype=torch.float64))

    def squared_norms(mixing_weight: float) -> tuple[float, float]:
        heads = [head.clone().requires_grad_(), 0.7 * head.clone()]
        heads[1] = heads[1].detach().requires_grad_()
        loss = mixed_linear_cross_entropy(
            state * math.sqrt(ratio), heads[0], state, heads[1], torch.tensor([3]), mixing_weight=mixing_weight
        )
        return tuple(float(g.square().sum()) for g in torch.autograd.grad(loss, heads))

    for weight in (0.1, 0.48, crossover, 0.5, 0.9):
        of_strong, of_weak = squared_norms(weight)
        share = ratio * weight**2 / ((1.0 - weight) ** 2 + ratio * weight**2)
        assert of_strong / (of_strong + of_weak) == pytest.approx(share, rel=1e-12)
        assert (of_strong > of_weak * (1 + 1e-9)) == (weight > crossover)


@every_weight
@every_draw
def test_T10_one_step_moves_tabular_logits_by_their_share_of_the_error(seed, mixing_weight):
    """K = I: Δz_i = −η s_i (P_mix − e_y), with s_s = λ and s_w = 1−λ."""
    strong, weak, labels = draw(seed)
    p_mix, rate = mix(strong, weak, labels, mixing_weight), 1e-3
    for number, share in ((0, mixing_weight), (1, 1.0 - mixing_weight)):
        leaves = [strong.clone().requires_grad_(), weak.clone().requires_grad_()]
        optimizer = torch.optim.SGD([leaves[number]], lr=rate)
        mixed_linear_cross_entropy(
            leaves[0], EYE, leaves[1], EYE, labels, mixing_weight=mixing_weight, reduction="sum"
        ).backward()
        optimizer.step()
        moved = leaves[number].detach() - (strong, weak)[number]
        words = negatives(labels, strong)
        torch.testing.assert_close(moved[words], (-rate * share * p_mix)[words], rtol=0, atol=1e-14)
        up = of_target(moved, labels)
        torch.testing.assert_close(up, rate * share * (1.0 - of_target(p_mix, labels)), rtol=0, atol=1e-14)


@every_weight
def test_T10_one_step_moves_linear_logits_through_their_kernel(mixing_weight):
    """z = W h has K = |h|² I for W; the change is exact, since z is linear in W."""
    strong, weak, labels = draw(0, rows=1)
    state = torch.tensor([[0.5, -2.0, 1.0]], dtype=torch.float64)
    kernel, rate = float(state.square().sum()), 1e-2
    # A head whose logits at `state` are the drawn ones.
    head = (strong.T @ state / kernel).requires_grad_()
    optimizer = torch.optim.SGD([head], lr=rate)
    mixed_linear_cross_entropy(state, head, weak, EYE, labels, mixing_weight=mixing_weight).backward()
    optimizer.step()
    error = mix(strong, weak, labels, mixing_weight) - one_hot(labels, strong)
    moved = state @ head.detach().T - strong
    torch.testing.assert_close(moved, -rate * mixing_weight * kernel * error, rtol=0, atol=1e-13)


@every_weight
@every_draw
def test_D1_mixed_loss_is_the_weighted_losses_less_the_divergence_for_any_target(seed, mixing_weight):
    strong, weak, _ = draw(seed, rows=1)
    generator = torch.Generator().manual_seed(seed + 50)
    target = torch.softmax(torch.randn(VOCABULARY, generator=generator, dtype=torch.float64), dim=0)

    def cross_entropy(branches) -> float:
        losses = [differentiate(branches, torch.tensor([word]))[0] for word in range(VOCABULARY)]
        return float(target @ torch.tensor(losses, dtype=torch.float64))

    divergence = telemetry(strong, weak, torch.tensor([0]), mixing_weight)["divergence"]
    assert divergence >= 0.0
    p_strong, p_weak = torch.softmax(strong, dim=1), torch.softmax(weak, dim=1)
    chernoff = -float((p_weak ** (1.0 - mixing_weight) * p_strong**mixing_weight).sum().log())
    assert divergence == pytest.approx(chernoff, rel=1e-10, abs=1e-13)
    mixed = cross_entropy([(strong, mixing_weight), (weak, 1.0 - mixing_weight)])
    alone = mixing_weight * cross_entropy([(strong, 1.0)]) + (1.0 - mixing_weight) * cross_entropy([(weak, 1.0)])
    assert mixed == pytest.approx(alone - divergence, rel=1e-12)


@every_weight
@every_draw
def test_D2_a_weak_model_that_knows_nothing_is_a_temperature(seed, mixing_weight):
    """Constant weak logits equal `strong_scaled`, softmax(λ z_s), in loss and in the strong branch's gradient."""
    strong, _, labels = draw(seed)
    constant = torch.full_like(strong, 2.5)
    loss, gradients = differentiate([(strong, mixing_weight), (constant, 1.0 - mixing_weight)], labels)
    scaled_loss, [scaled_gradient] = differentiate([(strong, mixing_weight)], labels)
    assert scaled_loss == pytest.approx(loss, rel=1e-13)
    torch.testing.assert_close(scaled_gradient, gradients[0], rtol=0, atol=1e-13)
    p_mix = mix(strong, constant, labels, mixing_weight)
    torch.testing.assert_close(p_mix, torch.softmax(mixing_weight * strong, dim=1), rtol=0, atol=1e-13)


@every_weight
def test_D3_mixed_logits_are_one_linear_layer_on_concatenated_states(mixing_weight):
    generator = torch.Generator().manual_seed(0)
    shapes = [(ROWS, 6), (VOCABULARY, 6), (ROWS, 4), (VOCABULARY, 4)]
    tensors = [torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    strong_hidden, strong_head, weak_hidden, weak_head = tensors
    labels = draw(0)[2]
    one = branch_cross_entropy(
        [
            LogitBranch(
                torch.cat([mixing_weight * strong_hidden, (1.0 - mixing_weight) * weak_hidden], dim=1),
                torch.cat([strong_head, weak_head], dim=1),
            )
        ],
        labels,
    )
    two = mixed_linear_cross_entropy(*tensors, labels, mixing_weight=mixing_weight)
    assert two.item() == pytest.approx(one.item(), rel=1e-14)
    for a, b in zip(torch.autograd.grad(two, tensors), torch.autograd.grad(one, tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def fit(strong: Tensor, branches, target: Tensor, *, mixing_weight: float) -> Tensor:
    """P_s after gradient descent of tabular strong logits [V] on the expected loss under `target` [V]."""
    size = len(target)
    labels = torch.arange(size)
    for _ in range(400):
        rows = strong.expand(size, -1)
        _, gradients = differentiate([(rows, mixing_weight), *branches], labels)
        strong = strong - (2.0 / mixing_weight**2) * (target @ gradients[0])
    return torch.softmax(strong, dim=0)


@pytest.mark.parametrize("mixing_weight", [0.3, 0.5, 0.8])
def test_D4_with_a_frozen_weak_the_strong_alone_ends_beyond_the_target_away_from_the_weak(mixing_weight):
    target = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    weak = torch.tensor([0.5, -0.3, 0.2, 0.1], dtype=torch.float64)
    start = torch.zeros(4, dtype=torch.float64)
    frozen = [(weak.expand(4, -1), 1.0 - mixing_weight)]
    found = fit(start, frozen, target, mixing_weight=mixing_weight)
    extrapolated = target ** (1.0 / mixing_weight) * torch.softmax(weak, 0) ** (-(1.0 - mixing_weight) / mixing_weight)
    torch.testing.assert_close(found, extrapolated / extrapolated.sum(), rtol=0, atol=1e-12)
    scaled = target ** (1.0 / mixing_weight)
    without = fit(start, [], target, mixing_weight=mixing_weight)
    torch.testing.assert_close(without, scaled / scaled.sum(), rtol=0, atol=1e-12)
    assert (found - target).abs().max() > 0.04


@every_weight
@every_draw
def test_D5_with_both_trainable_the_optimum_is_not_unique(seed, mixing_weight):
    strong, weak, labels = draw(seed)
    moved_strong = strong + torch.randn(strong.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    moved_weak = weak - mixing_weight / (1.0 - mixing_weight) * (moved_strong - strong)
    loss, gradients = differentiate([(strong, mixing_weight), (weak, 1.0 - mixing_weight)], labels)
    moved_loss, moved_gradients = differentiate(
        [(moved_strong, mixing_weight), (moved_weak, 1.0 - mixing_weight)], labels
    )
    assert moved_loss == pytest.approx(loss, rel=1e-11)
    for gradient, moved in zip(gradients, moved_gradients, strict=True):
        torch.testing.assert_close(moved, gradient, rtol=0, atol=1e-11)
    assert (sft(moved_strong, labels) - sft(strong, labels)).abs().max() > 0.01
