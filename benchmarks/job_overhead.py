"""What share of a job is work: the demo's two jobs by phase, and beside those of another checkout.

    python -m benchmarks.job_overhead --against ../before --save benchmarks/results/jobs-COMMIT.jsonl

Each repetition runs `wmss demo` of every checkout in turn, in homes of their own with the same base model, and reads
what the service wrote down. Wall seconds of the whole machine: leave it alone. Work is the steps of training, the calls
that scored, and an evaluation's phase without its engine's start.
"""

import argparse
import contextlib
import itertools
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.measure import GateError, Line, environment
from wmss.tasks.base_model import make_base_model

HERE = Path(__file__).resolve().parent.parent
TIMEOUT_S = 1800
BASE = "arithmetic-base"
"""The demo's name for its base model, which it makes where there is none."""
_ENGINE = re.compile(r"(started in|has its weights after) (\d+\.\d) s")


def run(checkouts: Sequence[Path], *, repetitions: int) -> Iterator[Line]:
    """A line for each job of each demo, then the shares and ratios of the medians.

    Raises:
        GateError: two runs of a job did not take the same steps with the same losses.
    """
    walls: dict[tuple[str, str], list[float]] = {}
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="wmss-jobs-") as folder:
        base, home = Path(folder) / BASE, Path(folder) / "home"
        make_base_model(base)
        for repetition in range(repetitions):
            for checkout in checkouts:
                shutil.copytree(base, home / "demo" / "models" / BASE)
                _demo(checkout, home)
                for job in _jobs(home / "demo" / "wmss.db"):
                    found = job.pop("losses")
                    if losses.setdefault(job["job"], found) != found:
                        raise GateError(f"{checkout}: the {job['job']} job has other losses than before")
                    walls.setdefault((job["job"], str(checkout)), []).append(job["wall_s"])
                    yield {"benchmark": "job_overhead", "commit": _commit(checkout), "repetition": repetition, **job}
                shutil.rmtree(home)
    for name in losses:
        medians = [statistics.median(walls[name, str(checkout)]) for checkout in checkouts]
        for checkout, median in zip(checkouts[1:], medians[1:], strict=True):
            ratio = {"ratio": round(medians[0] / median, 3), "against": _commit(checkout)}
            yield {"benchmark": "job_overhead", "job": name, "arm": "wall", **ratio}


def _demo(checkout: Path, home: Path) -> None:
    command = [sys.executable, "-m", "services.cli", "demo", "--home", str(home)]
    # Before an installed package, which may be this checkout's, in every process that the service starts.
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    subprocess.run(command, cwd=checkout, env=environment, check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)


def _jobs(database: Path) -> Iterator[dict[str, Any]]:
    """The jobs of a home, the weak-driven one first."""
    with closing(sqlite3.connect(database)) as connection:
        for job_id, created_at, finished_at in connection.execute("SELECT id, created_at, finished_at FROM jobs"):
            of_job = "FROM {} WHERE job_id = ? ORDER BY {}"
            phases = connection.execute(
                f"SELECT name, started_at, finished_at {of_job.format('phases', 'started_at')}", [job_id]
            ).fetchall()
            events = connection.execute(
                f"SELECT created_at, type, message, data {of_job.format('events', 'number')}", [job_id]
            ).fetchall()
            told = [(at, kind, message, json.loads(data or "null") or {}) for at, kind, message, data in events]
            yield _account(finished_at - created_at, phases, told)


def _account(wall_s: float, phases: list[tuple[str, float, float]], events: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Where a job's time went; a phase's second number is its work."""
    engines = [(at, *found.groups()) for at, _, message, _ in events if (found := _ENGINE.search(message))]
    work = {}
    for name, began, ended in phases:
        starts = sum(float(seconds) for at, _, seconds in engines if began <= at + 1 and at <= ended)
        own = [data for _, kind, message, data in events if kind == "message" and message.startswith(f"{name}: ")]
        if name == "evaluate":
            work[name] = ended - began - starts
        else:
            work[name] = sum(data.get("total_s", data.get("seconds", 0.0)) for data in own)
    total = sum(work.values())
    return {
        "job": "weak-driven" if any(name.startswith("score") for name, _, _ in phases) else "control",
        "wall_s": round(wall_s, 1),
        "work_s": round(total, 1),
        "work_share": round(total / wall_s, 3),
        "phases_s": {name: [round(ended - began, 1), round(work[name], 1)] for name, began, ended in phases},
        "engines_started": sum(what == "started in" for _, what, _ in engines),
        "engines_loaded": sum(what != "started in" for _, what, _ in engines),
        "engines_s": round(sum(float(seconds) for _, _, seconds in engines), 1),
        "losses": [data["train_loss"] for _, kind, _, data in events if kind == "metrics"],
    }


def _commit(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    """0 if every pair of runs took the same steps."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.job_overhead", description=__doc__)
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout; more than once")
    parser.add_argument("--repetitions", type=int, default=1, help="of every checkout's demo (%(default)s)")
    parser.add_argument("--save", type=Path, help="write the lines to this file as well")
    given = parser.parse_args()
    lines = itertools.chain(
        [{"environment": environment()}], run([HERE, *given.against], repetitions=given.repetitions)
    )
    with contextlib.ExitStack() as stack:
        outputs = [sys.stdout]
        if given.save is not None:
            outputs.append(stack.enter_context(given.save.open("w", encoding="utf-8")))
        try:
            for line in lines:
                for output in outputs:
                    print(json.dumps(line), file=output, flush=True)
        except GateError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
