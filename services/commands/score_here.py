"""`wmss score --local`: a file's entropies under some checkpoints, computed in this process. Loads torch."""

import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from services.catalog.names import local_store, resolve_anywhere
from services.commands.score import Output, show
from services.commands.watch import JobView
from services.results.scores import json_lines
from services.settings import Settings
from wmss.choices import EngineChoice
from wmss.config import ScoreSpec
from wmss.ids import LOCAL, new_id
from wmss.rounds.in_process import PassingJournal, in_process
from wmss.rounds.journal import Artifacts, required
from wmss.rounds.phase_records import RequestScored
from wmss.rounds.phases import score_phases
from wmss.rounds.scores.request import ScoreJob, run_scores
from wmss.scoring.tables import EntropyTable


def score_here(spec: ScoreSpec, output: Output, settings: Settings, console: Console, *, engine: EngineChoice) -> None:
    """Score `spec`, whose models may be folders anywhere, and show what came out. Scores are shared with the service of
    the home."""
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
    show(console, spec, [EntropyTable.load(each.table) for each in scored], files)


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
        self._view.update(None, [], [SimpleNamespace(type="message", level="info", message=message, data=None)])
