"""What the row check lets pass, the verifier accepts when it is the response; and no near miss is accepted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.verifiers.answers import ELSEWHERE, NEAR_MISSES, as_responses, generated_answers
from tests.verifiers.tasks import make_task, no_progress
from wmss.config import FinalValueVerifier, MathVerifier
from wmss.data.answers import find_answer, in_box
from wmss.verifiers.final_value import check_final_value, judge_final_value
from wmss.verifiers.registry import make_verifier

MOST_REFUSED = 0.06
"""Share of the generated answers that math-verify cannot read: single words, as a rule."""


@pytest.fixture(scope="module")
def math_verifier():
    with make_verifier(MathVerifier(type="math", timeout_s=20.0), num_processes=2) as verifier:
        yield verifier


def refused_and_broken(verifier, answers, *, one_response=False):
    """Answers that the row check refuses; (answer, response) that it lets pass and the verifier does not accept.

    `one_response`: try one way to end a response with each answer, in turn, not all.
    """
    tasks = [make_task(answer, line=line) for line, answer in enumerate(answers, 1)]
    refused = {int(problem.split()[1].rstrip(":")) for problem in verifier.problems(tasks)}
    pairs = []
    for task in tasks:
        ways = list(as_responses(task.answer)) if task.line not in refused else []
        pairs += [(task, way) for way in ([ways[task.line % len(ways)]] if ways and one_response else ways)]
    verdicts = verifier.verify(pairs, progress=no_progress)
    broken = [(t.answer, r, v.detail) for (t, r), v in zip(pairs, verdicts, strict=True) if not v.accepted]
    return [answers[line - 1] for line in refused], broken


def test_final_value_on_two_thousand_answers():
    with make_verifier(FinalValueVerifier(), num_processes=1) as verifier:
        assert refused_and_broken(verifier, generated_answers(2000)) == ([], [])


def test_math_on_three_hundred_answers(math_verifier):
    refused, broken = refused_and_broken(math_verifier, generated_answers(300, seed=1), one_response=True)
    assert broken == [] and len(refused) <= MOST_REFUSED * 300


@pytest.mark.slow
def test_math_on_two_thousand_answers(math_verifier):
    refused, broken = refused_and_broken(math_verifier, generated_answers(2000))
    assert broken == [] and len(refused) <= MOST_REFUSED * 2000


@given(st.text(alphabet=st.sampled_from("0159.,-−–$\\{}()[]#%/ eEx\n*\u2009"), max_size=30) | st.text(max_size=30))
@settings(max_examples=150, deadline=None)
def test_the_law_on_any_text(answer):
    task = make_task(answer)
    if check_final_value(task) is None:
        response = answer if find_answer(answer) else in_box(answer.strip())
        assert judge_final_value(task, response).label == "correct"


def wrong_pairs():
    for reference, wrong in NEAR_MISSES:
        yield reference, rf"\boxed{{{wrong}}}"
        yield reference, f"#### {wrong}"
    yield from ELSEWHERE


def test_near_misses_are_refused_by_final_value():
    assert len(NEAR_MISSES) + len(ELSEWHERE) >= 60
    pairs = [(make_task(reference), response) for reference, response in wrong_pairs()]
    assert [pair for pair in pairs if judge_final_value(*pair).label == "correct"] == []


def test_near_misses_are_refused_by_math(math_verifier):
    pairs = [(make_task(reference), response) for reference, response in wrong_pairs()]
    verdicts = math_verifier.verify(pairs, progress=no_progress)
    accepted = [(t.answer, r) for (t, r), verdict in zip(pairs, verdicts, strict=True) if verdict.accepted]
    assert accepted == []
