"""What a dry run says of a job: refusals, warnings, one masked sample, figures of the files, the plan and its cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wmss.config import JobSpec, SelfImprovementMethod
from wmss.errors import ModelError, WmssError
from wmss.models import limited
from wmss.models.loading import load_tokenizer
from wmss.rounds.before.cost import cost
from wmss.rounds.before.figures import file_figures, rendered, task_figures
from wmss.rounds.before.improvement_warnings import improvement_warnings
from wmss.rounds.before.plan import plan
from wmss.rounds.before.preflight import (
    Findings,
    Refusals,
    SoundModels,
    examine_files,
    examine_models,
    judging_problems,
)
from wmss.rounds.before.report import Finding, Machine, Report
from wmss.rounds.before.warnings import padded, shortages, warnings
from wmss.rounds.job import Sources

ROWS_BYTES_PER_S = 20_000
"""Of files: far below what rows with a usual template take on a busy core, see `MEMORY_PER_BYTE`."""
MEMORY_PER_BYTE = 60
"""Of files: rows, texts and tokens."""

Told = tuple[str, str, str | None]
"""Code, message and field of a problem."""


def limited_report(
    sources: Sources, refusals: Refusals, machine: Machine, problems: Sequence[WmssError] = ()
) -> Report:
    """`report` of a job, in which templates and tokenizers are met in the process with limits, never in this one.

    `problems` are those of names that lead nowhere.
    """
    found = examine_models(sources, refusals)
    num_bytes = sum(file.stat().st_size for file in sources.files.values() if file.is_file())
    limits = limited.Limits(
        time_s=limited.TIME_S + num_bytes / ROWS_BYTES_PER_S,
        memory_bytes=limited.MEMORY_BYTES + MEMORY_PER_BYTE * num_bytes,
    )
    arguments = {
        "spec": sources.spec.model_dump(mode="json"),
        "models": _paths(sources.models),
        "sound": _paths(found.folders),
        "files": _paths(sources.files),
        "file_names": dict(sources.file_names),
        "named": _told(problems),
        "found": _told(found.problems),
        "judged": _told(judging_problems(sources) if "model" in found.folders else ()),
        "machine": machine.model_dump(mode="json"),
    }
    try:
        said = limited.ask(
            f"{__name__}:answer",
            arguments,
            what=f"the dry run with {sources.models.get('model')}",
            because="its tokenizer or chat template asks for far more {} than rows need",
            param="model",
            limits=limits,
        )
    except ModelError as error:  # beyond the limits
        return Report(valid=False, problems=[_finding(p) for p in (*problems, *found.problems, error)], warnings=[])
    return Report.model_validate(said)


def answer(
    *,
    spec: dict[str, Any],
    models: dict[str, str],
    sound: dict[str, str],
    files: dict[str, str],
    file_names: dict[str, str],
    named: Sequence[Told],
    found: Sequence[Told],
    judged: Sequence[Told],
    machine: dict[str, Any],
) -> dict[str, Any]:
    """The part of `limited_report` that meets templates, as JSON."""
    sources = Sources(JobSpec.model_validate(spec), _folders(models), _folders(files), {}, file_names)
    known = SoundModels([_heard(each) for each in found], _folders(sound))
    everything = examine_files(sources, known, [_heard(each) for each in judged])
    everything.problems[:0] = [_heard(each) for each in named]
    return report(sources, everything, Machine.model_validate(machine)).model_dump(mode="json")


def _paths(folders: Mapping[str, Path]) -> dict[str, str]:
    return {param: str(folder.absolute()) for param, folder in folders.items()}


def _folders(paths: Mapping[str, str]) -> dict[str, Path]:
    return {param: Path(path) for param, path in paths.items()}


def _told(problems: Sequence[WmssError]) -> list[Told]:
    return [(each.code, each.message, each.param) for each in problems]


def _heard(told: Told) -> WmssError:
    code, message, param = told
    error = WmssError(message, param=param)
    error.code = code  # a kind may be the service's own
    return error


def _finding(problem: WmssError) -> Finding:
    return Finding(code=problem.code, message=problem.message, param=problem.param)


def report(sources: Sources, found: Findings, machine: Machine) -> Report:
    """Everything that can be said of a job whose checks gave `found`; what a problem hides is null."""
    problems = [_finding(problem) for problem in found.problems]
    base = sources.models.get("model")
    training, validation = found.training, found.validation
    if isinstance(sources.spec.method, SelfImprovementMethod):
        return _improvement_report(sources.spec, base, found, problems)
    if base is None or training is None or not training.tokenized or found.max_length is None:
        return Report(valid=False, problems=problems, warnings=[])
    tokenizer = load_tokenizer(base)
    figures = file_figures(training, tokenizer)
    planned = None if problems else plan(sources.spec, found)
    said = warnings(sources.spec, found, figures, planned)
    estimated = None
    if planned is not None:
        try:
            estimated = cost(sources, found, planned, machine)
            said += shortages(estimated, machine)
        except ModelError as error:  # a family whose sizes are not known here may still be trained
            said.append(Finding(code="no_estimate", message=error.message, param=error.param))
    return Report(
        valid=not problems,
        problems=problems,
        warnings=said,
        training_file=figures,
        validation_file=file_figures(validation, tokenizer) if validation and validation.tokenized else None,
        sample=rendered(training.tokenized[0], tokenizer),
        plan=planned,
        cost=estimated,
    )


def _improvement_report(spec: JobSpec, base: Path | None, found: Findings, problems: list[Finding]) -> Report:
    if base is None or found.tasks is None:
        return Report(valid=False, problems=problems, warnings=[])
    return Report(
        valid=not problems,
        problems=problems,
        warnings=[*improvement_warnings(spec, found.tasks), *padded(found, spec)],
        tasks=task_figures(base, found.tasks),
        plan=None if problems else plan(spec, found),
    )
