"""`wmss demo --method self_improvement`: easy-to-hard against a fixed mixture and the hardest level alone, on this
machine, through the real service, on a toy (`wmss.tasks.graph_hops`).

All arms of a setting begin with one model and draw equally many responses and take equally many optimizer steps.
The numbers are printed as they are.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.progress import Progress

from services.commands import client as service
from services.commands.charts import draw_rounds
from services.commands.demo_service import (
    ONE_RUN,
    home_of,
    made_earlier,
    running_service,
    show_next_steps,
    show_times,
    timed,
)
from services.commands.tables import show_table
from services.settings import Settings
from wmss.choices import CurriculumPolicy
from wmss.config import parse_job
from wmss.errors import TrainingError, WmssError

SEED = 0
NUM_LEVELS = 4
NUM_TRAINING, NUM_VALIDATION, NUM_TEST = 2000, 60, 250
"""Tasks of each level."""
ARMS: dict[str, CurriculumPolicy] = {
    "easy to hard": "clock",
    "mixture": "uniform",
    "hard only": "hard_only",
}
"""Curriculum policy of each arm."""


@dataclass(frozen=True)
class Setting:
    """What all arms of an experiment have in common."""

    title: str
    base_success: float
    """Success on level 1 at which training of the base ends."""
    samples_per_round: int
    steps_per_round: int
    rounds: int
    arms: tuple[str, ...]


SETTINGS = (
    Setting("a weak start, few responses", 0.38, 128, 100, 6, ("easy to hard", "mixture", "hard only")),
    Setting("a good start", 0.8, 48, 60, 6, ("easy to hard", "mixture")),
)
"""As `benchmarks/self_improvement.py` measured them in one process."""


@dataclass(frozen=True)
class Arm:
    """How one arm went."""

    name: str
    job_id: str
    rounds: list[dict[str, Any]]
    tested: dict[str, Any] | None
    """Scores of the start model and of the result; None where nothing was ever trained."""


def run_improvement_demo(settings: Settings, console: Console) -> None:
    """Every arm of every setting, one table and one chart for each setting."""
    home = home_of(settings)
    times: dict[str, float] = {}
    with timed(times, "base models and tasks"):
        bases = {s.base_success: _base(home, s.base_success, console) for s in SETTINGS}
        files = _task_files(home.root)
    with running_service(home, console, times) as endpoint:
        api = service.connect(endpoint.base_url)
        uploaded = {name: service.upload(api, file) for name, file in files.items()}
        for number, setting in enumerate(SETTINGS, start=1):
            console.rule(f"{setting.title}: {setting.samples_per_round} responses, {setting.steps_per_round} steps")
            with timed(times, setting.title):
                arms = _run_arms(api, setting, bases[setting.base_success].name, uploaded, console)
            _report(console, setting, arms)
            picture = home.root / f"self-improvement-{number}.png"
            draw_rounds({arm.name: arm.rounds for arm in arms}, picture)
            console.print(f"picture  {picture}", soft_wrap=True, highlight=False)
    show_times(times, console, {})
    trained = next(arm for arm in arms if arm.tested is not None)  # of the last setting
    with files["validation_file"].open(encoding="utf-8") as held_out:
        question = json.loads(held_out.readline())["prompt"]
    show_next_steps(home, trained.job_id, question, console)


def _base(home: Settings, success: float, console: Console) -> Path:
    """Made once and kept."""
    folder = home.models / f"graph-hops-{round(100 * success)}"
    if made_earlier(folder, "base model", console):
        return folder
    import transformers

    from wmss.tasks.graph_hops import make_base

    transformers.utils.logging.disable_progress_bar()
    console.print(f"base model: training a small Qwen3 on graph_hops until it solves {success:.0%} of level 1")
    partial = folder.with_suffix(".partial")
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("base model")
        found = make_base(
            partial, seed=SEED, until=success, progress=lambda step, total, loss: progress.update(task, completed=step)
        )
    partial.rename(folder)
    console.print("  it solves " + ", ".join(f"{rate:.1%} of level {i}" for i, rate in enumerate(found, start=1)))
    return folder


def _task_files(folder: Path) -> dict[str, Path]:
    from wmss.tasks.files import write_task_files

    training, held_out = write_task_files(
        folder,
        "graph_hops",
        seed=SEED,
        num_training=NUM_TRAINING,
        num_validation=NUM_VALIDATION,
        num_test=NUM_TEST,
        num_levels=NUM_LEVELS,
    )
    return {"training_file": training, "validation_file": held_out}


def _job(setting: Setting, arm: str, base: str, files: Mapping[str, str]) -> dict[str, Any]:
    from wmss.tasks.graph_hops import MAX_NEW_TOKENS

    knobs = {
        "verifier": {"type": "exact"},
        "rounds": setting.rounds,
        "samples_per_round": setting.samples_per_round,
        "samples_per_prompt": 1,
        "curriculum": {"policy": ARMS[arm]},
        "sampling": {"max_new_tokens": MAX_NEW_TOKENS},
        "accept": {"min_accepted": 12, "max_level_share": 1.0, "window": 2},
        "steps_per_round": setting.steps_per_round,
        "evaluation_samples": 2,
        # No arm may stop early: all are to take the same number of steps.
        "stop": {"patience": setting.rounds, "max_drop": 0.99},
        "hyperparameters": {
            "learning_rate": 6e-4,
            "lr_schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.01,
            "batch_size": 32,
            "telemetry_every": None,
        },
    }
    method = {"type": "self_improvement", "self_improvement": knobs}
    return {"model": base, "suffix": arm.replace(" ", "-"), "method": method, "seed": SEED, **files}


def _run_arms(api: OpenAI, setting: Setting, base: str, files: Mapping[str, str], console: Console) -> list[Arm]:
    """All arms; the service runs as many at once as this machine has room for."""
    jobs = {arm: service.submit(api, parse_job(_job(setting, arm, base, files))) for arm in setting.arms}
    try:
        with ThreadPoolExecutor(len(jobs)) as threads:
            followed = {
                arm: threads.submit(service.watch, api, job_id, _teller(arm, console)) for arm, job_id in jobs.items()
            }
            ended = {arm: job.result() for arm, job in followed.items()}
    except KeyboardInterrupt:
        for job_id in jobs.values():
            api.fine_tuning.jobs.cancel(job_id)  # or the next demo would first finish these
        raise
    for arm, job in ended.items():
        # An arm that never accepts enough to train on is an outcome, and the hardest level alone may have that.
        starved = job.status == "failed" and job.error.code == TrainingError.code
        if job.status != "succeeded" and not starved:
            reason = job.error.message if job.error else "no reason given"
            raise WmssError(f"{arm}: {job.id} {job.status}: {reason}")
    return [_arm(api, arm, job_id) for arm, job_id in jobs.items()]


def _teller(arm: str, console: Console) -> Any:
    """Prints what each round came to, with the name of its arm."""

    def tell(job: Any, phases: Sequence[dict[str, Any]], events: Sequence[Any]) -> None:
        for event in events:
            if event.type == "message" and event.message.startswith(("the model of round", "the start model")):
                console.print(f"  {arm}: {event.message}", highlight=False, markup=False, soft_wrap=True)

    return tell


def _arm(api: OpenAI, name: str, job_id: str) -> Arm:
    phases = {phase["name"]: phase for phase in service.phases(api, job_id)}
    tested = phases["final_test"]["artifacts"]
    return Arm(name, job_id, service.rounds(api, job_id), None if tested is None else tested["results"])


def _report(console: Console, setting: Setting, arms: Sequence[Arm]) -> None:
    """Held-out success of every arm's best model, and what the differences are worth."""
    levels = [f"level {level}" for level in range(1, NUM_LEVELS + 1)]
    base = next(arm.tested["base"] for arm in arms if arm.tested is not None)
    tested = {"base": base} | {arm.name: base if arm.tested is None else arm.tested["result"] for arm in arms}
    spent = {arm.name: arm.rounds for arm in arms}
    rows = []
    for name, scores in tested.items():
        rounds = spent.get(name, [])
        responses = sum(level["num_sampled"] for one in rounds for level in one["levels"])
        steps = setting.steps_per_round * sum(one["reading"] is not None for one in rounds)
        rows.append((name, f"{responses:,}", f"{steps:,}", *(_rate(score) for score in scores)))
    console.print(f"{setting.title}: pass@1 on test tasks (95 % interval)", highlight=False, soft_wrap=True)
    show_table(console, ("arm", "responses", "steps", *levels), rows, below=len(levels))
    console.print(ONE_RUN, highlight=False)
    for arm in arms:
        console.print(f"  {arm.name}: {arm.rounds[-1]['stop']['message']}", highlight=False, soft_wrap=True)
    first = arms[0]
    for other in arms[1:]:
        for ours, theirs in zip(tested[first.name], tested[other.name], strict=True):
            console.print(f"  {_compared(first.name, ours, other.name, theirs)}", highlight=False)


def _rate(score: Mapping[str, Any]) -> str:
    margin = 1.96 * score["standard_error"]
    return f"{score['pass_at_1']:.1%} ± {margin:.1%}"


def _compared(name: str, ours: Mapping[str, Any], other: str, theirs: Mapping[str, Any]) -> str:
    """Whether two scores on the same tasks differ by more than chance. Their tasks are the same, so treating them as
    independent is cautious."""
    difference = ours["pass_at_1"] - theirs["pass_at_1"]
    margin = 1.96 * (ours["standard_error"] ** 2 + theirs["standard_error"] ** 2) ** 0.5
    verdict = "may be chance" if abs(difference) <= margin else f"{name if difference > 0 else other} is better"
    level = f"level {ours['level']}"
    return f"{level}: {name} {100 * difference:+.1f} points against {other} (± {100 * margin:.1f}: {verdict})"
