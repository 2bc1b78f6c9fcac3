"""The graph_hops task by hand, its base model, and the experiment in one process (S-T23)."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.self_improvement import ARMS, Setting, run_arm, sample
from wmss.config import Hyperparameters
from wmss.data.prompts import end_token_ids, render_prompts
from wmss.records import Task
from wmss.tasks.fitting import fit
from wmss.tasks.graph_hops import (
    BASE_SUCCESS,
    HOPS,
    MAX_NEW_TOKENS,
    PROMPT_TOKENS,
    make_base,
    make_task,
    make_tokenizer,
    solved,
    success,
)

KNOBS = Hyperparameters(learning_rate=3e-3, warmup_ratio=0.1)


def walk(row):
    """The answer by following the prompt's pairs as text."""
    pairs, _, query = row["prompt"].partition(" ? ")
    words = pairs.split()
    successor = dict(zip(words[::2], words[1::2], strict=True))
    hops, _, node = query.split()
    visited = []
    for _ in range(int(hops.removeprefix("h"))):
        node = successor[node]
        visited.append(node)
    return successor, visited


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_task_is_what_it_says(level):
    rng = np.random.default_rng(level)
    for _ in range(50):
        row = make_task(rng, level=level)
        successor, visited = walk(row)
        assert sorted(successor) == [f"n{i}" for i in range(8)]
        assert row["answer"].split() == visited
        assert len(visited) == HOPS[level - 1]
        assert row["level"] == level


def test_tokens_are_words_and_answers_end():
    tokenizer = make_tokenizer()
    rows = [make_task(np.random.default_rng(0), level=level) for level in (1, 4)]
    tasks = [Task(line=i, prompt=row["prompt"]) for i, row in enumerate(rows, start=1)]
    prompts = render_prompts(tasks, tokenizer, max_prompt_tokens=PROMPT_TOKENS, source="f", param="p")
    assert [len(prompt) for prompt in prompts] == [PROMPT_TOKENS, PROMPT_TOKENS]
    assert [tokenizer.decode(prompt) for prompt in prompts] == [row["prompt"] for row in rows]
    (end,) = end_token_ids(tasks, tokenizer, source="f", param="p")
    for row, one in zip(rows, solved(rows, tokenizer), strict=True):
        assert one.last_target == end
        assert tokenizer.decode(one.input_ids[PROMPT_TOKENS:], skip_special_tokens=True) == row["answer"]
    assert len(solved(rows, tokenizer)[1].input_ids) == PROMPT_TOKENS + MAX_NEW_TOKENS


@pytest.fixture
def small():
    """An untrained model: every test here is of what is done with a model, not of what it can do."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    return tokenizer, Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=64,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            initializer_range=0.3,
        )
    )


def test_success_is_the_mean_probability_of_the_right_answer(small):
    tokenizer, model = small
    rng = np.random.default_rng(0)
    rows = [make_task(rng, level=level) for level in (1, 2, 3)]
    expected = []
    for one in solved(rows, tokenizer):
        ids = torch.from_numpy(one.input_ids).long()
        logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), -1)
        expected.append(sum(logprobs[t - 1, ids[t]] for t in range(PROMPT_TOKENS, len(ids))).exp().item())
    assert success(model, solved(rows, tokenizer)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_samples_follow_the_models_own_distribution(small):
    tokenizer, model = small
    prompt = tokenizer(make_task(np.random.default_rng(0), level=1)["prompt"])["input_ids"]
    with torch.no_grad():
        first = torch.softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
    drawn = sample(model, [prompt] * 4000, end=tokenizer.eos_token_id, generator=torch.Generator().manual_seed(0))
    counts = np.bincount([response[0] for response in drawn], minlength=len(tokenizer))
    assert np.abs(counts / 4000 - first.numpy()).max() < 0.03
    for response in drawn:
        assert (tokenizer.eos_token_id in response) == (response[-1] == tokenizer.eos_token_id)
        assert len(response) == MAX_NEW_TOKENS or response[-1] == tokenizer.eos_token_id


def test_a_run_is_a_function_of_its_seed(small, tmp_path):
    """S-T23: the same accepted responses, in the same order, and the same figures."""
    tokenizer, model = small
    # A model that nearly always says one thing: some of its answers are right from the start.
    rows = [make_task(np.random.default_rng(i), level=1) for i in range(64)]
    fit(model, solved(rows, tokenizer), KNOBS, batch_size=32, num_steps=30, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    setting = Setting(samples_per_round=64, rounds=4, steps_per_round=3, num_held_out=8)
    one, again, other = (run_arm(tmp_path, "mixture", setting, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert [round.manifest for round in one] != [round.manifest for round in other]
    assert all(round.sampled == {1: 16, 2: 16, 3: 16, 4: 16} for round in one)
    assert sum(round.trained_on for round in one) > 0


def test_arms_draw_the_levels_of_their_name():
    draws = {arm: [levels(number, 6) for number in range(6)] for arm, levels in ARMS.items()}
    assert draws["easy_to_hard"] == [(1,), (1,), (2,), (3,), (3,), (4,)]
    assert draws["rehearsed"][2] == (2, 2, 2, 2, 2, 2, 2, 1, 3, 4)
    assert draws["mixture"] == [(1, 2, 3, 4)] * 6
    assert draws["hard_only"] == [(4,)] * 6


@pytest.mark.slow
def test_the_base_model_begins_on_the_ladder_and_is_a_function_of_its_seed(tmp_path):
    """Measured .38 .12 .02 .003 with seed 0: each level is seen, and each is much harder than the one before."""
    values = make_base(tmp_path / "one", seed=0)
    assert BASE_SUCCESS <= values[0] < 0.5
    assert all(higher < 0.5 * lower for lower, higher in pairwise(values))
    assert values[2] > 0.01
    assert make_base(tmp_path / "two", seed=0) == values
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
