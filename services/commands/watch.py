"""`wmss watch`: a job on the terminal, one line per phase with its progress, messages above them as they come."""

import time
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

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
                self._console.print(f"  {event.message}", style=style, highlight=False, markup=False, soft_wrap=True)
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


def clock(phase: dict[str, Any]) -> str:
    """Time taken and, of a phase that counts, time left at its mean speed so far."""
    ended = phase["finished_at"]
    taken = (ended or time.time()) - phase["started_at"]
    if ended or not 0 < phase["done"] < phase["total"]:
        return clock_time(taken)
    return f"{clock_time(taken)}, {clock_time(taken * (phase['total'] - phase['done']) / phase['done'])} left"


def round_table(rounds: list[dict[str, Any]]) -> Table:
    """Rounds of self-improvement as the service lists them, one line each; the best one is marked."""
    levels = [each["level"] for each in rounds[-1]["held_out"]["levels"]]
    table = Table("round", "", *(f"level {level}" for level in levels), "learned", "V₋", "V₊")
    best = rounds[-1]["best_round"]
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
        table.add_row(f"{one['round']}{mark}", one["label"], *cells, str(learned), *told)
    table.caption = "accepted/sampled → held-out pass@1 after the round; * the best round"
    return table


def sample_table(rows: list[dict[str, Any]]) -> Table:
    """Samples of a draw as the service lists them, one line each."""
    table = Table("line", "H weak", "H strong", "ΔH", "weight", "drawn")
    table.add_column("completion", no_wrap=True, overflow="ellipsis")
    for row in rows:
        entropies = [row["weak_entropy"], row["strong_entropy"], row["entropy_delta"]]
        figures = ["" if value is None else f"{value:.4f}" for value in entropies]
        text = " ".join((row["completion"] or "").split())
        table.add_row(str(row["line"]), *figures, f"{row['weight']:.3g}", str(row["times_drawn"]), escape(text))
    return table
