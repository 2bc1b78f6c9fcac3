"""Run as a Ray job: score a file of samples on two replicas, in peace and while somebody kills them.

python -m tests.integration.score_under_fire CHECKPOINT FOLDER [engine]

Reads FOLDER/samples.parquet; writes FOLDER/undisturbed.parquet, FOLDER/disturbed.parquet and, during the second run,
how many samples are done to FOLDER/done. With `engine` each engine is a process of its own below its replica, as
engines of several GPUs are.
"""

import sys
import time
from pathlib import Path

import ray
from ray import serve

from services.engines.scorer import ServeScorer, deploy_scorer
from services.settings import FIXED_ENVIRONMENT
from wmss.data.tokenization import load_tokenized
from wmss.scoring.tables import score_samples

NUM_REPLICAS = 2
STRETCH_S = 8.0
"""Added to the run in equal parts, so that it lasts until whoever shoots has found somebody to kill."""


class Told:
    """Writes down how many samples are done."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        self._file.write_text(str(done))
        time.sleep(STRETCH_S * max(0, done - self._done) / total)
        self._done = done


if __name__ == "__main__":
    checkpoint, folder = (Path(argument) for argument in sys.argv[1:3])
    if sys.argv[3:] == ["engine"]:
        FIXED_ENVIRONMENT["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    ray.init(address="auto")
    handle = deploy_scorer("under-fire", max_length=256, use_gpu=False, num_replicas=NUM_REPLICAS)
    scorer, samples = (
        ServeScorer(handle, checkpoint, num_replicas=NUM_REPLICAS),
        load_tokenized(folder / "samples.parquet"),
    )
    try:
        runs = {"undisturbed": lambda done, total: None, "disturbed": Told(folder / "done")}
        for name, progress in runs.items():
            table = score_samples(samples, scorer, batch_tokens=4096, progress=progress)
            table.save(folder / f"{name}.parquet")
    finally:
        serve.delete("under-fire")
