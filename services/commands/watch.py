"""`wmss watch`: a job on the terminal, one line per phase with its progress, messages above them as they come; and the
tables of jobs, rounds and samples."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from services.commands.tables import show_table
from wmss.errors import shortened
from wmss.units import clock_time

LEVEL_STYLES = {"info": "", "warn": "yellow", "error": "red"}


class JobView:
    """Draws a job; on a terminal live, elsewhere as plain lines. Fits 80 columns."""

    def __init__(self, console: Console, job_id: str) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=14),
            TextColumn("{task.fields[count]:>9} {task.fields[clock]}"),
            TextColumn("{task.fields[detail]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        console.print(f"job {job_id}", highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, job: Any, phases: list[dict[str, Any]], events: list[Any]) -> None:
        """Take in what is new."""
        for event in events:
            if event.type == "message":
                style = LEVEL_STYLES.get(event.level, "")
                self._console.print(f"  {_told(event)}", style=style, highlight=False, markup=False, soft_wrap=True)
        newest = {event.data["phase"]: event.data for event in events if event.type == "metrics"}
        for phase in phases:
            if phase["status"] != "pending":
                self._draw(phase, newest.get(phase["name"]))

    def _draw(self, phase: dict[str, Any], metrics: dict[str, Any] | None) -> None:
        name, done, total = phase["name"], phase["done"], phase["total"]
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=1, count="", clock="", detail="")
        task = self._tasks[name]
        # A phase that does not count (yet) has total 0: its bar moves to and fro.
        self._progress.update(
            task, completed=done, total=total or None, count=f"{done}/{total}" if total > 1 else "", clock=clock(phase)
        )
        if metrics is not None:
            detail = f"loss {metrics['train_loss']:.4f} {metrics['tokens_per_s']:,.0f} tokens/s"
            self._progress.update(task, detail=detail)


def _told(event: Any) -> str:
    """A message, with how often it was told in a row."""
    times = (event.data or {}).get("times", 1)
    return f"{event.message} ({times} times)" if times > 1 else str(event.message)


def clock(phase: dict[str, Any]) -> str:
    """Time taken and, of a phase that counts, time left at its mean speed so far."""
    ended = phase["finished_at"]
    taken = (ended or time.time()) - phase["started_at"]
    if ended or not 0 < phase["done"] < phase["total"]:
        return clock_time(taken)
    return f"{clock_time(taken)}, {clock_time(taken * (phase['total'] - phase['done']) / phase['done'])} left"


def show_jobs(jobs: Sequence[Any], console: Console) -> None:
    """Print jobs as the service lists them: when they were made (local time), how long they took, what they gave."""
    rows = []
    for job in jobs:
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(job.created_at))
        took = clock_time((job.finished_at or time.time()) - job.created_at)
        method = job.method.type if job.method else ""
        suffix = (job.model_extra or {}).get("suffix") or ""
        rows.append((job.id, job.status, made, took, method, job.model, suffix, job.fine_tuned_model or ""))
    columns = ("id", "status", "made", "took", "method", "model", "suffix", "result")
    show_table(console, columns, rows, below=4)


def show_rounds(rounds: Sequence[dict[str, Any]], console: Console) -> None:
    """Print rounds of self-improvement as the service lists them; the best one is marked."""
    levels = [each["level"] for each in rounds[-1]["held_out"]["levels"]]
    best = rounds[-1]["best_round"]
    rows = []
    for one in rounds:
        held_out = {each["level"]: each["pass_at_1"] for each in one["held_out"]["levels"]}
        cells = []
        for each in one["levels"]:
            asked = f"{each['num_accepted']}/{each['num_sampled']}" if each["num_sampled"] else "-"
            cells.append(f"{asked} → {held_out[each['level']]:.1%}")
        reading = one["reading"] or {}
        points = [reading.get(name) for name in ("v_minus", "v_plus")]
        told = ["" if point is None else f"{point:.3f}" for point in points]
        learned = sum(each["num_selected"] for each in one["levels"])
        mark = "*" if one["round"] == best else ""
        rows.append((f"{one['round']}{mark}", one["label"], str(learned), *told, *cells))
    columns = ("round", "label", "learned", "V₋", "V₊", *(f"level {level}" for level in levels))
    show_table(console, columns, rows, below=len(levels))
    caption = "accepted/sampled → held-out pass@1 after the round; * the best round"
    console.print(f"  {caption}", highlight=False, soft_wrap=True)


def show_samples(samples: Sequence[dict[str, Any]], console: Console) -> None:
    """Print samples of a draw as the service lists them, with the beginning of each completion."""
    rows = []
    for sample in samples:
        entropies = [sample["weak_entropy"], sample["strong_entropy"], sample["entropy_delta"]]
        figures = ["" if value is None else f"{value:.4f}" for value in entropies]
        text = shortened(" ".join((sample["completion"] or "").split()))
        rows.append((str(sample["line"]), *figures, f"{sample['weight']:.3g}", str(sample["times_drawn"]), text))
    show_table(console, ("line", "H weak", "H strong", "ΔH", "weight", "drawn", "completion"), rows, below=1)
