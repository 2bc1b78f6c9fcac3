"""When a margin counts as flat, and which checkpoint is a useful weak one: by hand and at the edges."""

import math

import pytest

from wmss.core.saturation import MIN_ENTROPY_GAP, MIN_GROWTH, WINDOW, is_saturated, useful_weak


def test_growing_then_flat_by_hand():
    # Windows of two: means 1.5 then 3.5 (growing), 3.5 then 3.55 (+1.4 %), with 2 % asked for.
    assert not is_saturated([1.0, 2.0, 3.0, 4.0], window=2)
    assert is_saturated([1.0, 2.0, 3.0, 4.0, 3.5, 3.6], window=2)
    assert not is_saturated([1.0, 2.0, 3.0, 4.0, 3.5, 3.6], window=2, min_growth=0.01)


def test_only_the_last_two_windows_count():
    flat = [5.0] * 10
    assert is_saturated(flat)
    assert is_saturated([1.0, 100.0, -3.0, *flat])
    assert not is_saturated([*flat, *(6.0 + i for i in range(5))])


def test_a_falling_margin_is_flat_and_a_negative_one_may_grow():
    assert is_saturated([3.0, 2.0], window=1)
    assert not is_saturated([-4.0, -3.0], window=1)
    assert is_saturated([-4.0, -3.95], window=1)  # grew by 1.25 % of its size
    assert not is_saturated([0.0, 1e-9], window=1)
    assert not is_saturated([0.0, 0.0], window=1)  # nothing was learnt yet


def test_growth_at_the_threshold_is_growth():
    assert not is_saturated([1.0, 1.0 + 2 * MIN_GROWTH], window=1, min_growth=2 * MIN_GROWTH)
    assert is_saturated([64.0, 65.0], window=1, min_growth=1 / 32)
    assert not is_saturated([64.0, 66.0], window=1, min_growth=1 / 32)


@pytest.mark.parametrize("margins", [[], [1.0], [1.0] * (2 * WINDOW - 1)])
def test_too_few_readings_say_nothing(margins):
    assert not is_saturated(margins)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_not_finite_says_nothing(bad):
    assert not is_saturated([*[1.0] * 9, bad])
    assert is_saturated([bad, *[1.0] * 10])


def test_window_is_checked():
    with pytest.raises(ValueError, match="window: expected a positive number of readings, got 0"):
        is_saturated([1.0], window=0)


def test_latest_checkpoint_far_enough_by_hand():
    # Gaps .11, .10, .07, .04, .01; half of the largest is .055.
    entropies = {0: 0.55, 50: 0.54, 100: 0.51, 150: 0.48, 200: 0.45}
    assert useful_weak(entropies, 0.44) == 100
    assert useful_weak({0: 0.55}, 0.44) == 0


def test_half_the_largest_gap_is_far_enough():
    assert useful_weak({10: 1.0, 20: 0.75, 30: 0.74}, 0.5) == 20


def test_checkpoints_too_near_are_of_no_use():
    assert useful_weak({}, 0.4) is None
    assert useful_weak({10: 0.4 + 0.9 * MIN_ENTROPY_GAP}, 0.4) is None
    assert useful_weak({10: 0.3, 20: 0.2}, 0.4) is None
    assert useful_weak({10: 0.5, 20: 0.3}, 0.25, min_gap=0.3) is None
    assert useful_weak({10: 0.75, 20: 0.375}, 0.25, min_gap=0.5) == 10
