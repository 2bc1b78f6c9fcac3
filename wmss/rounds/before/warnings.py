"""What would work, but probably not as meant: warnings of a weak-driven or supervised job."""

from collections.abc import Iterator

import numpy as np

from wmss.config import JobSpec, WmssConfig, WmssMethod
from wmss.data.dataset import Sample
from wmss.rounds.before.preflight import FileContent, Findings, first_lines
from wmss.rounds.before.report import Cost, FileFigures, Finding, Machine, Plan
from wmss.units import gigabytes
from wmss.verifiers.final_value import is_verifiable

FEW_STEPS = 20
"""Optimizer steps below which a phase hardly leaves its warm-up."""
FEW_TARGETS = 8
"""Supervised tokens below which a sample's mean entropy is mostly chance."""
FEW_PROBLEMS = 100
"""Held-out problems below which pass@1 is known to ten points at best."""
USUAL_LEARNING_RATES = (1e-7, 1e-3)


def warnings(spec: JobSpec, found: Findings, figures: FileFigures, planned: Plan | None) -> list[Finding]:
    """What would work, but probably not as meant."""
    training, validation = found.training, found.validation
    assert training is not None
    said = [
        *_rows_dropped(found, spec),
        *_rows_cut(training, figures, spec, found.context),
        *_few_steps(planned, spec),
        *_unusual_learning_rate(spec),
        *padded(found, spec),
    ]
    if isinstance(spec.method, WmssMethod):
        said += _untrained_strong(spec.method.wmss)
        said += _noisy_entropy(training) if spec.method.wmss.reads_entropy else ()
    if validation is not None:
        said += [*_imprecise_accuracy(validation), *_shared_prompts(training, validation)]
    return said


def _rows_dropped(found: Findings, spec: JobSpec) -> Iterator[Finding]:
    for param, content in (("training_file", found.training), ("validation_file", found.validation)):
        if content is not None and content.dropped:
            rows = len(content.dropped) + len(content.samples)
            message = (
                f"{len(content.dropped)} of {rows} rows of the {param} are longer than max_length {found.max_length} "
                f"and are left out (lines {first_lines(content.dropped)})"
            )
            yield Finding(code="rows_dropped", message=message, param=_knob(spec, "too_long"))


def _rows_cut(training: FileContent, figures: FileFigures, spec: JobSpec, context: int | None) -> Iterator[Finding]:
    if training.cut:
        longest = figures.longest_uncut
        remedy = f"raise max_length to {longest} to keep them whole"
        if context is not None and longest > context:
            remedy = (
                f"the longest has {longest} tokens and the model's context is {context}: shorten them, or leave them "
                "out with too_long 'drop'"
            )
        message = (
            f"{len(training.cut)} of {figures.num_rows} rows are cut and do not learn to stop (lines "
            f"{first_lines(training.cut)}); {remedy}"
        )
        yield Finding(code="rows_cut", message=message, param=_knob(spec, "max_length"))


def _few_steps(planned: Plan | None, spec: JobSpec) -> Iterator[Finding]:
    if planned is None:
        return
    for phase in planned.phases:
        if phase.num_steps is not None and phase.num_steps < FEW_STEPS:
            bound = "at most " if phase.at_most else ""
            limited = phase.num_steps == spec.hyperparameters.max_steps
            remedy, knob = (
                ("raise max_steps", "max_steps") if limited else ("lower it or raise the epochs", "batch_size")
            )
            steps = "1 step" if phase.num_steps == 1 else f"{phase.num_steps} steps"
            message = f"{phase.name} takes {bound}{steps} of {planned.batch_size} samples; {remedy}"
            yield Finding(code="few_steps", message=message, param=_knob(spec, knob))


def _unusual_learning_rate(spec: JobSpec) -> Iterator[Finding]:
    low, high = USUAL_LEARNING_RATES
    rate = spec.hyperparameters.peak_learning_rate
    if not low <= rate <= high:
        message = f"a learning rate of {rate:g} is outside the {low:g} to {high:g} usual in fine-tuning"
        yield Finding(code="unusual_learning_rate", message=message, param=_knob(spec, "learning_rate"))


def padded(found: Findings, spec: JobSpec) -> Iterator[Finding]:
    """That samples are not packed, and why."""
    if found.unpacked is not None:
        message = f"samples are padded, not packed: {found.unpacked}; it costs time, the result is the same"
        yield Finding(code="padded", message=message, param=_knob(spec, "packing"))


def _untrained_strong(wmss: WmssConfig) -> Iterator[Finding]:
    if wmss.mixing_weight == 0 and not wmss.mixing_weight_end:
        message = "with a mixing weight of 0 no gradient reaches the strong model, the one that is kept; raise it"
        yield Finding(code="strong_untrained", message=message, param="method.wmss.mixing_weight")


def _noisy_entropy(training: FileContent) -> Iterator[Finding]:
    median = float(np.median([sample.num_targets for sample in training.tokenized]))
    if median < FEW_TARGETS:
        message = (
            f"half of the rows have {median:g} supervised tokens or fewer: their mean entropy, which decides what is "
            "drawn, is noisy"
        )
        yield Finding(code="noisy_entropy", message=message, param="training_file")


def _imprecise_accuracy(validation: FileContent) -> Iterator[Finding]:
    total = len(validation.samples)
    without = [sample.line for sample in validation.samples if not is_verifiable(sample.answer)]
    if without:
        message = (
            f"{len(without)} of {total} answers do not end in '#### value' (lines {first_lines(without)}): the result "
            "is judged by its NLL alone"
        )
        yield Finding(code="unverifiable_answers", message=message, param="validation_file")
    elif total < FEW_PROBLEMS:
        half_width = 98 / total**0.5  # of a 95 % interval around 50 %
        message = f"{total} problems tell pass@1 to within {half_width:.0f} points; smaller differences are chance"
        yield Finding(code="few_problems", message=message, param="validation_file")


def _shared_prompts(training: FileContent, validation: FileContent) -> Iterator[Finding]:
    seen = {_prompt(sample) for sample in training.samples}
    shared = [sample.line for sample in validation.samples if _prompt(sample) in seen]
    if shared:
        message = (
            f"{len(shared)} of {len(validation.samples)} prompts are in the training file too (lines "
            f"{first_lines(shared)}), so the evaluation flatters; remove them"
        )
        yield Finding(code="shared_prompts", message=message, param="validation_file")


def _knob(spec: JobSpec, name: str) -> str:
    return f"method.{spec.method.type}.hyperparameters.{name}"


def _prompt(sample: Sample) -> str:
    """All that stands before the last answer."""
    return sample.prompt or repr(sample.messages[:-1])


def shortages(cost: Cost, machine: Machine) -> Iterator[Finding]:
    """Estimates against what this machine has."""
    training = 0 if machine.on_gpu else cost.num_workers * cost.worker_memory_bytes
    needed = max(training, cost.engine_memory_bytes or 0)  # never at the same time
    if machine.memory_bytes is not None and needed > machine.memory_bytes:
        message = (
            f"about {gigabytes(needed)} of memory are needed and this machine has {gigabytes(machine.memory_bytes)}; "
            "lower micro_batch_tokens or num_workers, or choose a smaller model"
        )
        yield Finding(code="short_of_memory", message=message, param=None)
    disk = cost.disk_bytes + cost.temporary_disk_bytes
    if machine.free_disk_bytes is not None and disk > machine.free_disk_bytes:
        message = (
            f"about {gigabytes(disk)} of disk are needed, {gigabytes(machine.free_disk_bytes)} are free; lower "
            "checkpointing.keep_last or make room"
        )
        yield Finding(code="short_of_disk", message=message, param="checkpointing.keep_last")
