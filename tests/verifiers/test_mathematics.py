"""Mathematics: equal forms, hostile LaTeX from many threads, and answers that are no reference."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.verifiers.tasks import make_task, no_progress
from wmss.config import MathVerifier
from wmss.verifiers import pool
from wmss.verifiers.registry import make_verifier

HALF = make_task(r"\frac{1}{2}")
HOSTILE = (
    r"\boxed{9^{9^{9^{9^9}}}}",
    r"\boxed{\sum_{n=1}^{10^{12}} \sin(n)}",
    r"\boxed{1000000!}",
    "$" + r"\frac{1}{" * 200 + "1" + "}" * 200 + "$",
    r"\boxed{" + "{" * 3000,
    r"$\begin{pmatrix}1&2\\3",
    "$" + "\\left(" * 500 + "$",
    "\x00 \ud800 $\\frac{1}{0}$",
    "",
)


@pytest.mark.parametrize(
    ("answer", "response", "verdict"),
    [
        (r"\frac{1}{2}", "so it is $0.5$", ("correct", "equal")),
        (r"\frac{1}{2}", r"\boxed{\dfrac{2}{4}}", ("correct", "equal")),
        (r"\frac{1}{2}", r"\frac{1}{2}", ("correct", "equal_text")),
        (r"$\frac{1}{2}$", r"\boxed{1/2}", ("correct", "equal")),
        ("so\n#### 72", "thus\n#### 72\nAsk me 100 more", ("correct", "equal_text")),
        ("(x+1)^2", r"\boxed{x^2+2x+1}", ("correct", "equal")),
        (r"\{1,2\}", r"$\{2,1\}$", ("correct", "equal")),
        ("1<x<2", r"\boxed{(1,2)}", ("correct", "equal")),
        ("(1,2)", r"\boxed{1<x<2}", ("wrong", "not_equal")),
        (r"\frac{1}{2}", r"first \boxed{1/2}, no: \boxed{1/3}", ("wrong", "not_equal")),
        ("72", "#### 73", ("wrong", "not_equal")),
        ("72", "I cannot say", ("unparseable", "no_expression")),
    ],
)
def test_equal_as_mathematics(math_verifier, answer, response, verdict):
    [found] = math_verifier.verify([(make_task(answer), response)], progress=no_progress)
    assert (found.label, found.detail) == verdict


@pytest.fixture(scope="module")
def math_verifier():
    with make_verifier(MathVerifier(type="math", timeout_s=2.0), num_processes=2) as verifier:
        yield verifier


def test_references_that_cannot_be_read_are_problems(math_verifier):
    tasks = [HALF, make_task("what?", line=2), make_task("7", line=3), make_task(None, line=4)]
    assert ["line 4" in problem for problem in math_verifier.problems(tasks)] == [True]
    [problem] = math_verifier.problems(tasks[:3])
    assert problem.startswith("line 2: answer: expected")
    assert "math-verify-0.9" in math_verifier.version


def test_every_row_of_an_unreadable_reference_is_named_and_each_is_read_once(math_verifier, monkeypatch):
    asked = []
    verify = math_verifier.verify
    monkeypatch.setattr(math_verifier, "verify", lambda pairs, **rest: asked.extend(pairs) or verify(pairs, **rest))
    tasks = [make_task(("what?", "x^2")[line % 2], line=line) for line in range(1, 7)]
    assert [problem.partition(":")[0] for problem in math_verifier.problems(tasks)] == ["line 2", "line 4", "line 6"]
    assert len(asked) == 2


def test_progress_is_told_now_and_then_and_at_the_end(math_verifier, monkeypatch):
    """Each report is a transaction of the service's; and few verdicts wait at once."""
    monkeypatch.setattr(pool, "REPORT_EVERY", 4)
    monkeypatch.setattr(pool, "MAX_WAITING", 3)
    reports = []
    pairs = [(HALF, ("$0.5$", "$2$")[index % 2]) for index in range(10)]
    verdicts = math_verifier.verify(pairs, progress=lambda done, total: reports.append((done, total)))
    assert [verdict.accepted for verdict in verdicts] == [True, False] * 5
    assert reports == [(4, 10), (8, 10), (10, 10)]


def test_a_thousand_pairs_from_eight_threads(math_verifier):
    usual = [(HALF, rf"\boxed{{{k}/{2 * k}}}") for k in range(1, 62)] + [(HALF, rf"\boxed{{{k}}}") for k in range(60)]

    def batch(index: int) -> list[str]:
        pairs = [*usual, (HALF, HOSTILE[index]), (HALF, HOSTILE[-1]), (HALF, "$0.5$"), (HALF, HOSTILE[4])]
        return [verdict.label for verdict in math_verifier.verify(pairs, progress=no_progress)]

    start = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(batch, range(8)))
    assert time.monotonic() - start < 60
    for labels in results:
        assert len(labels) == 125
        assert labels[:61] == ["correct"] * 61 and labels[61:121] == ["wrong"] * 60
        assert labels[121] != "correct" and labels[122:] == ["unparseable", "correct", "unparseable"]


def test_time_runs_out_at_the_limit(math_verifier):
    start = time.monotonic()
    [verdict] = math_verifier.verify([(HALF, HOSTILE[0])], progress=no_progress)
    assert (verdict.label, verdict.detail) == ("timeout", "time")
    assert time.monotonic() - start < 2.0 + 2.0


def test_workers_load_no_torch_and_see_no_secret(monkeypatch):
    monkeypatch.setenv("WMSS_DATABASE_URL", "postgresql://user:secret@host")
    with make_verifier(MathVerifier(type="math"), num_processes=1) as verifier:
        verifier.verify([(HALF, "$1$")], progress=no_progress)
        [worker] = workers()
        maps = Path(f"/proc/{worker.pid}/maps").read_text(encoding="utf-8")
        environment = Path(f"/proc/{worker.pid}/environ").read_text(encoding="utf-8")
    assert "libtorch" not in maps and "secret" not in environment
    assert workers() == []


def test_a_killed_process_changes_no_verdict():
    with make_verifier(MathVerifier(type="math", timeout_s=20.0), num_processes=1) as verifier:
        verifier.verify([(HALF, "$1$")], progress=no_progress)
        [idle] = workers()
        os.kill(idle.pid, signal.SIGKILL)
        [after_idle] = verifier.verify([(HALF, "$0.5$")], progress=no_progress)
        assert after_idle.label == "correct"

        slow = r"\boxed{\int_0^1 x^{x^x} dx}"
        with ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(verifier.verify, [(HALF, slow)], progress=no_progress)
            [busy] = workers()
            time.sleep(0.2)
            os.kill(busy.pid, signal.SIGKILL)
            [verdict] = under_way.result(timeout=40)
        assert (verdict.label, verdict.detail) == ("wrong", "not_equal")


def test_judging_leaves_no_process_when_it_is_left_in_the_middle():
    with make_verifier(MathVerifier(type="math", timeout_s=30.0), num_processes=1) as verifier:
        verifier.verify([(HALF, "$1$")], progress=no_progress)
        with ThreadPoolExecutor(1) as thread:
            under_way = thread.submit(verifier.verify, [(HALF, HOSTILE[0])] * 3, progress=no_progress)
            time.sleep(0.2)
            start = time.monotonic()
            verifier.__exit__(None, None, None)
            assert under_way.exception(timeout=10) is not None
            assert time.monotonic() - start < 5
    assert workers() == []


def workers() -> list[psutil.Process]:
    """The verifier processes of this test process alone; the module's own verifier has its workers too."""
    # One that examined models for an earlier test may have ended and not been waited for; it has no command line.
    children = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "wmss.verifiers.worker" in child.cmdline() and child.pid not in EARLIER]


EARLIER: set[int] = set()


@pytest.fixture(autouse=True)
def _only_new_workers():
    EARLIER.clear()
    EARLIER.update(child.pid for child in psutil.Process().children())
