"""The phases of a job by name. Importing this loads no torch.

The phases of round t > 1 carry its number: `joint_2`, `generate_3`.
"""

from collections.abc import Mapping
from typing import Any

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
    "final_test": "the start model and the result on tasks that decided nothing",
    "evaluate": "how good the models are on the validation file",
}
"""What a phase is for, in words."""


IMPROVEMENT_ROUND = ("plan", "generate", "verify", "select", "train", "evaluate", "decide")
"""The phases of one round of self-improvement."""


def phases_of(spec: JobSpec, *, rounds: int | None = None) -> tuple[str, ...]:
    """The phases this job will run, in order; of self-improvement with as many `rounds` as are known to be all, else
    with the most that there may be."""
    phases = ["validate"]
    if isinstance(spec.method, SelfImprovementMethod):
        numbers = range(1, (rounds or spec.method.self_improvement.rounds) + 1)
        phases += ["pilot", *(in_round(name, number) for number in numbers for name in IMPROVEMENT_ROUND)]
        return (*phases, "export", "final_test")
    if not isinstance(spec.method, WmssMethod):
        phases.append("sft")
    else:
        wmss = spec.method.wmss
        if wmss.strong_model is None:
            phases.append("sft")
        for number in range(1, wmss.rounds + 1):
            phases += [in_round(name, number) for name in _phases_of_round(wmss, number)]
    phases.append("export")
    if spec.validation_file is not None:
        phases.append("evaluate")
    return tuple(phases)


def _phases_of_round(wmss: WmssConfig, number: int) -> list[str]:
    """H(M_t) of the strong model is the weak model's entropy in the next round, so the weak one is scored once."""
    phases = []
    if (number == 1 and wmss.reads_entropy) or (wmss.weak_cache and (number == 1 or not wmss.reads_entropy)):
        phases.append("score_weak")
    if wmss.reads_entropy:
        phases.append("score_strong")
    if wmss.weighting != "all":
        phases.append("weigh")
    return [*phases, "joint"]


def rounds_decided(recorded: Mapping[str, Mapping[str, Any] | None]) -> int | None:
    """How many rounds a self-improvement job has in all, once one of its `decide` phases has stopped them."""
    for name, artifacts in recorded.items():
        kind, number = kind_and_round(name)
        if kind == "decide" and artifacts is not None and artifacts["stop"] is not None:
            return number
    return None


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
    return any(kind_and_round(phase)[0] in ("score_weak", "score_strong", "evaluate") for phase in phases_of(spec))
