"""Files of a model folder as the file system sees them; without torch, so that anybody may ask."""

from collections.abc import Iterable
from pathlib import Path


def file_stamps(files: Iterable[Path]) -> dict[str, list[int]]:
    """Size and time of change (ns) of files, by name: what tells cheaply that nobody wrote to them."""
    stats = {file.name: file.stat() for file in files}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
