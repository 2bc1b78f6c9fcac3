"""Is a response equal, as mathematics, to the answer? By the package math-verify, inside a pooled process.

Where the answer stands, and what a number is, is read as `final_value` reads it; numbers are compared exactly, all else
by math-verify. Its own timeouts are off: they need SIGALRM, which works in a main thread only, and end no C function.
The process's parent keeps the time.
"""

import logging
import re
import resource
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from wmss.data.answers import find_answer, in_box
from wmss.data.values import FinalAnswer, number_latex, number_value, same_value
from wmss.records import Task
from wmss.verifiers.interfaces import Judge, Ruling

MEMORY_BYTES = 2 << 30
"""Address space of one process: towers of powers must not take the machine's memory."""

_COMMAND_OR_TEXT = re.compile(r"\\(?:text\w*|mathrm|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_HEADING = re.compile(r"\W*(?:\d+[.):]\s.*?)?[^\W\d_]{2,}")  # "Step 3: simplify", "2. Check"; not "5 million"


class _Expression(NamedTuple):
    """What is compared of a text."""

    marked: str
    """As it stands after the mark or in the box; else the whole text."""
    latex: str
    """For math-verify, which looks for formulas in `$` or `\\boxed{}` only."""
    number: FinalAnswer | None


def response_to_try(task: Task) -> str | None:
    """A response that gives a task's own answer; None where the answer is a number, which needs no trial."""
    answer = task.answer or ""
    found = find_answer(answer)
    if number_value(found.text if found else answer) is not None:
        return None
    return answer if found else in_box(answer)


def make_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`. Details: equal_text, equal, not_equal, no_expression; of errors: no_reference."""
    # Only here: a parent that merely names this module does not load sympy.
    from math_verify import parse, verify

    # It warns once in each process that its timeouts are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    @lru_cache(maxsize=4096)
    def reference(answer: str) -> tuple[_Expression, list[Any]]:
        expected = _reference(answer)
        return expected, list(parse(expected.latex, parsing_timeout=None))

    def judge(task: Task, response: str) -> Ruling:
        assert task.answer is not None
        expected, gold = reference(task.answer)
        if expected.number is None and not _has_expression(gold):
            return Ruling("error", "no_reference")
        found = _response(response)
        if found.marked == expected.marked:
            return Ruling("correct", "equal_text")
        if expected.number and found.number and _comparable(expected.number, found.number):
            return _ruling(same_value(found.number, expected.number))
        parsed = parse(found.latex, parsing_timeout=None)
        if not _has_expression(parsed):
            return Ruling("unparseable", "no_expression")
        # The order matters: the reference comes first.
        return _ruling(verify(gold, parsed, timeout_seconds=None))

    judge(Task(line=0, answer="x"), "$1$")  # the parser builds its tables at its first use, on nobody's time
    return judge


def _ruling(equal: bool) -> Ruling:
    return Ruling("correct", "equal") if equal else Ruling("wrong", "not_equal")


def _reference(answer: str) -> _Expression:
    """A reference is an answer as a whole where it marks none."""
    found = find_answer(answer)
    return _alone(found.text if found else answer.strip())


def _response(text: str) -> _Expression:
    found = find_answer(text)
    if found and (found.boxed or not _is_heading(found.text)):
        return _alone(found.text)
    marked = found.text if found else text.strip()
    return _Expression(marked, latex=text.replace(r"\$", " "), number=None)


def _alone(text: str) -> _Expression:
    """An expression without anything around it."""
    plain = text.replace(r"\$", " ")
    latex = number_latex(text)
    if latex is None and "$" in plain:
        return _Expression(text, plain, None)
    return _Expression(text, in_box(plain if latex is None else latex), number_value(text))


def _is_heading(line: str) -> bool:
    """Whether a `####` line is a Markdown heading: it begins with a word, or with a number in a list and a word."""
    return bool(_HEADING.match(_COMMAND_OR_TEXT.sub(" ", line)))


def _comparable(expected: FinalAnswer, found: FinalAnswer) -> bool:
    """Whether two numbers are equal only if they are the same: 50 % is also 0.5, which math-verify knows."""
    return expected.unit == found.unit or "%" not in (expected.unit, found.unit)


def _has_expression(parsed: Sequence[Any]) -> bool:
    """Whether more was found than text that could not be read."""
    return any(not isinstance(item, str) for item in parsed)
