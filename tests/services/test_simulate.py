"""`wmss simulate`: its table, its pictures, and its refusals."""

import io
import re
import subprocess
import sys

import pytest
from rich.console import Console

from services.cli import app
from services.commands.simulate import level_starts, simulate
from wmss.errors import WmssError

LADDER = ["--start", "0.3", "--kappa", "0.3", "--levels", "3", "--complexity", "100"]


@pytest.fixture
def run(monkeypatch):
    """The command with a wide console; what it printed."""

    def run(*arguments):
        console = Console(width=80, record=True, file=io.StringIO())
        monkeypatch.setattr("services.cli.console", console)
        app(["simulate", *arguments, "--repetitions", "20"], standalone_mode=False)
        return console.export_text()

    return run


def test_the_table_and_the_recommendation(run):
    text = run(*LADDER, "--samples", "1024")
    clock = next(line for line in text.splitlines() if "clock" in line)
    assert re.search(r"^clock +0\.890 +0\.8\d\d \(0\.8\d\d-0\.\d{3}\) +563 +guaranteed", clock)
    for policy in ("acceptance_target", "uniform", "hard_only", "hard_to_easy"):
        assert re.search(rf"{policy} +none", text)
    assert "takes off above 0.110 and saturates at 0.890" in text
    assert "The easiest level alone, from 0.300, ends at 0.890 (closed form), simulated 0.8" in text
    assert "Recommended: clock" in text
    assert "our reconstruction" in text
    assert "…" not in text  # nothing is cut at 80 columns


def test_levels_one_by_one_are_those_of_a_ratio(run):
    by_ratio = run(*LADDER, "--samples", "1024")
    starts = [part for level in range(3) for part in ("--start", str(0.3 * 0.3**level))]
    assert run(*starts, "--complexity", "100", "--samples", "1024") == by_ratio


def test_nothing_recommended(run):
    text = run(*LADDER, "--samples", "300")
    assert "Recommended: none" in text and "over 563 samples a round" in text
    past_the_fold = run("--start", "0.9", "--complexity", "100", "--samples", "300")
    assert "takes off" not in past_the_fold.split("Recommended")[0]
    assert "The easiest level alone, from 0.900, ends at 0.000 (recursion)" in past_the_fold
    assert "(recursion)" in run("--start", "0.9", "--complexity", "10", "--samples", "300", "--alpha", "0.5")


def test_pictures(run, tmp_path):
    run(*LADDER, "--samples", "1024", "--out", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    text = run(*LADDER, "--samples", "1024", "--out", str(tmp_path / "a.html"))
    assert str(tmp_path / "a.html") in text.replace("\n", "")
    page = (tmp_path / "a.html").read_text()
    assert page.startswith("<!doctype html>") and page.count("<svg") == 1 and page.count("<tr>") == 6
    assert "<p>Recommended: clock</p>" in page and "<td>uniform</td><td>none</td>" in page
    # Nothing is fetched: no scripts, and no addresses but the names of XML's own formats and of licences.
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!#)', page.replace("xlink:href", "xref"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--start", "1.5"], "--start: expected a number between 0 and 1, got 1.5"),
        (["--complexity", "-1"], "--complexity: expected a finite number >= 0, got -1.0"),
        (["--complexity", "nan"], "--complexity: expected a finite number >= 0, got nan"),
        (["--samples", "0"], "--samples: expected at least 1, got 0"),
        (["--samples", "10000000000"], "--samples: expected at most 1,000,000,000, got 10,000,000,000"),
        (["--rounds", "0"], "--rounds: expected at least 1, got 0"),
        (["--rounds", "1001"], "--rounds: expected at most 1,000, got 1,001"),
        (["--repetitions", "0"], "--repetitions: expected at least 1, got 0"),
        (["--repetitions", "100000"], "--repetitions: expected at most 83,333 with 12 rounds, got 100,000"),
        (["--alpha", "0"], "--alpha: expected a number above 0 and at most 1, got 0.0"),
        (["--seed", "-1"], "--seed: expected a number >= 0, got -1"),
        (["--kappa", "0.5"], "--kappa, --levels: expected both or neither"),
        (["--kappa", "0", "--levels", "2"], "--kappa: expected a number above 0 and at most 1, got 0.0"),
        (["--kappa", "0.5", "--levels", "21"], "--levels: expected 1 to 20, got 21"),
        (["--out", "chart.gif"], "--out: expected a file that ends in .png or .html, got chart.gif"),
        (["--out", "no/such/chart.png"], "--out: there is no folder no/such; make it first"),
    ],
)
def test_refusals_name_the_option(options, message):
    given = {"--start": "0.5", "--complexity": "100", "--samples": "1000"}
    given |= dict(zip(options[::2], options[1::2], strict=True))
    arguments = [part for pair in given.items() for part in pair]
    with pytest.raises(WmssError) as refused:
        app(["simulate", *arguments], standalone_mode=False)
    assert str(refused.value).startswith(message)


def test_levels_that_are_given_twice_are_refused():
    with pytest.raises(WmssError, match="--start: expected it once with --kappa"):
        level_starts([0.5, 0.2], 0.5, 2)
    with pytest.raises(WmssError, match="--start: expected it 1 to 20 times"):
        level_starts([0.5] * 21, None, None)
    assert level_starts([0.5], 0.5, 3) == [0.5, 0.25, 0.125]


def test_a_picture_that_cannot_be_written_is_refused(tmp_path):
    folder = tmp_path / "is.png"
    folder.mkdir()
    numbers = {"complexity": 10, "num_samples": 100, "rounds": 2, "repetitions": 2, "alpha": 1.0, "seed": 0}
    with pytest.raises(WmssError, match=r"--out: cannot write .*is\.png: Is a directory"):
        simulate([0.5], folder, Console(quiet=True), **numbers)


def test_the_command_ends_in_one_line_and_loads_no_torch():
    code = (
        "import sys; sys.argv = ['wmss', 'simulate', '--start', '2', '--complexity', '1', '--samples', '9']\n"
        "import atexit; atexit.register(lambda: print('torch' in sys.modules))\n"
        "from services.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "False\n")
    assert done.stderr == "error --start: expected a number between 0 and 1, got 2.0\n"
