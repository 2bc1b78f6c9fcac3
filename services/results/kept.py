"""What was worked out of a table on disk, kept for the next page while the file is as it was."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """The values that were used last, of together at most `max_bytes`; a larger one is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, file: Path, key: Hashable, make: Callable[[], Value], num_bytes: Callable[[Value], int]) -> Value:
        """The value of `key` for a file, made where it is not kept or the file was written to since."""
        status = file.stat()
        full_key = (file, status.st_ino, status.st_size, status.st_mtime_ns, key)
        with self._lock:
            if full_key in self._values:
                self._values.move_to_end(full_key)
                return self._values[full_key][0]
        value = make()
        size = num_bytes(value)
        if size > self._max_bytes:
            return value
        with self._lock:
            self._values[full_key] = (value, size)
            while sum(each for _, each in self._values.values()) > self._max_bytes:
                self._values.popitem(last=False)
        return value
