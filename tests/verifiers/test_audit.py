"""Audits with counts by hand; every alarm at its limit and just above it; files whose rows are of no use."""

import json
from dataclasses import replace

import pytest

from tests.verifiers.tasks import make_task, make_verdict, no_progress
from wmss.config import FinalValueVerifier
from wmss.errors import DataError
from wmss.verifiers.audit import Audit, audit_verifier, read_labelled, round_alarms
from wmss.verifiers.registry import make_verifier


def audited(tmp_path, rows):
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with make_verifier(FinalValueVerifier(), num_processes=1) as verifier:
        return audit_verifier(read_labelled(path), verifier, name="labelled.jsonl", progress=no_progress)


def row(response, correct, answer="7"):
    return {"answer": answer, "response": response, "correct": correct}


def test_rates_are_counted_per_kind(tmp_path):
    rows = [row("#### 7", True)] * 8 + [row("7", True)] * 2 + [row("#### 8", False)] * 3 + [row("#### 7", False)]
    rows[0] = {"task": {"answer": "7", "prompt": "3 + 4?"}, "response": "#### 7", "correct": True}
    audit = audited(tmp_path, rows)
    assert (audit.num_right, audit.num_right_accepted, audit.num_wrong, audit.num_wrong_accepted) == (10, 8, 4, 1)
    assert audit.true_positive_rate == 0.8 and audit.false_positive_rate == 0.25
    assert audit.ratio == pytest.approx(3.2)
    # Wilson by hand: 8 of 10 -> [.490, .943], 1 of 4 -> [.046, .699]
    assert audit.true_positive_interval == pytest.approx((0.490, 0.943), abs=1e-3)
    assert audit.false_positive_interval == pytest.approx((0.046, 0.699), abs=1e-3)
    assert audit.cautious_ratio == pytest.approx(0.490 / 0.699, abs=2e-3)
    [alarm] = audit.alarms
    assert alarm.code == "low_ratio" and "80.0%" in alarm.message and "25.0%" in alarm.message


def test_files_of_one_kind_tell_one_rate(tmp_path):
    audit = audited(tmp_path, [row("#### 7", True), row("7", True)])
    assert (audit.true_positive_rate, audit.false_positive_rate, audit.ratio) == (0.5, None, None)
    assert (audit.missing, audit.false_positive_interval, audit.alarms) == ("wrong", (0.0, 1.0), [])
    audit = audited(tmp_path, [row("#### 7", False)])
    assert (audit.true_positive_rate, audit.false_positive_rate, audit.missing) == (None, 1.0, "right")


def test_misjudged_rows_are_kept_with_their_verdicts(tmp_path):
    audit = audited(tmp_path, [row("#### 7", True), row("7", True), row("#### 8", False), row("#### 7", False)])
    found = [(each.labelled.task.line, each.labelled.correct, each.verdict.label) for each in audit.misjudged]
    assert found == [(2, True, "unparseable"), (4, False, "correct")]


@pytest.mark.parametrize(("accepted_wrong", "ratio", "alarms"), [(0, None, 0), (20, 5.0, 0), (21, 100 / 21, 1)])
def test_the_ratio_is_asked_to_be_five(accepted_wrong, ratio, alarms):
    audit = Audit("v", num_right=100, num_right_accepted=100, num_wrong=100, num_wrong_accepted=accepted_wrong)
    assert audit.ratio == (None if ratio is None else pytest.approx(ratio)) and len(audit.alarms) == alarms


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "expected at least one JSON line"),
        ([row("#### 7", True, answer=""), row("", False)], "line 1: answer: expected text"),
        ([{"answer": "7", "response": "7"}], "expected the keys"),
        ([row("7", 1)], 'line 1: "response"'),
        ([row(7, True)], 'line 1: "response"'),
        ([row("7", True, answer=7)], 'line 1: "answer"'),
        ([{"task": "7", "response": "7", "correct": True}], 'line 1: "task"'),
        ([{"task": {"answers": "7"}, "response": "7", "correct": True}], 'line 1: "task"'),
    ],
)
def test_unusable_files(tmp_path, rows, message):
    with pytest.raises(DataError) as caught:
        audited(tmp_path, rows)
    assert message in str(caught.value)


def judged(*groups):
    """Of groups (number, label, detail), responses to as many different tasks."""
    verdicts = [make_verdict(label, detail) for number, label, detail in groups for _ in range(number)]
    return [(make_task(str(line), line=line), f"#### {line}", verdict) for line, verdict in enumerate(verdicts, 1)]


def codes(judgements, fresh_levels=()):
    return [alarm.code for alarm in round_alarms(judgements, fresh_levels=fresh_levels)]


def test_a_usual_round_raises_none():
    assert codes(judged((60, "correct", "equal"), (40, "wrong", "other_value"))) == []
    assert codes([]) == []


def test_failing_verifiers():
    assert codes(judged((98, "correct", "x"), (1, "error", "died"), (1, "timeout", "time"))) == []
    found = judged((97, "correct", "x"), (1, "error", "died"), (2, "timeout", "time"))
    [alarm] = round_alarms(found, fresh_levels=())
    assert alarm.code == "verifier_fails" and "timeout: time" in alarm.message
    assert alarm.data["share"] == 0.03 and alarm.data["reasons"] == {"timeout: time": 2, "error: died": 1}


def test_unparseable_responses():
    assert codes(judged((80, "correct", "x"), (20, "unparseable", "format"))) == []
    assert codes(judged((79, "correct", "x"), (21, "unparseable", "format"))) == ["unparseable"]
    assert codes(judged((1, "correct", "x"), (5, "unparseable", "format"))) == []  # too few to say


def test_a_fresh_level_that_is_accepted_as_a_whole():
    assert codes(judged((98, "correct", "x"), (2, "wrong", "y")), fresh_levels=[None]) == []
    assert codes(judged((99, "correct", "x"), (1, "wrong", "y")), fresh_levels=[None]) == ["too_easy"]
    assert codes(judged((100, "correct", "x")), fresh_levels=[1]) == []
    assert codes(judged((31, "correct", "x")), fresh_levels=[None]) == []


def test_a_round_without_any_acceptance():
    [alarm] = round_alarms(judged((5, "wrong", "other_value")), fresh_levels=())
    assert alarm.code == "nothing_accepted" and "wrong: other_value" in alarm.message


def constant(num_prompts, num_exploited, answers):
    """`num_exploited` of the prompts accept the same text; the rest a text of their own."""
    return [
        (
            make_task(answers(line), line=line),
            "yes or no" if line <= num_exploited else f"{line}",
            make_verdict("correct"),
        )
        for line in range(1, num_prompts + 1)
    ]


def test_one_text_accepted_for_many_answers():
    assert codes(constant(100, 5, str)) == []
    assert codes(constant(100, 6, str)) == ["constant_answer"]
    assert codes(constant(100, 60, lambda line: ("yes", "no")[line % 2])) == ["constant_answer"]
    # The same answer many times, even with one in another spelling, is no exploit.
    assert codes(constant(100, 60, lambda line: "yes")) == []
    assert codes(constant(100, 60, lambda line: "Yes" if line == 1 else "yes")) == []
    # Eight responses to one prompt are one prompt.
    assert codes([(make_task("7"), "7", make_verdict("correct"))] * 8 + constant(100, 1, str)) == []


def test_data_counts_where_there_is_no_answer():
    """A row's own id in its data makes no other answer of it."""
    with_ids = [(replace(task, data={"id": task.line}), *rest) for task, *rest in constant(100, 60, lambda line: "yes")]
    assert codes(with_ids) == []
    without_answer = [(replace(task, answer=None), *rest) for task, *rest in with_ids]
    assert codes(without_answer) == ["constant_answer"]


def test_rejected_texts_are_no_exploit():
    wrong = [(task, text, make_verdict("wrong")) for task, text, _ in constant(100, 60, str)]
    assert codes(wrong) == ["nothing_accepted"]
