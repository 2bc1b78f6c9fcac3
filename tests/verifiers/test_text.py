"""Responses judged by their text: the whole of it, what a pattern finds last, the one choice at the end."""

import time

import pytest

from tests.verifiers.tasks import judge, make_task, no_progress
from wmss.config import ChoiceVerifier, ExactVerifier, FinalValueVerifier, MathVerifier, RegexVerifier
from wmss.data.answers import READING
from wmss.verifiers.registry import make_verifier

ABCD = ChoiceVerifier(type="choice", choices=["A", "B", "C", "D"])


def test_exact_ignores_blanks_at_the_ends_and_case_only_on_request():
    task = make_task(" Paris")
    assert judge(ExactVerifier(type="exact"), task, "Paris\n", "paris", "Paris!") == [
        ("correct", "equal"),
        ("wrong", "other_text"),
        ("wrong", "other_text"),
    ]
    assert judge(ExactVerifier(type="exact", ignore_case=True), task, "PARIS") == [("correct", "equal")]


@pytest.mark.parametrize(
    "response", ["B", "B.", "(B)", "**B**", "The answer is B", "A or B?\nB", "It is B) \n\n", "a thing: B"]
)
def test_the_choice_of_the_last_line_counts(response):
    assert judge(ABCD, make_task("B"), response) == [("correct", "equal")]


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        ("C", ("wrong", "other_choice")),
        ("A or B", ("unparseable", "several_choices")),
        ("neither A nor B nor C but B", ("unparseable", "several_choices")),
        ("B\nThat is all.", ("unparseable", "no_choice")),
        ("b", ("unparseable", "no_choice")),
        ("AB", ("unparseable", "no_choice")),
        ("", ("unparseable", "no_choice")),
    ],
)
def test_other_choices_and_none(response, verdict):
    assert judge(ABCD, make_task("B"), response) == [verdict]


def test_a_choice_inside_a_longer_one_is_not_named():
    config = ChoiceVerifier(type="choice", choices=["York", "New York", "C++"])
    assert judge(config, make_task("New York"), "New York", "York") == [("correct", "equal"), ("wrong", "other_choice")]
    assert judge(config, make_task("C++"), "in C++") == [("correct", "equal")]


def test_choices_that_cannot_be_told_apart_are_refused():
    def refused(*choices):
        with make_verifier(ChoiceVerifier(type="choice", choices=list(choices)), num_processes=1) as verifier:
            return [str(error) for error in verifier.refusals()]

    assert "expected different choices" in refused("A", "A")[0]
    assert "no blanks" in refused("A ", "B")[0]
    with make_verifier(ABCD, num_processes=1) as verifier:
        assert "expected one of" in verifier.problems([make_task("E")])[0]


def test_the_last_match_of_a_pattern_counts():
    config = RegexVerifier(type="regex", pattern=r"answer: *(\d+)|none")
    assert judge(config, make_task("7"), "answer: 6, no, answer: 7", "answer:8", "7", "answer: 7, none") == [
        ("correct", "equal"),
        ("wrong", "other_text"),
        ("unparseable", "no_match"),
        ("unparseable", "no_match"),
    ]


@pytest.mark.parametrize(("pattern", "message"), [("(", "regular expression"), ("a", "got 0"), ("(a)(b)", "got 2")])
def test_unusable_patterns_are_refused(pattern, message):
    with make_verifier(RegexVerifier(type="regex", pattern=pattern), num_processes=1) as verifier:
        [error] = verifier.refusals()
    assert message in error.message and error.param == "method.self_improvement.verifier.pattern"


def test_a_pattern_that_backtracks_without_end_costs_its_time_and_no_more(monkeypatch):
    monkeypatch.setattr("wmss.verifiers.registry.REGEX_TIMEOUT_S", 0.5)
    with make_verifier(RegexVerifier(type="regex", pattern=r"((?:a+)+)$"), num_processes=1) as verifier:
        task, start = make_task("aa"), time.monotonic()
        pairs = [(task, "a" * 40 + "b"), (task, "aa")]
        assert [verdict.label for verdict in verifier.verify(pairs, progress=no_progress)] == ["timeout", "correct"]
        assert time.monotonic() - start < 10


def test_versions_name_how_answers_are_read(monkeypatch):
    versions = set()
    for reading in (READING, "answers-1"):
        monkeypatch.setattr("wmss.verifiers.registry.READING", reading)
        for config in (FinalValueVerifier(), MathVerifier(type="math")):
            with make_verifier(config, num_processes=1) as verifier:
                versions.add(verifier.version)
    assert len(versions) == 4


def test_versions_name_the_configuration():
    versions = set()
    for pattern in ("(a)", "(b)", "(a)"):
        with make_verifier(RegexVerifier(type="regex", pattern=pattern), num_processes=1) as verifier:
            versions.add(verifier.version)
    assert len(versions) == 2
