"""Is the text of a response the answer? The whole text, what a pattern finds last, or the one choice at the end."""

import re
from collections.abc import Sequence
from typing import Any

from wmss.config import ChoiceVerifier, ExactVerifier, RegexVerifier
from wmss.errors import ConfigError, WmssError, shown
from wmss.records import Task
from wmss.verifiers.interfaces import VERIFIER, Judge, Ruling, answer_missing


def judge_exact(config: ExactVerifier, task: Task, response: str) -> Ruling:
    """Details: equal, other_text."""
    assert task.answer is not None
    found, expected = response.strip(), task.answer.strip()
    if config.ignore_case:
        found, expected = found.casefold(), expected.casefold()
    return Ruling("correct", "equal") if found == expected else Ruling("wrong", "other_text")


def make_regex_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`. Details: equal, other_text, no_match; the last match counts."""
    pattern = re.compile(config["pattern"])

    def judge(task: Task, response: str) -> Ruling:
        assert task.answer is not None
        matches = list(pattern.finditer(response))
        if not matches or matches[-1][1] is None:
            return Ruling("unparseable", "no_match")
        equal = matches[-1][1].strip() == task.answer.strip()
        return Ruling("correct", "equal") if equal else Ruling("wrong", "other_text")

    return judge


def refuse_regex(config: RegexVerifier) -> list[WmssError]:
    """Why a pattern cannot be used: it is none, or has not the one group."""
    field = f"{VERIFIER}.pattern"
    try:
        num_groups = re.compile(config.pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        return [ConfigError(f"{field}: expected a Python regular expression: {error}; correct it", param=field)]
    if num_groups != 1:
        message = f"expected one group, the answer, got {num_groups}; write the others as (?:...)"
        return [ConfigError(f"{field}: {message}", param=field)]
    return []


def judge_choice(choices: Sequence[str], task: Task, response: str) -> Ruling:
    """Details: equal, other_choice, no_choice, several_choices. Only the last line with text is read.

    Letters count in their case, as "a" is an article; a line that names two choices says none.
    """
    assert task.answer is not None
    last_line = response.strip().rpartition("\n")[2]
    longest_first = sorted((re.escape(choice) for choice in choices), key=len, reverse=True)
    named = set(re.findall(rf"(?<!\w)(?:{'|'.join(longest_first)})(?!\w)", last_line))
    if len(named) != 1:
        return Ruling("unparseable", "several_choices" if named else "no_choice")
    return Ruling("correct", "equal") if named == {task.answer.strip()} else Ruling("wrong", "other_choice")


def check_choice(choices: Sequence[str], task: Task) -> str | None:
    """A task for `judge_choice` has one of the choices as its answer."""
    if task.answer is None or task.answer.strip() not in choices:
        return f"answer: expected one of {shown(list(choices))}, got {shown(task.answer)}; correct one of them"
    return answer_missing(task)


def refuse_choices(config: ChoiceVerifier) -> list[WmssError]:
    """Why choices cannot be told apart: two are equal, or one has blanks around it."""
    field = f"{VERIFIER}.choices"
    if len(set(config.choices)) < len(config.choices):
        return [ConfigError(f"{field}: expected different choices, got {shown(config.choices)}", param=field)]
    blank = next((choice for choice in config.choices if choice != choice.strip()), None)
    if blank is not None:
        message = f"expected no blanks at the ends of a choice, got {shown(blank)}; remove them"
        return [ConfigError(f"{field}: {message}", param=field)]
    return []
