"""Why was a sample drawn? The table that the `weigh` phase left, sorted, filtered and cut into pages."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.jobs.store import UnknownCursorError
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
    table = pq.read_table(file)
    column, order = sort.removeprefix("-"), "descending" if sort.startswith("-") else "ascending"
    for name in (column, *(each.column for each in filters)):
        if name not in table.column_names:
            raise MissingColumnError(name)
    for each in filters:
        table = _passing(table, each)
    # A second key for a sort by line would be that line again.
    keys = [(column, order)] if column == "line" else [(column, order), ("line", "ascending")]
    table = table.take(pc.sort_indices(table, sort_keys=keys))
    start = 0 if after is None else _position(table, after) + 1
    rows = table.slice(start, limit).to_pylist()
    complete = [{"id": f"sample-{row['line']}"} | {name: row.get(name) for name in COLUMNS} for row in rows]
    return TablePage(complete, len(table), start + limit < len(table))


def _passing(table: pa.Table, each: Filter) -> pa.Table:
    if each.least is not None:
        table = table.filter(pc.field(each.column) >= each.least)
    if each.greatest is not None:
        table = table.filter(pc.field(each.column) <= each.greatest)
    return table


def _position(table: pa.Table, after: str) -> int:
    match = re.fullmatch(r"sample-([0-9]{1,18})", after)
    position = -1 if match is None else int(pc.index(table["line"], int(match.group(1))).as_py())
    if position < 0:
        raise UnknownCursorError(after)
    return position


def texts(sample: Sample, *, full: bool) -> dict[str, Any]:
    """What was asked and what is to be learned: of a chat all that stands before the last supervised turn, and it."""
    prompt = sample.prompt
    if sample.messages:
        before = sample.messages[: sample.supervised_turns[-1]]
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in before)
    whole = {"prompt": prompt, "completion": sample.answer}
    cut = whole if full else {name: text[:MAX_SHOWN] for name, text in whole.items()}
    return cut | {"shortened": cut != whole}
