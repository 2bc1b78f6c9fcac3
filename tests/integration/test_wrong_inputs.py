"""Forty wrong inputs against the running service: each is refused where it is met, by its field, with what to do."""

import os
import shutil

import httpx2
import pytest

from tests.integration.stack import call, submit, wait_for_end
from tests.services.wrong_inputs import JOBS, REQUESTS, ROW, Wrong, chat, file, get, job, refused, wmss

pytestmark = pytest.mark.stack

BROKEN = "broken_weights"


HTTP = {
    # Uploads
    "file that is UTF-16": file(ROW.decode().encode("utf-16"), "file", "write its rows as JSON lines in UTF-8"),
    "key twice in a row": file(b'{"prompt": "p", "prompt": "q", "completion": "c"}', "file", "remove one"),
    "weight NaN": file(
        b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": NaN}]}',
        "file",
        "expected 0 or 1, got nan",
    ),
    "row nested without end": file(b'{"prompt": ' + b"[" * 10**5, "file", "line 1: not valid JSON"),
    "half a surrogate pair": file(b'{"prompt": "p", "completion": "\\ud800"}', "file", "remove it"),
    "role of a megabyte": file(
        b'{"messages": [{"role": "' + b"r" * 10**6 + b'", "content": "q"}]}', "file", "expected one of ['system'"
    ),
    "byte-order mark in the middle": file(ROW + b"\xef\xbb\xbf" + ROW, "file", "line 2: not valid JSON"),
    "two files": file(ROW, "file", "one request for each", ("file", ("more.jsonl", ROW))),
    "two purposes": file(ROW, "purpose", "one request for each", ("purpose", (None, "batch"))),
    "file as text": file(ROW, "file", "-F file=@train.jsonl", file=(None, "text")),
    "purpose as file": file(ROW, "purpose", "-F purpose=fine-tune", purpose=("p", b"fine-tune")),
    "multipart without boundary": Wrong(400, None, "boundary", "files", content=b"x"),
    # Jobs
    "key twice in a job": Wrong(400, None, "remove one", JOBS, content=b'{"model": "qwen3", "seed": 1, "seed": 2}'),
    "job in Latin-1": Wrong(400, None, "expected UTF-8", JOBS, content=b'{"model": "\xe9"}'),
    "seed of five thousand digits": Wrong(
        400, None, "not usable JSON", JOBS, content=b'{"seed": 1' + b"0" * 5000 + b"}"
    ),
    "seed of 1.0": job("seed", "valid integer", seed=1.0),
    "true as a number of epochs": wmss(
        ".hyperparameters.n_epochs", "valid integer or 'auto'", hyperparameters={"n_epochs": True}
    ),
    "infinite clip": Wrong(
        400,
        "method.supervised.hyperparameters.gradient_clip",
        "finite",
        JOBS,
        content=b'{"model": "qwen3", "training_file": "f", "method": '
        b'{"type": "supervised", "supervised": {"hyperparameters": {"gradient_clip": 1e999}}}}',
    ),
    "suffix with a newline": job("suffix", "digits, '.', '_' or '-'", suffix="a\n"),
    "metadata key with a quote": job('metadata.a"', "without quotes, brackets", metadata={'a"': "x"}),
    "no fields where an object is due": job("resources", "expected an object", resources=None),
    "model outside the roots": job("model", "put it there or add its parent", model="../../etc"),
    "model of a job that was none": job("model", "see /v1/models", model="ft:qwen3::ftjob-0"),
    "empty validation file": job("validation_file", "at least 1 character", validation_file=""),
    "knobs of the other method": job("method.wmss", "remove it", method={"type": "supervised", "wmss": {}}),
    "strong model and epochs to make one": wmss(
        "", "remove one", strong_model="qwen3_other", hyperparameters={"sft_epochs": 1}
    ),
    "preset that is a list": wmss(".preset", "'wmss-v2'", path=f"{JOBS}/validate", preset=[]),
    "unknown field in a dry run": job("epochs", "correct its spelling", path=f"{JOBS}/validate", epochs=1),
    # Lists and things
    "filter that no job can carry": get(400, 'metadata[a"]', "without quotes", f"{JOBS}?metadata[a%22]=x"),
    "limit twice": get(400, "limit", "remove one", "files?limit=1&limit=2"),
    "cursor of another list": get(400, "after", "id of an item of this list", f"{JOBS}?after=ftevent-1"),
    "job with NUL in its name": get(404, "fine_tuning_job_id", "there is no fine-tuning job", f"{JOBS}/a%00b/phases"),
    # Chat
    "chat with a model of broken weights": chat(400, "model", "copy it again", model=BROKEN),
    "chat with nobody": chat(404, "model", "put it there", model="nobody"),
    "chat without messages": chat(400, "messages", "at least 1 item", messages=[]),
    "prompt that is a number": chat(400, "prompt", "valid string", path="completions", prompt=1),
}


@pytest.fixture(scope="module")
def http(stack):
    with httpx2.Client(base_url=stack.endpoint.base_url + "/", timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def training_file(stack, files):
    return stack.client.files.create(file=files / "train.jsonl", purpose="fine-tune").id


def newest_job(stack):
    return next((job.id for job in stack.client.fine_tuning.jobs.list(limit=1).data), None)


@pytest.fixture(scope="module", autouse=True)
def newest_before(stack):
    return newest_job(stack)


@pytest.fixture(scope="module", autouse=True)
def broken_model(stack):
    folder = stack.home / "models" / BROKEN
    shutil.copytree(stack.home / "models" / "qwen3", folder)
    os.truncate(folder / "model.safetensors", 5000)
    yield
    shutil.rmtree(folder)


@pytest.mark.parametrize("wrong", HTTP.values(), ids=HTTP)
def test_wrong_request(http, training_file, wrong):
    refused(wrong.send(http.request, training_file), wrong)


@pytest.mark.slow
def test_every_wrong_request_of_the_unit_suite(http, training_file):
    for wrong in REQUESTS.values():
        refused(wrong.send(http.request, training_file), wrong)


COMMANDS = {
    "TOML that names no file": (["check", "job.toml"], 'model = "qwen3"\ntraining_file = ""', "at least 1 character"),
    "TOML nested without end": (["check", "job.toml"], "model = " + "[" * 5000, "expected a readable TOML file"),
    "row to convert with a key twice": (
        ["convert", "source.jsonl", "target.jsonl"],
        '{"question": "q", "answer": "a", "answer": "b"}',
        "remove one",
    ),
    "GGUF that is none": (["models", "add", "model.gguf"], "GGUF", "copy it again"),
}


@pytest.mark.parametrize(("arguments", "content", "remedy"), COMMANDS.values(), ids=COMMANDS)
def test_wrong_command(stack, tmp_path, arguments, content, remedy):
    """The input is written to the first file that the command names."""
    named = next(argument for argument in arguments if "." in argument)
    (tmp_path / named).write_text(content)
    before = sorted((stack.home / "models").iterdir())
    run = call(stack, *arguments, code=1, cwd=tmp_path, environment={"PYTHONPATH": os.getcwd()})
    assert run.stderr.startswith("error ")
    assert remedy in run.stderr
    assert "Traceback" not in run.stderr
    assert [file.name for file in tmp_path.iterdir()] == [named]
    assert sorted((stack.home / "models").iterdir()) == before


def test_there_are_forty():
    assert len(HTTP) + len(COMMANDS) == 40


def test_no_wrong_input_made_a_job(stack, newest_before):
    assert newest_job(stack) == newest_before


@pytest.mark.slow
def test_afterwards_a_good_job_succeeds(stack, files):
    """In the default suite the jobs of the files that come after this one show it."""
    knobs = {"batch_size": 16, "max_steps": 2}
    made = submit(stack, files, method={"type": "supervised", "supervised": {"hyperparameters": knobs}})
    ended = wait_for_end(stack, made)
    assert ended.status == "succeeded", ended.error
