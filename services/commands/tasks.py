"""`wmss tasks`: the files of a shipped task, with levels, and a job that reads them. Loads torch."""

import os
from pathlib import Path

from rich.console import Console

from wmss.errors import WmssError
from wmss.tasks.files import (
    HELD_OUT_FILE,
    MOST_LEVELS,
    SHIPPED_TASKS,
    TRAINING_FILE,
    VERIFIERS,
    ShippedTask,
    write_task_files,
)

JOB_FILE = "job.toml"
MOST_ROWS = 100_000
"""Of each level."""


def write_tasks(
    name: str, folder: Path, console: Console, *, training: int, validation: int, test: int, levels: int, seed: int
) -> None:
    """Write a training file, a held-out file and a job to `folder`. Counts of rows are of each level."""
    if name not in SHIPPED_TASKS:
        raise WmssError(f"NAME: expected one of {', '.join(SHIPPED_TASKS)}, got {name!r}; choose one of these")
    task: ShippedTask = name
    _check("--training", training, 1, MOST_ROWS)
    _check("--validation", validation, 1, MOST_ROWS)
    _check("--test", test, 0, MOST_ROWS)
    _check("--levels", levels, 1, MOST_LEVELS[task], f" for {task}")
    _check("--seed", seed, 0, 2**63 - 1)
    for file in (TRAINING_FILE, HELD_OUT_FILE, JOB_FILE):
        if os.path.exists(folder / file):
            raise WmssError(f"--out: {folder / file} exists already and is not overwritten; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sizes = {"num_training": training, "num_validation": validation, "num_test": test, "num_levels": levels}
        write_task_files(folder, task, seed=seed, **sizes)
        (folder / JOB_FILE).write_text(_job(task), encoding="utf-8")
    except OSError as error:
        raise WmssError(f"--out: cannot write to {folder}: {error.strerror}; name another folder") from error
    except ValueError as error:
        raise WmssError(f"--training, --validation, --test: {error}; ask for fewer rows of each level") from error
    for file, rows in (
        (TRAINING_FILE, f"{levels * training:,} rows"),
        (HELD_OUT_FILE, f"{levels * validation:,} rows for validation, {levels * test:,} for test"),
        (JOB_FILE, f"a job with the verifier {VERIFIERS[task]}"),
    ):
        console.print(f"{folder / file}  {rows}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Next: wmss check {folder / JOB_FILE} --model MODEL", highlight=False, markup=False, soft_wrap=True)


def _check(option: str, number: int, least: int, most: int, where: str = "") -> None:
    if not least <= number <= most:
        raise WmssError(f"{option}: expected {least} to {most:,}{where}, got {number:,}; choose a number in this range")


def _job(task: ShippedTask) -> str:
    return (
        f'training_file = "{TRAINING_FILE}"\nvalidation_file = "{HELD_OUT_FILE}"\n\n'
        f'[self_improvement.verifier]\ntype = "{VERIFIERS[task]}"\n'
    )
