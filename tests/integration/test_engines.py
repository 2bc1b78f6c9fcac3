"""Engines on a real cluster: they come, are used in turn, die and leave, and every score is the same."""

import json
import random
import time

import numpy as np
import pytest

from tests.integration.stack import wait_for
from tests.scoring.test_torch_scorer import ragged
from wmss.data.tokenization import save_tokenized
from wmss.scoring.tables import EntropyTable

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def under_fire(stack, checkpoints, tmp_path_factory):
    """Scores many samples; `shoot(stack)` is called each time another share of them is done."""
    folder = tmp_path_factory.mktemp("fire")

    def run(num_samples, *how, kill=None, shots=0):
        samples, told = folder / f"{num_samples}.parquet", folder / "done"
        if not samples.is_file():
            save_tokenized(ragged(num_samples, seed=5, longest=120), samples)
        told.write_text("0")
        result = folder / "result.parquet"
        arguments = map(str, (checkpoints["qwen3"], samples, result, told, *how))
        job = stack.submit_on_ray("tests.integration.score_under_fire", *arguments)
        rng = random.Random(1)
        for shot in range(shots):
            done = num_samples * (shot + rng.random()) / (shots + 1)
            wait_for(lambda done=done: int(told.read_text() or 0) > done, timeout_s=300, what=f"{done} samples")
            time.sleep(rng.random())
            victim = rng.choice(wait_for(lambda: kill(stack), timeout_s=60, what="somebody to kill"))
            victim.kill()
        stack.await_on_ray(job, timeout_s=540)
        return EntropyTable.load(result)

    return run


def replicas(stack):
    return stack.find("ray::ServeReplica:under-fire")


def engine_processes(stack):
    return stack.find("VLLM::EngineCore")


def equal(table, other):
    """Bit for bit, and each sample once."""
    assert np.array_equal(table.line, np.arange(1, len(table.line) + 1))
    for name in ("line", "num_targets", "entropy", "nll"):
        np.testing.assert_array_equal(getattr(table, name), getattr(other, name))


def test_scores_survive_the_death_of_a_replica(under_fire):
    undisturbed = under_fire(2_000)
    equal(under_fire(2_000, kill=replicas, shots=1), undisturbed)


@pytest.mark.slow
def test_twenty_thousand_scores_survive_the_deaths_of_replicas_and_of_engines(under_fire):
    """Three replicas, then three engine processes below their replicas, at random moments; 20,000 each time."""
    undisturbed = under_fire(20_000)
    equal(under_fire(20_000, kill=replicas, shots=3), undisturbed)
    equal(under_fire(20_000, "engine", kill=engine_processes, shots=3), undisturbed)


def test_three_checkpoints_take_turns_where_one_engine_fits(stack, checkpoints, tmp_path):
    """Two drivers that want the same place neither wait for ever nor share it, and each is told what happens; an engine
    that nobody calls has no replica, and is called as if it had."""
    names = ("qwen3", "qwen3_other", "llama")
    folders = [str(checkpoints[name]) for name in names]
    stack.run_on_ray("tests.integration.engines_in_turn", str(tmp_path), *folders, timeout_s=400)
    found = json.loads((tmp_path / "told.json").read_text())
    told = found["told"]
    for name in names:
        assert any(message.startswith(f"the scorer of {name} started in") for message in told)
    left = [
        message for message in told if " left: the scorer of " in message and "needs its place (1 in all)" in message
    ]
    started = [message for message in told if " started in " in message]
    assert len(left) >= len(started) - 1 >= 3
    assert any("waiting for the scorer of" in message and "every place is taken" in message for message in told)
    assert found["replicas"] == [1, 0, 1]
