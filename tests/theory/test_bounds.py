"""What a round guarantees and each curriculum needs, against brute force and the closed formulas.

S-T7 to S-T10, S-T19 and S-T26 of the project's specification.
"""

import math
from collections import Counter

import numpy as np
import pytest

from wmss.theory import (
    complexity_of,
    curriculum_thresholds,
    failure_bound,
    kept_per_prompt,
    level_to_train,
    log_odds_gain,
    noisy_step,
    simulate_acceptance,
    simulate_noisy_verifier,
)

STARTS = [0.39, 0.149, 0.0195, 0.002]


def shares(weights):
    return np.asarray(weights) / np.sum(weights)


def test_st7_acceptance_is_the_value():
    """S-T7: the mean of m is n V, and accepted prompts are distributed as μ p / V (a chi-square test)."""
    rng = np.random.default_rng(0)
    rates, mu = np.array([0.9, 0.5, 0.2, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    value, n = float(mu @ rates), 200_000
    prompts = rng.choice(4, size=n, p=mu)
    accepted = prompts[rng.random(n) < rates[prompts]]
    assert accepted.size == pytest.approx(n * value, abs=4 * math.sqrt(n * value * (1 - value)))
    expected = accepted.size * shares(mu * kept_per_prompt(rates, group_size=1))
    chi_square = ((np.bincount(accepted, minlength=4) - expected) ** 2 / expected).sum()
    assert chi_square < 16.27  # p = 1e-3 with three degrees of freedom

    # The simulation's m, read back from its next value 1 − a/m.
    trace = simulate_acceptance(num_samples=1000, complexity=50, start=0.6, rounds=1, repetitions=20_000)
    m = 50 / (1 - trace[1])
    assert m.mean() == pytest.approx(600, abs=4 * math.sqrt(240 / 20_000))
    assert m.var() == pytest.approx(240, rel=0.05)


def test_st8_hellinger_bounds_failure():
    """S-T8: for P on the correct set A and any Q, 1 − Q(A) <= H²(P, Q): what makes the rate 1/m."""
    rng = np.random.default_rng(0)
    slack = []
    for _ in range(2000):
        size, correct = 8, int(rng.integers(1, 8))
        p = np.zeros(size)
        p[:correct] = rng.dirichlet(np.full(correct, 0.3))
        q = rng.dirichlet(np.full(size, rng.choice([0.1, 1.0, 10.0])))
        squared = ((np.sqrt(p) - np.sqrt(q)) ** 2).sum()
        failure = q[correct:].sum()
        slack.append(squared - failure)
        assert failure <= squared + 1e-12
    assert min(slack) < 0.02  # the bound is not vacuous


def maximum_likelihood(policies, prompts, responses):
    """The policy [X, Y] of the class under which the accepted pairs are likeliest."""
    with np.errstate(divide="ignore"):
        likelihoods = np.log(policies[:, prompts, responses]).sum(axis=1)
    return policies[likelihoods.argmax()]


def one_problem(rng, *, delta):
    """Failure of one round in a random finite problem, and its bound."""
    num_prompts, num_responses, size, n = 4, 5, 30, 400
    right = rng.random((num_prompts, num_responses)) < 0.5
    right[:, 0], right[:, 1] = True, False
    start = rng.dirichlet(np.full(num_responses, 1.0), size=num_prompts)
    solved = (start * right).sum(axis=1)
    policies = rng.dirichlet(np.full(num_responses, 0.5), size=(size, num_prompts))
    policies[0] = start * right / solved[:, None]  # realisable
    prompts = rng.integers(0, num_prompts, size=n)
    responses = (rng.random((n, 1)) > start[prompts].cumsum(axis=1)).sum(axis=1).clip(max=num_responses - 1)
    kept = right[prompts, responses]
    learned = maximum_likelihood(policies, prompts[kept], responses[kept])
    failure = 1 - (learned * right).sum(axis=1).mean()
    coverage = min(1.0, float(solved.min() / solved.mean()))
    bound = failure_bound(int(kept.sum()), log_class_size=math.log(size), delta=delta, coverage=coverage)
    return failure, bound


def test_st9_single_round_bound_holds():
    """S-T9: of 200 random finite problems at most 2 δ violate it."""
    rng, delta = np.random.default_rng(0), 0.05
    results = [one_problem(rng, delta=delta) for _ in range(200)]
    assert np.mean([failure > bound for failure, bound in results]) <= 2 * delta
    assert np.mean([bound < 1 for _, bound in results]) > 0.5  # the bound says something


def test_bounds_by_hand():
    assert failure_bound(200, log_class_size=math.log(50), delta=0.1) == pytest.approx(2 * math.log(500) / 200)
    assert failure_bound(200, log_class_size=0.0, delta=0.1, coverage=0.5) == pytest.approx(4 * math.log(10) / 200)
    a = complexity_of(log_class_size=math.log(50), delta=0.1, rounds=3, coverage=0.5)
    assert a == pytest.approx(8 * math.log(2 * 3 * 50 / 0.1))


def test_st10_noisy_verifier_adds_log_odds():
    """S-T10: .9 and .3 add ln 3 = 1.0986 a round; Monte-Carlo of 500 samples within .01 of it in the rate."""
    assert log_odds_gain(0.9, 0.3) == pytest.approx(1.0986122886681098, abs=1e-9)
    for v in (0.1, 0.5, 0.9):
        after = noisy_step(v, true_positive=0.9, false_positive=0.3)
        assert math.log(after / (1 - after)) - math.log(v / (1 - v)) == pytest.approx(math.log(3), abs=1e-9)
    trace = simulate_noisy_verifier(
        num_samples=500, start=0.3, rounds=3, repetitions=4000, true_positive=0.9, false_positive=0.3
    )
    v = 0.3
    for simulated in trace[1:].mean(axis=1):
        v = noisy_step(v, true_positive=0.9, false_positive=0.3)
        assert simulated == pytest.approx(v, abs=0.01)


def test_noise_without_information_teaches_nothing():
    assert log_odds_gain(0.4, 0.4) == 0 and log_odds_gain(0.3, 0.9) < 0
    assert noisy_step(0.3, true_positive=0.4, false_positive=0.4) == pytest.approx(0.3)
    assert log_odds_gain(0.9, 0.0) == math.inf
    assert noisy_step(0.0, true_positive=0.9, false_positive=0.0) == 0.0


def test_a_perfect_verifier_with_a_finite_sample_is_the_recursion():
    assert noisy_step(0.5, true_positive=1.0, false_positive=0.0, c=0.1) == pytest.approx(1 - 0.1 / 0.5)
    assert noisy_step(0.1, true_positive=1.0, false_positive=0.0, c=0.2) == 0.0
    trace = simulate_noisy_verifier(
        num_samples=2000, start=0.5, rounds=20, repetitions=1000, true_positive=1, false_positive=0, complexity=300
    )
    assert trace[-1].mean() == pytest.approx(0.8162, abs=0.002)


def test_thresholds_are_the_closed_formulas():
    """a (1+κ)²/κ, L times that, a / (v_L (1−v_L)): 563, 1690 and 3806 for κ = .3, v_1 = .3, L = 3, a = 100."""
    found = curriculum_thresholds([0.3, 0.09, 0.027], complexity=100)
    assert found.easy_to_hard == pytest.approx(100 * 1.3**2 / 0.3, rel=1e-9)
    assert found.uniform == pytest.approx(300 * 1.3**2 / 0.3, rel=1e-9)
    assert found.hard_only == pytest.approx(100 / (0.027 * 0.973), rel=1e-9)


def test_thresholds_of_other_starts():
    poor = curriculum_thresholds([0.05, 0.045], complexity=100)
    assert poor.easy_to_hard == pytest.approx(100 / (0.05 * 0.95), rel=1e-9)  # the first level's own start decides
    good = curriculum_thresholds([0.9, 0.7], complexity=100)
    assert (good.easy_to_hard, good.hard_only) == pytest.approx((400, 400))  # only the fold does
    one = curriculum_thresholds([0.2], complexity=100)
    assert one.easy_to_hard == one.uniform == one.hard_only == pytest.approx(100 / 0.16)
    never = curriculum_thresholds([0.4, 0.0], complexity=100)
    assert never.easy_to_hard == never.uniform == never.hard_only == math.inf
    slow = curriculum_thresholds([0.3, 0.09, 0.027], complexity=100, alpha=0.5)
    assert slow.easy_to_hard > 563.4 and slow.hard_only > 3806.5


def test_st19_acceptance_of_the_level_to_train_is_one_over_e():
    """S-T19: the best whole number of steps is accepted with .33 to .45, the best real one with 1/e."""
    for q in (0.7, 0.8, 0.9, 0.95):
        k = max(range(1, 200), key=lambda k, q=q: k * q ** (k - 1))
        assert 0.33 <= q**k <= 0.45
        assert abs(level_to_train(q) - k) < 1
        assert q ** level_to_train(q) == pytest.approx(1 / math.e)


def test_st26_cap_changes_the_tilt():
    """S-T26: with cap 1 a prompt weighs 1 − (1−p)^K; shares of the specification's start; Monte-Carlo within .01."""
    rates = np.array(STARTS)
    assert kept_per_prompt(rates, group_size=16, cap=1) == pytest.approx(1 - (1 - rates) ** 16, abs=1e-12)
    assert kept_per_prompt(rates, group_size=16) == pytest.approx(16 * rates, abs=1e-12)
    assert shares(kept_per_prompt(rates, group_size=16, cap=1)) == pytest.approx([0.45, 0.42, 0.12, 0.014], abs=0.005)
    assert shares(kept_per_prompt(rates, group_size=16)) == pytest.approx([0.70, 0.27, 0.035, 0.004], abs=0.005)
    draws = np.random.default_rng(0).binomial(16, rates, size=(100_000, 4))
    for cap in (1, 4):
        assert kept_per_prompt(rates, group_size=16, cap=cap) == pytest.approx(
            np.minimum(draws, cap).mean(axis=0), abs=0.01
        )


def test_kept_by_hand():
    """Two draws at 1/2, one kept: P(at least one) = 3/4."""
    assert kept_per_prompt(0.5, group_size=2, cap=1) == pytest.approx(0.75)
    assert Counter(kept_per_prompt([0.0, 1.0], group_size=4, cap=3).round(12).tolist()) == {0.0: 1, 3.0: 1}


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: failure_bound(0, log_class_size=1, delta=0.1), "num_accepted: expected at least 1"),
        (lambda: failure_bound(1, log_class_size=1, delta=1), "delta: expected a number strictly between 0 and 1"),
        (lambda: failure_bound(1, log_class_size=-1, delta=0.1), "log_class_size: expected a finite number"),
        (lambda: failure_bound(1, log_class_size=1, delta=0.1, coverage=0), "coverage: expected a number above 0"),
        (lambda: complexity_of(log_class_size=1, delta=0.1, rounds=0), "rounds: expected at least 1"),
        (lambda: curriculum_thresholds([], complexity=1), "starts: expected the acceptance of at least one level"),
        (lambda: curriculum_thresholds([0.1, 1.1], complexity=1), r"starts\[1\]: expected a number between 0 and 1"),
        (lambda: kept_per_prompt([2.0], group_size=2), "pass_rates: expected numbers between 0 and 1"),
        (lambda: kept_per_prompt([0.5], group_size=2, cap=3), r"cap: expected between 1 and group_size \(2\), got 3"),
        (lambda: level_to_train(1.0), "step_accuracy: expected"),
        (lambda: log_odds_gain(0.0, 0.1), "true_positive: expected a number above 0"),
        (lambda: noisy_step(0.5, true_positive=0.5, false_positive=1.5), "false_positive: expected"),
    ],
)
def test_what_is_out_of_range_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
