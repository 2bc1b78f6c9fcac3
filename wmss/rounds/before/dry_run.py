"""What a dry run says of a job: refusals, warnings, one masked sample, figures of the files, the plan and its cost."""

from pathlib import Path

from wmss.config import JobSpec, SelfImprovementMethod
from wmss.errors import ModelError
from wmss.models.loading import load_tokenizer
from wmss.rounds.before.cost import cost
from wmss.rounds.before.figures import file_figures, rendered, task_figures
from wmss.rounds.before.improvement_warnings import improvement_warnings
from wmss.rounds.before.plan import plan
from wmss.rounds.before.preflight import Findings
from wmss.rounds.before.report import Finding, Machine, Report
from wmss.rounds.before.warnings import padded, shortages, warnings
from wmss.rounds.job import Sources


def report(sources: Sources, found: Findings, machine: Machine) -> Report:
    """Everything that can be said of a job whose checks gave `found`; what a problem hides is null."""
    problems = [Finding(code=p.code, message=p.message, param=p.param) for p in found.problems]
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
