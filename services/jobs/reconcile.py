"""The reconcile loop: compares the database with Ray and closes the gap. The only place that starts or stops drivers.

    queued       a place is free             -> claim the next attempt, submit its driver
    running      driver ended or lost lease  -> claim the next attempt, or fail the job after too many
    cancelling   driver still there          -> stop it; driver gone -> cancelled
    engines      no live job uses them       -> delete their Serve applications

It talks to Ray over HTTP and keeps nothing in memory, so it may die and start again at any moment.
"""

import logging
import shlex
import subprocess
import sys
import threading
import time
from typing import Protocol

from ray.job_submission import JobStatus, JobSubmissionClient

from services.jobs.states import State
from services.jobs.store import Store
from services.jobs.tables import JobRow
from services.settings import ENGINE_ENVIRONMENT, Settings

logger = logging.getLogger(__name__)

HANG_LEASES = 4
"""Leases a live driver may miss before it is taken for hung (a busy machine may stall it for one)."""


class Drivers(Protocol):
    """The drivers that Ray runs."""

    def status(self, submission_id: str) -> JobStatus | None:
        """Status of a driver, or None if Ray has never heard of it."""

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver."""

    def stop(self, submission_id: str) -> None:
        """Ask a driver to stop."""

    def delete_engines(self, apps: list[str]) -> None:
        """Delete Serve applications."""


class RayDrivers:
    """Drivers as Ray jobs, over the dashboard's HTTP interface."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.ray_dashboard_url
        self._client: JobSubmissionClient | None = None

    def _connect(self) -> JobSubmissionClient:
        if self._client is None:
            self._client = JobSubmissionClient(self._url)
        return self._client

    def ping(self) -> None:
        """Raise unless the dashboard answers."""
        self._connect().get_version()

    def status(self, submission_id: str) -> JobStatus | None:
        """Status of a driver, or None if Ray has never heard of it."""
        try:
            return self._connect().get_job_status(submission_id)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return None
            raise

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver as the Ray job `submission_id`."""
        self._connect().submit_job(
            entrypoint=shlex.join([sys.executable, "-m", "services.driver", job_id, str(attempt)]),
            submission_id=submission_id,
            runtime_env={"env_vars": ENGINE_ENVIRONMENT},
            metadata={"wmss_job": job_id, "attempt": str(attempt)},
        )

    def stop(self, submission_id: str) -> None:
        """SIGTERM, then SIGKILL; its Train workers go with it."""
        self._connect().stop_job(submission_id)

    def delete_engines(self, apps: list[str]) -> None:
        """In a process of its own: a process attached to Ray dies with Ray, and this one must not."""
        subprocess.run([sys.executable, "-m", "services.engines", *apps], check=True, timeout=120)


class Reconciler:
    """Runs `pass_once` on a thread until stopped."""

    def __init__(self, store: Store, drivers: Drivers, settings: Settings) -> None:
        self._store = store
        self._drivers = drivers
        self._settings = settings
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="reconcile")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Something changed: look now."""
        self._wake.set()

    def stop(self) -> None:
        """End after the pass under way."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.pass_once()
            except Exception:  # the outermost frame: one bad pass must not end the service
                logger.exception("reconcile pass failed; next one in %s s", self._settings.reconcile_s)
            self._wake.wait(self._settings.reconcile_s)
            self._wake.clear()

    def pass_once(self) -> None:
        """Compare every active job with Ray once."""
        jobs = self._store.active_jobs()
        for job in jobs:
            if job.state == State.CANCELLING:
                self._cancel(job)
            elif job.state == State.RUNNING:
                self._supervise(job)
        occupied = sum(job.state != State.QUEUED for job in jobs)
        places = self._settings.max_running_jobs - occupied
        waiting = [job for job in jobs if job.state == State.QUEUED]
        for job in waiting[: max(0, places)]:
            self._next_attempt(job, message="Starting")
        orphans = self._store.orphaned_engines()
        if orphans:
            self._drivers.delete_engines(orphans)
            self._store.forget_engines(orphans)

    def _next_attempt(self, job: JobRow, *, message: str, level: str = "info") -> None:
        attempt = self._store.claim(job, message=message, level=level)
        if attempt is not None:
            self._drivers.submit(submission_id(job.id, attempt), job.id, attempt)

    def _supervise(self, job: JobRow) -> None:
        driver = submission_id(job.id, job.attempt)
        status = self._drivers.status(driver)
        if status is None and job.lease_expires_at is None:
            # Claimed, but whoever claimed it died before the submission. Ray refuses a second job of one id, so
            # submitting is safe even if it got through after all.
            self._drivers.submit(driver, job.id, job.attempt)
            return
        if status is not None and not status.is_terminal():
            hung = job.lease_expires_at is not None and (
                time.time() > job.lease_expires_at + HANG_LEASES * self._settings.lease_s
            )
            if not hung:
                return
            logger.warning("driver %s has not renewed its lease; stopping it", driver)
            self._drivers.stop(driver)
        self._recover(job)

    def _recover(self, job: JobRow) -> None:
        """The driver is gone without having ended the job: the next attempt goes on from the last finished phase."""
        if job.attempt < self._settings.max_attempts:
            message = (
                f"The driver of attempt {job.attempt} was lost; attempt {job.attempt + 1} goes on from its last phase"
            )
            self._next_attempt(job, message=message, level="warn")
            return
        text = (
            f"all {job.attempt} drivers of this job were lost (memory or a node, as a rule); see the log of "
            f"{submission_id(job.id, job.attempt)} in the Ray dashboard, then submit again with less per step"
        )
        error = {"code": "driver_lost", "message": text, "param": None}
        self._store.end_job(job, State.FAILED, error=error, message=f"Failed: {text}")

    def _cancel(self, job: JobRow) -> None:
        driver = submission_id(job.id, job.attempt)
        status = self._drivers.status(driver)
        if status is not None and not status.is_terminal():
            self._drivers.stop(driver)
            self._wake_soon()
            return
        self._store.end_job(job, State.CANCELLED, error=None, message="Cancelled")

    def _wake_soon(self) -> None:
        timer = threading.Timer(0.5, self._wake.set)
        timer.daemon = True
        timer.start()


def submission_id(job_id: str, attempt: int) -> str:
    """Name of the Ray job that drives an attempt."""
    return f"{job_id}-{attempt}"
