"""The driver of one attempt at one job: a Ray job that runs the job's phases. Started by the reconcile loop as

python -m services.driver JOB_ID ATTEMPT
"""

import contextlib
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from services import cluster
from services.chat.store import ChatStore
from services.control.reconcile import submission_id
from services.driver.trainer import run_training
from services.engines.generator import ServeGenerator, deploy_generator
from services.engines.pool import EnginePool
from services.engines.replicas import app_name
from services.engines.sampler import ServeSampler, deploy_sampler
from services.engines.scorer import ServeScorer, deploy_scorer
from services.engines.store import Engine, EngineStore
from services.failures import driver_error
from services.jobs.kinds import Kind
from services.jobs.lease import keep_lease
from services.jobs.room import occupied_by, room_left, running_jobs, uses_gpu
from services.jobs.states import State
from services.jobs.store import PATIENCE_S, Fence, LostLeaseError, NewEvent, Store, may_be_tried_again
from services.jobs.tables import JobRow
from services.settings import Settings
from wmss.config import JobSpec, ScoreSpec
from wmss.errors import WmssError
from wmss.records import CheckpointDigests
from wmss.rounds.job import Artifacts, Job
from wmss.rounds.scores.request import ScoreJob, run_scores
from wmss.rounds.weak_driven import run_job
from wmss.scoring.vllm_scorer import provenance
from wmss.training.run import TrainingRun

logger = logging.getLogger(__name__)


def main(job_id: str, attempt: int) -> None:
    """Run the job's phases to the end and record how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    store = Store(settings.database, patience_s=PATIENCE_S)
    fence = Fence(store, job_id, attempt, lease_s=settings.lease_s)
    row = store.job(job_id)
    assert row is not None
    journal = DatabaseJournal(store, fence, job_id)
    try:
        with keep_lease(fence, every_s=settings.lease_s / 3):
            ray.init(address="auto", log_to_driver=True)
            if row.kind == Kind.ENTROPY_SCORES:
                request = resolve_scores(row, settings)
                run_scores(request, RayEngines(request, settings, store, fence), journal)
            else:
                job = resolve(row, settings)
                run_job(job, RayEngines(job, settings, store, fence), journal)
    except LostLeaseError:
        raise
    except Exception as error:  # the outermost frame: whatever it was, the job must say so
        if may_be_tried_again(error):  # the database's trouble, not the job's: the next attempt goes on with it
            raise
        logger.error("job %s failed:\n%s", job_id, traceback.format_exc())
        fault = driver_error(error, log=submission_id(job_id, attempt))
        reason = {"code": fault.code, "message": fault.message, "param": fault.param}
        fence.end(State.FAILED, error=reason, message=f"Failed: {fault.message}", trained_tokens=None)
    else:
        left, tokens = "every checkpoint is scored", None
        if row.kind == Kind.FINE_TUNING:
            left, tokens = str(row.fine_tuned_model), store.trained_tokens(job_id)
        fence.end(State.SUCCEEDED, error=None, message=f"Done: {left}", trained_tokens=tokens)


def resolve(row: JobRow, settings: Settings) -> Job:
    """The database row as the library's job."""
    spec = JobSpec.model_validate(row.spec)
    paths = row.paths
    assert row.fine_tuned_model is not None
    return Job(
        id=row.id,
        spec=spec,
        base=Path(paths["model"]),
        weak=Path(paths["weak_model"]) if paths["weak_model"] else None,
        more_weak=tuple(map(Path, paths.get("more_weak_models", ()))),
        strong=Path(paths["strong_model"]) if paths["strong_model"] else None,
        training_file=settings.file_path(spec.training_file),
        validation_file=settings.file_path(spec.validation_file) if spec.validation_file else None,
        folder=settings.job_folder(row.id),
        cache=settings.root / "cache",
        result=settings.models / row.id,
        result_name=row.fine_tuned_model,
        digests=_digests(row),
    )


def resolve_scores(row: JobRow, settings: Settings) -> ScoreJob:
    """The same for a request for entropy scores."""
    spec = ScoreSpec.model_validate(row.spec)
    return ScoreJob(
        id=row.id,
        spec=spec,
        checkpoints=tuple(map(Path, row.paths["models"])),
        file=settings.file_path(spec.file),
        folder=settings.job_folder(row.id),
        cache=settings.root / "cache",
        digests=_digests(row),
    )


def _digests(row: JobRow) -> dict[str, CheckpointDigests]:
    """What the folders of registered checkpoints must still hold, by field."""
    return {
        param: CheckpointDigests(weights=entry["weights"], tokenizer=entry["tokenizer"])
        for param, entry in row.paths.get("registered", {}).items()
    }


class DatabaseJournal:
    """The library's `Journal`, kept in the job database under this driver's fence."""

    def __init__(self, store: Store, fence: Fence, job_id: str) -> None:
        self._fence = fence
        self._finished = {row.name: row.artifacts for row in store.phases(job_id) if row.artifacts is not None}

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase recorded, in this attempt or an earlier one."""
        return self._finished.get(phase)

    def start(self, phase: str) -> None:
        """A phase begins."""
        self._fence.start_phase(phase)

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done."""
        self._fence.finish_phase(phase, artifacts)
        self._finished[phase] = artifacts

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase is."""
        self._fence.progress(phase, done, total)

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Tell the owner."""
        self._fence.record_events([NewEvent(message, level=level, data=data)])


class RayEngines:
    """The library's `Engines` on this Ray cluster: Ray Train for training, Ray Serve for scoring and generation."""

    def __init__(self, job: Job | ScoreJob, settings: Settings, store: Store, fence: Fence) -> None:
        self._job = job
        self._settings = settings
        self._store = store
        self._attempt = fence.attempt
        self._dtype: str = job.spec.dtype if isinstance(job, ScoreJob) else "float32"
        # The workers of a job's training have their CPUs and GPUs; while they do not train, as many engines score.
        self._num_replicas = job.spec.num_replicas if isinstance(job, ScoreJob) else job.spec.resources.num_workers
        self._use_gpu = uses_gpu(job.spec.resources, ray.cluster_resources())
        self._pool = EnginePool(EngineStore(store), fence, places=settings.max_engines, free=self._free)

    def _free(self) -> dict[str, float]:
        chat = ChatStore(self._store).engine() is not None
        return room_left(ray.cluster_resources(), running_jobs(self._store, but_for=self._job.id), chat=chat)

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """What this cluster can never run: the job would otherwise wait for resources for ever."""
        return cluster.refusals(checkpoints, scoring=scoring, spec=self._job.spec, cluster=ray.cluster_resources())

    def train(self, run: TrainingRun, *, name: str) -> Path:
        """Run one training phase to its end under Ray Train."""
        assert isinstance(self._job, Job), "a request for scores trains nothing"
        resources = self._job.spec.resources
        self._pool.make_room(occupied_by(resources, ray.cluster_resources()), purpose=f"training {self._job.id}")
        return run_training(
            run,
            name=name,
            storage=self._settings.runs,
            num_workers=resources.num_workers,
            use_gpu=self._use_gpu,
            num_threads=self._settings.training_threads,
            keep_last=self._job.spec.checkpointing.keep_last,
            record={"job_id": self._job.id, "attempt": self._attempt, "model_name": self._job.result_name},
        )

    @contextlib.contextmanager
    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> Iterator[ServeScorer]:
        """A scorer, for the time of the context."""
        options = {"max_length": max_length, "keep_states": keep_states, "dtype": self._dtype}
        options |= {"num_replicas": self._num_replicas}
        with self._engine("scorer", deploy_scorer, checkpoint, options, self._num_replicas) as handle:
            yield ServeScorer(handle, num_replicas=self._num_replicas)

    @contextlib.contextmanager
    def generator(self, checkpoint: Path, *, max_length: int) -> Iterator[ServeGenerator]:
        """A generator, for the time of the context."""
        with self._engine("generator", deploy_generator, checkpoint, {"max_length": max_length}) as handle:
            yield ServeGenerator(handle)

    @contextlib.contextmanager
    def sampler(self, checkpoint: Path, *, max_length: int) -> Iterator[ServeSampler]:
        """A sampler of this job's own, for the time of the context; it stays afterwards, for the next round."""
        options = {"max_length": max_length, "num_replicas": self._num_replicas, "dtype": self._dtype}
        # Two jobs in one engine would make it load other weights at every call.
        with self._engine("sampler", deploy_sampler, checkpoint, options, self._num_replicas, own=True) as handle:
            yield ServeSampler(handle, num_replicas=self._num_replicas)

    def provenance(self) -> dict[str, Any]:
        """What the engines say of themselves, without starting one."""
        return provenance(self._dtype, "cuda" if self._use_gpu else "cpu")

    def _engine(
        self,
        kind: str,
        deploy: Callable[..., DeploymentHandle[Any]],
        checkpoint: Path,
        options: dict[str, Any],
        num_replicas: int = 1,
        *,
        own: bool = False,
    ) -> AbstractContextManager[DeploymentHandle[Any]]:
        """The engine of this kind with these options, whichever job deployed it; or this job's `own`."""
        options = options | {"use_gpu": self._use_gpu}
        root = self._settings.root
        label = f"{kind} of {checkpoint.relative_to(root) if checkpoint.is_relative_to(root) else checkpoint}"
        app = app_name(kind, checkpoint, options | ({"job": self._job.id} if own else {}))
        engine = Engine(app, label, num_replicas, use_gpu=self._use_gpu)
        return self._pool.use(engine, lambda: deploy(engine.app, checkpoint, **options))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
