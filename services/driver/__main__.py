"""The driver of one attempt at one job: a Ray job that runs the job's phases. Started by the reconcile loop as

python -m services.driver JOB_ID ATTEMPT
"""

import logging
import sys
import traceback

from wmss.startup import quick_imports

with quick_imports():
    import ray

    from services.driver.engines import RayEngines
    from services.driver.journal import DatabaseJournal
    from services.driver.resolve import resolve, resolve_scores
    from services.failures import driver_error
    from services.jobs.database import PATIENCE_S, may_be_retried
    from services.jobs.fence import Fence, LostLeaseError
    from services.jobs.kinds import Kind
    from services.jobs.lease import keep_lease
    from services.jobs.states import State
    from services.jobs.store import Store
    from services.settings import Settings
    from wmss.ids import submission_id
    from wmss.rounds.run import run_job
    from wmss.rounds.scores.request import run_scores

logger = logging.getLogger(__name__)


def main(job_id: str, attempt: int) -> None:
    """Run all phases of the job and record how it ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = Settings()
    store = Store(settings.database, patience_s=PATIENCE_S)
    fence = Fence(store, job_id, attempt, lease_s=settings.lease_s)
    row = store.job(job_id)
    assert row is not None
    journal = DatabaseJournal(store, fence, job_id, settings)
    try:
        with keep_lease(fence, every_s=settings.lease_s / 3):
            ray.init(address="auto", log_to_driver=True)
            if row.kind == Kind.ENTROPY_SCORES:
                request = resolve_scores(row, settings, store)
                run_scores(request, RayEngines(request, settings, store, fence), journal)
            else:
                job = resolve(row, settings, store)
                run_job(job, RayEngines(job, settings, store, fence), journal)
    except LostLeaseError:
        raise
    except Exception as error:  # the outermost frame: the job must tell every error
        if may_be_retried(error):  # the database failed, not the job: the next attempt resumes
            raise
        logger.error("job %s failed:\n%s", job_id, traceback.format_exc())
        fault = driver_error(error, log=submission_id(job_id, attempt))
        said = settings.for_clients(fault.message)
        reason = {"code": fault.code, "message": said, "param": fault.param}
        fence.end(State.FAILED, error=reason, message=f"Failed: {said}", trained_tokens=None)
    else:
        left, tokens = "every checkpoint is scored", None
        if row.kind == Kind.FINE_TUNING:
            left, tokens = str(row.fine_tuned_model), store.trained_tokens(job_id)
        fence.end(State.SUCCEEDED, error=None, message=f"Done: {left}", trained_tokens=tokens)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
