"""From published sets of mathematics to task files with levels. `wmss convert --to tasks` runs it.

gsm8k     {"question": ..., "answer": ...}: the reference is the solution with its final `#### value` line; the level is
          1 for up to two steps, 2 for three or four, 3 for more (our bins).
math      {"problem": ..., "solution": ..., "level": "Level 3" or 3}: the reference is what stands in the solution's
          last box, as a verifier reads it; the level is MATH's own.
tasks     rows that are tasks already, out of one JSON array or gzip: checked, and written as they are.
deepmind  text, a question on a line and its answer on the next: the reference is the answer, asked for without steps;
          the level is that of the folder (`train-easy`, `train-medium`, `train-hard`) or of the file's name.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from wmss.data.answers import last_boxed
from wmss.data.convert import (
    CalculatorMarks,
    Conversion,
    refuse_existing,
    without_calculator_marks,
    write_rows,
)
from wmss.data.dataset import RowError, raise_rows, refuse_empty
from wmss.data.sources import is_packed, source_lines, source_rows
from wmss.data.tasks import parse_task
from wmss.errors import DataError, shown

TaskFormat = Literal["gsm8k", "math", "deepmind", "tasks"]
TASK_FORMATS: tuple[TaskFormat, ...] = get_args(TaskFormat)
MOST_STEPS = (2, 4)
"""Steps of the longest solutions of level 1 and of level 2."""
DIFFICULTIES = {"train-easy": 1, "train-medium": 2, "train-hard": 3}
ANSWER_ONLY = (
    "Solve this problem. Reply with the final answer only, without any steps.\n\nProblem:\n{question}\n\nAnswer:"
)
"""Our layout of a question whose answer alone is wanted; plain text, so that a base model can go on from it."""

_FINAL_LINE = "\n####"
_MATH_LEVEL = re.compile(r"(?:Level )?([1-9])")


def convert_tasks(
    source: Path,
    target: Path,
    *,
    format: TaskFormat | None = None,
    limit: int | None = None,
    level: int | None = None,
    calculator_marks: CalculatorMarks = "strip",
    skip_unusable: bool = False,
) -> Conversion:
    """Convert `source` and write `target`, whole or not at all.

    Args:
        format: of the source; None = `deepmind` for a file that ends in .txt, else by the keys of the first row.
        limit: rows to read, from the first; None = all.
        level: of every task; None = as the source says.
        calculator_marks: GSM8K's `<<48/2=24>>`: take them out, or leave them as text.
        skip_unusable: leave out rows that cannot be converted, and name them, where others can.

    Raises:
        DataError: with line numbers, where a row cannot be converted; or if `target` exists.
    """
    refuse_existing(target)
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    changes: Counter[str] = Counter()
    format = format or ("deepmind" if source.suffix == ".txt" else None)
    for line, read in _pairs(source) if format == "deepmind" else source_rows(source):
        if limit is not None and len(rows) + len(problems) == limit:
            break
        try:
            row = read()
            format = format or _recognise(row, source)
            task, used = _CONVERTERS[format](row, source, calculator_marks, level)
        except RowError as error:
            problems.append(f"line {line}: {error}")
            continue
        rows.append(task)
        changes.update(f"the field {shown(key)} was left out" for key in row if key not in used)
        if format == "gsm8k" and task["messages"][1]["content"] != row["answer"]:
            changes["calculator marks (<<48/2=24>>) were taken out"] += 1
    if not (skip_unusable and rows):
        raise_rows(source.name, problems, "source")
    refuse_empty(rows, source.name, "source")
    assert format is not None
    write_rows(rows, target)
    return Conversion(
        format=format,
        num_read=len(rows) + len(problems),
        num_written=len(rows),
        changes=dict(changes),
        skipped=tuple(problems),
    )


def level_of_steps(num_steps: int) -> int:
    """The level of a solution of so many steps."""
    return 1 + sum(num_steps > most for most in MOST_STEPS)


Row = dict[str, Any]


def _pairs(source: Path) -> Iterator[tuple[int, Callable[[], Row]]]:
    lines = list(source_lines(source))
    if len(lines) % 2:
        raise DataError(
            f"source: expected a question and an answer in turn, got {len(lines)} lines ({source.name}): the last "
            "question has no answer; remove it",
            param="source",
        )
    for (line, question), (_, answer) in zip(lines[::2], lines[1::2], strict=True):
        yield line, partial(dict, question=question, answer=answer)


def _recognise(row: Row, source: Path) -> TaskFormat:
    if {"problem", "solution"} <= set(row):
        return "math"
    if {"question", "answer"} <= set(row):
        return "gsm8k"
    if {"messages", "prompt"} & set(row):
        if is_packed(source):
            return "tasks"
        raise DataError(
            'source: these rows are tasks already: the "answer" of each, or its last answer, is the reference that '
            'responses are compared with; use the file as it is, with a "level" in every row or estimate_levels in the '
            "job",
            param="source",
        )
    raise RowError(
        f'format: expected the keys "question" and "answer", or "problem" and "solution", got {shown(sorted(row))}; '
        f"name the file's form with --format ({', '.join(TASK_FORMATS)})"
    )


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key}: expected text, got {shown(value)}")
    return value


def _from_gsm8k(row: Row, _: Path, marks: CalculatorMarks, level: int | None) -> tuple[Row, set[str]]:
    question, solution = _text(row, "question"), _text(row, "answer")
    steps, final, _value = solution.rpartition(_FINAL_LINE)
    if not final:
        raise RowError("answer: expected a last line `#### value`, got none; a verifier would have nothing to compare")
    if marks == "strip":
        solution = without_calculator_marks(solution)
    num_steps = sum(bool(line.strip()) for line in steps.splitlines())
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": solution}]
    return {"messages": turns, "level": level or level_of_steps(num_steps)}, {"question", "answer"}


def _from_math(row: Row, _: Path, marks: CalculatorMarks, level: int | None) -> tuple[Row, set[str]]:
    problem, solution = _text(row, "problem"), _text(row, "solution")
    answer = last_boxed(solution)
    if answer is None or not answer.strip():
        raise RowError("solution: expected an answer in \\boxed{}, got none; leave this row out")
    given = None if isinstance(row.get("level"), bool) else _MATH_LEVEL.fullmatch(str(row.get("level")))
    if level is None and given is None:
        raise RowError(
            f"level: expected 'Level 1' to 'Level 9', or 1 to 9, got {shown(row.get('level'))}; leave such rows out "
            "with --skip-unusable, or give every row one level with --level"
        )
    own = int(given[1]) if given else 0
    task = {"messages": [{"role": "user", "content": problem}], "answer": answer.strip(), "level": level or own}
    return task, {"problem", "solution", "level"}


def _from_deepmind(row: Row, source: Path, marks: CalculatorMarks, level: int | None) -> tuple[Row, set[str]]:
    named = next((DIFFICULTIES[name] for name in (source.stem, source.parent.name) if name in DIFFICULTIES), None)
    if level is None and named is None:
        raise RowError(
            f"level: expected a file in one of the folders {', '.join(DIFFICULTIES)}, got {source.parent.name!r}; give "
            "the level with --level"
        )
    prompt = ANSWER_ONLY.format(question=_text(row, "question"))
    return {"prompt": prompt, "answer": _text(row, "answer"), "level": level or named}, {"question", "answer"}


def _from_tasks(row: Row, source: Path, marks: CalculatorMarks, level: int | None) -> tuple[Row, set[str]]:
    task = row if level is None else row | {"level": level}
    parse_task(0, task, held_out=True)
    return task, set(row)


_CONVERTERS: dict[TaskFormat, Callable[[Row, Path, CalculatorMarks, int | None], tuple[Row, set[str]]]] = {
    "gsm8k": _from_gsm8k,
    "math": _from_math,
    "deepmind": _from_deepmind,
    "tasks": _from_tasks,
}
