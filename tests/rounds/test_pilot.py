"""A pilot's counts and gates, and what is made of them."""

import dataclasses
import itertools
import re

import pytest

from tests.rounds import echo
from tests.rounds.engines import MemoryJournal, SamplingEngines
from tests.rounds.test_improvement import KNOBS, echo_base, make, rows  # noqa: F401
from wmss.config import SelfImprovementConfig
from wmss.core.selection import normalized
from wmss.errors import ConfigError, DataError, ModelError
from wmss.rounds.improvement.outlook import look_ahead
from wmss.rounds.improvement.pilot import PilotLevel, run_pilot
from wmss.rounds.improvement.rollouts import read_rollouts, shards_in


def pilot(job, *, num_prompts=8, num_samples=4):
    return run_pilot(
        job, SamplingEngines(job.folder), MemoryJournal(), num_prompts=num_prompts, num_samples=num_samples
    )


def test_counts_are_those_of_the_responses(make):  # noqa: F811
    job = make()
    found = pilot(job)
    rollouts = read_rollouts(shards_in(job.folder / "pilot"))
    tasks = dict(enumerate(rows(80, seed=1), start=1))
    assert [level.level for level in found.levels] == [1, 2] and len(rollouts) == 2 * 8 * 4
    for level in found.levels:
        own = [each for each in rollouts if each.level == level.level]
        assert {tasks[each.line]["level"] for each in own} == {level.level}
        ended = [each for each in own if each.completion.finish_reason == "stop"]
        right = sum(each.text == tasks[each.line]["answer"] for each in ended)
        assert (level.num_sampled, level.num_prompts, level.num_accepted) == (32, 8, right)
        assert level.num_truncated == len(own) - len(ended)
        lines = {each.line for each in own}
        texts = [len({normalized(each.text) for each in own if each.line == line}) for line in lines]
        assert level.distinct_per_prompt == sum(texts) / 8
        low, high = level.interval_90
        assert low < level.acceptance < high
    assert found.samples_per_prompt == 4
    assert pilot(job).levels == found.levels  # the same prompts, and the same responses
    assert {r.seed for r in rollouts} == {r.seed for r in read_rollouts(shards_in(job.folder / "pilot"))}


def test_levels_are_estimated_from_one_half_of_the_responses_and_counted_on_the_other(make):  # noqa: F811
    def unlevelled(tasks):
        return [{key: value for key, value in task.items() if key != "level"} for task in tasks]

    job = make(training=unlevelled(rows(80, seed=1)), held_out=unlevelled(rows(24, seed=2)), estimate_levels=2)
    found = pilot(job, num_prompts=20, num_samples=8)
    assert [level.level for level in found.levels] == [1, 2] and found.samples_per_prompt == 4
    assert sum(level.num_prompts for level in found.levels) == 40
    assert sum(level.num_sampled for level in found.levels) == 160  # of 320 drawn
    assert found.levels[0].acceptance > found.levels[1].acceptance
    with pytest.raises(ConfigError, match="--samples: expected at least 2 with estimate_levels"):
        pilot(job, num_samples=1)


def test_gates_name_what_was_found_and_what_to_do(make):  # noqa: F811
    training = rows(40, seed=1, levels=(1, 2, 3))  # the third is longer than any answer it was taught
    held_out = rows(24, seed=2, levels=(1, 2, 3))
    cut = pilot(make(training, held_out, rounds=3, sampling={"max_new_tokens": 4}))
    truncation = cut.gates[2]
    assert not truncation.passed and "raise sampling.max_new_tokens above 4" in truncation.remedy
    unread = pilot(make(verifier={"type": "regex", "pattern": r"= (\w+)"}))
    assert [gate.passed for gate in unread.gates[:2]] == [False, False]
    assert unread.levels[0].num_accepted == 0 and unread.gates[1].found == "100.0%"
    assert "easier tasks" in unread.gates[0].remedy and "how to write the answer" in unread.gates[1].remedy
    assert "nothing_accepted" in {alarm.code for alarm in unread.alarms}


@pytest.mark.parametrize(("longer", "shorter", "told"), [(1, 2, True), (2, 1, False)])
def test_levels_that_do_not_get_harder_are_told(make, longer, shorter, told):  # noqa: F811
    """Five words are more than the model was ever taught to say."""

    def renumbered(num, seed):
        number = {3: longer, 1: shorter}
        return [task | {"level": number[task["level"]]} for task in rows(num, seed=seed, levels=(1, 3))]

    found = pilot(make(renumbered(80, 1), renumbered(24, 2)), num_prompts=40, num_samples=8)
    gate = found.gates[-1]
    assert gate.passed is not told and gate.found.startswith("level 2 is accepted" if told else "none")


def test_a_verifier_of_the_jobs_own_that_fails_is_told(make):  # noqa: F811
    """Its errors are verdicts, not acceptances, and raise the alarm of a round."""
    source = "def verify(task, response):\n    raise RuntimeError('no')"
    found = pilot(make(verifier={"type": "python", "source": source}), num_prompts=4)
    assert [level.num_accepted for level in found.levels] == [0, 0]
    assert {"verifier_fails", "nothing_accepted"} <= {alarm.code for alarm in found.alarms}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"verifier": {"type": "code"}},
            DataError,
            "training_file: 80 rows: lines 1, 2, 3 and 77 more: data.tests: expected",
        ),
        ({"verifier": {"type": "regex", "pattern": "a"}}, ConfigError, "expected one group"),
        (
            {"sampling": {"temperature": 0, "max_new_tokens": 8}, "samples_per_prompt": 1, "evaluation_samples": 1},
            ConfigError,
            "--samples: expected 1, as all responses to a prompt are the same at sampling.temperature 0, got 4",
        ),
        ({"held_out": rows(8, seed=1)}, DataError, "expected prompts that are not trained on"),
    ],
)
def test_what_a_job_would_be_refused_for_is_refused(make, changes, error, message):  # noqa: F811
    with pytest.raises(error, match=re.escape(message)):
        pilot(make(**changes))


def test_a_model_that_cannot_be_read_is_refused(make, tmp_path):  # noqa: F811
    with pytest.raises(ModelError, match="model: "):
        pilot(dataclasses.replace(make(), base=tmp_path))


def levels(*accepted, num_sampled=512):
    return [
        PilotLevel(number, 64, num_sampled, count, num_truncated=0, num_unparseable=0, distinct_per_prompt=4.0)
        for number, count in enumerate(accepted, start=1)
    ]


KNOBS_1024 = SelfImprovementConfig(rounds=12, samples_per_round=1024)


def test_the_range_of_the_difficulty_is_what_a_first_round_would_leave():
    outlook = look_ahead(levels(256, 128), KNOBS_1024, None)
    for case, left in zip(outlook.cases, (0.1, 0.5, 0.9), strict=True):
        # 512 of the 1024 responses on level 1 are accepted; a/m is what is left of the failures, one half.
        assert case.failures_left == left and case.complexity / 512 == pytest.approx(left * 0.5)
    assert [samples for samples, _ in outlook.cases[0].ceilings] == [1024, 2048, 4096]
    for case in outlook.cases:
        ceilings = [point for _, point in case.ceilings]
        assert all(low < high for low, high in itertools.pairwise(ceilings))


def test_a_known_difficulty_is_taken():
    outlook = look_ahead(levels(154, 46, 14), KNOBS_1024, 100.0)  # the example of `wmss simulate`
    (case,) = outlook.cases
    assert (case.complexity, case.failures_left, outlook.policy) == (100.0, None, "clock")
    policy, needed = case.guaranteed_above
    assert policy == "clock" and needed == pytest.approx(563, abs=15)


@pytest.mark.parametrize("complexity", [None, 20.0, 200.0])
def test_a_good_start_needs_no_stages(complexity):
    outlook = look_ahead(levels(480, 450, 190), KNOBS_1024, complexity)
    assert outlook.policy in ("hard_only", "uniform") and "waste rounds" in outlook.reason
    assert look_ahead(levels(190), KNOBS_1024, complexity).policy == "uniform"


def test_where_nothing_works_it_says_what_would():
    outlook = look_ahead(levels(256, 0), KNOBS_1024, None)
    assert outlook.policy is None and outlook.starts[1] == 0.5 / 512
    assert "level 2 is far from level 1" in outlook.reason and "over" in outlook.reason
    assert look_ahead(levels(0, 0), KNOBS_1024, None).cases == ()
    assert look_ahead(levels(512, 512), KNOBS_1024, None).reason.endswith("there is nothing to learn")


def test_knobs_of_these_tests_are_those_of_the_jobs():
    assert KNOBS["sampling"]["max_new_tokens"] == echo.MAX_NEW_TOKENS
