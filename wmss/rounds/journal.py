"""A job's memory: what a phase leaves is a typed record, written when the phase ends and checked when it is read."""

import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from wmss.errors import RecordError

Artifacts = dict[str, JsonValue]
"""A record as JSON values, the form that is stored and that the API shows. Read a field through its record only: mypy
then refuses a misspelt one."""


class Record(BaseModel):
    """What a phase leaves, or a part of it. Frozen; a misspelt or out-of-range field is refused at construction."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


RecordKind = TypeVar("RecordKind", bound=Record)


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


def parsed(artifacts: Artifacts, phase: str, kind: type[RecordKind]) -> RecordKind:
    """The record of a phase from its stored form.

    Raises:
        RecordError: it was stored by a release that recorded other fields of this phase.
    """
    try:
        return kind.model_validate(artifacts)
    except ValidationError as error:
        fields = "; ".join(f"{'.'.join(map(str, each['loc']))} ({each['msg']})" for each in error.errors())
        raise RecordError(
            f"phase {phase}: expected what this release records ({kind.__name__}), got another form: {fields}; the job "
            "was begun by another release: finish it with that one, or cancel it and submit it again"
        ) from error


def recorded(journal: Journal, phase: str, kind: type[RecordKind]) -> RecordKind | None:
    """The record of a finished phase, None if it has not finished; raises as `parsed` does."""
    artifacts = journal.artifacts(phase)
    return None if artifacts is None else parsed(artifacts, phase, kind)


def required(journal: Journal, phase: str, kind: type[RecordKind]) -> RecordKind:
    """The record of a phase that ran before, in this attempt or an earlier one; raises as `parsed` does."""
    record = recorded(journal, phase, kind)
    assert record is not None, f"phase {phase} has not run"
    return record


def once(
    journal: Journal,
    phase: str,
    kind: type[RecordKind],
    run: Callable[[], RecordKind],
    *,
    done: Callable[[float], str],
    still_valid: Callable[[RecordKind], bool] = lambda record: True,
) -> RecordKind:
    """Run a phase unless its record is there and still valid; `done(seconds)` is what its owner is told.

    Raises:
        RecordError: the phase was recorded by another release, see `parsed`.
    """
    found = recorded(journal, phase, kind)
    if found is not None and still_valid(found):
        return found
    journal.start(phase)
    started = time.monotonic()
    record = run()
    # mypy lets two kinds of record meet in their common base, and the next attempt could not read this one.
    assert isinstance(record, kind), f"phase {phase} left {type(record).__name__}, not {kind.__name__}"
    journal.finish(phase, record.model_dump(mode="json"))
    journal.event(done(time.monotonic() - started))
    return record
