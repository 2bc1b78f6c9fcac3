"""Errors a caller can cause. Each says what was expected, what came, where, and what to do.

They are picklable (Ray carries them between processes) and become `error{code, message, param}` at the API.
"""

from collections.abc import Sequence
from typing import Any

MAX_REPEATED = 120


class WmssError(ValueError):
    """Base of all caller-facing errors. `code` is stable and machine-readable; `param` names the field."""

    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.param)


class ConfigError(WmssError):
    """A knob is unknown, out of range or contradicts another."""

    code = "invalid_config"


class ExtraError(WmssError):
    """What was asked for needs a package that only an extra of this one brings."""

    code = "missing_extra"


class DataError(WmssError):
    """A training or validation file cannot be used; the message carries line numbers."""

    code = "invalid_file"


class ModelError(WmssError):
    """A model cannot be found, loaded or paired with another."""

    code = "invalid_model"


class ScoreTableError(WmssError):
    """A table of scores cannot be read, or its scores cannot be compared with another's."""

    code = "invalid_scores"


class ScoringError(WmssError):
    """An engine gives other figures than the weights it serves."""

    code = "wrong_scores"


class TrainingError(WmssError):
    """Training had to stop: a non-finite loss, or workers that failed more often than allowed."""

    code = "training_failed"


class ResultError(WmssError):
    """What was saved as a job's result is not the model that was trained."""

    code = "wrong_result"


class RecordError(WmssError):
    """A phase was recorded in a form that this release cannot read."""

    code = "other_release"


class BusyError(Exception):
    """Nothing is wrong with what was asked; there is no room for it now."""


def shortened(text: str) -> str:
    """What a message repeats of the caller's own text: no more than a person reads."""
    return text if len(text) <= MAX_REPEATED else text[: MAX_REPEATED - 3] + "..."


def shown(value: Any) -> str:
    """The same of any value, as Python writes it."""
    try:
        return shortened(repr(value))
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a number of thousands of digits"


def _rebuild(kind: type[WmssError], message: str, param: str | None) -> WmssError:
    return kind(message, param=param)


def raise_all(problems: Sequence[WmssError]) -> None:
    """Raise one error for all of them, of the kind and field of the first; nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        messages = [problem.message for problem in problems]
        between = "\n" if any("\n" in message for message in messages) else "; "
        raise _rebuild(type(problems[0]), between.join(messages), problems[0].param)
