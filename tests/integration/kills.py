"""SIGKILL of `wmss serve` at random moments over training jobs, again and again; each job must go on and succeed.

    python -m tests.integration.kills --kills 20 --jobs 5 --out kills.jsonl

Writes a row for each kill and one for each job. Exits 1 if a job did not succeed.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from services.jobs.store import Store
from services.jobs.tables import EventRow
from services.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.integration.stack import Stack, kill, running, stop, submit, wait_for, wait_for_end
from wmss.tasks.arithmetic import make_problems, write_jsonl

MAX_DELAY_S = 40.0
"""Latest kill after `Ready`, which mostly hits a driver that starts. Every other kill waits for a step to be made and
comes within a quarter of this."""


def rows(
    home: Path, files: Path, *, num_kills: int, num_jobs: int, num_steps: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A row for each kill, then one for each job; the model `qwen3` is in the home."""
    draw = random.Random(seed)
    store = Store(Settings(home=home).database)
    jobs: list[str] = []
    for number in range(1, num_kills + 1):
        with running(home) as stack:
            while len(jobs) < num_jobs:
                jobs.append(_submit(stack, files, num_steps))
            in_training = number % 2 == 0
            if in_training:
                _wait_for_a_step(store, jobs)
            delay_s = draw.uniform(0.0, MAX_DELAY_S / 4 if in_training else MAX_DELAY_S)
            time.sleep(delay_s)
            kill(stack)
        yield {"kill": number, "in_training": in_training, "delay_s": round(delay_s, 1)} | _states(store, jobs)
    with running(home) as stack:
        for job_id in jobs:
            wait_for_end(stack, job_id, 600)
        stop(stack)
    for row in map(store.job, jobs):
        assert row is not None
        events = store.events(row.id, after=None, limit=10_000)[0]
        steps = sorted(event.data["step"] for event in events if event.type == "metrics")
        whole = steps == list(range(1, num_steps + 1))
        yield {"job": row.id, "state": row.state, "attempts": row.attempt, "every_step_once": whole, "error": row.error}
    store.close()


def _submit(stack: Stack, files: Path, num_steps: int) -> str:
    knobs = {"learning_rate": 1e-3, "batch_size": 16, "n_epochs": 999, "max_steps": num_steps}
    method = {"type": "supervised", "supervised": {"hyperparameters": knobs}}
    return str(submit(stack, files, method=method, checkpointing={"every_steps": 5}))


def _wait_for_a_step(store: Store, jobs: list[str]) -> None:
    before = _num_steps(store, jobs)
    wait_for(lambda: _num_steps(store, jobs) > before, timeout_s=180, what="another step")


def _num_steps(store: Store, jobs: list[str]) -> int:
    with store.sessions() as session:
        steps = select(func.count()).where(EventRow.type == "metrics", EventRow.job_id.in_(jobs))
        return int(session.scalar(steps) or 0)


def _states(store: Store, jobs: list[str]) -> dict[str, Any]:
    found = [row for row in map(store.job, jobs) if row is not None]
    rows: dict[str, Any] = {"states": [row.state for row in found], "attempts": [row.attempt for row in found]}
    return rows | {"steps": _num_steps(store, jobs)}


def main() -> int:
    """Run it in a home of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("kills.jsonl"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wmss-kills-") as folder, options.out.open("w") as out:
        home = Path(folder) / "home"
        make_checkpoint(home / "models" / "qwen3", "qwen3", seed=1)
        write_jsonl(make_problems(96, seed=1), Path(folder) / "train.jsonl")
        failed = 0
        for row in rows(
            home,
            Path(folder),
            num_kills=options.kills,
            num_jobs=options.jobs,
            num_steps=options.steps,
            seed=options.seed,
        ):
            print(json.dumps(row), file=out, flush=True)
            failed += "job" in row and row["state"] != "succeeded"
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
