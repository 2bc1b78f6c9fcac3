"""One training worker under Ray Train: waits for its run, runs `wmss.training.loop` and writes down what it reports."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wmss.startup import quick_imports

with quick_imports():  # a training worker starts with this module
    import ray.train
    import torch
    from ray.train import Checkpoint
    from ray.train.torch import get_device

    from services.driver.handover import awaited_run
    from services.jobs.database import PATIENCE_S
    from services.jobs.fence import Fence, NewEvent
    from services.jobs.store import Store
    from services.settings import Settings
    from wmss.config.job import Checkpointing
    from wmss.errors import WmssError
    from wmss.rounds.phases import kind_and_round
    from wmss.training.checkpoint_files import load_metrics
    from wmss.training.loop import train

FLUSH_S = 0.5


def train_worker(config: dict[str, Any]) -> WmssError | None:
    """One worker. The caller's own faults are returned, not raised: Ray Train would try them again."""
    run = awaited_run(Path(config["run_file"]))
    if run is None:
        return None
    with contextlib.closing(RayHost(phase=run.phase, **config["record"])) as host:
        try:
            train(run, host)
        except WmssError as error:
            return error
    return None


class RayHost:
    """The loop's `Host` on a Ray Train worker."""

    def __init__(
        self, *, phase: str, job_id: str, attempt: int, model_name: str, checkpointing: dict[str, Any], run_folder: str
    ) -> None:
        context = ray.train.get_context()
        self.rank = context.get_world_rank()
        self.world_size = context.get_world_size()
        self.device: torch.device = get_device()
        self._run_folder = Path(run_folder)
        self._phase = phase
        self._model_name = model_name
        self._checkpointing = Checkpointing(**checkpointing)
        settings = Settings()
        self._store = Store(settings.database, patience_s=PATIENCE_S)
        self._fence = Fence(self._store, job_id, attempt, lease_s=settings.lease_s)
        self._pending: list[dict[str, float]] = []
        self._flushed_at = time.monotonic()

    @contextlib.contextmanager
    def latest_checkpoint(self) -> Iterator[Path | None]:
        """A local folder with the newest complete checkpoint, or None."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            yield None
            return
        with checkpoint.as_directory() as folder:
            if self.rank == 0:
                # Its worker may have died between Ray Train's note of it and ours.
                self._record_checkpoint(load_metrics(Path(folder)))
            yield Path(folder)

    def log(self, metrics: dict[str, float]) -> None:
        """Record a step; written at most twice a second, so that the database never slows a step down."""
        self._pending.append(metrics)
        if "saturated_at" in metrics:
            self._fence.record_events([_saturation_event(self._phase, int(metrics["saturated_at"]))])
        if time.monotonic() - self._flushed_at >= FLUSH_S:
            self._flush()

    def checkpoint(self, folder: Path, metrics: dict[str, float]) -> None:
        """Copy a checkpoint folder to the run's storage and make it the one to resume from."""
        if self.rank == 0:
            self._flush()  # steps before a checkpoint are never run again, so their metrics must be safe first
        name = _checkpoint_name(metrics)
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(str(folder)), checkpoint_dir_name=name)
        if self.rank == 0:
            self._record_checkpoint(metrics)

    def close(self) -> None:
        """Write what is pending and let go of the database."""
        self._flush()
        self._store.close()

    def _record_checkpoint(self, metrics: dict[str, float]) -> None:
        step = int(metrics["step"])
        self._fence.record_checkpoint(
            phase=self._phase,
            step=step,
            path=self._run_folder / _checkpoint_name(metrics),
            model_name=f"{self._model_name}:ckpt-{self._phase}-{step}",
            metrics=metrics,
            checkpointing=self._checkpointing,
        )

    def _flush(self) -> None:
        if self._pending:
            newest = self._pending[-1]
            self._fence.record_events([_metrics_event(self._phase, metrics) for metrics in self._pending])
            self._fence.progress(self._phase, int(newest["step"]), int(newest["num_steps"]))
            self._pending = []
        self._flushed_at = time.monotonic()


def _checkpoint_name(metrics: dict[str, float]) -> str:
    return f"step-{int(metrics['step']):08d}"


def _saturation_event(phase: str, step: int) -> NewEvent:
    kind, number = kind_and_round(phase)
    return NewEvent(f"{phase}: the logit margin has flattened at step {step}", key=f"{kind}-{number}-saturated")


def _metrics_event(phase: str, metrics: dict[str, float]) -> NewEvent:
    step, num_steps = int(metrics["step"]), int(metrics["num_steps"])
    kind, number = kind_and_round(phase)
    held_out = f", valid_loss {metrics['valid_loss']:.4f}" if "valid_loss" in metrics else ""
    return NewEvent(
        f"{phase} step {step}/{num_steps}: train_loss {metrics['train_loss']:.4f}{held_out}",
        type="metrics",
        data={"phase": phase, **metrics, "step": step, "num_steps": num_steps},
        key=f"{kind}-{number}-{step}",
    )
