"""Forty short problems, tokenized once."""

import pytest

from tests.training.runs import NUM_SAMPLES
from wmss.data.dataset import Sample
from wmss.data.tokenization import save_tokenized, tokenize_samples
from wmss.models.loading import load_tokenizer
from wmss.tasks.arithmetic import make_problems


@pytest.fixture(scope="session")
def samples_file(tmp_path_factory, checkpoints):
    rows = make_problems(NUM_SAMPLES, seed=5)
    samples = [Sample(line=i, messages=tuple(row["messages"])) for i, row in enumerate(rows, start=1)]
    tokenizer = load_tokenizer(checkpoints["qwen3"])
    tokenized, _ = tokenize_samples(samples, tokenizer, max_length=256, source="x")
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    save_tokenized(tokenized, path)
    return path
