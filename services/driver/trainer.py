"""Training phases of one attempt at a job, each a run of Ray Train.

A run's workers may be started before anything is known of the run but its name: they import what they need and wait,
while an engine scores. They leave again where the phase does not train, or another job needs their place.
"""

import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmss.startup import quick_imports

with quick_imports():
    from ray.exceptions import RayActorError, RayError
    from ray.train import (
        CheckpointConfig,
        FailureConfig,
        Result,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
        WorkerGroupError,
    )
    from ray.train.torch import TorchTrainer

    from services.driver.handover import fresh_file, hand_over
    from services.failures import training_error
    from services.settings import engine_environment
    from wmss.config.job import Checkpointing
    from wmss.errors import WmssError
    from wmss.training.checkpoint_files import is_complete
    from wmss.training.run import TrainingRun

logger = logging.getLogger(__name__)

MAX_WORKER_FAILURES = 3
MAX_CONTROLLER_FAILURES = 5
WATCH_S = 5.0
"""Seconds between two looks at whether waiting workers are in another's way."""


def train_worker(config: dict[str, Any]) -> WmssError | None:
    """One worker, in its own process. The driver needs nothing of what that imports, and starts earlier without it."""
    from services.driver import worker

    return worker.train_worker(config)


@dataclass(frozen=True)
class Workers:
    """The group of workers that every training phase of a job has."""

    storage: Path
    """Ray Train's; a run's folder lies below it."""
    num_workers: int
    use_gpu: bool
    num_threads: int
    checkpointing: Checkpointing
    """Which checkpoints are kept."""
    record: dict[str, Any]
    """Names the job, the attempt and the model that the checkpoints belong to."""

    def fit(self, name: str, run_file: Path) -> Result:
        """One run of Ray Train, which goes on from the last checkpoint of the run of this name; ended by the first
        failure of a worker. `run_file` is where the workers read what to train."""
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "run_file": str(run_file),
                "record": {
                    **self.record,
                    "checkpointing": self.checkpointing.model_dump(),
                    "run_folder": str(self.storage / name),
                },
            },
            scaling_config=ScalingConfig(num_workers=self.num_workers, use_gpu=self.use_gpu),
            run_config=RunConfig(
                name=name,
                storage_path=str(self.storage),
                # Bounded: by default Ray Train retries a group that cannot start for ever. Failures of workers are
                # counted in `FailureCount`: Ray Train counts those of a whole run, however far it came between them.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=MAX_CONTROLLER_FAILURES),
                checkpoint_config=checkpoint_config(self.checkpointing),
                worker_runtime_env={"env_vars": engine_environment() | {"OMP_NUM_THREADS": str(self.num_threads)}},
            ),
        )
        try:
            return trainer.fit()
        finally:
            run_file.unlink(missing_ok=True)


class FailureCount:
    """Failures of a run's workers, counted from zero again whenever there is a newer checkpoint than any before."""

    def __init__(self, limit: int, newest: int | None) -> None:
        """`newest` is the step of the checkpoint that the run begins from, None without one."""
        self._limit = limit
        self._newest = newest
        self._count = 0

    def is_too_many(self, newest: int | None) -> bool:
        """Count one more failure, after which the newest checkpoint is that of step `newest`; whether it is one more
        than the limit."""
        if newest is not None and (self._newest is None or newest > self._newest):
            self._newest, self._count = newest, 0
        self._count += 1
        return self._count > self._limit


class Trainer:
    """Ray Train for one attempt at a job, which has at most one group of workers at a time."""

    def __init__(self, workers: Workers, *, is_room: Callable[[], bool] = lambda: True) -> None:
        """`is_room` says whether workers may wait, and whether they may go on waiting."""
        self._workers = workers
        self._is_room = is_room
        self._waiting: _WaitingFit | None = None

    @property
    def waits(self) -> bool:
        """Whether there are workers that wait for their run."""
        return self._waiting is not None and self._waiting.waits

    def prepare(self, name: str) -> None:
        """Start the workers of the run of this name, which is the next one, if there is room."""
        if self._waiting is not None:
            if self._waiting.name == name and not self._waiting.ended:
                return  # they wait, or they are leaving, and a run has one group of workers at a time
            self._waiting.abandon()
        if self._is_room():
            self._waiting = _WaitingFit(self._workers, name, self._is_room)

    def train(self, run: TrainingRun, *, name: str) -> Path:
        """Run a phase; returns its last checkpoint folder. A run of the same name and storage goes on from its last
        checkpoint.

        Raises:
            WmssError: what a worker found wrong with the run, or what its workers died of, more than
                `MAX_WORKER_FAILURES` times without a newer checkpoint between two deaths.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.name != name:
            waiting.abandon()
            waiting = None
        folder = self._workers.storage / name
        count = FailureCount(MAX_WORKER_FAILURES, _newest_step(folder))
        while True:
            try:
                result = waiting.train(run) if waiting is not None else None
                result = result or self._workers.fit(name, _written(run, folder))
                return _last_checkpoint(result, name)
            except (TrainingFailedError, RayError) as error:
                # What else ends a run Ray Train has tried again itself.
                repeated = isinstance(error, (WorkerGroupError, RayActorError))
                if not repeated or count.is_too_many(_newest_step(folder)):
                    who = f"the training workers of {name}"
                    raise training_error(who, error, max_failures=MAX_WORKER_FAILURES) from error
                logger.warning("the training workers of %s failed and are started again: %s", name, error)
            waiting = None


class _WaitingFit:
    """A run of Ray Train in a thread of its own, whose workers wait for what they are to train."""

    def __init__(self, workers: Workers, name: str, is_room: Callable[[], bool]) -> None:
        self.name = name
        self._file = fresh_file(workers.storage / name)
        self._is_room = is_room
        self._told = False
        self._lock = threading.Lock()
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._ended = threading.Event()
        # Daemons: a driver that ends takes its workers along, waiting or not.
        threading.Thread(target=self._fit, args=(workers,), name=f"fit {name}", daemon=True).start()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    @property
    def waits(self) -> bool:
        """Whether the workers are there or coming, and were not told what to do."""
        return not self._told and not self.ended

    @property
    def ended(self) -> bool:
        """Whether all of the run is gone."""
        return self._ended.is_set()

    def train(self, run: TrainingRun) -> Result | None:
        """Let the workers train, and wait until they have; None if they left before they were told to."""
        told = self._tell(run)
        self._ended.wait()
        if not told:
            return None
        if self._error is not None:
            raise self._error
        return self._result

    def abandon(self) -> None:
        """Let the workers leave, without waiting for it."""
        self._tell(None)

    def _tell(self, run: TrainingRun | None) -> bool:
        """Whether this is what the workers do."""
        with self._lock:
            if not self.waits:
                return False
            hand_over(run, self._file)
            self._told = True
            return True

    def _fit(self, workers: Workers) -> None:
        try:
            self._result = workers.fit(self.name, self._file)
        except BaseException as error:  # raised where the result is awaited
            self._error = error
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while self.waits and not self._ended.wait(WATCH_S):
            with contextlib.suppress(Exception):  # a database that is away says nothing about room
                if not self._is_room():
                    self.abandon()


def checkpoint_config(checkpointing: Checkpointing) -> CheckpointConfig:
    """In Ray Train's terms. It never deletes the newest; `services.jobs.fence.forgotten` is the same rule."""
    best = {"checkpoint_score_attribute": "valid_loss", "checkpoint_score_order": "min"}
    return CheckpointConfig(num_to_keep=checkpointing.keep_last, **(best if checkpointing.keep == "best" else {}))


def _written(run: TrainingRun, folder: Path) -> Path:
    file = fresh_file(folder)
    hand_over(run, file)
    return file


def _last_checkpoint(result: Result, name: str) -> Path:
    fault: WmssError | None = result.return_value
    if fault is not None:
        raise fault
    assert result.checkpoint is not None, f"training {name} ended without a checkpoint"
    return Path(result.checkpoint.path)


def _newest_step(folder: Path) -> int | None:
    """Step of a run's newest checkpoint; of what a worker copied when it was killed a part may be there."""
    steps = [int(found.name.removeprefix("step-")) for found in folder.glob("step-*") if is_complete(found)]
    return max(steps, default=None)
