"""A job on the command line: a TOML file, and the options that override it."""

import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from wmss.config import JobSpec, parse_job, read_toml
from wmss.errors import WmssError


@dataclass(frozen=True)
class JobOptions:
    """What `wmss submit` and `wmss check` take alike."""

    file: Annotated[Path | None, typer.Argument(help="Job as TOML; the options below override it.")] = None
    model: Annotated[str | None, typer.Option(help="Start checkpoint.")] = None
    training_file: Annotated[Path | None, typer.Option(help="JSONL file to train on.")] = None
    validation_file: Annotated[Path | None, typer.Option(help="Held-out JSONL file.")] = None
    method: Annotated[str | None, typer.Option(help="wmss, supervised or self_improvement.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of the draw and of the order.")] = None
    suffix: Annotated[str | None, typer.Option(help="Part of the finished model's name.")] = None

    def read(self) -> JobSpec:
        """The job; raises `WmssError` where file and options make none."""
        values: dict[str, Any] = {}
        if self.file is not None:
            values = read_toml(self.file)
            for key in ("training_file", "validation_file"):
                path = values.get(key)
                if isinstance(path, str) and path and "\0" not in path:  # else it is refused as it stands
                    values[key] = os.path.realpath(self.file.parent / path)  # paths in a file are relative to it
        given = {key: value for key, value in vars(self).items() if value is not None}
        given = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        values |= {key: value for key, value in given.items() if key not in ("file", "method")}
        if self.method is not None and values.get("method", {}).get("type", self.method) != self.method:
            raise WmssError(f"--method {self.method}: {self.file} has [{values['method']['type']}]; remove one of them")
        if self.method is not None:
            values.setdefault("method", {"type": self.method})
        return parse_job(values)


def takes_job(command: Callable[..., None]) -> Callable[..., None]:
    """A Typer command with the options of a job before its own; it gets them as its first argument."""
    shared = list(inspect.signature(JobOptions).parameters.values())
    own = list(inspect.signature(command).parameters.values())[1:]

    def run(**values: Any) -> None:
        command(JobOptions(**{each.name: values.pop(each.name) for each in shared}), **values)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {each.name: each.annotation for each in (*shared, *own)}
    run.__signature__ = inspect.Signature([*shared, *own])  # type: ignore[attr-defined]
    return run
