"""Wilson's interval against published values and at its edges."""

import pytest

from wmss.core.estimators import wilson_interval


def test_known_values():
    # Newcombe (1998), table I: 81 of 263 and 15 of 148, 95 %.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_edges():
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    with pytest.raises(ValueError, match="0 <= num_correct <= num_trials > 0"):
        wilson_interval(0, 0)
