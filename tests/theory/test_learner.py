"""Simulation B against a loop that draws every response, and what it shows of curricula.

S-T13, S-T14 and S-T16 to S-T18 of the project's specification.
"""

import numpy as np
import pytest

from wmss.theory import one_round, schedule, simulate_learner, simulate_promotion
from wmss.theory.learner import LENGTHS

ROUNDS = 16


def draw(rng, number, length, success):
    """Skills of the accepted ones among `number` responses, each of them drawn."""
    skills = rng.integers(0, success.size, size=(number, length))
    return skills[(rng.random((number, length)) < success[skills]).all(axis=1)]


def slow_run(plan, *, guess, mode, rng, num_skills):
    known = np.zeros(num_skills, dtype=bool)
    for samples in plan:
        success, seen = np.where(known, 1.0, guess), np.zeros(num_skills, dtype=bool)
        for length, number in zip(LENGTHS, samples, strict=True):
            seen[draw(rng, number, length, success).ravel()] = True
        known = known | seen if mode == "continue" else seen
    return np.where(known, 1.0, guess).mean()


def after(policy, n, *, guess=0.2, mode="restart", repetitions=20):
    """Success [rounds, runs, levels] after every round."""
    plan = schedule(policy, num_levels=4, rounds=ROUNDS, num_samples=n)
    return simulate_learner(plan, guess=guess, mode=mode, repetitions=repetitions)[1:]


def end(policy, n, **given):
    """Success on the hardest level after the last round, mean over runs."""
    return after(policy, n, **given)[-1, :, -1].mean()


@pytest.mark.parametrize("mode", ["restart", "continue"])
@pytest.mark.parametrize("policy", ["clock", "uniform"])
def test_counts_are_those_of_a_loop_over_responses(mode, policy):
    """Mean and scatter of the share of right skills after three rounds."""
    rng, num_skills = np.random.default_rng(1), 60
    plan = np.full((3, 4), 30) if policy == "uniform" else np.array([[80, 0, 0, 0], [0, 80, 0, 0], [0, 0, 80, 0]])
    slow = [slow_run(plan, guess=0.3, mode=mode, rng=rng, num_skills=num_skills) for _ in range(1500)]
    fast = simulate_learner(plan, guess=0.3, mode=mode, repetitions=1500, num_skills=num_skills)[-1, :, 0]
    error = np.sqrt(np.var(slow) / 1500 + fast.var() / 1500)
    assert fast.mean() == pytest.approx(np.mean(slow), abs=4 * error)
    assert fast.std() == pytest.approx(np.std(slow), rel=0.12)


@pytest.mark.parametrize(
    ("n", "length", "known", "guess", "figures"),
    [
        (600, 4, 0.5, 0.2, (0.12960, 0.7245, 0.2281)),
        (600, 1, 0.25, 0.1, (0.32500, 0.7773, 0.1392)),
        (1200, 8, 0.75, 0.2, (0.16777, 0.99319, 0.6339)),
    ],
)
def test_st13_one_round(n, length, known, guess, figures):
    """S-T13: the formulas give the specification's figures, and a loop over responses agrees with them."""
    expected = one_round(num_samples=n, length=length, known=known, guess=guess)
    assert expected == pytest.approx(figures, abs=1.5e-4)
    rng, num_skills, num_known = np.random.default_rng(0), 400, int(known * 400)
    success = np.where(np.arange(num_skills) < num_known, 1.0, guess)
    results = []
    for _ in range(300):
        accepted = draw(rng, n, length, success)
        seen = np.bincount(accepted.ravel(), minlength=num_skills) > 0
        results.append((len(accepted) / n, seen[:num_known].mean(), seen[num_known:].mean()))
    means, errors = np.mean(results, axis=0), np.std(results, axis=0) / np.sqrt(len(results))
    assert (np.abs(means - expected) < 4 * errors + 0.002).all()


def test_one_round_of_the_simulation_is_the_formula():
    expected = one_round(num_samples=600, length=1, known=0.0, guess=0.2)
    trace = simulate_learner(np.array([[600, 0, 0, 0]]), guess=0.2, mode="restart", repetitions=2000)
    share = (trace[1, :, 0] - 0.2) / 0.8
    assert share.mean() == pytest.approx(expected.next_share(0.0, "restart"), abs=0.002)
    assert expected.next_share(0.5, "continue") == pytest.approx(0.5 + 0.5 * expected.unknown_learned)
    assert trace[0, 0] == pytest.approx([0.2, 0.2**2, 0.2**4, 0.2**8])


def test_st14_window():
    """S-T14: n = 600 easy-to-hard only, n = 1200 both, n = 400 neither (restart, p₀ = .2, 20 runs)."""
    assert end("clock", 600) > 0.95 and end("uniform", 600) < 0.05
    assert end("clock", 1200) > 0.95 and end("uniform", 1200) > 0.95
    assert end("clock", 400) < 0.05 and end("uniform", 400) < 0.05


@pytest.mark.parametrize(
    ("mode", "guess", "n", "ends"),
    [
        ("restart", 0.2, 800, (1.00, 0.72, 0.00, 0.12)),
        ("restart", 0.1, 1200, (1.00, 0.08, 0.00, 0.09)),
        ("continue", 0.05, 1200, (0.99, 0.10, 0.00, 0.01)),
        ("continue", 0.2, 200, (0.58, 0.05, 0.00, 0.01)),
        ("restart", 0.7, 200, (0.94, 0.39, 0.94, 0.16)),
        ("restart", 0.7, 400, (1.00, 0.93, 1.00, 0.34)),
    ],
)
def test_ends_are_those_of_the_table(mode, guess, n, ends):
    """The specification's means of 100 runs that drew every response."""
    policies = ("clock", "uniform", "hard_only", "hard_to_easy")
    found = [end(policy, n, mode=mode, guess=guess, repetitions=60) for policy in policies]
    assert found == pytest.approx(ends, abs=0.1)


def test_st16_easy_to_hard_does_not_always_win():
    """S-T16: with a good start hard-only is faster; below every threshold the mixture is as good over all levels."""
    hard, staged = (after(policy, 400, guess=0.7)[..., -1].mean() for policy in ("hard_only", "clock"))
    assert hard > staged + 0.1
    staged, mixed = (after(policy, 400)[-1].mean() for policy in ("clock", "uniform"))
    assert staged <= mixed + 0.02


def test_st17_order_matters():
    """S-T17."""
    assert end("hard_to_easy", 600) < 0.3 and end("clock", 600) > 0.95


def promoted(threshold, n, **given):
    options = {"guess": 0.2, "mode": "restart", "rounds": ROUNDS, "repetitions": 50, **given}
    return simulate_promotion(threshold=threshold, num_samples=n, **options)[-1, :, -1].mean()


def test_st18_promotion_near_one_over_e():
    """S-T18: a threshold of .37 ends more than .3 above one of .7 (restart, p₀ = .2, n = 600, 50 runs)."""
    assert promoted(0.37, 600) > promoted(0.7, 600) + 0.3


def test_promotion_is_that_of_the_table():
    found = [promoted(threshold, 200, mode="continue", repetitions=100) for threshold in (0.1, 0.2, 0.37, 0.5, 0.7)]
    assert found == pytest.approx([0.30, 0.42, 0.45, 0.41, 0.29], abs=0.05)


def test_schedules():
    assert schedule("clock", num_levels=2, rounds=3, num_samples=5).tolist() == [[5, 0], [5, 0], [0, 5]]
    assert schedule("uniform", num_levels=2, rounds=2, num_samples=5).tolist() == [[3, 2], [2, 3]]
    with pytest.raises(ValueError, match="policy: expected one that follows the number of the round"):
        schedule("acceptance_target", num_levels=2, rounds=2, num_samples=5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: end("clock", 400, guess=1.2), "guess: expected a number between 0 and 1"),
        (lambda: end("clock", 400, mode="both"), "mode: expected 'restart' or 'continue', got 'both'"),
        (lambda: end("clock", 400, repetitions=0), "repetitions: expected at least 1"),
        (
            lambda: simulate_learner(np.ones((2, 3), dtype=np.int64), guess=0.2, mode="restart", repetitions=1),
            r"plan: expected counts >= 0 \[rounds, 4\], got shape \(2, 3\)",
        ),
        (lambda: promoted(0.37, 127), "num_samples: expected at least 32 probes for each of 4 levels, got 127"),
        (lambda: one_round(num_samples=1, length=0, known=0.5, guess=0.1), "length: expected at least 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
