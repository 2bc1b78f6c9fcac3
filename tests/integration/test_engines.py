"""Engines on a real cluster: they come, are used in turn, die and leave, and every score is the same."""

import json
import random
import time

import numpy as np
import pytest

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.integration.stack import wait_for
from tests.scoring.exact import ragged, truth
from tests.scoring.test_smollm2 import rows
from wmss.data.tokenization import save_tokenized, tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.scoring.interfaces import NUM_STATISTICS
from wmss.scoring.tables import EntropyTable
from wmss.scoring.torch_scorer import TorchEntropyScorer

pytestmark = pytest.mark.stack


DEFAULT_FAMILY = "gemma3"
"""Soft-capped logits, a sliding window, and a vocabulary that vLLM pads."""


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name == DEFAULT_FAMILY else pytest.mark.slow) for name in FAMILIES]
)
def test_entropies_of_vllm_on_serve_torch_and_float64_agree(stack, tmp_path, family):
    """On every supervised token of 200 ragged samples, with chunked prefill; and their hidden states."""
    checkpoint = make_checkpoint(tmp_path / family, family, seed=1)
    samples = ragged(200, seed=3, longest=250)
    by_serve = score_on_serve(stack, checkpoint, samples, tmp_path)
    by_torch = TorchEntropyScorer(checkpoint, keep_states=True).score([s.input_ids.tolist() for s in samples])
    for found, wanted in zip(by_serve, by_torch, strict=True):
        assert found.shape == wanted.shape == (len(wanted), NUM_STATISTICS + 64)
        np.testing.assert_allclose(found[:, NUM_STATISTICS:], wanted[:, NUM_STATISTICS:], rtol=1e-4, atol=1e-4)
    exact = truth(checkpoint, samples)
    worst, worst_torch = (errors(rows, samples, exact).max() for rows in (by_serve, by_torch))
    print(f"{family}: worst error vLLM on Serve {worst:.1e} nat, torch {worst_torch:.1e} nat")
    assert worst <= 1e-4
    assert worst_torch <= 1e-4


@pytest.mark.slow
def test_entropies_of_smollm2_on_serve(stack, smollm2, tmp_path):
    """On text: on random ids PyTorch's own float32 is 6e-4 nat off."""
    tokenized, _ = tokenize_samples(rows(), load_tokenizer(smollm2), max_length=256, source="rows")
    samples = tokenized[:6]
    found = errors(score_on_serve(stack, smollm2, samples, tmp_path), samples, truth(smollm2, samples))
    share = (found <= 1e-4).mean()
    print(f"SmolLM2: worst error vLLM on Serve {found.max():.1e} nat, {share:.2%} of {found.size} within 1e-4")
    assert found.max() <= 2e-4
    assert share >= 0.999


def score_on_serve(stack, checkpoint, samples, folder):
    """Statistics of every position, and hidden states, as they come from Serve."""
    (folder / "sequences.json").write_text(json.dumps([sample.input_ids.tolist() for sample in samples]))
    result = folder / "result.npz"
    arguments = [str(checkpoint), str(folder / "sequences.json"), str(result)]
    stack.run_on_ray("tests.integration.score_on_serve", *arguments, timeout_s=300)
    loaded = np.load(result)
    assert json.loads(str(loaded["provenance"]))["engine"] == "vllm"
    return [loaded[f"arr_{number}"] for number in range(len(samples))]


def errors(rows, samples, exact):
    """|found − truth| of entropy and NLL at every supervised position."""
    pairs = zip(rows, samples, exact, strict=True)
    return np.concatenate([np.abs(found[s.predicting_positions, :2] - true) for found, s, true in pairs])


@pytest.fixture(scope="module")
def under_fire(stack, checkpoints, tmp_path_factory):
    """Scores many samples, in peace and while one of `kill(stack)` is killed each time another share of them is done;
    returns both tables."""

    def run(num_samples, *how, kill, shots):
        folder = tmp_path_factory.mktemp("fire")
        save_tokenized(ragged(num_samples, seed=5, longest=120), folder / "samples.parquet")
        told = folder / "done"
        told.write_text("0")
        arguments = map(str, (checkpoints["qwen3"], folder, *how))
        job = stack.submit_on_ray("tests.integration.score_under_fire", *arguments)
        rng = random.Random(1)
        for shot in range(shots):
            done = num_samples * (shot + rng.random()) / (shots + 1)
            wait_for(
                lambda done=done: stack.runs_on_ray(job) and int(told.read_text() or 0) > done,
                timeout_s=600,
                what=f"{done} samples",
            )
            time.sleep(rng.random())
            victim = rng.choice(wait_for(lambda: kill(stack), timeout_s=60, what="somebody to kill"))
            victim.kill()
        stack.await_on_ray(job, timeout_s=540)
        return [EntropyTable.load(folder / f"{name}.parquet") for name in ("disturbed", "undisturbed")]

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
    equal(*under_fire(2_000, kill=replicas, shots=1))


@pytest.mark.slow
def test_twenty_thousand_scores_survive_the_deaths_of_replicas_and_of_engines(under_fire):
    """Three replicas, then three engine processes below their replicas, at random moments; 20,000 each time."""
    by_replicas, undisturbed = under_fire(20_000, kill=replicas, shots=3)
    equal(by_replicas, undisturbed)
    for table in under_fire(20_000, "engine", kill=engine_processes, shots=3):
        equal(table, undisturbed)


@pytest.fixture(scope="module")
def in_turn(stack, checkpoints, tmp_path_factory):
    """What `engines_in_turn` told, of its two checkpoints and of three of one architecture; and these three."""
    folder = tmp_path_factory.mktemp("turn")
    alike = [checkpoints["qwen3"], checkpoints["qwen3_other"], make_checkpoint(folder / "third", "qwen3", seed=7)]
    folders = [*(checkpoints[name] for name in TAKING_TURNS), *alike]
    arguments = [str(folder), *map(str, folders)]
    stack.run_on_ray("tests.integration.engines_in_turn", *arguments, timeout_s=500)
    with np.load(folder / "alike.npz") as rows:
        return json.loads((folder / "told.json").read_text()), alike, [rows[f"arr_{number}"] for number in range(3)]


TAKING_TURNS = ("qwen3", "llama")


def test_two_architectures_take_turns_where_one_engine_fits(in_turn):
    """Two drivers that want the same place neither wait for ever nor share it, and each is told what happens; an engine
    that nobody calls has no replica, and is called as if it had."""
    found, _, _ = in_turn
    told = found["told"]
    for name in TAKING_TURNS:
        assert any(message.startswith(f"the scorer of {name} started in") for message in told)
    left = [
        message for message in told if " left: the scorer of " in message and "needs its place (1 in all)" in message
    ]
    started = [message for message in told if " started in " in message]
    assert len(left) >= len(started) - 1 >= 1
    assert any("waiting for the scorer of" in message and "every place is taken" in message for message in told)
    assert found["replicas"] == [1, 0, 1]


def test_one_engine_scores_with_the_weights_of_three_checkpoints(in_turn):
    """Each with its own, also the last, before which the engine was killed."""
    told, checkpoints, answers = in_turn
    first, second, third = [
        message for message in told["alike"] if message.startswith("the scorer of") and " left: " not in message
    ]
    assert first.startswith("the scorer of qwen3 started in")
    assert second.startswith("the scorer of qwen3_other has its weights after")
    assert third.startswith("the scorer of third started in")
    for checkpoint, found in zip(checkpoints, answers, strict=True):
        [expected] = TorchEntropyScorer(checkpoint).score([[5, 6, 7, 8, 9]])
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
