"""Entropies of a real model: vLLM in float32 and bfloat16 against the same weights in float64.

pytest -m slow tests/scoring/test_smollm2.py     (three minutes on one core)
"""

import numpy as np
import pytest
import torch

from tests.scoring.score_in_process import score_with_vllm
from wmss.data.dataset import Sample
from wmss.data.tokenization import tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.tasks.arithmetic import make_problems

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

NUM_ROWS = 64
STORY = (
    "Maria runs a small shop near the harbour. On Monday she counts her money, buys bread for {} coins, sells two old "
    "lamps, and pays the boy who sweeps the floor. In the evening she writes one line into her book and works it out: "
)


def rows():
    """Word problems of two hundred tokens, as GSM8K's are; text a model is sure of, and digits it is not."""
    samples = []
    for line, problem in enumerate(make_problems(NUM_ROWS, seed=3, min_steps=4, max_steps=9), start=1):
        question, answer = problem["messages"]
        text = STORY.format(line) + question["content"]
        messages = ({"role": "user", "content": text}, {"role": "assistant", "content": text + answer["content"]})
        samples.append(Sample(line=line, messages=messages))
    return samples


def test_vllm_equals_float64(smollm2, tmp_path):
    samples, _ = tokenize_samples(rows(), load_tokenizer(smollm2), max_length=1024, source="rows")
    sequences = [sample.input_ids.tolist() for sample in samples]
    engine = {"checkpoint": smollm2, "max_length": 1024}
    engines = {"float32": engine, "bfloat16": engine | {"dtype": "bfloat16"}}
    answers = score_with_vllm(engines, sequences, tmp_path)
    expected = TorchEntropyScorer(smollm2, dtype=torch.float64).score(sequences)
    errors = {
        name: np.concatenate(
            [
                np.abs(ours - exact)[sample.predicting_positions, :2]
                for ours, exact, sample in zip(answer.rows, expected, samples, strict=True)
            ]
        )
        for name, answer in answers.items()
    }
    for name, found in errors.items():
        print(f"{name}: worst {found.max(axis=0)}, mean {found.mean(axis=0)} nat (entropy, NLL)")
    assert len(errors["float32"]) > 5000
    for column in errors["float32"].T:
        assert column.max() <= 2e-4
        assert (column <= 1e-4).mean() >= 0.999
    assert errors["bfloat16"].mean() <= 0.1
