"""Easy-to-hard against mixture and hard-only with a real transformer: docs/self_improvement.md, “What the demo shows”.

A run near the threshold goes either way with its seed, so means over runs are held, with room for the spread measured.
"""

from statistics import mean

import pytest

from benchmarks.self_improvement import ARMS, EXPERIMENTS, run_arm
from wmss.tasks.graph_hops import make_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """results(experiment, seeds) -> by arm, the rounds of each run: two bases, each with so many seeds."""

    def run(experiment, seeds):
        setting = EXPERIMENTS[experiment]
        found = {arm: [] for arm in ARMS}
        for base_seed in range(2):
            base = tmp_path_factory.mktemp(experiment)
            make_base(base, seed=base_seed, until=setting.base_success)
            for arm, runs in found.items():
                runs += [run_arm(base, arm, setting, seed=seed) for seed in range(seeds)]
        return found

    return run


def at_the_end(runs):
    """Success on the hardest level after the last round."""
    return [rounds[-1].success[-1] for rounds in runs]


def over_the_rounds(runs):
    """Mean over runs and rounds of success on the hardest level."""
    return mean(one.success[-1] for rounds in runs for one in rounds)


def test_in_the_window_easy_to_hard_climbs_further(results):
    """Measured: easy-to-hard .990 .991 on base 0 and .000 .018 on base 1, mixture .010 .650 and .001 .000,
    hard-only at most .005. Base 1 needs more than these 128 responses a round for either arm."""
    found = results("window", 2)
    easy, mixture, hard = (at_the_end(found[arm]) for arm in ("easy_to_hard", "mixture", "hard_only"))
    assert mean(easy) > mean(mixture) + 0.15
    assert max(easy) > 0.9
    assert max(hard) < 0.15


def test_with_many_samples_the_mixture_is_as_good(results):
    """Measured: easy-to-hard .997 1.000, mixture .976 1.000, hard-only .002 .005."""
    found = results("parity", 1)
    assert min(at_the_end(found["easy_to_hard"])) > 0.9
    assert min(at_the_end(found["mixture"])) > 0.9
    assert max(at_the_end(found["hard_only"])) < 0.15


def test_from_a_good_start_easy_to_hard_wastes_rounds(results):
    """Measured, mean over rounds: easy-to-hard .881 .756, mixture .961 .964, hard-only .967 .960. All end at
    1.000."""
    found = results("good_start", 1)
    easy, mixture, hard = (over_the_rounds(found[arm]) for arm in ("easy_to_hard", "mixture", "hard_only"))
    assert mixture > easy
    assert hard > easy
