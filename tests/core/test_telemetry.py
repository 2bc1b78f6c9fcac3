"""Statistics of a step against probabilities taken word by word, and under what must not change them."""

import pytest
import torch

from tests import reference
from wmss.core.mixing import LogitBranch, branch_cross_entropy
from wmss.core.telemetry import PAIR_STATISTICS, STRONG_STATISTICS, mix_statistics, statistics_of


def make_branches(weights, *, rows=23, vocabulary=31, bias=True, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    branches = [
        LogitBranch(normal(rows, 5 + i), normal(vocabulary, 5 + i), normal(vocabulary) if bias else None, weight)
        for i, weight in enumerate(weights)
    ]
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    labels[::4] = -100
    return branches, labels


def logits_of(branches):
    return [b.hidden @ b.head.T + (0 if b.bias is None else b.bias) for b in branches]


def means(branches, labels, *, max_rows=1000, chunk_size=64):
    sums = mix_statistics(branches, labels, max_rows=max_rows, chunk_size=chunk_size)
    names = statistics_of(len(branches))
    assert len(sums) == len(names) + 1
    return dict(zip(names, (sums[:-1] / sums[-1]).tolist(), strict=True))


@pytest.mark.parametrize("weights", [(1.0,), (0.4,), (0.5, 0.5), (0.3, 0.7), (0.98, 0.02), (0.4, 0.35, 0.15, 0.1)])
@pytest.mark.parametrize("chunk_size", [1, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_reference(weights, chunk_size, bias):
    branches, labels = make_branches(weights, bias=bias)
    expected = reference.statistics(logits_of(branches), weights, labels)
    assert means(branches, labels, chunk_size=chunk_size) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_by_hand():
    # Two words, target 0: strong (2, 0), weak (0, 2), λ = 0.75: mixed (1.5, 0.5). Word 1 is harder for the weak.
    one = torch.ones(1, 1, dtype=torch.float64)
    strong, weak = (torch.tensor(z, dtype=torch.float64).unsqueeze(1) for z in ([2.0, 0.0], [0.0, 2.0]))
    found = means([LogitBranch(one, strong, None, 0.75), LogitBranch(one, weak, None, 0.25)], torch.tensor([0]))
    assert found["margin"] == 2.0
    assert found["nll_strong"] == pytest.approx(0.12692801104297263, rel=1e-14)  # log(1 + e^-2)
    assert found["nll_weak"] == pytest.approx(2.1269280110429727, rel=1e-14)
    assert found["nll_mix"] == pytest.approx(0.31326168751822286, rel=1e-14)  # log(1 + e^-1)
    assert found["hard_negative_mass"] == pytest.approx(0.2689414213699951, rel=1e-14)
    assert found["divergence"] == pytest.approx(0.75 * 0.126928011 + 0.25 * 2.126928011 - 0.313261688, rel=1e-8)


@pytest.mark.parametrize("shifted", [0, 1, 2])
def test_a_constant_added_to_all_logits_changes_nothing(shifted):
    branches, labels = make_branches((0.5, 0.3, 0.2))
    moved = list(branches)
    moved[shifted] = branches[shifted]._replace(bias=branches[shifted].bias + 137.0)
    assert means(moved, labels) == pytest.approx(means(branches, labels), rel=1e-10)


def test_mixed_loss_is_the_weighted_losses_less_the_divergence():
    """CE_mix = Σ w_i CE_i − D_λ, with every loss from `branch_cross_entropy` (D1 in docs/method.md)."""
    branches, labels = make_branches((0.4, 0.35, 0.25))
    alone = [float(branch_cross_entropy([branch._replace(weight=1.0)], labels)) for branch in branches]
    found = means(branches, labels)
    assert found["divergence"] > 0.1
    mixed = float(branch_cross_entropy(branches, labels))
    assert mixed == pytest.approx(found["nll_mix"], rel=1e-12)
    assert alone[0] == pytest.approx(found["nll_strong"], rel=1e-12)
    weights = [branch.weight for branch in branches]
    assert mixed == pytest.approx(
        sum(w * ce for w, ce in zip(weights, alone, strict=True)) - found["divergence"], rel=1e-12
    )


def test_equal_models_do_not_diverge():
    [branch], labels = make_branches((0.5,))
    found = means([branch, branch], labels)
    assert found["divergence"] == pytest.approx(0.0, abs=1e-12)
    assert found["hard_negative_mass"] == 0.0
    assert found["nll_strong"] == found["nll_weak"] == pytest.approx(found["nll_mix"], rel=1e-12)


def test_weak_models_without_weight_count_as_their_mean():
    branches, labels = make_branches((1.0, 0.0, 0.0))
    logits = logits_of(branches)
    expected = reference.statistics([logits[0], (logits[1] + logits[2]) / 2], (1.0, 1e-300), labels)
    found = means(branches, labels)
    assert [found[name] for name in ("nll_weak", "entropy_weak", "hard_negative_mass")] == pytest.approx(
        [expected[name] for name in ("nll_weak", "entropy_weak", "hard_negative_mass")], rel=1e-10
    )
    assert found["nll_mix"] == pytest.approx(found["nll_strong"], rel=1e-12)


@pytest.mark.parametrize(("max_rows", "kept"), [(1000, 17), (17, 17), (16, 9), (5, 5), (1, 1)])
def test_no_more_rows_than_asked_for_evenly_spaced(max_rows, kept):
    branches, labels = make_branches((0.5, 0.5))
    supervised = (labels >= 0).nonzero()[:, 0]
    assert len(supervised) == 17
    sums = mix_statistics(branches, labels, max_rows=max_rows)
    assert sums[-1] == kept
    chosen = supervised[:: -(-17 // max_rows)]
    some = [branch._replace(hidden=branch.hidden[chosen]) for branch in branches]
    torch.testing.assert_close(sums, mix_statistics(some, labels[chosen], max_rows=1000), rtol=1e-12, atol=0)


def test_no_supervised_row_gives_zeros():
    branches, labels = make_branches((0.5, 0.5))
    sums = mix_statistics(branches, torch.full_like(labels, -100), max_rows=8)
    assert sums.tolist() == [0.0] * (len(STRONG_STATISTICS) + len(PAIR_STATISTICS) + 1)


def test_low_precision_states_are_computed_in_float32():
    branches, labels = make_branches((0.5, 0.5), bias=False)
    low = [branch._replace(hidden=branch.hidden.bfloat16(), head=branch.head.float()) for branch in branches]
    exact = [branch._replace(hidden=branch.hidden.double(), head=branch.head.double()) for branch in low]
    assert means(low, labels) == pytest.approx(means(exact, labels), rel=1e-5, abs=1e-6)
