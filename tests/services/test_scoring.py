"""`wmss score` in its own process: names, files and figures; with a service it is an integration test."""

import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from wmss.errors import WmssError
from wmss.rounds.scores.request import score_file
from wmss.scoring.tables import EntropyTable, entropy_change
from wmss.tasks.arithmetic import make_problems, write_jsonl


@pytest.fixture
def file(tmp_path):
    write_jsonl(make_problems(12, seed=1), tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


@pytest.fixture
def score(run, file, checkpoints, tmp_path):
    """In this process; `mine` is a model of the home, and any folder may be named."""
    shutil.copytree(checkpoints["qwen3"], tmp_path / "home" / "models" / "mine")
    return lambda *arguments: run("score", file, *arguments, "--local", "--engine", "torch")


def test_two_checkpoints_are_compared_and_their_tables_kept(score, file, checkpoints, tmp_path):
    said = score("mine", checkpoints["qwen3_other"], "--tokens", "--out", tmp_path / "out")
    assert "score_2: " in said
    names = ["1-mine.parquet", "1-mine.tokens.parquet"]
    other = re.sub("[^A-Za-z0-9._-]+", "-", str(checkpoints["qwen3_other"])).strip("-.")
    names += [f"2-{other}.parquet", f"2-{other}.tokens.parquet"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names
    weak, strong = (EntropyTable.load(tmp_path / "out" / name) for name in (names[0], names[2]))
    expected = score_file(file, checkpoints["qwen3"], engine="torch")
    assert weak.entropy.tolist() == expected.entropy.tolist()
    change = entropy_change(weak, strong)
    lines = said.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("model  "))
    first, second = (line.split()[1:] for line in lines[head + 1 : head + 3])
    assert first == [
        f"{weak.mean_entropy:.4f}",
        f"{weak.token_nll:.4f}",
        f"{weak.token_top1:.1%}",
    ]
    assert second[3:] == [f"{change.mean():+.4f}", f"{(change < 0).mean():.1%}"]
    assert len(pq.read_table(tmp_path / "out" / names[1])) == weak.num_targets.sum()
    with pytest.raises(WmssError, match=r"1-mine\.parquet exists already"):
        score("mine", "--out", tmp_path / "out")


def test_lines_of_json_are_the_rows_of_the_tables_and_nothing_is_computed_twice(score, tmp_path):
    first = score("mine", "--tokens", "--out", tmp_path / "parquet")
    again = score("mine", "--tokens", "--out", tmp_path / "lines", "--format", "jsonl")
    assert "from the cache" not in first and "from the cache" in again
    for level in ("", ".tokens"):
        lines = (tmp_path / "lines" / f"1-mine{level}.jsonl").read_text().splitlines()
        table = pq.read_table(tmp_path / "parquet" / f"1-mine{level}.parquet").to_pylist()
        assert [json.loads(line) for line in lines] == table


def test_without_a_folder_the_figures_are_shown_alone(score, tmp_path):
    said = score("mine")
    assert "12 samples" in said and "ΔH" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"home", "train.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "models.0: no model 'nothing'"),
        (["mine"] * 9, "models: List should have at most 8 items"),
        (["mine", "--max-length", 1], "max_length: "),
        (["mine", "--tokens"], "--tokens: expected --out DIR"),
        (
            ["mine", "--max-length", 20, "--too-long", "refuse"],
            "12 rows are unusable in train.jsonl: lines 1, 2, 3 and 9",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(score, arguments, message):
    with pytest.raises(WmssError, match=re.escape(message)):
        score(*arguments)


def test_options_that_would_be_ignored_are_refused(run, file, tmp_path):
    with pytest.raises(WmssError, match="--engine: expected --local"):
        run("score", file, "mine", "--engine", "torch")
    with pytest.raises(WmssError, match="there is no file"):
        run("score", tmp_path / "none.jsonl", "mine")
