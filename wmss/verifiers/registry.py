"""Which verifier stands behind which configuration."""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from wmss.config import (
    ChoiceVerifier,
    ExactVerifier,
    FinalValueVerifier,
    GraphPathVerifier,
    RegexVerifier,
    VerifierConfig,
)
from wmss.verifiers.direct import DirectVerifier
from wmss.verifiers.final_value import check_final_value, judge_final_value
from wmss.verifiers.graph_path import check_graph_path, judge_graph_path
from wmss.verifiers.interfaces import Verifier, answer_missing, version_of
from wmss.verifiers.text import check_choice, judge_choice, judge_exact, judge_regex, refuse_choices, refuse_regex


def make_verifier(config: VerifierConfig, *, num_processes: int) -> Verifier:
    """The verifier of a configuration, to be used as a context manager.

    `num_processes` >= 1 bounds the responses judged at once by verifiers with processes of their own (regex, math,
    code, python), which start when first needed.
    """
    return _MAKERS[type(config)](config, num_processes)


def _final_value(config: FinalValueVerifier, num_processes: int) -> Verifier:
    return DirectVerifier(version_of(config), check=check_final_value, judge=judge_final_value)


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
    refusals = refuse_regex(config)
    pattern = re.compile("()" if refusals else config.pattern)
    return DirectVerifier(
        version_of(config), check=answer_missing, judge=partial(judge_regex, pattern), refusals=refusals
    )


_MAKERS: dict[type, Callable[[Any, int], Verifier]] = {
    FinalValueVerifier: _final_value,
    ExactVerifier: _exact,
    RegexVerifier: _regex,
    ChoiceVerifier: _choice,
    GraphPathVerifier: _graph_path,
}
