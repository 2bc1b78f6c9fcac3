"""Tasks for the tests of verifiers."""

from typing import Any

from wmss.records import Task


def make_task(answer: str | None = None, *, line: int = 1, **data: Any) -> Task:
    return Task(line=line, prompt="?", answer=answer, data=data)
