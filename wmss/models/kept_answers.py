"""Answers about model folders, kept while nothing in the folders changes; without torch.

A check, a dry run and a create ask the same of a folder, often from different processes.
"""

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from wmss import __version__

MAX_KEPT = 256
"""Answers in a folder, of some hundred bytes each; the oldest go first."""
MAX_ENTRIES = 1000
"""Files below the folders that are asked about; with more of them nothing is kept."""
_LIBRARIES = ("jinja2", "peft", "safetensors", "tokenizers", "torch", "transformers")


class TooManyFilesError(Exception):
    """A folder holds more than any model's."""


class KeptAnswers:
    """JSON files, one an answer, named by the digest of the question and of what the folders look like."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def key(self, question: Mapping[str, Any], folders: Iterable[Path]) -> str | None:
        """The name of an answer; None where the folders cannot be looked at.

        A change of any file shows in its size, its times or its inode. The time of the inode's change cannot be set by
        its owner. Other releases of the libraries or of this package have other answers.
        """
        try:
            seen = [_looks(folder) for folder in folders]
        except (OSError, TooManyFilesError):
            return None
        asked = json.dumps([question, seen, _releases()], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def get(self, key: str) -> dict[str, Any] | None:
        """What was answered; None where it is not known."""
        try:
            answer = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return answer if isinstance(answer, dict) else None

    def put(self, key: str, answer: Mapping[str, Any]) -> None:
        """Keep an answer. A disk that is full, or a folder that cannot be written to, costs the next one a look."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            partial = self._file(f"{key}.{os.getpid()}")
            partial.write_text(json.dumps(answer), encoding="utf-8")
            partial.rename(self._file(key))
            kept = sorted(self._folder.glob("*.json"), key=lambda file: file.stat().st_mtime_ns)
            for file in kept[:-MAX_KEPT]:
                file.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.json"


def _looks(folder: Path) -> list[Any]:
    """The folder as named, and all that lies in it."""
    return [str(folder), *_entries(folder, [MAX_ENTRIES])]


def _entries(folder: Path, left: list[int]) -> Iterator[list[Any]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        left[0] -= 1
        if left[0] < 0:
            raise TooManyFilesError(str(folder))
        try:
            s = entry.stat()
        except FileNotFoundError:  # a link that leads nowhere
            s = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(s.st_mode):
            yield [entry.path]
            if not entry.is_symlink():
                yield from _entries(Path(entry.path), left)
        else:
            yield [entry.path, s.st_mode, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


@cache
def _releases() -> list[Any]:
    """Of the libraries, and of our own code also when its files were written: between releases it has no number."""
    ours = {file.name: file.stat().st_mtime_ns for file in sorted(Path(__file__).parent.glob("*.py"))}
    return [__version__, ours, {name: _version(name) for name in _LIBRARIES}]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
