"""The reconcile loop: compares the database with Ray and closes the gap. The only place that starts or stops drivers.

    queued       a place is free             -> claim the next attempt, submit its driver
    running      driver ended or unknown     -> claim the next attempt, or fail the job (services/jobs/attempts.py)
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
from services.control.ray_jobs import DriverEnd, DriverStatus, SubmissionRefusedError
from services.engines.engine_store import EngineStore, too_many
from services.jobs.attempts import LOST_EXIT_CODE, AttemptEnd
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
SETTLE_S = 5.0
"""Time between a driver's end and its judgement: a driver is among the first things that a dying head takes along."""
ATTEMPT_GAP_S = 10.0
"""Shortest time from the start of one attempt at a job to that of the next."""
# Its submission never reached Ray, or the cluster was restarted and has forgotten it. A driver that did start after all
# is fenced off by the new attempt.
UNKNOWN_TO_RAY = AttemptEnd("attempts_lost", "Ray does not know its driver, as after a restart", counts=False)


class Drivers(ChatCluster, Cluster, Protocol):
    """What Ray runs for the service."""

    def ping(self) -> None:
        """Raise unless the head node is alive."""

    def submit(self, submission_id: str, job_id: str, attempt: int) -> None:
        """Start a driver; raises `SubmissionRefusedError`."""

    def end_of(self, submission_id: str) -> DriverEnd:
        """How a driver ended."""


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

    def _next_attempt(self, job: JobRow, *, message: str, level: str = "info", after: AttemptEnd | None = None) -> None:
        self._drivers.ping()  # no attempt is spent on a cluster that cannot run it
        attempt = self._store.claim(job, message=message, level=level, after=after)
        if attempt is None:
            return
        try:
            self._drivers.submit(submission_id(job.id, attempt), job.id, attempt)
        except SubmissionRefusedError as refusal:
            # Raises where the head has gone meanwhile: the attempt is then one that Ray does not know, which is lost.
            self._drivers.ping()
            end = AttemptEnd("submission_refused", f"Ray refused to start its driver ({refusal})", counts=True)
            self._store.note_end(job.id, attempt, end)

    def _supervise(self, job: JobRow) -> None:
        driver = submission_id(job.id, job.attempt)
        status = self._drivers.status(driver)
        noted = AttemptEnd.from_json(job.attempt_end)
        if status is None:
            self._follow(job, noted or UNKNOWN_TO_RAY)
        elif status.ended:
            if (end := noted or self._judged(job, driver, status)) is not None:
                self._follow(job, end)
        elif self._is_hung(job):
            # Followed by another attempt only once it has ended: two drivers must never feed one training run.
            logger.warning("driver %s has not renewed its lease; stopping it", driver)
            self._drivers.stop(driver)

    def _is_hung(self, job: JobRow) -> bool:
        if job.lease_expires_at is None:
            return job.claimed_at is not None and time.time() > job.claimed_at + START_S
        return time.time() > job.lease_expires_at + HANG_LEASES * self._settings.lease_s

    def _judged(self, job: JobRow, driver: str, status: DriverStatus) -> AttemptEnd | None:
        """How the attempt of a driver ended that did not say so itself; None while it is too early to tell."""
        known = self._drivers.end_of(driver)
        if known.at is not None and time.time() < known.at + SETTLE_S:
            return None
        self._drivers.ping()  # raises where the head went too; the next one will not know the driver
        if known.node_died:
            return AttemptEnd("attempts_lost", f"the node of its driver died ({known.message})", counts=False)
        if known.exit_code == LOST_EXIT_CODE:
            return AttemptEnd("attempts_lost", "its driver lost the cluster or the database", counts=False)
        if status is DriverStatus.STOPPED and job.lease_expires_at is not None:
            return AttemptEnd("attempts_lost", "its driver was stopped, as one is whose lease expires", counts=False)
        log = f"see the log of {driver} in the Ray dashboard"
        return AttemptEnd("driver_lost", f"its driver ended without a result ({known.message}); {log}", counts=True)

    def _follow(self, job: JobRow, end: AttemptEnd) -> None:
        """The attempt is over and the job is not: the next one goes on from the last phase, as long as it may."""
        if (verdict := self._verdict(job, end)) is not None:
            error = {"code": end.code, "message": verdict, "param": None}
            self._store.end_job(job, State.FAILED, error=error, message=f"Failed: {verdict}")
        elif time.time() >= (job.claimed_at or 0.0) + ATTEMPT_GAP_S:
            if end.counts:
                follows = f"attempt {job.attempt + 1} goes on from its last phase"
                message = f"Attempt {job.attempt} failed: {end.message}; {follows}"
            else:  # without numbers, so that the same loss again is counted and not told again
                message = f"Attempt lost: {end.message}; the next one goes on from its last phase"
            self._next_attempt(job, message=message, level="warn", after=end)

    def _verdict(self, job: JobRow, end: AttemptEnd) -> str | None:
        """Why the job gets no other attempt, or None."""
        if end.counts:
            failed = job.failed_attempts + 1
            if failed < self._settings.max_attempts:
                return None
            return (
                f"{failed} attempts failed without progress between them (WMSS_MAX_ATTEMPTS), the last because "
                f"{end.message}"
            )
        hours = 0.0 if job.lost_since is None else (time.time() - job.lost_since) / 3600
        if hours < self._settings.max_lost_hours:
            return None
        return (
            f"attempts were lost for {hours:.1f} hours without progress (WMSS_MAX_LOST_HOURS), the last because "
            f"{end.message}; see to the cluster and submit the job again: finished scores are kept"
        )

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
