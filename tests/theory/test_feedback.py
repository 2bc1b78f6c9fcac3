"""The feedback-loop classifier on traces of the recursion itself, and each of its rules by an example."""

import math
from itertools import pairwise

import pytest

from wmss.theory import RoundOutcome, classify, fixed_points, iterate

N = 4000
RATIOS = [0.02, 0.05, 0.1, 0.15, 0.2, 0.24]
STEADY = {"num_sampled": N, "num_accepted": 1000, "score_before": 0.5, "score_after": 0.5, "standard_error": 0.005}


def outcomes(scores, *, num_samples=N, standard_error=0.005):
    """Rounds of a run whose training acceptance is its held-out score, as the recursion has it."""
    return [
        RoundOutcome(num_samples, round(num_samples * before), before, after, standard_error)
        for before, after in pairwise(scores)
    ]


def labels(scores, *, min_gain=0.005, **options):
    rounds = outcomes(scores, **options)
    return [classify(rounds[: end + 1], min_gain=min_gain).label for end in range(len(rounds))]


def steady(**changes):
    return RoundOutcome(**{**STEADY, **changes})


@pytest.mark.parametrize("c", RATIOS)
@pytest.mark.parametrize("standard_error", [0.0, 0.002, 0.005])
@pytest.mark.parametrize("min_gain", [0.005, 0.02])
def test_take_off_is_never_called_saturated(c, standard_error, min_gain):
    """From 1.02 V₋, `starved` or `improving` until the score passes √c."""
    v_minus, v_plus = fixed_points(c)
    scores = iterate(c, 1.02 * v_minus, 60)
    found = labels(scores, standard_error=standard_error, min_gain=min_gain)
    early = [label for label, score in zip(found, scores[1:], strict=True) if score < math.sqrt(c)]
    assert early or c < 0.1  # the first round of a small ratio jumps past √c
    assert set(early) <= {"starved", "improving"}
    assert scores[-1] == pytest.approx(v_plus, abs=1e-3)
    assert found[-1] == "saturated"


@pytest.mark.parametrize("c", RATIOS)
def test_the_plateau_is_saturated(c):
    """Within 3 rounds at V₊, with the ceiling that is there."""
    v_plus = fixed_points(c)[1]
    rounds = outcomes([v_plus] * 4)
    found = [classify(rounds[:end], min_gain=0.005) for end in (1, 2, 3)]
    assert "saturated" in [reading.label for reading in found]
    assert found[-1].label == "saturated"
    assert found[-1].v_plus == pytest.approx(v_plus, abs=2e-3)
    assert found[-1].ratio == pytest.approx(c, abs=2e-4)
    assert found[-1].v_plus_doubled == pytest.approx(fixed_points(c / 2)[1], abs=2e-3)


@pytest.mark.parametrize("c", [0.05, 0.15])
def test_from_above_it_regresses_and_then_saturates(c):
    found = labels(iterate(c, 0.995, 12))
    assert found[0] == "regressed"
    change = found.index("saturated")
    assert set(found[:change]) == {"regressed"}
    assert set(found[change:]) == {"saturated"}


def test_below_the_threshold_is_starved_or_regressed():
    found = labels(iterate(0.15, 0.9 * fixed_points(0.15)[0], 6))
    assert set(found) <= {"starved", "regressed"}


def test_points_by_hand():
    """m = 1000 of 4000 and a score of .64: a = 360, c = .09, V at .1 and .9; the next score is 1 − .09/.64."""
    reading = classify([steady(score_before=0.64, score_after=0.64)], min_gain=0.005)
    assert reading.complexity == pytest.approx(360)
    assert reading.ratio == pytest.approx(0.09)
    assert (reading.v_minus, reading.v_plus) == pytest.approx((0.1, 0.9))
    assert reading.predicted_next == pytest.approx(1 - 0.09 / 0.64)
    assert reading.label == "flat"  # .86 is expected, so .64 is no ceiling


def test_past_the_fold_there_is_no_ceiling():
    reading = classify([steady(num_accepted=3000, score_before=0.6, score_after=0.6)], min_gain=0.005)
    assert reading.ratio == pytest.approx(0.3)
    assert reading.v_minus is None and reading.v_plus is None
    assert reading.v_plus_doubled == pytest.approx(fixed_points(0.15)[1])
    assert reading.label == "flat"
    far = classify([steady(num_accepted=4000, score_before=0.4, score_after=0.4)], min_gain=0.005)
    assert far.v_plus_doubled is None and far.label == "starved"


def test_the_difficulty_is_the_median_of_three_rounds():
    rounds = [steady(num_accepted=m) for m in (4000, 400, 600, 1000)]
    assert classify(rounds, min_gain=0.005).complexity == 300
    assert classify(rounds[:2], min_gain=0.005).complexity == 200  # the lower of two


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"score_after": 0.52}, "improving"),
        ({"score_after": 0.508}, "flat"),  # within two standard errors
        ({"score_after": 0.508, "standard_error": 0.0}, "improving"),
        ({"score_after": 0.504, "standard_error": 0.0}, "flat"),
        ({"score_after": 0.48}, "regressed"),
        ({"score_after": 0.492}, "flat"),
        ({"num_accepted": 63, "score_after": 0.52}, "improving"),
        ({"num_accepted": 63, "score_after": 0.4}, "regressed"),
        ({"num_accepted": 63}, "starved"),
        ({"score_before": 0.0, "score_after": 0.0}, "starved"),
        ({"score_before": 1.0, "score_after": 1.0}, "saturated"),
    ],
)
def test_labels(changes, label):
    assert classify([steady(**changes)], min_gain=0.005).label == label


def test_the_rate_is_fitted_where_the_counts_spread():
    def at(m, alpha):
        return steady(num_accepted=m, score_after=1 - (100 / m) ** alpha)

    for alpha in (0.5, 1.0):
        fitted = classify([at(m, alpha) for m in (200, 400, 800, 1600)], min_gain=0.005).fitted_alpha
        assert fitted == pytest.approx(alpha, abs=1e-9)
    assert classify([at(m, 0.5) for m in (200, 400, 800)], min_gain=0.005).fitted_alpha is None
    assert classify([at(m, 0.5) for m in (400, 405, 410, 400)], min_gain=0.005).fitted_alpha is None


def test_general_rate():
    """With α = 1/2 the difficulty is m (1 − e)², and the unstable side ends at (α c^α)^(1/(1+α))."""
    rounds = [steady(num_accepted=2000, score_before=0.7401, score_after=0.7401)]
    reading = classify(rounds, min_gain=0.005, alpha=0.5)
    assert reading.complexity == pytest.approx(2000 * 0.2599**2)
    c = 0.1
    edge = (0.5 * c**0.5) ** (1 / 1.5)
    for score, label in ((edge - 0.001, "starved"), (edge + 0.001, "flat")):
        m = round(c * N / (1 - score) ** 2)
        rounds = [steady(num_accepted=m, score_before=score, score_after=score)]
        assert classify(rounds, min_gain=1e-6, alpha=0.5).label == label


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_sampled": 0, "num_accepted": 0}, "num_sampled: expected at least 1"),
        ({"num_accepted": 4001}, r"num_accepted: expected between 0 and num_sampled \(4000\), got 4001"),
        ({"score_before": -0.1}, "score_before: expected a number between 0 and 1"),
        ({"score_after": float("nan")}, "score_after: expected a number between 0 and 1"),
        ({"standard_error": -1.0}, "standard_error: expected a finite number >= 0"),
    ],
)
def test_rounds_that_cannot_be_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        steady(**change)


@pytest.mark.parametrize(
    ("rounds", "options", "match"),
    [
        ([], {"min_gain": 0.1}, "outcomes: expected at least one round"),
        ([steady()], {"min_gain": 0.0}, "min_gain: expected a number strictly between 0 and 1"),
        ([steady()], {"min_gain": 0.1, "min_accepted": -1}, "min_accepted: expected at least 0"),
        ([steady()], {"min_gain": 0.1, "alpha": 0.0}, "alpha: expected a number above 0"),
    ],
)
def test_readings_that_cannot_be_are_refused(rounds, options, match):
    with pytest.raises(ValueError, match=match):
        classify(rounds, **options)
