"""Is a response equal, as mathematics, to the answer? By the package math-verify, inside a pooled process.

Its own timeouts are off: they need SIGALRM, which works in a main thread only, and end no C function. The process's
parent keeps the time.
"""

import resource
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from wmss.records import Task
from wmss.verifiers.final_value import FINAL_MARK, FinalAnswer, reference_value
from wmss.verifiers.interfaces import Judge, Ruling

MEMORY_BYTES = 2 << 30
"""Address space of one process: towers of powers must not take the machine's memory."""


def is_plain_number(task: Task) -> bool:
    """Whether a task's answer is a number that needs no parser."""
    value = reference_value(task.answer or "")
    return value is not None and not isinstance(value.value, str) and FinalAnswer(value.value) == value


def make_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`. Details: equal_text, equal, not_equal, no_expression; of errors: no_reference."""
    # Only here: a parent that merely names this module does not load sympy.
    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))

    @lru_cache(maxsize=4096)
    def reference(answer: str) -> list[Any]:
        return list(parse(_as_latex(answer), parsing_timeout=None))

    def judge(task: Task, response: str) -> Ruling:
        assert task.answer is not None
        gold = reference(task.answer)
        if not _has_expression(gold):
            return Ruling("error", "no_reference")
        text = _final_text(response)
        if text.strip() == _final_text(task.answer).strip():
            return Ruling("correct", "equal_text")
        found = parse(text, parsing_timeout=None)
        if not _has_expression(found):
            return Ruling("unparseable", "no_expression")
        # The order matters: the reference comes first.
        equal = verify(gold, found, timeout_seconds=None)
        return Ruling("correct", "equal") if equal else Ruling("wrong", "not_equal")

    judge(Task(line=0, answer="x"), "$1$")  # the parser builds its tables at its first use, on nobody's time
    return judge


def _final_text(text: str) -> str:
    """What counts of a text: the line after its last `####`, or all of it."""
    _, mark, rest = text.rpartition(FINAL_MARK)
    return (rest.strip().splitlines() or [""])[0] if mark else text


def _as_latex(answer: str) -> str:
    """A reference as math-verify reads it: it looks for formulas in `$` or `\\boxed{}` only."""
    text = _final_text(answer)
    return text if "$" in text or "\\boxed" in text else f"\\boxed{{{text}}}"


def _has_expression(parsed: Sequence[Any]) -> bool:
    """Whether more was found than text that could not be read."""
    return any(not isinstance(item, str) for item in parsed)
