"""`wmss plan`: a pilot of a self-improvement job in this process, and what it lets expect. Loads torch."""

import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from services.catalog.names import local_store, named_models, registered_digests, registered_models, resolve_anywhere
from services.commands.score_here import ViewedJournal
from services.commands.simulate import CAVEAT, check_out, html_table, write_chart
from services.commands.tables import show_table
from services.commands.watch import JobView
from services.settings import Settings, engine_environment
from wmss.choices import EngineChoice
from wmss.config import JobSpec, SelfImprovementConfig, SelfImprovementMethod
from wmss.errors import WmssError
from wmss.ids import LOCAL, new_id
from wmss.rounds.improvement.outlook import Case, Outlook, look_ahead
from wmss.rounds.improvement.pilot import Pilot, run_pilot
from wmss.rounds.in_process import in_process
from wmss.rounds.job import Job
from wmss.units import duration

PILOT_COLUMNS = ("level", "prompts", "accepted", "rate", "90 %", "no answer", "cut", "distinct")
MOST_COMPLEXITY = 1e12


def plan(
    spec: JobSpec,
    settings: Settings,
    console: Console,
    *,
    engine: EngineChoice,
    num_prompts: int,
    num_samples: int,
    complexity: float | None,
    out: Path | None,
) -> None:
    """Run the pilot of a job whose files are paths here; print it, the outlook and the curriculum to take."""
    if complexity is not None and not 0 < complexity <= MOST_COMPLEXITY:
        raise WmssError(f"--complexity: expected a number above 0 and at most {MOST_COMPLEXITY:g}, got {complexity}")
    if out is not None:
        check_out(out)
    pilot = _run(spec, settings, console, engine, num_prompts, num_samples)
    assert isinstance(spec.method, SelfImprovementMethod)
    knobs = spec.method.self_improvement
    _show_pilot(pilot, console)
    outlook = look_ahead(pilot.levels, knobs, complexity)
    rows = _outlook_rows(outlook, knobs)
    lines = [*_outlook_lines(outlook, pilot, knobs), *_recommendation(outlook, knobs)]
    if outlook.cases:
        columns = ["", *(_case_name(case) for case in outlook.cases)]
        show_table(console, columns, rows)
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if out is None:
        return
    if not outlook.cases:
        raise WmssError("--out: there is no forecast to draw; the pilot says why")
    tables = [html_table(PILOT_COLUMNS, _pilot_rows(pilot)), html_table(columns, rows)]
    forecasts = {_case_name(case): case.forecast for case in outlook.cases}
    write_chart(forecasts, tables, lines, out, title="wmss plan")
    console.print(str(out), highlight=False, markup=False, soft_wrap=True)


def _run(
    spec: JobSpec,
    settings: Settings,
    console: Console,
    engine: EngineChoice,
    num_prompts: int,
    num_samples: int,
) -> Pilot:
    with local_store(settings) as store:
        models = resolve_anywhere(spec, store, settings)
        registered = registered_models(named_models(spec), store)
    engines = in_process(engine, "float32")
    if engines.engine == "vllm":  # which reads its settings when it is imported
        quiet = engine_environment() | {"VLLM_LOGGING_LEVEL": "ERROR"}
        for name in sorted(quiet):
            if name.startswith("VLLM_"):
                os.environ.setdefault(name, quiet[name])
    with tempfile.TemporaryDirectory() as scratch, JobView(console, "in this process") as view:
        folder = Path(scratch)
        job = Job(
            id=new_id(LOCAL),
            spec=spec,
            base=models["model"],
            weak=None,
            more_weak=(),
            strong=None,
            training_file=Path(spec.training_file),
            validation_file=None if spec.validation_file is None else Path(spec.validation_file),
            folder=folder,
            cache=folder / "cache",
            result=folder / "result",
            result_name="",
            digests={param: registered_digests(row) for param, row in registered.items()},
        )
        return run_pilot(job, engines, ViewedJournal(view), num_prompts=num_prompts, num_samples=num_samples)


def _show_pilot(pilot: Pilot, console: Console) -> None:
    """Every level's figures, the gates and the alarms."""
    show_table(console, PILOT_COLUMNS, _pilot_rows(pilot))
    console.print(
        f"{pilot.samples_per_prompt} responses to each prompt, of {pilot.mean_tokens:.0f} tokens on average; drawn in "
        f"{duration(pilot.seconds)}",
        highlight=False,
        soft_wrap=True,
    )
    for gate in pilot.gates:
        said = Text("passed  " if gate.passed else "failed  ", style="green" if gate.passed else "yellow")
        remedy = "" if gate.passed else f"; {gate.remedy}"
        console.print(said + Text(f"{gate.name}: {gate.found}{remedy}"), highlight=False, soft_wrap=True)
    for alarm in pilot.alarms:
        console.print(Text("warning ", style="yellow") + Text(alarm.message), highlight=False, soft_wrap=True)


def _pilot_rows(pilot: Pilot) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for each in pilot.levels:
        low, high = each.interval_90
        ended = max(1, each.num_sampled - each.num_truncated)
        rows.append(
            (
                str(each.level),
                f"{each.num_prompts:,}",
                f"{each.num_accepted:,}/{each.num_sampled:,}",
                f"{each.acceptance:.1%}",
                f"{100 * low:.1f}-{100 * high:.1f}",
                f"{each.num_unparseable / ended:.1%}",
                f"{each.num_truncated / each.num_sampled:.1%}",
                f"{each.distinct_per_prompt:.1f} of {pilot.samples_per_prompt}",
            )
        )
    return rows


def _case_name(case: Case) -> str:
    name = f"a = {case.complexity:,.3g}" if case.complexity < 1000 else f"a = {case.complexity:,.0f}"
    return name if case.failures_left is None else f"{name}, {case.failures_left:.0%} left"


def _outlook_rows(outlook: Outlook, knobs: SelfImprovementConfig) -> list[list[str]]:
    """A row for each policy, the best one, the ceilings and the smallest budget; a column for each case."""
    if not outlook.cases:
        return []
    rows = []
    for policy in outlook.cases[0].forecast.policies:
        found = [case.forecast.of(policy.policy) for case in outlook.cases]
        name = policy.policy + ("*" if policy.policy == knobs.curriculum.policy else "")
        rows.append([name, *(f"{each.end:.2f} ({each.interval[0]:.2f}-{each.interval[1]:.2f})" for each in found)])
    rows.append(["best", *(case.forecast.recommended or "none" for case in outlook.cases)])
    for place, (num_samples, _) in enumerate(outlook.cases[0].ceilings):
        points = [case.ceilings[place][1] for case in outlook.cases]
        rows.append([f"V₊ of {num_samples:,}", *("none" if v is None else f"{v:.3f}" for v in points)])
    least = [case.guaranteed_above for case in outlook.cases]
    rows.append(["guaranteed above", *("never" if e is None else f"{e[1]:,.0f} ({e[0]})" for e in least)])
    return rows


def _outlook_lines(outlook: Outlook, pilot: Pilot, knobs: SelfImprovementConfig) -> list[str]:
    lines = [
        f"level {level.level}: nothing was accepted; the forecast takes {start:.2g}, half a response in "
        f"{level.num_sampled:,}"
        for level, start in zip(pilot.levels, outlook.starts, strict=True)
        if outlook.cases and not level.num_accepted
    ]
    if not outlook.cases:
        return lines
    lines += [f"left out: {policy}; {why}" for policy, why in outlook.cases[0].forecast.left_out.items()]
    lines.append(
        f"Acceptance of the hardest level after {knobs.rounds} rounds of {knobs.samples_per_round:,} responses, "
        "simulated (mean, and what 90 % of the runs lie between); * the job's policy. V₊ is the ceiling of a level "
        "that gets all responses of a round, with as many as now, twice and four times as many."
    )
    if outlook.cases[0].failures_left is not None:
        lines.append(
            "How hard the task is to learn, a, shows only when a round has trained; the columns are our guesses: a "
            "first round on the level accepted nearest one half leaves so much of its failures. A job's messages tell "
            "its estimate after every round: plan again with --complexity."
        )
    return [*lines, CAVEAT]


def _recommendation(outlook: Outlook, knobs: SelfImprovementConfig) -> list[str]:
    """What to do, with the lines for the job's file."""
    if outlook.policy is None:
        lines = [f"Recommended: none as it stands: {outlook.reason}"]
        budgets = [round(each.guaranteed_above[1]) for each in outlook.cases if each.guaranteed_above is not None]
        if budgets:
            lines.append(f"a larger samples_per_round may do, now {knobs.samples_per_round:,}: see 'guaranteed above'")
        return lines
    lines = [f"Recommended: {outlook.policy}: {outlook.reason}"]
    if outlook.policy == knobs.curriculum.policy:
        lines.append("The job has it already:")
    return [*lines, "", "[self_improvement.curriculum]", f'policy = "{outlook.policy}"']
