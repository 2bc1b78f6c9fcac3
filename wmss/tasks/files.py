"""Task files of the shipped tasks: training and held-out rows, levels in equal parts, no instance in both."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from wmss.tasks import arithmetic, graph_hops, graph_path

ShippedTask = Literal["graph_hops", "graph_path", "arithmetic"]
SHIPPED_TASKS: tuple[ShippedTask, ...] = get_args(ShippedTask)
TRAINING_FILE, HELD_OUT_FILE = "tasks_train.jsonl", "tasks_held_out.jsonl"
ARITHMETIC_STEPS = (1, 2, 4, 6)
"""Operations in a problem of level 1, 2, 3, 4."""
MOST_LEVELS: dict[ShippedTask, int] = {
    "graph_hops": len(graph_hops.HOPS),
    "graph_path": 6,  # among 12 nodes; a graph with two nodes 7 apart takes half a second to find, 8 apart 40
    "arithmetic": len(ARITHMETIC_STEPS),
}
VERIFIERS: dict[ShippedTask, str] = {"graph_hops": "exact", "graph_path": "graph_path", "arithmetic": "final_value"}
"""Type of the verifier that tells right responses."""
MAX_FRUITLESS = 1000
"""Draws in a row without a new instance after which a level is taken for exhausted."""

_TRAINING, _HELD_OUT = range(2)


def arithmetic_task(rng: np.random.Generator, *, level: int) -> dict[str, Any]:
    """One chain of additions and subtractions as a chat row, its solution the reference."""
    return {**arithmetic.make_problem(rng, num_steps=ARITHMETIC_STEPS[level - 1]), "level": level}


_MAKERS: dict[ShippedTask, Callable[..., dict[str, Any]]] = {
    "graph_hops": graph_hops.make_task,
    "graph_path": graph_path.make_task,
    "arithmetic": arithmetic_task,
}
_NAMES: dict[ShippedTask, Callable[[dict[str, Any]], str]] = {
    "graph_hops": lambda row: str(row["prompt"]),
    "graph_path": graph_path.instance_digest,
    "arithmetic": arithmetic.question,
}
"""What two rows of one instance have in common."""


def write_task_files(
    folder: Path,
    task: ShippedTask,
    *,
    seed: int,
    num_training: int,
    num_validation: int,
    num_test: int = 0,
    num_levels: int = 4,
) -> tuple[Path, Path]:
    """Write `TRAINING_FILE` and `HELD_OUT_FILE` to `folder`; the same arguments give the same files.

    No instance stands in a file twice or in both. Held-out rows do not change with `num_training`, so that runs of
    different sizes are measured on the same tasks.

    Args:
        num_training, num_validation, num_test: rows of each level.
        num_levels: levels 1 to this number.

    Raises:
        ValueError: a level has not as many instances: `arithmetic` has some hundred of one step.
    """
    make, name = _MAKERS[task], _NAMES[task]
    taken: set[str] = set()

    def rows(kind: int, num_rows: int) -> Iterator[dict[str, Any]]:
        for level in range(1, num_levels + 1):
            rng = np.random.default_rng([seed, kind, level])
            found = fruitless = 0
            while found < num_rows:
                row = make(rng, level=level)
                if name(row) in taken:
                    fruitless += 1
                    if fruitless > MAX_FRUITLESS:
                        raise ValueError(f"{task}: expected {num_rows} more instances of level {level}, found {found}")
                    continue
                taken.add(name(row))
                found, fruitless = found + 1, 0
                yield row

    # Both before any is written: a level with too few instances leaves no file.
    held_out, training = list(rows(_HELD_OUT, num_validation + num_test)), list(rows(_TRAINING, num_training))
    for place, row in enumerate(held_out):
        row["split"] = "validation" if place % (num_validation + num_test) < num_validation else "test"
    paths = folder / TRAINING_FILE, folder / HELD_OUT_FILE
    _write(training, paths[0])
    _write(held_out, paths[1])
    return paths


def _write(rows: list[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
