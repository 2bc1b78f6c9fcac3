"""What each curriculum needs, against the closed formulas."""

import math

import pytest

from wmss.theory import curriculum_thresholds


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


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: curriculum_thresholds([], complexity=1), "starts: expected the acceptance of at least one level"),
        (lambda: curriculum_thresholds([0.1, 1.1], complexity=1), r"starts\[1\]: expected a number between 0 and 1"),
    ],
)
def test_what_is_out_of_range_is_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
