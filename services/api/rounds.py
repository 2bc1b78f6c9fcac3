"""/v1/fine_tuning/jobs/{id}/rounds and /rollouts: how self-improvement went, and every response it judged."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field

from services.api.error_responses import Problem, cursor, not_found
from services.api.fine_tuning import find_job
from services.api.schemas import Page, RolloutObject, RolloutPage, RoundObject
from services.api.state import Service, ServiceState
from services.jobs.states import TERMINAL
from services.jobs.tables import JobRow
from services.results.rollouts import select
from wmss.records import Label
from wmss.rounds.improvement.round_records import SelectedResponses, VerifiedResponses, decisions
from wmss.rounds.journal import parsed
from wmss.rounds.phases import in_round

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

RoundNumber = Annotated[int, Query(ge=1, le=10_000)]


@router.get("/{job_id}/rounds")
def rounds(service: Service, job_id: str) -> Page[RoundObject]:
    """The rounds that were decided, oldest first: acceptance and held-out scores by level, the feedback loop's
    reading with its predicted ceiling, and what followed."""
    job = _find(service, job_id)
    recorded = {row.name: row.artifacts for row in service.store.phases(job.id) if row.artifacts is not None}
    data = [
        RoundObject.of(number, decision, parsed(recorded[phase], phase, SelectedResponses))
        for number, decision in decisions(recorded).items()
        for phase in [in_round("select", number)]
    ]
    return Page(data=data, has_more=False)


class RolloutQuery(BaseModel):
    """Which responses of a round."""

    model_config = ConfigDict(extra="forbid")

    round: int = Field(default=1, ge=1, le=10_000)
    """Round of the job."""
    label: Label | None = None
    """Only responses with this verdict."""
    level: int | None = Field(default=None, ge=1, lt=2**31)
    """Only responses to tasks of this level."""
    line: int | None = Field(default=None, ge=1, lt=2**31)
    """Only responses to the task at this line of the training file."""
    limit: int = Field(default=20, ge=1, le=100)
    after: str | None = None
    """Id of the last response of the page before."""


@router.get("/{job_id}/rollouts")
def rollouts(service: Service, job_id: str, query: Annotated[RolloutQuery, Query()]) -> RolloutPage:
    """The responses of a round, also the rejected ones, with their verdicts; there once its `verify` has finished."""
    table = _table(service, _find(service, job_id), query.round)
    wanted = {name: getattr(query, name) for name in ("label", "level", "line")}
    with cursor(query.after):
        found = select(
            table, equal={k: v for k, v in wanted.items() if v is not None}, after=query.after, limit=query.limit
        )
    data = [RolloutObject(round=query.round, **row) for row in found.rows]
    return RolloutPage(data=data, has_more=found.more, total=found.total, round=query.round)


@router.get("/{job_id}/rollouts/download")
def download(service: Service, job_id: str, round: RoundNumber = 1) -> FileResponse:
    """The whole table of a round as parquet, token ids included."""
    table = _table(service, _find(service, job_id), round)
    name = f"{job_id}-round-{round}-{table.name}"
    return FileResponse(table, media_type="application/vnd.apache.parquet", filename=name)


def _find(service: ServiceState, job_id: str) -> JobRow:
    job = find_job(service, job_id)
    method = job.spec["method"]["type"]
    if method != "self_improvement":
        raise Problem(404, "no_rounds", f"job {job_id} has no rounds of this kind: its method is {method}")
    return job


def _table(service: ServiceState, job: JobRow, number: int) -> Path:
    """The file that the phase `verify` of a round left."""
    phase = in_round("verify", number)
    row = service.store.phase(job.id, phase)
    if row is None or row.artifacts is None:
        if job.state in TERMINAL:
            raise Problem(404, "no_rollouts", f"job {job.id} has {job.state} without a phase {phase}", param="round")
        message = f"the phase {phase} of job {job.id} has not finished; see /v1/fine_tuning/jobs/{job.id}/phases"
        raise Problem(409, "rollouts_not_ready", message)
    table = parsed(row.artifacts, phase, VerifiedResponses).table
    if not table.is_file():
        raise not_found("table on disk of job", job.id, "fine_tuning_job_id")
    return table
