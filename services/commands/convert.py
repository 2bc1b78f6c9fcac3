"""`wmss convert`: a file of questions and answers as rows that a job takes."""

from pathlib import Path
from typing import Literal, cast

from wmss.data.convert import FORMATS, CalculatorMarks, Conversion, Format, convert_file
from wmss.data.convert_tasks import TASK_FORMATS, TaskFormat, convert_tasks
from wmss.errors import WmssError


def convert(
    source: Path,
    target: Path,
    *,
    to: Literal["samples", "tasks"],
    format: str | None,
    level: int | None,
    limit: int | None,
    system: str | None,
    calculator_marks: CalculatorMarks,
    skip_unusable: bool = False,
    split_turns: bool = False,
) -> Conversion:
    """Write `target`; raises `WmssError` for options that do not go together."""
    forms = TASK_FORMATS if to == "tasks" else FORMATS
    if format is not None and format not in forms:
        raise WmssError(f"--format: expected one of {', '.join(forms)} with --to {to}, got {format!r}")
    if to == "tasks":
        if split_turns:
            raise WmssError("--split-turns: not with --to tasks; leave it out")
        if system is not None:
            raise WmssError("--system: not with --to tasks; put it into the rows, or leave it out")
        task_format = cast(TaskFormat | None, format)
        return convert_tasks(
            source,
            target,
            format=task_format,
            limit=limit,
            level=level,
            calculator_marks=calculator_marks,
            skip_unusable=skip_unusable,
        )
    if skip_unusable:
        raise WmssError("--skip-unusable: only with --to tasks; remove the rows, or leave it out")
    if level is not None:
        raise WmssError("--level: only tasks have one; add --to tasks, or leave it out")
    sample_format = cast(Format | None, format)
    return convert_file(
        source,
        target,
        format=sample_format,
        limit=limit,
        system=system,
        calculator_marks=calculator_marks,
        split_turns=split_turns,
    )
