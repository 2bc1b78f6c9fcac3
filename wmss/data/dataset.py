"""What is in a training file: chat or prompt/completion JSON lines, checked row by row."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from wmss.errors import DataError

ROLES = ("system", "user", "assistant")
MAX_REPORTED = 100


@dataclass(frozen=True)
class Sample:
    """One row of a file. Either `messages` (chat) or `prompt` and `completion` is set; `line` is 1-based."""

    line: int
    messages: tuple[dict[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""

    @property
    def answer(self) -> str:
        """The text the model should produce last."""
        return self.messages[-1]["content"] if self.messages else self.completion


def read_samples(path: Path, *, param: str = "training_file", name: str | None = None) -> list[Sample]:
    """All samples of a JSONL file; raises `DataError` with line numbers (the first 100) if any row is unusable.

    `param` is the field, `name` the file name that messages speak of.
    """
    name = name or path.name
    samples: list[Sample] = []
    problems: list[str] = []
    for line, text in _lines(path, param, name):
        try:
            samples.append(_parse(line, text))
        except _RowError as error:
            problems.append(f"line {line}: {error}")
    if problems:
        raise DataError(_summary(name, problems), param=param)
    if not samples:
        raise DataError(f"{param}: expected at least one JSON line, got an empty file ({name})", param=param)
    return samples


def _summary(name: str, problems: list[str]) -> str:
    more = f"; and {len(problems) - MAX_REPORTED} more" if len(problems) > MAX_REPORTED else ""
    rows = "row is" if len(problems) == 1 else "rows are"
    return f"{len(problems)} {rows} unusable in {name}: " + "; ".join(problems[:MAX_REPORTED]) + more


def raise_rows(name: str, problems: list[str], param: str) -> None:
    """Raise one `DataError` for problems found in later checks of the same rows, if there are any."""
    if problems:
        raise DataError(_summary(name, problems), param=param)


class _RowError(Exception):
    pass


def _lines(path: Path, param: str, name: str) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their number. A byte-order mark and CRLF are accepted: editors write them."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"line {number} of {name}: expected UTF-8 text: {error}; save the file as UTF-8",
                        param=param,
                    ) from error
                if text:
                    yield number, text
    except OSError as error:
        raise DataError(f"{param}: cannot read {path}: {error.strerror}", param=param) from error


def _parse(line: int, text: str) -> Sample:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, or a number of thousands of digits
        raise _RowError(f"not valid JSON ({error})") from None
    if "\\ud" in text.lower() and not _is_unicode(row):
        raise _RowError("holds half a surrogate pair (\\ud800 to \\udfff), which is not a character; remove it")
    if not isinstance(row, dict):
        raise _RowError(f"expected a JSON object, got {type(row).__name__}")
    if set(row) == {"messages"}:
        return Sample(line=line, messages=_messages(row["messages"]))
    if set(row) == {"prompt", "completion"}:
        for key in ("prompt", "completion"):
            if not isinstance(row[key], str):
                raise _RowError(f"{key}: expected a string, got {type(row[key]).__name__}")
        if not row["completion"].strip():
            raise _RowError("completion: expected text, got a blank string (0 supervised tokens)")
        return Sample(line=line, prompt=row["prompt"], completion=row["completion"])
    raise _RowError(f'expected the keys "messages", or "prompt" and "completion", got {sorted(map(str, row))}')


def _is_unicode(row: Any) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _messages(messages: Any) -> tuple[dict[str, str], ...]:
    if not isinstance(messages, list) or not messages:
        raise _RowError("messages: expected a non-empty list")
    parsed = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise _RowError(f'{where}: expected an object with "role" and "content"')
        if message["role"] not in ROLES:
            raise _RowError(f"{where}.role: expected one of {list(ROLES)}, got {message['role']!r}")
        if not isinstance(message["content"], str):
            raise _RowError(f"{where}.content: expected a string, got {type(message['content']).__name__}")
        if message["role"] == "system" and index:
            raise _RowError(f"{where}.role: a system message may only come first")
        parsed.append({"role": message["role"], "content": message["content"]})
    turns = [message["role"] for message in parsed if message["role"] != "system"]
    if turns[:1] != ["user"] or any(a == b for a, b in pairwise(turns)):
        raise _RowError(f"messages: expected user and assistant to alternate, starting with user, got {turns}")
    if turns[-1] != "assistant":
        raise _RowError("messages: expected the last message to be the assistant's (0 supervised tokens)")
    if not parsed[-1]["content"].strip():
        raise _RowError("messages: the last assistant message is empty (0 supervised tokens)")
    return tuple(parsed)
