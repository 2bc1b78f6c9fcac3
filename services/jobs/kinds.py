"""What a row of the job table asks for. Both kinds are queued, driven, fenced and cancelled alike."""

from enum import StrEnum

from services.jobs.tables import JobRow
from wmss.config import Resources, ScoreSpec


class Kind(StrEnum):
    """Kind of a job."""

    FINE_TUNING = "fine_tuning"
    ENTROPY_SCORES = "entropy_scores"


def resources_of(job: JobRow) -> Resources:
    """What a job may occupy while it runs."""
    if job.kind == Kind.ENTROPY_SCORES:
        return ScoreSpec.model_validate(job.spec).resources
    return Resources.model_validate(job.spec["resources"])
