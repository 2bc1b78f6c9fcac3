"""The page of the theory: its functions exist and are all there, and its example is what the command prints."""

import io
import re
import shlex
from pathlib import Path

from rich.console import Console

import wmss.theory
from services.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "self_improvement_theory.md").read_text()


def test_every_function_is_on_the_page():
    functions = {name for name in wmss.theory.__all__ if name[0].islower()}
    assert functions - set(re.findall(r"`(\w+)`", PAGE)) == set()


def test_the_example_is_what_the_command_prints(monkeypatch):
    command = re.search(r"\$ wmss (simulate .*)", PAGE)[1]
    console = Console(width=80, file=io.StringIO())
    monkeypatch.setattr("services.cli.console", console)
    app(shlex.split(command), standalone_mode=False)
    shown = re.search(r"```text\n(.*?)```", PAGE, flags=re.DOTALL)[1]
    assert console.file.getvalue().split() == shown.split()
