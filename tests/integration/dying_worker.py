"""A training worker that kills itself, by SIGKILL, before it writes down certain steps: at each once, or always."""

import json
import os
import signal
import time
from pathlib import Path

from services.driver import worker

FOLDER = "WMSS_TEST_DEATHS"
"""Variable with a folder: a file `step-N` in it kills one worker at step N, a step in `always.json` every one."""
SETTLE_S = 3.0
"""Time in which Ray Train takes note of the checkpoint before."""


def train_worker(config):
    folder, log = Path(os.environ[FOLDER]), worker.RayHost.log
    always = json.loads((folder / "always.json").read_text())

    def dying(self, metrics):
        step = int(metrics["step"])
        once = folder / f"step-{step}"
        if step in always or once.exists():
            once.unlink(missing_ok=True)
            with (folder / "deaths").open("a") as file:
                file.write(f"{step}\n")
            time.sleep(SETTLE_S)
            os.kill(os.getpid(), signal.SIGKILL)
        log(self, metrics)

    worker.RayHost.log = dying
    return worker.train_worker(config)
