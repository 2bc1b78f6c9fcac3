"""A whole service that is killed, and one in a home with odd characters: each job goes on, none fails for it."""

import shutil
import stat
import tempfile
from pathlib import Path

import pytest

from services.control.ray_temp import ray_temp_folder
from tests.integration import kills
from tests.integration.stack import running, stop, submit, wait_for_end

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def test_a_home_with_any_characters_and_of_any_length_runs_jobs(tmp_path, checkpoints, files):
    home = tmp_path / ('h me ü "q" ' + "x" * 100) / ("y" * 60)
    shutil.copytree(checkpoints["qwen3"], home / "models" / "qwen3")
    with running(home) as stack:
        folder = ray_temp_folder(home).parent
        assert folder.parent == Path(tempfile.gettempdir()) and stat.S_IMODE(folder.stat().st_mode) == 0o700
        knobs = {"learning_rate": 1e-3, "batch_size": 16, "n_epochs": 999, "max_steps": 5}
        job_id = submit(stack, files, method={"type": "supervised", "supervised": {"hyperparameters": knobs}})
        job = wait_for_end(stack, job_id)
        assert (job.status, job.x_attempt) == ("succeeded", 1), job.error
        stop(stack)
    assert not folder.exists()


def test_jobs_survive_a_service_that_is_killed_again_and_again(tmp_path, checkpoints, files):
    home = tmp_path / "home"
    shutil.copytree(checkpoints["qwen3"], home / "models" / "qwen3")
    seen = list(kills.rows(home, files, num_kills=3, num_jobs=2, num_steps=60, seed=5))
    ended = [(row["state"], row["every_step_once"]) for row in seen if "job" in row]
    assert ended == [("succeeded", True)] * 2, seen
