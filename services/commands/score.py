"""`wmss score`: a file's entropies under some checkpoints, from a service or from this process. Loads torch."""

import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from openai import OpenAI
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from services.catalog.names import local_store, resolve_anywhere
from services.commands import client as service
from services.commands.watch import JobView
from services.results.scores import json_lines
from services.settings import Settings
from wmss.choices import EngineChoice, TableFormat
from wmss.config import ScoreSpec, parse_scores
from wmss.errors import WmssError
from wmss.ids import LOCAL, new_id
from wmss.rounds.in_process import PassingJournal, in_process
from wmss.rounds.journal import Artifacts, required
from wmss.rounds.phase_records import RequestScored
from wmss.rounds.phases import score_phases
from wmss.rounds.scores.request import ScoreJob, run_scores
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
    _show(console, spec, tables, files)


def score_here(spec: ScoreSpec, output: Output, settings: Settings, console: Console, *, engine: EngineChoice) -> None:
    """The same in this process. Models may be folders anywhere; scores are shared with the service of the home."""
    files = output.files(spec)
    with local_store(settings) as store:
        found = resolve_anywhere(spec, store, settings)
    with tempfile.TemporaryDirectory() as scratch, JobView(console, "in this process") as view:
        job = ScoreJob(
            id=new_id(LOCAL),
            spec=spec,
            checkpoints=tuple(found[f"models.{number}"] for number in range(len(spec.models))),
            file=Path(spec.file),
            folder=Path(scratch),
            cache=settings.root / "cache",
        )
        journal = ViewedJournal(view)
        run_scores(job, in_process(engine, spec.dtype), journal)
    scored = [required(journal, phase, RequestScored) for phase in score_phases(spec)[1:]]
    for (number, level), file in files.items():
        table = scored[number].table if level == "sample" else scored[number].tokens
        assert table is not None, "a table of tokens was asked for"
        if output.format == "parquet":
            shutil.copyfile(table, file)
        else:
            with file.open("w", encoding="utf-8") as lines:
                lines.writelines(json_lines(table))
    _show(console, spec, [EntropyTable.load(each.table) for each in scored], files)


class ViewedJournal(PassingJournal):
    """Draws the phases of this process as those of a service's job are drawn."""

    def __init__(self, view: JobView) -> None:
        super().__init__(tell=self._tell_view, progress=self._progress)
        self._view = view
        self._phases: dict[str, dict[str, Any]] = {}

    def start(self, phase: str) -> None:
        self._change(phase, {"name": phase, "status": "running", "started_at": time.time(), "finished_at": None})

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        super().finish(phase, artifacts)
        self._change(phase, {"status": "finished", "finished_at": time.time()})

    def _progress(self, phase: str, done: int, total: int) -> None:
        self._change(phase, {"done": done, "total": total})

    def _change(self, phase: str, values: Mapping[str, Any]) -> None:
        self._phases[phase] = {"done": 0, "total": 0} | self._phases.get(phase, {}) | dict(values)
        self._view.update(None, list(self._phases.values()), [])

    def _tell_view(self, message: str) -> None:
        self._view.update(None, [], [SimpleNamespace(type="message", level="info", message=message)])


def _show(console: Console, spec: ScoreSpec, tables: list[EntropyTable], files: Mapping[tuple[int, str], Path]) -> None:
    """One row per checkpoint; beside the first one, how entropies differ from its."""
    first, *others = tables
    shown = Table("model", "mean entropy", "NLL", "top-1", *(["mean ΔH", "fell on"] if others else []))
    for name, table in zip(spec.models, tables, strict=True):
        cells = [f"{table.mean_entropy:.4f}", f"{table.token_nll:.4f}", f"{table.token_top1:.1%}"]
        if others:
            change = entropy_change(first, table)
            cells += ["", ""] if table is first else [f"{change.mean():+.4f}", f"{np.mean(change < 0):.1%}"]
        shown.add_row(escape(name), *cells)
    console.print(shown)
    unit = f"entropy and NLL in nat; {len(first.line):,} samples, {int(first.num_targets.sum()):,} supervised tokens"
    console.print(f"{unit}; ΔH against {spec.models[0]}" if others else unit, highlight=False, markup=False)
    for file in files.values():
        console.print(str(file), highlight=False, markup=False, soft_wrap=True)
