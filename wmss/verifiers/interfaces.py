"""What a verifier is: its interface, its rulings and verdicts."""

import hashlib
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from wmss.config import Knobs
from wmss.errors import WmssError
from wmss.records import Label, Progress, Task, Verdict

VERIFIER = "method.self_improvement.verifier"
"""The field that refusals name."""
REPORT_EVERY = 256
"""Verdicts between two calls of `progress`, each of which may be a transaction."""


class Ruling(NamedTuple):
    """A verdict without its time."""

    label: Label
    detail: str
    """From a small set for each verifier, so that reasons can be counted."""


Judge = Callable[[Task, str], Ruling]
"""judge(task, response): a pure function."""
CheckTask = Callable[[Task], str | None]
"""What a task lacks for a verifier, as "field: expected X, got Y; do Z"; None where it lacks nothing."""


class Verifier(Protocol):
    """Judges responses. A context manager: leaving it ends its processes. It may be called from several threads."""

    version: str
    """Names what the verdicts depend on: the configuration, how answers are read, and the packages or the source behind
    it. Verdicts are kept by job and phase, never looked up by it: a finished phase keeps those of its release."""

    def problems(self, tasks: Sequence[Task]) -> list[str]:
        """The rows it cannot judge any response to, as "line 3: answer: expected ...", for `raise_rows`."""

    def refusals(self) -> list[WmssError]:
        """Why it cannot work here at all, with the remedy: no sandbox on this machine, or a faulty pattern."""

    def verify(self, pairs: Sequence[tuple[Task, str]], *, progress: Progress) -> list[Verdict]:
        """One verdict for each task and response, in their order.

        A response never raises: one that breaks its verifier has the label `timeout` or `error`. Tasks with
        `problems`, or a verifier with `refusals`, are the caller's fault.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def row_problems(check: CheckTask, tasks: Sequence[Task]) -> list[str]:
    """What `check` finds, each with the line of its task."""
    found = ((task.line, check(task)) for task in tasks)
    return [f"line {line}: {problem}" for line, problem in found if problem is not None]


def answer_missing(task: Task) -> str | None:
    """The problem of a task without a reference answer."""
    if task.answer is None or not task.answer.strip():
        return "answer: expected text to compare with, got none; add it, or take a verifier that needs no answer"
    return None


def version_of(config: Knobs, *packages: str) -> str:
    """A version from the configuration's digest, and the rules and packages ("name-1.2") that verdicts depend on."""
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    return " ".join([digest, *packages])
