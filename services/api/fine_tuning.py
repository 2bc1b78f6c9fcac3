"""/v1/fine_tuning/jobs: submit, list, look at and cancel jobs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from services.api.error_responses import cursor, not_found
from services.api.jobs import (
    Limit,
    OfSending,
    accept,
    asking_ray,
    cancel_job,
    earlier_job,
    events_of,
    find_files,
    look_up,
    metadata_pairs,
)
from services.api.schemas import CheckpointObject, EventObject, JobObject, Page, PhaseObject
from services.api.state import Service, ServiceState
from services.catalog.names import name_of, named_models, registered_models, resolve_models
from services.jobs.kinds import Kind
from services.jobs.states import State
from services.jobs.tables import JobRow
from wmss.config import JobSpec
from wmss.config.base import changed
from wmss.ids import JOB, fine_tuned_name, new_id
from wmss.rounds.before.report import Report
from wmss.rounds.improvement.round_records import rounds_decided
from wmss.rounds.phases import phases_of

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])


@router.post("")
def create(service: Service, spec: JobSpec, sending: OfSending) -> JobObject:
    """Accept a job. What can be refused without reading the training data is refused here.

    A create that is sent again makes no second job: with an `Idempotency-Key`, ever; without one, when the OpenAI
    client says that it is a retry, within ten minutes.
    """
    earlier = earlier_job(service, spec, sending)
    if earlier is not None:
        return JobObject.of(earlier)
    from wmss.rounds.before.preflight import check_models  # it loads torch, which the API starts without

    models, registered = look_up(service, spec, partial(check_models, lora=spec.hyperparameters.lora))
    job_id = new_id(JOB)
    row = accept(
        service,
        spec,
        sending,
        job_id,
        paths=_paths(models) | {"registered": registered},
        fine_tuned_model=fine_tuned_name(name_of(spec.model, service.store), spec.suffix, job_id),
    )
    return JobObject.of(row)


@router.post("/validate")
def validate(service: Service, spec: JobSpec) -> Report:
    """A dry run of the same body as a create: what would be refused, what would be done, and about what it would cost.

    Makes no job and starts no engine. Answers 200 also where the job would be refused: `valid` and `problems` say so.
    It reads and tokenizes the files, so a large one takes its time.
    """
    from services.preview import dry_run

    files, problems = find_files(service, spec)
    models, unknown = resolve_models(spec, service.store, service.settings)
    report = dry_run(
        spec,
        models=models,
        files=files,
        file_names=service.store.file_names(spec),
        problems=[*problems, *unknown],
        registered=registered_models(named_models(spec), service.store),
        cluster=_cluster(service),
        settings=service.settings,
    )
    said = {
        part: [changed(found, message=service.settings.for_clients(found.message)) for found in getattr(report, part)]
        for part in ("problems", "warnings")
    }
    return changed(report, **said)


def _cluster(service: ServiceState) -> dict[str, float]:
    with asking_ray(service, "nothing was checked"):
        return service.drivers.cluster_resources()


def _paths(models: Mapping[str, Path]) -> dict[str, Any]:
    """The models of a job as its row keeps them."""
    paths = {param.removeprefix("method.wmss."): str(folder) for param, folder in models.items()}
    more = sorted((name for name in paths if name.startswith("more_weak_models.")), key=lambda n: int(n.split(".")[1]))
    return {
        "model": paths["model"],
        "weak_model": paths.get("weak_model"),
        "strong_model": paths.get("strong_model"),
        "more_weak_models": [paths[name] for name in more],
    }


@router.get("")
def list_jobs(service: Service, request: Request, after: str | None = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. `metadata[key]=value` (repeatable) keeps the jobs that carry these pairs."""
    with cursor(after):
        rows, more = service.store.jobs(after=after, limit=limit, metadata=metadata_pairs(request))
    return Page(data=[JobObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}")
def retrieve(service: Service, job_id: str) -> JobObject:
    """One job."""
    return JobObject.of(find_job(service, job_id))


@router.post("/{job_id}/cancel")
def cancel(service: Service, job_id: str) -> JobObject:
    """Stop a job; its workers and engines go within seconds. One that has succeeded or failed answers 409."""
    return JobObject.of(cancel_job(service, find_job(service, job_id)))


@router.get("/{job_id}/events")
def events(service: Service, job_id: str, after: str | None = None, limit: Limit = 20) -> Page[EventObject]:
    """Newest first: messages and, with type `metrics`, every training step."""
    return events_of(service, find_job(service, job_id), after, limit)


@router.get("/{job_id}/checkpoints")
def checkpoints(service: Service, job_id: str, after: str | None = None, limit: Limit = 10) -> Page[CheckpointObject]:
    """Newest first; only checkpoints that still exist."""
    find_job(service, job_id)
    with cursor(after):
        rows, more = service.store.checkpoints(job_id, after=after, limit=limit)
    return Page(data=[CheckpointObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/phases")
def phases(service: Service, job_id: str) -> Page[PhaseObject]:
    """All phases in order, with progress and what the finished ones found."""
    job = find_job(service, job_id)
    rows = service.store.phases(job_id)
    rounds = rounds_decided({row.name: row.artifacts for row in rows if row.artifacts is not None})
    names = phases_of(JobSpec.model_validate(job.spec), rounds=rounds)
    if job.state == State.SUCCEEDED:  # under an earlier release it had no phases that were added since
        ran = {row.name for row in rows}
        names = tuple(name for name in names if name in ran)
    return Page(data=PhaseObject.in_order(names, rows), has_more=False)


def find_job(service: ServiceState, job_id: str) -> JobRow:
    """A job's row; answers 404 if there is none."""
    row = service.store.job(job_id)
    if row is None or row.kind != Kind.FINE_TUNING:
        raise not_found("fine-tuning job", job_id, "fine_tuning_job_id")
    return row
