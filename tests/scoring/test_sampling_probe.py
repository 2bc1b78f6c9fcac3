"""The probe lets right figures pass and stops stale ones, in every precision; no engine is needed."""

import numpy as np
import pytest

from wmss.errors import ScoringError
from wmss.scoring.sampling_probe import ALLOWED, CONTINUATION, PREFIX, check_probe, make_probe
from wmss.scoring.torch_scorer import TorchEntropyScorer


def engine_of(checkpoint, *, error=0.0):
    """What an engine with these weights gives, with an error of its own rounding."""

    def forced(prompts, tokens, count):
        sequences = [[*prompt, *[token] * count] for prompt, token in zip(prompts, tokens, strict=True)]
        rows = TorchEntropyScorer(checkpoint).score(sequences, [len(prompt) - 1 for prompt in prompts])
        noise = np.random.default_rng(0).normal(0, error, (len(prompts), count))
        return (np.array([-row[:-1, 1] for row in rows]) + noise).tolist()

    return forced


@pytest.mark.parametrize("max_length", [256, 20, CONTINUATION + 2])
def test_right_figures_pass(checkpoints, max_length):
    """Read in one go, or the common part once and the ends after it."""
    probe = make_probe(checkpoints["llama"], max_length=max_length)
    assert {tuple(prompt[:-1]) for prompt in probe.prompts} == {tuple(probe.prompts[0][:-1])}
    assert len(probe.prompts[0]) == min(PREFIX + 1, max_length - CONTINUATION)
    found = check_probe(engine_of(checkpoints["llama"]), probe, None, weights="here", dtype="float32")
    assert found < 1e-5


@pytest.mark.parametrize("dtype", ALLOWED)
def test_other_weights_are_stopped(checkpoints, dtype):
    probe = make_probe(checkpoints["qwen3"], max_length=256)
    with pytest.raises(ScoringError, match=r"^probe: .*weights in here: log p of token \d+ should be -.*other weights"):
        check_probe(engine_of(checkpoints["qwen3_other"]), probe, None, weights="here", dtype=dtype)


def test_weights_before_are_known_where_rounding_would_hide_them(checkpoints):
    """An update moves log-probabilities by less than bfloat16 may."""
    probe = make_probe(checkpoints["llama"], max_length=256)
    moved = np.random.default_rng(1).normal(0, 0.1, np.shape(probe.logprobs))
    before = probe._replace(logprobs=(np.array(probe.logprobs) + moved).tolist())
    with pytest.raises(ScoringError, match="it has kept the weights before them"):
        check_probe(engine_of(checkpoints["llama"], error=0.02), before, probe, weights="here", dtype="bfloat16")
    # Weights that hardly differ are no reason to think so.
    near = probe._replace(logprobs=(np.array(probe.logprobs) + 0.01 * moved).tolist())
    assert check_probe(engine_of(checkpoints["llama"], error=0.02), near, probe, weights="here", dtype="bfloat16") < 0.1
    assert check_probe(engine_of(checkpoints["llama"]), probe, before, weights="here", dtype="bfloat16") < 1e-5


def test_nothing_but_numbers_passes(checkpoints):
    probe = make_probe(checkpoints["llama"], max_length=256)
    with pytest.raises(ScoringError, match="the engine says nan"):
        check_probe(
            lambda prompts, tokens, count: np.full((len(prompts), count), np.nan).tolist(),
            probe,
            None,
            weights="here",
            dtype="float32",
        )
