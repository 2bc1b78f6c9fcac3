"""The phases of a job by name, and which of them a job has. Importing this loads no torch.

The phases of round t > 1 carry its number: `joint_2`, `generate_3`.
"""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from wmss.config import JobSpec, ScoreSpec, SelfImprovementMethod, WmssConfig, WmssMethod

PURPOSES = {
    "validate": "reading the files and checking the models",
    "sft": "supervised fine-tuning",
    "score": "the entropy of every sample under a checkpoint",
    "score_weak": "the entropy of every sample under the weak model",
    "score_strong": "the entropy of every sample under the strong model",
    "weigh": "drawing the samples to train on",
    "joint": "training on the mixed logits of both models",
    "pilot": "responses of the start model: where it stands, and which tasks are hard for it",
    "plan": "choosing the prompts of a round",
    "generate": "responses to a round's prompts",
    "verify": "which responses are right",
    "select": "which of the right ones are learned from",
    "train": "training on what was selected",
    "decide": "how the round went, and what comes next",
    "export": "saving the model",
    "read_back": "loading the saved model and comparing it with the trained one",
    "final_test": "the start model and the result on tasks that decided nothing",
    "evaluate": "how good the models are on the validation file",
}
"""What a phase is for, in words."""


WeakDrivenKind = Literal[
    "validate", "sft", "score_weak", "score_strong", "weigh", "joint", "export", "read_back", "evaluate"
]
"""Kinds of phases of a weak-driven or supervised job; `wmss.rounds.weak_driven` says what each does."""


class Phase(NamedTuple):
    """A kind of phase in the order of a job, and when it has its place there."""

    kind: WeakDrivenKind
    when: Callable[[JobSpec, int], bool] = lambda spec, number: True
    """Of the job and the number of the round (1 outside rounds)."""


def _makes_strong(spec: JobSpec, number: int) -> bool:
    return not isinstance(spec.method, WmssMethod) or spec.method.wmss.strong_model is None


def _scores_weak(spec: JobSpec, number: int) -> bool:
    """H(M_t) of the strong model is the weak model's entropy in the next round, so the weak one is scored once."""
    wmss = _knobs(spec)
    return (number == 1 and wmss.reads_entropy) or (wmss.weak_cache and (number == 1 or not wmss.reads_entropy))


# What is planned, shown and run: `phases_of` and `weak_driven.run_weak_driven` both read these.
BEFORE_ROUNDS = (Phase("validate"), Phase("sft", _makes_strong))
ROUND = (
    Phase("score_weak", _scores_weak),
    Phase("score_strong", lambda spec, number: _knobs(spec).reads_entropy),
    Phase("weigh", lambda spec, number: _knobs(spec).weighting != "all"),
    Phase("joint"),
)
AFTER_ROUNDS = (
    Phase("export"),
    Phase("read_back"),
    Phase("evaluate", lambda spec, number: spec.validation_file is not None),
)

_TRAINING = ("sft", "joint")
"""Kinds that train."""

IMPROVEMENT_ROUND = ("plan", "generate", "verify", "select", "train", "evaluate", "decide")
"""The phases of one round of self-improvement."""


def num_rounds(spec: JobSpec) -> int:
    """Weak-driven rounds of a job; 0 in supervised fine-tuning."""
    return spec.method.wmss.rounds if isinstance(spec.method, WmssMethod) else 0


def weak_driven_phases(spec: JobSpec) -> list[tuple[WeakDrivenKind, int]]:
    """The phases of a weak-driven or supervised job in order, each with the number of its round."""
    rounds = range(1, num_rounds(spec) + 1)
    ordered = [(phase, 1) for phase in BEFORE_ROUNDS]
    ordered += [(phase, number) for number in rounds for phase in ROUND]
    ordered += [(phase, 1) for phase in AFTER_ROUNDS]
    return [(phase.kind, number) for phase, number in ordered if phase.when(spec, number)]


def phases_of(spec: JobSpec, *, rounds: int | None = None) -> tuple[str, ...]:
    """The phases this job will run, in order; of self-improvement with as many `rounds` as are known to be all, else
    with the most that there may be."""
    if isinstance(spec.method, SelfImprovementMethod):
        numbers = range(1, (rounds or spec.method.self_improvement.rounds) + 1)
        in_rounds = [in_round(name, number) for number in numbers for name in IMPROVEMENT_ROUND]
        return ("validate", "pilot", *in_rounds, "export", "read_back", "final_test")
    return tuple(in_round(kind, number) for kind, number in weak_driven_phases(spec))


def next_training(phases: Iterable[tuple[WeakDrivenKind, int]]) -> str | None:
    """The first of these phases that trains; None if none does."""
    return next((in_round(kind, number) for kind, number in phases if kind in _TRAINING), None)


def num_epochs(spec: JobSpec, kind: WeakDrivenKind) -> int | None:
    """Passes over the samples in a phase of this kind; None if it does not train."""
    if kind not in _TRAINING:
        return None
    if kind == "sft" and isinstance(spec.method, WmssMethod):
        return spec.method.wmss.hyperparameters.sft_epochs
    return spec.hyperparameters.num_epochs


def _knobs(spec: JobSpec) -> WmssConfig:
    assert isinstance(spec.method, WmssMethod), "only weak-driven jobs have rounds of this kind"
    return spec.method.wmss


def score_phases(spec: ScoreSpec) -> tuple[str, ...]:
    """The phases of a request for entropy scores: `score_1` for the first checkpoint, and so on."""
    return ("validate", *(f"score_{number}" for number in range(1, len(spec.models) + 1)))


def in_round(name: str, number: int) -> str:
    """Name of a weak-driven phase in round `number` (1-based)."""
    return name if number == 1 else f"{name}_{number}"


def kind_and_round(phase: str) -> tuple[str, int]:
    """`joint_2` -> ("joint", 2); a phase without a number belongs to round 1."""
    kind, _, number = phase.rpartition("_")
    return (kind, int(number)) if number.isdigit() else (phase, 1)


def needs_engine(spec: JobSpec) -> bool:
    """Whether a job scores or generates."""
    if isinstance(spec.method, SelfImprovementMethod):
        return True
    return any(kind in ("score_weak", "score_strong", "evaluate") for kind, _ in weak_driven_phases(spec))
