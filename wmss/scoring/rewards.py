"""Is a generated answer right? For now: answers that end in a marked final value, as in GSM8K.

Models write one value in many ways: `#### 1,234`, `#### $1234.00`, `#### 1234 clips.`, `\\boxed{1234}`. Numbers are
compared as numbers; a unit counts only where both sides name one.
"""

import re
from decimal import Decimal
from typing import NamedTuple

FINAL_MARK = "####"

_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*[$€£]?\s*"
    r"(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)\s*"
    # No digit in a unit: "72 or 73" names no single value.
    r"(?P<unit>[%°$€£]?\s*(?:[^\W\d_]\D*)?)"
)


class FinalAnswer(NamedTuple):
    """A final value: a number and its unit ("" where none is named), or else a text."""

    value: Decimal | str
    unit: str = ""


def final_answer(text: str) -> FinalAnswer | None:
    """What the text ends in: the line after its last `####`, else its last `\\boxed{}`; None where neither is."""
    _, mark, rest = text.rpartition(FINAL_MARK)
    boxed = _BOXED.findall(rest if mark else text)
    if not mark and not boxed:
        return None
    written = boxed[-1] if boxed else next(iter(rest.strip().splitlines()), "")
    return _parse(written) if written.strip() else None


def _parse(written: str) -> FinalAnswer:
    plain = " ".join(written.replace("\\", "").replace("−", "-").replace("**", "").split()).rstrip(" .")
    number = _NUMBER.fullmatch(plain)
    if number is None:
        return FinalAnswer(plain.casefold())
    value = Decimal(number["sign"] + number["digits"].replace(",", ""))
    unit = number["unit"].strip().casefold()
    return FinalAnswer(value, "" if unit in ("$", "€", "£") else unit)


def is_verifiable(gold: str) -> bool:
    """Whether a reference answer carries a final value, after `####`, to compare with."""
    return FINAL_MARK in gold and final_answer(gold) is not None


def verify(generated: str, gold: str) -> bool:
    """Whether the generated text ends in the reference's final value."""
    expected = final_answer(gold)
    assert expected, f"expected a reference with a final value after {FINAL_MARK}, got {gold!r}"
    found = final_answer(generated)
    if found is None or found.value != expected.value:
        return False
    return found.unit == expected.unit or not (found.unit and expected.unit)
