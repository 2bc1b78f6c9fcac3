"""Stored results: one JSON line per (setting, seed, arm), appended when it is finished and never computed again."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Key = tuple[str, int, str]


def key_of(row: Row) -> Key:
    """(digest of the setting, seed, arm)."""
    return row["digest"], row["seed"], row["arm"]


def load_rows(file: Path) -> dict[Key, Row]:
    """All stored rows. A last line without its end, which an interrupted run leaves, is not a finished row.

    Raises:
        ValueError: another line is no row, or a key comes twice.
    """
    if not file.is_file():
        return {}
    rows: dict[Key, Row] = {}
    text = file.read_text(encoding="utf-8")
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            row = json.loads(line)
            key = key_of(row)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: expected a row with digest, seed and arm; remove the line") from error
        if key in rows:
            raise ValueError(f"{file}:{number}: {key} is there twice; remove one")
        rows[key] = row
    return rows


def append_row(file: Path, row: Row) -> None:
    """Add a finished row, on disk when this returns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as handle:
        size = handle.seek(0, os.SEEK_END)
        if size:
            handle.seek(0)
            whole = handle.read().rfind(b"\n") + 1
            handle.truncate(whole)
        handle.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())


def missing(wanted: Iterable[Key], rows: dict[Key, Row]) -> list[Key]:
    """Keys without a row, in the order of `wanted`."""
    return [key for key in wanted if key not in rows]
