"""Real Ray Train: workers that die again and again, with and without a newer checkpoint between two deaths."""

import json
import time

import pytest
import ray
import torch

from services.driver import trainer
from services.driver.trainer import Trainer, Workers
from services.failures import WorkersLost
from services.jobs.store import Store
from services.settings import Settings, engine_environment
from tests.integration import dying_worker
from tests.training.runs import SFT, LocalHost, last_weights, make_run, write_samples
from wmss.config.job import Checkpointing
from wmss.training.loop import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore"),  # of Ray Data, which Ray Train sets up for every run
]
TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def samples_file(tmp_path_factory, checkpoints):
    path = tmp_path_factory.mktemp("samples") / "samples.parquet"
    write_samples(path, checkpoints["qwen3"])
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WMSS_HOME", str(home))
        patched.setenv(dying_worker.FOLDER, str(home))
        for name, value in (engine_environment() | {"RAY_AUTH_MODE": "disabled"}).items():
            patched.setenv(name, value)
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield home
        ray.shutdown()


@pytest.fixture
def group(home, monkeypatch):
    """Ray Train for a job of its own, whose workers die as `dies` says."""
    store = Store(Settings(home=home).database)
    store.migrate()
    job_id = f"ftjob-{time.monotonic_ns()}"
    job = store.create_job(job_id, spec={}, paths={}, fine_tuned_model=job_id, request_digest=job_id)
    attempt = store.claim(job, message="Starting")
    monkeypatch.setattr(trainer, "train_worker", dying_worker.train_worker)
    record = {"job_id": job_id, "attempt": attempt, "model_name": "m"}
    yield Trainer(Workers(home / "runs", 1, False, 1, Checkpointing(keep_last=2), record))
    store.close()


def dies(home, *, at=(), always=()):
    (home / "always.json").write_text(json.dumps(always))
    (home / "deaths").write_text("")
    for step in at:
        (home / f"step-{step}").touch()


def deaths(home):
    return [int(line) for line in (home / "deaths").read_text().splitlines()]


def test_six_deaths_with_progress_between_them_change_nothing(home, group, checkpoints, samples_file, tmp_path):
    run = make_run(checkpoints, samples_file, **SFT, checkpoint_every=1)
    undisturbed = LocalHost(tmp_path)
    train(run, undisturbed)
    dies(home, at=range(2, 8))
    group.prepare("sft-1")
    folder = group.train(run, name="sft-1")
    assert deaths(home) == [2, 3, 4, 5, 6, 7]
    trained, expected = last_weights(LocalHost(folder.parent))[0], last_weights(undisturbed)[0]
    assert trained.keys() == expected.keys()
    assert all(torch.equal(trained[name], expected[name]) for name in expected)


def test_four_deaths_without_progress_end_the_run(home, group, checkpoints, samples_file):
    run = make_run(checkpoints, samples_file, **SFT, checkpoint_every=1)
    dies(home, always=[2])
    with pytest.raises(WorkersLost, match="failed more than 3 times"):
        group.train(run, name="sft-2")
    assert deaths(home) == [2, 2, 2, 2]


def test_workers_that_wait_leave_when_they_are_not_needed(home, group):
    """A group that has come lets go of its CPU; the driver does not wait for that."""
    dies(home)
    group.prepare("sft-3")
    waiting = group._waiting
    until(lambda: ray.available_resources()["CPU"] == 1)
    group.prepare("sft-4")
    until(lambda: waiting.ended)
    assert waiting._error is None
    left = group._waiting
    left.abandon()
    until(lambda: left.ended)
    until(lambda: ray.available_resources()["CPU"] == 2)


def until(condition):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)
