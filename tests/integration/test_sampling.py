"""Sampling on a real cluster: a replica that dies takes nothing along, and its successor has the right weights."""

import json

import numpy as np
import pytest

from tests.scoring.responses import logprobs_by_torch
from wmss.records import Completion

pytestmark = [pytest.mark.stack, pytest.mark.slow]  # the same for scores is in test_engines


def test_responses_survive_the_death_of_a_replica(stack, checkpoints, tmp_path):
    """The engine is made for other weights than those that every call names."""
    folders = [str(checkpoints[name]) for name in ("qwen3", "qwen3_other", "llama")]
    stack.run_on_ray("tests.integration.sample_on_serve", *folders, str(tmp_path / "result.json"))
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["disturbed"] == told["undisturbed"]
    completions = [Completion(tuple(ids), reason, logprob) for ids, reason, logprob in told["undisturbed"]]
    exact = logprobs_by_torch(checkpoints["qwen3_other"], told["prompts"], completions)
    np.testing.assert_allclose([completion.logprob for completion in completions], exact, atol=2e-4)
    assert "is a model of another shape than" in told["refusal"]
    assert told["engine"] == "vllm"
