"""From JSON values or a TOML file to a validated request."""

import os
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from wmss.config.base import Knobs
from wmss.config.job import JobSpec, ScoreSpec
from wmss.config.wording import explain
from wmss.errors import ConfigError

Spec = TypeVar("Spec", bound=Knobs)


def parse_job(values: Any) -> JobSpec:
    """Validate a job from JSON values; every problem becomes one `ConfigError` that names the fields."""
    return _parse(JobSpec, values)


def parse_scores(values: Any) -> ScoreSpec:
    """Validate a request for entropy scores in the same way."""
    return _parse(ScoreSpec, values)


def _parse(kind: type[Spec], values: Any) -> Spec:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error.errors(include_url=False), kind) from None


METHODS = ("wmss", "supervised", "self_improvement")


def read_toml(path: Path) -> dict[str, Any]:
    """Values of a TOML job file, not yet validated: keys of `JobSpec`, with a table of a method's name as method."""
    if os.path.exists(path) and not os.path.isfile(path):  # opening a FIFO would wait for its writer
        raise ConfigError(f"{path}: expected a TOML file, got a folder, a FIFO or a device; name a file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: expected a readable TOML file: {error.strerror}; check the path") from error
    except RecursionError:
        raise ConfigError(f"{path}: expected a readable TOML file: nested too deeply") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: expected a readable TOML file: {error}; correct it") from error
    except ValueError:  # an integer that Python does not read
        raise ConfigError(f"{path}: expected a readable TOML file: a number of thousands of digits") from None
    methods = [name for name in METHODS if name in values]
    if "method" in values or len(methods) > 1:
        raise ConfigError(
            f"{path}: expected one table, [wmss], [supervised] or [self_improvement], in place of `method`; keep one"
        )
    if methods:
        values["method"] = {"type": methods[0], methods[0]: values.pop(methods[0])}
    return values
