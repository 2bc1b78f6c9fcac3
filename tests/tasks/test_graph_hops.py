"""The graph_hops task by hand, its base model, and the experiment in one process."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.self_improvement import Setting, run_arm
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


def parts(row):
    """The map, the nodes after the question mark and the walk, by following the prompt's entries as text."""
    entries, _, given = row["prompt"].partition(" ? ")
    words = entries.split()
    successor = {key.removesuffix(":"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    given = given.split()
    visited = [given[-1]]
    for _ in range(HOPS[row["level"] - 1]):
        visited.append(successor[visited[-1]])
    return successor, given, visited


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_task_is_what_it_says(level):
    rng = np.random.default_rng(level)
    for _ in range(50):
        row = make_task(rng, level=level)
        successor, given, visited = parts(row)
        assert sorted(successor) == [f"n{i}" for i in range(8)]
        assert row["answer"].split() == visited[1:]
        assert len(set(visited)) == len(visited)
        assert len(given) + len(visited) - 1 == HOPS[-1] + 1
        assert row["level"] == level


def test_tokens_are_words_and_answers_end():
    tokenizer = make_tokenizer()
    rows = [make_task(np.random.default_rng(0), level=level) for level in (1, 4)]
    tasks = [Task(line=i, prompt=row["prompt"]) for i, row in enumerate(rows, start=1)]
    prompts = render_prompts(tasks, tokenizer, max_prompt_tokens=PROMPT_TOKENS, source="f", param="p")
    assert [len(prompt) for prompt in prompts] == [PROMPT_TOKENS, PROMPT_TOKENS - HOPS[-1] + 1]
    assert [tokenizer.decode(prompt) for prompt in prompts] == [row["prompt"] for row in rows]
    (end,) = end_token_ids(tasks, tokenizer, source="f", param="p")
    for row, prompt, one in zip(rows, prompts, solved(rows, tokenizer), strict=True):
        assert one.last_target == end
        assert len(one.input_ids) == PROMPT_TOKENS + 2, "expected every answer to end at the same place"
        assert tokenizer.decode(one.input_ids[len(prompt) :], skip_special_tokens=True) == row["answer"]
    assert solved(rows, tokenizer)[1].num_targets == MAX_NEW_TOKENS


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
        answer = range(len(ids) - one.num_targets, len(ids))
        expected.append(sum(logprobs[t - 1, ids[t]] for t in answer).exp().item())
    assert success(model, solved(rows, tokenizer)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_a_run_is_a_function_of_its_seed(small, tmp_path):
    """The same accepted responses, in the same order, and the same figures."""
    tokenizer, model = small
    # A model that nearly always says one thing: some of its answers are right from the start.
    rows = [make_task(np.random.default_rng(i), level=1) for i in range(64)]
    fit(model, solved(rows, tokenizer), KNOBS, batch_size=32, num_steps=30, seed=0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    setting = Setting(samples_per_round=64, rounds=4, steps_per_round=3, num_held_out=8, min_accepted=1)
    one, again, other = (run_arm(tmp_path, "mixture", setting, seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert [round.manifest for round in one] != [round.manifest for round in other]
    assert all([sampled for _, sampled in round.counts] == [16] * 4 for round in one)
    assert sum(round.num_selected for round in one) > 0


@pytest.mark.slow
def test_the_base_model_begins_on_the_ladder_and_is_a_function_of_its_seed(tmp_path):
    """Measured .40 .17 .02 .003 with seed 0: each level is seen, and each is much harder than the one before."""
    values = make_base(tmp_path / "one", seed=0)
    assert BASE_SUCCESS <= values[0] < 0.5
    assert all(higher < 0.5 * lower for lower, higher in pairwise(values))
    assert values[2] > 0.01
    assert make_base(tmp_path / "two", seed=0) == values
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two")]
    assert weights[0] == weights[1]
