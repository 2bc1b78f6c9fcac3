"""One fine-tuning job of any method. Engines and journal come from outside, so it runs with or without Ray.

Every phase is idempotent: its record is in the journal when it ends, and a job that starts again skips what is
recorded. Files are written under `Job.folder` and `Job.cache`; `export` alone writes `Job.result`.
"""

from wmss.config import SelfImprovementMethod
from wmss.rounds.improvement.loop import improve
from wmss.rounds.job import Engines, Job
from wmss.rounds.journal import Journal
from wmss.rounds.weak_driven import run_weak_driven


def run_job(job: Job, engines: Engines, journal: Journal) -> None:
    """Run all phases of a job, skipping those that an earlier attempt finished.

    Raises:
        WmssError: the caller's fault, such as a file, a checkpoint or a setting that cannot work.
    """
    if isinstance(job.spec.method, SelfImprovementMethod):
        improve(job, engines, journal)
    else:
        run_weak_driven(job, engines, journal)
