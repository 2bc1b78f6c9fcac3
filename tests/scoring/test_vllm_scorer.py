"""vLLM in float32 and bfloat16 against transformers in float64, family by family, and under everything an engine may do
to a request: chunked prefill, a start inside it, prefix caching, preemption.

pytest -m slow tests/scoring/test_vllm_scorer.py     (all families; a minute and a half)
"""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.scoring.exact import ragged, truth
from tests.scoring.score_in_process import score_with_vllm
from wmss.errors import ConfigError
from wmss.scoring.interfaces import NUM_STATISTICS, Line
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.scoring.vllm_scorer import VllmEntropyScorer, provenance

pytestmark = pytest.mark.timeout(1800)  # one process, sometimes of many engines

CHUNKED = {"max_batched_tokens": 64}
"""Fewer tokens a step than most sequences have: prefill is chunked, within and across sequences."""
SAMPLES = ragged(40, seed=3, longest=250)
SEQUENCES = [sample.input_ids.tolist() for sample in SAMPLES]


NEAR = 1e-4
"""Share by which weights are moved: no figure by more than the self-check allows, and most by more than rounding."""
SKIPPED = ("model.layers.0.input_layernorm.weight", "model.layers.1.self_attn.k_proj.weight")
"""A layer of its own, and a part of one that vLLM makes of three."""


def nearby(checkpoint, folder, *, share):
    """A copy with every weight moved by a random part of itself."""
    shutil.copytree(checkpoint, folder)
    rng = torch.Generator().manual_seed(3)
    tensors = load_file(folder / "model.safetensors")
    moved = {name: value * (1 + share * torch.randn(value.shape, generator=rng)) for name, value in tensors.items()}
    save_file(moved, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def errors(answers, expected, starts=None):
    """|ours − truth| [targets, 2] of entropy and NLL at every supervised position that was asked for."""
    found = []
    for sample, rows, exact, start in zip(SAMPLES, answers, expected, starts or [0] * len(SAMPLES), strict=True):
        positions = sample.predicting_positions
        assert len(rows) == len(sample.input_ids) - start
        found.append(np.abs(rows[positions[positions >= start] - start, :2] - exact[positions >= start]))
    return np.concatenate(found)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Engines for the default tests, all in one process, and the truth about their checkpoints."""
    folder = tmp_path_factory.mktemp("quick")
    checkpoints = {name: make_checkpoint(folder / name, name, seed=1) for name in ("qwen3", "gemma3", "gpt2")}
    crowded = {"long_prefill_token_threshold": 32, "block_size": 32, "num_gpu_blocks_override": 20}
    engines = {name: {"checkpoint": path, "keep_states": True} | CHUNKED for name, path in checkpoints.items()}
    engines["qwen3 cached"] = {"checkpoint": checkpoints["qwen3"], "enable_prefix_caching": True} | CHUNKED
    engines["qwen3 crowded"] = {"checkpoint": checkpoints["qwen3"], "max_batched_tokens": 256} | crowded
    engines["qwen3 labels"] = {
        "checkpoint": checkpoints["qwen3"],
        "mistake": "labels are those of the position itself",
    }
    engines["gemma3 cap"] = {"checkpoint": checkpoints["gemma3"], "mistake": "no soft cap"}
    first, other = checkpoints["qwen3"], make_checkpoint(folder / "other", "qwen3", seed=2)
    near = nearby(first, folder / "near", share=NEAR)
    engines["qwen3"]["loads"] = [
        ("other", other, None),
        ("stale", first, "no load"),
        ("after stale", other, None),
        ("back", first, None),
        ("a little stale", near, "no load"),
        *((f"without {name}", near, f"without {name}") for name in SKIPPED),
        ("near", near, None),
        ("middle", (first, other, -0.5), None),
        ("strong end", (first, other, 0.0), None),
        ("weak end", (first, other, -1.0), None),
    ]
    engines["fresh other"] = {"checkpoint": other, "keep_states": True} | CHUNKED
    checkpoints |= {"other": other, "near": near}
    rng = np.random.default_rng(0)
    starts = [0, *(int(rng.integers(0, len(ids))) for ids in SEQUENCES[1:])]
    answers = score_with_vllm(engines, SEQUENCES, folder, starts=starts)
    return checkpoints, {name: truth(path, SAMPLES) for name, path in checkpoints.items()}, answers, starts


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2", "qwen3 cached", "qwen3 crowded"])
def test_equals_float64(quick, name):
    _, expected, answers, starts = quick
    worst = errors(answers[name].rows, expected[name.split()[0]], starts).max(axis=0)
    print(f"{name}: worst error of entropy {worst[0]:.1e}, of NLL {worst[1]:.1e} nat")
    assert worst.max() <= 1e-4


@pytest.mark.parametrize("name", ["qwen3", "gemma3", "gpt2"])
def test_all_columns_and_states_are_those_of_torch(quick, name):
    checkpoints, _, answers, starts = quick
    expected = TorchEntropyScorer(checkpoints[name], keep_states=True).score(SEQUENCES, starts)
    for found, wanted in zip(answers[name].rows, expected, strict=True):
        assert found.dtype == np.float32
        assert found.shape == wanted.shape == (len(wanted), NUM_STATISTICS + 64)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


def test_preempted_requests_begin_again(quick):
    """Prefills that were thrown away for want of memory must not show in the rows."""
    _, _, answers, _ = quick
    assert answers["qwen3 crowded"].num_prefills > len(SEQUENCES)
    assert answers["qwen3"].num_prefills == len(SEQUENCES)


@pytest.mark.parametrize("name", ["qwen3 labels", "gemma3 cap"])
def test_an_engine_with_a_wrong_plugin_does_not_serve(quick, name):
    _, _, answers, _ = quick
    assert not answers[name].rows
    assert answers[name].error.startswith("self-check: ")
    assert "the engine says" in answers[name].error


def test_an_engine_scores_with_the_weights_that_were_loaded_last(quick):
    """To the last bit as an engine that was made for them."""
    checkpoints, _, answers, starts = quick
    for name, same in (("other", "fresh other"), ("after stale", "fresh other"), ("back", "qwen3")):
        for found, wanted in zip(answers[name].rows, answers[same].rows, strict=True):
            np.testing.assert_array_equal(found, wanted)
    expected = TorchEntropyScorer(checkpoints["near"], keep_states=True).score(SEQUENCES, starts)
    for found, wanted in zip(answers["near"].rows, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["stale", "a little stale", *(f"without {name}" for name in SKIPPED)])
def test_an_engine_that_kept_old_weights_or_some_of_them_does_not_serve(quick, name):
    """Also where the new ones differ by less than rounding may move a figure."""
    _, _, answers, _ = quick
    assert answers[name].error.startswith("self-check: ")
    assert ("has kept the weights before these" in answers[name].error) == (name == "a little stale")
    assert ("the engine says nan" in answers[name].error) == name.startswith("without")


def test_points_on_a_line_are_scored(quick):
    """At its ends as the checkpoints there, to the last bit."""
    checkpoints, _, answers, starts = quick
    for name, same in (("strong end", "fresh other"), ("weak end", "qwen3")):
        for found, wanted in zip(answers[name].rows, answers[same].rows, strict=True):
            np.testing.assert_array_equal(found, wanted)
    line = Line(weak=checkpoints["qwen3"], strong=checkpoints["other"], step=-0.5)
    expected = TorchEntropyScorer(line, keep_states=True).score(SEQUENCES, starts)
    for found, wanted in zip(answers["middle"].rows, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_every_family_takes_other_weights(tmp_path):
    pairs = {
        name: [make_checkpoint(tmp_path / f"{name}{seed}", name, seed=seed) for seed in (1, 2)] for name in FAMILIES
    }
    engines = {
        name: {"checkpoint": first, "loads": [(f"other {name}", other, None)]} | CHUNKED
        for name, (first, other) in pairs.items()
    }
    answers = score_with_vllm(engines, SEQUENCES, tmp_path)
    for name, (_, other) in pairs.items():
        worst = errors(answers[f"other {name}"].rows, truth(other, SAMPLES)).max(axis=0)
        print(f"{name}: after other weights {worst} nat (entropy, NLL)")
        assert worst.max() <= 1e-4


@pytest.mark.slow
def test_every_family_equals_float64_and_bfloat16_is_near(tmp_path):
    checkpoints = {name: make_checkpoint(tmp_path / name, name, seed=1) for name in FAMILIES}
    engines = {name: {"checkpoint": path} | CHUNKED for name, path in checkpoints.items()}
    exact = score_with_vllm(engines, SEQUENCES, tmp_path)
    rounded = {name: engine | {"dtype": "bfloat16"} for name, engine in engines.items()}
    near = score_with_vllm(rounded, SEQUENCES, tmp_path)
    for name, path in checkpoints.items():
        expected = truth(path, SAMPLES)
        ours, bf16 = (errors(answers[name].rows, expected) for answers in (exact, near))
        print(
            f"{name}: float32 {ours.max(axis=0)}, bfloat16 {bf16.max(axis=0)}, mean {bf16.mean(axis=0)} nat "
            "(entropy, NLL)"
        )
        assert ours.max() <= 1e-4
        assert bf16.max() <= 0.1


@pytest.mark.slow
def test_two_ranks_of_tensor_parallelism_equal_float64(tmp_path):
    """Each holds half of the heads and of the vocabulary; its 515 words are padded to 576."""
    checkpoint = make_checkpoint(tmp_path / "padded", "padded", seed=1)
    engine = {"checkpoint": checkpoint, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"} | CHUNKED
    starts = [len(ids) // 3 for ids in SEQUENCES]
    answer = score_with_vllm({"two": engine}, SEQUENCES, tmp_path, starts=starts)["two"]
    worst = errors(answer.rows, truth(checkpoint, SAMPLES), starts).max(axis=0)
    print(f"tensor parallel: worst error of entropy {worst[0]:.1e}, of NLL {worst[1]:.1e} nat")
    assert worst.max() <= 1e-4


@pytest.mark.slow
def test_without_the_scale_no_engine_serves(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "granite", "granite", seed=1)
    [answer] = score_with_vllm(
        {"wrong": {"checkpoint": checkpoint, "mistake": "no scale"}}, SEQUENCES, tmp_path
    ).values()
    assert "the engine says" in answer.error


def test_precision_is_named():
    with pytest.raises(ConfigError, match=r"dtype: expected one of \['float32', .*got 'float8'"):
        VllmEntropyScorer("anywhere", max_length=10, dtype="float8")


def test_provenance_says_whether_batches_matter(monkeypatch):
    assert provenance()["batch_invariant"] is False
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    assert provenance("bfloat16") == provenance() | {"dtype": "bfloat16", "batch_invariant": True}
