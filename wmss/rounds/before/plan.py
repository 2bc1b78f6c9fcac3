"""What a job would do: its phases in order, and the steps of those that train."""

from wmss.config import JobSpec, SelfImprovementConfig, SelfImprovementMethod, WmssMethod
from wmss.data.sampler import BatchSampler
from wmss.rounds.before.preflight import Findings
from wmss.rounds.before.report import Plan, PlannedPhase
from wmss.rounds.phases import WeakDrivenKind, in_round, kind_and_round, num_epochs, phases_of, weak_driven_phases


def plan(spec: JobSpec, found: Findings) -> Plan:
    """Phases and steps of a job without problems."""
    assert found.batch_size is not None and found.max_length is not None
    method = spec.method
    improvement = method.self_improvement if isinstance(method, SelfImprovementMethod) else None
    if improvement is not None:
        phases = [_improvement_phase(name, improvement) for name in phases_of(spec, rounds=1)]
    else:
        phases = [_weak_driven_phase(kind, number, spec, found) for kind, number in weak_driven_phases(spec)]
    return Plan(
        phases=phases,
        batch_size=found.batch_size,
        max_length=found.max_length,
        peak_learning_rate=spec.hyperparameters.peak_learning_rate,
        max_rounds=1 if improvement is None else improvement.rounds,
    )


def _weak_driven_phase(kind: WeakDrivenKind, number: int, spec: JobSpec, found: Findings) -> PlannedPhase:
    name, epochs = in_round(kind, number), num_epochs(spec, kind)
    if epochs is None:
        return PlannedPhase(name=name)
    assert found.training is not None and found.batch_size is not None
    num_samples = len(found.training.tokenized)
    sampler = BatchSampler(
        range(num_samples),
        batch_size=found.batch_size,
        num_epochs=epochs,
        max_steps=spec.hyperparameters.max_steps,
        seed=spec.seed,
    )
    wmss = spec.method.wmss if isinstance(spec.method, WmssMethod) else None
    fewer_drawn = wmss is not None and wmss.deduplicate and wmss.weighting != "all"
    may_stop = wmss is not None and wmss.start_at == "saturation"
    return PlannedPhase(
        name=name,
        num_epochs=epochs,
        num_steps=sampler.num_steps,
        at_most=fewer_drawn if kind == "joint" else may_stop,
        num_samples=num_samples,
    )


def _improvement_phase(name: str, knobs: SelfImprovementConfig) -> PlannedPhase:
    """Steps and samples are at most these: rounds end when they have done what they can."""
    match kind_and_round(name)[0]:
        case "train":
            return PlannedPhase(name=name, num_steps=knobs.steps_per_round, at_most=True)
        case "generate":
            return PlannedPhase(name=name, num_samples=knobs.samples_per_round, at_most=True)
        case _:
            return PlannedPhase(name=name)
