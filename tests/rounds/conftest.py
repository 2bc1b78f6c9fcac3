"""Files for jobs that run in the test's own process."""

import pytest

from wmss.tasks.arithmetic import make_problems, write_jsonl


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(make_problems(48, seed=1), folder / "train.jsonl")
    write_jsonl(make_problems(12, seed=2), folder / "validation.jsonl")
    return folder
