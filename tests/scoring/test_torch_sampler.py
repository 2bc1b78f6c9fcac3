"""The torch sampler against exact probabilities, and what a response may depend on."""

import numpy as np
import pytest
import torch

from tests.checkpoints import make_checkpoint
from tests.scoring.responses import (
    ENDS,
    FILTERED,
    PLAIN,
    agreement,
    exact_probabilities,
    logprobs_by_torch,
    prompts_of,
)
from wmss.errors import ConfigError
from wmss.models.loading import load_model
from wmss.scoring.interfaces import Sampling
from wmss.scoring.torch_sampler import TorchSampler


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory):
    """Attention to a window of 24 tokens, and soft-capped logits."""
    return make_checkpoint(tmp_path_factory.mktemp("families") / "gemma3", "gemma3", seed=1, scale=20.0)


@pytest.mark.parametrize("sampling", [PLAIN, FILTERED], ids=["plain", "filtered"])
def test_tokens_come_with_their_probabilities(checkpoints, sampling):
    [prompt] = prompts_of(1, seed=1)
    found = TorchSampler(max_length=64).sample(
        checkpoints["llama"], [prompt] * 4000, range(4000), sampling=sampling, end_token_ids=range(277)
    )
    tokens = np.array([completion.token_ids for completion in found])
    assert tokens.shape == (4000, 1)
    assert agreement(tokens[:, 0], exact_probabilities(checkpoints["llama"], prompt, sampling)) > 1e-3


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_logprobs_are_those_of_one_forward(checkpoints, gemma3, name):
    checkpoint = (checkpoints | {"gemma3": gemma3})[name]
    prompts = prompts_of(40, seed=2)
    hot = Sampling(temperature=1.3, top_p=0.95, top_k=100, max_new_tokens=12)
    found = TorchSampler(max_length=256).sample(checkpoint, prompts, range(40), sampling=hot, end_token_ids=ENDS)
    np.testing.assert_allclose([c.logprob for c in found], logprobs_by_torch(checkpoint, prompts, found), atol=1e-4)


def test_a_response_ends_with_its_end_token_or_at_the_limit(checkpoints):
    prompts = prompts_of(60, seed=3)
    sampler = TorchSampler(max_length=46)
    found = sampler.sample(checkpoints["qwen3"], prompts, range(60), sampling=PLAIN, end_token_ids=ENDS)
    assert {completion.finish_reason for completion in found} == {"stop", "length"}
    for prompt, completion in zip(prompts, found, strict=True):
        *before, last = completion.token_ids
        assert not set(before) & set(ENDS)
        if completion.finish_reason == "stop":
            assert last in ENDS
        else:
            assert last not in ENDS and len(completion.token_ids) == min(12, 46 - len(prompt))


def test_a_response_depends_on_its_prompt_and_seed_alone(checkpoints):
    prompts, seeds = prompts_of(30, seed=4), list(range(100, 130))
    sampler = TorchSampler(max_length=64)

    def sample(chosen, weights="qwen3"):
        own = [prompts[i] for i in chosen], [seeds[i] for i in chosen]
        return sampler.sample(checkpoints[weights], *own, sampling=PLAIN, end_token_ids=ENDS)

    together = sample(range(30))
    assert sample(range(30)) == together
    assert [c.token_ids for c in sample(range(29, -1, -3))] == [c.token_ids for c in together[29::-3]]
    assert sample(range(30), "qwen3_other") != together
    assert sample(range(30)) == together


def test_seeds_differ_and_zero_temperature_needs_none(checkpoints):
    prompts = prompts_of(1, seed=5) * 6
    sampler = TorchSampler(max_length=64)

    def sample(sampling):
        found = sampler.sample(checkpoints["qwen3"], prompts, range(6), sampling=sampling, end_token_ids=ENDS)
        return {completion.token_ids for completion in found}

    assert len(sample(PLAIN)) > 1
    [greedy] = sample(Sampling(temperature=0.0, top_p=1.0, top_k=None, max_new_tokens=12))
    assert sample(Sampling(temperature=1.0, top_p=1.0, top_k=1, max_new_tokens=12)) == {greedy}
    assert greedy == greedy_by_transformers(load_model(checkpoints["qwen3"]), prompts[0], 12)


def greedy_by_transformers(model, prompt, limit):
    """The likeliest tokens, by another implementation."""
    ids = torch.tensor([prompt])
    settings = {"max_new_tokens": limit, "do_sample": False, "eos_token_id": ENDS}
    return tuple(model.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt) :].tolist())


@pytest.mark.parametrize("name", ["qwen3", "llama", "gemma3"])
def test_greedy_answers_are_those_of_transformers(checkpoints, gemma3, name):
    """An evaluation counts on it, token for token, also where a prompt leaves less room than the limit."""
    checkpoint = (checkpoints | {"gemma3": gemma3})[name]
    prompts = [*prompts_of(12, seed=10, shortest=1), *([7 + length] * length for length in (1, 50, 59))]
    greedy = Sampling(temperature=0.0, top_p=1.0, top_k=None, max_new_tokens=16)
    seeds = range(len(prompts))
    found = TorchSampler(max_length=60).sample(checkpoint, prompts, seeds, sampling=greedy, end_token_ids=ENDS)
    model = load_model(checkpoint)
    limits = [min(16, 60 - len(prompt)) for prompt in prompts]
    expected = [greedy_by_transformers(model, *each) for each in zip(prompts, limits, strict=True)]
    assert [completion.token_ids for completion in found] == expected
    assert len(set(expected)) > 5


def test_weights_written_anew_are_loaded_anew(tmp_path):
    prompts = prompts_of(8, seed=6)
    sampler = TorchSampler(max_length=64)
    folder = make_checkpoint(tmp_path / "model", "qwen3", seed=1)

    def sample():
        return sampler.sample(folder, prompts, range(8), sampling=PLAIN, end_token_ids=ENDS)

    first = sample()
    make_checkpoint(folder, "qwen3", seed=2)
    assert sample() != first


def test_a_prompt_without_room_is_refused(checkpoints):
    with pytest.raises(ConfigError, match=r"max_length: expected more tokens than the longest prompt has \(9\), got 9"):
        TorchSampler(max_length=9).sample(checkpoints["qwen3"], [[1] * 9], [0], sampling=PLAIN, end_token_ids=ENDS)
