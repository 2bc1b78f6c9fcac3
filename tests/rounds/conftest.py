"""Files for jobs that run in the test's own process."""

import pytest

from wmss.models import limited
from wmss.tasks.arithmetic import make_problems, write_jsonl


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(make_problems(48, seed=1), folder / "train.jsonl")
    # Prompts of one length: their answers are drawn in one batch, and these are short. A job of these tests spends half
    # of its time on them.
    held_out = [row for row in make_problems(99, seed=2) if len(row["messages"][0]["content"]) == 7]
    write_jsonl(held_out[:12], folder / "validation.jsonl")
    return folder


@pytest.fixture(scope="session")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept_answers")


@pytest.fixture(scope="module", autouse=True)
def kept_answers(kept):
    """What a service has; it keeps a second of examination from every job. The tests of other folders ask anew."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(limited, "_kept", None)
        limited.keep_answers(kept)
        yield
