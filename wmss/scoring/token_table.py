"""A table with one row per supervised token, in bounded memory: statistics arrive sample by sample, in any order."""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wmss.data.states import StateCache, StateWriter
from wmss.records import TokenizedSample

PROVENANCE = "wmss.provenance"
"""Key of a table's parquet metadata: JSON, what `Scorer.provenance` said of the engine."""
ROWS_PER_GROUP = 2**16
"""Least rows of a row group: what is held in memory at a time, beside the longest sample."""

_SCHEMA = pa.schema(
    [
        ("line", pa.int32()),
        ("position", pa.int32()),
        ("token_id", pa.int32()),
        ("entropy", pa.float32()),
        ("nll", pa.float32()),
        ("logsumexp", pa.float32()),
        ("top1", pa.bool_()),
    ]
)


class TokenTableWriter:
    """Makes the table of one file's samples; it appears under its name when `close` finds it complete.

    A row is a supervised token: the sample's `line` in the file, the token's `position` in the sample (from 0), its id,
    and of the distribution that predicts it, which stands one position before: entropy (nats), NLL of the token (nats),
    logsumexp of the logits, and whether no token was likelier. Rows are in file order. Until it is closed, the
    statistics lie in a file beside it, 16 bytes a token, under a name that only this `owner` uses.
    """

    def __init__(self, path: Path, samples: Sequence[TokenizedSample], owner: str) -> None:
        self._path = path
        self._samples = samples
        self._partial = path.with_suffix(f".{owner}.partial")
        self._scratch = path.with_suffix(f".{owner}.rows")
        self._rows = StateWriter(self._scratch, samples)

    def write(self, index: int, statistics: npt.NDArray[np.float32]) -> None:
        """Statistics [num_targets, NUM_STATISTICS] of one sample."""
        self._rows.write(index, statistics)

    def close(self, provenance: dict[str, Any]) -> None:
        """Publish the table, with what its scorer said of itself."""
        self._rows.close()
        schema = _SCHEMA.with_metadata({PROVENANCE: json.dumps(provenance)})
        cache = StateCache(self._scratch)
        with pq.ParquetWriter(self._partial, schema) as file:
            for group in _groups(self._samples):
                columns = _columns([self._samples[index] for index in group], cache.rows(group).numpy())
                file.write_table(pa.table(columns, schema=schema))
        self._partial.rename(self._path)
        shutil.rmtree(self._scratch)


def _groups(samples: Sequence[TokenizedSample]) -> Iterator[range]:
    """Neighbouring samples that fill a row group."""
    start = rows = 0
    for index, sample in enumerate(samples):
        rows += sample.num_targets
        if rows >= ROWS_PER_GROUP or index == len(samples) - 1:
            yield range(start, index + 1)
            start, rows = index + 1, 0


def _columns(samples: Sequence[TokenizedSample], statistics: npt.NDArray[np.float32]) -> dict[str, Any]:
    """Columns of all supervised tokens of some samples; statistics [tokens, NUM_STATISTICS]."""
    targets = [np.flatnonzero(sample.target_mask) for sample in samples]
    entropy, nll, logsumexp, top1 = np.ascontiguousarray(statistics.T)
    return {
        "line": np.repeat(np.array([sample.line for sample in samples], np.int32), [len(where) for where in targets]),
        "position": np.concatenate(targets).astype(np.int32),
        "token_id": np.concatenate([s.input_ids[where] for s, where in zip(samples, targets, strict=True)]),
        "entropy": entropy,
        "nll": nll,
        "logsumexp": logsumexp,
        "top1": top1 == 1.0,
    }
