"""Keep how long each test took, so that slow ones can be ranked: `.test-durations.tsv`, slowest first.

A pytest plugin of `tests/conftest.py`. A run replaces the figures of the tests that it ran and keeps the others. The
slowest files are started first, or one of them would run alone at the end.
"""

from collections import defaultdict
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / ".test-durations.tsv"
"""Seconds of set-up, call and teardown together, and the test's id. Git ignores it."""
NUM_SHOWN = 12
SLOW_FILES = (
    "tests/rounds/test_weak_driven.py",
    "tests/rounds/test_improvement.py",
    "tests/rounds/test_combinations.py",
    "tests/scoring/test_vllm_sampler.py",
    "tests/scoring/test_vllm_scorer.py",
    "tests/training/test_distributed.py",
    "tests/benchmarks/test_suite.py",
    "tests/verifiers/test_sandbox.py",
    "tests/benchmarks/test_evidence.py",
    "tests/rounds/test_preflight.py",
)
"""By duration, the slowest first; `make test` ends with the figures to keep this in order."""


def slow_files_first(items: list[pytest.Item]) -> None:
    """Sort collected tests by file: slow files first, then the others in the order in which they were found."""
    places = {name: place for place, name in enumerate(SLOW_FILES)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(places)))


class Durations:
    """Collects reports; under xdist the controlling process gets those of all workers."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self._seconds:
            return
        lines = FILE.read_text(encoding="utf-8").splitlines() if FILE.exists() else []
        known = {name: float(seconds) for seconds, _, name in (line.partition("\t") for line in lines)}
        ranked = sorted((known | self._seconds).items(), key=lambda item: -item[1])
        FILE.write_text("".join(f"{seconds:.2f}\t{name}\n" for name, seconds in ranked), encoding="utf-8")
        files: dict[str, float] = defaultdict(float)
        for name, seconds in self._seconds.items():
            files[name.partition("::")[0]] += seconds
        slowest = sorted(files.items(), key=lambda item: -item[1])[:NUM_SHOWN]
        terminalreporter.section(f"slowest files, in seconds; each test: {FILE.name}")
        for name, seconds in slowest:
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")
