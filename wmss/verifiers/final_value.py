"""Does a response end in the right value, in a box or marked as in GSM8K?

Models write one value in many ways: `#### 1,234`, `#### $1234.00`, `#### 1234 clips.`, `\\boxed{1234}`. Numbers are
compared as numbers (`wmss.data.values`); a unit counts only where both sides name one.

A reference is of use exactly where a response that gives it is accepted: `reference_value` refuses all others.
"""

from wmss.data.answers import FINAL_MARK, find_answer, in_box
from wmss.data.values import FinalAnswer, read_value, same_value
from wmss.errors import shown
from wmss.records import Task
from wmss.verifiers.interfaces import Ruling, answer_missing


def final_answer(text: str) -> FinalAnswer | None:
    """The value that a text marks as its answer; None where it marks none."""
    found = find_answer(text)
    return None if found is None else read_value(found.text)


def is_verifiable(gold: str) -> bool:
    """Whether a reference answer carries a final value, after `####`, to compare with."""
    return FINAL_MARK in gold and final_answer(gold) is not None


def verify(generated: str, gold: str) -> bool:
    """Whether the generated text ends in the reference's final value."""
    expected = final_answer(gold)
    assert expected, f"expected a reference with a final value after {FINAL_MARK}, got {gold!r}"
    found = final_answer(generated)
    return found is not None and same_value(found, expected)


def reference_value(answer: str) -> FinalAnswer | None:
    """The value of a task's answer: a marked one, as in a response, or else the whole text if it is one line."""
    if find_answer(answer) is not None:
        return final_answer(answer)
    one_line = answer.strip()
    if "\n" in one_line or FINAL_MARK in one_line:
        return None
    # An unpaired brace would end the box too early or never.
    return read_value(one_line) if final_answer(in_box(one_line)) == read_value(one_line) else None


def judge_final_value(task: Task, response: str) -> Ruling:
    """Details: equal, other_value, no_final_value."""
    expected = reference_value(task.answer or "")
    assert expected, f"expected a task that `check_final_value` lets pass, got line {task.line}"
    found = final_answer(response)
    if found is None:
        return Ruling("unparseable", "no_final_value")
    return Ruling("correct", "equal") if same_value(found, expected) else Ruling("wrong", "other_value")


def check_final_value(task: Task) -> str | None:
    """A task for `judge_final_value` has an answer with a value."""
    missing = answer_missing(task)
    if missing is None and reference_value(task.answer or "") is None:
        return (
            f"answer: expected a value in one line, or after {FINAL_MARK}, with its braces in pairs, got "
            f"{shown(task.answer)}; mark it"
        )
    return missing
