"""`wmss score`: a file's entropies under some checkpoints, from a service. Loads torch."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openai import OpenAI
from rich.console import Console

from services.commands import client as service
from services.commands.tables import show_table
from services.commands.watch import JobView
from wmss.choices import TableFormat
from wmss.config import ScoreSpec, parse_scores
from wmss.errors import WmssError
from wmss.scoring.tables import EntropyTable, entropy_change

LEVELS = {"sample": "", "token": ".tokens"}


@dataclass(frozen=True)
class Output:
    """Where the tables go that the caller wants to keep."""

    folder: Path | None
    format: TableFormat

    def files(self, spec: ScoreSpec) -> dict[tuple[int, str], Path]:
        """The files to be made, by the model's place and level; raises `WmssError` if one is there already."""
        if self.folder is None:
            if spec.tokens:
                raise WmssError("--tokens: expected --out DIR as well, the folder to put the tables into")
            return {}
        levels = [level for level in LEVELS if level == "sample" or spec.tokens]
        names = [re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") for name in spec.models]
        files = {
            (number, level): self.folder / f"{number + 1}-{name}{LEVELS[level]}.{self.format}"
            for number, name in enumerate(names)
            for level in levels
        }
        for file in files.values():
            if file.exists():
                raise WmssError(f"--out: {file} exists already; name another folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        return files


def score_there(api: OpenAI, spec: ScoreSpec, output: Output, console: Console) -> None:
    """Have a service score `spec`, whose file is a path here; show how it goes and what came out."""
    files = output.files(spec)
    uploaded = spec.model_dump(mode="json", exclude_unset=True) | {"file": service.upload(api, Path(spec.file))}
    scores_id = service.submit_scores(api, parse_scores(uploaded))
    with JobView(console, scores_id) as view:
        ended = service.watch_scores(api, scores_id, view.update)
    if ended["status"] != "succeeded":
        why = f": {ended['error']['message']}" if ended["error"] else ""
        raise WmssError(f"{scores_id} {ended['status']}{why}")
    for (number, level), file in files.items():
        service.download_scores(api, scores_id, file, model=number, level=level, format=output.format)
    with tempfile.TemporaryDirectory() as scratch:
        tables = []
        for number in range(len(spec.models)):
            table = Path(scratch) / f"{number}.parquet"
            service.download_scores(api, scores_id, table, model=number)
            tables.append(EntropyTable.load(table))
    show(console, spec, tables, files)


def show(console: Console, spec: ScoreSpec, tables: list[EntropyTable], files: Mapping[tuple[int, str], Path]) -> None:
    """One row per checkpoint; beside the first one, how entropies differ from its."""
    first, *others = tables
    rows = []
    for name, table in zip(spec.models, tables, strict=True):
        cells = [name, f"{table.mean_entropy:.4f}", f"{table.token_nll:.4f}", f"{table.token_top1:.1%}"]
        if others:
            change = entropy_change(first, table)
            cells += ["", ""] if table is first else [f"{change.mean():+.4f}", f"{np.mean(change < 0):.1%}"]
        rows.append(cells)
    columns = ("model", "mean entropy", "NLL", "top-1", *(("mean ΔH", "fell on") if others else ()))
    show_table(console, columns, rows)
    unit = f"entropy and NLL in nat; {len(first.line):,} samples, {int(first.num_targets.sum()):,} supervised tokens"
    console.print(f"{unit}; ΔH against {spec.models[0]}" if others else unit, highlight=False, markup=False)
    for file in files.values():
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)
