"""How an attempt ends that leaves its job running, and what of it counts.

An attempt is one start of a job's driver. One that *failed* counts towards `WMSS_MAX_ATTEMPTS` until the job makes
progress. One that was *lost*, because node, head, lease or service went away, does not count.
"""

from dataclasses import asdict, dataclass
from typing import Any, Self

LOST_EXIT_CODE = 75
"""Exit code of a driver that lost what it runs on and could not write so: EX_TEMPFAIL of sysexits.h."""
NODE_DIED_SIGNS = (
    "its node has died",
    "the node it was running on is dead",
    "NodeAffinitySchedulingStrategy doesn't exist any more",
)
"""What Ray says of an actor, of a task, and of what Ray Train wants to place beside others, whose node is gone."""


@dataclass(frozen=True)
class AttemptEnd:
    """Why an attempt ended without a verdict on its job."""

    code: str
    """What the job's error says if it gets no other attempt."""
    message: str
    """The cause, as part of a sentence."""
    counts: bool
    """Whether it failed; otherwise it was lost."""

    def as_json(self) -> dict[str, Any]:
        """As the database holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any] | None) -> Self | None:
        """The same again."""
        return None if value is None else cls(**value)
