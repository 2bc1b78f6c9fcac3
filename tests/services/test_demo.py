"""Model and data of the demo on real weights, and what every demo prints. The demos themselves:
tests/integration/test_demo.py."""

import io
import json
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from services.commands import demo_service
from services.commands import demo_wmss as demo
from services.settings import Settings
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


def test_next_steps_are_commands_that_a_shell_reads_as_meant(tmp_path, monkeypatch):
    monkeypatch.delenv("WMSS_BASE_URL", raising=False)
    question = """It's 3 + 4 "now" [bold]; what is $HOME?"""
    home = Settings(home=tmp_path / "a home")
    said = Console(file=io.StringIO(), width=40)
    demo_service.show_next_steps(home, "ftjob-1", question, said)
    printed = said.file.getvalue().splitlines()
    commands = [shlex.split(line) for line in printed if line.startswith("  ")]
    assert len(printed) == 6
    assert [words[0] for words in commands] == [f"WMSS_HOME={home.root}"] * 3
    assert all(Path(words[1]).name == "wmss" and Path(words[1]).is_file() for words in commands)
    assert [words[2:] for words in commands] == [
        ["serve"],
        ["chat", "ftjob-1", question, "--temperature", "0"],
        ["export", "ftjob-1", "demo-ftjob-1"],
    ]
    monkeypatch.setenv("WMSS_BASE_URL", "http://elsewhere/v1")
    steps = demo_service.next_steps(home, "ftjob-1", question)
    assert [shlex.split(step)[:3] for step in steps] == [["env", "-u", "WMSS_BASE_URL"]] * 3


def test_the_command_is_named_from_the_folder_it_is_called_in(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.chdir(tmp_path)
    assert " .venv/bin/wmss serve" in demo_service.next_steps(Settings(home=tmp_path), "ftjob-1", "?")[0]
