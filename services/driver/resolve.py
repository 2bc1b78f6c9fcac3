"""From a row of the job table to the library's job, every name resolved to a path."""

from pathlib import Path

from services.jobs.store import Store
from services.jobs.tables import JobRow
from services.settings import Settings
from wmss.config import JobSpec, ScoreSpec
from wmss.records import CheckpointDigests
from wmss.rounds.job import Job
from wmss.rounds.scores.request import ScoreJob


def resolve(row: JobRow, settings: Settings, store: Store) -> Job:
    """The database row as the library's job; messages call its files as their owner does."""
    spec = JobSpec.model_validate(row.spec)
    paths = row.paths
    assert row.fine_tuned_model is not None
    return Job(
        id=row.id,
        spec=spec,
        base=Path(paths["model"]),
        weak=Path(paths["weak_model"]) if paths["weak_model"] else None,
        more_weak=tuple(map(Path, paths.get("more_weak_models", ()))),
        strong=Path(paths["strong_model"]) if paths["strong_model"] else None,
        training_file=settings.file_path(spec.training_file),
        validation_file=settings.file_path(spec.validation_file) if spec.validation_file else None,
        folder=settings.job_folder(row.id),
        cache=settings.root / "cache",
        result=settings.models / row.id,
        result_name=row.fine_tuned_model,
        digests=_digests(row),
        file_names=store.file_names(spec),
    )


def resolve_scores(row: JobRow, settings: Settings, store: Store) -> ScoreJob:
    """The same for a request for entropy scores."""
    spec = ScoreSpec.model_validate(row.spec)
    return ScoreJob(
        id=row.id,
        spec=spec,
        checkpoints=tuple(map(Path, row.paths["models"])),
        file=settings.file_path(spec.file),
        folder=settings.job_folder(row.id),
        cache=settings.root / "cache",
        digests=_digests(row),
        file_name=store.file_names(spec).get("file"),
    )


def _digests(row: JobRow) -> dict[str, CheckpointDigests]:
    """What the folders of registered checkpoints must still hold, by field."""
    return {
        param: CheckpointDigests(weights=entry["weights"], tokenizer=entry["tokenizer"])
        for param, entry in row.paths.get("registered", {}).items()
    }
