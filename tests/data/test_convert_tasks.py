"""Task files against rows written out by hand, every refusal with its line; our reader takes the result."""

import json

import pytest

from tests.verifiers.tasks import judge
from wmss.config import FinalValueVerifier
from wmss.data.convert_tasks import ANSWER_ONLY, convert_tasks, level_of_steps
from wmss.data.tasks import read_tasks
from wmss.errors import DataError

SOLUTION = "48/2 = <<48/2=24>>24 in May.\n24+48 = <<48+24=72>>72.\n#### 72"
GSM8K = {"question": "How many?", "answer": SOLUTION}
MATH = {"problem": "Half?", "solution": "It is $\\boxed{\\frac{1}{2}}$.", "level": "Level 3", "type": "Algebra"}


def convert(tmp_path, *rows, name="source.jsonl", held_out=True, **options):
    source, target = tmp_path / name, tmp_path / "target.jsonl"
    source.parent.mkdir(exist_ok=True)
    source.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    done = convert_tasks(source, target, **options)
    tasks = read_tasks(target, param="training_file", held_out=held_out)
    assert len(tasks) == done.num_written == done.num_read - len(done.skipped)
    return done, tasks


def test_gsm8k(tmp_path):
    longer = "a\nb\n\nc\n#### 3"
    done, (two, three) = convert(tmp_path, GSM8K, {"question": "q", "answer": longer, "id": 7})
    assert (two.messages, two.level) == (({"role": "user", "content": "How many?"},), 1)
    assert two.answer == "48/2 = 24 in May.\n24+48 = 72.\n#### 72"
    assert (three.answer, three.level) == (longer, 2)
    assert done.format == "gsm8k"
    assert done.changes == {"the field 'id' was left out": 1, "calculator marks (<<48/2=24>>) were taken out": 1}
    (kept,) = read_tasks_with(tmp_path / "kept", GSM8K, calculator_marks="keep")
    assert kept.answer == SOLUTION


def read_tasks_with(folder, *rows, **options):
    folder.mkdir()
    return convert(folder, *rows, **options)[1]


def test_levels_of_steps():
    assert [level_of_steps(num_steps) for num_steps in range(1, 8)] == [1, 1, 2, 2, 3, 3, 3]


def test_math(tmp_path):
    done, (task,) = convert(tmp_path, MATH)
    assert (task.answer, task.level) == ("\\frac{1}{2}", 3)
    assert task.messages == ({"role": "user", "content": "Half?"},)
    assert (done.format, done.changes) == ("math", {"the field 'type' was left out": 1})
    (task,) = read_tasks_with(tmp_path / "level", MATH | {"level": "Level ?"}, level=2)
    assert task.level == 2


@pytest.mark.parametrize(
    ("name", "options", "level"),
    [
        ("train-easy/numbers__gcd.txt", {}, 1),
        ("train-hard/numbers__gcd.txt", {}, 3),
        ("train-medium.txt", {}, 2),
        ("interpolate/numbers__gcd.txt", {"level": 2}, 2),
        ("train-easy/numbers__gcd.txt", {"level": 4}, 4),
    ],
)
def test_deepmind_mathematics(tmp_path, name, options, level):
    lines = ["What is 2 + 2?", "4", "Calculate the gcd of 4 and 6.", "2"]
    done, tasks = convert(tmp_path, *lines, name=name, **options)
    assert [(task.line, task.answer, task.level) for task in tasks] == [(1, "4", level), (2, "2", level)]
    assert tasks[0].prompt == ANSWER_ONLY.format(question="What is 2 + 2?")
    assert tasks[0].prompt.endswith("\n\nProblem:\nWhat is 2 + 2?\n\nAnswer:")
    assert (done.format, done.num_read) == ("deepmind", 2)


def test_limit(tmp_path):
    done, _ = convert(tmp_path, GSM8K, GSM8K, "not read", limit=2)
    assert done.num_read == 2


@pytest.mark.parametrize(
    ("rows", "message", "options"),
    [
        ([GSM8K, "{"], "line 2: not valid JSON", {}),
        (
            [{"text": "x"}],
            r"line 1: format: expected the keys .* got \['text'\]; .*--format .gsm8k, math, deepmind",
            {},
        ),
        ([GSM8K, GSM8K | {"answer": "72"}], "line 2: answer: expected a last line `#### value`, got none", {}),
        ([GSM8K, GSM8K | {"question": " "}], "line 2: question: expected text, got ' '", {}),
        ([MATH, MATH | {"solution": "half"}], r"line 2: solution: expected an answer in \\boxed\{\}, got none", {}),
        (
            [MATH | {"level": "Level ?"}],
            "line 1: level: expected 'Level 1' to 'Level 9', or 1 to 9, got 'Level .'; .*--skip-unusable",
            {},
        ),
        (
            ["q", "4"],
            "line 1: level: expected a file in one of the folders train-easy.*--level",
            {"format": "deepmind"},
        ),
        (["q", "4", "q"], "source: expected a question and an answer in turn, got 3 lines", {"format": "deepmind"}),
        ([], "got an empty file", {}),
    ],
)
def test_source_that_cannot_be_converted_is_refused(tmp_path, rows, message, options):
    with pytest.raises(DataError, match=message) as caught:
        convert(tmp_path, *rows, **options)
    assert caught.value.param == "source"
    assert not (tmp_path / "target.jsonl").exists()


def test_existing_target_is_never_overwritten(tmp_path):
    (tmp_path / "target.jsonl").write_text("mine")
    with pytest.raises(DataError, match=r"target.jsonl exists already"):
        convert(tmp_path, GSM8K)
    assert (tmp_path / "target.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("so $\\boxed 3$", "3"),
        ("so $\\fbox{3}$", "3"),
        ("so $\\boxed{\\$18.90}$", "\\$18.90"),
        ("so \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ],
)
def test_boxes_of_math_and_integer_levels(tmp_path, solution, answer):
    _, (task,) = convert(tmp_path, {"problem": "p", "solution": solution, "level": 2, "answer": answer})
    assert (task.answer, task.level) == (answer, 2)
    assert judge(FinalValueVerifier(), task, solution) == [("correct", "equal")]


def test_unusable_rows_are_left_out_on_request_and_named(tmp_path):
    rows = [MATH | {"level": "Level ?"}, MATH, MATH | {"level": True}]
    done, (task,) = convert(tmp_path, *rows, skip_unusable=True)
    assert (task.level, done.num_read, done.num_written) == (3, 3, 1)
    assert [problem.partition(": expected")[0] for problem in done.skipped] == ["line 1: level", "line 3: level"]
    with pytest.raises(DataError, match="1 row is unusable"):
        convert_tasks(tmp_path / "source.jsonl", tmp_path / "other.jsonl", skip_unusable=True, limit=1)
