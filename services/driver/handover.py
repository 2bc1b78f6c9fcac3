"""How workers that wait learn what to train: from a file in the run's folder. Imports neither torch nor Ray."""

import tempfile
import time
from pathlib import Path

from wmss.training.run import TrainingRun

POLL_S = 0.1


def fresh_file(folder: Path) -> Path:
    """An empty file in a run's folder, of a name that was not there before: no other attempt writes to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix="run-", suffix=".json", delete=False) as file:
        return Path(file.name)


def hand_over(run: TrainingRun | None, file: Path) -> None:
    """Tell the workers that wait at an existing, empty `file` what to train; None = nothing, they leave."""
    # In place, and under a name that is there from the beginning: a network file system may hide for half a minute
    # that a file exists, but shows what one holds whenever it is opened.
    with file.open("w", encoding="utf-8") as handle:
        handle.write(("null" if run is None else run.model_dump_json()) + "\n")


def awaited_run(file: Path) -> TrainingRun | None:
    """What `hand_over` wrote, as soon as it is there."""
    while not (text := file.read_text(encoding="utf-8")).endswith("\n"):  # half of it may be seen
        time.sleep(POLL_S)
    return None if text == "null\n" else TrainingRun.model_validate_json(text)
