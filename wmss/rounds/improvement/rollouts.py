"""The responses of a round on disk: every one of them, also the rejected ones, with how it was drawn and judged.

A file is written whole or not at all, so one that exists is done and a restarted job goes on after it.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from wmss.records import Completion, Verdict

_RESPONSES = pa.schema(
    [
        ("line", pa.int32()),
        ("level", pa.int32()),
        ("purpose", pa.string()),
        ("sample", pa.int32()),
        ("seed", pa.int64()),
        ("token_ids", pa.list_(pa.int32())),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("logprob", pa.float64()),
    ]
)
_JUDGED = pa.schema([*_RESPONSES, ("label", pa.string()), ("detail", pa.string()), ("ms", pa.float64())])

_ROWS_A_GROUP = 512
"""A page of responses is read from the row groups that hold it: with texts and tokens some MB each."""


@dataclass(frozen=True)
class Rollout:
    """One response of a round."""

    line: int
    """Of its task in the task file."""
    level: int
    purpose: str
    """Why its task was asked: focus, probe or replay."""
    sample: int
    """Which of its task's responses it is, from 0."""
    seed: int
    text: str
    completion: Completion


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard's responses lie."""
    return folder / f"shard-{number:05d}.parquet"


def shards_in(folder: Path) -> list[Path]:
    """All shards of a folder, in order."""
    return sorted(folder.glob("shard-*.parquet"))


def write_rollouts(rollouts: Sequence[Rollout], path: Path, *, origin: Mapping[str, Any]) -> None:
    """One shard; `origin` says which model and engine its responses come from."""
    schema = _RESPONSES.with_metadata({"wmss": json.dumps(dict(origin))})
    _write_whole(pa.table(_columns(rollouts), schema=schema), path)


def read_rollouts(paths: Sequence[Path]) -> list[Rollout]:
    """What `write_rollouts` wrote, shard after shard."""
    return [_rollout(row) for path in paths for row in pq.read_table(path).to_pylist()]


def write_judged(rollouts: Sequence[Rollout], verdicts: Sequence[Verdict], path: Path) -> None:
    """All responses of a round with their verdicts, for the phases after VERIFY and for people."""
    found = {name: [getattr(each, name) for each in verdicts] for name in ("label", "detail", "ms")}
    _write_whole(pa.table(_columns(rollouts) | found, schema=_JUDGED), path)


def read_judged(path: Path) -> tuple[list[Rollout], list[Verdict]]:
    """What `write_judged` wrote."""
    rows = pq.read_table(path).to_pylist()
    return [_rollout(row) for row in rows], [Verdict(row["label"], row["detail"], row["ms"]) for row in rows]


def _columns(rollouts: Sequence[Rollout]) -> dict[str, list[Any]]:
    own = ("line", "level", "purpose", "sample", "seed", "text")
    return {name: [getattr(each, name) for each in rollouts] for name in own} | {
        "token_ids": [list(each.completion.token_ids) for each in rollouts],
        "finish_reason": [each.completion.finish_reason for each in rollouts],
        "logprob": [each.completion.logprob for each in rollouts],
    }


def _rollout(row: Mapping[str, Any]) -> Rollout:
    return Rollout(
        line=row["line"],
        level=row["level"],
        purpose=row["purpose"],
        sample=row["sample"],
        seed=row["seed"],
        text=row["text"],
        completion=Completion(tuple(row["token_ids"]), row["finish_reason"], row["logprob"]),
    )


def _write_whole(table: pa.Table, path: Path) -> None:
    partial = path.with_suffix(".partial")
    pq.write_table(table, partial, row_group_size=_ROWS_A_GROUP)
    os.replace(partial, path)
