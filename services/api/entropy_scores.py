"""/v1/entropy_scores: the entropy of every sample of a file under up to eight checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from services.api.error_responses import Problem, cursor, not_found
from services.api.jobs import Limit, OfSending, accept, cancel_job, earlier_job, events_of, look_up, metadata_pairs
from services.api.schemas import EventObject, Page, ScoresObject
from services.api.state import Service, ServiceState
from services.jobs.kinds import Kind
from services.jobs.states import TERMINAL
from services.jobs.tables import JobRow
from services.results.scores import json_lines
from wmss.choices import TableFormat
from wmss.config import ScoreSpec
from wmss.ids import SCORES, new_id
from wmss.rounds.journal import parsed
from wmss.rounds.phase_records import RequestScored
from wmss.rounds.phases import score_phases

router = APIRouter(prefix="/v1/entropy_scores", tags=["entropy scores"])

Level = Literal["sample", "token"]


@router.post("")
def create(service: Service, spec: ScoreSpec, sending: OfSending) -> ScoresObject:
    """Accept a request. It waits among the jobs; what was scored before costs nothing. Sent again, as for jobs."""
    earlier = earlier_job(service, spec, sending)
    if earlier is not None:
        return _object(service, earlier)
    from wmss.rounds.before.preflight import check_scored  # it loads torch, which the API starts without

    models, registered = look_up(service, spec, check_scored)
    row = accept(
        service,
        spec,
        sending,
        new_id(SCORES),
        kind=Kind.ENTROPY_SCORES,
        paths={"models": [str(folder) for folder in models.values()], "registered": registered},
        fine_tuned_model=None,
    )
    return _object(service, row)


@router.get("")
def list_scores(service: Service, request: Request, after: str | None = None, limit: Limit = 20) -> Page[ScoresObject]:
    """Newest first. `metadata[key]=value` (repeatable) keeps the requests that carry these pairs."""
    with cursor(after):
        rows, more = service.store.jobs(
            after=after, limit=limit, metadata=metadata_pairs(request), kind=Kind.ENTROPY_SCORES
        )
    return Page(data=[_object(service, row) for row in rows], has_more=more)


@router.get("/{scores_id}")
def retrieve(service: Service, scores_id: str) -> ScoresObject:
    """One request, with the results of the checkpoints that are scored."""
    return _object(service, _scores(service, scores_id))


@router.post("/{scores_id}/cancel")
def cancel(service: Service, scores_id: str) -> ScoresObject:
    """Stop a request; what is scored stays. One that has succeeded or failed answers 409."""
    return _object(service, cancel_job(service, _scores(service, scores_id)))


@router.get("/{scores_id}/events")
def events(service: Service, scores_id: str, after: str | None = None, limit: Limit = 20) -> Page[EventObject]:
    """Newest first."""
    return events_of(service, _scores(service, scores_id), after, limit)


@router.get("/{scores_id}/content", response_class=Response)
def content(
    service: Service,
    scores_id: str,
    model: Annotated[int, Query(ge=0)] = 0,
    level: Level = "sample",
    format: TableFormat = "parquet",
) -> Response:
    """The table of one checkpoint, the first being 0: a row per sample, or per supervised token, in file order.

    Answers 409 while it is not there yet.
    """
    job = _scores(service, scores_id)
    table = _table(service, job, model, level)
    name = f"{job.id}-{model}-{level}.{format}"
    if format == "parquet":
        return FileResponse(table, media_type="application/vnd.apache.parquet", filename=name)
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(json_lines(table), media_type="application/jsonl", headers=headers)


def _table(service: ServiceState, job: JobRow, model: int, level: Level) -> Path:
    spec = ScoreSpec.model_validate(job.spec)
    if model >= len(spec.models):
        message = f"model: expected 0 to {len(spec.models) - 1}, a place in the request's models, got {model}"
        raise Problem(400, "invalid_parameter", message, param="model")
    if level == "token" and not spec.tokens:
        message = "level: 'token' was not asked for; send the request again with tokens true, which scores once more"
        raise Problem(400, "invalid_parameter", message, param="level")
    phase = score_phases(spec)[1 + model]
    left = {row.name: row.artifacts for row in service.store.phases(job.id)}.get(phase)
    if left is None:
        state = f"has {job.state} before it" if job.state in TERMINAL else f"is {job.state}"
        raise Problem(409, "not_ready", f"model: {spec.models[model]} is not scored: {job.id} {state}", param="model")
    scored = parsed(left, phase, RequestScored)
    table = scored.table if level == "sample" else scored.tokens
    if table is None or not table.is_file():
        raise not_found("table on disk", job.id, "scores_id")
    return table


def _object(service: ServiceState, job: JobRow) -> ScoresObject:
    return ScoresObject.of(job, service.store.phases(job.id))


def _scores(service: ServiceState, scores_id: str) -> JobRow:
    row = service.store.job(scores_id)
    if row is None or row.kind != Kind.ENTROPY_SCORES:
        raise not_found("request for entropy scores", scores_id, "scores_id")
    return row
