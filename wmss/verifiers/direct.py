"""Verifiers that judge in the calling process: pure functions that cannot hang."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from wmss.errors import WmssError
from wmss.records import Progress, Task, Verdict
from wmss.verifiers.interfaces import REPORT_EVERY, CheckTask, Judge, row_problems


class DirectVerifier:
    """A `Verifier` from a function that judges one response in bounded time."""

    def __init__(self, version: str, *, check: CheckTask, judge: Judge, refusals: Sequence[WmssError] = ()) -> None:
        self.version = version
        self._check = check
        self._judge = judge
        self._refusals = list(refusals)

    def problems(self, tasks: Sequence[Task]) -> list[str]:
        return row_problems(self._check, tasks)

    def refusals(self) -> list[WmssError]:
        return self._refusals

    def verify(self, pairs: Sequence[tuple[Task, str]], *, progress: Progress) -> list[Verdict]:
        verdicts = []
        for task, response in pairs:
            start = time.perf_counter()
            label, detail = self._judge(task, response)
            verdicts.append(Verdict(label, detail, ms=(time.perf_counter() - start) * 1000))
            if len(verdicts) % REPORT_EVERY == 0:
                progress(len(verdicts), len(pairs))
        progress(len(pairs), len(pairs))
        return verdicts

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None
