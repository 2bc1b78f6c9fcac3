"""Forty short problems, tokenized once."""

import pytest

from tests.training.runs import write_samples


@pytest.fixture(scope="session")
def samples_file(tmp_path_factory, checkpoints):
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    write_samples(path, checkpoints["qwen3"])
    return path
