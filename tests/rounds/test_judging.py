"""Scores of judged responses, and what their differences are worth."""

import numpy as np
import pytest

from wmss.errors import DataError, TrainingError
from wmss.records import Completion, Task, Verdict
from wmss.rounds.before.task_files import TaskFile
from wmss.rounds.improvement.judging import (
    JudgedRollouts,
    change_errors,
    level_counts,
    pass_rates,
    refuse_hopeless,
    score,
    scores,
)
from wmss.rounds.improvement.rollouts import Rollout

RIGHT, WRONG = Verdict("correct", "equal", 1.0), Verdict("wrong", "other", 1.0)


def judged(outcomes, *, level=1, purpose="validation", finish="stop"):
    """Responses by line: a string such as "110" is three to one task, two of them right."""
    rollouts, verdicts = [], []
    for line, marks in outcomes.items():
        for sample, mark in enumerate(marks):
            completion = Completion((1, 2), finish, -1.0)
            rollouts.append(Rollout(line, level, purpose, sample, 0, f"{sample}", completion))
            verdicts.append(RIGHT if mark == "1" else WRONG)
    return JudgedRollouts(rollouts, verdicts)


def task_file(levels, split="validation"):
    return TaskFile([Task(line, prompt="p", level=level, split=split) for line, level in levels.items()], [])


def test_pass_rates_are_of_tasks_and_cut_responses_are_never_right():
    assert pass_rates(judged({1: "11", 2: "10", 3: "00"})) == {1: 1.0, 2: 0.5, 3: 0.0}
    assert judged({1: "11"}, finish="length").num_accepted == 0


def test_scores_by_level_with_the_error_over_tasks():
    found = scores(
        judged({1: "11", 2: "00", 3: "00", 4: "10"}), task_file({1: 1, 2: 1, 3: 2, 4: 2}), samples_per_task=2
    )
    easy, hard = found.levels
    assert (easy.level, easy.num_tasks, easy.pass_at_1, easy.pass_at_k) == (1, 2, 0.5, 0.5)
    assert (hard.level, hard.pass_at_1, hard.pass_at_k) == (2, 0.25, 0.5)
    assert easy.standard_error == pytest.approx(np.std([1.0, 0.0], ddof=1) / 2**0.5)
    assert found.pass_at_1 == 0.375 and found.of([2]) == 0.25


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_tasks_that_all_agree_have_an_error_all_the_same(rate):
    assert 0 < score([rate] * 100, level=1).standard_error < 0.01


def test_what_tasks_differ_in_cancels_out_of_a_change():
    before = {line: line / 100 for line in range(100)}
    after = {line: rate + 0.01 * (line % 2) for line, rate in before.items()}
    found = change_errors(before, after, task_file(dict.fromkeys(before, 1)))[1]
    assert found < score(list(after.values()), level=1).standard_error / 3


def test_an_unchanged_model_is_seldom_taken_for_a_worse_one():
    """30 tasks, 4 responses each, right 2 times in 100: by chance alone fewer than 5 % of changes pass two errors."""
    rng = np.random.default_rng(0)
    file = task_file(dict.fromkeys(range(30), 1))
    wrong = 0
    for _ in range(500):
        one, other = ({line: rng.binomial(4, 0.02) / 4 for line in range(30)} for _ in range(2))
        change = np.mean(list(other.values())) - np.mean(list(one.values()))
        wrong += change < -2 * change_errors(one, other, file)[1]
    assert wrong / 500 < 0.05


def test_levels_that_were_not_asked_count_nothing():
    first, second = level_counts(judged({1: "10", 2: "11"}, purpose="focus"), {1: 2}, 2)
    assert (first.num_sampled, first.num_accepted, first.num_selected, first.purpose) == (4, 3, 2, "focus")
    assert (second.num_sampled, second.purpose, second.interval_90) == (0, "none", None)


def test_hopeless_starts_are_refused():
    with pytest.raises(TrainingError, match="none of 2 responses of the start model ended by itself"):
        refuse_hopeless(judged({1: "11"}, finish="length"))
    with pytest.raises(DataError, match="nothing to learn, or the verifier accepts everything"):
        refuse_hopeless(judged({1: "11"}))
    refuse_hopeless(judged({1: "10"}))
