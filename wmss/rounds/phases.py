"""The phases of a job by name. Importing this loads no torch."""

from wmss.config import JobSpec, WmssMethod

PHASES = {
    "supervised": ("validate", "sft", "export", "evaluate"),
    "wmss": ("validate", "sft", "score_weak", "score_strong", "weigh", "joint", "export", "evaluate"),
}

PURPOSES = {
    "validate": "reading the files and checking the models",
    "sft": "supervised fine-tuning",
    "score_weak": "the entropy of every sample under the weak model",
    "score_strong": "the entropy of every sample under the strong model",
    "weigh": "drawing the samples to train on",
    "joint": "training on the mixed logits of both models",
    "export": "saving the model",
    "evaluate": "comparing the models on the validation file",
}
"""What a phase is for, in words."""


def phases_of(spec: JobSpec) -> tuple[str, ...]:
    """The phases this job will run, in order."""
    given_strong = isinstance(spec.method, WmssMethod) and spec.method.wmss.strong_model is not None
    skipped = {"sft"} if given_strong else set()
    if spec.validation_file is None:
        skipped.add("evaluate")
    return tuple(phase for phase in PHASES[spec.method.type] if phase not in skipped)


def needs_engine(spec: JobSpec) -> bool:
    """Whether a job scores or generates."""
    return not {"score_weak", "evaluate"}.isdisjoint(phases_of(spec))
