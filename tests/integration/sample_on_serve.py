"""Run as a Ray job: draw responses through Ray Serve and vLLM, twice; the second time the replica is killed on the way.

python -m tests.integration.sample_on_serve BASE OTHER WRONG RESULT.json

BASE is what the engine is made for, OTHER has the weights that are asked for, WRONG is a model of another shape.
"""

import dataclasses
import json
import sys
from pathlib import Path

import psutil
import ray
from ray import serve

from services.engines.sampler import ServeSampler, deploy_sampler
from tests.scoring.responses import ENDS, prompts_of
from wmss.errors import WmssError
from wmss.scoring.interfaces import Sampling
from wmss.scoring.rollouts import Request, sample_rollouts, sample_seed

APP = "test-sampler"
SHARD = 40
REQUESTS = [
    Request(tuple(prompt), sample_seed(1, 0, line, index))
    for line, prompt in enumerate(prompts_of(60, seed=9, longest=160))
    for index in range(4)
]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=None, max_new_tokens=48)


def draw(sampler: ServeSampler, weights: Path, *, kill_after: int | None = None) -> list[list]:
    """All shards in order; the replica is killed when `kill_after` of them have come."""
    shards = {}
    answers = sample_rollouts(REQUESTS, sampler, weights, sampling=SAMPLING, end_token_ids=ENDS, shard_size=SHARD)
    for number, completions in answers:
        shards[number] = [dataclasses.astuple(completion) for completion in completions]
        if len(shards) == kill_after:
            kill_replica()
    return [completion for number in sorted(shards) for completion in shards[number]]


def kill_replica() -> None:
    title = f"ray::ServeReplica:{APP}"
    running = psutil.process_iter(["cmdline"])
    [replica] = [process for process in running if title in " ".join(process.info["cmdline"] or ())]
    replica.kill()


def main(base: Path, other: Path, wrong: Path, result: Path) -> None:
    ray.init(address="auto")
    sampler = ServeSampler(deploy_sampler(APP, max_length=256, use_gpu=False), base)
    assert sampler.load() == "started"
    try:
        undisturbed, disturbed = draw(sampler, other), draw(sampler, other, kill_after=2)
        try:
            draw(sampler, wrong)
        except WmssError as error:
            refusal = error.message
        told = {
            "prompts": [request.prompt_ids for request in REQUESTS],
            "undisturbed": undisturbed,
            "disturbed": disturbed,
            "refusal": refusal,
            "engine": sampler.provenance()["engine"],
        }
        result.write_text(json.dumps(told))
    finally:
        serve.delete(APP)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
