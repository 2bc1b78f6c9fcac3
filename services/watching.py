"""A job on the terminal: one line per phase with its progress, messages above them as they come."""

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LEVEL_STYLES = {"info": "", "warn": "yellow", "error": "red"}


class JobView:
    """Draws a job; on a terminal live, elsewhere as plain lines."""

    def __init__(self, console: Console, job_id: str) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description:<13}"),
            BarColumn(bar_width=28),
            TextColumn("{task.completed:>6.0f}/{task.total:<6.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
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
            if phase["status"] == "pending":
                continue
            name = phase["name"]
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=1, detail="")
            task = self._tasks[name]
            self._progress.update(task, completed=phase["done"], total=max(1, phase["total"]))
            if name in newest:
                metrics = newest[name]
                detail = f"loss {metrics['train_loss']:.4f}  {metrics['tokens_per_s']:,.0f} tokens/s"
                self._progress.update(task, detail=detail)
