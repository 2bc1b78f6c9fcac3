"""Which part of a text is its answer? The one parser of boxes and of `####`, for verifiers and conversion alike.

The last box counts: `\\boxed{...}` or `\\fbox{...}` with braces nested in any depth, or without braces around one
number, letter or command (`\\boxed 3`, `\\boxed\\frac{1}{2}`). Without a box, what follows the last `####` on its line
counts; a `####` with nothing on its line does not. Beside a box, a `####` counts only if it comes later and its line is
a number: Markdown has headings of that form.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from wmss.data.values import number_value

READING = "answers-2"
"""How answers and their values are read, as part of a verifier's version: raised where a verdict may change."""
FINAL_MARK = "####"

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped brace, as of a set, is text
_MARKED = re.compile(r"#{4,}((?:(?!####)[^\r\n])*)")
_WITHOUT_BRACES = re.compile(
    r"(?:[-+−]\s*)?(?:\\?\$)?(?:\d(?:[\d,.]*\d)?(?:/\d+)?|\\[dt]?frac\s*\d\s*\d|(?P<command>\\[A-Za-z]+)|[A-Za-z](?![A-Za-z]))"
)


class Answer(NamedTuple):
    """What a text gives as its answer."""

    text: str
    """Blank where the last box is empty or never closed: an answer that was begun replaces every earlier one."""
    boxed: bool
    """Whether it stood in a box, else after `####`."""


class _Box(NamedTuple):
    text: str
    end: int
    """Where the text after the box begins."""


def find_answer(text: str) -> Answer | None:
    """What a text marks as its answer; None where it marks nothing."""
    box = _last_box(text)
    after_box = 0 if box is None else box.end
    marked = [line for line in (found[1].strip() for found in _MARKED.finditer(text, after_box)) if line]
    if box is None:
        return Answer(marked[-1], boxed=False) if marked else None
    numbers = [line for line in marked if number_value(line) is not None]
    return Answer(numbers[-1], boxed=False) if numbers else Answer(box.text.strip(), boxed=True)


def last_boxed(text: str) -> str | None:
    """What stands in the last box; None where there is no box, or the last one is empty or never closed."""
    box = _last_box(text)
    return box.text.strip() or None if box else None


def in_box(answer: str) -> str:
    """A response that gives this answer and nothing else."""
    return rf"\boxed{{{answer}}}"


def _last_box(text: str) -> _Box | None:
    for found in reversed(list(_BOX.finditer(text))):
        if text.startswith("{", found.end()):
            end = _group_end(text, found.end())
            return _Box("", found.end()) if end is None else _Box(text[found.end() + 1 : end - 1], end)
        bare = _WITHOUT_BRACES.match(text, found.end())
        if bare:
            end = bare.end() if bare["command"] is None else max(_groups_ends(text, bare.end()))
            return _Box(text[found.end() : end], end)
        # Prose that speaks of the command, as "put it into \boxed."
    return None


def _groups_ends(text: str, start: int) -> Iterator[int]:
    """`start`, and the ends of the groups in braces that follow one another from there."""
    end: int | None = start
    while end is not None:
        yield end
        end = _group_end(text, end) if text.startswith("{", end) else None


def _group_end(text: str, start: int) -> int | None:
    """The end of the group whose brace opens at `start`; None where it is never closed."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.end()
    return None
