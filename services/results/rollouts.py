"""What did the model say, and was it right? The table that a `verify` phase left, filtered and cut into pages."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.jobs.store import UnknownCursorError
from services.results.draws import TablePage
from services.results.kept import Kept

COLUMNS = ("line", "level", "purpose", "sample", "seed", "text", "finish_reason", "logprob", "label", "detail", "ms")
"""Of one row per response, without its tokens."""
KEPT_BYTES = 32 * 2**20
"""Of places of responses that were asked for: over a million of them."""


def select(file: Path, *, equal: dict[str, Any], after: str | None, limit: int) -> TablePage:
    """One page of the responses, in the order they were asked for, whose columns `equal` these values.

    Raises:
        UnknownCursorError: `after` is not the id of a row that passes.
    """
    key = tuple(sorted(equal.items()))
    passing = _PASSING.of(file, key, lambda: _passing(file, equal), _Passing.num_bytes)
    start = 0 if after is None else passing.position(after) + 1
    rows = _rows(file, passing.places[start : start + limit])
    total = len(passing.places)
    data = [{"id": f"rollout-{row['line']}-{row['sample']}"} | row for row in rows]
    return TablePage(data, total, start + limit < total)


@dataclass(frozen=True)
class _Passing:
    """Where in a table the responses are that pass a filter."""

    places: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    """Line and sample of each as one number, ascending."""
    order: npt.NDArray[np.int64]
    """Which of `places` each of `keys` has."""

    def position(self, after: str) -> int:
        """Which of `places` the response with this id has."""
        match = re.fullmatch(r"rollout-([0-9]{1,10})-([0-9]{1,10})", after)
        line, sample = (int(number) for number in match.groups()) if match else (-1, -1)
        key = _key(line, sample)
        if after != f"rollout-{line}-{sample}" or not 0 <= key < 2**63:
            raise UnknownCursorError(after)
        place = int(np.searchsorted(self.keys, key))
        if place == len(self.keys) or self.keys[place] != key:
            raise UnknownCursorError(after)
        return int(self.order[place])

    def num_bytes(self) -> int:
        """Memory of all of it."""
        return self.places.nbytes + self.keys.nbytes + self.order.nbytes


_PASSING: Kept[_Passing] = Kept(KEPT_BYTES)


def _key(line: Any, sample: Any) -> Any:
    return (line << 32) + sample


def _passing(file: Path, equal: dict[str, Any]) -> _Passing:
    table = pq.read_table(file, columns=list({"line", "sample", *equal}))
    table = table.append_column("place", pa.array(np.arange(len(table))))
    for column, value in equal.items():
        table = table.filter(pc.field(column) == value)
    line, sample, places = (table[name].to_numpy().astype(np.int64) for name in ("line", "sample", "place"))
    keys = _key(line, sample)
    order = np.argsort(keys, kind="stable")
    return _Passing(places, keys[order], order)


def _rows(file: Path, places: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows at ascending places, read from the row groups that hold them."""
    with pq.ParquetFile(file) as parquet:
        sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        groups = np.searchsorted(starts, places, side="right") - 1
        rows: list[dict[str, Any]] = []
        for group in np.unique(groups):
            table = parquet.read_row_group(int(group), columns=list(COLUMNS))
            rows += table.take(pa.array(places[groups == group] - starts[group])).select(COLUMNS).to_pylist()
    return rows
