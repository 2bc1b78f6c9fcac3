"""`wmss check`: a dry run on the terminal, without a service."""

import os
import re
import shutil

import pytest
from typer.testing import CliRunner

from services.catalog.registry import register
from services.cli import app
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.store import Store
from services.settings import Settings
from wmss.tasks.arithmetic import make_problems, write_jsonl

JOB = """
model = "qwen3"
training_file = "train.jsonl"
validation_file = "held_out.jsonl"
[wmss]
hyperparameters = { batch_size = 16 }
"""


@pytest.fixture
def home(tmp_path, checkpoints):
    shutil.copytree(checkpoints["qwen3"], tmp_path / "models" / "qwen3")
    write_jsonl(make_problems(400, seed=1), tmp_path / "train.jsonl")
    write_jsonl(make_problems(20, seed=2), tmp_path / "held_out.jsonl")
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def check(home, *arguments):
    command = ["check", str(home / "job.toml"), "--home", str(home), *map(str, arguments)]
    run = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1"}).invoke(app, command)
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
    return run


def test_report_fits_80_columns_and_reads_without_colours(home):
    run = check(home)
    assert run.exit_code == 0
    lines = run.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in run.stdout
    text = " ".join(run.stdout.split())
    assert "sft 25 steps, 1 epoch of 400 samples" in text
    assert "joint at most 25 steps, 1 epoch of at most 400 samples" in text
    assert "20 problems tell pass@1 to within 22 points" in text
    [supervised] = [line for line in lines if line.startswith("  > ")]
    assert "####" in supervised and supervised.endswith("<|im_end|>")
    assert "    <|im_start|>assistant" in lines
    assert lines[-1] == "The job would be accepted; nothing was started."
    assert not (home / "wmss.db").exists()


def test_every_problem_is_shown_and_the_exit_code_is_1(home):
    run = check(home, "--model", "nope", "--training-file", "missing.jsonl")
    assert run.exit_code == 1
    text = " ".join(run.stdout.split())
    assert "refused model: no model 'nope'" in text
    assert re.search(r"refused training_file: cannot read \S*missing.jsonl", text)
    assert text.endswith("The job would be refused; nothing was started.")


def test_registered_checkpoints_are_known_and_read_again(home):
    weights = home / "models" / "qwen3" / "model.safetensors"
    store = Store(Settings(home=home).database)
    store.migrate()
    checkpoint = register("qwen3", None, store=store, settings=Settings(home=home)).id
    store.close()
    assert check(home, "--model", checkpoint).exit_code == 0
    times = weights.stat()
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    run = check(home, "--model", checkpoint)
    assert run.exit_code == 1
    assert "refused model: weights in" in " ".join(run.stdout.split())


def test_finished_models_are_known_from_the_homes_database(home):
    assert "there is no finished model" in " ".join(check(home, "--model", "ft:qwen3::ftjob-1").stdout.split())
    settings = Settings(home=home)
    store = Store(settings.database)
    store.migrate()
    job = store.create_job(
        "ftjob-1", spec={}, paths={}, fine_tuned_model="ft:qwen3::ftjob-1", request_digest="d", request_key=None
    )
    store.claim(job, message="Starting")
    Fence(store, "ftjob-1", 1, lease_s=5).end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    store.close()
    (home / "models" / "qwen3").rename(home / "models" / "ftjob-1")
    assert check(home, "--model", "ft:qwen3::ftjob-1").exit_code == 0
