"""The bounds of several levels: the window between the thresholds, and the product's curriculum in it."""

import pytest

from wmss.core.levels import Curriculum
from wmss.theory import (
    Ladder,
    curriculum_thresholds,
    fixed_points,
    simulate_acceptance,
    simulate_levels,
)

LADDER = Ladder([0.3, 0.09, 0.027], 100)
GRID = (300, 390, 410, 500, 600, 900, 1100, 1200, 1300, 2000, 5000, 20_000)
ROUNDS = 36


def ends(policy, n, *, ladder=LADDER, rounds=ROUNDS, repetitions=60, keep_best=True, **options):
    curriculum = Curriculum(policy, len(ladder.starts), rounds, **options)
    trace = simulate_levels(
        ladder, curriculum, num_groups=n, group_size=1, repetitions=repetitions, keep_best=keep_best
    )
    return trace[-1, :, -1]


@pytest.mark.parametrize(
    ("policy", "name"), [("clock", "easy_to_hard"), ("uniform", "uniform"), ("hard_only", "hard_only")]
)
@pytest.mark.parametrize("keep_best", [True, False])
def test_success_begins_at_the_threshold(policy, name, keep_best):
    """On the whole grid, except within 5 % of a threshold."""
    threshold = getattr(curriculum_thresholds(LADDER.starts, complexity=LADDER.complexity), name)
    for n in GRID:
        if abs(n / threshold - 1) > 0.05:
            succeeded = (ends(policy, n, keep_best=keep_best) > 0.5).mean()
            assert succeeded > 0.9 if n > threshold else succeeded < 0.1, (n, succeeded)


@pytest.mark.parametrize(
    ("policy", "n", "predicted"), [("clock", 600, 0.7887), ("uniform", 2000, 0.8162), ("hard_only", 5000, 0.9796)]
)
def test_ends_are_the_ceilings(policy, n, predicted):
    """V₊ of a/n, and of a L/n for a mixture."""
    share = n // 3 if policy == "uniform" else n
    assert fixed_points(100 / share)[1] == pytest.approx(predicted, abs=5e-4)
    assert ends(policy, n, rounds=60, keep_best=False).mean() == pytest.approx(predicted, abs=0.01)


def test_one_level_is_simulation_a():
    curriculum = Curriculum("hard_only", 1, 30)
    trace = simulate_levels(Ladder([0.5], 300), curriculum, num_groups=500, group_size=4, repetitions=2000)
    alone = simulate_acceptance(num_samples=2000, complexity=300, start=0.5, rounds=30, repetitions=2000)
    assert trace[..., 0].mean(axis=1) == pytest.approx(alone.mean(axis=1), abs=0.001)
    assert trace.shape == (31, 2000, 1)


def test_harder_levels_follow_the_easier():
    """One round on level 1 alone: .8 there, κ = .3 times that above, and so on; with samples enough to hide chance."""
    clock = Curriculum("clock", 3, 3)
    trace = simulate_levels(Ladder([0.5, 0.15, 0.045], 1e5), clock, num_groups=10**6, group_size=1, repetitions=1)
    assert trace[1, 0] == pytest.approx([0.8, 0.24, 0.072], abs=2e-3)


def test_measured_acceptance_climbs_where_the_clock_does():
    assert ends("acceptance_target", 1000, keep_best=False).mean() == pytest.approx(
        fixed_points(0.1 / 0.75)[1], abs=0.03
    )


def test_measured_acceptance_trains_the_hardest_level_at_once_from_a_good_start():
    ladder = Ladder([0.95, 0.8, 0.45], 100)
    adaptive, clock = (
        simulate_levels(ladder, Curriculum(policy, 3, 6), num_groups=1000, group_size=1, repetitions=20)[3, :, -1]
        for policy in ("acceptance_target", "clock")
    )
    assert adaptive.mean() > clock.mean() + 0.1


def test_a_starved_run_stays_as_it_is():
    ladder = Ladder([0.02, 0.001], 100)
    curriculum = Curriculum("acceptance_target", 2, 5)
    trace = simulate_levels(ladder, curriculum, num_groups=1000, group_size=1, repetitions=3, keep_best=True)
    assert (trace[2:] == trace[1]).all()


def test_the_seed_is_the_run():
    given = {"num_groups": 600, "group_size": 2, "repetitions": 4}
    curriculum = Curriculum("acceptance_target", 3, 6)
    one, again, other = (simulate_levels(LADDER, curriculum, **given, seed=seed) for seed in (1, 1, 2))
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize(("policy", "falls"), [("uniform", True), ("acceptance_target", False)])
def test_only_levels_in_focus_fall(policy, falls):
    """Thirty samples of a level that 100 accepted ones are needed for: its own bound says nothing."""
    trace = simulate_levels(
        Ladder([0.9, 0.5], 100), Curriculum(policy, 2, 1), num_groups=60, group_size=1, repetitions=5
    )
    assert (trace[1] == (0.0 if falls else trace[0])).all()


@pytest.mark.parametrize(
    ("ladder", "match"),
    [
        (Ladder([0.3, 0.1], 100), "starts: expected one for each of 3 levels, got 2"),
        (Ladder([0.3, 0.1, 2.0], 100), r"starts\[2\]: expected a number between 0 and 1"),
        (Ladder([0.3, 0.1, 0.1], -1), "complexity: expected a finite number >= 0"),
        (Ladder([0.3, 0.1, 0.1], 1, 0.0), "alpha: expected a number above 0"),
    ],
)
def test_what_is_out_of_range_is_refused(ladder, match):
    with pytest.raises(ValueError, match=match):
        simulate_levels(ladder, Curriculum("clock", 3, 3), num_groups=1, group_size=1, repetitions=1)
