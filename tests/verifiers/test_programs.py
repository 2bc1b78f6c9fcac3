"""What is run of a response and of a row: code blocks, tests as benchmarks write them, and users' own verifiers."""

import pytest

from tests.verifiers.tasks import judge, make_task, need_sandbox, no_progress
from wmss.config import CodeVerifier, PythonVerifier
from wmss.records import Task
from wmss.verifiers.programs import check_code, program_of, row_of
from wmss.verifiers.registry import make_verifier

SAME = "def verify(task, response):\n    return response.strip() == task['answer']"


@pytest.fixture(scope="module")
def sandbox():
    need_sandbox()


@pytest.fixture(scope="module")
def code(sandbox):
    with make_verifier(CodeVerifier(type="code"), num_processes=1) as verifier:
        yield verifier


def judge_code(code, task, *responses):
    assert code.problems([task]) == []
    verdicts = code.verify([(task, response) for response in responses], progress=no_progress)
    return [(verdict.label, verdict.detail) for verdict in verdicts]


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("So:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```\nbetter:\n```python\nx = 2\n```", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n```\n```bash\nls\n```", "x = 1\n"),
        ("```python\nx = 1", "```python\nx = 1"),
    ],
)
def test_the_last_python_block_counts(response, program):
    assert program_of(response) == program


def test_verdicts_of_programs(code):
    task = make_task(tests=["assert f(2) == 4"])
    responses = [
        "```python\ndef f(x): return 2 * x\n```",
        "def f(x): return x",
        "def f(x): return 1 / 0",
        "def g(x): return x",
        "def f(x: return",
        "Twice the number.",
        " ",
    ]
    assert judge_code(code, task, *responses) == [
        ("correct", "passed"),
        ("wrong", "failed_test"),
        ("wrong", "raised"),
        ("wrong", "raised"),
        ("unparseable", "syntax_error"),
        ("unparseable", "syntax_error"),
        ("unparseable", "no_code"),
    ]


@pytest.mark.parametrize(
    ("program", "data"),
    [
        (
            "def double(x): return [2 * i for i in x]",
            {"tests": ["def check(candidate):\n    assert candidate([1]) == [2]", "check(candidate)"]}
            | {"entry_point": "double"},
        ),
        ("def sum(a, b): return a + b", {"tests": ["assert sum(1, 2) == 3"], "entry_point": "sum"}),
        ("def order(x): x.sort()", {"tests": ["x = [2, 1]", "order(x)", "assert x == [1, 2]"]}),
        ("def f(): yield from (1, 2)", {"tests": ["assert list(f()) == [1, 2]", "assert next(f()) == 1"]}),
        (
            "def f(x):\n    if x < 0: raise ValueError(x)\n    return x ** 0.5",
            {
                "tests": [
                    "import math\nassert math.isclose(f(2), 1.41421356, rel_tol=1e-6)",
                    "try:\n    f(-1)\nexcept ValueError:\n    pass\nelse:\n    assert False",
                ]
            },
        ),
        (
            "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
            "    def __len__(self): return len(self.items)\n    def __getitem__(self, i): return self.items[i]",
            {"tests": ["s = Stack()", "s.push((1, {2})); s.push(b'x')", "assert len(s) == 2 and s[0] == (1, {2})"]},
        ),
        (
            "def f(): return {1: [(2.5, None)], 'b': {True}, 'c': 10**40, 'd': 1j, 'e': frozenset('x'), 'f': range(3)}",
            {
                "tests": [
                    "assert f() == {1: [(2.5, None)], 'b': {True}, 'c': 10**40, 'd': 1j, 'e': frozenset('x'), "
                    "'f': range(3)}"
                ]
            },
        ),
        (
            "from collections import Counter\ndef f(x): return Counter(x)",
            {"tests": ["assert f('aab') == {'a': 2, 'b': 1}"]},
        ),
        ("import math\ndef f(x): return math.floor(x)", {"tests": ["assert f(math.pi) == 3"]}),
        ("import numpy\ndef f(x): return int(numpy.sum(x))", {"tests": ["assert f([1, 2]) == 3"]}),
        ("class A:\n    n = 3\ndef f(): return A()\ndef g(a): return a.n", {"tests": ["assert g(f()) == 3"]}),
    ],
)
def test_tests_as_benchmarks_write_them(code, program, data):
    assert judge_code(code, make_task(**data), program) == [("correct", "passed")]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data.tests: expected a list"),
        ({"tests": []}, "data.tests: expected a list"),
        ({"tests": "assert True"}, "data.tests: expected a list"),
        ({"tests": ["assert f(1) == 2", "assert f("]}, "data.tests[1]: expected Python statements"),
        ({"tests": ["assert f(1)"], "entry_point": "f()"}, "data.entry_point"),
    ],
)
def test_rows_without_usable_tests(data, message):
    assert message in (check_code(make_task(**data)) or "")


def test_a_users_function_judges(sandbox):
    config = PythonVerifier(type="python", source=SAME)
    assert judge(config, make_task("7"), "7\n", "8") == [("correct", "accepted"), ("wrong", "rejected")]


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("return 1", ("error", "not_bool")),
        ("return None", ("error", "not_bool")),
        ("return 1 / 0", ("error", "raised")),
        ("import os; os._exit(0)", ("error", "exited")),
        ("open('/x', 'w'); return True", ("error", "raised")),
        ("return task == {'prompt': '?', 'answer': '7', 'level': 2, 'data': {'a': [1]}}", ("correct", "accepted")),
    ],
)
def test_a_users_function_that_fails_accepts_nothing(sandbox, body, verdict):
    config = PythonVerifier(type="python", source=f"def verify(task, response):\n    {body}")
    assert judge(config, make_task("7", level=2, a=[1]), "7") == [verdict]


def test_a_users_function_sees_the_row_and_nothing_of_the_file():
    assert row_of(Task(line=3, messages=({"role": "user", "content": "?"},), answer="1")) == {
        "messages": [{"role": "user", "content": "?"}],
        "answer": "1",
    }


@pytest.mark.parametrize(
    ("source", "message"),
    [("def verify(", "expected Python source"), ("def check(t, r): return True", "expected a function `verify(")],
)
def test_sources_that_are_no_verifier_are_refused(source, message):
    with make_verifier(PythonVerifier(type="python", source=source), num_processes=1) as verifier:
        refusal = verifier.refusals()[0]
    assert message in refusal.message and refusal.param == "method.self_improvement.verifier.source"
