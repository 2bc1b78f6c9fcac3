"""From the files people have to the rows `wmss.data.dataset` takes. `wmss convert` runs it.

question-answer  {"question": ..., "answer": ...}, as GSM8K has it; an answer keeps its final `#### value` line.
openai-chat      OpenAI's chat rows with what our reader refuses but no model would see: empty `tools`, `name` fields,
                 content as a list of text parts, the role `developer`.

Nothing is left out in silence: `Conversion.changes` says what was changed in how many rows.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wmss.data.dataset import RowError, json_lines, parse_object, parse_row, raise_rows, refuse_tools
from wmss.errors import DataError

Format = Literal["question-answer", "openai-chat"]
CalculatorMarks = Literal["strip", "keep"]
FORMATS: tuple[Format, ...] = get_args(Format)

_QUESTION_ANSWER = ("question", "answer")
# An expression of numbers and its value: `<<` and `>>` are also operators of C++ and of shells.
_CALCULATOR_MARK = re.compile(r"<<(?=[^<>=\n]*\d)[-+*/()%.,$\d\sx^]+=[-+$\d.,\s/%]*\d[%\s]*>>")
_KEPT = ("role", "content", "weight")


@dataclass(frozen=True)
class Conversion:
    """What a conversion did. `changes` maps a sentence to the number of rows it is true of."""

    format: str
    num_read: int
    num_written: int
    changes: dict[str, int]
    skipped: tuple[str, ...] = ()
    """The rows left out on request, as "line 3: what is wrong"."""


def convert_file(
    source: Path,
    target: Path,
    *,
    format: Format | None = None,
    limit: int | None = None,
    system: str | None = None,
    calculator_marks: CalculatorMarks = "strip",
) -> Conversion:
    """Convert `source` and write `target`, whole or not at all.

    Args:
        format: of the source; None = recognised from the keys of its first row.
        limit: rows to read, from the first; None = all.
        system: text of a system message to put before every row; refused where a row has one.
        calculator_marks: GSM8K's `<<48/2=24>>`: `strip` takes them out (no calculator answers them when the model
            generates), `keep` leaves them as text.

    Raises:
        DataError: with line numbers, where a row cannot be converted; or if `target` exists.
    """
    refuse_existing(target)
    changes: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for line, text in json_lines(source, param="source", name=source.name):
        if limit is not None and len(rows) + len(problems) == limit:
            break
        try:
            row = parse_object(text)
            format = format or _recognise(row)
            converted, changed = _CONVERTERS[format](row, calculator_marks)
            if system is not None:
                converted = _with_system(converted, system)
                changed.add("a system message was put first")
            parse_row(line, converted)
        except RowError as error:
            problems.append(f"line {line}: {error}")
            continue
        rows.append(converted)
        changes.update(changed)
    raise_rows(source.name, problems, "source")
    if format is None:
        raise DataError(f"source: expected at least one JSON line, got an empty file ({source.name})", param="source")
    write_rows(rows, target)
    return Conversion(format=format, num_read=len(rows), num_written=len(rows), changes=dict(changes))


def refuse_existing(target: Path) -> None:
    """Raise `DataError` where the file to write is there: it may be somebody's work."""
    if target.exists():
        raise DataError(f"target: {target} exists already; name another file", param="target")


def write_rows(rows: list[dict[str, Any]], target: Path) -> None:
    """Write a new file of JSON lines, whole or not at all; raises `DataError`."""
    try:
        with target.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            target.unlink(missing_ok=True)  # a full disk leaves half a file
        raise DataError(f"target: cannot write {target}: {error.strerror}", param="target") from error


def without_calculator_marks(text: str) -> str:
    """A GSM8K solution as a model without a calculator writes it."""
    return _CALCULATOR_MARK.sub("", text)


def _recognise(row: dict[str, Any]) -> Format:
    if "messages" in row:
        return "openai-chat"
    if set(_QUESTION_ANSWER) <= set(row):
        return "question-answer"
    raise RowError(
        f'format: expected the keys "messages", or "question" and "answer", got {sorted(row)}; rename them, or name '
        f"the file's form with --format ({' or '.join(FORMATS)})"
    )


def _with_system(row: dict[str, Any], text: str) -> dict[str, Any]:
    if row["messages"][0]["role"] == "system":
        raise RowError("messages[0]: has a system message already; leave --system out")
    return {"messages": [{"role": "system", "content": text}, *row["messages"]]}


def _from_question_answer(row: dict[str, Any], calculator_marks: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    for key in _QUESTION_ANSWER:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise RowError(f"{key}: expected text, got {row.get(key)!r}")
    changed = {f"the field {key!r} was left out" for key in row if key not in _QUESTION_ANSWER}
    answer = row["answer"]
    if calculator_marks == "strip" and _CALCULATOR_MARK.search(answer):
        answer = without_calculator_marks(answer)
        changed.add("calculator marks (<<48/2=24>>) were taken out")
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
    return {"messages": turns}, changed


def _from_openai_chat(row: dict[str, Any], _: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    refuse_tools(row)
    changed = {f"the field {key!r} was left out" for key in row if key != "messages"}
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError(f"messages: expected a list, got {type(messages).__name__}")
    return {"messages": [_message(message, index, changed) for index, message in enumerate(messages)]}, changed


def _message(message: Any, index: int, changed: set[str]) -> Any:
    """One message as our reader takes it; what it does not take at all is left for it to refuse."""
    where = f"messages[{index}]"
    if not isinstance(message, dict):
        return message
    refuse_tools(message, where)
    kept = {key: value for key, value in message.items() if key in _KEPT}
    for key, value in message.items():
        if key in _KEPT:
            continue
        if value and key != "name":
            raise RowError(f"{where}.{key}: a chat template would not show it; remove it, or leave this row out")
        changed.add(f"the messages' {'' if key == 'name' else 'empty '}field {key!r} was left out")
    if kept.get("role") == "developer":
        kept["role"] = "system"
        changed.add("the role 'developer' became 'system'")
    if isinstance(kept.get("content"), list):
        kept["content"] = _joined(kept["content"], where)
        changed.add("text parts were joined with newlines")
    return kept


def _joined(parts: list[Any], where: str) -> str:
    """Text parts as one string, with newlines between them, as vLLM shows them to a model."""
    for number, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RowError(f"{where}.content[{number}]: expected a text part, got {kind!r}; leave this row out")
    return "\n".join(part["text"] for part in parts)


_CONVERTERS: dict[Format, Callable[[dict[str, Any], CalculatorMarks], tuple[dict[str, Any], set[str]]]] = {
    "question-answer": _from_question_answer,
    "openai-chat": _from_openai_chat,
}
