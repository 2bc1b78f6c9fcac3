"""`wmss demo`: the main job on this machine, start to end, with nothing but what is in the package.

Base model -> service -> weak-driven job over REST -> plain fine-tuning of the same strong checkpoint for the same
number of steps -> one table, one picture. Whatever the numbers say is what is printed.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from openai import OpenAI
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from services import client as service
from services.settings import Settings
from services.supervisor import Endpoint, ServeError, die_with_parent, free_port, running_endpoint
from services.watching import JobView
from wmss.config import parse_job
from wmss.errors import WmssError
from wmss.tasks.arithmetic import make_problems, question, write_jsonl

NUM_TRAINING = 2000
NUM_VALIDATION = 300
HYPERPARAMETERS = {"batch_size": 32, "learning_rate": 1e-3}
SFT_EPOCHS, WMSS_EPOCHS = 3, 2
START_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class FinishedJob:
    """What the demo reads back from the service."""

    job: Any
    phases: dict[str, dict[str, Any]]
    metrics: list[dict[str, Any]]


def run_demo(settings: Settings, console: Console) -> None:
    """Run it all; leaves a picture and the models, and no process."""
    home = Settings(home=settings.root / "demo")
    home.models.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = {}
    with _timed(times, "base model"):
        base = _base_model(home, console)
    training, validation = _data(home.root)
    with contextlib.ExitStack() as stack:
        with _timed(times, "start of Ray and API"):
            console.print("starting Ray and the API")
            endpoint = stack.enter_context(_service(home))
        console.print(f"  REST API {endpoint.base_url}   Ray dashboard {endpoint.dashboard_url}", highlight=False)
        api = service.connect(endpoint.base_url)
        files = {"training_file": service.upload(api, training), "validation_file": service.upload(api, validation)}
        with _timed(times, "weak-driven job"):
            wmss = _run(api, console, "weak-driven job", files | _wmss_job(base.name))
        with _timed(times, "control job"):
            control = _run(
                api, console, "control: plain fine-tuning of the same strong checkpoint", files | _control(wmss)
            )
        with _timed(times, "stop"):
            stack.close()
    picture = home.root / "demo.png"
    _draw(wmss, control, picture)
    _report(console, wmss, control, times)
    console.print(
        f"model    {home.models / wmss.job.id}   ({wmss.job.fine_tuned_model})", soft_wrap=True, highlight=False
    )
    console.print(f"picture  {picture}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    times[name] = time.perf_counter() - started


def _base_model(home: Settings, console: Console) -> Path:
    """Made once and kept."""
    folder = home.models / "arithmetic-base"
    if (folder / "config.json").is_file():
        console.print(f"base model: {folder} (made earlier)", highlight=False, soft_wrap=True)
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


@contextlib.contextmanager
def _service(home: Settings) -> Iterator[Endpoint]:
    """`wmss serve` as a child, on a free port, stopped on the way out whatever happens."""
    command = [sys.executable, "-m", "services.cli", "serve", "--home", str(home.root), "--port", str(free_port())]
    log_path = home.root / "serve.log"
    with log_path.open("wb") as log:
        # A session of its own: Ctrl-C then reaches this process alone, which stops the child in order.
        child = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            if child.poll() is not None:
                raise ServeError(f"the service ended while starting: {log_path.read_text(encoding='utf-8').strip()}")
            if time.monotonic() > deadline:
                raise ServeError(f"the service was not ready within {START_TIMEOUT_S:.0f} s; see {log_path}")
            endpoint = running_endpoint(home)
            if endpoint is not None and endpoint.pid == child.pid:
                break
            time.sleep(0.2)
        yield endpoint
    finally:
        _stop(child)


def _stop(child: subprocess.Popen[bytes]) -> None:
    """A second Ctrl-C must not leave Ray behind: it is ignored while the child stops."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if child.poll() is None:
            os.kill(child.pid, signal.SIGTERM)
            child.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _wmss_job(model: str) -> dict[str, Any]:
    hyperparameters = HYPERPARAMETERS | {"sft_epochs": SFT_EPOCHS, "n_epochs": WMSS_EPOCHS}
    return {"model": model, "suffix": "demo", "method": {"type": "wmss", "wmss": {"hyperparameters": hyperparameters}}}


def _control(wmss: FinishedJob) -> dict[str, Any]:
    """Plain fine-tuning from the same strong checkpoint, for as many steps as the weak-driven phase took."""
    num_steps = wmss.phases["joint"]["artifacts"]["num_steps"]
    name = f"{wmss.job.fine_tuned_model}:ckpt-sft-{wmss.phases['sft']['artifacts']['num_steps']}"
    hyperparameters = HYPERPARAMETERS | {"n_epochs": num_steps, "max_steps": num_steps}
    return {
        "model": name,
        "suffix": "control",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }


def _run(api: OpenAI, console: Console, title: str, values: dict[str, Any]) -> FinishedJob:
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


def _results(wmss: FinishedJob, control: FinishedJob) -> dict[str, dict[str, Any]]:
    ours = wmss.phases["evaluate"]["artifacts"]["results"]
    return {
        "base": ours["base"],
        "strong before": ours["strong_before"],
        "+ plain fine-tuning": control.phases["evaluate"]["artifacts"]["results"]["result"],
        "+ WMSS": ours["result"],
    }


def _report(console: Console, wmss: FinishedJob, control: FinishedJob, times: dict[str, float]) -> None:
    sft, joint = (wmss.phases[name]["artifacts"]["num_steps"] for name in ("sft", "joint"))
    steps = {"base": 0, "strong before": sft, "+ plain fine-tuning": sft + joint, "+ WMSS": sft + joint}
    console.rule("result")
    problems = wmss.phases["evaluate"]["artifacts"]["results"]["base"]["accuracy"]["num_problems"]
    table = Table(
        "model", "steps", f"verified pass@1 on {problems} held-out problems (95 % interval)", "NLL, nat/token"
    )
    for name, result in _results(wmss, control).items():
        accuracy = result["accuracy"]
        low, high = accuracy["interval_95"]
        table.add_row(
            name, str(steps[name]), f"{accuracy['pass_at_1']:6.1%}  ({low:.1%} to {high:.1%})", f"{result['nll']:.4f}"
        )
    console.print(table)
    clock = Table("where the time went", "s")
    for name, seconds in times.items():
        clock.add_row(name, f"{seconds:.0f}")
        for finished in (wmss,) if name == "weak-driven job" else (control,) if name == "control job" else ():
            for phase, record in finished.phases.items():
                clock.add_row(f"  {phase}", f"{record['finished_at'] - record['started_at']:.0f}")
    console.print(clock)


def _draw(wmss: FinishedJob, control: FinishedJob, path: Path) -> None:
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
        ("plain fine-tuning goes on", "tab:blue", control.metrics),
    ):
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
        low, high = accuracy["interval_95"]
        middle = accuracy["pass_at_1"]
        accuracies.errorbar(position, middle, yerr=[[middle - low], [high - middle]], fmt="o", capsize=5, color="black")
    accuracies.set_xticks(range(len(results)), list(results), rotation=15)
    accuracies.set(ylabel="verified pass@1", title="held-out problems, 95 % interval")
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
