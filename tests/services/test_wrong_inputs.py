"""Two hundred wrong inputs, with those of the running service: each is refused by its field, with what to do."""

import gzip
import json
import os
import shutil
import signal
import sys

import pytest
from fastapi.testclient import TestClient

from services import cli
from services.api.app import create_app
from services.settings import Settings
from tests.services.requests import upload
from tests.services.scripted_ray import QuietRay, put_in_place_of_ray
from tests.services.wrong_inputs import RAW, REQUESTS, ROW, refused


@pytest.fixture(scope="module")
def service(tmp_path_factory, checkpoints):
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(checkpoints["qwen3"], home / "models" / "qwen3")
    (home / "models" / "circle").symlink_to("circle")
    with pytest.MonkeyPatch.context() as patch:
        put_in_place_of_ray(patch, QuietRay())
        with TestClient(create_app(Settings(home=home)), raise_server_exceptions=False) as client:
            yield client


@pytest.fixture(scope="module")
def training_file(service):
    return upload(service).json()["id"]


# Of a form that is cut, Starlette leaves the open file to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("wrong", REQUESTS.values(), ids=REQUESTS)
def test_wrong_request(service, training_file, wrong):
    def request(method, path, **more):
        return service.request(method, f"/v1/{path}", **more)

    refused(wrong.send(request, training_file), wrong)


def test_afterwards_the_service_is_as_it_was(service, training_file):
    assert [file["id"] for file in service.get("/v1/files").json()["data"]] == [training_file]
    assert service.get("/v1/fine_tuning/jobs").json()["data"] == []
    assert [model["id"] for model in service.get("/v1/models").json()["data"]] == ["qwen3"]
    assert upload(service).status_code == 200


# Commands. Each is given in the folder that `place` makes, and a text that is written to the file it names first.

GOOD = 'model = "m"\ntraining_file = "rows.jsonl"\n'
LONG = "a" * 300
LABELLED = '{"answer": "7", "response": "7", "correct": true}'
TASK = '{"prompt": "p", "answer": "1", "level": 1}'


def toml(remedy, text, content=GOOD):
    return ["check", "job.toml"], {"job.toml": content + text}, remedy


def converted(remedy, source, *options):
    return ["convert", "source.jsonl", "target.jsonl", *options], {"source.jsonl": source}, remedy


def audited(remedy, row, verifier="exact"):
    return ["audit", "labelled.jsonl", "--verifier", verifier], {"labelled.jsonl": row}, remedy


def given(remedy, *arguments, **files):
    return list(arguments), files, remedy


COMMANDS = {
    # Job files
    "number of thousands of digits": toml("thousands of digits", "seed = 1" + "0" * 5000),
    "hexadecimal number of thousands of digits": toml("thousands of digits", "seed = 0x" + "f" * 5000),
    "NaN as a seed": toml("valid integer (got nan)", "seed = nan"),
    "dates": toml("valid string", "suffix = 2020-01-01"),
    "table in place of a file": toml("valid string", "[validation_file]\na = 1"),
    "key twice": toml("TOML file", "seed = 1\nseed = 1"),
    "deep TOML": toml("nested too deeply", "suffix = " + "[" * 5000),
    "TOML in Latin-1": toml("correct it", "suffix = '\udce9'"),
    "NUL in TOML": toml("correct it", 'suffix = "\0"'),
    "JSON in place of TOML": toml("correct it", "", '{"model": "m"}'),
    "method that is a number": toml("method.wmss: expected an object", "wmss = 3"),
    "method that is a list": toml("method.wmss: expected an object", "[[wmss]]"),
    "two methods": toml("keep one", "[wmss]\n[supervised]"),
    "knob with quotes": toml("wmss.rounds: unknown field", '"wmss.rounds" = 2'),
    "job that is a folder": given("name a file", "check", "folder"),
    "job that is a FIFO": given("name a file", "check", "fifo"),
    "job of links in a circle": given("check the path", "check", "circle"),
    "job that is not there": given("check the path", "check", "job.toml"),
    "job with a long name": given("check the path", "check", LONG),
    "job with a name that is no UTF-8": given("expected UTF-8 text", "check", "\udcff"),
    "method in the file and beside it": (
        ["check", "job.toml", "--method", "supervised"],
        {"job.toml": GOOD + "[wmss]"},
        "remove one",
    ),
    "method that is none": given("expected one of", "check", "--model", "m", "--training-file", "f", "--method", "dpo"),
    # Files and models that are named
    "training file with a long name": given("there is no file", "submit", "--model", "m", "--training-file", LONG),
    "training file that is a FIFO": given("there is no file", "submit", "--model", "m", "--training-file", "fifo"),
    "file to score with a long name": given("there is no file", "score", LONG, "m"),
    "tables of tokens without a folder": given("--out DIR", "score", "rows.jsonl", "m", "--tokens", "--local"),
    "folder of tables that is a file": given(
        "name another", "score", "rows.jsonl", "m", "--local", "--out", "rows.jsonl"
    ),
    "model with a long name": given("put it there", "score", "rows.jsonl", "m" * 1000, "--local"),
    "home of links in a circle": given("name a folder", "models", "add", "folder", "--home", "circle"),
    "home with a long name": given("name a folder", "models", "add", "folder", "--home", LONG),
    "model to add of links in a circle": given("check the path", "models", "add", "circle"),
    "model to add with a long name": given("check the path", "models", "add", LONG),
    "model to add without a name": given("expected a path", "models", "add", ""),
    "model to add with a name of dots": given("another --name", "models", "add", "folder", "--name", ".."),
    "model to add that is a FIFO": given("check the path", "models", "add", "fifo"),
    # Conversion
    "source that is a folder": given("cannot read", "convert", "folder", "target.jsonl"),
    "source that is a FIFO": given("FIFO", "convert", "fifo", "target.jsonl"),
    "target in a file": given("cannot write", "convert", "question.jsonl", "rows.jsonl/target"),
    "target with a long name": given("cannot write", "convert", "question.jsonl", LONG),
    "target that is there": given("name another file", "convert", "question.jsonl", "rows.jsonl"),
    "array that is not closed": converted("one JSON array", '[{"question": "q"}'),
    "array with a key twice": converted("remove one", '[{"question": "q", "question": "q"}]'),
    "array that is deep": converted("nested too deeply", '[{"question": ' + "[" * 10**5),
    "number among objects": converted("line 2: expected a JSON object", '[{"question": "q", "answer": "a"}, 1]'),
    "gzip that is cut": converted("make it again", gzip.compress(ROW * 1000)[:60]),
    "gzip with more behind it": converted("make it again", gzip.compress(ROW) + b"more"),
    "gzip in gzip": converted("gzip", gzip.compress(gzip.compress(ROW))),
    "zip in gzip": converted("a zip archive", gzip.compress(b"PK\x03\x04")),
    "Parquet": converted("a Parquet file", "PAR1"),
    "one key of a megabyte": converted("rename them", json.dumps({"k" * 10**6: 1})),
    "question of lists": converted("question: expected text", json.dumps({"question": ["q" * 10**6], "answer": "a"})),
    "part of a megabyte's type": converted(
        "leave this row out", json.dumps({"messages": [{"role": "user", "content": [{"type": "t" * 10**6}]}]})
    ),
    "field of a message of a megabyte": converted("remove it", json.dumps({"messages": [{"k" * 10**6: 1}]})),
    "system message for no messages": converted("non-empty list", '{"messages": []}', "--system", "s"),
    "system message for a number": converted("expected an object", '{"messages": [1]}', "--system", "s"),
    "system message that is no UTF-8": converted("expected UTF-8 text", "{}", "--system", "\udcff"),
    "tasks as samples": converted("--to tasks", f"[{TASK}]"),
    "tasks that are lines": converted("use the file as it is", TASK, "--to", "tasks"),
    "array of tasks, one of them wrong": converted(
        "write it as text", f'[{TASK}, {{"prompt": "p", "answer": 1}}]', "--to", "tasks"
    ),
    "options of tasks for samples": converted("add --to tasks", "{}", "--level", "1"),
    # Audits
    "messages null": audited("expected strings", '{"task": {"prompt": 1}, "response": "7", "correct": true}'),
    "messages a number": audited("non-empty list", '{"task": {"messages": 3}, "response": "7", "correct": true}'),
    "level of a task as text": audited("whole number", '{"task": {"level": "x"}, "response": "7", "correct": true}'),
    "deep data": audited(
        "flatten it", '{"task": {"data": {"x": ' + "[" * 900 + "]" * 900 + '}}, "response": "7", "correct": true}'
    ),
    "label 1": audited("true or false", '{"answer": "7", "response": "7", "correct": 1}'),
    "array of responses": audited("JSON array", f"[{LABELLED}]"),
    "verifier with a key twice": audited("remove one", LABELLED, '{"type": "exact", "type": "math"}'),
    "deep verifier": audited("nested too deeply", LABELLED, '{"type": ' + "[" * 10**5),
    "verifier of NaN": audited("finite", LABELLED, '{"type": "math", "timeout_s": NaN}'),
    "verifier without a name": audited("expected one of", LABELLED, ""),
    "pattern of two groups": audited("one group", LABELLED, '{"type": "regex", "pattern": "(a)(b)"}'),
    "pattern that is none": audited("pattern", LABELLED, '{"type": "regex", "pattern": "("}'),
    "file to audit that is a FIFO": given("FIFO", "audit", "fifo", "--verifier", "exact"),
    # Numbers
    "start NaN": given("--start", "simulate", "--complexity", "1", "--samples", "9", "--start", "nan"),
    "complexity without end": given(
        "--complexity", "simulate", "--complexity", "inf", "--samples", "9", "--start", ".5"
    ),
    "kappa NaN": given(
        "--kappa", "simulate", "--complexity", "1", "--samples", "9", "--start", ".5", "--kappa", "nan", "--levels", "2"
    ),
    "chart of another kind": given(
        ".png or .html", "simulate", "--complexity", "1", "--samples", "9", "--start", ".5", "--out", "x.gif"
    ),
    # Services
    "address with half a bracket": given("expected a URL", "jobs", "--base-url", "http://[::1"),
    "address with a word as port": given("expected a URL", "jobs", "--base-url", "http://127.0.0.1:x/"),
    "address with a newline": given("expected a URL", "jobs", "--base-url", "http://127.0.0.1:9/\n"),
    "address of another scheme": given("expected a URL", "jobs", "--base-url", "ftp://127.0.0.1/"),
    "address that is none": given("expected a URL", "jobs", "--base-url", "nope"),
    "job that leads up": given("`wmss jobs` lists", "cancel", ".."),
    "job with a query": given("`wmss jobs` lists", "watch", "a?b"),
    "job of a newline": given("`wmss jobs` lists", "rounds", "a\nb"),
    "question that is no UTF-8": given("expected UTF-8 text", "chat", "m", "\udcff"),
    "checkpoint by another id": given("`wmss checkpoints list`", "checkpoints", "remove", "file-1"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what is no file, and a home without a service."""
    folder = tmp_path_factory.mktemp("place")
    os.mkfifo(folder / "fifo")
    (folder / "circle").symlink_to("circle")
    (folder / "folder").mkdir()
    (folder / "rows.jsonl").write_bytes(ROW)
    (folder / "question.jsonl").write_text('{"question": "q", "answer": "a"}')
    return folder


@pytest.mark.parametrize(("arguments", "files", "remedy"), COMMANDS.values(), ids=COMMANDS)
def test_wrong_command(place, monkeypatch, capsys, arguments, files, remedy):
    monkeypatch.chdir(place)
    monkeypatch.setenv("WMSS_HOME", str(place / "home"))
    monkeypatch.delenv("WMSS_BASE_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["wmss", *arguments])
    for name, content in files.items():
        written = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        (place / name).write_bytes(written)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(120)  # a FIFO that is opened would wait without end
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        signal.alarm(0)
        for name in files:
            (place / name).unlink()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert said.startswith("error ")
    assert remedy in said
    assert len(said) < 5000
    assert not any(sign in said for sign in RAW)
    assert not (place / "target.jsonl").exists()


def test_there_are_two_hundred():
    assert len(REQUESTS) + len(COMMANDS) >= 200
