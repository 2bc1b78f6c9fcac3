"""Which generated answers count as right, one by one."""

import pytest

from tests.verifiers.tasks import judge, make_task
from wmss.config import FinalValueVerifier
from wmss.verifiers.final_value import FinalAnswer, final_answer, is_verifiable, verify
from wmss.verifiers.registry import make_verifier

GOLD = "Natalia sold 48+24 = 72 clips.\n#### 72"


@pytest.mark.parametrize(
    "generated",
    [
        "#### 72",
        "so\n####72",
        "#### 72.",
        "#### 72.0",
        "#### $72",
        r"#### \$72.00",
        "#### 72 clips",
        "#### 72 clips altogether.",
        "#### 72% of them",
        "#### **72**",
        "#### 71\n#### 72",
        "#### 72\nI hope this helps, 100%!",
        r"The answer is \boxed{72}.",
        r"#### \boxed{72}",
        r"#### $\boxed{72}$",
        r"first \boxed{70}, then \boxed{72}",
    ],
)
def test_right_answers(generated):
    assert verify(generated, GOLD)


@pytest.mark.parametrize(
    "generated",
    [
        "",
        "72",
        "the answer is 72",
        "####",
        "####   \n",
        "#### 7",
        "#### 720",
        "#### 72.5",
        "#### -72",
        "#### 72/3",
        "#### 72 / 3",
        "#### 72 + 1",
        "#### 72 000",
        "#### 72 or 73",
        "#### 7,2",
        "#### x72",
        "#### 72\n#### 73",
        r"\boxed{}",
        r"\boxed{73}",
        r"\boxed{72} #### 73",
    ],
)
def test_wrong_answers(generated):
    assert not verify(generated, GOLD)


def test_numbers_are_compared_as_numbers():
    assert verify("#### 1234", "#### 1,234")
    assert verify("#### 1,234.50", "#### 1234.5")
    assert not verify("#### 1,23", "#### 123")
    assert verify("#### -5", "#### −5")
    assert verify("#### 0.5", "#### .5")
    assert verify("#### 10000000000000000000001", "#### 10000000000000000000001")
    assert not verify("#### 10000000000000000000002", "#### 10000000000000000000001")


def test_units_count_only_where_both_name_one():
    assert verify("#### 5", "#### 5 cm") and verify("#### 5 cm", "#### 5")
    assert verify("#### 5 CM.", "#### 5 cm")
    assert not verify("#### 5 m", "#### 5 cm")
    assert verify("#### $5", "#### 5 dollars")
    assert verify("#### 5%", "#### 5") and not verify("#### 5%", "#### 5 cm")


def test_values_that_are_no_numbers_are_compared_as_text():
    assert verify("#### Yes.", "#### yes")
    assert not verify("#### yes and no", "#### yes")
    assert verify("#### 1/2", "#### 1/2") and not verify("#### 1/3", "#### 1/2")
    assert final_answer("#### 3:30 pm") == FinalAnswer("3:30 pm")


def test_only_marked_references_are_verifiable():
    assert is_verifiable(GOLD)
    assert not is_verifiable("hello") and not is_verifiable("#### ") and not is_verifiable(r"\boxed{72}")


def test_verdicts_tell_a_missing_value_from_a_wrong_one():
    responses = ["so\n#### 72", r"\boxed{72}", "#### 71", "72", ""]
    assert judge(FinalValueVerifier(), make_task(GOLD), *responses) == [
        ("correct", "equal"),
        ("correct", "equal"),
        ("wrong", "other_value"),
        ("unparseable", "no_final_value"),
        ("unparseable", "no_final_value"),
    ]


@pytest.mark.parametrize("answer", ["72", " 72.0 ", "$72", "#### 72", r"\boxed{72}", "72 clips"])
def test_references_need_no_mark(answer):
    assert judge(FinalValueVerifier(), make_task(answer), "#### 72") == [("correct", "equal")]


@pytest.mark.parametrize("answer", [None, "", "  ", "two\nlines", "####", "so ####  "])
def test_tasks_without_a_reference_are_named_by_line(answer):
    with make_verifier(FinalValueVerifier(), num_processes=1) as verifier:
        [problem] = verifier.problems([make_task("1"), make_task(answer, line=7)])
    assert problem.startswith("line 7: answer: expected")
