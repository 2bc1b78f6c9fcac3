"""Tasks, and a short way to judge responses, for the tests of verifiers."""

import subprocess
from typing import Any

import pytest

from wmss.config import VerifierConfig
from wmss.records import Task, Verdict
from wmss.verifiers.registry import make_verifier
from wmss.verifiers.sandbox.availability import sandbox_refusals

PLAIN_NAMESPACES = ["unshare", "--user", "--map-root-user", "--pid", "--net", "--mount", "--ipc", "--uts", "--fork"]


def make_task(answer: str | None = None, *, line: int = 1, level: int | None = None, **data: Any) -> Task:
    return Task(line=line, prompt="?", answer=answer, level=level, data=data)


SQUARE = make_task(tests=["assert f(2) == 4", "assert f(-3) == 9"])
RIGHT = "def f(x): return x * x"
"""The right program for SQUARE."""


def no_progress(done: int, total: int) -> None:
    return None


def judge(config: VerifierConfig, task: Task, *responses: str) -> list[tuple[str, str]]:
    """Label and detail of each response; the task has to be without problems."""
    with make_verifier(config, num_processes=1) as verifier:
        assert verifier.refusals() == [] and verifier.problems([task]) == []
        verdicts = verifier.verify([(task, response) for response in responses], progress=no_progress)
    return [(verdict.label, verdict.detail) for verdict in verdicts]


def make_verdict(label: str, detail: str = "because") -> Verdict:
    return Verdict(label, detail, ms=1.0)  # type: ignore[arg-type]


def need_sandbox() -> None:
    """Skip where the machine refuses namespaces; fail where it grants them and the sandbox refuses all the same."""
    refusals = sandbox_refusals()
    if not refusals:
        return
    granted = subprocess.run([*PLAIN_NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
    assert not granted, f"namespaces can be had here, but: {refusals[0]}"
    pytest.skip(str(refusals[0]))
