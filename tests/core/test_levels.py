"""Curriculum policies: rules that hold in every run as properties over random runs, and each rule by an example."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from wmss.config import CurriculumConfig
from wmss.core.estimators import Z_90, wilson_interval
from wmss.core.levels import (
    POLICIES,
    Curriculum,
    LevelShare,
    LevelState,
    affords_probes,
    apportion,
    choose_focus,
    observe,
    plan_round,
    start,
)

ADAPTIVE = Curriculum("acceptance_target", 4, 12)
GROUPS, SIZE = 256, 4
AS_JSON = TypeAdapter(LevelState)


def run(curriculum, rates, *, rounds=1, state=None, promote=False):
    """Rounds in which every level is accepted at just its rate."""
    state = state or start(curriculum)
    for _ in range(rounds):
        sampled = [0] * curriculum.num_levels
        for share in plan_round(curriculum, state, num_groups=GROUPS, group_size=SIZE):
            sampled[share.level] += share.num_groups * SIZE
        counts = [(round(rate * number), number) for rate, number in zip(rates, sampled, strict=True)]
        state = observe(curriculum, state, counts, promote=promote)
    return state


def totals(shares, purpose):
    return {share.level: share.num_groups for share in shares if share.purpose == purpose}


policies = st.sampled_from(POLICIES)
levels_and_rates = st.integers(1, 6).flatmap(
    lambda number: st.tuples(
        st.just(number), st.lists(st.lists(st.floats(0, 1), min_size=number, max_size=number), min_size=1, max_size=12)
    )
)


@settings(deadline=None, max_examples=150)
@given(policies, levels_and_rates, st.integers(6, 300), st.integers(1, 8), st.floats(0, 0.45), st.floats(0, 0.5))
def test_runs_keep_the_rules(policy, levels, num_groups, group_size, probe_fraction, replay_fraction):
    """S-T27: shares sum, none is negative, at most one level up a round, None only where nothing can be trained on
    or patience has run out twice."""
    num_levels, rounds = levels
    curriculum = Curriculum(
        policy, num_levels, 12, probe_fraction=probe_fraction, replay_fraction=replay_fraction, min_accepted=20
    )
    state = start(curriculum)
    for rates in rounds:
        shares = plan_round(curriculum, state, num_groups=num_groups, group_size=group_size)
        assert sum(share.num_groups for share in shares) == num_groups * state.budget_factor
        assert all(share.num_groups > 0 or policy == "uniform" for share in shares)
        assert all(0 <= share.level < num_levels and share.num_groups >= 0 for share in shares)
        if policy == "acceptance_target" and state.round:
            total = num_groups * state.budget_factor
            assert sum(totals(shares, "probe").values()) <= probe_fraction * total
            assert sum(totals(shares, "replay").values()) <= replay_fraction * total
            assert set(totals(shares, "focus")) == {state.focus}
            assert all(level < state.focus for level in totals(shares, "replay"))
            assert all(level <= state.focus + 1 for level in totals(shares, "probe"))
        sampled = [0] * num_levels
        for share in shares:
            sampled[share.level] += share.num_groups * group_size
        before = state
        state = observe(
            curriculum, state, [(int(rate * number), number) for rate, number in zip(rates, sampled, strict=True)]
        )
        assert state.reason and state.round == before.round + 1
        assert AS_JSON.validate_json(AS_JSON.dump_json(state)) == state
        if policy != "acceptance_target":
            assert state.focus is not None
            continue
        if state.starved:
            number = sum(sampled)
            starving = all(number * (state.acceptance(level) or 0) < 20 for level in range(num_levels))
            assert starving or (before.budget_factor == 2 and before.rounds_waiting == curriculum.patience - 1)
            break
        if before.focus is not None:
            assert state.focus <= before.focus + 1


counts_of_levels = st.lists(
    st.integers(0, 400).flatmap(lambda sampled: st.tuples(st.integers(0, sampled), st.just(sampled))),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=300)
@given(counts_of_levels, st.integers(1, 5000))
def test_no_level_only_if_none_can_be_trained_on(counts, num_samples):
    """S-T27."""
    curriculum = Curriculum("acceptance_target", len(counts), 12)
    enough = [num_samples * (m / k if k else 0) >= curriculum.min_accepted for m, k in counts]
    level, reason = choose_focus(curriculum, counts, num_samples)
    assert (level is None) == (not any(enough))
    assert reason
    if level is not None and not reason.startswith("mastered"):
        assert enough[level]


def test_every_level_is_reachable():
    """S-T27: from a cold start, a level that is trained is learned, and the next one becomes possible."""
    rates, state, seen = [0.4, 0.1, 0.02, 0.0], start(ADAPTIVE), []
    for _ in range(20):
        state = run(ADAPTIVE, rates, state=state)
        seen.append(state.focus)
        rates[state.focus] = min(rates[state.focus] + 0.4, 0.95)
        if state.focus < 3:
            rates[state.focus + 1] = 0.5 * rates[state.focus]
    assert sorted(set(seen)) == [0, 1, 2, 3]
    assert seen == sorted(seen)
    assert not state.starved


def test_a_lost_level_is_left_after_two_rounds():
    """S-T27: demotion, by one level, not before the second round below the band."""
    state = run(ADAPTIVE, [0.9, 0.8, 0.4, 0.1])
    assert state.focus == 2
    once = run(ADAPTIVE, [0.9, 0.5, 0.1, 0.0], state=state)
    assert (once.focus, once.rounds_below) == (2, 1)
    twice = run(ADAPTIVE, [0.9, 0.5, 0.1, 0.0], state=once)
    assert (twice.focus, twice.rounds_below) == (1, 0)
    assert "below 0.2 for 2 rounds" in twice.reason
    recovered = run(ADAPTIVE, [0.9, 0.5, 0.3, 0.0], state=once)
    assert (recovered.focus, recovered.rounds_below) == (2, 0)


def test_policies_are_those_of_the_config():
    assert get_args(CurriculumConfig.model_fields["policy"].annotation) == POLICIES


@pytest.mark.parametrize(
    ("policy", "focuses"),
    [
        ("clock", [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]),
        ("hard_to_easy", [3, 3, 3, 2, 2, 2, 1, 1, 1, 0, 0, 0]),
        ("hard_only", [3] * 12),
    ],
)
def test_the_number_of_the_round_decides(policy, focuses):
    curriculum = Curriculum(policy, 4, 12)
    state, seen = start(curriculum), []
    for _ in range(12):
        shares = plan_round(curriculum, state, num_groups=10, group_size=4)
        assert shares == (LevelShare(state.focus, "focus", 10),)
        seen.append(state.focus)
        state = observe(curriculum, state, [(0, 0)] * 4, promote=True)
    assert seen == focuses


def test_a_clock_whose_rounds_do_not_divide_reaches_the_last_level():
    curriculum = Curriculum("clock", 4, 6)
    state, seen = start(curriculum), []
    for _ in range(8):
        seen.append(state.focus)
        state = observe(curriculum, state, [(0, 0)] * 4)
    assert seen == [0, 0, 1, 2, 2, 3, 3, 3]


def test_uniform_shares_go_round():
    curriculum = Curriculum("uniform", 4, 4)
    state, sums = start(curriculum), [0] * 4
    for _ in range(4):
        for share in plan_round(curriculum, state, num_groups=10, group_size=1):
            assert share.num_groups in (2, 3)
            sums[share.level] += share.num_groups
        state = observe(curriculum, state, [(0, 0)] * 4)
    assert sums == [10] * 4


def test_first_round_probes_every_level():
    shares = plan_round(ADAPTIVE, start(ADAPTIVE), num_groups=GROUPS, group_size=SIZE)
    assert shares == tuple(LevelShare(level, "probe", 64) for level in range(4))


def test_later_rounds_probe_train_and_replay():
    """Of 256 groups 25 are probes (three levels, 8 groups = 32 samples each at least), 38 replays, the rest focus."""
    state = run(ADAPTIVE, [0.9, 0.8, 0.4, 0.1])
    shares = plan_round(ADAPTIVE, state, num_groups=GROUPS, group_size=SIZE)
    assert totals(shares, "probe") == {0: 8, 1: 8, 3: 9}
    assert totals(shares, "focus") == {2: 193}
    assert totals(shares, "replay") == {0: 19, 1: 19}


def test_replay_goes_to_what_has_fallen():
    state = run(ADAPTIVE, [0.9, 0.8, 0.4, 0.1])
    state = run(ADAPTIVE, [0.9, 0.2, 0.4, 0.1], state=state)
    replay = totals(plan_round(ADAPTIVE, state, num_groups=GROUPS, group_size=SIZE), "replay")
    fallen = 0.8 - state.acceptance(1)
    assert fallen > 0.25
    assert replay[1] == pytest.approx(38 * (fallen + 0.05) / (fallen + 0.1), abs=1)


def test_few_probes_go_to_the_level_above():
    state = run(ADAPTIVE, [0.9, 0.8, 0.4, 0.1])
    shares = plan_round(ADAPTIVE, state, num_groups=100, group_size=SIZE)  # 10 groups: 40 samples
    assert totals(shares, "probe") == {3: 10}


def test_a_good_start_trains_the_hardest_level_at_once():
    assert run(ADAPTIVE, [0.99, 0.95, 0.8, 0.45]).focus == 3


def test_the_focus_is_the_level_nearest_the_target():
    counts = [(90, 100), (50, 100), (33, 100), (10, 100)]
    assert choose_focus(ADAPTIVE, counts, 1024)[0] == 2
    assert choose_focus(ADAPTIVE, [(90, 100), (37, 100), (33, 100), (1, 100)], 1024)[0] == 1


def test_the_focus_where_no_level_is_in_the_band():
    above = choose_focus(ADAPTIVE, [(90, 100), (80, 100), (1, 100), (0, 100)], 1024)
    assert above[0] == 1 and above.reason.startswith("above the band")
    below = choose_focus(ADAPTIVE, [(10, 100), (7, 100), (0, 100), (0, 100)], 1024)
    assert below[0] == 0 and below.reason.startswith("below the band")
    mastered = choose_focus(ADAPTIVE, [(400, 400)] * 4, 1024)
    assert mastered == (3, "mastered: every level is accepted")
    unmeasured = choose_focus(ADAPTIVE, [(400, 400)] * 3 + [(0, 0)], 1024)
    assert unmeasured[0] == 2


def test_a_level_just_below_the_band_is_in_it_within_its_interval():
    assert wilson_interval(6, 40, z=Z_90)[1] > 0.2
    assert choose_focus(ADAPTIVE, [(39, 40), (6, 40), (0, 40), (0, 40)], 1024)[0] == 1


def test_promotion_waits_until_the_next_level_clears_the_band():
    state = run(ADAPTIVE, [0.59, 0.12, 0.0, 0.0])
    assert state.focus == 0
    near = LevelState(5, 0, ((118.0, 200.0), (44.0, 200.0), (0.0, 200.0), (0.0, 200.0)), (0.59, 0.22, 0.0, 0.0))
    stays = observe(ADAPTIVE, near, [(472, 800), (22, 100), (0, 0), (0, 0)])
    assert stays.focus == 0  # .22 is nearer .37 than .59 is, but not .25
    assert observe(ADAPTIVE, near, [(472, 800), (35, 100), (0, 0), (0, 0)]).focus == 1


def test_one_level_at_a_time():
    state = run(ADAPTIVE, [0.5, 0.1, 0.0, 0.0])
    assert state.focus == 0
    jumped = observe(ADAPTIVE, state, [(900, 900), (900, 900), (400, 900), (300, 900)])
    assert jumped.focus == 1


def test_saturation_promotes_whatever_the_next_level_is():
    state = run(ADAPTIVE, [0.9, 0.05, 0.0, 0.0])
    assert state.focus == 0
    assert run(ADAPTIVE, [0.9, 0.05, 0.0, 0.0], state=state).focus == 0
    assert run(ADAPTIVE, [0.9, 0.05, 0.0, 0.0], state=state, promote=True).focus == 1
    last = run(ADAPTIVE, [0.9, 0.9, 0.9, 0.4])
    assert run(ADAPTIVE, [0.9, 0.9, 0.9, 0.4], state=last, promote=True).focus == 3


def test_patience_doubles_the_budget_once_and_then_ends():
    rates = [0.9, 0.05, 0.0, 0.0]
    state = run(ADAPTIVE, rates)
    state = run(ADAPTIVE, rates, rounds=2, state=state)
    assert (state.budget_factor, state.rounds_waiting) == (1, 2)
    state = run(ADAPTIVE, rates, state=state)
    assert (state.focus, state.budget_factor, state.rounds_waiting) == (0, 2, 0)
    shares = plan_round(ADAPTIVE, state, num_groups=GROUPS, group_size=SIZE)
    assert sum(share.num_groups for share in shares) == 2 * GROUPS
    state = run(ADAPTIVE, rates, rounds=3, state=state)
    assert state.starved and state.reason == "starved: 3 rounds without promotion from level 1 at twice the samples"
    with pytest.raises(ValueError, match="expected a level to train on, got none"):
        plan_round(ADAPTIVE, state, num_groups=GROUPS, group_size=SIZE)


def test_the_hardest_level_waits_for_nothing():
    state = run(ADAPTIVE, [0.9, 0.9, 0.9, 0.4], rounds=12)
    assert (state.focus, state.budget_factor) == (3, 1)


def test_too_few_accepted_responses_double_the_budget_before_they_starve():
    rescued = run(ADAPTIVE, [0.05, 0.0, 0.0, 0.0])  # 51 of 1024; 102 of 2048
    assert (rescued.focus, rescued.budget_factor) == (0, 2)
    starved = run(ADAPTIVE, [0.01, 0.0, 0.0, 0.0])
    assert starved.starved and "64 accepted responses" in starved.reason
    again = observe(ADAPTIVE, rescued, [(10, 2048), (0, 0), (0, 0), (0, 0)])
    assert again.starved


def test_old_counts_fade_and_unsampled_levels_keep_theirs():
    state = observe(ADAPTIVE, start(ADAPTIVE), [(80, 100), (40, 100), (10, 100), (0, 100)])
    state = observe(ADAPTIVE, state, [(0, 0), (90, 100), (10, 100), (0, 100)])
    assert state.counts[0] == (80, 100)
    assert state.acceptance(1) == pytest.approx((0.4 * 32 + 90) / 132)
    assert state.best[:2] == (0.8, pytest.approx((0.4 * 32 + 90) / 132))
    assert start(ADAPTIVE).acceptance(0) is None


def test_small_probes_remember_half():
    state = observe(ADAPTIVE, start(ADAPTIVE), [(8, 32)] * 4)
    assert observe(ADAPTIVE, state, [(16, 32)] * 4).counts == ((24, 64),) * 4


def test_patience_does_not_run_while_the_focus_rises():
    state = run(ADAPTIVE, [0.3, 0.0, 0.0, 0.0])
    for rate in (0.38, 0.46, 0.54, 0.62):
        state = run(ADAPTIVE, [rate, 0.0, 0.0, 0.0], state=state)
        assert (state.focus, state.rounds_waiting, state.budget_factor) == (0, 0, 1)
    assert run(ADAPTIVE, [0.66, 0.0, 0.0, 0.0], state=state).rounds_waiting == 1


@pytest.mark.parametrize(
    ("levels", "groups", "size", "enough"),
    [(4, 80, 4, True), (4, 79, 4, False), (4, 320, 1, True), (4, 319, 1, False), (1, 1, 1, True), (20, 100, 8, True)],
)
def test_budgets_that_afford_probes(levels, groups, size, enough):
    assert affords_probes(levels, num_groups=groups, group_size=size) == enough
    assert not affords_probes(2, num_groups=10**6, group_size=size, probe_fraction=0)


@given(st.integers(0, 1000), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_apportioned_numbers_are_within_one_of_their_share(total, weights):
    shares = apportion(total, weights)
    assert sum(shares) == total
    assert all(
        abs(share - total * weight / sum(weights)) < 1 + 1e-6 for share, weight in zip(shares, weights, strict=True)
    )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"policy": "easy"}, "policy: expected one of"),
        ({"num_levels": 0}, "num_levels: expected a positive number, got 0"),
        ({"patience": 0}, "patience: expected a positive number"),
        ({"target": 0.7}, "band: expected 0 <= low < target < high <= 1"),
        ({"probe_fraction": 0.5, "replay_fraction": 0.5}, "probe_fraction, replay_fraction: expected"),
        ({"probe_fraction": -0.1}, "probe_fraction, replay_fraction: expected"),
        ({"policy": "clock", "num_rounds": 3}, "num_rounds: expected at least one round for each of the 4 levels"),
    ],
)
def test_curricula_that_make_no_sense_are_refused(change, match):
    with pytest.raises(ValueError, match=match):
        Curriculum(**{"policy": "acceptance_target", "num_levels": 4, "num_rounds": 12, **change})


def test_rounds_that_make_no_sense_are_refused():
    state = start(ADAPTIVE)
    with pytest.raises(ValueError, match="num_groups: expected at least one for each of the 4 levels, got 3"):
        plan_round(ADAPTIVE, state, num_groups=3, group_size=4)
    with pytest.raises(ValueError, match="num_groups, group_size: expected positive numbers"):
        plan_round(ADAPTIVE, state, num_groups=4, group_size=0)
    with pytest.raises(ValueError, match="counts: expected one pair for each of 4 levels, got 1"):
        observe(ADAPTIVE, state, [(0, 1)])
    with pytest.raises(ValueError, match=r"got 5 of 4 \(level 1\)"):
        observe(ADAPTIVE, state, [(0, 1), (5, 4), (0, 1), (0, 1)])
    with pytest.raises(ValueError, match="at least one sampled response"):
        observe(ADAPTIVE, state, [(0, 0)] * 4)
