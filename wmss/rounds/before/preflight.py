"""What makes a job impossible, found before anything is started. `validate` phases and the dry run all ask here.

Checks that do not depend on each other are all made, so that one look tells every problem.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from wmss.choices import TooLong
from wmss.config import (
    JobSpec,
    LoraConfig,
    ScoreSpec,
    SelfImprovementMethod,
    WmssMethod,
    resolve_batch_size,
    resolve_max_length,
)
from wmss.data.dataset import Sample, read_samples
from wmss.data.tasks import read_tasks
from wmss.data.tokenization import remedy, tokenize_samples
from wmss.errors import ConfigError, DataError, ModelError, WmssError
from wmss.models.adapters import check_adapters, check_mergeable
from wmss.models.limited import check_checkpoint, check_pair, check_same_tokenizer
from wmss.models.loading import (
    check_digests,
    context_length,
    load_tokenizer,
    model_config,
)
from wmss.models.packing import packing_obstacle
from wmss.records import CheckpointDigests, TokenizedSample
from wmss.rounds.before.task_files import TaskFiles, read_task_files, verifier_problems
from wmss.rounds.job import NamedFiles, Sources

Checked = TypeVar("Checked")


@dataclass(frozen=True)
class FileContent:
    """A file as the job would see it: without the rows that are left out."""

    samples: list[Sample]
    tokenized: list[TokenizedSample]
    """The samples as tokens, cut at `max_length`."""
    cut: list[int]
    """Lines of the samples that were cut."""
    dropped: list[int] = field(default_factory=list)
    """Lines of those that were left out: longer than `max_length`."""


@dataclass
class Findings:
    """What `examine` found: the problems, and what could be read in spite of them."""

    problems: list[WmssError] = field(default_factory=list)
    max_length: int | None = None
    context: int | None = None
    """The most that `max_length` may be with these models."""
    batch_size: int | None = None
    training: FileContent | None = None
    validation: FileContent | None = None
    tasks: TaskFiles | None = None
    """Both files of a self-improvement job."""
    unpacked: str | None = None
    """Why samples are padded where they were to be packed if possible; None where nothing is known against it."""

    def attempt(self, check: Callable[..., Checked], *arguments: Any, **named: Any) -> Checked | None:
        """What a check returns; if it refuses, None, and the problem is kept."""
        try:
            return check(*arguments, **named)
        except WmssError as error:
            self.problems.append(error)
            return None


Refusals = Callable[[Mapping[str, Path]], list[WmssError]]
"""Why checkpoints {field: folder} cannot run on the engines there are; empty if they can."""


def examine(sources: Sources, refusals: Refusals) -> Findings:
    """Make every check of a job that needs no engine."""
    return examine_files(sources, examine_models(sources, refusals))


@dataclass
class SoundModels:
    """What `examine_models` found, and those of a job's models {field: folder} of which nothing bad is known."""

    problems: list[WmssError]
    folders: dict[str, Path]


def examine_models(sources: Sources, refusals: Refusals) -> SoundModels:
    """The checks of a job's models, which are looked at in the process with limits."""
    found = Findings()
    found.problems += check_models(sources.models, lora=sources.spec.hyperparameters.lora)
    folders = _sound(found, sources.models, sources.digests, refusals)
    return SoundModels(found.problems, folders)


def examine_files(sources: Sources, models: SoundModels, judged: Sequence[WmssError] | None = None) -> Findings:
    """The other checks: everything that the tokenizers and templates of sound models are needed for.

    `judged` are the `judging_problems` of the job where these are known already.
    """
    found = Findings([*models.problems])
    _lengths(found, sources.spec, models.folders)
    base = models.folders.get("model")
    found.attempt(_optimizer, sources.spec)
    found.attempt(_adapters, sources.spec, base)
    found.unpacked = found.attempt(_packing, sources.spec, base)
    if isinstance(sources.spec.method, SelfImprovementMethod):
        _examine_tasks(found, sources, base, judged)
        return found
    too_long = sources.spec.hyperparameters.too_long
    found.training = _read(found, sources.named_files, "training_file", base, "model", too_long)
    # An answer that is cut cannot be judged.
    whole: TooLong = "drop" if too_long == "cut" else too_long
    found.validation = _read(found, sources.named_files, "validation_file", base, "model", whole)
    if found.training is not None:
        found.batch_size = found.attempt(_batch_size, sources.spec, len(found.training.samples))
        found.attempt(_max_share, sources.spec, len(found.training.samples))
    return found


def _examine_tasks(found: Findings, sources: Sources, base: Path | None, judged: Sequence[WmssError] | None) -> None:
    spec, files = sources.spec, sources.files
    assert isinstance(spec.method, SelfImprovementMethod)
    found.batch_size = resolve_batch_size(spec, 0)
    if base is None or found.max_length is None or not {"training_file", "validation_file"} <= files.keys():
        return
    limits = {"max_length": found.max_length, "context": found.context}
    found.tasks = found.attempt(read_task_files, spec, base, sources.named_files, **limits)
    if found.tasks is not None:
        asked, held_out = found.tasks.training.tasks, found.tasks.held_out.tasks
        found.problems += verifier_problems(spec.method.self_improvement, asked, held_out) if judged is None else judged


def judging_problems(sources: Sources) -> list[WmssError]:
    """Why the verifier of a self-improvement job could not judge its tasks; empty also where their files cannot be
    read, which `examine_files` tells. Verifiers have processes with limits of their own."""
    method, named = sources.spec.method, sources.named_files
    if not isinstance(method, SelfImprovementMethod) or not {"training_file", "validation_file"} <= named.files.keys():
        return []
    try:
        asked, held_out = (
            read_tasks(named.files[param], param=param, name=named.name_of(param), held_out=param == "validation_file")
            for param in ("training_file", "validation_file")
        )
    except WmssError:
        return []
    return verifier_problems(method.self_improvement, asked, held_out)


def examine_scores(
    spec: ScoreSpec,
    models: Mapping[str, Path],
    file: Path,
    digests: Mapping[str, CheckpointDigests],
    refusals: Refusals,
    *,
    name: str | None = None,
) -> Findings:
    """The same for a request for entropy scores: checkpoints and digests {field: ...}; its file, which messages call
    `name`, is `training`."""
    found = Findings()
    found.problems += check_scored(models)
    sound = _sound(found, models, digests, refusals)
    _lengths(found, spec, sound)
    first, *others = models
    named = NamedFiles({"file": file}, {} if name is None else {"file": name})
    found.training = _read(found, named, "file", sound.get(first), first, spec.too_long)
    if found.training is not None and found.training.tokenized:
        for param in sound.keys() & set(others):
            found.attempt(_check_ids, found.training.tokenized, sound[param], param)
    return found


def _sound(
    found: Findings,
    models: Mapping[str, Path],
    digests: Mapping[str, CheckpointDigests],
    refusals: Refusals,
) -> dict[str, Path]:
    """The models {field: folder} without a problem of their own."""
    for param, expected in digests.items():
        if param in models and not _concerns(found.problems, param):
            found.attempt(check_digests, models[param], expected, param=param)
    sound = {param: folder for param, folder in models.items() if not _concerns(found.problems, param)}
    if sound:
        found.problems += refusals(sound)
    return sound


def _lengths(found: Findings, spec: JobSpec | ScoreSpec, sound: Mapping[str, Path]) -> None:
    """Set how long a sample may be with these models."""
    if sound:
        found.context = min(context_length(folder) for folder in sound.values())
        # A length that is refused must not hide what else is wrong with the rows.
        found.max_length = found.attempt(resolve_max_length, spec, found.context) or found.context


def check_scored(models: Mapping[str, Path]) -> list[WmssError]:
    """Problems of checkpoints {field: folder} that are to be compared, each by itself and all together."""
    found = Findings()
    for param, folder in models.items():
        found.attempt(check_checkpoint, folder, param=param)
    sound = {param: folder for param, folder in models.items() if not _concerns(found.problems, param)}
    if len(sound) > 1:
        found.attempt(check_same_tokenizer, sound)
    return found.problems


def check_models(models: Mapping[str, Path], *, lora: LoraConfig | None = None) -> list[WmssError]:
    """Problems of the checkpoints {field: folder}, each by itself and beside the one of the field `model`; with `lora`,
    also whether such an adapter fits each of them."""
    found = Findings()
    # Where adapters cannot be trained at all, `_adapters` says so, once.
    knobs = lora.model_dump() if lora is not None and find_spec("peft") is not None else None
    base = models.get("model")
    for param, folder in models.items():
        if folder == base and param != "model":
            continue
        found.attempt(check_checkpoint, folder, param=param, lora=knobs)
        unsound = _concerns(found.problems, param) or _concerns(found.problems, "model")
        if base is not None and folder != base and not unsound:
            found.attempt(check_pair, base, folder, param=param)
    return found.problems


def _concerns(problems: list[WmssError], param: str) -> bool:
    return any(problem.param == param for problem in problems)


def _read(
    found: Findings, files: NamedFiles, param: str, base: Path | None, base_param: str, too_long: TooLong
) -> FileContent | None:
    """A file's rows, and with a sound base model their tokens."""
    if param not in files.files:
        return None
    name = files.name_of(param)
    samples = found.attempt(read_samples, files.files[param], param=param, name=name)
    if samples is None or base is None or found.max_length is None:
        return None if samples is None else FileContent(samples, [], [])
    limits = {"max_length": found.max_length, "context": found.context, "too_long": too_long}
    return found.attempt(_tokenize, samples, base, base_param, name, param, **limits) or FileContent(samples, [], [])


def _tokenize(
    samples: list[Sample],
    base: Path,
    base_param: str,
    source: str,
    param: str,
    *,
    max_length: int,
    context: int | None,
    too_long: TooLong,
) -> FileContent:
    tokenizer = load_tokenizer(base, param=base_param)
    tokenized, cut = tokenize_samples(
        samples, tokenizer, max_length=max_length, context=context, too_long=too_long, source=source, param=param
    )
    if cut and param == "validation_file":
        raise DataError(
            f"{param}: {len(cut)} rows are longer than max_length {max_length} in {source} (lines {first_lines(cut)}): "
            f"an answer that is cut cannot be judged; {remedy(max_length, context, 'them')}",
            param=param,
        )
    _check_ids(tokenized, base, base_param)
    kept = {sample.line for sample in tokenized}
    dropped = [sample.line for sample in samples if sample.line not in kept]
    return FileContent([sample for sample in samples if sample.line in kept], tokenized, cut, dropped)


def _check_ids(tokenized: list[TokenizedSample], folder: Path, param: str) -> None:
    highest = max(int(sample.input_ids.max()) for sample in tokenized)
    size = int(model_config(folder).vocab_size)
    if highest >= size:
        raise ModelError(
            f"{param}: its tokenizer gives ids up to {highest}, its config.json has a vocabulary of {size}; choose "
            "the tokenizer that belongs to the weights",
            param=param,
        )


def _optimizer(spec: JobSpec) -> None:
    if spec.hyperparameters.optimizer == "adamw_8bit" and find_spec("torchao") is None:
        raise ConfigError(
            "optimizer: 'adamw_8bit' needs the package torchao, which is not installed here; install it or use 'adamw'",
            param=f"method.{spec.method.type}.hyperparameters.optimizer",
        )


def _adapters(spec: JobSpec, base: Path | None) -> None:
    lora, param = spec.hyperparameters.lora, f"method.{spec.method.type}.hyperparameters.lora"
    if lora is not None:
        check_adapters(param=param)
        if base is not None:
            check_mergeable(model_config(base), lora, param=param)


def _packing(spec: JobSpec, base: Path | None) -> str | None:
    """Why a model that is to be packed where possible is not."""
    packing = spec.hyperparameters.packing
    config = None if base is None or not packing else model_config(base)
    obstacle = None if config is None else packing_obstacle(config)
    if packing is True and obstacle is not None:
        raise ConfigError(
            f'packing: expected "auto" or false for this model, got true: {obstacle}; leave it out',
            param=f"method.{spec.method.type}.hyperparameters.packing",
        )
    return obstacle


def _batch_size(spec: JobSpec, num_samples: int) -> int:
    batch_size = resolve_batch_size(spec, num_samples)
    if batch_size > num_samples:
        raise ConfigError(
            f"batch_size: expected at most the {num_samples} samples of the training file, got {batch_size}; lower it",
            param=f"method.{spec.method.type}.hyperparameters.batch_size",
        )
    return batch_size


def _max_share(spec: JobSpec, num_samples: int) -> None:
    """What fails for every draw; whether some samples have no weight at all is known only when they are scored."""
    share = spec.method.wmss.max_share if isinstance(spec.method, WmssMethod) else None
    if share is not None and share * num_samples < 1.0:
        raise ConfigError(
            f"max_share: expected at least {1 / num_samples:g}, 1 over the {num_samples} samples of the training file, "
            f"got {share}; raise it",
            param="method.wmss.max_share",
        )


MAX_LINES = 20


def first_lines(lines: list[int]) -> str:
    """Line numbers for a person: the first 20."""
    return ", ".join(map(str, lines[:MAX_LINES])) + (", ..." if len(lines) > MAX_LINES else "")
