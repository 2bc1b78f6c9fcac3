"""What the phases of weak-driven, supervised and scoring jobs leave. Importing this loads no torch.

Trained checkpoints, whose record says how to train on from them, stand in `training.py`.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wmss.rounds.journal import Record

Count = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Exported(Record):
    """Left by `export`."""

    path: Path
    """The finished model's folder."""
    name: str
    digest: str
    num_bytes: Count
