"""The library's engines on a Ray cluster."""

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import ray

from services.chat.chat_store import ChatStore
from services.driver.trainer import Trainer, Workers
from services.engines.engine_store import Engine, EngineStore
from services.engines.pool import EnginePool
from services.engines.sampler import ServeSampler, deploy_sampler
from services.engines.scorer import ServeScorer, deploy_scorer
from services.jobs.fence import Fence
from services.jobs.room import (
    cpus_held,
    leaves_room_to_wait,
    occupied_by,
    refusals,
    room_left,
    running_jobs,
    uses_gpu,
)
from services.jobs.store import Store
from services.settings import Settings
from wmss.errors import WmssError
from wmss.rounds.job import Job
from wmss.rounds.scores.request import ScoreJob
from wmss.scoring.vllm_scorer import provenance
from wmss.scoring.weights import architecture_digest, weights_id
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
            checkpointing=job.spec.checkpointing,
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
        self._pool.spare_memory(_free_memory, purpose=f"training {self._job.id}")
        return self._trainer.train(run, name=name)

    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> AbstractContextManager[ServeScorer]:
        """A scorer, for the time of the context; other jobs may score with the same weights in the same engine."""
        engine, options = self._engine("scorer", checkpoint, weights_id(checkpoint), max_length)
        return self._pool.use(
            engine,
            lambda app: deploy_scorer(app, **options),
            lambda handle: ServeScorer(handle, checkpoint, num_replicas=self._num_replicas, keep_states=keep_states),
        )

    def sampler(self, checkpoint: Path, *, max_length: int) -> AbstractContextManager[ServeSampler]:
        """A sampler that no other job uses, for the time of the context."""
        # Each call names its weights: two jobs in one engine would make it load others at every call.
        engine, options = self._engine("sampler", checkpoint, self._job.id, max_length)
        return self._pool.use(
            engine,
            lambda app: deploy_sampler(app, **options),
            lambda handle: ServeSampler(handle, checkpoint, num_replicas=self._num_replicas),
        )

    def provenance(self) -> dict[str, Any]:
        """What the engines say of themselves, without starting one."""
        return provenance(self._dtype, "cuda" if self._use_gpu else "cpu")

    def _engine(self, role: str, checkpoint: Path, weights: str, max_length: int) -> tuple[Engine, dict[str, Any]]:
        """An engine of this role that can take the checkpoint, and the options of its deployment.

        `max_length` is one of them: it decides how some models rescale their positions, and what a step computes.
        """
        options: dict[str, Any] = {"max_length": max_length, "dtype": self._dtype}
        sizes: dict[str, Any] = {
            "num_replicas": self._num_replicas,
            "num_cpus": cpus_held(ray.nodes(), use_gpu=self._use_gpu),
            "use_gpu": self._use_gpu,
        }
        root = self._settings.root
        key = json.dumps([architecture_digest(checkpoint), options, sizes], sort_keys=True)
        engine = Engine(
            app=f"{role}-{secrets.token_hex(8)}",
            key=f"{role}-{hashlib.sha256(key.encode()).hexdigest()[:32]}",
            weights=weights,
            label=f"{role} of {checkpoint.relative_to(root) if checkpoint.is_relative_to(root) else checkpoint}",
            **sizes,
        )
        return engine, options | sizes


def _free_memory() -> float:
    """Share of memory that is free where everything runs on this machine; of others nothing is known here."""
    memory = psutil.virtual_memory()
    return memory.available / memory.total if sum(node["Alive"] for node in ray.nodes()) == 1 else 1.0
