"""What is in a training file: chat or prompt/completion JSON lines, checked row by row.

Chat rows are OpenAI's: an assistant message may carry `"weight": 0`, and is then read as context but not learned.
"""

import errno
import gzip
import json
import os
import re
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

from wmss.data.forms import other_form, packing
from wmss.errors import DataError, shortened, shown

ROLES = ("system", "user", "assistant")
HEAD_BYTES = 4096
MAX_LINE_BYTES = 2**30
"""Of a file, to see what it is."""
MAX_REASONS = 4
MAX_LINES = 3
"""Reasons of unusable rows that are told, and line numbers of each: a screen, not a book."""
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")
TOOL_ROLES = ("tool", "function")
TOOL_FIELDS = ("tools", "functions", "tool_calls", "function_call", "tool_call_id")
"""Fields, of a row or of a message, that make a chat one with tools."""


@dataclass(frozen=True)
class Sample:
    """One row of a file. Either `messages` (chat) or `prompt` and `completion` is set; `line` is 1-based."""

    line: int
    messages: tuple[dict[str, str], ...] = ()
    prompt: str = ""
    completion: str = ""
    context_turns: frozenset[int] = frozenset()
    """Indices of the assistant messages with weight 0: context for what follows, not learned themselves."""

    @property
    def supervised_turns(self) -> tuple[int, ...]:
        """Indices of the messages to learn, in order: the assistant's, without `context_turns`."""
        turns = (index for index, message in enumerate(self.messages) if message["role"] == "assistant")
        return tuple(index for index in turns if index not in self.context_turns)

    @property
    def answer(self) -> str:
        """The text of the last supervised turn: what a generated answer is compared with."""
        return self.messages[self.supervised_turns[-1]]["content"] if self.messages else self.completion


def read_samples(path: Path, *, param: str = "training_file", name: str | None = None) -> list[Sample]:
    """All samples of a JSONL file; raises `DataError` with line numbers if any row is unusable.

    `param` is the field, `name` the file name that messages speak of.
    """
    name = name or path.name
    samples: list[Sample] = []
    problems: list[str] = []
    for line, text in json_lines(path, param=param, name=name):
        try:
            samples.append(parse_row(line, parse_object(text)))
        except RowError as error:
            problems.append(f"line {line}: {error}")
    raise_rows(name, problems, param)
    refuse_empty(samples, name, param)
    return samples


def raise_rows(name: str, problems: list[str], param: str) -> None:
    """Raise one `DataError` that tells the problems of a file's rows, as `by_reason` does, if there are any."""
    if problems:
        rows = "row is" if len(problems) == 1 else "rows are"
        raise DataError(f"{len(problems):,} {rows} unusable in {name}:{by_reason(problems)}", param=param)


def by_reason(problems: Sequence[str]) -> str:
    """What is wrong with rows, each told as "line 3: what is wrong", for a person: equal reasons are told once, with
    their first lines and how many more there are, and so are those that differ in numbers and quoted text alone.

    It goes on after a colon: on the same line with one reason, else with a line for each of the most frequent ones, and
    how many rows have others.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    for problem in problems:
        line, _, reason = problem.removeprefix("line ").partition(": ")
        groups.setdefault(_VARYING.sub("", reason), []).append((line, reason))
    frequent = sorted(groups.values(), key=len, reverse=True)
    told = [_of_group(group) for group in frequent[:MAX_REASONS]]
    others = frequent[MAX_REASONS:]
    if others:
        rows = sum(map(len, others))
        more = f"{len(others):,} other reason{'s' if len(others) > 1 else ''}"
        told.append(f"and {more}, on {rows:,} row{'s' if rows > 1 else ''}, the first one line {others[0][0][0]}")
    return f" {told[0]}" if len(told) == 1 else "".join(f"\n  {each}" for each in told)


def _of_group(group: Sequence[tuple[str, str]]) -> str:
    lines, reason = [line for line, _ in group], group[0][1]
    more = f" and {len(lines) - MAX_LINES:,} more" if len(lines) > MAX_LINES else ""
    such = ", such as" if any(other != reason for _, other in group) else ""
    return f"line{'s' if len(lines) > 1 else ''} {', '.join(lines[:MAX_LINES])}{more}{such}: {reason}"


def refuse_empty(rows: Sized, name: str, param: str) -> None:
    """Raise `DataError` where a file has no rows."""
    if not rows:
        raise DataError(f"{param}: expected at least one JSON line, got an empty file ({name})", param=param)


class RowError(Exception):
    """What is wrong with one row; the reader of the file adds the line."""


def json_lines(path: Path, *, param: str, name: str) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their number; raises `DataError` for a file that is not lines, and says what it is."""
    try:
        with open_rows(path) as file:
            other = packing(file.read(HEAD_BYTES), name)
            if other is not None:
                raise DataError(f"{param}: {other}", param=param)
            file.seek(0)
            yield from text_lines(file, param=param, name=name)
    except OSError as error:
        # A stored upload is known by its name, not by where it lies.
        where = path if name == path.name else name
        raise DataError(f"{param}: cannot read {where}: {error.strerror}", param=param) from error


def open_rows(path: Path) -> BinaryIO:
    """A file of rows, open for reading; raises `OSError`. Opening a FIFO would wait for its writer without end."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(errno.EINVAL, "it is a FIFO or a device, not a file")
    return path.open("rb")


def text_lines(file: BinaryIO | gzip.GzipFile, *, param: str, name: str) -> Iterator[tuple[int, str]]:
    """Non-empty lines with their number. A byte-order mark and CRLF are accepted: editors write them."""
    for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), start=1):
        if len(raw) > MAX_LINE_BYTES:  # unpacked, a small gzip may have one line of any size
            raise DataError(
                f"line {number} of {name}: expected at most {MAX_LINE_BYTES:,} bytes on a line; split it", param=param
            )
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"line {number} of {name}: expected UTF-8 text: {error}; save the file as UTF-8",
                param=param,
            ) from error
        if text:
            yield number, text


def parse_object(text: str) -> dict[str, Any]:
    """The JSON object of one line; raises `RowError`."""
    row = parse_json(text)
    if not isinstance(row, dict):
        raise RowError(f"expected a JSON object, got {type(row).__name__}; write each row as one object on its line")
    return row


def parse_json(text: str) -> Any:
    """The value of a JSON text whose keys all differ and whose strings are characters; raises `RowError`."""
    try:
        value = json.loads(text, object_pairs_hook=distinct_keys)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not valid JSON ({json_fault(error)})") from None
    if "\\ud" in text.lower() and not _is_unicode(value):
        fields = value.items() if isinstance(value, dict) else ()
        where = next((f"{key}: " for key, each in fields if _is_unicode(key) and not _is_unicode(each)), "")
        raise RowError(f"{where}holds half a surrogate pair (\\ud800 to \\udfff), which is not a character; remove it")
    return value


def json_fault(error: ValueError | RecursionError) -> str:
    """Why `json` did not read a text, in words: what Python says of depth and digits is advice to programmers."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "BOM" in str(error):
        return "it begins with a byte-order mark, which only the first line of a file may; remove it"
    return str(error) if isinstance(error, json.JSONDecodeError) else "a number of thousands of digits"


def distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys all differ: of two values for one key, Python would silently take the last."""
    fields: dict[str, Any] = {}
    for key, value in pairs:
        if key in fields:
            raise RowError(f"{shown(key)}: given twice in one object; remove one")
        fields[key] = value
    return fields


def parse_row(line: int, row: dict[str, Any]) -> Sample:
    """One row as a sample; raises `RowError`."""
    refuse_tools(row)
    if set(row) == {"messages"}:
        return _chat(line, row["messages"])
    other = other_form(row)
    if other is not None:
        raise RowError(other)
    if set(row) == {"prompt", "completion"}:
        for key in ("prompt", "completion"):
            if not isinstance(row[key], str):
                raise RowError(f"{key}: expected a string, got {type(row[key]).__name__}")
        if not row["completion"].strip():
            raise RowError("completion: expected text, got a blank string (0 supervised tokens)")
        return Sample(line=line, prompt=row["prompt"], completion=row["completion"])
    raise RowError(f'expected the keys "messages", or "prompt" and "completion", got {shown(sorted(row))}; rename them')


def refuse_tools(fields: dict[str, Any], where: str = "") -> None:
    """Raise `RowError` where a row, or the message called `where`, has to do with tools."""
    path = f"{where}." if where else ""
    used = next((name for name in TOOL_FIELDS if fields.get(name)), None)
    if used is not None:
        raise RowError(f"{path}{used}: tool-free chats only for now; leave this row out")
    if where and fields.get("role") in TOOL_ROLES:
        raise RowError(f"{path}role: tool-free chats only for now, got {fields['role']!r}; leave this row out")


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_messages(messages: Any) -> list[dict[str, str]]:
    """The turns of a chat: user and assistant in alternation, either of them last; raises `RowError`."""
    if not isinstance(messages, list) or not messages:
        raise RowError("messages: expected a non-empty list")
    parsed = [_message(message, index) for index, message in enumerate(messages)]
    turns = [message["role"] for message in parsed if message["role"] != "system"]
    if turns[:1] != ["user"] or any(a == b for a, b in pairwise(turns)):
        raise RowError(f"messages: expected user and assistant to alternate, starting with user, got {shown(turns)}")
    return parsed


def _chat(line: int, messages: Any) -> Sample:
    parsed = parse_messages(messages)
    if parsed[-1]["role"] != "assistant":
        raise RowError("messages: expected the last message to be the assistant's (0 supervised tokens)")
    context_turns = frozenset(index for index, message in enumerate(messages) if message.get("weight") == 0)
    sample = Sample(line=line, messages=tuple(parsed), context_turns=context_turns)
    if not sample.supervised_turns:
        raise RowError("messages: expected an assistant message with weight 1, got weight 0 only (0 supervised tokens)")
    if not sample.answer.strip():
        which = "" if not context_turns else " with weight 1"
        raise RowError(f"messages: the last assistant message{which} is empty (0 supervised tokens)")
    return sample


def _message(message: Any, index: int) -> dict[str, str]:
    where = f"messages[{index}]"
    if isinstance(message, dict):
        refuse_tools(message, where)
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise RowError(f'{where}: expected an object with "role" and "content"')
    role, content = message["role"], message["content"]
    unknown = sorted(map(str, set(message) - {"role", "content", "weight"}))
    if unknown:
        raise RowError(
            f"{where}.{shortened(unknown[0])}: unknown field; remove it (`wmss convert` does that for names and "
            "empties)"
        )
    if role not in ROLES:
        raise RowError(f"{where}.role: expected one of {list(ROLES)}, got {shown(role)}")
    if isinstance(content, list):
        raise RowError(
            f"{where}.content: expected a string, got list; `wmss convert` joins text parts, images are not supported"
        )
    if not isinstance(content, str):
        raise RowError(f"{where}.content: expected a string, got {type(content).__name__}")
    if role == "system" and index:
        raise RowError(f"{where}.role: a system message may only come first")
    if "weight" in message:
        _check_weight(message["weight"], role, where)
    return {"role": role, "content": content}


def _check_weight(weight: Any, role: str, where: str) -> None:
    if role != "assistant":
        raise RowError(f"{where}.weight: only the assistant's messages have a weight, this is the {role}'s; remove it")
    if type(weight) is not int or weight not in (0, 1):  # `true` is no weight
        raise RowError(f"{where}.weight: expected 0 or 1, got {shown(weight)}")
