"""What a job would cost: the estimates of `estimates.py`, for the phases that it plans and the models that they run."""

from collections.abc import Iterable, Sequence
from itertools import chain

from wmss.config import JobSpec, WmssMethod
from wmss.data.states import states_bytes
from wmss.records import TokenizedSample
from wmss.rounds.before.estimates import (
    MATRIX_SHARE,
    PROCESS_BYTES,
    ModelShape,
    WorkerModel,
    checkpoint_bytes,
    engine_bytes,
    measure_flops,
    pass_flops,
    read_shape,
    training_flops,
    worker_tensor_bytes,
)
from wmss.rounds.before.preflight import Findings
from wmss.rounds.before.report import Cost, Machine, Plan, PlannedPhase
from wmss.rounds.job import Sources
from wmss.rounds.phases import kind_and_round, needs_engine, weak_driven_phases


def cost(sources: Sources, found: Findings, planned: Plan, machine: Machine) -> Cost:
    """Memory, disk, arithmetic and time of a job without problems.

    Raises:
        ModelError: the sizes of a model's family are not known here.
    """
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


def _squared_lengths(samples: Sequence[TokenizedSample]) -> float:
    return float(sum(len(sample.input_ids) ** 2 for sample in samples))


def _branches(sources: Sources, phase: str) -> list[WorkerModel]:
    """The models of a training phase, strong first."""
    method, models = sources.spec.method, sources.models
    base = models["model"]
    lora = sources.spec.hyperparameters.lora
    if phase == "sft" or not isinstance(method, WmssMethod):
        return [WorkerModel(read_shape(base), lora=lora)]
    strong = models.get("method.wmss.strong_model", base)
    _, number = kind_and_round(phase)
    branches = [WorkerModel(read_shape(strong), lora=lora)]
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
        branches.append(
            WorkerModel(read_shape(folder), trained=trained, lora=lora, shares_weights=shares, cached=cached)
        )
    return branches


def _phase_flops(phase: PlannedPhase, branches: list[WorkerModel], found: Findings) -> float:
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
    newest = spec.checkpointing.keep == "best"  # beside the best ones, where it is none of them
    return min(spec.checkpointing.keep_last + newest, made)


def _states_bytes(spec: JobSpec, models: Iterable[WorkerModel], found: Findings) -> int:
    """Cached hidden states: a round's own, and the next one's, written before."""
    hidden = max((branch.shape.hidden for branch in models if branch.cached), default=0)
    if not hidden or not isinstance(spec.method, WmssMethod):
        return 0
    assert found.training is not None
    wmss = spec.method.wmss
    at_once = 2 if wmss.rounds > 1 and wmss.reads_entropy else 1
    return at_once * states_bytes(found.training.tokenized, hidden, spec.hyperparameters.precision)


def _micro_batch_tokens(found: Findings, spec: JobSpec) -> int:
    """Padded tokens of the largest forward pass: the budget, but no more than a worker's share of a batch has."""
    assert found.training is not None and found.batch_size is not None
    longest = max(len(sample.input_ids) for sample in found.training.tokenized)
    share = -(-found.batch_size // spec.resources.num_workers)
    return max(longest, min(spec.hyperparameters.micro_batch_tokens, share * longest))


def _scoring_flops(shape: ModelShape, found: Findings, spec: JobSpec) -> float:
    """Every row once under each checkpoint it is scored with; an engine computes logits at every position."""
    kinds = [kind for kind, _ in weak_driven_phases(spec)]
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
