"""What makes the tasks of a self-improvement job impossible, found before anything is started."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from wmss.config import JobSpec, SelfImprovementConfig, SelfImprovementMethod
from wmss.data.contamination import refuse_shared_prompts
from wmss.data.dataset import by_reason
from wmss.data.prompts import end_token_ids, render_prompts
from wmss.data.tasks import read_tasks
from wmss.errors import ConfigError, DataError, WmssError
from wmss.models.loading import load_tokenizer
from wmss.records import Split, Task
from wmss.rounds.job import NamedFiles
from wmss.verifiers.registry import make_verifier, usual_processes

METHOD = "method.self_improvement"


@dataclass(frozen=True)
class TaskFile:
    """Tasks with their prompts as tokens."""

    tasks: list[Task]
    prompts: list[list[int]]
    """Ids of each task's prompt, up to where the response begins."""

    @property
    def levels(self) -> list[int]:
        """All levels in order; empty where they are to be estimated."""
        return sorted({task.level for task in self.tasks if task.level is not None})

    @cached_property
    def at_line(self) -> dict[int, Task]:
        """The tasks by their line."""
        return {task.line: task for task in self.tasks}

    def of(self, *, level: int | None = None, split: Split | None = None) -> list[int]:
        """Indices of the tasks of a level and of a split."""
        return [
            index
            for index, task in enumerate(self.tasks)
            if (level is None or task.level == level) and (split is None or task.split == split)
        ]

    def with_levels(self, levels: Sequence[int]) -> "TaskFile":
        """The same tasks with these levels."""
        return replace(self, tasks=[replace(t, level=level) for t, level in zip(self.tasks, levels, strict=True)])


@dataclass(frozen=True)
class TaskFiles:
    """Everything a self-improvement job asks a model."""

    training: TaskFile
    held_out: TaskFile
    end_token_ids: list[int]
    """What a response ends with."""


def read_task_files(
    spec: JobSpec, base: Path, files: NamedFiles, *, max_length: int, context: int | None = None
) -> TaskFiles:
    """Read both files of a job and check all that needs no engine; raises one error that tells every problem it can.

    `context` is the most that `max_length` may be, where that is known.
    """
    assert isinstance(spec.method, SelfImprovementMethod)
    knobs = spec.method.self_improvement
    tokenizer = load_tokenizer(base)
    max_prompt_tokens = max_length - knobs.sampling.max_new_tokens
    if max_prompt_tokens < 1:
        raise ConfigError(
            f"max_new_tokens: expected less than max_length ({max_length}), got {knobs.sampling.max_new_tokens}; a "
            "prompt needs room too",
            param=f"{METHOD}.sampling.max_new_tokens",
        )
    asked, held_out_tasks = (
        read_tasks(files.files[param], param=param, name=files.name_of(param), held_out=param == "validation_file")
        for param in ("training_file", "validation_file")
    )
    training, held_out = files.name_of("training_file"), files.name_of("validation_file")
    can_grow = context is None or max_length < context
    found = TaskFiles(
        training=_rendered(asked, tokenizer, max_prompt_tokens, training, "training_file", can_grow),
        held_out=_rendered(held_out_tasks, tokenizer, max_prompt_tokens, held_out, "validation_file", can_grow),
        end_token_ids=end_token_ids(asked, tokenizer, source=training, param="training_file"),
    )
    _check_levels(knobs, found)
    refuse_shared_prompts(asked, held_out_tasks)
    return found


def verifier_problems(
    knobs: SelfImprovementConfig, training: Sequence[Task], held_out: Sequence[Task]
) -> list[WmssError]:
    """Why the verifier could not judge the tasks of both files here; empty if it can."""
    with make_verifier(knobs.verifier, num_processes=usual_processes()) as verifier:
        refused = list(verifier.refusals())
        if refused:
            return refused
        found: list[WmssError] = []
        for param, tasks in (("training_file", training), ("validation_file", held_out)):
            rows = verifier.problems(tasks)
            if rows:
                found.append(DataError(f"{param}: {len(rows):,} rows:{by_reason(rows)}", param=param))
    return found


def _rendered(
    tasks: list[Task],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_tokens: int,
    source: str,
    param: str,
    can_grow: bool,
) -> TaskFile:
    prompts = render_prompts(
        tasks, tokenizer, max_prompt_tokens=max_prompt_tokens, can_grow=can_grow, source=source, param=param
    )
    return TaskFile(tasks, prompts)


def _check_levels(knobs: SelfImprovementConfig, files: TaskFiles) -> None:
    """That every level can be asked, and judged by."""
    levels = files.training.levels
    if knobs.estimate_levels is not None:
        named = "training_file" if levels else "validation_file" if files.held_out.levels else None
        if named is not None:
            raise ConfigError(
                f"estimate_levels: the rows of {named} name their levels; leave this null, or their levels out",
                param=f"{METHOD}.estimate_levels",
            )
        _check_groups(knobs, knobs.estimate_levels)
        return
    if not levels:
        raise DataError(
            "training_file: expected rows with a level (1 = easiest), or estimate_levels, which makes levels from the "
            "start model's pass rates; give one of them",
            param="training_file",
        )
    judged = {task.level for task in files.held_out.tasks if task.split == "validation"}
    unjudged = sorted(set(levels) - judged)
    if unjudged:
        raise DataError(
            f"validation_file: {_named(unjudged)} of the training file has no held-out task of split 'validation'; "
            "add some: they decide when rounds stop",
            param="validation_file",
        )
    strange = sorted({level for level in judged if level is not None} - set(levels))
    if strange:
        raise DataError(
            f"validation_file: {_named(strange)} is not in the training file; give such rows the split 'ood', or leave "
            "them out",
            param="validation_file",
        )
    _check_groups(knobs, len(levels))


def _check_groups(knobs: SelfImprovementConfig, num_levels: int) -> None:
    groups = knobs.samples_per_round // knobs.samples_per_prompt
    if groups < num_levels:
        raise ConfigError(
            f"samples_per_round: {knobs.samples_per_round} responses are {groups} prompts of "
            f"{knobs.samples_per_prompt}, fewer than the {num_levels} levels; expected at least "
            f"{num_levels * knobs.samples_per_prompt}, so that every level can have one",
            param=f"{METHOD}.samples_per_round",
        )
    if knobs.curriculum.policy in ("clock", "hard_to_easy") and knobs.rounds < num_levels:
        raise ConfigError(
            f"rounds: expected at least {num_levels}, one for each level, with the policy "
            f"{knobs.curriculum.policy!r}, got {knobs.rounds}; raise it, or choose another policy",
            param=f"{METHOD}.rounds",
        )


def _named(levels: Sequence[int | None]) -> str:
    return f"level {levels[0]}" if len(levels) == 1 else f"each of the levels {', '.join(map(str, levels))}"
