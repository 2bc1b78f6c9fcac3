"""`wmss demo`: the main job on this machine, start to end: on a toy, with nothing but what is in the package, or on
real weights and a file of yours.

Base model -> service -> weak-driven job over REST -> plain fine-tuning of the same strong checkpoint for the same
number of steps -> one table, one picture. The numbers are printed as they are.
"""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from openai import OpenAI
from rich.console import Console
from rich.progress import Progress

from services.commands import client as service
from services.commands.check import show
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
from services.commands.watch import JobView
from services.settings import Settings
from wmss.config import parse_job
from wmss.data.convert import convert_file
from wmss.errors import WmssError
from wmss.tasks.arithmetic import make_problems, question, write_jsonl

NUM_TRAINING = 2000
NUM_VALIDATION = 300

DEFAULT_LIMIT = 64
MIN_ROWS = 16
HELD_OUT_SHARE = 4
"""One row in so many is held out."""
MODEL_BATCH_SIZE = 8
MODEL_MAX_STEPS = 8
"""Steps of a training phase on real weights: enough to see every part work, few enough to wait for."""


@dataclass(frozen=True)
class DemoSetup:
    """One demo: what is trained on what, and how. The rest of the way is the same for all of them."""

    name: str
    model: str
    training: Path
    validation: Path
    hyperparameters: dict[str, Any]
    sft_epochs: int
    wmss_epochs: int
    control: bool
    environment: dict[str, str] = field(default_factory=dict)
    """Of the service, on top of this process's own."""


@dataclass(frozen=True)
class FinishedJob:
    """What the demo reads back from the service."""

    job: Any
    phases: dict[str, dict[str, Any]]
    """By name, with the artifacts as the API shows them: the demo reads what any client can."""
    metrics: list[dict[str, Any]]

    @property
    def seconds(self) -> dict[str, float]:
        """Of every phase."""
        return {name: phase["finished_at"] - phase["started_at"] for name, phase in self.phases.items()}


def run_demo(settings: Settings, console: Console, *, control: bool = True) -> None:
    """The demo that brings its own model and data: a toy."""
    home = home_of(settings)
    times: dict[str, float] = {}
    with timed(times, "base model"):
        base = _base_model(home, console)
    training, validation = _data(home.root)
    setup = DemoSetup(
        name="demo",
        model=base.name,
        training=training,
        validation=validation,
        hyperparameters={"batch_size": 32, "learning_rate": 1e-3},
        sft_epochs=3,
        wmss_epochs=2,
        control=control,
    )
    _run(setup, home, console, times)


def run_model_demo(
    settings: Settings, console: Console, *, model: str, data: Path, limit: int, control: bool = True
) -> None:
    """The same job on real weights: `model` as `wmss models add` takes it, the first `limit` rows of `data`."""
    home = home_of(settings)
    times: dict[str, float] = {}
    with timed(times, "model and data"):
        folder = _real_model(home, model, console)
        training, validation = _real_data(home.root, data, limit, console)
    from services.preview import check_here

    # Nothing else of the job runs while it trains.
    num_threads = int(os.environ.get("WMSS_TRAINING_THREADS") or len(os.sched_getaffinity(0)))
    setup = DemoSetup(
        name=f"demo-{folder.name}",
        model=folder.name,
        training=training,
        validation=validation,
        hyperparameters={
            "batch_size": MODEL_BATCH_SIZE,
            "max_steps": MODEL_MAX_STEPS,
            "learning_rate": 2e-5,
            # The weak-driven phase of a 135M model peaked at 7 GiB so, at 11 GiB with 2048 tokens.
            "micro_batch_tokens": 512,
        },
        sft_epochs=1,
        wmss_epochs=1,
        control=control,
        environment={"WMSS_TRAINING_THREADS": str(num_threads)},
    )
    files = {"training_file": str(training), "validation_file": str(validation)}
    show(
        check_here(parse_job(files | _wmss_job(setup)), Settings(home=home.root, training_threads=num_threads)), console
    )
    _run(setup, home, console, times)


def _run(setup: DemoSetup, home: Settings, console: Console, times: dict[str, float]) -> None:
    """Run the jobs of a demo; leaves a picture and the models, and no process."""
    control = None
    with running_service(home, console, times, **setup.environment) as endpoint:
        api = service.connect(endpoint.base_url)
        files = {
            "training_file": service.upload(api, setup.training),
            "validation_file": service.upload(api, setup.validation),
        }
        with timed(times, "weak-driven job"):
            wmss = run_to_end(api, console, "weak-driven job", files | _wmss_job(setup))
        if setup.control:
            with timed(times, "control job"):
                control = run_to_end(
                    api,
                    console,
                    "control: plain fine-tuning of the same strong checkpoint",
                    files | _control(setup, wmss),
                )
    picture = home.root / f"{setup.name}.png"
    _draw(wmss, control, picture)
    _report(console, wmss, control, times)
    console.print(
        f"model    {home.models / wmss.job.id}   ({wmss.job.fine_tuned_model})", soft_wrap=True, highlight=False
    )
    console.print(f"picture  {picture}", soft_wrap=True, highlight=False)
    show_next_steps(home, wmss.job.id, _first_question(setup.validation), console)


def _base_model(home: Settings, console: Console) -> Path:
    """Made once and kept."""
    folder = home.models / "arithmetic-base"
    if made_earlier(folder, "base model", console):
        return folder
    console.print("base model: training a small Qwen3 on arithmetic chains of up to 3 steps")
    partial = folder.with_name("arithmetic-base.partial")
    import transformers

    from wmss.tasks.base_model import make_base_model

    transformers.utils.logging.disable_progress_bar()

    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("base model")
        make_base_model(partial, progress=lambda step, total, loss: progress.update(task, completed=step, total=total))
    partial.rename(folder)
    return folder


def _data(folder: Path) -> tuple[Path, Path]:
    """Chains of 2 to 5 steps; no held-out question is in the training file."""
    validation_rows = make_problems(NUM_VALIDATION, seed=7)
    held_out = frozenset(question(row) for row in validation_rows)
    training, validation = folder / "train.jsonl", folder / "validation.jsonl"
    write_jsonl(make_problems(NUM_TRAINING, seed=8, exclude=held_out), training)
    write_jsonl(validation_rows, validation)
    return training, validation


def _first_question(validation: Path) -> str:
    """What the user says in the first held-out row; the model never saw it."""
    with validation.open(encoding="utf-8") as file:
        messages = json.loads(file.readline())["messages"]
    return next(str(message["content"]) for message in messages if message["role"] == "user")


def _real_model(home: Settings, source: str, console: Console) -> Path:
    """Made once and kept."""
    from wmss.models.importing import add_model, default_name

    folder = home.models / default_name(source)
    if made_earlier(folder, "model", console):
        return folder
    console.print(f"model: {source}", highlight=False, soft_wrap=True)
    return add_model(source, home.models, report=lambda message: console.print(f"  {message}", highlight=False))


def _real_data(folder: Path, source: Path, limit: int, console: Console) -> tuple[Path, Path]:
    """The first rows of a file as chat rows; every fourth is held out."""
    with tempfile.TemporaryDirectory(prefix="wmss-demo-") as scratch:
        converted = Path(scratch) / "rows.jsonl"
        done = convert_file(source, converted, limit=limit)
        rows = converted.read_text(encoding="utf-8").splitlines(keepends=True)
    if len(rows) < MIN_ROWS:
        raise WmssError(f"--data: expected at least {MIN_ROWS} rows, got {len(rows)} (--limit {limit}); use more rows")
    training, validation = folder / "train.jsonl", folder / "validation.jsonl"
    held_out = rows[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE]
    learned = [row for number, row in enumerate(rows, start=1) if number % HELD_OUT_SHARE]
    training.write_text("".join(learned), encoding="utf-8")
    validation.write_text("".join(held_out), encoding="utf-8")
    console.print(
        f"data: {len(learned)} rows to train on, {len(held_out)} held out, of {source} ({done.format})",
        highlight=False,
        soft_wrap=True,
    )
    for change, count in done.changes.items():
        console.print(f"  {count} rows: {change}", highlight=False)
    return training, validation


def _wmss_job(setup: DemoSetup) -> dict[str, Any]:
    hyperparameters = setup.hyperparameters | {"sft_epochs": setup.sft_epochs, "n_epochs": setup.wmss_epochs}
    return {
        "model": setup.model,
        "suffix": "demo",
        "method": {"type": "wmss", "wmss": {"hyperparameters": hyperparameters}},
    }


def _control(setup: DemoSetup, wmss: FinishedJob) -> dict[str, Any]:
    """Plain fine-tuning from the same strong checkpoint, for as many steps as the weak-driven phase took."""
    num_steps = wmss.phases["joint"]["artifacts"]["num_steps"]
    name = f"{wmss.job.fine_tuned_model}:ckpt-sft-{wmss.phases['sft']['artifacts']['num_steps']}"
    hyperparameters = setup.hyperparameters | {"n_epochs": num_steps, "max_steps": num_steps}
    return {
        "model": name,
        "suffix": "control",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def run_to_end(api: OpenAI, console: Console, title: str, values: dict[str, Any]) -> FinishedJob:
    console.rule(title)
    job_id = service.submit(api, parse_job(values))
    try:
        with JobView(console, job_id) as view:
            job = service.watch(api, job_id, view.update)
    except KeyboardInterrupt:
        api.fine_tuning.jobs.cancel(job_id)  # or the next demo would first finish this one
        raise
    if job.status != "succeeded":
        raise WmssError(f"{title}: {job_id} {job.status}: {job.error.message if job.error else 'no reason given'}")
    events = list(api.fine_tuning.jobs.list_events(job_id, limit=100))[::-1]
    return FinishedJob(
        job=job,
        phases={phase["name"]: phase for phase in service.phases(api, job_id)},
        metrics=[dict(event.data) for event in events if event.type == "metrics" and isinstance(event.data, dict)],
    )


def _results(wmss: FinishedJob, control: FinishedJob | None) -> dict[str, dict[str, Any]]:
    ours = wmss.phases["evaluate"]["artifacts"]["results"]
    results = {"base": ours["base"], "strong before": ours["strong_before"]}
    if control is not None:
        results["+ plain fine-tuning"] = control.phases["evaluate"]["artifacts"]["results"]["result"]
    return results | {"+ WMSS": ours["result"]}


def _report(console: Console, wmss: FinishedJob, control: FinishedJob | None, times: dict[str, float]) -> None:
    sft, joint = (wmss.phases[name]["artifacts"]["num_steps"] for name in ("sft", "joint"))
    steps = {"base": 0, "strong before": sft, "+ plain fine-tuning": sft + joint, "+ WMSS": sft + joint}
    console.rule("result")
    results = _results(wmss, control)
    judged = results["base"]["accuracy"]
    rows = [
        (name, str(steps[name]), _accuracy(result["accuracy"]), f"{result['nll']:.4f}")
        for name, result in results.items()
    ]
    show_table(console, ("model", "steps", "verified pass@1", "NLL, nat/token"), rows)
    if judged:
        console.print(f"pass@1 on {judged['num_problems']} held-out problems, with its 95 % interval", highlight=False)
    console.print(ONE_RUN, highlight=False)
    jobs = {"weak-driven job": wmss} | ({} if control is None else {"control job": control})
    show_times(times, console, {name: job.seconds for name, job in jobs.items()})


def _accuracy(accuracy: dict[str, Any] | None) -> str:
    if accuracy is None:
        return "not verifiable"  # the references end in no '#### value'
    low, high = accuracy["interval_95"]
    return f"{accuracy['pass_at_1']:6.1%}  ({low:.1%} to {high:.1%})"


def _draw(wmss: FinishedJob, control: FinishedJob | None, path: Path) -> None:
    """Loss curves, the entropy of every training sample under weak and strong, and accuracy with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (losses, entropies, accuracies) = pyplot.subplots(1, 3, figsize=(15, 4.2), layout="constrained")
    sft = [m for m in wmss.metrics if m["phase"] == "sft"]
    joint = [m for m in wmss.metrics if m["phase"] == "joint"]
    for label, color, points in (
        ("fine-tuning of the base", "tab:gray", sft),
        ("WMSS (loss of the mixed logits)", "tab:red", joint),
        ("plain fine-tuning goes on", "tab:blue", control.metrics if control is not None else []),
    ):
        if not points:
            continue  # no control was run
        offset = 0 if points is sft else len(sft)
        losses.plot([p["step"] + offset for p in points], [p["train_loss"] for p in points], color=color, label=label)
    losses.set(xlabel="optimizer step", ylabel="training loss, nat/token", title="training", yscale="log")
    losses.legend(frameon=False)

    table = pq.read_table(wmss.phases["weigh"]["artifacts"]["table"])
    weak, strong = (table[name].to_numpy() for name in ("weak_entropy", "strong_entropy"))
    drawn = table["times_drawn"].to_numpy() > 0
    for chosen, color, label in ((~drawn, "tab:gray", "not drawn"), (drawn, "tab:red", "drawn")):
        entropies.scatter(weak[chosen], strong[chosen], s=5, alpha=0.5, color=color, label=label)
    top = float(max(weak.max(), strong.max()))
    entropies.plot([0, top], [0, top], color="black", linewidth=0.8)
    entropies.set(
        xlabel="entropy under weak, nat", ylabel="entropy under strong, nat", title="training samples: entropy shift"
    )
    entropies.legend(frameon=False)

    results = _results(wmss, control)
    for position, result in enumerate(results.values()):
        accuracy = result["accuracy"]
        if accuracy is None:
            continue
        low, high = accuracy["interval_95"]
        middle = accuracy["pass_at_1"]
        accuracies.errorbar(position, middle, yerr=[[middle - low], [high - middle]], fmt="o", capsize=5, color="black")
    accuracies.set_xticks(range(len(results)), list(results), rotation=15)
    accuracies.set(ylabel="verified pass@1", title="held-out problems, 95 % interval")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
