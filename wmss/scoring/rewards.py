"""Is a generated answer right? For now: answers that end in a marked final value, as in GSM8K."""

FINAL_MARK = "####"


def final_answer(text: str) -> str | None:
    """The text after the last `####`, without spaces and thousands commas; None where there is no mark."""
    _, mark, answer = text.rpartition(FINAL_MARK)
    return answer.strip().replace(",", "") if mark else None


def is_verifiable(gold: str) -> bool:
    """Whether a reference answer carries a final value to compare with."""
    return bool(final_answer(gold))


def verify(generated: str, gold: str) -> bool:
    """Whether the generated text ends in the reference's final value."""
    expected = final_answer(gold)
    assert expected, f"expected a reference with a final value after {FINAL_MARK}, got {gold!r}"
    return final_answer(generated) == expected
