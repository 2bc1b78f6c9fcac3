"""Which verifier stands behind which configuration."""

import os
import platform
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

from wmss.config import (
    ChoiceVerifier,
    CodeVerifier,
    ExactVerifier,
    FinalValueVerifier,
    GraphPathVerifier,
    MathVerifier,
    PythonVerifier,
    RegexVerifier,
    VerifierConfig,
)
from wmss.data.answers import READING
from wmss.extras import needs_extra
from wmss.verifiers.direct import DirectVerifier
from wmss.verifiers.final_value import check_final_value, judge_final_value
from wmss.verifiers.graph_path import check_graph_path, judge_graph_path
from wmss.verifiers.interfaces import Verifier, answer_missing, version_of
from wmss.verifiers.mathematics import response_to_try
from wmss.verifiers.pool import PooledVerifier
from wmss.verifiers.programs import check_code, refuse_python
from wmss.verifiers.sandbox.availability import sandbox_refusals
from wmss.verifiers.text import check_choice, judge_choice, judge_exact, refuse_choices, refuse_regex

REGEX_TIMEOUT_S = 5.0
"""For one response: a sound pattern takes far less than a millisecond."""

MAX_PROCESSES = 8
"""Of one job's verifier: the machine's other cores are its engines'."""
SANDBOX_GRACE_S = 1.5
"""After which a sandbox that has not ended a response in its time is ended itself."""
_PYTHON = f"python-{platform.python_version()}"


def make_verifier(config: VerifierConfig, *, num_processes: int) -> Verifier:
    """The verifier of a configuration, to be used as a context manager.

    `num_processes` >= 1 bounds the responses judged at once by verifiers with processes of their own (regex, math,
    code, python), which start when first needed.
    """
    return _MAKERS[type(config)](config, num_processes)


def usual_processes() -> int:
    """How many responses a job judges at once."""
    return min(MAX_PROCESSES, len(os.sched_getaffinity(0)))


def _final_value(config: FinalValueVerifier, num_processes: int) -> Verifier:
    return DirectVerifier(version_of(config, READING), check=check_final_value, judge=judge_final_value)


def _exact(config: ExactVerifier, num_processes: int) -> Verifier:
    return DirectVerifier(version_of(config), check=answer_missing, judge=partial(judge_exact, config))


def _choice(config: ChoiceVerifier, num_processes: int) -> Verifier:
    return DirectVerifier(
        version_of(config),
        check=partial(check_choice, config.choices),
        judge=partial(judge_choice, config.choices),
        refusals=refuse_choices(config),
    )


def _graph_path(config: GraphPathVerifier, num_processes: int) -> Verifier:
    return DirectVerifier(version_of(config), check=check_graph_path, judge=judge_graph_path)


def _regex(config: RegexVerifier, num_processes: int) -> Verifier:
    # In a process of its own: some patterns take for ever on some texts, and `re` cannot be interrupted.
    return PooledVerifier(
        config,
        version=version_of(config),
        maker="wmss.verifiers.text:make_regex_judge",
        timeout_s=REGEX_TIMEOUT_S,
        num_processes=num_processes,
        check=answer_missing,
        refuse=partial(refuse_regex, config),
    )


def _math(config: MathVerifier, num_processes: int) -> Verifier:
    with needs_extra("math", "verifier: 'math'"):
        packages = [f"{name}-{version(name)}" for name in ("math-verify", "latex2sympy2_extended", "sympy")]
    return PooledVerifier(
        config,
        version=version_of(config, READING, *packages),
        maker="wmss.verifiers.mathematics:make_judge",
        timeout_s=config.timeout_s,
        num_processes=num_processes,
        check=answer_missing,
        response_to_try=response_to_try,
    )


def _code(config: CodeVerifier, num_processes: int) -> Verifier:
    return PooledVerifier(
        config,
        version=version_of(config, _PYTHON),
        maker="wmss.verifiers.programs:make_code_judge",
        timeout_s=config.limits.timeout_s + SANDBOX_GRACE_S,
        num_processes=num_processes,
        check=check_code,
        refuse=sandbox_refusals,
    )


def _python(config: PythonVerifier, num_processes: int) -> Verifier:
    return PooledVerifier(
        config,
        version=version_of(config, _PYTHON),
        maker="wmss.verifiers.programs:make_python_judge",
        timeout_s=config.limits.timeout_s + SANDBOX_GRACE_S,
        num_processes=num_processes,
        check=lambda task: None,
        refuse=lambda: refuse_python(config) + sandbox_refusals(),
    )


_MAKERS: dict[type, Callable[[Any, int], Verifier]] = {
    FinalValueVerifier: _final_value,
    ExactVerifier: _exact,
    RegexVerifier: _regex,
    ChoiceVerifier: _choice,
    GraphPathVerifier: _graph_path,
    MathVerifier: _math,
    CodeVerifier: _code,
    PythonVerifier: _python,
}
