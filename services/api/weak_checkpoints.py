"""/v1/weak_checkpoints: checkpoints registered by their digests, to be named by id where a job names a model."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from services.api.error_responses import Problem, cursor, not_found
from services.api.schemas import DeletedWeakCheckpoint, Page, WeakCheckpointObject
from services.api.state import Service, ServiceState
from services.catalog.hub import HubUnavailableError
from services.catalog.registry import forget_download, register
from services.jobs.tables import WeakCheckpointRow
from wmss.config import MetadataKey, MetadataValue, ModelName

router = APIRouter(prefix="/v1/weak_checkpoints", tags=["weak checkpoints"])


class NewWeakCheckpoint(BaseModel):
    """A checkpoint to be registered."""

    model_config = ConfigDict(extra="forbid")

    model: ModelName
    """What a job may name, or a model of the Hugging Face hub as ORGANISATION/NAME@REVISION."""
    metadata: dict[MetadataKey, MetadataValue] | None = Field(default=None, max_length=16)
    """Pairs of your own, as a job's."""


@router.post("")
def create(service: Service, body: NewWeakCheckpoint) -> WeakCheckpointObject:
    """Register a checkpoint; what a job would refuse is refused.

    Its files are read once, for their digests, and downloaded before that if it is the hub's: the answer takes as
    long. The same content under the same name answers with the checkpoint that is there.
    """
    try:
        row = register(body.model, body.metadata, store=service.store, settings=service.settings)
    except HubUnavailableError as error:
        message = f"model: {error}; nothing was registered"
        raise Problem(503, "hub_unavailable", message, param="model", retry_after=10) from error
    if body.metadata is not None and body.metadata != row.labels:
        message = f"metadata: {row.id} is the same checkpoint with other metadata; delete it and register it again"
        raise Problem(409, "checkpoint_exists", message, param="metadata")
    return WeakCheckpointObject.of(row)


@router.get("")
def list_weak_checkpoints(
    service: Service, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> Page[WeakCheckpointObject]:
    """Newest first."""
    with cursor(after):
        rows, more = service.store.weak_checkpoints(after=after, limit=limit)
    return Page(data=[WeakCheckpointObject.of(row) for row in rows], has_more=more)


@router.get("/{checkpoint_id}")
def retrieve(service: Service, checkpoint_id: str) -> WeakCheckpointObject:
    """One of them."""
    return WeakCheckpointObject.of(_checkpoint(service, checkpoint_id))


@router.delete("/{checkpoint_id}")
def delete(service: Service, checkpoint_id: str) -> DeletedWeakCheckpoint:
    """Forget a checkpoint; one that a queued or running job names answers 409.

    Folders of models and of jobs stay. What was downloaded from the hub is deleted, unless it is registered under
    another id too.
    """
    row = _checkpoint(service, checkpoint_id)
    named_by = service.store.delete_weak_checkpoint(checkpoint_id)
    if named_by:
        message = f"checkpoint_id: {checkpoint_id} is needed by {', '.join(named_by)}; cancel or await the job"
        raise Problem(409, "checkpoint_in_use", message, param="checkpoint_id")
    forget_download(Path(row.path), service.store, service.settings)
    return DeletedWeakCheckpoint(id=checkpoint_id)


def _checkpoint(service: ServiceState, checkpoint_id: str) -> WeakCheckpointRow:
    row = service.store.weak_checkpoint(checkpoint_id)
    if row is None:
        raise not_found("weak checkpoint", checkpoint_id, "checkpoint_id")
    return row
