"""Model and data of the demo on real weights. The demos themselves: tests/integration/test_demo.py."""

import io
import json

import pytest
from rich.console import Console

from services.commands import demo_wmss as demo
from wmss.errors import WmssError


def console():
    return Console(file=io.StringIO(), width=200)


def test_every_fourth_row_is_held_out(tmp_path):
    source = tmp_path / "source.jsonl"
    rows = [{"question": f"q{number}", "answer": f"#### {number}"} for number in range(1, 31)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = console()
    files = demo._real_data(tmp_path, source, 20, said)
    asked = [[json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()] for file in files]
    assert asked[1] == ["q4", "q8", "q12", "q16", "q20"]
    assert asked[0] == [f"q{number}" for number in range(1, 21) if number % 4]
    assert "15 rows to train on, 5 held out" in said.file.getvalue()
    with pytest.raises(WmssError, match=r"--data: expected at least 16 rows, got 15 \(--limit 15\)"):
        demo._real_data(tmp_path, source, 15, console())


def test_real_model_is_added_once(checkpoints, tmp_path):
    home = demo.home_of(demo.Settings(home=tmp_path))
    folder = demo._real_model(home, str(checkpoints["qwen3"]), console())
    assert folder == tmp_path / "demo" / "models" / "qwen3"
    said = console()
    assert demo._real_model(home, str(checkpoints["qwen3"]), said) == folder
    assert "made earlier" in said.file.getvalue()
