"""Tables of scores as JSON lines, for those who do not read parquet."""

import json
from collections.abc import Iterator
from pathlib import Path

ROWS_AT_A_TIME = 4096


def json_lines(table: Path) -> Iterator[str]:
    """A parquet table row by row as JSON, in texts of some thousand lines: no more than these is held in memory."""
    import pyarrow.parquet as pq  # late: commands and the API start without it

    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(ROWS_AT_A_TIME):
            yield "".join(json.dumps(row) + "\n" for row in batch.to_pylist())
