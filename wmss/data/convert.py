"""From the files people have to the rows `wmss.data.dataset` takes. `wmss convert` runs it.

question-answer  {"question": ..., "answer": ...}, as GSM8K has it; an answer keeps its final `#### value` line.
openai-chat      OpenAI's chat rows with what our reader refuses but no model would see: empty `tools`, `name` fields,
                 content as a list of text parts, the role `developer`.
alpaca           {"instruction": ..., "input": ..., "output": ...}; `system` may stand beside them.
sharegpt         {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}.
prompt-completion  text as it is; TRL's lists of messages become a chat of which the completion alone is learned.

A source is JSON lines or one JSON array, either of them in gzip.

Nothing is left out in silence: `Conversion.changes` says what was changed in how many rows.
"""

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from wmss.data.dataset import RowError, Sample, parse_row, raise_rows, refuse_tools
from wmss.data.forms import other_form
from wmss.data.sources import source_rows
from wmss.errors import DataError, shortened, shown

Format = Literal["question-answer", "openai-chat", "alpaca", "sharegpt", "prompt-completion"]
CalculatorMarks = Literal["strip", "keep"]
FORMATS: tuple[Format, ...] = get_args(Format)

_QUESTION_ANSWER = ("question", "answer")
# An expression of numbers and its value: `<<` and `>>` are also operators of C++ and of shells.
_CALCULATOR_MARK = re.compile(r"<<(?=[^<>=\n]*\d)[-+*/()%.,$\d\sx^]+=[-+$\d.,\s/%]*\d[%\s]*>>")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
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
    split_turns: bool = False,
) -> Conversion:
    """Convert `source` and write `target`, whole or not at all.

    Args:
        format: of the source; None = recognised from the keys of its first row.
        limit: rows to read, from the first; None = all.
        system: text of a system message to put before every row; refused where a row has one.
        calculator_marks: GSM8K's `<<48/2=24>>`: `strip` takes them out (no calculator answers them when the model
            generates), `keep` leaves them as text.

        split_turns: give each assistant turn that is learned a row of its own, which ends with it; those before it are
            context. For chat templates that leave earlier thinking out, as Qwen3's does.

    Raises:
        DataError: with line numbers, where a row cannot be converted; or if `target` exists.
    """
    refuse_existing(target)
    changes: Counter[str] = Counter()
    num_read = 0
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for line, read in source_rows(source):
        if limit is not None and num_read == limit:
            break
        num_read += 1
        try:
            row = read()
            format = format or _recognise(row)
            converted, changed = _CONVERTERS[format](row, calculator_marks)
            sample = parse_row(line, converted)
            if system is not None:
                converted = _with_system(converted, system)
                changed.add("a system message was put first")
                sample = parse_row(line, converted)
        except RowError as error:
            problems.append(f"line {line}: {error}")
            continue
        if split_turns and len(sample.supervised_turns) + len(sample.context_turns) > 1:
            rows.extend(_one_for_each_turn(sample))
            changed.add("the row was split, one row for each assistant turn that is learned")
        else:
            rows.append(converted)
        changes.update(changed)
    raise_rows(source.name, problems, "source")
    if format is None:
        raise DataError(f"source: expected at least one JSON line, got an empty file ({source.name})", param="source")
    write_rows(rows, target)
    return Conversion(format=format, num_read=num_read, num_written=len(rows), changes=dict(changes))


def _one_for_each_turn(sample: Sample) -> list[dict[str, Any]]:
    seen = [message | {"weight": 0} if message["role"] == "assistant" else message for message in sample.messages]
    return [{"messages": [*seen[:turn], sample.messages[turn]]} for turn in sample.supervised_turns]


def refuse_existing(target: Path) -> None:
    """Raise `DataError` where the file to write is there: it may be somebody's work."""
    if os.path.exists(target):
        raise DataError(f"target: {target} exists already; name another file", param="target")


def write_rows(rows: list[dict[str, Any]], target: Path) -> None:
    """Write a new file of JSON lines, whole or not at all; raises `DataError`."""
    try:
        with target.open("x", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        if not isinstance(error, FileExistsError):
            with contextlib.suppress(OSError):
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
    if {"instruction", "output"} <= set(row):
        return "alpaca"
    if "conversations" in row:
        return "sharegpt"
    if {"prompt", "completion"} <= set(row):
        return "prompt-completion"
    other = other_form(row)
    if other is not None:
        raise RowError(other)
    if "prompt" in row:
        raise RowError("these are tasks (prompt, answer, level); add --to tasks")
    raise RowError(
        f'format: expected the keys "messages", or "question" and "answer", got {shown(sorted(row))}; rename them, or '
        f"name the file's form with --format ({' or '.join(FORMATS)})"
    )


def _with_system(row: dict[str, Any], text: str) -> dict[str, Any]:
    if "messages" not in row:
        raise RowError("prompt: text has no system message; put it into the prompts, and leave --system out")
    if row["messages"][0]["role"] == "system":
        raise RowError("messages[0]: has a system message already; leave --system out")
    return {"messages": [{"role": "system", "content": text}, *row["messages"]]}


def _from_question_answer(row: dict[str, Any], calculator_marks: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    for key in _QUESTION_ANSWER:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise RowError(f"{key}: expected text, got {shown(row.get(key))}")
    changed = {f"the field {shown(key)} was left out" for key in row if key not in _QUESTION_ANSWER}
    answer = row["answer"]
    if calculator_marks == "strip" and _CALCULATOR_MARK.search(answer):
        answer = without_calculator_marks(answer)
        changed.add("calculator marks (<<48/2=24>>) were taken out")
    turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": answer}]
    return {"messages": turns}, changed


def _from_openai_chat(row: dict[str, Any], _: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    refuse_tools(row)
    changed = {f"the field {shown(key)} was left out" for key in row if key != "messages"}
    messages = row.get("messages")
    if not isinstance(messages, list):
        raise RowError(f"messages: expected a list, got {type(messages).__name__}")
    return {"messages": [_message(message, index, changed) for index, message in enumerate(messages)]}, changed


def _from_alpaca(row: dict[str, Any], _: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    given = {key: row.get(key) or "" for key in ("instruction", "input", "output", "system")}
    for key, value in given.items():
        if not isinstance(value, str) or not (value.strip() or key in ("input", "system")):
            raise RowError(f"{key}: expected text, got {shown(value)}")
    if row.get("history"):
        raise RowError("history: earlier turns are not taken; write the row as a chat, or leave it out")
    changed = {f"the field {shown(key)} was left out" for key in row if key not in given and key != "history"}
    question = given["instruction"]
    if given["input"].strip():
        question += f"\n{given['input']}"
        changed.add("the input was put on a new line below the instruction")
    system = [{"role": "system", "content": given["system"]}] if given["system"].strip() else []
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": given["output"]}]
    return {"messages": [*system, *turns]}, changed


def _from_sharegpt(row: dict[str, Any], _: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    refuse_tools(row)
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise RowError(f"conversations: expected a list, got {type(turns).__name__}")
    messages = []
    for index, turn in enumerate(turns):
        where = f"conversations[{index}]"
        if not isinstance(turn, dict) or not {"from", "value"} <= set(turn):
            raise RowError(f'{where}: expected an object with "from" and "value", got {shown(turn)}')
        role = _SPEAKERS.get(turn["from"]) if isinstance(turn["from"], str) else None
        if role is None:
            raise RowError(f"{where}.from: expected one of {', '.join(_SPEAKERS)}, got {shown(turn['from'])}")
        messages.append({"role": role, "content": turn["value"]})
    return {"messages": messages}, {f"the field {shown(key)} was left out" for key in row if key != "conversations"}


def _from_prompt_completion(row: dict[str, Any], marks: CalculatorMarks) -> tuple[dict[str, Any], set[str]]:
    """Text as it is; TRL's lists of messages as one chat, of which the completion alone is learned."""
    changed = {f"the field {shown(key)} was left out" for key in row if key not in ("prompt", "completion")}
    prompt, completion = row.get("prompt"), row.get("completion")
    if not isinstance(prompt, list) or not isinstance(completion, list):
        return {"prompt": prompt, "completion": completion}, changed
    chat, more = _from_openai_chat({"messages": [*prompt, *completion]}, marks)
    for message in chat["messages"][: len(prompt)]:
        if isinstance(message, dict) and message.get("role") == "assistant":
            message["weight"] = 0
            changed.add("the assistant's turns in the prompt got weight 0")
    return chat, changed | more


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
            raise RowError(
                f"{where}.{shortened(key)}: a chat template would not show it; remove it, or leave this row out"
            )
        changed.add(f"the messages' {'' if key == 'name' else 'empty '}field {shown(key)} was left out")
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
            raise RowError(f"{where}.content[{number}]: expected a text part, got {shown(kind)}; leave this row out")
    return "\n".join(part["text"] for part in parts)


_CONVERTERS: dict[Format, Callable[[dict[str, Any], CalculatorMarks], tuple[dict[str, Any], set[str]]]] = {
    "question-answer": _from_question_answer,
    "openai-chat": _from_openai_chat,
    "alpaca": _from_alpaca,
    "sharegpt": _from_sharegpt,
    "prompt-completion": _from_prompt_completion,
}
