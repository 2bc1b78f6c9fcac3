"""Run as a Ray job: two drivers use two checkpoints on a cluster with one place for engines, and tell what happened;
then one driver scores with several checkpoints of one architecture.

python -m tests.integration.engines_in_turn FOLDER CHECKPOINT CHECKPOINT ALIKE...

Writes FOLDER/told.json: messages in order, how many replicas an idle engine has after a while and after a call, and
what was said of those of one architecture; FOLDER/alike.npz has their rows. Before the last of them the engine is
killed.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import ray
from ray import serve

from services.engines.engine_store import Engine, EngineStore
from services.engines.pool import EnginePool
from services.engines.scorer import ServeScorer, deploy_scorer
from services.jobs.fence import Fence
from services.jobs.store import Store

IDS = [[5, 6, 7, 8, 9]] * 3
IDLE_S = "3"


def main(folder: Path, checkpoints: list[Path], alike: list[Path]) -> None:
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
    replicas = come_and_go(store, checkpoints[-1])
    np.savez(folder / "alike.npz", *in_one_engine(store, alike))
    told = {"told": told_to(store, "job-1") + told_to(store, "job-2"), "replicas": replicas}
    (folder / "told.json").write_text(json.dumps(told | {"alike": told_to(store, "job-4")}))


def told_to(store: Store, job: str) -> list[str]:
    return [event.message for event in store.events(job, after=None, limit=99)[0][::-1]]


def in_one_engine(store: Store, checkpoints: list[Path]) -> Iterator[np.ndarray]:
    os.environ["WMSS_ENGINE_IDLE_S"] = "600"
    pool = pool_of(store, "job-4")
    for checkpoint in checkpoints[:-1]:
        yield use(pool, checkpoint, key="alike")[1]
    [replica] = [process for process in psutil.process_iter(["cmdline"]) if is_replica(process, "turn-")]
    replica.kill()
    app, rows = use(pool, checkpoints[-1], key="alike")
    yield rows
    serve.delete(app)


def is_replica(process: psutil.Process, app: str) -> bool:
    return f"ray::ServeReplica:{app}" in " ".join(process.info["cmdline"] or ())


def use_all(store: Store, job: str, checkpoints: list[Path]) -> None:
    pool = pool_of(store, job)
    for checkpoint in checkpoints:
        use(pool, checkpoint)


def pool_of(store: Store, job: str) -> EnginePool:
    row = store.create_job(job, spec={"resources": {}}, paths={}, fine_tuned_model=job, request_digest=job)
    fence = Fence(store, job, store.claim(row, message="Starting"), lease_s=600)
    return EnginePool(EngineStore(store), fence, places=1, free=lambda: {"CPU": 4})


def use(pool: EnginePool, checkpoint: Path, *, key: str | None = None) -> tuple[str, np.ndarray]:
    """The engine's application, and the rows of a sequence."""
    sizes = {"num_replicas": 1, "num_cpus": 0, "use_gpu": False}
    app, label = f"turn-{checkpoint.name}", f"scorer of {checkpoint.name}"
    engine = Engine(app=app, key=key or app, weights=str(checkpoint), label=label, **sizes)
    deploy = partial(deploy_scorer, max_length=64, use_gpu=False, num_cpus=0)
    with pool.use(engine, deploy, lambda handle: ServeScorer(handle, checkpoint)) as scorer:
        answers = scorer.score(IDS)
        assert [rows.shape for rows in answers] == [(5, 4)] * 3
        [app] = [app for app in serve.status().applications if app.startswith("turn-")]
    return app, answers[0]


def come_and_go(store: Store, checkpoint: Path) -> list[int]:
    """Replicas of an engine that is there, idle for a while, and called again."""
    pool = pool_of(store, "job-3")
    app, _ = use(pool, checkpoint)
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
    main(Path(sys.argv[1]), list(map(Path, sys.argv[2:4])), list(map(Path, sys.argv[4:])))
