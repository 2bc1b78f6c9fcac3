"""The reconcile loop: compares the database with Ray and closes the gap. The only place that starts or stops drivers.

    queued       a place is free             -> claim the next attempt, submit its driver
    running      driver ended                -> claim the next attempt, or fail the job after too many
    running      lease expired long ago      -> stop the driver
    cancelling   driver still there          -> stop it; driver gone -> cancelled
    engines      idle too long, left by a driver that died, in the chat engine's place -> delete their applications
    chat engine  see services/control/chat_keeper.py

It talks to Ray over HTTP and keeps nothing in memory, so it may die and start again at any moment.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from services.chat.chat_store import ChatStore
from services.control.chat_keeper import ChatCluster, ChatKeeper
from services.engines.engine_store import EngineStore, too_many
from services.jobs.kinds import resources_of
from services.jobs.room import Cluster, room_for_chat, room_left, running_jobs
from services.jobs.states import State
from services.jobs.store import Store
from services.jobs.tables import JobRow
from services.settings import Settings
from wmss.ids import submission_id

logger = logging.getLogger(__name__)

HANG_LEASES = 4
"""Leases a live driver may miss before it is considered hung (a busy machine may stall it for one)."""
START_S = 300.0
"""Time a driver has between its submission and its first lease."""


class Drivers(ChatCluster, Cluster, Protocol):
    """What Ray runs for the service."""

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver."""


class Reconciler:
    """Runs `pass_once` on a thread until stopped."""

    def __init__(self, store: Store, drivers: Drivers, settings: Settings) -> None:
        self._store = store
        self._drivers = drivers
        self._settings = settings
        self._engines = EngineStore(store)
        self._chat_store = ChatStore(store)
        self._chat = ChatKeeper(self._chat_store, drivers, settings, partial(room_for_chat, store, drivers))
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
        """Compare every active job with Ray once; trouble with one job does not hold up the others."""
        jobs = self._store.active_jobs()
        for job in jobs:
            if job.state == State.CANCELLING:
                self._attempt(job.id, partial(self._cancel, job))
            elif job.state == State.RUNNING:
                self._attempt(job.id, partial(self._supervise, job))
        self._attempt("the queue", partial(self._start_waiting, jobs))
        self._attempt("engines", self._tend_engines)
        self._attempt("the chat engine", self._tend_chat)

    def _start_waiting(self, jobs: list[JobRow]) -> None:
        """In order, as many as may run and, beside others, as there are CPUs and GPUs for: two that hold a part of what
        they need would wait for each other."""
        running = [job for job in jobs if job.state != State.QUEUED]
        for job in [job for job in jobs if job.state == State.QUEUED]:
            if len(running) >= self._settings.max_running_jobs:
                return
            wanted = map(resources_of, [*running, job])
            if running and min(room_left(self._drivers.cluster_resources(), wanted, chat=False).values()) < 0:
                return
            self._attempt(job.id, partial(self._next_attempt, job, message="Starting"))
            running.append(job)

    def _attempt(self, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:  # an error of Ray or of the database for one job: the next pass retries
            logger.exception("reconciling %s failed; next pass in %s s", what, self._settings.reconcile_s)

    def _tend_chat(self) -> None:
        if self._chat.pass_once():
            self._wake_soon()

    def _tend_engines(self) -> None:
        """Delete abandoned engines, and idle ones that the chat engine needs the place of."""
        apps = self._engines.abandoned(idle_s=self._settings.engine_idle_s)
        if self._chat_store.engine() is not None and (idle := self._engines.idle()):
            left = room_left(self._drivers.cluster_resources(), running_jobs(self._store), chat=True)
            apps += [engine.app for engine in too_many(idle, left) if engine.app not in apps]
        if leaving := [app for app in apps if self._engines.leave(app)]:
            self._drivers.delete_engines(leaving)
            self._engines.remove(leaving)

    def _next_attempt(self, job: JobRow, *, message: str, level: str = "info", driver_lost: bool = False) -> None:
        attempt = self._store.claim(job, message=message, level=level, driver_lost=driver_lost)
        if attempt is not None:
            self._drivers.submit(submission_id(job.id, attempt), job.id, attempt)

    def _supervise(self, job: JobRow) -> None:
        driver = submission_id(job.id, job.attempt)
        status = self._drivers.status(driver)
        if status is None:
            # The process that claimed it died before the submission, or the cluster was restarted. It does not count
            # as a lost driver, and one that did start after all is fenced off by the new attempt.
            self._next_attempt(
                job, message="Ray does not know the driver; starting one that goes on from the last phase"
            )
        elif status.ended:
            self._recover(job)
        elif self._is_hung(job):
            # Followed by another attempt only once it has ended: two drivers must never feed one training run.
            logger.warning("driver %s has not renewed its lease; stopping it", driver)
            self._drivers.stop(driver)

    def _is_hung(self, job: JobRow) -> bool:
        if job.lease_expires_at is None:
            return job.claimed_at is not None and time.time() > job.claimed_at + START_S
        return time.time() > job.lease_expires_at + HANG_LEASES * self._settings.lease_s

    def _recover(self, job: JobRow) -> None:
        """The driver is gone without having ended the job: the next attempt goes on from the last finished phase."""
        lost = job.lost_drivers + 1
        if lost < self._settings.max_attempts:
            message = (
                f"The driver of attempt {job.attempt} was lost; attempt {job.attempt + 1} goes on from its last phase"
            )
            self._next_attempt(job, message=message, level="warn", driver_lost=True)
            return
        text = (
            f"{lost} drivers of this job were lost without getting anywhere, as processes are that the system kills "
            f"for their memory; see the log of {submission_id(job.id, job.attempt)} in the Ray dashboard, then submit "
            "again with a smaller micro_batch_tokens, max_length or num_workers, or give the machine more memory"
        )
        error = {"code": "driver_lost", "message": text, "param": None}
        self._store.end_job(job, State.FAILED, error=error, message=f"Failed: {text}")

    def _cancel(self, job: JobRow) -> None:
        driver = submission_id(job.id, job.attempt)
        status = self._drivers.status(driver)
        if status is not None and not status.ended:
            self._drivers.stop(driver)
            self._wake_soon()
            return
        self._store.end_job(job, State.CANCELLED, error=None, message="Cancelled")

    def _wake_soon(self) -> None:
        timer = threading.Timer(0.5, self._wake.set)
        timer.daemon = True
        timer.start()
