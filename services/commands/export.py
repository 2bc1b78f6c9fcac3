"""`wmss export`: a finished model as a folder of its own."""

import shutil
from pathlib import Path

from openai import OpenAI

from services.settings import Settings
from wmss.errors import WmssError


def export_model(api: OpenAI, job_id: str, target: Path, settings: Settings) -> None:
    """Copy the model of a succeeded job out of the service's home; raises `WmssError` where there is none."""
    job = api.fine_tuning.jobs.retrieve(job_id)
    if job.status != "succeeded":
        raise WmssError(f"{job_id} is {job.status}; only a succeeded job has a model")
    if target.exists():
        raise WmssError(f"{target} exists already; name a folder to be made")
    source = settings.models / job_id
    if not source.is_dir():
        raise WmssError(f"the model is not in {source}; set WMSS_HOME to the home of the service that ran the job")
    # Not with the modes of the source: the copy is its owner's, whose umask says who may read it.
    shutil.copytree(source, target, copy_function=shutil.copyfile)
