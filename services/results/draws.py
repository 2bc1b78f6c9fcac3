"""Why was a sample drawn? The table that the `weigh` phase left, sorted, filtered and cut into pages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.jobs.store import UnknownCursorError
from services.results.kept import Kept
from wmss.data.dataset import Sample

COLUMNS = (
    "line",
    "num_targets",
    "weak_entropy",
    "strong_entropy",
    "entropy_delta",
    "weak_nll",
    "strong_nll",
    "weight",
    "times_drawn",
)
"""Of one row per sample; a draw that reads no entropies has neither those nor the NLLs."""
MAX_SHOWN = 200
"""Characters of a prompt, and of a completion, in a page of shortened texts."""
KEPT_BYTES = 64 * 2**20
"""Of tables in orders that were asked for: 700,000 samples in one of them."""


@dataclass(frozen=True)
class Filter:
    """Rows whose value in a column lies between two numbers, both included; None bounds nothing."""

    column: str
    least: float | None
    greatest: float | None


class MissingColumnError(ValueError):
    """The table has no such column; the argument is its name."""


@dataclass(frozen=True)
class TablePage:
    """A page of a table."""

    rows: list[dict[str, Any]]
    """By column, and with an id; what the table lacks is None."""
    total: int
    """Rows that pass the filters, on all pages."""
    more: bool


def select(file: Path, *, sort: str, filters: Sequence[Filter], after: str | None, limit: int) -> TablePage:
    """One page: the rows that pass all filters, by the column `sort`, with "-" before it falling.

    Rows of equal value are in the order of their lines, so the id of a sample says where a page begins.

    Raises:
        MissingColumnError: a column to sort by or to filter has not been recorded.
        UnknownCursorError: `after` is not the id of a row that passes.
    """
    column = sort.removeprefix("-")
    recorded = pq.read_schema(file).names
    for name in (column, *(each.column for each in filters)):
        if name not in recorded:
            raise MissingColumnError(name)
    if sort == "line" and not filters:
        page = _page_of_lines(file, after, limit)
        if page is not None:
            return page
    ordered = _ORDERED.of(file, (sort, tuple(filters)), lambda: _ordered(file, sort, filters), _Ordered.num_bytes)
    start = 0 if after is None else ordered.position(after) + 1
    rows = ordered.table.slice(start, limit)
    return TablePage(_complete(rows), len(ordered.table), start + limit < len(ordered.table))


@dataclass(frozen=True)
class _Ordered:
    """A table's rows that pass filters, in an order."""

    table: pa.Table
    lines: npt.NDArray[np.int64]
    """Ascending."""
    places: npt.NDArray[np.int64]
    """Of the row of each of `lines`."""

    def position(self, after: str) -> int:
        """Where the sample with this id is."""
        line = _line(after)
        place = int(np.searchsorted(self.lines, line))
        if place == len(self.lines) or self.lines[place] != line:
            raise UnknownCursorError(after)
        return int(self.places[place])

    def num_bytes(self) -> int:
        """Memory of all of it."""
        return int(self.table.nbytes) + self.lines.nbytes + self.places.nbytes


_ORDERED: Kept[_Ordered] = Kept(KEPT_BYTES)


def _ordered(file: Path, sort: str, filters: Sequence[Filter]) -> _Ordered:
    table = pq.read_table(file)
    column, order = sort.removeprefix("-"), "descending" if sort.startswith("-") else "ascending"
    for each in filters:
        table = _passing(table, each)
    # A second key for a sort by line would be that line again.
    keys = [(column, order)] if column == "line" else [(column, order), ("line", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=keys))
    lines = table["line"].to_numpy().astype(np.int64)
    places = np.argsort(lines, kind="stable")
    return _Ordered(table, lines[places], places)


def _page_of_lines(file: Path, after: str | None, limit: int) -> TablePage | None:
    """A page of all rows in the order of their lines, read from the row groups that hold it; None where the file's
    rows are in another order, or it does not say which lines its row groups hold."""
    with pq.ParquetFile(file) as parquet:
        bounds = _line_bounds(parquet.metadata)
        if bounds is None:
            return None
        least, greatest = bounds
        total, group, skipped = parquet.metadata.num_rows, 0, 0
        if after is not None:
            line = _line(after)
            group = int(np.searchsorted(greatest, line))
            if group == len(greatest) or line < least[group]:
                raise UnknownCursorError(after)
            held = parquet.read_row_group(group, columns=["line"])["line"].to_numpy()
            [places] = np.nonzero(held == line)
            if len(places) == 0:
                raise UnknownCursorError(after)
            skipped = int(places[0]) + 1
        before = sum(parquet.metadata.row_group(each).num_rows for each in range(group)) + skipped
        parts: list[pa.Table] = []
        while group < len(greatest) and sum(map(len, parts)) < limit:
            table = parquet.read_row_group(group)
            if (np.diff(table["line"].to_numpy()) <= 0).any():
                return None
            parts.append(table.slice(skipped))
            group, skipped = group + 1, 0
        rows = pa.concat_tables(parts).slice(0, limit) if parts else parquet.schema_arrow.empty_table()
    return TablePage(_complete(rows), total, before + limit < total)


def _line_bounds(metadata: pq.FileMetaData) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """The least and the greatest line of each row group, where all lines of one are above those of the group before."""
    number = metadata.schema.names.index("line")
    said = [metadata.row_group(group).column(number).statistics for group in range(metadata.num_row_groups)]
    if not said or not all(each is not None and each.has_min_max for each in said):
        return None
    least, greatest = (np.array([getattr(each, end) for each in said], dtype=np.int64) for end in ("min", "max"))
    return (least, greatest) if (least[1:] > greatest[:-1]).all() else None


def _complete(rows: pa.Table) -> list[dict[str, Any]]:
    return [{"id": f"sample-{row['line']}"} | {name: row.get(name) for name in COLUMNS} for row in rows.to_pylist()]


def _passing(table: pa.Table, each: Filter) -> pa.Table:
    if each.least is not None:
        table = table.filter(pc.field(each.column) >= each.least)
    if each.greatest is not None:
        table = table.filter(pc.field(each.column) <= each.greatest)
    return table


def _line(after: str) -> int:
    match = re.fullmatch(r"sample-([0-9]{1,18})", after)
    if match is None:
        raise UnknownCursorError(after)
    return int(match.group(1))


def texts(sample: Sample, *, full: bool) -> dict[str, Any]:
    """What was asked and what is to be learned: of a chat all that stands before the last supervised turn, and it."""
    prompt = sample.prompt
    if sample.messages:
        before = sample.messages[: sample.supervised_turns[-1]]
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in before)
    whole = {"prompt": prompt, "completion": sample.answer}
    cut = whole if full else {name: text[:MAX_SHOWN] for name, text in whole.items()}
    return cut | {"shortened": cut != whole}
