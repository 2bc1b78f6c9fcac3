"""Chains of additions and subtractions, solved step by step: easy to verify, hard enough to plateau on.

user:       7+15-4
assistant:  7+15=22 22-4=18 #### 18
"""

import json
from pathlib import Path

import numpy as np

from wmss.data.answers import FINAL_MARK


def make_problem(rng: np.random.Generator, *, num_steps: int, max_operand: int = 9) -> dict[str, list[dict[str, str]]]:
    """One problem of `num_steps` operations as a chat row; every intermediate result is >= 0."""
    value = int(rng.integers(1, max_operand + 1))
    expression, steps = str(value), []
    for _ in range(num_steps):
        operand = int(rng.integers(1, max_operand + 1))
        sign = "-" if operand <= value and rng.random() < 0.5 else "+"
        result = value - operand if sign == "-" else value + operand
        expression += f"{sign}{operand}"
        steps.append(f"{value}{sign}{operand}={result}")
        value = result
    return {
        "messages": [
            {"role": "user", "content": expression},
            {"role": "assistant", "content": f"{' '.join(steps)} {FINAL_MARK} {value}"},
        ]
    }


def make_problems(
    num_problems: int, *, seed: int, min_steps: int = 2, max_steps: int = 5, exclude: frozenset[str] = frozenset()
) -> list[dict[str, list[dict[str, str]]]]:
    """Distinct problems, none of whose questions is in `exclude`, with a uniform number of steps."""
    rng = np.random.default_rng(seed)
    rows: dict[str, dict[str, list[dict[str, str]]]] = {}
    while len(rows) < num_problems:
        row = make_problem(rng, num_steps=int(rng.integers(min_steps, max_steps + 1)))
        if question(row) not in exclude:
            rows.setdefault(question(row), row)
    return list(rows.values())


def question(row: dict[str, list[dict[str, str]]]) -> str:
    """The user's text of a chat row."""
    return row["messages"][0]["content"]


def write_jsonl(rows: list[dict[str, list[dict[str, str]]]], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
