"""Run as a Ray job: two drivers use two checkpoints on a cluster with one place for engines, and tell what happened.

python -m tests.integration.engines_in_turn FOLDER CHECKPOINT CHECKPOINT

Writes FOLDER/told.json: messages in order, and how many replicas an idle engine has after a while and after a call.
"""

import json
import os
import sys
import threading
import time
from functools import partial
from pathlib import Path

import ray
from ray import serve

from services.engines.engine_store import Engine, EngineStore
from services.engines.pool import EnginePool
from services.engines.scorer import ServeScorer, deploy_scorer
from services.jobs.fence import Fence
from services.jobs.store import Store

IDS = [[5, 6, 7, 8, 9]] * 3
IDLE_S = "3"


def main(folder: Path, checkpoints: list[Path]) -> None:
    os.environ["WMSS_ENGINE_IDLE_S"] = IDLE_S
    ray.init(address="auto")
    store = Store(f"sqlite:///{folder}/engines.db")
    store.migrate()
    # The second wants what the first will want next: one of them is always in the other's way.
    drivers = [partial(use_all, store, "job-1", checkpoints), partial(use_all, store, "job-2", checkpoints[1:])]
    threads = [threading.Thread(target=driver) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [event.message for job in ("job-1", "job-2") for event in store.events(job, after=None, limit=99)[0][::-1]]
    (folder / "told.json").write_text(json.dumps({"told": told, "replicas": come_and_go(store, checkpoints[-1])}))


def use_all(store: Store, job: str, checkpoints: list[Path]) -> None:
    pool = pool_of(store, job)
    for checkpoint in checkpoints:
        use(pool, checkpoint)


def pool_of(store: Store, job: str) -> EnginePool:
    row = store.create_job(job, spec={"resources": {}}, paths={}, fine_tuned_model=job, request_digest=job)
    fence = Fence(store, job, store.claim(row, message="Starting"), lease_s=600)
    return EnginePool(EngineStore(store), fence, places=1, free=lambda: {"CPU": 4})


def use(pool: EnginePool, checkpoint: Path) -> str:
    engine = Engine(f"turn-{checkpoint.name}", f"scorer of {checkpoint.name}", num_replicas=1, use_gpu=False)
    with pool.use(engine, lambda: deploy_scorer(engine.app, checkpoint, max_length=64, use_gpu=False)) as handle:
        scorer = ServeScorer(handle)
        assert [rows.shape for rows in scorer.score(IDS)] == [(5, 4)] * 3
        assert [app for app in serve.status().applications if app.startswith("turn-")] == [engine.app]
    return engine.app


def come_and_go(store: Store, checkpoint: Path) -> list[int]:
    """Replicas of an engine that is there, idle for a while, and called again."""
    pool = pool_of(store, "job-3")
    app = use(pool, checkpoint)
    counts = [num_replicas(app)]
    deadline = time.monotonic() + 60
    while num_replicas(app) and time.monotonic() < deadline:
        time.sleep(0.5)
    counts.append(num_replicas(app))
    use(pool, checkpoint)
    counts.append(num_replicas(app))
    serve.delete(app)
    return counts


def num_replicas(app: str) -> int:
    [deployment] = serve.status().applications[app].deployments.values()
    return sum(deployment.replica_states.values())


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:])))
