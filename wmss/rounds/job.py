"""What a job is, and what it needs from the process that runs it."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from wmss.config import JobSpec
from wmss.errors import WmssError
from wmss.records import ADAPTER_FOLDER, STRONG_FOLDER, CheckpointDigests
from wmss.rounds.journal import Record
from wmss.scoring.interfaces import Sampler, Scorer
from wmss.training.run import ModelSource, TrainingRun


@dataclass(frozen=True)
class NamedFiles:
    """Files by field, and what messages call them."""

    files: Mapping[str, Path]
    names: Mapping[str, str] = field(default_factory=dict)
    """By field, where that is not the name on disk: an upload has its owner's name."""

    def name_of(self, param: str) -> str:
        """What messages call the file of a field."""
        return self.names.get(param, self.files[param].name)


@dataclass(frozen=True)
class Sources:
    """What a job's names lead to. A name that led nowhere is left out: that is a problem told elsewhere."""

    spec: JobSpec
    models: Mapping[str, Path]
    """Folders by field: `model`, `method.wmss.weak_model`, `method.wmss.strong_model`."""
    files: Mapping[str, Path]
    """Files by field: `training_file`, `validation_file`."""
    digests: Mapping[str, CheckpointDigests] = field(default_factory=dict)
    """What the folders of registered checkpoints must still hold, by field."""
    file_names: Mapping[str, str] = field(default_factory=dict)
    """What messages call the files, by field, where that is not the name on disk."""

    @property
    def named_files(self) -> "NamedFiles":
        """The files with what messages call them."""
        return NamedFiles(self.files, self.file_names)


@dataclass(frozen=True)
class Job:
    """One job with every name resolved to a path."""

    id: str
    spec: JobSpec
    base: Path
    """The checkpoint that `model` names, M0."""
    weak: Path | None
    """The weak checkpoint if the caller named one."""
    more_weak: tuple[Path, ...]
    """Further weak checkpoints."""
    strong: Path | None
    """The strong checkpoint if the caller gave one."""
    training_file: Path
    validation_file: Path | None
    folder: Path
    """Where this job's artifacts lie."""
    cache: Path
    """Where scores and evaluations lie that any job may use again."""
    result: Path
    """Where the finished model goes."""
    result_name: str
    digests: Mapping[str, CheckpointDigests] = field(default_factory=dict)
    """What the folders of registered checkpoints must still hold, by field."""
    file_names: Mapping[str, str] = field(default_factory=dict)
    """What messages call the files, by field, where that is not the name on disk."""

    @property
    def sources(self) -> Sources:
        """What the job's names lead to, by field."""
        models = {"model": self.base, "method.wmss.weak_model": self.weak, "method.wmss.strong_model": self.strong}
        models |= {f"method.wmss.more_weak_models.{i}": folder for i, folder in enumerate(self.more_weak)}
        files = {"training_file": self.training_file, "validation_file": self.validation_file}
        return Sources(
            spec=self.spec,
            models={param: folder for param, folder in models.items() if folder is not None},
            files={param: file for param, file in files.items() if file is not None},
            digests=self.digests,
            file_names=self.file_names,
        )


class ScoringEngines(Protocol):
    """What scores models. Each context manager frees its engine on the way out."""

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """Why these engines could not train, score or sample with checkpoints {field: folder}; empty if they can."""

    def scorer(self, checkpoint: Path, *, max_length: int, keep_states: bool) -> AbstractContextManager[Scorer]:
        """An entropy scorer; with `keep_states` one that returns hidden states as well."""

    def provenance(self) -> dict[str, Any]:
        """What a scorer or sampler of these engines would say of itself, known without starting one."""


class SamplingEngines(Protocol):
    """What draws responses."""

    def refusals(self, checkpoints: Mapping[str, Path], *, scoring: bool) -> list[WmssError]:
        """As `ScoringEngines.refusals`."""

    def sampler(self, checkpoint: Path, *, max_length: int) -> AbstractContextManager[Sampler]:
        """A sampler that has this checkpoint's weights; a call may name others of the same architecture. `max_length`
        bounds prompt and response together.
        """


class Engines(ScoringEngines, SamplingEngines, Protocol):
    """What runs models in a fine-tuning job."""

    def prepare_training(self, *, name: str) -> None:
        """The next training phase will be the run of this name, if it trains at all: what takes long to start may be
        started now, and need not be."""

    def train(self, run: TrainingRun, *, name: str) -> Path:
        """Run one training phase; returns its last checkpoint folder. The same name resumes."""


@dataclass(frozen=True)
class Checkpoint:
    """A model in the course of a job: whole, for scoring and generation, and as a branch starts from it."""

    folder: Path
    """Ordinary model folder."""
    source: ModelSource
    """The same to train from: the folder itself, or a base and an adapter."""

    @classmethod
    def whole(cls, folder: Path) -> "Checkpoint":
        """A model without adapters."""
        return cls(folder, ModelSource(folder=folder))

    @classmethod
    def of_training(cls, folder: Path, run: TrainingRun) -> "Checkpoint":
        """The strong branch in a training checkpoint of a run."""
        if run.hyperparameters.lora is None:
            return cls.whole(folder / STRONG_FOLDER)
        return cls(folder / STRONG_FOLDER, ModelSource(folder=run.strong.folder, adapter=folder / ADAPTER_FOLDER))

    def record(self) -> "StoredCheckpoint":
        """To be recorded by a phase."""
        return StoredCheckpoint(checkpoint=self.folder, source=self.source)


class StoredCheckpoint(Record):
    """A `Checkpoint` as a phase records it."""

    checkpoint: Path
    source: ModelSource | None = None
    """Null in jobs begun by a release without adapters: their models are whole."""

    @property
    def model(self) -> Checkpoint:
        """The checkpoint itself."""
        return Checkpoint.whole(self.checkpoint) if self.source is None else Checkpoint(self.checkpoint, self.source)


class Trained(StoredCheckpoint):
    """What a training phase leaves."""

    num_steps: int = Field(ge=0)
    """Optimizer steps of the whole phase."""


class Tuned(Trained):
    """What supervised fine-tuning leaves."""

    saturated_at: float | None = None
    """Step at which the logit margin was flat; null = it was not."""
    useful_weak: StoredCheckpoint | None = None
    """The latest stored checkpoint far enough from this one to be its weak model; null = none is. This and the step
    are absent in jobs begun by a release that did not look."""
