"""A training phase of a job: what is told before and after it, and what it leaves."""

from pathlib import Path

from wmss.rounds import messages
from wmss.rounds.job import Checkpoint, Engines, Job, Trained
from wmss.rounds.journal import Journal
from wmss.rounds.phases import kind_and_round
from wmss.training.checkpoint_files import best_checkpoint, load_metrics
from wmss.training.run import TrainingRun


def prepare_training(job: Job, engines: Engines, journal: Journal, phase: str | None) -> None:
    """Tell the engines of the next training phase, unless there is none or it is done."""
    if phase is not None and journal.artifacts(phase) is None:
        engines.prepare_training(name=_run_name(job, phase))


def train_phase(job: Job, engines: Engines, journal: Journal, run: TrainingRun) -> tuple[Path, Trained]:
    """Run a phase; returns the folder of its last checkpoint, and what to record of the one that is kept."""
    journal.event(messages.about_to_train(run))
    last = engines.train(run, name=_run_name(job, run.phase))
    metrics = load_metrics(last)
    journal.event(messages.trained(run.phase, metrics), data=metrics)
    if "unpacked" in metrics:
        journal.event(messages.unpacked(run.phase), level="warn")
    kept = last if run.keep == "last" else best_checkpoint(last.parent)
    if run.keep == "best":
        best = load_metrics(kept)
        journal.event(messages.keeps(run.phase, best, metrics), data=best)
    trained = Checkpoint.of_training(kept, run)
    return last, Trained(checkpoint=trained.folder, source=trained.source, num_steps=int(metrics["step"]))


def _run_name(job: Job, phase: str) -> str:
    kind, number = kind_and_round(phase)
    return f"{job.id}-{kind}-{number}"
