"""The rows of a file to convert: JSON lines or one JSON array, either of them in gzip."""

import contextlib
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from wmss.data.dataset import RowError, open_rows, parse_json, parse_object, text_lines
from wmss.data.forms import is_array, is_gzip, packing
from wmss.errors import DataError

HEAD_BYTES = 4096


def source_lines(source: Path) -> Iterator[tuple[int, str]]:
    """Non-empty lines of a text file with their numbers, out of gzip too; raises `DataError`."""
    try:
        with open_rows(source) as raw:
            zipped = is_gzip(raw.read(HEAD_BYTES))
            raw.seek(0)
            with gzip.open(raw) if zipped else contextlib.nullcontext(raw) as file:
                head = file.read(HEAD_BYTES)
                other = (
                    None if is_array(head) else packing(head, f"what {source.name} holds" if zipped else source.name)
                )
                if other is not None:
                    raise DataError(f"source: {other}", param="source")
                file.seek(0)
                yield from text_lines(file, param="source", name=source.name)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"source: {source.name} is damaged gzip: {error}; make it again", param="source") from error
    except OSError as error:
        raise DataError(f"source: cannot read {source}: {error.strerror}", param="source") from error


def is_packed(source: Path) -> bool:
    """Whether a file is gzip or one JSON array, which no job reads."""
    with open_rows(source) as file:
        head = file.read(HEAD_BYTES)
    return is_gzip(head) or is_array(head)


def source_rows(source: Path) -> Iterator[tuple[int, Callable[[], dict[str, Any]]]]:
    """Rows with their line, or in an array with their place in it; each is parsed, or raises `RowError`, when called.

    An array is read whole into memory.
    """
    lines = source_lines(source)
    first = next(lines, None)
    if first is None:
        return
    if not _opens_array(source, first[1]):
        yield first[0], partial(parse_object, first[1])
        for line, text in lines:
            yield line, partial(parse_object, text)
        return
    try:
        rows = parse_json("\n".join([first[1], *(text for _, text in lines)]))
    except RowError as error:
        raise DataError(f"source: expected one JSON array: {error} ({source.name})", param="source") from None
    for place, row in enumerate(rows, start=1):
        yield place, partial(parse_object, json.dumps(row))


def _opens_array(source: Path, first_line: str) -> bool:
    return first_line == "[" or is_array(first_line.encode())
