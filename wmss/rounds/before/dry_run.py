"""What a dry run says of a job: refusals, warnings, one masked sample, figures of the files, the plan and its cost."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise

import numpy as np
from transformers import PreTrainedTokenizerBase

from wmss.config import JobSpec, SelfImprovementMethod, WmssConfig, WmssMethod
from wmss.data.dataset import Sample
from wmss.data.sampler import BatchSampler
from wmss.data.states import states_bytes
from wmss.data.tokenization import tokenize_samples
from wmss.errors import ModelError
from wmss.models.loading import load_tokenizer
from wmss.records import TokenizedSample
from wmss.rounds.before.estimates import (
    MATRIX_SHARE,
    PROCESS_BYTES,
    Branch,
    ModelShape,
    checkpoint_bytes,
    engine_bytes,
    measure_flops,
    pass_flops,
    read_shape,
    training_flops,
    worker_tensor_bytes,
)
from wmss.rounds.before.improvement_report import improvement_report
from wmss.rounds.before.preflight import MAX_LINES, FileContent, Findings, first_lines
from wmss.rounds.before.report import (
    Cost,
    FileFigures,
    Finding,
    Machine,
    Plan,
    PlannedPhase,
    RenderedSample,
    Report,
    Segment,
)
from wmss.rounds.job import Sources
from wmss.rounds.phases import kind_and_round, needs_engine, phases_of
from wmss.units import gigabytes
from wmss.verifiers.final_value import is_verifiable

FEW_STEPS = 20
"""Optimizer steps below which a phase hardly leaves its warm-up."""
FEW_TARGETS = 8
"""Supervised tokens below which a sample's mean entropy is mostly chance."""
FEW_PROBLEMS = 100
"""Held-out problems below which pass@1 is known to ten points at best."""
USUAL_LEARNING_RATES = (1e-7, 1e-3)


def report(sources: Sources, found: Findings, machine: Machine) -> Report:
    """Everything that can be said of a job whose checks gave `found`; whatever a problem hides is null."""
    problems = [Finding(code=p.code, message=p.message, param=p.param) for p in found.problems]
    base = sources.models.get("model")
    training, validation = found.training, found.validation
    if isinstance(sources.spec.method, SelfImprovementMethod):
        return improvement_report(sources.spec, base, found, problems)
    if base is None or training is None or not training.tokenized or found.max_length is None:
        return Report(valid=False, problems=problems, warnings=[])
    tokenizer = load_tokenizer(base)
    figures = file_figures(training, tokenizer)
    planned = None if problems else plan(sources, found)
    said = warnings(sources.spec, found, figures, planned)
    cost = None
    if planned is not None:
        try:
            cost = _cost(sources, found, planned, machine)
            said += _shortages(cost, machine)
        except ModelError as error:  # a family whose sizes are not known here may still be trained
            said.append(Finding(code="no_estimate", message=error.message, param=error.param))
    return Report(
        valid=not problems,
        problems=problems,
        warnings=said,
        training_file=figures,
        validation_file=file_figures(validation, tokenizer) if validation and validation.tokenized else None,
        sample=_rendered(training.tokenized[0], tokenizer),
        plan=planned,
        cost=cost,
    )


def file_figures(content: FileContent, tokenizer: PreTrainedTokenizerBase) -> FileFigures:
    """Rows, tokens and lengths of a file."""
    lengths = np.array([len(sample.input_ids) for sample in content.tokenized])
    num_targets = sum(sample.num_targets for sample in content.tokenized)
    longest = int(lengths.max())
    if content.cut:
        lines = set(content.cut)
        whole = [sample for sample in content.samples if sample.line in lines]
        uncut, _ = tokenize_samples(whole, tokenizer, max_length=2**31, source="")
        longest = max(len(sample.input_ids) for sample in uncut)
    return FileFigures(
        num_rows=len(lengths),
        num_tokens=int(lengths.sum()),
        num_targets=num_targets,
        supervised_share=num_targets / int(lengths.sum()),
        length_min=int(lengths.min()),
        length_median=float(np.median(lengths)),
        length_p95=float(np.percentile(lengths, 95)),
        length_max=int(lengths.max()),
        num_cut=len(content.cut),
        cut_lines=content.cut[:MAX_LINES],
        longest_uncut=longest,
    )


def _rendered(sample: TokenizedSample, tokenizer: PreTrainedTokenizerBase) -> RenderedSample:
    mask = sample.target_mask
    borders = [0, *(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(mask)]
    segments = [
        Segment(text=str(tokenizer.decode(sample.input_ids[start:end].tolist())), supervised=bool(mask[start]))
        for start, end in pairwise(borders)
    ]
    return RenderedSample(line=sample.line, num_tokens=len(mask), segments=segments)


def _num_epochs(spec: JobSpec, kind: str) -> int | None:
    """Epochs of a phase of this kind; None if it does not train."""
    if kind == "joint":
        return spec.hyperparameters.num_epochs
    if kind == "sft":
        method = spec.method
        return (
            method.wmss.hyperparameters.sft_epochs
            if isinstance(method, WmssMethod)
            else spec.hyperparameters.num_epochs
        )
    return None


def plan(sources: Sources, found: Findings) -> Plan:
    """Phases and steps of a job without problems."""
    spec = sources.spec
    assert found.training is not None and found.batch_size is not None and found.max_length is not None
    samples = found.training.tokenized
    wmss = spec.method.wmss if isinstance(spec.method, WmssMethod) else None
    fewer_drawn = wmss is not None and wmss.deduplicate and wmss.weighting != "all"
    may_stop = wmss is not None and wmss.start_at == "saturation"
    phases = []
    for name in phases_of(spec):
        kind, _ = kind_and_round(name)
        num_epochs = _num_epochs(spec, kind)
        if num_epochs is None:
            phases.append(PlannedPhase(name=name))
            continue
        sampler = BatchSampler(
            range(len(samples)),
            batch_size=found.batch_size,
            num_epochs=num_epochs,
            max_steps=spec.hyperparameters.max_steps,
            seed=spec.seed,
        )
        phases.append(
            PlannedPhase(
                name=name,
                num_epochs=num_epochs,
                num_steps=sampler.num_steps,
                at_most=fewer_drawn if kind == "joint" else may_stop,
                num_samples=len(samples),
            )
        )
    return Plan(
        phases=phases,
        batch_size=found.batch_size,
        max_length=found.max_length,
        peak_learning_rate=spec.hyperparameters.peak_learning_rate,
    )


def _squared_lengths(samples: Sequence[TokenizedSample]) -> float:
    return float(sum(len(sample.input_ids) ** 2 for sample in samples))


def _branches(sources: Sources, phase: str) -> list[Branch]:
    """The models of a training phase, strong first."""
    method, models = sources.spec.method, sources.models
    base = models["model"]
    lora = sources.spec.hyperparameters.lora
    if phase == "sft" or not isinstance(method, WmssMethod):
        return [Branch(read_shape(base), lora=lora)]
    strong = models.get("method.wmss.strong_model", base)
    _, number = kind_and_round(phase)
    branches = [Branch(read_shape(strong), lora=lora)]
    if method.wmss.mixing != "logits":
        return branches
    # From the second round on the weak model is the strong one of the round before.
    first = models.get("method.wmss.weak_model", base) if number == 1 else strong
    more = [models[f"method.wmss.more_weak_models.{i}"] for i in range(len(method.wmss.more_weak_models))]
    trained = method.wmss.weak_update == "joint"
    for folder in (first, *more):
        # A weak model that is the strong one's own base under another adapter adds no weights.
        shares = lora is not None and folder == strong
        cached = method.wmss.weak_cache
        branches.append(Branch(read_shape(folder), trained=trained, lora=lora, shares_weights=shares, cached=cached))
    return branches


def _cost(sources: Sources, found: Findings, planned: Plan, machine: Machine) -> Cost:
    spec = sources.spec
    assert found.training is not None
    trained = [phase for phase in planned.phases if phase.num_steps is not None]
    branches = {phase.name: _branches(sources, phase.name) for phase in trained}
    largest = branches[trained[-1].name]
    base = read_shape(sources.models["model"])
    one = {name: checkpoint_bytes(models) for name, models in branches.items()}
    kept = sum(one[phase.name] * _num_kept(spec, phase.num_steps or 0) for phase in trained)
    training = sum(_phase_flops(phase, branches[phase.name], found) for phase in trained)
    training_s, basis = _time(training, largest[0].shape, found, spec, machine)
    return Cost(
        worker_memory_bytes=PROCESS_BYTES
        + max(
            worker_tensor_bytes(
                models,
                micro_batch_tokens=_micro_batch_tokens(found, spec),
                num_workers=spec.resources.num_workers,
                on_gpu=machine.on_gpu,
            )
            for models in branches.values()
        ),
        num_workers=spec.resources.num_workers,
        engine_memory_bytes=engine_bytes(largest[0].shape, kv_cache_bytes=machine.kv_cache_bytes)
        if needs_engine(spec) and not machine.on_gpu
        else None,
        checkpoint_bytes=max(one.values()),
        disk_bytes=kept + base.stored_bytes + base.tokenizer_bytes,
        temporary_disk_bytes=2 * max(one.values()) + _states_bytes(spec, chain.from_iterable(branches.values()), found),
        training_flops=training,
        scoring_flops=_scoring_flops(base, found, spec),
        training_s=training_s,
        basis=basis,
    )


def _phase_flops(phase: PlannedPhase, branches: list[Branch], found: Findings) -> float:
    assert found.training is not None and found.batch_size is not None and phase.num_steps is not None
    samples = found.training.tokenized
    passes = phase.num_steps / -(-len(samples) // found.batch_size)
    return training_flops(
        branches,
        num_tokens=passes * sum(len(sample.input_ids) for sample in samples),
        num_targets=passes * sum(sample.num_targets for sample in samples),
        squared_lengths=passes * _squared_lengths(samples),
    )


def _num_kept(spec: JobSpec, num_steps: int) -> int:
    made = -(-num_steps // spec.checkpointing.every_steps)
    return min(spec.checkpointing.keep_last, made)


def _states_bytes(spec: JobSpec, models: Iterable[Branch], found: Findings) -> int:
    """Cached hidden states: a round's own, and the next one's, written before."""
    hidden = max((branch.shape.hidden for branch in models if branch.cached), default=0)
    if not hidden or not isinstance(spec.method, WmssMethod):
        return 0
    assert found.training is not None
    wmss = spec.method.wmss
    at_once = 2 if wmss.rounds > 1 and wmss.reads_entropy else 1
    return at_once * states_bytes(found.training.tokenized, hidden)


def _micro_batch_tokens(found: Findings, spec: JobSpec) -> int:
    """Padded tokens of the largest forward pass: the budget, but no more than a worker's share of a batch has."""
    assert found.training is not None and found.batch_size is not None
    longest = max(len(sample.input_ids) for sample in found.training.tokenized)
    share = -(-found.batch_size // spec.resources.num_workers)
    return max(longest, min(spec.hyperparameters.micro_batch_tokens, share * longest))


def _scoring_flops(shape: ModelShape, found: Findings, spec: JobSpec) -> float:
    """Every row once under each checkpoint it is scored with; an engine computes logits at every position."""
    kinds = [kind_and_round(name)[0] for name in phases_of(spec)]
    times = {"training": kinds.count("score_weak") + kinds.count("score_strong"), "validation": 0}
    if "evaluate" in kinds:
        times["validation"] = 2 + kinds.count("joint")
    total = 0.0
    for name, content in (("training", found.training), ("validation", found.validation)):
        if content is not None and content.tokenized:
            num_tokens = sum(len(sample.input_ids) for sample in content.tokenized)
            total += times[name] * pass_flops(
                shape,
                num_tokens=num_tokens,
                num_targets=num_tokens,
                squared_lengths=_squared_lengths(content.tokenized),
            )
    return total


def _time(
    flops: float, shape: ModelShape, found: Findings, spec: JobSpec, machine: Machine
) -> tuple[float | None, str]:
    """Seconds of training on this machine's CPU: FLOPs over the measured speed of the workers that run at once."""
    if machine.on_gpu:
        return None, "training would run on GPUs, whose speed is not measured here"
    speed = measure_flops(shape, rows=_micro_batch_tokens(found, spec), num_threads=machine.num_threads)
    at_once = max(1, min(spec.resources.num_workers, machine.num_cores // machine.num_threads))
    threads = f"{machine.num_threads} CPU thread" + ("s" if machine.num_threads > 1 else "")
    basis = (
        f"estimated for this machine: {at_once} x {threads} at {speed / 1e9:.0f} GFLOP/s, measured now on a float32 "
        "matrix product of the model's width; start-up and scoring come on top"
    )
    return flops / (MATRIX_SHARE * speed * at_once), basis


def warnings(spec: JobSpec, found: Findings, figures: FileFigures, planned: Plan | None) -> list[Finding]:
    """What would work, but probably not as meant."""
    training, validation = found.training, found.validation
    assert training is not None
    said = [*_rows_cut(training, figures, spec), *_few_steps(planned, spec), *_unusual_learning_rate(spec)]
    if isinstance(spec.method, WmssMethod):
        said += _untrained_strong(spec.method.wmss)
        said += _noisy_entropy(training) if spec.method.wmss.reads_entropy else ()
    if validation is not None:
        said += [*_imprecise_accuracy(validation), *_shared_prompts(training, validation)]
    return said


def _rows_cut(training: FileContent, figures: FileFigures, spec: JobSpec) -> Iterator[Finding]:
    if training.cut:
        message = (
            f"{len(training.cut)} of {figures.num_rows} rows are cut and do not learn to stop (lines "
            f"{first_lines(training.cut)}); raise max_length to {figures.longest_uncut} to keep them whole"
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


def _shortages(cost: Cost, machine: Machine) -> Iterator[Finding]:
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
