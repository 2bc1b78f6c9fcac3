"""Does a response end in the right value, marked as in GSM8K?

Models write one value in many ways: `#### 1,234`, `#### $1234.00`, `#### 1234 clips.`, `\\boxed{1234}`. Numbers are
compared as numbers; a unit counts only where both sides name one.
"""

import re
from decimal import Decimal
from typing import NamedTuple

from wmss.errors import shown
from wmss.records import Task
from wmss.verifiers.interfaces import Ruling, answer_missing

FINAL_MARK = "####"

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*[$€£]?\s*"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)\s*"
    # No digit in a unit: "72 or 73" names no single value.
    r"(?P<unit>[%°$€£]?\s*(?:[^\W\d_]\D*)?)"
)


class FinalAnswer(NamedTuple):
    """A final value: a number and its unit ("" where none is named), or else a text."""

    value: Decimal | str
    unit: str = ""


def final_answer(text: str) -> FinalAnswer | None:
    """What the text ends in: the line after its last `####`, else its last `\\boxed{}`; None where neither is."""
    _, mark, rest = text.rpartition(FINAL_MARK)
    boxed = _BOXED.findall(rest if mark else text)
    if not mark and not boxed:
        return None
    written = boxed[-1] if boxed else next(iter(rest.strip().splitlines()), "")
    return _parse(written) if written.strip() else None


def _parse(written: str) -> FinalAnswer:
    plain = " ".join(written.replace("\\", "").replace("−", "-").replace("**", "").split()).rstrip(" .")
    number = _NUMBER.fullmatch(plain)
    if number is None:
        return FinalAnswer(plain.casefold())
    value = Decimal(number["sign"] + number["digits"].replace(",", ""))
    unit = number["unit"].strip().casefold()
    return FinalAnswer(value, "" if unit in ("$", "€", "£") else unit)


def is_verifiable(gold: str) -> bool:
    """Whether a reference answer carries a final value, after `####`, to compare with."""
    return FINAL_MARK in gold and final_answer(gold) is not None


def verify(generated: str, gold: str) -> bool:
    """Whether the generated text ends in the reference's final value."""
    expected = final_answer(gold)
    assert expected, f"expected a reference with a final value after {FINAL_MARK}, got {gold!r}"
    found = final_answer(generated)
    return found is not None and same_value(found, expected)


def same_value(found: FinalAnswer, expected: FinalAnswer) -> bool:
    """Whether two final values are equal; a unit counts only where both name one."""
    return found.value == expected.value and (found.unit == expected.unit or not (found.unit and expected.unit))


def reference_value(answer: str) -> FinalAnswer | None:
    """The value of a task's answer: a marked one, as in a response, or else the whole text if it is one line."""
    return final_answer(answer) or (None if "\n" in answer.strip() or FINAL_MARK in answer else _parse(answer))


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
        return f"answer: expected a value in one line, or after {FINAL_MARK}, got {shown(task.answer)}; mark it"
    return missing
