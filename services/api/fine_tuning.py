"""/v1/fine_tuning/jobs: submit, list, look at and cancel jobs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request

from services.api.problems import Problem, not_found
from services.api.schemas import CheckpointObject, EventObject, JobObject, Page, PhaseObject
from services.api.state import Service, ServiceState
from services.jobs.store import UnknownCursorError, new_id
from services.jobs.tables import JobRow
from services.models import fine_tuned_name, resolve_model
from wmss.config import JobSpec, WmssMethod

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create(service: Service, spec: JobSpec) -> JobObject:
    """Accept a job. What can be refused without reading the training data is refused here."""
    for param in ("training_file", "validation_file"):
        file_id = getattr(spec, param)
        if file_id is not None and service.store.file(file_id) is None:
            raise Problem(
                400,
                "file_not_found",
                f"{param}: there is no file {file_id!r}; upload it to /v1/files and use the id",
                param=param,
            )
    paths = _resolve_models(service, spec)
    try:
        service.drivers.ping()
    except Exception as error:  # whatever it is, Ray does not answer
        message = (
            f"Ray does not answer at {service.settings.ray_dashboard_url} ({type(error).__name__}); no job was made"
        )
        raise Problem(503, "ray_unavailable", message, retry_after=5) from error
    job_id = new_id("ftjob")
    row = service.store.create_job(
        job_id,
        spec=spec.model_dump(mode="json"),
        paths=paths,
        fine_tuned_model=fine_tuned_name(spec.model, spec.suffix, job_id),
    )
    service.reconciler.wake()
    return JobObject.of(row)


def _resolve_models(service: ServiceState, spec: JobSpec) -> dict[str, str | None]:
    # These load the tokenizers: imported late so that the API starts (and answers health checks) without torch.
    from wmss.models.loading import check_checkpoint, check_pair

    def resolve(name: str, param: str) -> Path:
        folder = resolve_model(name, service.store, service.settings, param=param)
        check_checkpoint(folder, param=param)
        return folder

    base = resolve(spec.model, "model")
    weak, strong = base, None
    if isinstance(spec.method, WmssMethod):
        wmss = spec.method.wmss
        if wmss.weak_model is not None:
            weak = resolve(wmss.weak_model, "method.wmss.weak_model")
            check_pair(base, weak, param="method.wmss.weak_model")
        if wmss.strong_model is not None:
            strong = resolve(wmss.strong_model, "method.wmss.strong_model")
            check_pair(base, strong, param="method.wmss.strong_model")
    return {"model": str(base), "weak_model": str(weak), "strong_model": None if strong is None else str(strong)}


@router.get("")
def list_jobs(service: Service, request: Request, after: str | None = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. `metadata[key]=value` (repeatable) keeps the jobs that carry these pairs."""
    metadata: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata["):
            continue
        key = name.removeprefix("metadata[").removesuffix("]")
        if metadata.setdefault(key, value) != value:
            raise Problem(400, "invalid_parameter", f"{name}: given twice, with different values", param=name)
    with _cursor(after):
        rows, more = service.store.jobs(after=after, limit=limit, metadata=metadata)
    return Page(data=[JobObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}")
def retrieve(service: Service, job_id: str) -> JobObject:
    """One job."""
    return JobObject.of(_job(service, job_id))


@router.post("/{job_id}/cancel")
def cancel(service: Service, job_id: str) -> JobObject:
    """Stop a job; its workers and engines go within seconds. A job that has ended answers 409."""
    _job(service, job_id)
    found = service.store.request_cancel(job_id)
    if found in ("succeeded", "failed"):
        raise Problem(409, "job_ended", f"job {job_id} has already {found}; there is nothing to cancel")
    service.reconciler.wake()
    return JobObject.of(_job(service, job_id))


@router.get("/{job_id}/events")
def events(service: Service, job_id: str, after: str | None = None, limit: Limit = 20) -> Page[EventObject]:
    """Newest first: messages and, with type `metrics`, every training step."""
    _job(service, job_id)
    with _cursor(after):
        rows, more = service.store.events(job_id, after=after, limit=limit)
    return Page(data=[EventObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/checkpoints")
def checkpoints(service: Service, job_id: str, after: str | None = None, limit: Limit = 10) -> Page[CheckpointObject]:
    """Newest first; only checkpoints that still exist."""
    _job(service, job_id)
    with _cursor(after):
        rows, more = service.store.checkpoints(job_id, after=after, limit=limit)
    return Page(data=[CheckpointObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/phases")
def phases(service: Service, job_id: str) -> Page[PhaseObject]:
    """All phases in order, with progress and what the finished ones found."""
    job = _job(service, job_id)
    return Page(data=PhaseObject.plan(job, service.store.phases(job_id)), has_more=False)


def _job(service: ServiceState, job_id: str) -> JobRow:
    row: JobRow | None = service.store.job(job_id)
    if row is None:
        raise not_found("fine-tuning job", job_id, "fine_tuning_job_id")
    return row


@contextmanager
def _cursor(after: str | None) -> Iterator[None]:
    try:
        yield
    except UnknownCursorError:
        message = f"after: expected the id of an item of this list, got {after!r}"
        raise Problem(400, "invalid_cursor", message, param="after") from None
