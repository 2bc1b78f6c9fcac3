"""A job's memory: what a phase leaves is a typed record, written when the phase ends and checked when it is read."""

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from wmss.errors import WmssError

Artifacts = dict[str, Any]
"""A record as JSON values, the form that is stored and that the API shows."""


class Record(BaseModel):
    """What a phase leaves, or a part of it. Frozen; a misspelt or out-of-range field is refused at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


Kind = TypeVar("Kind", bound=Record)


class RecordError(WmssError):
    """A phase was recorded in a form that this release cannot read."""

    code = "other_release"


class Journal(Protocol):
    """Durable memory of a job: what is done, and what its owner is told."""

    def artifacts(self, phase: str) -> Artifacts | None:
        """What a finished phase recorded, or None."""

    def start(self, phase: str) -> None:
        """A phase begins."""

    def finish(self, phase: str, artifacts: Artifacts) -> None:
        """A phase is done; its artifacts become visible to a restarted job at once."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """How far a phase is."""

    def event(self, message: str, *, level: str = "info", data: dict[str, Any] | None = None) -> None:
        """Tell the owner."""


def recorded(journal: Journal, phase: str, kind: type[Kind]) -> Kind | None:
    """The record of a finished phase, or None.

    Raises:
        RecordError: it was recorded by a release whose records had other fields.
    """
    artifacts = journal.artifacts(phase)
    if artifacts is None:
        return None
    try:
        return kind.model_validate(artifacts)
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise RecordError(
            f"phase {phase}: expected the record of this release ({kind.__name__}), got another in {fields}: the job "
            "was begun by another release; finish it with that one, or cancel it and submit it again"
        ) from error


def once(
    journal: Journal,
    phase: str,
    kind: type[Kind],
    run: Callable[[], Kind],
    *,
    done: Callable[[float], str],
    still_valid: Callable[[Kind], bool] = lambda record: True,
) -> Kind:
    """Run a phase unless its record is there and still valid; `done(seconds)` is what its owner is told."""
    found = recorded(journal, phase, kind)
    if found is not None and still_valid(found):
        return found
    journal.start(phase)
    started = time.monotonic()
    record = run()
    journal.finish(phase, record.model_dump(mode="json"))
    journal.event(done(time.monotonic() - started))
    return record
