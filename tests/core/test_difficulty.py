"""Levels from pass rates."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmss.core.difficulty import level_at, levels_of, lowest_rates

RATES = st.lists(st.integers(0, 8).map(lambda right: right / 8), min_size=1, max_size=60)


@given(RATES, st.integers(2, 6))
def test_levels_follow_the_rates_without_gaps(rates, num_levels):
    levels = levels_of(rates, num_levels)
    assert set(levels) == set(range(1, max(levels) + 1)) and max(levels) <= num_levels
    for rate, level in zip(rates, levels, strict=True):
        for other_rate, other in zip(rates, levels, strict=True):
            assert not (rate > other_rate and level > other)
            assert not (rate == other_rate and level != other)


@given(RATES, st.integers(2, 6))
def test_a_task_of_a_known_rate_has_the_level_of_those(rates, num_levels):
    levels = levels_of(rates, num_levels)
    lowest = lowest_rates(rates, levels)
    assert lowest == sorted(lowest, reverse=True)
    assert [level_at(rate, lowest) for rate in rates] == levels.tolist()


def test_distinct_rates_fill_levels_alike():
    assert levels_of([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2], 4).tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert level_at(0.0, [0.8, 0.6]) == 2


def test_rates_outside_of_0_to_1_are_refused():
    for rates in ([], [1.1], [-0.1]):
        with pytest.raises(ValueError, match="pass_rates"):
            levels_of(rates, 2)
