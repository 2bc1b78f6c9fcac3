"""The forecast against simulation A, the thresholds, and figures measured apart from the code."""

import math

import numpy as np
import pytest

from wmss.core.levels import POLICIES
from wmss.theory import curriculum_thresholds, forecast, simulate_acceptance

LADDER = [0.3, 0.09, 0.027]


def of_ladder(num_samples, *, starts=LADDER, complexity=100, rounds=12, repetitions=60, **options):
    return forecast(
        starts, complexity=complexity, num_samples=num_samples, rounds=rounds, repetitions=repetitions, **options
    )


@pytest.mark.parametrize(
    ("complexity", "alpha", "plateau"),
    [(100, 1.0, 0.9472), (300, 1.0, 0.8162), (480, 1.0, 0.599), (520, 1.0, None), (100, 0.5, 0.7401), (300, 0.5, None)],
)
def test_ceilings_are_the_plateaus_of_the_table(complexity, alpha, plateau):
    """V₊ within .01 of the simulated plateau (n = 2000, start .5), and none where runs collapse."""
    given = {"complexity": complexity, "num_samples": 2000, "alpha": alpha}
    found = forecast([0.5], rounds=60, repetitions=400, **given)
    simulated = simulate_acceptance(start=0.5, rounds=60, repetitions=4000, **given)[-1].mean()
    if plateau is None:
        assert found.v_plus is None and found.v_minus is None
        assert simulated < 0.01 and found.of("uniform").end < 0.01
        assert found.of("uniform").predicted is None
        return
    assert simulated == pytest.approx(plateau, abs=0.002)
    assert found.v_plus == pytest.approx(simulated, abs=0.01)
    assert found.of("uniform").predicted == found.v_plus
    assert found.of("uniform").end == pytest.approx(simulated, abs=0.002)


def test_in_the_window_it_is_easy_to_hard():
    found = of_ladder(1024)
    assert found.recommended == "clock"
    clock = found.of("clock")
    assert clock.predicted == pytest.approx(0.8903, abs=1e-4) == found.v_plus
    assert clock.interval[0] < clock.end < clock.interval[1] and clock.end == pytest.approx(0.89, abs=0.01)
    assert clock.verdict == "guaranteed"
    assert clock.needed == curriculum_thresholds(LADDER, complexity=100).easy_to_hard
    for policy in ("uniform", "hard_only"):
        assert found.of(policy).predicted is None and found.of(policy).verdict == "no guarantee"
    assert found.of("acceptance_target").needed is None and found.of("acceptance_target").verdict == "no bound"
    assert [each.policy for each in found.policies] == list(POLICIES)


def test_a_good_start_needs_no_stages():
    found = of_ladder(1024, starts=[0.9, 0.7, 0.5], rounds=6)
    assert found.recommended == "hard_only"
    assert found.of("hard_only").speed > found.of("clock").speed + 0.1
    assert any("stages on easier ones would waste rounds" in reason for reason in found.reasons)


def test_above_every_threshold_the_mixture_ends_lower_by_little():
    found = of_ladder(6000)
    assert found.of("clock").predicted - found.of("uniform").predicted == pytest.approx(200 / 6000, abs=0.01)
    assert all(found.of(policy).verdict == "guaranteed" for policy in ("clock", "uniform", "hard_only"))


def test_too_few_rounds_are_said():
    found = of_ladder(600, rounds=6)
    assert found.of("clock").verdict == "needs more rounds"
    assert found.of("clock").predicted == pytest.approx(0.7887, abs=1e-4)


def test_no_policy_is_recommended_where_none_gets_anywhere():
    poor = of_ladder(300)
    assert poor.recommended is None
    assert poor.reasons[0].startswith("below 400 samples a round")
    assert poor.reasons[-1] == "the smallest budget with a guarantee is over 563 samples a round"
    never = of_ladder(1024, starts=[0.3, 0.09, 0.0], rounds=6)
    assert never.recommended is None and never.of("clock").verdict == "never guaranteed"
    assert math.isinf(never.of("clock").needed)
    short = of_ladder(600, rounds=3)
    assert short.recommended is None and short.reasons[-1] == "the budget is enough: give it more rounds"


def test_what_cannot_run_is_left_out_with_a_reason():
    small = of_ladder(200, complexity=5, rounds=2)
    assert set(small.left_out) == {"clock", "hard_to_easy", "acceptance_target"}
    assert "2 rounds are fewer than 3 levels" in small.left_out["clock"]
    assert "too small to measure levels" in small.left_out["acceptance_target"]
    assert [each.policy for each in small.policies] == ["uniform", "hard_only"]
    assert "uniform" in of_ladder(8, group_size=4, complexity=1).left_out
    assert [each.policy for each in of_ladder(100, starts=[0.5]).policies] == ["uniform"]


def test_traces_begin_at_the_start_and_the_seed_is_the_run():
    one, again, other = (of_ladder(1024, seed=seed, repetitions=5) for seed in (0, 0, 1))
    for policy in one.policies:
        assert policy.trace.shape == (13, 3)
        assert policy.trace[0] == pytest.approx(LADDER)
        assert (policy.trace == again.of(policy.policy).trace).all()
    assert (one.of("clock").trace != other.of("clock").trace).any()
    assert np.all(one.of("clock").trace <= 1)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"starts": []}, "starts: expected the acceptance of at least one level"),
        ({"starts": [0.3, 2.0]}, r"starts\[1\]: expected a number between 0 and 1"),
        ({"complexity": -1}, "complexity: expected a finite number >= 0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, got 0"),
        ({"group_size": 3}, r"num_samples: expected a multiple of group_size \(3\), got 1024"),
        ({"rounds": 0}, "rounds: expected at least 1"),
        ({"repetitions": 0}, "repetitions: expected at least 1"),
        ({"alpha": 0.0}, "alpha: expected a number above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(change, match):
    with pytest.raises(ValueError, match=match):
        forecast(**{"starts": LADDER, "complexity": 100, "num_samples": 1024, "rounds": 6, **change})
