"""Hostile model folders against a service that trains: it must stay small, answer at once, and its job go on.

    python -m tests.integration.hostile_models --folders 1000 --out hostile.json

Each folder is made, named in a dry run, a create, a registration or a completion, and removed. Prints one JSON object;
exits 1 unless every folder was refused, the API grew by less than 100 MB, 99 % of the calls of /healthz took less than
a second, and the job trains, or has trained, in its first attempt.
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2

from services.commands import client as service
from services.jobs.store import Store
from services.settings import Settings
from tests.checkpoints import make_checkpoint
from tests.integration.stack import Stack, metrics, running, stop, submit, wait_for_step
from tests.models.hostile_folders import FAST, SLOW, make
from wmss.tasks.arithmetic import make_problems, write_jsonl

SLOW_EVERY = 100
"""Each of so many folders takes its 20 s."""
CLIENTS = 4
MAX_GROWTH_MB, MAX_P99_S = 100.0, 1.0


class Watch(threading.Thread):
    """Calls /healthz ten times a second, and reads how much memory the API has."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.latencies: list[float] = []
        self.failures = 0
        self.megabytes: list[float] = []
        self._url = stack.endpoint.base_url.removesuffix("/v1") + "/healthz"
        (self._api,) = stack.find("uvicorn")
        self._ended = threading.Event()

    def run(self) -> None:
        with httpx2.Client(timeout=60, trust_env=False) as client:
            while not self._ended.wait(0.1):
                began = time.monotonic()
                try:
                    self.failures += client.get(self._url).status_code != 200
                except httpx2.HTTPError:
                    self.failures += 1
                self.latencies.append(time.monotonic() - began)
                self.megabytes.append(self._api.memory_info().rss / 1e6)

    def stop(self) -> None:
        """Wait for the last call."""
        self._ended.set()
        self.join()


def attack(stack: Stack, files: Path, *, folders: int, seed: int) -> dict[str, Any]:
    """Name so many folders in requests, and say what came of it; the model `qwen3` is in the home."""
    knobs = {"learning_rate": 1e-3, "batch_size": 16, "n_epochs": 999, "max_steps": 100_000}
    method = {"type": "supervised", "supervised": {"hyperparameters": knobs}}
    job = submit(stack, files, method=method, checkpointing={"every_steps": 50})
    wait_for_step(stack, job, 1)
    file = service.upload(stack.client, files / "train.jsonl")
    asking = _Asking(stack, file, seed)
    asking.ask("/fine_tuning/jobs/validate", "qwen3")  # loads what every later request needs
    before = len(metrics(stack, job))
    watch = Watch(stack)
    watch.start()
    began = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        outcomes = Counter(pool.map(asking.about, range(folders)))
    seconds = time.monotonic() - began
    watch.stop()
    store = Store(Settings(home=stack.home).database)
    row = store.job(job)
    store.close()
    assert row is not None
    latencies = sorted(watch.latencies)
    return {
        "folders": folders,
        "seconds": round(seconds),
        "refused": sum(number for (what, refused), number in outcomes.items() if refused),
        "not_refused": {what: number for (what, refused), number in outcomes.items() if not refused},
        "busy": asking.busy,
        "healthz": {
            "calls": len(latencies),
            "failures": watch.failures,
            "median_s": round(statistics.median(latencies), 4),
            "p99_s": round(latencies[int(0.99 * len(latencies))], 3),
            "max_s": round(latencies[-1], 3),
        },
        "api_mb": {
            "before": round(watch.megabytes[0]),
            "most": round(max(watch.megabytes)),
            "after": round(watch.megabytes[-1]),
            "growth": round(max(watch.megabytes) - watch.megabytes[0], 1),
        },
        "job": {"state": str(row.state), "attempt": row.attempt, "steps": len(metrics(stack, job)) - before},
    }


class _Asking:
    """Requests that name a model."""

    def __init__(self, stack: Stack, file: str, seed: int) -> None:
        self.busy = 0
        """Requests that were sent again after 503 `busy`."""
        self._stack, self._file, self._seed = stack, file, seed
        self._http = httpx2.Client(base_url=stack.endpoint.base_url, timeout=600, trust_env=False)

    def about(self, number: int) -> tuple[str, bool]:
        """One hostile folder: what it and the request were, and whether it was refused."""
        draw = random.Random(f"{self._seed} {number}")
        kind = draw.choice(sorted(SLOW if number % SLOW_EVERY == SLOW_EVERY - 1 else FAST))
        route = draw.choice(["/fine_tuning/jobs/validate", "/fine_tuning/jobs", "/weak_checkpoints", "/completions"])
        models = self._stack.home / "models"
        name = f"hostile-{number}"
        folder = make(models / "qwen3", models / name, kind, self._seed + number)
        try:
            answer = self.ask(route, name)
        finally:
            shutil.rmtree(folder)
        if answer.status_code == 200 and route.endswith("validate"):
            return f"{kind} {route}", not answer.json()["valid"]
        # Without its config.json a folder is no model at all.
        return f"{kind} {route} {answer.status_code}", answer.status_code in (400, 404)

    def ask(self, route: str, model: str) -> httpx2.Response:
        """One request, sent again while the service is busy."""
        body: dict[str, Any] = {"model": model}
        if route.startswith("/fine_tuning"):
            body |= {"training_file": self._file, "method": {"type": "supervised"}}
        elif route == "/completions":
            body |= {"prompt": "1+1="}
        while True:
            answer = self._http.post(route, json=body)
            if answer.status_code != 503 or answer.json()["error"]["code"] != "busy":
                return answer
            self.busy += 1
            time.sleep(1)


def is_good(found: dict[str, Any]) -> bool:
    """Whether the service withstood."""
    return bool(
        not found["not_refused"]
        and found["api_mb"]["growth"] < MAX_GROWTH_MB
        and found["healthz"]["p99_s"] <= MAX_P99_S
        and not found["healthz"]["failures"]
        and found["job"]["state"] in ("running", "succeeded")
        and found["job"]["attempt"] == 1
        and found["job"]["steps"] > 0
    )


def in_a_home_of_its_own(folder: Path, *, folders: int, seed: int) -> dict[str, Any]:
    """Start a service below `folder`, attack it, and stop it."""
    home = folder / "home"
    make_checkpoint(home / "models" / "qwen3", "qwen3", seed=1)
    write_jsonl(make_problems(96, seed=1), folder / "train.jsonl")
    with running(home) as stack:
        found = attack(stack, folder, folders=folders, seed=seed)
        stop(stack)
    return found


def main() -> int:
    """As told above."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wmss-hostile-") as folder:
        found = in_a_home_of_its_own(Path(folder), folders=options.folders, seed=options.seed)
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0 if is_good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
