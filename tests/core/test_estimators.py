"""Intervals against published values and at its edges."""

import pytest

from wmss.core.estimators import difference_interval, wilson_interval


def test_known_values():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148, 95 %.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_edges():
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="0 <= num_correct <= num_trials > 0"):
        wilson_interval(0, 0)


def test_known_differences():
    # Newcombe (1998), table II, method 10: 56/70 - 48/80, and 10/10 - 0/10.
    assert difference_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert difference_interval(10, 10, 0, 10) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_one_of_sixteen_is_not_told_from_none():
    low, high = difference_interval(1, 16, 0, 16)
    assert low < 0 < high
