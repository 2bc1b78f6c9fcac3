"""Single rows of a large file, without reading those before them."""

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wmss.data.dataset import Sample, open_rows, parse_object, parse_row
from wmss.errors import DataError

_EVERY = 64
"""Lines from one known place to the next: 8 bytes for so many rows, and at most so many are read to find one."""
_CHUNK_BYTES = 2**20


def samples_at(path: Path, lines: Collection[int], *, param: str = "training_file") -> dict[int, Sample]:
    """The samples of a file that has been read before, by line; one that the file no longer has is left out.

    The first call reads the file through, the next ones only near these lines, as long as the file is not written to.

    Raises:
        DataError: the file cannot be read.
    """
    found: dict[int, Sample] = {}
    try:
        status = path.stat()
        starts = _starts(path, status.st_size, status.st_mtime_ns)
        with open_rows(path) as file:
            following = 1
            for line in sorted(lines):
                known = min((line - 1) // _EVERY, len(starts) - 1)
                if known * _EVERY + 1 > following:
                    following = known * _EVERY + 1
                    file.seek(int(starts[known]))
                while following <= line and (raw := file.readline()):
                    following += 1
                if following <= line:
                    break
                text = raw.decode("utf-8-sig" if line == 1 else "utf-8").strip()
                if text:
                    found[line] = parse_row(line, parse_object(text))
    except OSError as error:
        raise DataError(f"{param}: cannot read {path.name}: {error.strerror}", param=param) from error
    return found


@lru_cache(maxsize=16)
def _starts(path: Path, num_bytes: int, mtime_ns: int) -> npt.NDArray[np.int64]:
    """Where in a file of this size and time lines 1, 1 + `_EVERY`, 1 + 2 `_EVERY`, ... begin."""
    starts, num_before, offset = [np.zeros(1, dtype=np.int64)], 0, 0
    with open_rows(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            following = offset + 1 + np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n"))
            starts.append(following[(_EVERY - 1 - num_before) % _EVERY :: _EVERY])
            num_before += len(following)
            offset += len(chunk)
    return np.concatenate(starts)
