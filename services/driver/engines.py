"""The library's engines on a Ray cluster."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import ray
from ray.serve.handle import DeploymentHandle

from services.chat.chat_store import ChatStore
from services.driver.trainer import Trainer, Workers
from services.engines.engine_store import Engine, EngineStore
from services.engines.pool import EnginePool
from services.engines.replicas import app_name
from services.engines.sampler import ServeSampler, deploy_sampler
from services.engines.scorer import ServeScorer, deploy_scorer
from services.jobs.fence import Fence
from services.jobs.room import leaves_room_to_wait, occupied_by, refusals, room_left, running_jobs, uses_gpu
from services.jobs.store import Store
from services.settings import Settings
from wmss.errors import WmssError
from wmss.rounds.job import Job
from wmss.rounds.scores.request import ScoreJob
from wmss.scoring.vllm_scorer import provenance
from wmss.training.run import TrainingRun


class RayEngines:
    """The library's `Engines` on this Ray cluster: Ray Train for training, Ray Serve for scoring and sampling."""

    def __init__(self, job: Job | ScoreJob, settings: Settings, store: Store, fence: Fence) -> None:
        self._job = job
        self._settings = settings
        self._store = store
        self._attempt = fence.attempt
        self._dtype: str = job.spec.dtype if isinstance(job, ScoreJob) else "float32"
        # The workers of a job's training have their CPUs and GPUs; while they do not train, as many engines score.
        self._num_replicas = job.spec.num_replicas if isinstance(job, ScoreJob) else job.spec.resources.num_workers
        self._use_gpu = uses_gpu(job.spec.resources, ray.cluster_resources())
        self._trainer = self._trainer_of(job) if isinstance(job, Job) else None
        self._pool = EnginePool(EngineStore(store), fence, places=settings.max_engines, free=self._free)

    def _free(self) -> dict[str, float]:
        """What there is for engines and training of this job and for idle engines."""
        total, running = ray.cluster_resources(), running_jobs(self._store, exclude=self._job.id)
        waiting = [self._job.spec.resources] if self._trainer is not None and self._trainer.waits else []
        return room_left(total, [*running, *waiting], chat=self._has_chat())

    def _is_room_to_wait(self) -> bool:
        return leaves_room_to_wait(ray.cluster_resources(), running_jobs(self._store), chat=self._has_chat())

    def _trainer_of(self, job: Job) -> Trainer:
        workers = Workers(
            storage=self._settings.runs,
            num_workers=job.spec.resources.num_workers,
            use_gpu=self._use_gpu,
            num_threads=self._settings.training_threads,
            keep_last=job.spec.checkpointing.keep_last,
            record={"job_id": job.id, "attempt": self._attempt, "model_name": job.result_name},
        )
        return Trainer(workers, is_room=self._is_room_to_wait)

    def _has_chat(self) -> bool:
        return ChatStore(self._store).engine() is not None

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """What this cluster can never run: the job would otherwise wait for resources for ever."""
        return refusals(checkpoints, scoring=scoring, spec=self._job.spec, cluster=ray.cluster_resources())

    def prepare_training(self, *, name: str) -> None:
        """Start the workers of the next training phase, if they take nothing that a running job needs."""
        assert self._trainer is not None, "a request for scores trains nothing"
        self._trainer.prepare(name)

    def train(self, run: TrainingRun, *, name: str) -> Path:
        """Run one whole training phase under Ray Train."""
        assert self._trainer is not None, "a request for scores trains nothing"
        needed = {} if self._trainer.waits else occupied_by(self._job.spec.resources, ray.cluster_resources())
        self._pool.make_room(needed, purpose=f"training {self._job.id}")
        return self._trainer.train(run, name=name)

    @contextlib.contextmanager
    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> Iterator[ServeScorer]:
        """A scorer, for the time of the context."""
        options = {"max_length": max_length, "keep_states": keep_states}
        with self._engine("scorer", deploy_scorer, checkpoint, options) as handle:
            yield ServeScorer(handle, num_replicas=self._num_replicas)

    @contextlib.contextmanager
    def sampler(self, checkpoint: Path, *, max_length: int) -> Iterator[ServeSampler]:
        """A sampler of this job's own, for the time of the context; it stays afterwards, for the next round."""
        # Two jobs in one engine would make it load other weights at every call.
        with self._engine("sampler", deploy_sampler, checkpoint, {"max_length": max_length}, own=True) as handle:
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
        *,
        own: bool = False,
    ) -> AbstractContextManager[DeploymentHandle[Any]]:
        """The engine of this kind with these options, whichever job deployed it; or this job's `own`."""
        options = options | {"dtype": self._dtype, "num_replicas": self._num_replicas, "use_gpu": self._use_gpu}
        root = self._settings.root
        label = f"{kind} of {checkpoint.relative_to(root) if checkpoint.is_relative_to(root) else checkpoint}"
        app = app_name(kind, checkpoint, options | ({"job": self._job.id} if own else {}))
        engine = Engine(app, label, self._num_replicas, use_gpu=self._use_gpu)
        return self._pool.use(engine, lambda: deploy(engine.app, checkpoint, **options))
