"""What did the model say, and was it right? The table that a `verify` phase left, filtered and cut into pages."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from services.jobs.store import UnknownCursorError
from services.results.draws import TablePage

COLUMNS = ("line", "level", "purpose", "sample", "seed", "text", "finish_reason", "logprob", "label", "detail", "ms")
"""Of one row per response, without its tokens."""


def select(file: Path, *, equal: dict[str, Any], after: str | None, limit: int) -> TablePage:
    """One page of the responses, in the order they were asked for, whose columns `equal` these values.

    Raises:
        UnknownCursorError: `after` is not the id of a row that passes.
    """
    table = pq.read_table(file, columns=list(COLUMNS))
    ids = pc.binary_join_element_wise(
        "rollout", pc.cast(table["line"], pa.string()), pc.cast(table["sample"], pa.string()), "-"
    )
    table = table.add_column(0, "id", ids)
    for column, value in equal.items():
        table = table.filter(pc.field(column) == value)
    start = 0
    if after is not None:
        start = int(pc.index(table["id"], after).as_py()) + 1
        if start == 0:
            raise UnknownCursorError(after)
    return TablePage(table.slice(start, limit).to_pylist(), len(table), start + limit < len(table))
