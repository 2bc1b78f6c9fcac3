"""Files for jobs that run in the test's own process."""

import pytest

from wmss.models import read_back
from wmss.tasks.arithmetic import make_problems, write_jsonl


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(make_problems(48, seed=1), folder / "train.jsonl")
    write_jsonl(make_problems(12, seed=2), folder / "validation.jsonl")
    return folder


@pytest.fixture(autouse=True)
def read_back_here(monkeypatch):
    """Results are read back as ever, but in the test's own process: a fresh one imports transformers for six seconds.
    `tests/models/test_read_back.py` starts one."""
    monkeypatch.setattr(read_back, "_in_fresh_process", read_back.compare)
