"""`wmss tasks`: files that a job takes, whose references its verifier accepts; and refusals."""

import io
import json

import pytest
from rich.console import Console

from services.cli import app
from wmss.config import parse_job, read_toml
from wmss.data.tasks import read_tasks
from wmss.errors import WmssError
from wmss.tasks.files import SHIPPED_TASKS
from wmss.verifiers.registry import make_verifier


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The command with a folder of its own; what it printed."""

    def run(name, *options, folder="out"):
        console = Console(width=200, record=True, file=io.StringIO())
        monkeypatch.setattr("services.cli.console", console)
        app(["tasks", name, "--out", str(tmp_path / folder), *options], standalone_mode=False)
        return console.export_text()

    return run


@pytest.mark.parametrize("name", SHIPPED_TASKS)
def test_files_are_what_a_job_takes_and_the_verifier_accepts_the_references(run, tmp_path, name):
    text, out = run(name), tmp_path / "out"
    training = read_tasks(out / "tasks_train.jsonl", param="training_file")
    held_out = read_tasks(out / "tasks_held_out.jsonl", param="validation_file", held_out=True)
    for level in (1, 2, 3, 4):
        assert sum(task.level == level for task in training) == 64
        assert [task.split for task in held_out if task.level == level] == ["validation"] * 16 + ["test"] * 16
    job = parse_job({"model": "m", **read_toml(out / "job.toml")})
    pairs = [(task, task.answer) for task in [*training, *held_out]]
    with make_verifier(job.method.self_improvement.verifier, num_processes=1) as verifier:
        verdicts = verifier.verify(pairs, progress=lambda done, total: None)
    assert all(verdict.accepted for verdict in verdicts)
    assert "tasks_train.jsonl  256 rows" in text and "64 rows for validation, 64 for test" in text
    assert text.endswith(f"Next: wmss check {out / 'job.toml'} --model MODEL\n")


def test_numbers_and_seed_make_the_rows(run, tmp_path):
    sizes = ["--training", "5", "--validation", "3", "--test", "0", "--levels", "6"]
    run("graph_path", *sizes, "--seed", "1")
    run("graph_path", *sizes, "--seed", "1", folder="again")
    run("graph_path", *sizes, "--seed", "2", folder="other")
    files = [(tmp_path / folder / "tasks_train.jsonl").read_text() for folder in ("out", "again", "other")]
    assert files[0] == files[1] != files[2]
    assert [json.loads(row)["level"] for row in files[0].splitlines()] == [
        level for level in range(1, 7) for _ in "12345"
    ]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sudoku", [], "NAME: expected one of graph_hops, graph_path, arithmetic, got 'sudoku'; choose"),
        ("arithmetic", ["--training", "0"], "--training: expected 1 to 100,000, got 0; choose"),
        ("arithmetic", ["--validation", "0"], "--validation: expected 1 to 100,000, got 0; choose"),
        ("arithmetic", ["--test", "-1"], "--test: expected 0 to 100,000, got -1; choose"),
        ("arithmetic", ["--levels", "5"], "--levels: expected 1 to 4 for arithmetic, got 5; choose"),
        ("graph_path", ["--levels", "7"], "--levels: expected 1 to 6 for graph_path, got 7; choose"),
        ("graph_path", ["--seed", "-1"], "--seed: expected 0 to "),
        (
            "arithmetic",
            ["--training", "500"],
            "--training, --validation, --test: arithmetic: expected 500 more instances of level 1, found ",
        ),
    ],
)
def test_refusals_name_the_option_and_leave_no_file(run, tmp_path, name, options, message):
    with pytest.raises(WmssError) as refused:
        run(name, *options)
    assert str(refused.value).startswith(message)
    assert not list(tmp_path.glob("out/*"))


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    for file in ("tasks_train.jsonl", "tasks_held_out.jsonl", "job.toml"):
        mine = tmp_path / "out" / file
        mine.write_text("mine")
        with pytest.raises(WmssError, match=rf"--out: .*{file} exists already and is not overwritten; name another"):
            run("graph_hops")
        assert mine.read_text() == "mine"
        mine.unlink()
    (tmp_path / "file").write_text("")
    with pytest.raises(WmssError, match=r"--out: cannot write to .*: File exists; name another folder"):
        run("graph_hops", folder="file")
