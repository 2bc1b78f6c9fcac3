"""From stored results to the tables of docs/benchmarks.md.

python -m benchmarks --report
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import Line

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- results: made by `python -m benchmarks --report` -->", "<!-- end of results -->"


def stored() -> list[Path]:
    """All stored results, those that were measured last at the end."""
    told_elsewhere = ("families-", "jobs-")  # in a page of their own, in words above the tables
    files = [file for file in RESULTS.glob("*.jsonl") if not file.name.startswith(told_elsewhere)]
    files.sort(key=lambda file: str(load(file)[0]["environment"]["measured"]))
    if not files:
        raise SystemExit(f"{RESULTS.name}: no stored results; run `python -m benchmarks --save` first")
    return files


def load(file: Path) -> list[Line]:
    """Lines of a result file; the first holds the environment."""
    return [json.loads(row) for row in file.read_text(encoding="utf-8").splitlines()]


def write(files: Sequence[Path], page: Path = PAGE) -> None:
    """Put the tables of result files between the page's marks.

    Of a benchmark in several files, the last one's rows; but all of a GPU, since each holds some arms on one card.
    """
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{render(files)}\n{END}{after}", encoding="utf-8")


def render(files: Sequence[Path]) -> str:
    """Where the figures come from, every target with its verdict, then every arm."""
    source: dict[str, Path] = {}
    lines = {file: _lines(file) for file in files}
    for file in files:
        source |= {line["benchmark"]: file for line in lines[file]}
    rows = [line for file in files for line in lines[file] if source[line["benchmark"]] == file]
    rows.sort(key=lambda line: list(source).index(line["benchmark"]))
    parts = [
        *(_origin(file, [name for name in source if source[name] == file]) for file in dict.fromkeys(source.values())),
        "### Targets",
        _table(
            ["target", "benchmark", "arm", "setting", "figure", "measured", "must be", "aim", "met"],
            [row for line in rows for row in _verdicts(line)],
        ),
    ]
    parts += [f"**{line['benchmark']} failed its gate:** {line['failed']}" for line in rows if "failed" in line]
    parts += [f"{line['benchmark']}, {line['arm']}: skipped, {line['skipped']}." for line in rows if "skipped" in line]
    for name in dict.fromkeys(line["benchmark"] for line in rows):
        measured = [line for line in rows if line["benchmark"] == name and "figures" in line]
        notes = dict.fromkeys(f"{line['arm']}: {line['note']}." for line in measured if "note" in line)
        parts += [
            f"### {name}",
            _table(
                ["arm", "setting", "s min", "s median", "s user", "peak MiB", "figures"],
                [_arm(line) for line in measured],
            ),
            *notes,
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lines(file: Path) -> list[Line]:
    """The rows of a file; those of a GPU have the file in the benchmark's name."""
    rows = [line for line in load(file) if "environment" not in line]
    return [
        line | {"benchmark": f"{line['benchmark']} in {file.stem}"} if line["benchmark"].startswith("gpu_") else line
        for line in rows
    ]


def _origin(file: Path, names: Sequence[str]) -> str:
    environment = load(file)[0]["environment"]
    return (
        f"From `benchmarks/results/{file.name}`: {', '.join(names)}; commit {environment['commit']}, "
        f"{environment['machine']}, torch {environment['torch']}, {environment['measured'][:10]}; load of the machine "
        f"at the start {environment['load_1_min']}."
    )


def _verdicts(line: Line) -> list[list[str]]:
    rows = []
    for figure, target in line.get("targets", {}).items():
        bounds = [f"{sign} {target[key]}" for key, sign in (("at_least", "≥"), ("at_most", "≤")) if key in target]
        rows.append(
            [
                target["id"],
                line["benchmark"],
                line["arm"],
                _setting(line),
                figure.replace("_", " "),
                str(line["figures"][figure]),
                ", ".join(bounds),
                str(target.get("aim", "")),
                "yes" if target["passed"] else "**no**",
            ]
        )
    return rows


def _arm(line: Line) -> list[str]:
    figures = ", ".join(
        f"{name.replace('_', ' ')} {'–' if value is None else format(value, 'g')}"
        for name, value in line["figures"].items()
    )
    numbers = [str(line.get(key, "")) for key in ("s_min", "s_median", "s_user_min", "peak_mib")]
    return [line["arm"], _setting(line), *numbers, figures]


def _setting(line: Line) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in line["setting"].items())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    if not rows:
        return ""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
