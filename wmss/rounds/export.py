"""The last steps of every job that trains: its model, alone, where finished models lie, and read back from there."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue

from wmss import __version__
from wmss.models.checkpoints import export_model
from wmss.models.loading import checkpoint_digest
from wmss.models.read_back import read_back
from wmss.rounds.job import Job
from wmss.rounds.journal import Journal
from wmss.rounds.phase_records import Exported, ReadBack
from wmss.units import gigabytes


def export_result(
    job: Job, journal: Journal, checkpoint: Path, *, end_token_ids: list[int], origin: Mapping[str, JsonValue]
) -> Exported:
    """Put a checkpoint where finished models lie, with a record of where it comes from: `origin`, and the job."""
    staging = job.folder / "export"
    shutil.rmtree(staging, ignore_errors=True)
    export_model(checkpoint, staging, base=job.base, end_token_ids=end_token_ids)
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


def read_result_back(job: Job, journal: Journal, checkpoint: Path) -> ReadBack:
    """Compare the finished model, where it was written, with the checkpoint that it was made from.

    Raises:
        ResultError: it is not that model.
    """
    num_tensors = read_back(job.result, checkpoint, base=job.base)
    journal.event(f"read back by plain transformers: {num_tensors:,} tensors, bit for bit as trained, and its logits")
    return ReadBack(num_tensors=num_tensors)
