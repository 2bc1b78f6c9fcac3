"""The recursion and its simulation against roots, orbits and figures that were computed independently of the code.

The equations are in docs/self_improvement_theory.md.
"""

import numpy as np
import pytest

from wmss.theory import (
    closed_form,
    fixed_points,
    iterate,
    largest_ratio,
    simulate_acceptance,
)

RATIOS = [0.05, 0.15, 0.24]


def orbit(c, v0, rounds):
    """f, again and again, as it stands in the text."""
    values = [v0]
    for _ in range(rounds):
        values.append(1 - c / values[-1])
    return values


def plateau(**changes):
    given = {"num_samples": 2000, "complexity": 300, "start": 0.5, "rounds": 60, "repetitions": 1000}
    return simulate_acceptance(**{**given, **changes})[-1]


@pytest.mark.parametrize("c", [1e-6, 0.01, *RATIOS, 0.2499999])
def test_fixed_points_are_the_roots(c):
    """Of V² − V + c, to 1e-12 in V₊ and in what defines both."""
    v_minus, v_plus = fixed_points(c)
    roots = sorted(np.roots([1.0, -1.0, c]).real)
    assert v_plus == pytest.approx(roots[1], abs=1e-9)
    for v in (v_minus, v_plus):
        assert v * (1 - v) == pytest.approx(c, abs=1e-12)
    assert v_minus + v_plus == pytest.approx(1.0, abs=1e-12)
    assert v_minus * v_plus == pytest.approx(c, abs=1e-12)


def test_by_hand():
    """V(1−V) = .09 at .1 and .9; .24 at .4 and .6; 0 at the ends; one root at the fold."""
    assert fixed_points(0.09) == pytest.approx((0.1, 0.9), abs=1e-12)
    assert fixed_points(0.24) == pytest.approx((0.4, 0.6), abs=1e-12)
    assert fixed_points(0.25) == (0.5, 0.5)
    assert fixed_points(0.0) == (0.0, 1.0)


@pytest.mark.parametrize("c", [0.25 + 1e-12, 0.26, 1.0, 1e6])
def test_no_points_past_the_fold(c):
    assert fixed_points(c) is None


@pytest.mark.parametrize(("alpha", "fold"), [(1.0, 1 / 4), (0.5, 4 / 27)])
def test_general_rate(alpha, fold):
    """The fold is the peak of V (1−V)^(1/α), and the points are its level sets."""
    assert largest_ratio(alpha=alpha) == pytest.approx(fold, abs=1e-12)
    grid = np.linspace(0, 1, 100_001)
    assert (grid * (1 - grid) ** (1 / alpha)).max() == pytest.approx(fold, abs=1e-9)
    assert fixed_points(fold * (1 + 1e-9), alpha=alpha) is None
    for c in (0.01, 0.05, 0.99 * fold):
        v_minus, v_plus = fixed_points(c, alpha=alpha)
        assert v_minus < alpha / (1 + alpha) < v_plus
        for v in (v_minus, v_plus):
            assert v * (1 - v) ** (1 / alpha) == pytest.approx(c, abs=1e-12)


def test_rates_meet_at_one():
    """Bisection with α just below 1 gives what the formula gives at 1."""
    assert fixed_points(0.15, alpha=1 - 1e-9) == pytest.approx(fixed_points(0.15), abs=1e-8)


@pytest.mark.parametrize("c", RATIOS)
@pytest.mark.parametrize("v0", [0.5, 0.8, 1.0, "threshold"])
def test_closed_form_is_the_orbit(c, v0):
    """To 1e-9 over 20 rounds."""
    v0 = 1.05 * fixed_points(c)[0] if v0 == "threshold" else v0
    assert closed_form(c, v0, np.arange(21)) == pytest.approx(np.array(orbit(c, v0, 20)), abs=1e-9)
    assert closed_form(c, v0, 7) == pytest.approx(orbit(c, v0, 7)[-1], abs=1e-9)


def test_closed_form_stays_on_fixed_points_and_holds_at_the_fold():
    for v in fixed_points(0.09):
        assert closed_form(0.09, v, 400) == v
    assert closed_form(0.25, 0.9, np.arange(6)) == pytest.approx(np.array(orbit(0.25, 0.9, 5)), abs=1e-12)
    with pytest.raises(ValueError, match=r"c: expected at most 0\.25 \(the fold\), got 0\.3; use iterate"):
        closed_form(0.3, 0.5, 1)


def test_closed_form_with_misspecification_is_what_iterating_gives():
    assert closed_form(0.1, 0.6, np.arange(11), epsilon=0.1) == pytest.approx(
        iterate(0.1, 0.6, 10, epsilon=0.1), abs=1e-12
    )


def test_iterating_ends_at_zero_where_the_guarantee_does():
    assert iterate(0.24, 0.3, 4).tolist() == [0.3, pytest.approx(0.2), 0.0, 0.0, 0.0]
    assert iterate(0.04, 0.16, 1, alpha=0.5)[1] == pytest.approx(0.5)


@pytest.mark.parametrize("complexity", [100, 300])
def test_simulation_saturates_at_v_plus(complexity):
    """Within .002."""
    assert plateau(complexity=complexity).mean() == pytest.approx(fixed_points(complexity / 2000)[1], abs=0.002)


def test_plateau_scatters_as_measured():
    """Standard deviation over runs: .0020 for a = 300, .010 for a = 480."""
    assert plateau().std() == pytest.approx(0.0020, rel=0.15)
    assert plateau(complexity=480).std() == pytest.approx(0.010, rel=0.2)


def test_take_off_has_a_threshold():
    """Of the runs that start at 1.1 V₋ more than .9 take off, at .9 V₋ fewer than .1."""
    v_minus = fixed_points(0.15)[0]
    assert (plateau(start=1.1 * v_minus) > 0.3).mean() > 0.9
    assert (plateau(start=0.9 * v_minus) > 0.3).mean() < 0.1


def test_collapse_past_the_fold():
    assert plateau(complexity=520, start=0.9).mean() < 0.01
    assert plateau(alpha=0.5).mean() < 0.01  # c = .15 > 4/27


def test_general_rate_saturates_too():
    assert plateau(complexity=100, alpha=0.5).mean() == pytest.approx(0.7401, abs=0.002)


def test_contraction_rate():
    """Near V₊ a round shrinks the error by V₋/V₊ = .127 (n = 20000, a = 2000), within .01."""
    v_minus, v_plus = fixed_points(0.1)
    assert v_minus / v_plus == pytest.approx(0.127, abs=5e-4)
    trace = simulate_acceptance(num_samples=20_000, complexity=2000, start=0.8, rounds=2, repetitions=4000)
    errors = trace.mean(axis=1) - v_plus
    assert errors[1] / errors[0] == pytest.approx(0.127, abs=0.02)  # still 8 % away from V₊
    near = simulate_acceptance(num_samples=20_000, complexity=2000, start=v_plus - 0.02, rounds=1, repetitions=40_000)
    assert (near[1].mean() - v_plus) / -0.02 == pytest.approx(v_minus / v_plus, abs=0.01)


def test_misspecification_lowers_the_ceiling():
    """Ε = .1, c = .1 gives V₊ = .7702; more samples do not pass 1 − ε."""
    assert fixed_points(0.1, epsilon=0.1)[1] == pytest.approx(0.7702, abs=1e-4)
    assert fixed_points(1e-9, epsilon=0.1)[1] == pytest.approx(0.9, abs=1e-8)
    assert largest_ratio(epsilon=0.1) == pytest.approx(0.81 / 4)
    assert fixed_points(0.81 / 4 + 1e-9, epsilon=0.1) is None
    v = fixed_points(0.05, alpha=0.5, epsilon=0.1)[1]
    assert v * (0.9 - v) ** 2 == pytest.approx(0.05, abs=1e-12)


def test_accumulation_removes_the_threshold():
    """From .03, below V₋, accumulated data ends above .99 and fresh data below .01."""
    given = {"complexity": 100, "start": 0.03, "rounds": 40}
    ends = plateau(**given, accumulate=True)
    assert ends.mean() > 0.99
    assert ends.mean() == pytest.approx(1 - 100 / (40 * 2000), abs=2e-4)
    assert plateau(**given).mean() < 0.01


def test_first_round_is_that_of_a_loop():
    """One round against a loop over runs in plain Python: mean and scatter of 1 − a/m."""
    rng = np.random.default_rng(1)
    slow = [max(1 - 100 / m, 0) if (m := int((rng.random(500) < 0.4).sum())) else 0.4 for _ in range(4000)]
    trace = simulate_acceptance(num_samples=500, complexity=100, start=0.4, rounds=1, repetitions=4000)
    assert trace.shape == (2, 4000) and trace.dtype == np.float64
    assert (trace[0] == 0.4).all()
    assert trace[1].mean() == pytest.approx(np.mean(slow), abs=0.002)
    assert trace[1].std() == pytest.approx(np.std(slow), rel=0.08)


def test_the_seed_is_the_run():
    one, again, other = (plateau(seed=seed, repetitions=5) for seed in (3, 3, 4))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize(("c", "rounds"), [(0.249, 27), (0.05, 4)])
def test_rounds_of_a_stage(c, rounds):
    """From 1.02 V₋ to .98 V₊: near the fold a slow take-off looks like a plateau."""
    v_minus, v_plus = fixed_points(c)
    assert (iterate(c, 1.02 * v_minus, 200) < 0.98 * v_plus).sum() == rounds


def test_accepted_counts_are_binomial():
    """Mean and variance of m, read back from the next value 1 − a/m."""
    trace = simulate_acceptance(num_samples=1000, complexity=50, start=0.6, rounds=1, repetitions=20_000)
    m = 50 / (1 - trace[1])
    assert m.mean() == pytest.approx(600, abs=4 * np.sqrt(240 / 20_000))
    assert m.var() == pytest.approx(240, rel=0.05)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: fixed_points(-0.1), "c: expected a finite number >= 0, got -0.1"),
        (lambda: fixed_points(float("nan")), "c: expected a finite number"),
        (lambda: fixed_points(0.1, alpha=0), "alpha: expected a number above 0 and at most 1, got 0"),
        (lambda: fixed_points(0.1, epsilon=1), "epsilon: expected a number from 0 to below 1, got 1"),
        (lambda: closed_form(0.1, 1.5, 1), r"v0: expected a number between 0 and 1, got 1\.5"),
        (lambda: closed_form(0.1, 0.5, -1), "t: expected rounds >= 0, got -1"),
        (lambda: iterate(0.1, 0.5, -1), "rounds: expected at least 0, got -1"),
        (lambda: plateau(num_samples=0), "num_samples: expected at least 1, got 0"),
        (lambda: plateau(repetitions=0), "repetitions: expected at least 1"),
        (lambda: plateau(start=-0.1), "start: expected a number between 0 and 1"),
        (lambda: plateau(complexity=float("inf")), "complexity: expected a finite number"),
        (lambda: plateau(alpha=2), "alpha: expected a number above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
