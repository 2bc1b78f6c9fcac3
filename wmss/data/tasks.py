"""What is in a task file of self-improvement: prompts, with what a verifier needs, and levels of difficulty.

    {"prompt": "2+2=", "answer": "4", "level": 1}
    {"messages": [{"role": "user", "content": ...}], "answer": ..., "data": {...}}

Ordinary training rows (`wmss.data.dataset`) are tasks too: their last completion is the reference answer, and `level`,
`data` and `split` may stand beside it. So one file of solved problems serves every method. What a row must carry beyond
a prompt, the verifier says.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from wmss.data.dataset import (
    RowError,
    json_lines,
    parse_messages,
    parse_object,
    parse_row,
    raise_rows,
    read_samples,
    refuse_empty,
    refuse_tools,
)
from wmss.data.forms import other_form
from wmss.errors import DataError, shown
from wmss.records import Split, Task

SPLITS: tuple[Split, ...] = get_args(Split)
MAX_LEVEL = 2**31 - 1
"""What a table of responses can hold."""
MAX_DEPTH = 100
"""Lists and objects in one another in `data`; copying it for another process takes some frames for each."""
_BESIDE = ("level", "data", "split")
"""Members that any row may have."""


def read_tasks(path: Path, *, param: str, name: str | None = None, held_out: bool = False) -> list[Task]:
    """All tasks of a JSONL file; raises `DataError` with line numbers if any row is unusable.

    Either every row has a level or none has. Those of a training file count from 1 without gaps, and only rows of a
    held-out file have a split; one row at least is for validation.

    Args:
        param: the field that messages speak of; `name` likewise the file name.
        held_out: whether the tasks are kept from training.
    """
    name = name or path.name
    tasks: list[Task] = []
    problems: list[str] = []
    for line, text in json_lines(path, param=param, name=name):
        try:
            tasks.append(parse_task(line, parse_object(text), held_out=held_out))
        except RowError as error:
            problems.append(f"line {line}: {error}")
    raise_rows(name, problems, param)
    refuse_empty(tasks, name, param)
    levels = {task.level for task in tasks if task.level is not None}
    if levels:
        unlevelled = [
            f"line {task.line}: level: expected one, as other rows have it" for task in tasks if not task.level
        ]
        raise_rows(name, unlevelled, param)
    if held_out and not any(task.split == "validation" for task in tasks):
        raise DataError(
            f'{param}: expected a row of split "validation", by which rounds stop, got none in {name}', param=param
        )
    # The first gap of n levels lies among the first n numbers, however large the largest is.
    missing = next((level for level in range(1, len(levels) + 1) if level not in levels), None)
    if missing is not None and not held_out:
        raise DataError(
            f"{param}: level {missing} has no prompts in {name}, level {max(levels)} has; number the levels from 1 "
            "without gaps",
            param=param,
        )
    return tasks


def check_rows(path: Path, *, param: str, name: str) -> None:
    """Raise `DataError` unless every row of a file can be used: as tasks where the first one is a task that no training
    row could be, else as training rows."""
    first = next((text for _, text in json_lines(path, param=param, name=name)), "")
    if _is_open_task(first):
        read_tasks(path, param=param, name=name, held_out=True)
    else:
        read_samples(path, param=param, name=name)


def parse_task(line: int, row: dict[str, Any], *, held_out: bool) -> Task:
    """One row as a task; raises `RowError`."""
    beside = {key: value for key, value in row.items() if key in _BESIDE}
    fields = {key: value for key, value in row.items() if key not in _BESIDE}
    _check_beside(beside, held_out=held_out)
    return Task(line=line, **_prompt_and_answer(line, fields), **beside)


def _check_beside(beside: dict[str, Any], *, held_out: bool) -> None:
    level = beside.get("level", 1)
    if type(level) is not int or not 1 <= level <= MAX_LEVEL:  # `true` is no level
        raise RowError(f"level: expected a whole number from 1 (easiest) to {MAX_LEVEL:,}, got {shown(level)}")
    check_data(beside.get("data", {}))
    if "split" in beside and not held_out:
        raise RowError("split: for held-out tasks only; remove it, or move the row to the validation file")
    split = beside.get("split", "validation")
    if split not in SPLITS:
        raise RowError(f"split: expected one of {list(SPLITS)}, got {shown(split)}")


def check_data(data: Any) -> None:
    """Raise `RowError` unless `data` is an object that can be handed to a verifier's process."""
    if not isinstance(data, dict):
        raise RowError(f"data: expected an object, got {type(data).__name__}")
    inside: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inside = [each for value in inside if isinstance(value, dict | list) for each in _items(value)]
    if any(isinstance(value, dict | list) for value in inside):
        raise RowError(f"data: expected at most {MAX_DEPTH} levels of lists and objects; flatten it")


def _items(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _prompt_and_answer(line: int, fields: dict[str, Any]) -> dict[str, Any]:
    """`messages` or `prompt`, and `answer`, of a row's other members."""
    refuse_tools(fields)
    if "completion" in fields or _ends_with_assistant(fields.get("messages")):
        if "answer" in fields:
            raise RowError("answer: unused, the row's completion is the reference; remove one of them")
        sample = parse_row(line, fields)
        end = sample.supervised_turns[-1] if sample.messages else 0
        given: dict[str, Any] = {"messages": sample.messages[:end], "prompt": sample.prompt, "answer": sample.answer}
    else:
        given = _open_prompt(fields)
    if not given["messages"] and not given["prompt"].strip():
        raise RowError("prompt: expected text, got a blank string")
    return given


def _is_open_task(text: str) -> bool:
    try:
        row = parse_object(text)
    except RowError:
        return False
    messages = row.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    ends_with_user = isinstance(last, dict) and last.get("role") == "user"
    return ends_with_user or not row.keys().isdisjoint({"answer", *_BESIDE})


def _ends_with_assistant(messages: Any) -> bool:
    last = messages[-1] if isinstance(messages, list) and messages else None
    return isinstance(last, dict) and last.get("role") == "assistant"


def _open_prompt(fields: dict[str, Any]) -> dict[str, Any]:
    forms = set(fields) - {"answer"}
    other = other_form(fields)
    if other is not None:
        raise RowError(other)
    if forms not in ({"messages"}, {"prompt"}):
        raise RowError(
            'expected the keys "prompt" or "messages", with "answer", "level" and "data" as the verifier needs them, '
            f"got {shown(sorted(fields))}; rename them"
        )
    answer = fields.get("answer")
    if "answer" in fields and (not isinstance(answer, str) or not answer.strip()):
        is_number = isinstance(answer, int | float) and not isinstance(answer, bool)
        remedy = f'write it as text: "{shown(answer)}"' if is_number else "leave it out where the verifier needs none"
        raise RowError(f"answer: expected text, got {shown(answer)}; {remedy}")
    messages = parse_messages(fields["messages"]) if "messages" in fields else []
    prompt = fields.get("prompt", "")
    if not isinstance(prompt, str):
        raise RowError(f"prompt: expected a string, got {type(prompt).__name__}")
    return {"messages": tuple(messages), "prompt": prompt, "answer": answer}
