"""Sampling weights by hand, against the reference, and under relations; the draw's determinism and statistics."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import reference
from wmss.core.sample_weights import cap_weights, draw, sampling_weights

WEAK = [1.0, 0.5, 0.2, 0.0]
STRONG = [0.5, 0.5, 0.4, 0.0]
# ΔH = -0.5, 0, +0.2, 0: drop = .5, 0, 0, 0; rise = 0, 0, .2, 0.
BY_HAND = {
    "v2": [0.1 * 0.5 + 0.8 * 0.5, 0.8 * 0.5, 0.8 * 0.4 + 0.1 * 0.2, 0.0],
    "v1": [0.1 * 1.0 + 0.8 * 0.5, 0.1 * 0.5, 0.1 * 0.2 + 0.1 * 0.2, 0.0],
    "per_term": [0.1 * 1.0 / 1.7 + 0.8, 0.1 * 0.5 / 1.7, 0.1 * 0.2 / 1.7 + 0.1, 0.0],
    "uniform": [0.25] * 4,
}
entropies = st.lists(st.floats(0.0, 5.0), min_size=1, max_size=30)


@pytest.mark.parametrize("weighting", BY_HAND)
def test_by_hand(weighting):
    expected = np.array(BY_HAND[weighting])
    weights = sampling_weights(WEAK, STRONG, weighting=weighting)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected / expected.sum(), rtol=1e-14)


@pytest.mark.parametrize("weighting", ["v2", "v1", "per_term"])
@given(
    st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 5.0)), min_size=1, max_size=30),
    st.tuples(*[st.floats(0.01, 2.0)] * 3),
)
def test_equals_reference_sample_by_sample(weighting, pairs, coefficients):
    weak, strong = np.array(pairs).T
    alpha, beta, gamma = coefficients
    np.testing.assert_allclose(
        sampling_weights(weak, strong, weighting=weighting, alpha=alpha, beta=beta, gamma=gamma),
        reference.sampling_weights(weak, strong, weighting, alpha, beta, gamma),
        rtol=1e-11,
        atol=1e-15,
    )


@pytest.mark.parametrize("weighting", BY_HAND)
def test_relations(weighting):
    rng = np.random.default_rng(0)
    weak, strong = rng.gamma(2.0, 0.3, (2, 50))
    weights = sampling_weights(weak, strong, weighting=weighting)
    assert weights.sum() == pytest.approx(1.0, abs=1e-14)
    assert (weights >= 0).all()
    order = rng.permutation(50)
    np.testing.assert_allclose(
        sampling_weights(weak[order], strong[order], weighting=weighting), weights[order], rtol=1e-12
    )
    np.testing.assert_allclose(sampling_weights(3 * weak, 3 * strong, weighting=weighting), weights, rtol=1e-12)


def test_a_term_without_mass_drops_out():
    # Nothing rises: the two other terms of per_term share its tenth.
    weights = sampling_weights([1.0, 3.0], [0.5, 2.5], weighting="per_term")
    np.testing.assert_allclose(weights, (0.1 * np.array([0.25, 0.75]) + 0.8 * np.array([0.5, 0.5])) / 0.9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0.0], [0.0]), "no term has any mass"),
        (([1.0], [1.0, 2.0]), "strong_entropy: expected the shape"),
        (([np.nan], [1.0]), "weak_entropy: expected finite values >= 0 in nats, got nan at index 0"),
        (([1.0], [-0.1]), "strong_entropy: expected finite values >= 0"),
        (([], []), "weak_entropy: expected a non-empty vector"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        sampling_weights(*arguments)


def test_refuses_negative_coefficients_and_unknown_weighting():
    with pytest.raises(ValueError, match="alpha: expected a finite number >= 0, got -1"):
        sampling_weights([1.0], [1.0], alpha=-1)
    with pytest.raises(ValueError, match="weighting: expected one of"):
        sampling_weights([1.0], [1.0], weighting="v3")
    with pytest.raises(ValueError, match="the weights overflow"), np.errstate(over="ignore"):
        sampling_weights([5.0, 5.0], [1.0, 1.0], alpha=1e308)
    with pytest.raises(ValueError, match="no term has any mass"):
        sampling_weights([1.0], [1.0], alpha=0, beta=0, gamma=0)


def test_draw_is_deterministic_and_follows_the_weights():
    weights = np.array([0.5, 0.3, 0.2, 0.0])
    indices = draw(weights, num_draws=100_000, seed=1, deduplicate=False)
    assert np.array_equal(indices, draw(weights, num_draws=100_000, seed=1, deduplicate=False))
    assert not np.array_equal(indices, draw(weights, num_draws=100_000, seed=2, deduplicate=False))
    counts = np.bincount(indices, minlength=4) / 100_000
    # Five standard deviations of a binomial share.
    np.testing.assert_allclose(counts, weights, atol=5 * np.sqrt(0.25 / 100_000))
    assert counts[3] == 0.0


def test_deduplicated_uniform_draw_keeps_one_minus_one_over_e():
    n = 20_000
    indices = draw(np.full(n, 1 / n), num_draws=n, seed=0, deduplicate=True)
    assert len(np.unique(indices)) == len(indices)
    assert len(indices) / n == pytest.approx(1 - np.exp(-1), abs=0.01)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -0.1], [np.nan, 1.0], [[0.5, 0.5]]])
def test_draw_refuses(weights):
    with pytest.raises(ValueError, match="weights: expected"):
        draw(weights, num_draws=1, seed=0, deduplicate=False)


def test_cap_by_hand():
    # 0.6 is cut to 0.4; the 0.2 left over goes to the others as 3 : 1.
    np.testing.assert_allclose(cap_weights([0.6, 0.3, 0.1], 0.4), [0.4, 0.4, 0.2], atol=1e-15)
    np.testing.assert_allclose(cap_weights([0.6, 0.3, 0.1, 0.0], 0.5), [0.5, 0.375, 0.125, 0.0], atol=1e-15)
    np.testing.assert_allclose(cap_weights([2.0, 1.0, 1.0], 1.0), [0.5, 0.25, 0.25], atol=1e-15)
    np.testing.assert_allclose(cap_weights([0.9, 0.06, 0.04], 1 / 3), [1 / 3] * 3, atol=1e-12)


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40), st.floats(0.0, 1.0))
def test_cap_keeps_the_ratios_of_what_it_does_not_cut(weights, share):
    max_share = 1 / len(weights) + share * (1 - 1 / len(weights))
    capped = cap_weights(weights, max_share)
    p = np.array(weights) / np.sum(weights)
    assert capped.sum() == pytest.approx(1.0)
    assert capped.max() <= max_share * (1 + 1e-9)
    free = capped < max_share * (1 - 1e-9)
    if free.any():
        ratios = capped[free] / p[free]
        np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    np.testing.assert_allclose(capped[~free], max_share, rtol=1e-8)


@pytest.mark.parametrize("max_share", [0.0, 0.3, 1.1, float("nan")])
def test_cap_that_leaves_no_distribution_is_refused(max_share):
    with pytest.raises(ValueError, match=r"max_share: expected between 0.333333 \(1 over the 3 samples that have any"):
        cap_weights([0.5, 0.3, 0.2, 0.0], max_share)
