"""/v1/fine_tuning/jobs/{id}/samples: entropies, weight and draws of every training sample, and its text."""

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from services.api.error_responses import Problem, cursor, not_found
from services.api.fine_tuning import find_job
from services.api.schemas import SampleObject, SamplePage
from services.api.state import Service, ServiceState
from services.jobs.states import TERMINAL
from services.jobs.tables import JobRow
from services.results.draws import COLUMNS, Filter, MissingColumnError, select, texts
from wmss.config import JobSpec
from wmss.data.line_index import samples_at
from wmss.errors import shown
from wmss.rounds.journal import parsed
from wmss.rounds.phase_records import Weighed
from wmss.rounds.phases import in_round, kind_and_round, phases_of

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

Bound = Annotated[float | None, Field(allow_inf_nan=False)]


def _is_column(value: str) -> str:
    if value.removeprefix("-") not in COLUMNS:
        raise ValueError(f"expected one of {', '.join(COLUMNS)}, falling with '-' before it, got {shown(value)}")
    return value


class SampleQuery(BaseModel):
    """Which samples, in which order. Entropies and NLLs are means per supervised token, in nats."""

    model_config = ConfigDict(extra="forbid")

    round: int = Field(default=1, ge=1)
    """Round of the job whose draw is shown."""
    sort: Annotated[str, AfterValidator(_is_column)] = "line"
    """Column to sort by, falling with "-" before it; equal values follow in the order of their lines."""
    limit: int = Field(default=20, ge=1, le=100)
    after: str | None = None
    """Id of the last sample of the page before."""
    text: Literal["short", "full", "none"] = "short"
    """Prompt and completion: their first 200 characters, all, or not at all."""
    line: int | None = Field(default=None, ge=1, lt=2**63)
    """Only the sample at this line of the training file."""
    min_num_targets: Bound = None
    max_num_targets: Bound = None
    min_weak_entropy: Bound = None
    max_weak_entropy: Bound = None
    min_strong_entropy: Bound = None
    max_strong_entropy: Bound = None
    min_entropy_delta: Bound = None
    max_entropy_delta: Bound = None
    min_weak_nll: Bound = None
    max_weak_nll: Bound = None
    min_strong_nll: Bound = None
    max_strong_nll: Bound = None
    min_weight: Bound = None
    max_weight: Bound = None
    times_drawn: int | None = Field(default=None, ge=0, lt=2**63)
    """Only samples drawn exactly this often; 0 = never."""
    min_times_drawn: Bound = None
    max_times_drawn: Bound = None

    @property
    def filters(self) -> list[Filter]:
        """What was asked of the columns."""
        exact = [Filter(name, getattr(self, name), getattr(self, name)) for name in ("line", "times_drawn")]
        ranges = [
            Filter(name, getattr(self, f"min_{name}"), getattr(self, f"max_{name}"))
            for name in COLUMNS
            if name != "line"
        ]
        return [each for each in (*exact, *ranges) if (each.least, each.greatest) != (None, None)]


@router.get("/{job_id}/samples")
def samples(service: Service, job_id: str, query: Annotated[SampleQuery, Query()]) -> SamplePage:
    """The draw of one round, sample by sample: what it was decided by, and the sample's text.

    There as soon as the phase `weigh` has finished; the texts only while the training file is.
    """
    job = find_job(service, job_id)
    table = _table(service, job, query.round)
    try:
        with cursor(query.after):
            found = select(table, sort=query.sort, filters=query.filters, after=query.after, limit=query.limit)
    except MissingColumnError as error:
        message = f"{error}: the draw of job {job_id} read no entropies, so there is none to sort or filter by"
        raise Problem(400, "no_entropies", message, param=str(error)) from None
    path = service.settings.file_path(job.spec["training_file"])
    shown_texts: dict[int, dict[str, Any]] = {}
    if query.text != "none" and path.is_file():
        at = samples_at(path, {row["line"] for row in found.rows})
        shown_texts = {line: texts(sample, full=query.text == "full") for line, sample in at.items()}
    data = [SampleObject(**row, **shown_texts.get(row["line"], {})) for row in found.rows]
    return SamplePage(data=data, has_more=found.more, total=found.total, round=query.round)


@router.get("/{job_id}/samples/download")
def download(service: Service, job_id: str, round: Annotated[int, Query(ge=1)] = 1) -> FileResponse:
    """The whole table of a round as parquet; its schema's metadata, under `wmss`, say what the entropies come from."""
    table = _table(service, find_job(service, job_id), round)
    return FileResponse(table, media_type="application/vnd.apache.parquet", filename=f"{job_id}-{table.name}")


def _table(service: ServiceState, job: JobRow, number: int) -> Path:
    """The file that the phase `weigh` of a round left."""
    kinds = [kind_and_round(phase)[0] for phase in phases_of(JobSpec.model_validate(job.spec))]
    rounds = kinds.count("weigh")
    if rounds == 0:
        message = f"job {job.id} draws no samples: it trains on every one ({_why_all(job)})"
        raise Problem(404, "no_samples", message)
    if number > rounds:
        raise Problem(404, "no_samples", f"round: expected 1 to {rounds}, got {number}", param="round")
    phase = in_round("weigh", number)
    row = service.store.phase(job.id, phase)
    if row is None or row.artifacts is None:
        if job.state in TERMINAL:
            raise Problem(404, "no_samples", f"job {job.id} has {job.state} before its phase {phase}")
        message = f"the phase {phase} of job {job.id} has not finished; see /v1/fine_tuning/jobs/{job.id}/phases"
        raise Problem(409, "samples_not_ready", message)
    table = parsed(row.artifacts, phase, Weighed).table
    if not table.is_file():
        raise not_found("table on disk of job", job.id, "fine_tuning_job_id")
    return table


def _why_all(job: JobRow) -> str:
    kind = job.spec["method"]["type"]
    return "weighting is 'all'" if kind == "wmss" else f"its method is {kind}"
