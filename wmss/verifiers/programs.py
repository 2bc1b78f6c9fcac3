"""Does the response's program pass the row's tests, or does the user's own function accept the response?

Both run in the sandbox, inside pooled processes; this module only says what is run.
"""

import ast
import re
from dataclasses import asdict
from typing import Any

from wmss.config import PythonVerifier, SandboxLimits
from wmss.errors import ConfigError, WmssError, shown
from wmss.records import Task
from wmss.verifiers.interfaces import VERIFIER, Judge, Ruling
from wmss.verifiers.sandbox.host import run_in_sandbox
from wmss.verifiers.sandbox.tester import Job

_BLOCK = re.compile(r"^```[ \t]*(?:python3?|py)?[ \t]*\r?\n(.*?)^```", re.MULTILINE | re.DOTALL | re.IGNORECASE)


def make_code_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`. Details: passed; failed_test, raised, exited; no_code, syntax_error; time; of errors:
    sandbox, with a reason."""
    limits = SandboxLimits(**config["limits"])

    def judge(task: Task, response: str) -> Ruling:
        source = program_of(response)
        if not source.strip():
            return Ruling("unparseable", "no_code")
        job = Job(source, tests=tuple(task.data["tests"]), entry_point=task.data.get("entry_point"))
        return run_in_sandbox(job, limits)

    return judge


def program_of(response: str) -> str:
    """The last fenced Python block of a response, or all of it where there is none."""
    blocks = _BLOCK.findall(response)
    return str(blocks[-1]) if blocks else response


def check_code(task: Task) -> str | None:
    """A task for the code verifier has tests that can be compiled."""
    tests = task.data.get("tests")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        return f"data.tests: expected a list of Python statements as strings, got {shown(tests)}; add the tests"
    entry_point = task.data.get("entry_point")
    if entry_point is not None and (not isinstance(entry_point, str) or not entry_point.isidentifier()):
        return f"data.entry_point: expected a function's name, got {shown(entry_point)}; correct it"
    for index, test in enumerate(tests):
        problem = _syntax_problem(test)
        if problem is not None:
            return f"data.tests[{index}]: expected Python statements: {problem}; correct them"
    return None


def make_python_judge(config: dict[str, Any]) -> Judge:
    """For `PooledVerifier`. Details: accepted, rejected; time; of errors: not_bool, raised, exited, sandbox."""
    limits = SandboxLimits(**config["limits"])

    def judge(task: Task, response: str) -> Ruling:
        return run_in_sandbox(Job(config["source"], arguments=(row_of(task), response)), limits)

    return judge


def row_of(task: Task) -> dict[str, Any]:
    """What `verify` gets as `task`: the row's fields, those it does not have left out."""
    row = asdict(task) | {"messages": list(task.messages)}
    return {
        key: value for key, value in row.items() if key not in ("line", "split") and value not in ("", None, [], {})
    }


def refuse_python(config: PythonVerifier) -> list[WmssError]:
    """Why a user's source cannot be a verifier: it is no Python, or does not define `verify`."""
    field = f"{VERIFIER}.source"
    problem = _syntax_problem(config.source)
    if problem is not None:
        return [ConfigError(f"{field}: expected Python source: {problem}; correct it", param=field)]
    functions = [node for node in ast.parse(config.source).body if isinstance(node, ast.FunctionDef)]
    if not any(function.name == "verify" for function in functions):
        message = "expected a function `verify(task, response)` that returns True or False, got none; define it"
        return [ConfigError(f"{field}: {message}", param=field)]
    return []


def _syntax_problem(source: str) -> str | None:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return None
