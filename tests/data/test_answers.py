"""Where the answer of a text stands, and which value it writes, one by one."""

from fractions import Fraction

import pytest

from wmss.data.answers import find_answer, last_boxed
from wmss.data.values import FinalAnswer, number_latex, number_value, read_value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\text{a {b} c}}", r"\text{a {b} c}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed 3$", "3"),
        (r"so \boxed 12.5.", "12.5"),
        (r"\boxed -3", "-3"),
        (r"\boxed\frac{1}{2} of it", r"\frac{1}{2}"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed{5}; always use \boxed.", "5"),
        (r"\fbox{3}", "3"),
        (r"\boxed {3}", "3"),
        (r"\boxed{1} then \boxed{2", None),  # cut off: what stood before was given up
        (r"\boxed{1} then \boxed{}", None),
        (r"\boxedness{1}", None),
        ("no box", None),
        ("\\boxed{", None),
    ],
)
def test_last_boxed(text, answer):
    assert last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("#### 5", "5"),
        ("a #### 4 #### 5\nb", "5"),
        ("#### 5\n####\n", "5"),
        ("##### 5", "5"),
        ("#### Step 3\n\\boxed{7}", "7"),
        ("\\boxed{7}\n#### Check\nfine", "7"),
        ("\\boxed{7}\n#### 8", "8"),
        ("####\n5", None),
        ("5", None),
    ],
)
def test_a_mark_counts_where_its_line_has_a_value(text, answer):
    found = find_answer(text)
    assert (found.text if found else None) == answer


THIN, NARROW = "\u2009", "\u202f"


@pytest.mark.parametrize(
    ("written", "number"),
    [
        *(
            (text, 5)
            for text in ("5", "5.", "5.0", "$5", r"\$5", "$5$", "$$5$$", r"\(5\)", r"\[5\]", "**5**", "€5", "+5")
        ),
        *((text, -5) for text in ("-5", "$-5", "-$5", r"\$-5", "−5", "–5", "—5", "‐5", r"-\$5", "$–5$", r"\text{-5}")),
        *((text, 1000) for text in ("1,000", r"1,\!000", "1{,}000", r"1\,000", f"1{THIN}000", f"1{NARROW}000")),
        *((text, 1000) for text in ("1e3", "1.0E3", "10^3", "10^{3}", r"1 \times 10^{3}", "1×10^3", r"\$1,000.00")),
        *((text, Fraction(1, 2)) for text in ("1/2", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\frac12", ".5", "5e-1", "2/4")),
        *((text, Fraction(-1, 2)) for text in (r"-\frac{1}{2}", r"\frac{-1}{2}", "–1/2", r"–\frac{1}{2}")),
    ],
)
def test_numbers_in_every_notation(written, number):
    assert number_value(written) == FinalAnswer(Fraction(number))
    assert number_value(number_latex(written)) == FinalAnswer(Fraction(number))


@pytest.mark.parametrize(
    "written",
    [
        *("1,00", "1 000", f"1{THIN}00", "1$5", "1–5", "– 5", "--5", "5/0", "1/2/3", "5e", "5!", "3:30", "1e9999"),
        *(
            r"5\pi",
            "5x",
            "5 x",
            "5n",
            "5i",
            r"5\sqrt{2}",
            "5 million",
            "5 and a half",
            "5 or 6",
            "5 + 1",
            "9" * 1001,
            "",
        ),
    ],
)
def test_what_is_no_number(written):
    assert number_value(written) is None


def test_units():
    assert read_value("5%") == read_value(r"5\%") == read_value("5 percent") == FinalAnswer(Fraction(5), "%")
    assert read_value(r"90^\circ") == read_value("90°") == read_value("90 degrees") == FinalAnswer(Fraction(90), "°")
    assert read_value(r"12\text{ cm}") == read_value("12 CM.") == FinalAnswer(Fraction(12), "cm")
    assert number_latex(r"1,000\%") == r"1000\%" and number_latex("5 cm") == "5"
