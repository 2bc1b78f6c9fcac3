"""Files of a model folder as the file system sees them; without torch, so that anybody may ask."""

from collections.abc import Iterable
from pathlib import Path


def file_stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change (ns) of files, by name: a cheap sign that they were not written to."""
    stats = {file.name: file.stat() for file in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
