"""What the command line prints of tables: on a small terminal nothing is cut, elsewhere a row is a line."""

import io
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from services.commands.check import _files, _tasks
from services.commands.demo_service import show_times
from services.commands.tables import show_table
from services.commands.watch import show_jobs, show_rounds, show_samples
from tests.services.test_charts import one_round
from wmss.rounds.before.report import FileFigures, LevelFigures, TaskFigures


def printed(show, *arguments, width=80, terminal=True, **options):
    """The lines that `show` prints on a terminal of a width, without colours and trailing blanks."""
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None, legacy_windows=False)
    show(*arguments, console, **options)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def job(number, **values):
    made = 1_780_000_000 + 60 * number
    return SimpleNamespace(
        **{
            "id": f"ftjob-{number:024x}",
            "status": "succeeded",
            "created_at": made,
            "finished_at": made + 3725,
            "method": SimpleNamespace(type="wmss"),
            "model": "qwen3",
            "fine_tuned_model": f"ft:qwen3:mine:ftjob-{number:024x}",
            "model_extra": {"suffix": "mine"},
        }
        | values
    )


@pytest.fixture
def utc(monkeypatch):
    monkeypatch.setattr("time.localtime", time.gmtime)


PENDING = {"status": "validating_files", "fine_tuned_model": None, "method": None, "model_extra": {}, "model": "[b]"}


def test_jobs_on_a_terminal_of_80_columns(utc):
    assert printed(show_jobs, [job(1), job(2, **PENDING)]) == [
        "id                              status            made              took",
        "ftjob-000000000000000000000001  succeeded         2026-05-28 20:27  1:02:05",
        "    method: wmss  model: qwen3  suffix: mine",
        "    result: ft:qwen3:mine:ftjob-000000000000000000000001",
        "ftjob-000000000000000000000002  validating_files  2026-05-28 20:28  1:02:05",
        "    model: [b]",
    ]


def test_jobs_on_a_narrow_terminal(utc):
    assert printed(show_jobs, [job(1)], width=40) == [
        "id ftjob-000000000000000000000001",
        "    status: succeeded",
        "    made: 2026-05-28 20:27",
        "    took: 1:02:05  method: wmss",
        "    model: qwen3  suffix: mine",
        "    result: ft:qwen3:mine:ftjob-000000000000000000000001",
    ]


def test_jobs_in_a_pipe_are_a_line_each(utc):
    head, *lines = printed(show_jobs, [job(1, suffix="x"), job(2, **PENDING)], terminal=False)
    assert head.split() == ["id", "status", "made", "took", "method", "model", "suffix", "result"]
    assert lines[0].split()[0] == "ftjob-000000000000000000000001"
    assert lines[0].split()[-1] == "ft:qwen3:mine:ftjob-000000000000000000000001"
    assert len(lines) == 2 and "validating_files" in lines[1]


SAMPLES = [
    {
        "line": 1234,
        "weak_entropy": 1.23456,
        "strong_entropy": 0.5,
        "entropy_delta": -0.73456,
        "weight": 0.00123456,
        "times_drawn": 3,
        "completion": "48/2 = 24 clips\nin May. " + "word " * 40,
    },
    {
        "line": 7,
        "weak_entropy": 2.0,
        "strong_entropy": 2.5,
        "entropy_delta": 0.5,
        "weight": 1e-12,
        "times_drawn": 0,
        "completion": None,
    },
]


def test_samples_on_a_terminal_of_80_columns():
    assert printed(show_samples, SAMPLES) == [
        "line  H weak  H strong  ΔH       weight   drawn",
        "1234  1.2346  0.5000    -0.7346  0.00123  3",
        "    completion: 48/2 = 24 clips in May. " + "word " * 18 + "wor...",
        "7     2.0000  2.5000    0.5000   1e-12    0",
    ]


def test_samples_without_entropies_have_no_empty_columns():
    plain = [
        sample | {name: None for name in ("weak_entropy", "strong_entropy", "entropy_delta")} for sample in SAMPLES
    ]
    lines = printed(show_samples, [plain[0] | {"completion": "2"}, plain[1]])
    assert lines == ["line  weight   drawn  completion", "1234  0.00123  3      2", "7     1e-12    0"]


def test_samples_on_a_narrow_terminal_keep_every_figure():
    assert printed(show_samples, SAMPLES[1:], width=40) == [
        "line 7",
        "    H weak: 2.0000  H strong: 2.5000",
        "    ΔH: 0.5000  weight: 1e-12  drawn: 0",
    ]


def test_rounds_on_a_terminal_of_80_columns():
    both = [one_round(1), one_round(2, sampled=(0, 64), reading={"v_minus": 0.1, "v_plus": 0.9})]
    assert printed(show_rounds, both) == [
        "round  label      learned  V₋     V₊     level 1        level 2",
        "1*     improving  8                      16/64 → 10.0%  - → 20.0%",
        "2      improving  8        0.100  0.900  - → 10.0%      16/64 → 20.0%",
        "  accepted/sampled → held-out pass@1 after the round; * the best round",
    ]


def test_many_levels_stand_under_their_round():
    many = one_round(1)
    many["levels"] = [many["levels"][0] | {"level": level, "num_sampled": 4096} for level in range(1, 5)]
    many["held_out"] = {"levels": [{"level": level, "pass_at_1": 1.0} for level in range(1, 5)]}
    assert printed(show_rounds, [many]) == [
        "round  label      learned",
        "1*     improving  32",
        "    level 1: 16/4096 → 100.0%  level 2: 16/4096 → 100.0%",
        "    level 3: 16/4096 → 100.0%  level 4: 16/4096 → 100.0%",
        "  accepted/sampled → held-out pass@1 after the round; * the best round",
    ]


def figures(number):
    return FileFigures(
        num_rows=number,
        num_tokens=number,
        num_targets=number,
        supervised_share=1.0,
        length_min=number,
        length_median=number,
        length_p95=number,
        length_max=number,
        num_cut=number,
        cut_lines=[],
        longest_uncut=number,
    )


def test_files_of_a_dry_run():
    assert printed(lambda console: _files(console, figures(2000), figures(7))) == [
        "tokens      rows   all    supervised    min / median / p95 / max   cut",
        "training    2,000  2,000  2,000 (100%)  2000 / 2000 / 2000 / 2000  2,000",
        "validation  7      7      7 (100%)      7 / 7 / 7 / 7              7",
    ]
    assert printed(lambda console: _files(console, figures(12_345_678), None)) == [
        "tokens    rows        all         supervised",
        "training  12,345,678  12,345,678  12,345,678 (100%)",
        "    min / median / p95 / max: 12345678 / 12345678 / 12345678 / 12345678",
        "    cut: 12,345,678",
    ]


def test_tasks_of_a_dry_run():
    level = LevelFigures(level=None, num_training=12_000, num_validation=1, num_test=2, num_ood=0)
    tasks = TaskFigures(levels=[level], prompt_min=1, prompt_median=2, prompt_max=3, end_token_ids=[], first_prompt="?")
    assert printed(lambda console: _tasks(console, tasks))[:2] == [
        "level      training tasks  validation  test  out of distribution",
        "estimated  12,000          1           2     0",
    ]


def test_times_of_a_demo():
    def show(console):
        show_times({"job": 61.4, "stop": 2.0}, console, {"job": {"sft": 40.0}})

    assert printed(show) == [
        "where the time went  s",
        "job                  61",
        "  sft                40",
        "stop                 2",
    ]


LONG = "ft:" + "very-long-model-name-" * 5 + ":ftjob-000000000000000000000001"


def test_a_name_longer_than_the_terminal_is_one_unbroken_line():
    columns = ("model", "mean entropy", "NLL", "top-1", "mean ΔH", "fell on")
    rows = [("base", "0.4301", "0.2940", "91.7%", "", ""), (LONG, "0.4000", "0.3110", "90.1%", "-0.0301", "70.0%")]
    assert printed(lambda console: show_table(console, columns, rows)) == [
        "model base",
        "    mean entropy: 0.4301  NLL: 0.2940  top-1: 91.7%",
        f"model {LONG}",
        "    mean entropy: 0.4000  NLL: 0.3110  top-1: 90.1%  mean ΔH: -0.0301",
        "    fell on: 70.0%",
    ]
    short = [rows[0], ("tuned", *rows[1][1:])]
    assert printed(lambda console: show_table(console, columns, short)) == [
        "model  mean entropy  NLL     top-1  mean ΔH  fell on",
        "base   0.4301        0.2940  91.7%",
        "tuned  0.4000        0.3110  90.1%  -0.0301  70.0%",
    ]


def test_no_rows():
    assert printed(lambda console: show_table(console, ("model", "owned by"), [])) == []
