"""What a person sees of a job: times by hand, and a drawing that fits a small terminal."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from services import cli
from services.commands.watch import JobView, clock
from wmss.units import clock_time


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65.4, "1:05"), (3725, "1:02:05"), (-3, "0:00")])
def test_clock_time(seconds, text):
    assert clock_time(seconds) == text


def test_clock_estimates_from_the_mean_speed():
    now = time.time()
    phase = {"started_at": now - 60, "finished_at": None, "done": 25, "total": 100}
    assert clock(phase) == "1:00, 3:00 left"
    assert clock(phase | {"done": 0}) == "1:00"
    assert clock(phase | {"finished_at": now - 30}) == "0:30"


def phase(name, status="running", done=0, total=0, **rest):
    times = {"started_at": time.time() - 9, "finished_at": time.time() if status == "finished" else None}
    return {"name": name, "status": status, "done": done, "total": total} | times | rest


def events():
    metrics = {"phase": "sft", "train_loss": 0.5, "tokens_per_s": 14895.0}
    return [
        SimpleNamespace(type="message", level="warn", message="3 rows [of 9] are cut", data=None),
        SimpleNamespace(type="metrics", level="info", message="", data=metrics),
    ]


def phases():
    return [
        phase("validate", "finished", 1, 1),
        phase("sft", done=120, total=1890),
        phase("score_weak", "pending", started_at=None),
    ]


def test_terminal_shows_every_phase_on_a_line_of_80_columns():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80, color_system=None, legacy_windows=False)
    with JobView(console, "ftjob-1") as view:
        view.update(None, phases(), events())
    last = [line for line in out.getvalue().splitlines() if line.startswith("sft") or "\x1b[2Ksft" in line][-1]
    assert "120/1890" in last
    assert "0:09, 2:13 left" in last
    assert "loss 0.5000 14,895 tokens/s" in last
    assert "…" not in last
    assert "score_weak" not in out.getvalue()


def test_elsewhere_it_prints_the_messages_alone():
    out = io.StringIO()
    with JobView(Console(file=out, width=80), "ftjob-1") as view:
        view.update(None, phases(), events())
    assert out.getvalue().splitlines() == ["job ftjob-1", "  3 rows [of 9] are cut"]


def test_a_message_that_was_told_in_a_row_says_how_often():
    out = io.StringIO()
    lost = SimpleNamespace(type="message", level="warn", message="Attempt lost", data={"times": 3, "last_at": 1})
    with JobView(Console(file=out, width=80), "ftjob-1") as view:
        view.update(None, [], [lost])
    assert out.getvalue().splitlines()[1:] == ["  Attempt lost (3 times)"]


def test_a_failure_of_many_lines_is_told_once(monkeypatch, capsys):
    message = "80 rows are unusable in mine.jsonl (file-1):\n  line 1: one\n  line 2: other"
    told = SimpleNamespace(type="message", level="error", message=f"Failed: {message}", data=None)

    def watch(api, job_id, on_change):
        job = SimpleNamespace(status="failed", error=SimpleNamespace(message=message))
        on_change(job, [], [told])
        return job

    monkeypatch.setattr("services.commands.client.watch", watch)
    monkeypatch.setattr(cli, "console", Console(width=80))
    with pytest.raises(SystemExit):
        cli._watch(None, "ftjob-1")
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:] == [f"  Failed: {message.splitlines()[0]}", *message.splitlines()[1:]]
    assert printed.err == "error ftjob-1 failed: 80 rows are unusable in mine.jsonl (file-1)\n"
