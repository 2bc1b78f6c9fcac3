"""Which states a job can be in, and what the outside world is told."""

from enum import StrEnum


class State(StrEnum):
    """State of a job in the database."""

    QUEUED = "queued"
    RUNNING = "running"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
ACTIVE = (State.QUEUED, State.RUNNING, State.CANCELLING)


def public_status(state: State) -> str:
    """OpenAI's `status`: its readers know no transitional states, so `cancelling` still reads `running`."""
    return State.RUNNING.value if state is State.CANCELLING else state.value
