"""From the rows of a sweep to docs/models.md."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.families.tiny import names
from benchmarks.report import RESULTS, ROOT

PAGE = ROOT / "docs" / "models.md"
NOT_RUN = "not run"
COLUMNS = ("trains", "merge", "saved", "engine", "preflight")


def load(file: Path) -> list[dict[str, Any]]:
    """Rows of a file; none if there is none."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def stored() -> Path:
    """The file of rows in benchmarks/results that has most of them."""
    files = sorted(RESULTS.glob("families-*.jsonl"), key=lambda file: (len(load(file)), file.name))
    if not files:
        raise SystemExit(f"{RESULTS.name}: no stored rows; run `python -m benchmarks.families` first")
    return files[-1]


def write(file: Path, page: Path = PAGE) -> None:
    """Write the page anew."""
    page.write_text(render(file), encoding="utf-8")


def render(file: Path) -> str:
    """The whole page, from the rows and the list of families."""
    merged: dict[str, dict[str, Any]] = {family: {} for family in names()}
    for row in load(file):
        merged.setdefault(row["family"], {}).update(row)
    cells = {family: _cells(row) for family, row in merged.items()}
    table = [f"| `{family}` | {' | '.join(row[column] for column in COLUMNS)} |" for family, row in cells.items()]
    notes = [f"- `{family}`: {'; '.join(found)}" for family, row in merged.items() if (found := _notes(row))]
    intro = INTRO.format(families=len(merged), file=file.name)
    return "\n".join([intro, _counted(cells), "", *HEAD, *table, "", "## Why", "", *notes]) + "\n"


def _cells(row: Mapping[str, Any]) -> dict[str, str]:
    model = row.get("model")
    if model is None:
        cells = dict.fromkeys(COLUMNS, NOT_RUN)
    else:
        cells = {column: model.get(column, {}).get("is", "**no answer**") for column in ("trains", "merge", "saved")}
        whole, lora = (model.get(name, {}).get("is", "**no answer**") for name in ("preflight", "preflight_lora"))
        cells["preflight"] = whole if whole == lora else f"{whole}, with LoRA {lora}"
    engine = row.get("engine", {}).get("is", NOT_RUN)
    cells["engine"] = f"engine: {engine}" if engine == "not shown here" else engine
    return {column: f"**{cell}**" if _is_bad(cell) else cell for column, cell in cells.items()}


def _is_bad(cell: str) -> bool:
    return any(word in cell for word in ("wrong", "fails", "refused")) and not cell.startswith("**")


def _notes(row: Mapping[str, Any]) -> list[str]:
    """Causes of what is not as it should be."""
    answers = {**row.get("model", {}), "engine": row.get("engine", {})}
    ended = answers.pop("ended", None)
    notes = [f"its process ended {ended}"] if ended else []
    for column, answer in answers.items():
        said = answer.get("is", "")
        if _is_bad(said) or said == "not shown here" or "PEFT does not" in answer.get("why", ""):
            notes.append(f"{column}: {_cut(answer.get('why', ''))}")
    return notes


def _cut(text: str) -> str:
    flat = " ".join(text.split()).replace("<", "\\<").replace("|", "\\|")
    return flat if len(flat) <= 200 else flat[:200] + "..."


def _counted(cells: Mapping[str, Mapping[str, str]]) -> str:
    parts = []
    for column in COLUMNS:
        counts = Counter(row[column].strip("*") for row in cells.values())
        parts.append(f"{column}: " + ", ".join(f"{count} {said}" for said, count in counts.most_common()))
    return "Counts: " + "; ".join(parts) + "."


HEAD = (
    "| architecture | trains | LoRA merge | saved = loaded | engine entropy | preflight |",
    "| --- | --- | --- | --- | --- | --- |",
)
INTRO = """# Model families

Written by `python -m benchmarks.families --write-docs` from `benchmarks/results/{file}`; do not edit it
by hand.

These are the {families} causal language models that both vLLM's registry and transformers list. Each was tried as a
tiny random model: the default configuration of its class with the sizes made small (two to four layers, one of each
kind that the family has; windows of 8 tokens). So the table says what the code does with a family. It says nothing of
speed, and nothing of options that are off by default; only windows are on where a family has them (not for the
engine, which refuses those of Qwen).

- **trains**: `packed` means that samples packed into one row give the hidden states and the loss that each sample has
  alone under the family's own (eager) attention, within 1e-4, relative. `padded` means that packing would not, so jobs
  train the family on padded rows, which do; `packing` may stay on, the job sees it by itself.
- **LoRA merge**: `equal` means that a merged adapter is the model that PEFT makes of the same matrices, in memory and
  in the saved folder.
- **saved = loaded**: `equal` means that plain transformers loads the exported folder and finds every tensor bit for
  bit, and the logits.
- **engine entropy**: `equal` means that the entropy of every token from vLLM is PyTorch's, within 0.001 nat.
  `engine: not shown here` means that vLLM did not run the tiny model on a CPU.
- **preflight**: whether a job on the model is accepted, and with LoRA where that differs.

Run it again with `python -m benchmarks.families` (two to ten seconds a family, in a process of its own with 4 GB and
120 s), then `python -m benchmarks.families --engine` (20 s a family on an idle core) and `--write-docs`. Rows that are
there are not made again; `--family NAME ...` makes some only.
"""
