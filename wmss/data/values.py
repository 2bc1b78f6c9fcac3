"""Which value does a short text write? A number in any of the usual notations with its unit, or else a text.

Read as numbers, and as nothing more than these:

- digits with a point (`.5`, `5.0`); thousands behind `,` `{,}` `,\\!` `\\,` or a thin or narrow no-break space;
- a sign: `-`, `+`, the Unicode minus, or a dash directly before the number;
- a fraction: `1/2`, `\\frac{1}{2}`, `\\dfrac12`; scientific notation: `1e3`, `1.5 \\times 10^{3}`;
- beside them dollars (`$5`, `$-5`, `\\$5`), `€`, `£`, the delimiters of a formula (`$...$`, `$$...$$`, `\\(...\\)`,
  `\\[...\\]`), `\\text{...}`, bold, spaces and a full stop;
- a unit: `%`, `°`, or words. What changes the value is none: `5 million`, `5\\pi`, `5x` are texts.
"""

import re
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

MAX_NUMBER_LENGTH = 1000
"""Characters of the longest text that is read as a number: exact arithmetic on more takes time, and no answer is."""

_DASHES = "\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d"
_REWRITTEN = tuple(
    (re.compile(pattern), written)
    for pattern, written in (
        ("\u2212", "-"),
        # Behind a digit or letter a dash is a range or a hyphen; before a space it may be a pause.
        (rf"(?<![\w.)}}])[{_DASHES}](?=[$€£\\]*[\d.]|\\[dt]?frac)", "-"),
        (r"\\!", ""),
        (r"\\,", "\u2009"),
        (r"\{,\}", ","),
        (r"\\(?:text(?:bf|it|rm|normal)?|math(?:bf|it|rm)|mbox)\s*\{([^{}]*)\}", r" \1 "),
        (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree", "°"),
        (r"\\%", "%"),
        (r"\\[dt]frac(?![A-Za-z])", r"\\frac"),
        # A blank stays, or the digits on both sides would become one number.
        (r"\\[()\[\];: ]|\\?\$|\*\*|~|\\(?:left|right|displaystyle)(?![A-Za-z])", " "),
        (r"(?<![\d.,])\d{1,3}(?:[\u2009\u202f]\d{3})+(?![\d,])", lambda found: re.sub(r"\s", ",", found[0])),
    )
)
_TIMES = "\u00d7\u00b7*"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_TERM = r"(?:\{\s*(?P<%s>-?\s*" + _DIGITS + r")\s*\}|(?P<%s_digit>\d))"
_POWER = r"10\s*\^\s*(?:\{\s*(?P<%s>[-+]?\d{1,3})\s*\}|(?P<%s_bare>[-+]?\d{1,3}))"
_NUMBER = re.compile(
    r"[€£]?\s*(?P<sign>[-+]?)\s*[€£]?\s*"
    r"(?:"
    rf"\\frac\s*{_TERM % ('over', 'over')}\s*{_TERM % ('under', 'under')}"
    rf"|(?P<left>{_DIGITS})\s*/\s*(?P<right>{_DIGITS})"
    rf"|{_POWER % ('ten', 'ten')}"
    rf"|(?P<digits>{_DIGITS})"
    rf"(?:[eE](?P<exponent>[-+]?\d{{1,3}})|\s*(?:\\times|\\cdot|[{_TIMES}])\s*{_POWER % ('by', 'by')})?"
    r")\s*"
    # No digit and no operator in a unit: "72 or 73" and "5x + y" name no single value.
    r"(?P<symbol>[%°€£]?)\s*(?P<words>(?:[^\W\d_][^\d\\{}^_=+<>*|]*)?)"
)
_UNIT_LETTERS = frozenset("mgshlLtJWVANKCF")
_NO_UNITS = frozenset(
    (
        *("and", "or", "plus", "minus", "times", "divided", "over", "point", "to", "through"),
        *("pi", "sqrt", "log", "ln", "sin", "cos", "tan", "exp"),
        *("hundred", "thousand", "million", "billion", "trillion"),
    )
)
_UNIT_NAMES = {"percent": "%", "degree": "°", "degrees": "°"}


class FinalAnswer(NamedTuple):
    """A final value: a number and its unit ("" where none is named), or else a text."""

    value: Fraction | str
    unit: str = ""


def read_value(written: str) -> FinalAnswer | None:
    """The value that a text writes; None where there is none: the text is blank, or nothing but signs around one."""
    number = number_value(written)
    if number is not None:
        return number
    text = _plain(written).replace("\\", "").casefold()
    return FinalAnswer(text) if text else None


def number_value(written: str) -> FinalAnswer | None:
    """The number that a text writes, exactly, and its unit; None where it writes none."""
    found = _match(written)
    if found is None:
        return None
    over, under, exponent = _parts(found)
    if not Fraction(under):
        return None
    value = Fraction(over) / Fraction(under) * Fraction(10) ** exponent
    return FinalAnswer(-value if found["sign"] == "-" else value, _unit(found))


def number_latex(written: str) -> str | None:
    """The number that a text writes, as plain LaTeX in the same notation, without any unit but percent."""
    value, found = number_value(written), _match(written)
    if value is None or found is None:
        return None
    over, under, exponent = _parts(found)
    digits = f"{over:f}" if found["digits"] or found["ten"] or found["ten_bare"] else rf"\frac{{{over:f}}}{{{under:f}}}"
    power = rf" \times 10^{{{exponent}}}" if exponent else ""
    return f"{found['sign'].replace('+', '')}{digits}{power}" + (r"\%" if value.unit == "%" else "")


def same_value(found: FinalAnswer, expected: FinalAnswer) -> bool:
    """Whether two final values are equal; a unit counts only where both name one."""
    return found.value == expected.value and (found.unit == expected.unit or not (found.unit and expected.unit))


def _plain(written: str) -> str:
    """A text without what may stand beside a value, with one spelling of each notation."""
    for pattern, rewritten in _REWRITTEN:
        written = pattern.sub(rewritten, written)
    return " ".join(written.split()).rstrip(" .")


def _match(written: str) -> re.Match[str] | None:
    plain = _plain(written) if len(written) <= MAX_NUMBER_LENGTH else ""
    found = _NUMBER.fullmatch(plain)
    return found if found and _may_be_unit(found["words"]) else None


def _may_be_unit(words: str) -> bool:
    first, _, rest = words.strip(" .,;:!?").partition(" ")
    if len(first) == 1:
        return first in _UNIT_LETTERS or (first == "a" and bool(rest))  # "72 a day"; "5 x" is a product
    return re.split(r"[^\w]", first.casefold())[0] not in _NO_UNITS


def _parts(found: re.Match[str]) -> tuple[Decimal, Decimal, int]:
    """Numerator, denominator, and power of ten."""
    over = found["over"] or found["over_digit"] or found["left"] or found["digits"] or "1"
    under = found["under"] or found["under_digit"] or found["right"] or "1"
    power = found["exponent"] or found["by"] or found["by_bare"] or found["ten"] or found["ten_bare"] or "0"
    return _decimal(over), _decimal(under), int(power)


def _decimal(digits: str) -> Decimal:
    return Decimal("".join(digits.replace(",", "").split()))


def _unit(found: re.Match[str]) -> str:
    if found["symbol"] in ("%", "°"):
        return found["symbol"]
    words = found["words"].strip(" .,;:!?").casefold()
    return _UNIT_NAMES.get(words, words)
