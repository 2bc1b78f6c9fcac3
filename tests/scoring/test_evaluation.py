"""Verified pass@1 with a sampler that answers from a script: what is asked, and what is counted."""

import json
import shutil

from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples
from wmss.models.checkpoints import own_end_ids
from wmss.models.loading import load_tokenizer
from wmss.records import Completion
from wmss.scoring.evaluation import verified_accuracy

END = 2
"""<|im_end|> of the demo's tokenizer."""


class Script:
    """Says what it was told to say, in order; keeps what it was asked."""

    calls_at_once = 1

    def __init__(self, *answers):
        self._answers = answers
        self.asked = {}

    def sample(self, weights, prompts, seeds, *, sampling, end_token_ids):
        self.asked = {"weights": weights, "sampling": sampling, "end_token_ids": end_token_ids}
        return list(self._answers)


def test_answers_are_greedy_cut_at_the_budget_and_counted(checkpoints):
    tokenizer = load_tokenizer(checkpoints["qwen3"])

    def answer(text, *, stopped):
        ids = tokenizer(text)["input_ids"]
        return Completion((*ids, END) if stopped else tuple(ids), "stop" if stopped else "length", 0.0)

    samples = [Sample(line=i, prompt=f"{i}+1", completion=f"#### {i + 1}") for i in (1, 2, 3)]
    tokenized, _ = tokenize_samples(samples, tokenizer, max_length=64, source="rows")
    told = (answer("#### 2", stopped=True), answer("#### 3", stopped=False), answer("#### 9", stopped=True))
    script, progress = Script(*told), []
    found = verified_accuracy(
        samples,
        tokenized,
        checkpoints["qwen3"],
        script,
        end_token_ids=[5],
        progress=lambda done, total: progress.append((done, total)),
    )
    assert (found["num_correct"], found["num_problems"]) == (2, 3)
    assert found["truncated_share"] == 1 / 3
    assert progress == [(3, 3)]
    sampling = script.asked["sampling"]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.0, 1.0, None)
    longest = max(len(each.input_ids) - each.last_completion_start for each in tokenized)
    assert sampling.max_new_tokens == found["max_new_tokens"] == 2 * longest
    assert script.asked["weights"] == checkpoints["qwen3"]
    assert script.asked["end_token_ids"] == [END, 5]


def test_end_ids_are_those_of_the_tokenizer_and_of_the_generation_config(tmp_path, checkpoints):
    """As vLLM takes them: config.json counts where there is no generation_config.json."""
    folder = tmp_path / "model"
    shutil.copytree(checkpoints["qwen3"], folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert own_end_ids(folder) == {END, 7, 9}
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 8}))
    assert own_end_ids(folder) == {END, 8}
