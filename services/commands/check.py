"""`wmss check`: a dry run on the terminal. Fits 80 columns and reads without colours: supervised text is marked."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from services.commands.tables import show_table
from wmss.rounds.before.report import (
    Cost,
    FileFigures,
    Finding,
    Plan,
    PlannedPhase,
    RenderedSample,
    Report,
    TaskFigures,
)
from wmss.units import clock_time, gigabytes

MAX_SAMPLE_LINES = 40
SUPERVISED, OTHER = "  > ", "    "


def show(report: Report, console: Console) -> None:
    """Print a report: what is wrong, what is in the files, what would be done, what it would cost."""
    for finding in report.problems:
        _finding(console, "refused", finding, "red")
    for finding in report.warnings:
        _finding(console, "warning", finding, "yellow")
    if report.training_file is not None:
        _files(console, report.training_file, report.validation_file)
    if report.tasks is not None:
        _tasks(console, report.tasks)
    if report.sample is not None:
        _sample(console, report.sample)
    if report.plan is not None:
        _plan(console, report.plan)
    if report.cost is not None:
        _cost(console, report.cost)
    verdict = "would be accepted" if report.valid else "would be refused"
    console.print(f"\nThe job {verdict}; nothing was started.", style="bold", highlight=False)


def _finding(console: Console, what: str, finding: Finding, style: str) -> None:
    field = "" if finding.param is None or finding.message.startswith(finding.param) else f"{finding.param}: "
    console.print(Text(f"{what}  ", style=style) + Text(f"{field}{finding.message}"), highlight=False)


def _files(console: Console, training: FileFigures, validation: FileFigures | None) -> None:
    rows = []
    for name, figures in (("training", training), ("validation", validation)):
        if figures is not None:
            lengths = (figures.length_min, figures.length_median, figures.length_p95, figures.length_max)
            rows.append(
                (
                    name,
                    f"{figures.num_rows:,}",
                    f"{figures.num_tokens:,}",
                    f"{figures.num_targets:,} ({figures.supervised_share:.0%})",
                    " / ".join(f"{length:.0f}" for length in lengths),
                    f"{figures.num_cut:,}",
                    f"{figures.num_dropped:,}" if figures.num_dropped else "",
                )
            )
    show_table(
        console, ("tokens", "rows", "all", "supervised", "min / median / p95 / max", "cut", "left out"), rows, below=3
    )


def _tasks(console: Console, tasks: TaskFigures) -> None:
    rows = []
    for each in tasks.levels:
        counts = (each.num_training, each.num_validation, each.num_test, each.num_ood)
        level = "estimated" if each.level is None else str(each.level)
        rows.append((level, *(f"{count:,}" for count in counts)))
    show_table(console, ("level", "training tasks", "validation", "test", "out of distribution"), rows)
    lengths = f"{tasks.prompt_min} / {tasks.prompt_median:.0f} / {tasks.prompt_max}"
    console.print(f"\nPrompts of {lengths} tokens (min / median / max); the first one:")
    for line in tasks.first_prompt.splitlines()[:MAX_SAMPLE_LINES]:
        console.print(Text(OTHER + line, style="dim"), overflow="fold")


def _sample(console: Console, sample: RenderedSample) -> None:
    console.print(f"\nLine {sample.line} of the training file, {sample.num_tokens} tokens; > is trained on")
    lines = list(_marked_lines(sample))
    for line in lines[:MAX_SAMPLE_LINES]:
        console.print(line, highlight=False, overflow="fold")
    if len(lines) > MAX_SAMPLE_LINES:
        console.print(f"    ({len(lines) - MAX_SAMPLE_LINES} more lines)")


def _marked_lines(sample: RenderedSample) -> Iterator[Text]:
    """The sample's text line by line; a line that turns supervised halfway is broken there."""
    for segment in sample.segments:
        margin, style = (SUPERVISED, "green") if segment.supervised else (OTHER, "dim")
        for line in segment.text.removesuffix("\n").split("\n") if segment.text.strip() else ():
            yield Text(margin + line, style=style)


def _plan(console: Console, plan: Plan) -> None:
    rate = f"peak learning rate {plan.peak_learning_rate:g}"
    console.print(f"\nPlan: {plan.batch_size} samples a step, up to {plan.max_length} tokens each, {rate}")
    for phase in plan.phases:
        if phase.name == "plan":
            console.print(f"    at most {plan.max_rounds} rounds of")
        console.print(f"    {phase.name:<12}  {_steps(phase)}".rstrip(), highlight=False)


def _steps(phase: PlannedPhase) -> str:
    if phase.num_steps is None:
        return ""
    bound = "at most " if phase.at_most else ""
    if phase.num_epochs is None:
        return f"{bound}{phase.num_steps:,} steps"
    epochs = f"{phase.num_epochs} epoch" + ("s" if phase.num_epochs != 1 else "")
    return f"{bound}{phase.num_steps:,} steps, {epochs} of {bound}{phase.num_samples:,} samples"


def _cost(console: Console, cost: Cost) -> None:
    workers = f"{cost.num_workers} worker{'s' if cost.num_workers > 1 else ''} of {gigabytes(cost.worker_memory_bytes)}"
    engine = f", then an engine of {gigabytes(cost.engine_memory_bytes)}" if cost.engine_memory_bytes else ""
    kept, moment = gigabytes(cost.disk_bytes), gigabytes(cost.temporary_disk_bytes)
    taken = "unknown" if cost.training_s is None else f"{clock_time(cost.training_s)} of training"
    console.print("\nCost, estimated")
    for name, text in {
        "memory": f"{workers}{engine}",
        "disk": f"{kept}, and {moment} for a while (a checkpoint is {gigabytes(cost.checkpoint_bytes)})",
        "work": f"{cost.training_flops:.1e} FLOPs of training, {cost.scoring_flops:.1e} of scoring",
        "time": f"{taken}; {cost.basis}",
    }.items():
        table = Table.grid(Column(no_wrap=True), Column(overflow="fold"), padding=(0, 2))
        table.add_row(f"    {name:<6}", text)
        console.print(table, highlight=False)
