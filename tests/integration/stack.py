"""A running service for tests: `wmss serve` as a user starts it, in a home of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from openai import OpenAI
from ray.job_submission import JobStatus, JobSubmissionClient

from services.commands import client as service
from services.control.supervisor import Endpoint, endpoint_file, free_port, running_endpoint
from services.settings import Settings
from wmss.config import parse_job

ATTACH = "WMSS_TEST_ATTACH"
"""Variable with the home of a running service that the tests are to use in place of one of their own."""
WMSS = [sys.executable, "-m", "services.cli"]
PATIENCE = 4
"""Each deadline is what two idle cores need at most, times this: a slow or busy machine must not fail a test."""


@dataclass
class Stack:
    """A service and its home."""

    process: subprocess.Popen | None
    endpoint: Endpoint
    home: Path
    client: OpenAI

    @property
    def environment(self) -> dict[str, str]:
        """For commands that talk to this service and its Ray."""
        return os.environ | {
            "WMSS_HOME": str(self.home),
            "WMSS_BASE_URL": self.endpoint.base_url,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": self.endpoint.token_path,
        }

    def ray_jobs(self) -> JobSubmissionClient:
        """Ray's Jobs API, with this cluster's token."""
        token = Path(self.endpoint.token_path).read_text()
        return JobSubmissionClient(self.endpoint.dashboard_url, headers={"Authorization": f"Bearer {token}"})

    def run_on_ray(self, *arguments: str, timeout_s: float = 180) -> None:
        """Run a Python module of the tests as a Ray job and wait for it."""
        self.await_on_ray(self.submit_on_ray(*arguments), timeout_s=timeout_s)

    def submit_on_ray(self, *arguments: str) -> str:
        """Start a Python module of the tests as a Ray job; returns the job's name."""
        entrypoint = f"cd {Path.cwd()} && {sys.executable} -m {' '.join(arguments)}"
        return str(self.ray_jobs().submit_job(entrypoint=entrypoint))

    def runs_on_ray(self, submission: str) -> bool:
        """Whether a Ray job goes on; an error with its log if it has ended."""
        jobs = self.ray_jobs()
        assert not jobs.get_job_status(submission).is_terminal(), jobs.get_job_logs(submission)
        return True

    def await_on_ray(self, submission: str, *, timeout_s: float) -> None:
        """Wait until a Ray job has succeeded."""
        jobs = self.ray_jobs()
        deadline = time.monotonic() + PATIENCE * timeout_s
        while not (status := jobs.get_job_status(submission)).is_terminal():
            assert time.monotonic() < deadline, jobs.get_job_logs(submission)
            time.sleep(0.5)
        assert status is JobStatus.SUCCEEDED, jobs.get_job_logs(submission)

    def processes(self) -> list[psutil.Process]:
        """Every process of this service, wherever it hangs in the process tree."""
        return processes_of(self.home)

    def find(self, *words: str) -> list[psutil.Process]:
        """Processes of this service whose command line holds all words."""
        return matching(self.processes(), *words)


def matching(processes: list[psutil.Process], *words: str) -> list[psutil.Process]:
    """Those that live and whose command line holds all words."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if all(word in line for word in words):
                found.append(process)
    return found


def children_of(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Everything below them, also what has another environment than they."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            found += process.children(recursive=True)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Processes whose environment names this home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and process.environ().get("WMSS_HOME") == str(home):
                found.append(process)
    return found


def start(home: Path, **environment: str) -> Stack:
    """Start a service on a free port, with these environment variables, and wait until it is ready."""
    log = (home / "serve.log").open("wb")
    process = subprocess.Popen(
        [*WMSS, "serve", "--home", str(home), "--port", str(free_port())],
        env=os.environ | environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()
    file = endpoint_file(Settings(home=home))
    deadline = time.monotonic() + PATIENCE * 60
    while not file.is_file():
        assert process.poll() is None and time.monotonic() < deadline, (home / "serve.log").read_text()
        time.sleep(0.2)
    endpoint = Endpoint.model_validate_json(file.read_text())
    return Stack(process, endpoint, home, OpenAI(base_url=endpoint.base_url, api_key="any"))


@contextlib.contextmanager
def running(home: Path) -> Iterator[Stack]:
    """A service that is not left running, whatever happens."""
    stack = start(home)
    try:
        yield stack
    finally:
        if stack.process.poll() is None:
            stack.process.terminate()
            stack.process.wait()
        stack.client.close()


def attach(home: Path) -> Stack:
    """A service that another process started and will stop."""
    endpoint = running_endpoint(Settings(home=home))
    assert endpoint is not None, f"no service runs in {home}"
    return Stack(None, endpoint, home, OpenAI(base_url=endpoint.base_url, api_key="any"))


def stop(stack: Stack, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop a service and make sure that nothing of it is left."""
    stack.client.close()
    stack.process.send_signal(number)
    assert stack.process.wait(PATIENCE * 60) == 0, (stack.home / "serve.log").read_text()
    assert processes_of(stack.home) == []


def kill(stack: Stack) -> None:
    """SIGKILL the supervisor; what it leaves is for the next one to end."""
    stack.client.close()
    stack.process.kill()
    stack.process.wait()
    endpoint_file(Settings(home=stack.home)).unlink()  # or the next start would take it for its own


def wait_for(condition, *, timeout_s: float, what: str):
    """Poll until `condition()` is true and return its value."""
    deadline = time.monotonic() + PATIENCE * timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE * timeout_s} s"
        time.sleep(0.5)
    return value


def submit(stack, files, *, validation=False, **values):
    api = stack.client
    values = {"model": "qwen3", "training_file": service.upload(api, files / "train.jsonl")} | values
    if validation:
        values["validation_file"] = service.upload(api, files / "validation.jsonl")
    return service.submit(api, parse_job(values))


def wait_for_end(stack, job_id, timeout_s=300):
    jobs = stack.client.fine_tuning.jobs
    ended = wait_for(
        lambda: (job := jobs.retrieve(job_id)).status in service.TERMINAL and job, timeout_s=timeout_s, what=job_id
    )
    return ended


def messages(stack, job_id):
    return [event.message for event in service.new_events(stack.client, job_id, None) if event.type == "message"]


def metrics(stack, job_id):
    return [event.data for event in service.new_events(stack.client, job_id, None) if event.type == "metrics"]


def wait_for_step(stack, job_id, step):
    def reached():
        job = stack.client.fine_tuning.jobs.retrieve(job_id)
        assert job.status not in service.TERMINAL, (job.status, job.error)
        return [m for m in metrics(stack, job_id) if m["step"] >= step]

    wait_for(reached, timeout_s=120, what=f"step {step}")


def call(stack, *arguments, timeout_s=60, code=0, environment=None, **options):
    """Run a `wmss` command to its end, which must have this exit code; `options` go to `subprocess.run`."""
    run = subprocess.run(
        [*WMSS, *map(str, arguments)],
        env=stack.environment | (environment or {}),
        capture_output=True,
        text=True,
        timeout=PATIENCE * timeout_s,
        **options,
    )
    assert run.returncode == code, run.stdout + run.stderr
    return run


def wmss(stack, *arguments, **options):
    """What a `wmss` command prints."""
    return call(stack, *arguments, **options).stdout
