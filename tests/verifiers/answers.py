"""Answers in the style of GSM8K and MATH, made by rules, and pairs that must not be taken for one another."""

import random
from collections.abc import Iterator

_VARIABLES = "xyzabnk"


def generated_answers(number: int, *, seed: int = 0) -> list[str]:
    """Different answers, each written as a reference of a data set would have it."""
    random_ = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < number:
        found[random_.choice(_KINDS)(random_)] = None
    return list(found)


def as_responses(answer: str) -> Iterator[str]:
    """How a model may end a response with an answer."""
    if "####" in answer or "\\boxed" in answer or "\\fbox" in answer:
        yield answer
        return
    yield rf"So it is \boxed{{{answer}}}."
    yield r"#### Step 2" + "\n" + rf"First \boxed{{-77}}, no: $\fbox{{{answer}}}$."
    yield f"Add them up.\n#### {answer}"


def _integer(r: random.Random) -> str:
    return str(r.choice((r.randint(-99, 99), r.randint(-(10**6), 10**6))))


def _thousands(r: random.Random) -> str:
    return f"{r.randint(1000, 10**8):,}".replace(",", r.choice((",", r",\!", "{,}", "\u2009", "\u202f", r"\,")))


def _decimal(r: random.Random) -> str:
    return f"{r.randint(-999, 999) / r.choice((10, 100, 1000))}"


def _money(r: random.Random) -> str:
    amount = r.choice((f"{r.randint(1, 9999) / 100:.2f}", _thousands(r), str(r.randint(-50, 50))))
    return r.choice((r"\$", "$", "€")) + amount


def _fraction(r: random.Random) -> str:
    over, under = r.randint(1, 99), r.randint(2, 99)
    form = r.choice((r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", "%d/%d", r"-\frac{%d}{%d}", r"\frac{-%d}{%d}"))
    return form % (over, under)


def _short_fraction(r: random.Random) -> str:
    return rf"\frac{r.randint(1, 9)}{r.randint(2, 9)}"


def _percent(r: random.Random) -> str:
    return f"{r.randint(1, 400)}" + r.choice(("%", r"\%", " percent"))


def _scientific(r: random.Random) -> str:
    power = r.choice(("e%s", r" \times 10^{%s}", r"\cdot 10^%s")).replace("%s", str(r.randint(2, 9)))
    return f"{r.randint(1, 99)}{power}"


def _with_unit(r: random.Random) -> str:
    return f"{r.randint(1, 999)}" + r.choice((" cm", r"\text{ cm}^2", r"^\circ", " clips", r"\mbox{ inches}", " km/h"))


def _delimited(r: random.Random) -> str:
    return r.choice(("$%s$", r"\(%s\)", "$$%s$$", "**%s**")) % r.choice((_integer, _fraction, _decimal))(r)


def _polynomial(r: random.Random) -> str:
    x = r.choice(_VARIABLES)
    return f"{r.randint(2, 19)}{x}^2{r.randint(-9, -1)}{x}+{r.randint(1, 99)}"


def _root(r: random.Random) -> str:
    return rf"{r.randint(2, 30)}\sqrt{{{r.randint(2, 99)}}}"


def _pi(r: random.Random) -> str:
    return r.choice((r"%d\pi", r"\frac{%d\pi}{7}")) % r.randint(2, 99)


def _interval(r: random.Random) -> str:
    low = r.randint(-50, 50)
    return rf"{r.choice('([')}{low},{low + r.randint(1, 50)}{r.choice(')]')}"


def _set(r: random.Random) -> str:
    return r"\{" + ",".join(str(r.randint(-30, 30)) for _ in range(3)) + r"\}"


def _pair(r: random.Random) -> str:
    return rf"\left({r.randint(-40, 40)},\frac{{{r.randint(1, 20)}}}{{{r.randint(2, 20)}}}\right)"


def _matrix(r: random.Random) -> str:
    a, b, c, d = (r.randint(-9, 9) for _ in range(4))
    return rf"\begin{{pmatrix}}{a}&{b}\\{c}&{d}\end{{pmatrix}}"


def _equation(r: random.Random) -> str:
    return f"y={r.randint(2, 30)}x+{r.randint(1, 40)}"


def _word(r: random.Random) -> str:
    return r"\text{" + "".join(r.choice("aeioulmnrst") for _ in range(r.randint(3, 8))).capitalize() + "}"


def _solution(r: random.Random) -> str:
    number = _integer(r)
    return (
        r.choice(("Add: 2+2.\n#### %s", r"Hence \boxed{%s}.", r"Hence $\fbox{%s}$.", r"Hence $\boxed{%s}$.")) % number
    )


_KINDS = (
    *(
        _integer,
        _thousands,
        _decimal,
        _money,
        _fraction,
        _short_fraction,
        _percent,
        _scientific,
        _with_unit,
        _delimited,
    ),
    *(_polynomial, _root, _pi, _interval, _set, _pair, _matrix, _equation, _word, _solution),
)

NEAR_MISSES = [
    *(("72", wrong) for wrong in ("73", "7", "720", "7.2", "-72", "72.5", "72/3", "72x", r"72\pi", "72 or 73", "72!")),
    *(("-5", wrong) for wrong in ("5", "+5", "$5$", r"\$5", "(5)", "--5", "-50", "-.5", r"-\frac{1}{5}")),
    *(("1.5", wrong) for wrong in ("15", "1,5", "-1.5", "1.05", "1.50001", "3/4", r"\frac{2}{3}", "1.5e1")),
    *(
        ("1000", wrong)
        for wrong in ("1.000", "1,00", "100", "10,000", "1e4", "10^4", "1,000,000", "-1,000", "1 million")
    ),
    *(("1,000", wrong) for wrong in ("1.000", "1000.1", "1e2")),
    *(
        (r"\frac{1}{2}", wrong)
        for wrong in (r"\frac{2}{1}", "12", "1,2", r"-\frac{1}{2}", "0.05", r"\frac{1}{20}", "2/1")
    ),
    *((r"\$18.90", wrong) for wrong in ("1890", "18.9,0", "18.09", r"\$-18.90", "1,890", "19")),
    *(
        ("5", wrong)
        for wrong in ("5 million", r"5\pi", "5i", "5n", r"5\sqrt{2}", "5 and 6", "5, 6", "3–5", "50", "5e1")
    ),
    *(("3%", wrong) for wrong in ("30%", "300", "-3%", "0.3%")),
]
"""(reference, what the response gives): wrong by a sign, a digit, a separator, a factor, or by naming two values."""

ELSEWHERE = [
    ("3", r"First \boxed{3}. No: \boxed{\frac{7}{2}}."),
    ("3", r"First \boxed{3}. No: \boxed{4"),
    ("3", r"First \boxed{3}. No: \boxed{}"),
    ("3", r"\boxed{3}" + "\n#### 4"),
    ("3", "#### 3\n#### 4"),
    ("3", "#### 3\n" + r"\boxed{4}"),
    ("3", "#### Step 3: simplify\n" + r"\boxed{7}"),
    ("3", r"\fbox{3} and \boxed 4"),
]
"""(reference, response): the right value stands where it does not count."""
