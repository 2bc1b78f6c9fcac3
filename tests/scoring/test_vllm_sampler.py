"""vLLM samples from the weights it is given, whatever it held before; and where it would not, it says so."""

from itertools import islice

import numpy as np
import pytest

from tests.checkpoints import FAMILIES, make_checkpoint
from tests.scoring.responses import (
    ENDS,
    FILTERED,
    PLAIN,
    agreement,
    exact_probabilities,
    logprobs_by_torch,
    prompts_of,
)
from tests.scoring.sample_in_process import run_samplers
from wmss.errors import ConfigError
from wmss.scoring.interfaces import Sampling
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.vllm_sampler import VllmSampler

pytestmark = pytest.mark.timeout(1000)  # one process of several engines

QUICK = ("qwen3", "gemma3", "gpt2")
"""A head tied to the embedding; a sliding window and soft-capped logits; learned positions and biases."""
MISTAKES = {"gemma3": ["no reset"], "gpt2": ["no load", "no tied head"]}
"""What is done wrong on purpose; of random weights those of gemma3 attend most to what was cached."""
SHARED = [int(token) for token in np.random.default_rng(7).integers(0, 277, 130)]
"""More than a block of the prefix cache."""
PROMPTS = [prompt for prompt in [*prompts_of(30, seed=8), SHARED, [*SHARED, 5]] for _ in range(4)]
HOT = Sampling(temperature=1.2, top_p=0.95, top_k=50, max_new_tokens=24)
GREEDY = Sampling(temperature=0.0, top_p=1.0, top_k=None, max_new_tokens=16)


def draw(weights, *, sampling=HOT, prompts=PROMPTS, ends=ENDS, **more):
    seeds = list(range(len(prompts)))
    asked = {"sampling": sampling, "prompts": prompts, "seeds": seeds, "end_token_ids": list(ends)}
    return {"sample": weights} | asked | more


def make_pairs(folder, families, *, scale=6.0):
    return {
        name: [make_checkpoint(folder / f"{name}-{seed}", name, seed=seed, scale=scale) for seed in (1, 2)]
        for name in families
    }


def steps_of(first, other):
    """What a job does: weights change and come back, other things are asked in between, an engine is made anew."""
    return {
        "new engine": {"engine": first},
        "first": draw(first),
        "again": draw(first),
        "greedy": draw(first, sampling=GREEDY),
        "other": draw(other),
        "greedy of other": draw(other, sampling=GREEDY),
        "back": draw(first),
        "engine of other": {"engine": other},
        "in its engine": draw(first),
    }


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quick")
    pairs = make_pairs(folder, QUICK)
    steps = {}
    for name, (first, other) in pairs.items():
        steps |= {(name, key): step for key, step in steps_of(first, other).items()}
        for mistake in MISTAKES.get(name, ()):
            steps[name, mistake] = draw(other, mistake=mistake, prompts=PROMPTS[:4])
            steps[name, f"after {mistake}"] = draw(other)
            steps[name, f"back after {mistake}"] = draw(first)
    steps["gpt2", "other shape"] = draw(pairs["qwen3"][0])
    llama = make_checkpoint(folder / "llama", "llama", seed=4)
    [prompt] = prompts_of(1, seed=1)
    steps["llama", "engine"] = {"engine": llama}
    for name, sampling in (("plain", PLAIN), ("filtered", FILTERED)):
        steps["llama", name] = draw(llama, sampling=sampling, prompts=[prompt] * 2000, ends=range(277))
    answers = dict(zip(steps, run_samplers(list(steps.values()), folder), strict=True))
    return pairs | {"llama": [llama]}, answers


@pytest.mark.parametrize("name", QUICK)
def test_logprobs_are_those_of_torch_after_every_change_of_weights(quick, name):
    pairs, answers = quick
    for key, checkpoint in zip(("first", "other", "back"), [*pairs[name], pairs[name][0]], strict=True):
        found = answers[name, key]
        worst = np.abs(np.array([c.logprob for c in found]) - logprobs_by_torch(checkpoint, PROMPTS, found)).max()
        print(f"{name} {key}: worst error of a response's logprob {worst:.1e} nat")
        assert worst <= 2e-4
        assert {completion.finish_reason for completion in found} == {"stop", "length"}


@pytest.mark.parametrize("name", QUICK)
def test_a_call_is_a_function_of_its_arguments(quick, name):
    """Tokens and log-probabilities, to the last bit: at once, after other questions and other weights, and in an engine
    that was made for other weights."""
    _, answers = quick
    first = answers[name, "first"]
    assert answers[name, "again"] == answers[name, "back"] == answers[name, "in its engine"] == first
    assert answers[name, "other"] != first
    assert len({completion.token_ids for completion in first}) > len(PROMPTS) / 2


@pytest.mark.parametrize("name", QUICK)
def test_greedy_responses_are_those_of_torch(quick, name):
    """Where no two tokens nearly tie, which rounding would decide."""
    pairs, answers = quick
    prompts, seeds = PROMPTS[::4], list(range(len(PROMPTS[::4])))
    for key, checkpoint in zip(("greedy", "greedy of other"), pairs[name], strict=True):
        expected = TorchSampler(max_length=256).sample(checkpoint, prompts, seeds, sampling=GREEDY, end_token_ids=ENDS)
        found = answers[name, key][::4]
        assert np.mean([a.token_ids == b.token_ids for a, b in zip(found, expected, strict=True)]) > 0.95
        assert [c.finish_reason for c in found] == ["stop" if c.token_ids[-1] in ENDS else "length" for c in found]


@pytest.mark.parametrize(("name", "sampling"), [("plain", PLAIN), ("filtered", FILTERED)])
def test_tokens_come_with_their_probabilities(quick, name, sampling):
    pairs, answers = quick
    [prompt] = prompts_of(1, seed=1)
    tokens = np.array([completion.token_ids[0] for completion in answers["llama", name]])
    assert agreement(tokens, exact_probabilities(pairs["llama"][0], prompt, sampling)) > 1e-3


@pytest.mark.parametrize(("name", "mistake"), [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]])
def test_stale_weights_and_caches_are_found_by_the_probe(quick, name, mistake):
    """An engine that is wrong samples nothing, and the next call loads again and is right."""
    _, answers = quick
    assert answers[name, mistake].startswith("probe: the engine does not compute with the weights in ")
    assert "the engine says" in answers[name, mistake]
    assert answers[name, f"after {mistake}"] == answers[name, "other"]
    assert answers[name, f"back after {mistake}"] == answers[name, "first"]


def test_another_shape_needs_another_engine(quick):
    _, answers = quick
    refusal = answers["gpt2", "other shape"]
    assert "is a model of another shape than" in refusal and "start another engine for it" in refusal
    assert "architectures ['GPT2LMHeadModel'] and ['Qwen3ForCausalLM']" in refusal


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [{}, {"dtype": "bfloat16"}], ids=["float32", "bfloat16"])
def test_every_family_changes_its_weights(tmp_path, arguments):
    pairs = make_pairs(tmp_path, FAMILIES)
    names = ("engine", "other", "first", "mistake")
    steps = [
        step
        for first, other in pairs.values()
        for step in (
            {"engine": first, "arguments": arguments},
            draw(other),
            draw(first),
            draw(other, mistake="no load"),
        )
    ]
    answers = iter(run_samplers(steps, tmp_path))
    for name, (first, other) in pairs.items():
        found = dict(zip(names, islice(answers, 4), strict=True))
        assert found["mistake"].startswith("probe: "), name
        for key, checkpoint in (("other", other), ("first", first)):
            sums, lengths = np.array([(c.logprob, len(c.token_ids)) for c in found[key]]).T
            mean = (np.abs(sums - logprobs_by_torch(checkpoint, PROMPTS, found[key])) / lengths).mean()
            print(f"{name} {key}: {mean:.1e} nat per token apart on average")
            assert mean <= (0.1 if arguments else 1e-5)


@pytest.mark.slow
def test_two_ranks_of_tensor_parallelism_change_their_weights(tmp_path):
    [(first, other)] = make_pairs(tmp_path, ["padded"]).values()
    two = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    _, found, back = run_samplers([{"engine": first, "arguments": two}, draw(other), draw(first)], tmp_path)
    for checkpoint, completions in ((other, found), (first, back)):
        exact = logprobs_by_torch(checkpoint, PROMPTS, completions)
        np.testing.assert_allclose([c.logprob for c in completions], exact, atol=2e-4)


def test_precision_is_named(checkpoints):
    with pytest.raises(ConfigError, match=r"dtype: expected one of \['float32', .*got 'float8'"):
        VllmSampler(checkpoints["qwen3"], max_length=10, dtype="float8")


def test_a_context_without_room_for_the_probe_is_refused(checkpoints):
    with pytest.raises(ConfigError, match="max_length: expected at least 4 tokens, got 3"):
        VllmSampler(checkpoints["qwen3"], max_length=3)
