"""What the routes of every kind of job have in common: creating once, looking up what is named, listing, cancelling."""

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request

from services.api.error_responses import Problem, cursor, ray_unavailable
from services.api.schemas import EventObject, Page
from services.api.state import ServiceState
from services.catalog.names import named_models, registered_digests, registered_models, resolve_models
from services.jobs.kinds import Kind
from services.jobs.states import State
from services.jobs.store import FILE_FIELDS, KeyTakenError, UnknownCheckpointError, UnknownFileError
from services.jobs.tables import JobRow
from wmss.config import METADATA_KEY, PATTERNS, JobSpec, ScoreSpec
from wmss.errors import ModelError, WmssError, raise_all, shortened, shown

RETRY_WINDOW_S = 600.0
MAX_PAIRS = 16
Limit = Annotated[int, Query(ge=1, le=100)]


@dataclass(frozen=True)
class Sending:
    """What the caller says about this sending of a request."""

    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None
    x_stainless_retry_count: Annotated[int, Header()] = 0


OfSending = Annotated[Sending, Depends()]


def earlier_job(service: ServiceState, spec: JobSpec | ScoreSpec, sending: Sending) -> JobRow | None:
    """The job that an earlier sending of this create made, if there is one."""
    return _sent_before(service, spec, sending.idempotency_key, is_retry=sending.x_stainless_retry_count > 0)


def accept(
    service: ServiceState,
    spec: JobSpec | ScoreSpec,
    sending: Sending,
    job_id: str,
    *,
    kind: Kind = Kind.FINE_TUNING,
    paths: dict[str, Any],
    fine_tuned_model: str | None,
) -> JobRow:
    """Make the job; or the one that the same create, sent at the same moment, has made."""
    try:
        row = service.store.create_job(
            job_id,
            kind=kind,
            spec=spec.model_dump(mode="json"),
            paths=paths,
            fine_tuned_model=fine_tuned_model,
            request_digest=_digest(spec),
            request_key=sending.idempotency_key,
        )
    except UnknownFileError as error:  # deleted since it was looked up, as the next
        missing = str(error)
        raise _no_file(next(name for name in FILE_FIELDS if getattr(spec, name, None) == missing), missing) from None
    except UnknownCheckpointError as error:
        raise ModelError(f"there is no registered checkpoint {error} any more; register it again") from None
    except KeyTakenError:
        faster = _sent_before(service, spec, sending.idempotency_key, is_retry=True)
        assert faster is not None
        return faster
    service.reconciler.wake()
    return row


def _sent_before(service: ServiceState, spec: JobSpec | ScoreSpec, key: str | None, *, is_retry: bool) -> JobRow | None:
    if key is None:
        return service.store.recent_job_of_body(_digest(spec), within_s=RETRY_WINDOW_S) if is_retry else None
    earlier = service.store.job_of_key(key)
    if earlier is not None and earlier.request_digest != _digest(spec):
        message = f"Idempotency-Key: {key!r} was used for another request (job {earlier.id}); use a new key"
        raise Problem(422, "idempotency_key_reused", message, param="Idempotency-Key")
    return earlier


def _digest(spec: JobSpec | ScoreSpec) -> str:
    return hashlib.sha256(spec.model_dump_json().encode()).hexdigest()


def look_up(
    service: ServiceState, spec: JobSpec | ScoreSpec, check: Callable[[Mapping[str, Path]], list[WmssError]]
) -> tuple[dict[str, Path], dict[str, Any]]:
    """Folders of the models that a request names, by field, and what those of them that are registered must still be
    when it runs. Refuses what leads nowhere or fails the `check`; answers 503 without Ray."""
    _, problems = find_files(service, spec)
    models, unknown = resolve_models(spec, service.store, service.settings)
    raise_all([*problems, *unknown, *check(models)])
    registered = registered_models(named_models(spec), service.store)
    with asking_ray(service, "no job was made"):
        service.drivers.ping()
    return models, {
        param: {"id": row.id, **dataclasses.asdict(registered_digests(row))} for param, row in registered.items()
    }


@contextmanager
def asking_ray(service: ServiceState, consequence: str) -> Iterator[None]:
    """Answer 503 for every error inside the block: Ray does not answer."""
    try:
        yield
    except Exception as error:
        raise ray_unavailable(service.settings.ray_dashboard_url, error, consequence) from error


def find_files(service: ServiceState, spec: JobSpec | ScoreSpec) -> tuple[dict[str, Path], list[WmssError]]:
    """Uploaded files a request names, by field, and a problem for each that is not there."""
    named = {param: getattr(spec, param, None) for param in FILE_FIELDS}
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


def metadata_pairs(request: Request) -> dict[str, str]:
    """The pairs that a list is filtered by: `metadata[key]=value`, repeatable."""
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
    return metadata


def cancel_job(service: ServiceState, job: JobRow) -> JobRow:
    """Stop a job; one that has succeeded or failed answers 409."""
    found = service.store.request_cancel(job.id)
    if found in (State.SUCCEEDED, State.FAILED):
        raise Problem(409, "job_ended", f"job {job.id} has already {found}; there is nothing to cancel")
    service.reconciler.wake()
    cancelled = service.store.job(job.id)
    assert cancelled is not None
    return cancelled


def events_of(service: ServiceState, job: JobRow, after: str | None, limit: int) -> Page[EventObject]:
    """A page of a job's events, newest first."""
    with cursor(after):
        rows, more = service.store.events(job.id, after=after, limit=limit)
    return Page(data=[EventObject.of(row, job.kind) for row in rows], has_more=more)
