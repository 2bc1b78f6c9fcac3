"""/v1/fine_tuning/jobs: submit, list, look at and cancel jobs."""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request

from services.api.problems import Problem, cursor, not_found, ray_unavailable
from services.api.schemas import CheckpointObject, EventObject, JobObject, Page, PhaseObject
from services.api.state import Service, ServiceState
from services.jobs.store import KeyTakenError, UnknownCheckpointError, UnknownFileError, new_id
from services.jobs.tables import JobRow, WeakCheckpointRow
from services.models import fine_tuned_name, named_models, registered_digests, registered_models, resolve_models
from wmss.config import METADATA_KEY, PATTERNS, JobSpec
from wmss.errors import ModelError, WmssError, raise_all, shortened, shown
from wmss.rounds.report import Report

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

RETRY_WINDOW_S = 600.0
MAX_PAIRS = 16
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("")
def create(
    service: Service,
    spec: JobSpec,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    x_stainless_retry_count: Annotated[int, Header()] = 0,
) -> JobObject:
    """Accept a job. What can be refused without reading the training data is refused here.

    A create that is sent again makes no second job: with an `Idempotency-Key`, ever; without one, when the OpenAI
    client says that it is a retry, within ten minutes.
    """
    digest = hashlib.sha256(spec.model_dump_json().encode()).hexdigest()
    earlier = _earlier_job(service, digest, idempotency_key, is_retry=x_stainless_retry_count > 0)
    if earlier is not None:
        return JobObject.of(earlier)
    # It loads tokenizers: imported late so that the API starts (and answers health checks) without torch.
    from wmss.rounds.preflight import check_models

    _, problems = _find_files(service, spec)
    models, unknown = resolve_models(spec, service.store, service.settings)
    raise_all([*problems, *unknown, *check_models(models)])
    registered = registered_models(named_models(spec), service.store)
    with _asking_ray(service, "no job was made"):
        service.drivers.ping()
    job_id = new_id("ftjob")
    try:
        row = service.store.create_job(
            job_id,
            spec=spec.model_dump(mode="json"),
            paths=_paths(models, registered),
            fine_tuned_model=fine_tuned_name(spec.model, spec.suffix, job_id),
            request_digest=digest,
            request_key=idempotency_key,
        )
    except UnknownFileError as error:
        missing = str(error)
        param = "training_file" if missing == spec.training_file else "validation_file"
        raise _no_file(param, missing) from None
    except UnknownCheckpointError as error:  # deleted since it was looked up
        raise ModelError(f"there is no registered checkpoint {error} any more; register it again") from None
    except KeyTakenError:  # the same key came twice at once, and the other request was faster
        faster = _earlier_job(service, digest, idempotency_key, is_retry=True)
        assert faster is not None
        return JobObject.of(faster)
    service.reconciler.wake()
    return JobObject.of(row)


@router.post("/validate")
def validate(service: Service, spec: JobSpec) -> Report:
    """A dry run of the same body as a create: what would be refused, what would be done, and about what it would cost.

    Makes no job and starts no engine. Answers 200 also where the job would be refused: `valid` and `problems` say so.
    It reads and tokenizes the files, so a large one takes its time.
    """
    from services.dry_run import dry_run

    files, problems = _find_files(service, spec)
    models, unknown = resolve_models(spec, service.store, service.settings)
    return dry_run(
        spec,
        models=models,
        files=files,
        problems=[*problems, *unknown],
        registered=registered_models(named_models(spec), service.store),
        cluster=_cluster(service),
        settings=service.settings,
    )


def _cluster(service: ServiceState) -> dict[str, float]:
    with _asking_ray(service, "nothing was checked"):
        return service.drivers.cluster_resources()


@contextmanager
def _asking_ray(service: ServiceState, consequence: str) -> Iterator[None]:
    """Answer 503 for whatever goes wrong inside: Ray does not answer."""
    try:
        yield
    except Exception as error:
        raise ray_unavailable(service.settings.ray_dashboard_url, error, consequence) from error


def _find_files(service: ServiceState, spec: JobSpec) -> tuple[dict[str, Path], list[WmssError]]:
    """Uploaded files a job names, by field, and a problem for each that is not there."""
    named = {"training_file": spec.training_file, "validation_file": spec.validation_file}
    files = {}
    problems: list[WmssError] = []
    for param, file_id in named.items():
        if file_id is None:
            continue
        if service.store.file(file_id) is None:
            problems.append(_no_file(param, file_id))
        else:
            files[param] = service.settings.file_path(file_id)
    return files, problems


class UploadMissingError(WmssError):
    """A job names a file that was never uploaded, or was deleted."""

    code = "file_not_found"


def _no_file(param: str, file_id: str) -> UploadMissingError:
    return UploadMissingError(
        f"{param}: there is no file {shown(file_id)}; upload it to /v1/files and use the id", param=param
    )


def _paths(models: dict[str, Path], registered: dict[str, WeakCheckpointRow]) -> dict[str, Any]:
    """The models of a job as its row keeps them; of registered ones also what they must still be when it runs."""
    paths = {param.removeprefix("method.wmss."): str(folder) for param, folder in models.items()}
    more = sorted((name for name in paths if name.startswith("more_weak_models.")), key=lambda n: int(n.split(".")[1]))
    return {
        "model": paths["model"],
        "weak_model": paths.get("weak_model"),
        "strong_model": paths.get("strong_model"),
        "more_weak_models": [paths[name] for name in more],
        "registered": {
            param: {"id": row.id, **dataclasses.asdict(registered_digests(row))} for param, row in registered.items()
        },
    }


def _earlier_job(service: ServiceState, digest: str, key: str | None, *, is_retry: bool) -> JobRow | None:
    if key is None:
        return service.store.recent_job_of_body(digest, within_s=RETRY_WINDOW_S) if is_retry else None
    earlier = service.store.job_of_key(key)
    if earlier is not None and earlier.request_digest != digest:
        message = f"Idempotency-Key: {key!r} was used for another request (job {earlier.id}); use a new key"
        raise Problem(422, "idempotency_key_reused", message, param="Idempotency-Key")
    return earlier


@router.get("")
def list_jobs(service: Service, request: Request, after: str | None = None, limit: Limit = 20) -> Page[JobObject]:
    """Newest first. `metadata[key]=value` (repeatable) keeps the jobs that carry these pairs."""
    metadata: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if not name.startswith("metadata["):
            continue
        key = name.removeprefix("metadata[").removesuffix("]")
        if re.fullmatch(METADATA_KEY, key) is None:
            message = f"metadata[{shortened(key)}]: expected {PATTERNS[METADATA_KEY]}; no job has another"
            raise Problem(400, "invalid_parameter", message, param=shortened(name))
        if len(metadata) == MAX_PAIRS and key not in metadata:
            raise Problem(400, "invalid_parameter", f"metadata: expected at most {MAX_PAIRS} pairs", param="metadata")
        if metadata.setdefault(key, value) != value:
            raise Problem(400, "invalid_parameter", f"{name}: given twice, with different values", param=name)
    with cursor(after):
        rows, more = service.store.jobs(after=after, limit=limit, metadata=metadata)
    return Page(data=[JobObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}")
def retrieve(service: Service, job_id: str) -> JobObject:
    """One job."""
    return JobObject.of(_job(service, job_id))


@router.post("/{job_id}/cancel")
def cancel(service: Service, job_id: str) -> JobObject:
    """Stop a job; its workers and engines go within seconds. One that has succeeded or failed answers 409."""
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
    with cursor(after):
        rows, more = service.store.events(job_id, after=after, limit=limit)
    return Page(data=[EventObject.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/checkpoints")
def checkpoints(service: Service, job_id: str, after: str | None = None, limit: Limit = 10) -> Page[CheckpointObject]:
    """Newest first; only checkpoints that still exist."""
    _job(service, job_id)
    with cursor(after):
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
