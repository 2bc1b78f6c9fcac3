"""The last step of every job that trains: its model, alone, where finished models lie."""

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from wmss import __version__
from wmss.models.checkpoints import check_export, export_model
from wmss.models.loading import checkpoint_digest
from wmss.rounds.job import Job
from wmss.rounds.journal import Journal
from wmss.rounds.phase_records import Exported
from wmss.units import duration, gigabytes


def export_result(
    job: Job, journal: Journal, checkpoint: Path, *, end_token_ids: list[int], origin: Mapping[str, JsonValue]
) -> Exported:
    """Put a checkpoint where finished models lie, with a record of where it comes from: `origin`, and the job."""
    staging = job.folder / "export"
    shutil.rmtree(staging, ignore_errors=True)
    export_model(checkpoint, staging, base=job.base, end_token_ids=end_token_ids)
    started = time.monotonic()
    num_tensors = check_export(staging, checkpoint, base=job.base)
    journal.event(f"read back in {duration(time.monotonic() - started)}: {num_tensors:,} tensors, as trained")
    digest = checkpoint_digest(staging)
    card = {
        "name": job.result_name,
        "job": job.id,
        "wmss_version": __version__,
        "base": str(job.base),
        **origin,
        "method": job.spec.method.model_dump(mode="json"),
        "seed": job.spec.seed,
        "digest": digest,
    }
    (staging / "wmss.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    if job.result.exists():
        shutil.rmtree(job.result)  # left by an attempt that died before it could record this phase
    job.result.parent.mkdir(parents=True, exist_ok=True)
    staging.rename(job.result)
    num_bytes = sum(file.stat().st_size for file in job.result.iterdir())
    exported = Exported(path=job.result, name=job.result_name, digest=digest, num_bytes=num_bytes)
    message = f"model saved as {job.result_name}: {gigabytes(num_bytes)}, digest {digest[:12]}"
    journal.event(message, data=exported.model_dump(mode="json"))
    return exported
