"""In which form do other tools write rows and files? What each is called, and the command that converts it."""

import shlex
from typing import Any

_CONVERTED = (
    ({"instruction", "output"}, "Alpaca rows (instruction, input, output)", ""),
    ({"conversations"}, "ShareGPT rows (conversations)", ""),
    ({"question", "answer"}, "question/answer rows, as GSM8K has them", " [--to tasks]"),
    ({"problem", "solution"}, "rows of MATH (problem, solution, level)", " --to tasks"),
)
_OTHER = (
    (
        {"chosen", "rejected"},
        "preference pairs (chosen, rejected); write the chosen answer as the completion, or as the last message",
    ),
    (
        {"text"},
        "plain text rows (text), which do not say what is prompt and what is answer; write each as a prompt and its "
        "completion",
    ),
)
_PACKED = {
    b"\x1f\x8b": ("gzip", True),
    b"PAR1": ("a Parquet file", False),
    b"PK\x03\x04": ("a zip archive", False),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", False),
    b"BZh": ("compressed with bzip2", False),
    b"\xfd7zXZ": ("compressed with xz", False),
    b"\xff\xfe": ("UTF-16 text", False),
}


def other_form(row: dict[str, Any]) -> str | None:
    """What a row of another tool's form is called and what to do with its file; None for forms that are not known."""
    for keys, name, options in _CONVERTED:
        if keys <= row.keys():
            return f"these are {name}; convert the file: `wmss convert FILE ROWS.jsonl{options}`"
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return (
            "these are TRL's conversational rows (lists of messages as prompt and completion); convert the file: "
            "`wmss convert FILE ROWS.jsonl`"
        )
    return next((f"these are {advice}" for keys, advice in _OTHER if keys <= row.keys()), None)


def packing(head: bytes, name: str) -> str | None:
    """What a file that begins so is, where it is not JSON lines, and how to make them; None where it may be lines."""
    for magic, (kind, converted) in _PACKED.items():
        if head.startswith(magic):
            remedy = _command(name) if converted else "write its rows as JSON lines in UTF-8"
            return f"{name} is {kind}, not JSON lines; {remedy}"
    if is_array(head):
        return f"{name} is one JSON array, not JSON lines; {_command(name)}"
    return None


def is_gzip(head: bytes) -> bool:
    """Whether a file that begins so is gzip, whatever its name."""
    return head.startswith(b"\x1f\x8b")


def is_array(head: bytes) -> bool:
    """Whether a text that begins so is one array of objects: a line of JSON lines would be closed on its own line."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return text.startswith(b"[") and text[1:].lstrip().startswith(b"{")


def _command(name: str) -> str:
    stem = name.split(".")[0] or "file"
    return f"convert it: `wmss convert {shlex.quote(name)} {shlex.quote(stem + '_rows.jsonl')}` (tasks: --to tasks)"
