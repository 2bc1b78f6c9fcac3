"""The driver of one attempt at one job: a Ray job that runs the job's phases. Started by the reconcile loop as

python -m services.driver JOB_ID ATTEMPT
"""

import logging
import sys
import traceback
from dataclasses import replace
from typing import NoReturn

from wmss.startup import quick_imports

with quick_imports():
    import ray

    from services.driver.engines import RayEngines
    from services.driver.journal import DatabaseJournal
    from services.driver.outcome import end_of_attempt
    from services.driver.resolve import resolve, resolve_scores
    from services.failures import driver_error
    from services.jobs.attempts import LOST_EXIT_CODE, AttemptEnd
    from services.jobs.database import PATIENCE_S, may_be_retried
    from services.jobs.fence import Fence, LostLeaseError
    from services.jobs.kinds import Kind
    from services.jobs.lease import keep_lease
    from services.jobs.states import State
    from services.jobs.store import Store
    from services.settings import Settings
    from wmss.ids import submission_id
    from wmss.models.limited import keep_answers
    from wmss.rounds.run import run_job
    from wmss.rounds.scores.request import run_scores

logger = logging.getLogger(__name__)


def main(job_id: str, attempt: int) -> None:
    """Run all phases of the job and record how it, or this attempt at it, ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    keep_answers(settings.examined)
    store = Store(settings.database, patience_s=PATIENCE_S)
    fence = Fence(store, job_id, attempt, lease_s=settings.lease_s)
    try:
        _run(job_id, settings, store, fence)
    except LostLeaseError:
        raise
    except Exception as error:  # the outermost frame: the job must tell every error
        logger.error("attempt %d at job %s failed:\n%s", attempt, job_id, traceback.format_exc())
        end = end_of_attempt(error)
        if end is not None:
            _leave(fence, replace(end, message=settings.for_clients(end.message)))
        fault = driver_error(error, log=submission_id(job_id, attempt))
        said = settings.for_clients(fault.message)
        reason = {"code": fault.code, "message": said, "param": fault.param}
        fence.end(State.FAILED, error=reason, message=f"Failed: {said}", trained_tokens=None)


def _run(job_id: str, settings: Settings, store: Store, fence: Fence) -> None:
    """All phases, and the job's success."""
    row = store.job(job_id)
    assert row is not None
    journal = DatabaseJournal(store, fence, job_id, settings)
    with keep_lease(fence, every_s=settings.lease_s / 3):
        ray.init(address="auto", log_to_driver=True)
        if row.kind == Kind.ENTROPY_SCORES:
            request = resolve_scores(row, settings, store)
            run_scores(request, RayEngines(request, settings, store, fence), journal)
        else:
            job = resolve(row, settings, store)
            run_job(job, RayEngines(job, settings, store, fence), journal)
    left, tokens = "every checkpoint is scored", None
    if row.kind == Kind.FINE_TUNING:
        left, tokens = str(row.fine_tuned_model), store.trained_tokens(job_id)
    fence.end(State.SUCCEEDED, error=None, message=f"Done: {left}", trained_tokens=tokens)


def _leave(fence: Fence, end: AttemptEnd) -> NoReturn:
    """End this process and leave the job to the next attempt."""
    try:
        fence.note_end(end)
    except Exception as error:
        if not may_be_retried(error):
            raise
        logger.error("the job database is away; the exit code alone says how this attempt ended")
    sys.exit(1 if end.counts else LOST_EXIT_CODE)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
