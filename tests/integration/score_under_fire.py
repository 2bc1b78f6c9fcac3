"""Run as a Ray job: score a file of samples on two replicas while somebody kills them, and save the table.

python -m tests.integration.score_under_fire CHECKPOINT SAMPLES.parquet RESULT.parquet PROGRESS [engine]

With `engine` each engine is a process of its own below its replica, as engines of several GPUs are.
"""

import sys
from pathlib import Path

import ray
from ray import serve

from services.engines.scorer import ServeScorer, deploy_scorer
from services.settings import FIXED_ENVIRONMENT
from wmss.data.tokenization import load_tokenized
from wmss.scoring.tables import score_samples

NUM_REPLICAS = 2

if __name__ == "__main__":
    checkpoint, samples, result, told = (Path(argument) for argument in sys.argv[1:5])
    if sys.argv[5:] == ["engine"]:
        FIXED_ENVIRONMENT["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    ray.init(address="auto")
    handle = deploy_scorer("under-fire", checkpoint, max_length=256, use_gpu=False, num_replicas=NUM_REPLICAS)
    try:
        table = score_samples(
            load_tokenized(samples),
            ServeScorer(handle, num_replicas=NUM_REPLICAS),
            batch_tokens=4096,
            progress=lambda done, total: told.write_text(str(done)),
        )
        table.save(result)
    finally:
        serve.delete("under-fire")
