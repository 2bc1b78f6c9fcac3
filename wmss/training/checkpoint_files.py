"""What may be read of a training checkpoint without its models; what lies where is said in `checkpoints.py`.

Imports no transformers and nothing of torch.distributed, which a process that trains nothing would wait seconds for.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch

from wmss.errors import TrainingError

TOTALS = ("first_loss", "total_tokens", "total_s", "saturated_at")
"""Metrics of the whole run: loss of its first step, tokens, seconds of steps, step at which the margin was flat."""
STATE = "training_state.pt"
METRICS = "metrics.json"


class MarginReading(NamedTuple):
    """What the saturation detector saw at a step."""

    step: int
    margin: float
    """Mean logit margin of the strong model."""
    entropy: float
    """Mean entropy of the strong model, in nats."""


def load_metrics(folder: Path) -> dict[str, float]:
    """Metrics of a checkpoint's step."""
    metrics: dict[str, float] = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    return metrics


def best_checkpoint(folder: Path) -> Path:
    """The stored checkpoint of a run with the lowest `valid_loss`; of equal ones the later."""
    # A worker that was killed while it copied a checkpoint leaves a part of it.
    stored = [(load_metrics(found), found) for found in folder.glob("step-*") if is_complete(found)]
    return min(stored, key=lambda each: (each[0]["valid_loss"], -each[0]["step"]))[1]


def load_readings(folder: Path) -> list[MarginReading]:
    """Readings of the margin of the run up to a checkpoint."""
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)
    return [MarginReading(*reading) for reading in state["readings"]]


def verify(folder: Path) -> None:
    """Raise `TrainingError` unless every file of a checkpoint is there and has the digest it was written with."""
    records = _digests(folder)
    if not records:
        raise TrainingError(f"{folder} is no complete checkpoint: it has no digests; remove it to resume from another")
    for file, digest in records.items():
        if not file.is_file() or file_digest(file) != digest:
            raise TrainingError(
                f"{file} is {'damaged' if file.is_file() else 'missing'}; remove the checkpoint {folder} to resume "
                "from an earlier one"
            )


def is_complete(folder: Path) -> bool:
    """Whether all files of a checkpoint are there; what is in them is `verify`'s to read."""
    try:
        records = _digests(folder)
    except ValueError:  # half of a JSON file
        return False
    return bool(records) and all(file.is_file() for file in records)


def _digests(folder: Path) -> dict[Path, str]:
    """What the workers wrote down, file by file."""
    return {
        folder / name: digest
        for record in sorted(folder.glob("digests_rank*.json"))
        for name, digest in json.loads(record.read_text(encoding="utf-8")).items()
    }


def file_digest(file: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
