"""Jobs that run in the test's own process: their engines, a journal in memory, and small jobs of each kind."""

import contextlib
import dataclasses
import json
from pathlib import Path

import numpy as np

from tests.training.runs import LocalHost
from wmss.config import parse_job
from wmss.rounds.job import Job
from wmss.rounds.phases import phases_of
from wmss.rounds.run import run_job
from wmss.scoring.interfaces import NUM_STATISTICS
from wmss.scoring.torch_sampler import TorchSampler
from wmss.scoring.torch_scorer import TorchEntropyScorer, provenance
from wmss.training.loop import train


class LocalEngines:
    """Engines in this process; counts what was started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[str] = []
        self.prepared: dict[str, int] = {}
        """Runs that were told of before they began, and what had been started then."""

    def refusals(self, checkpoints, *, scoring):
        self.checked = (checkpoints, scoring)
        return []

    def prepare_training(self, *, name):
        self.prepared.setdefault(name, len(self.started))

    def train(self, run, *, name):
        self.started.append(name)
        host = LocalHost(self.folder / name)
        train(run, host)
        return sorted(host.folder.glob("step-*"))[-1]

    @contextlib.contextmanager
    def scorer(self, checkpoint, *, max_length, keep_states):
        self.started.append("scorer")
        yield TorchEntropyScorer(checkpoint, keep_states=keep_states)

    @contextlib.contextmanager
    def sampler(self, checkpoint, *, max_length):
        self.started.append("sampler")
        yield TorchSampler(max_length=max_length)

    def provenance(self):
        return provenance()


class MemoryJournal:
    """A journal that dies at the start of a phase if asked to, and takes no progress that goes back."""

    def __init__(self, *, die_at: str | None = None) -> None:
        self.finished, self.events, self.data, self.seen, self.told = {}, [], [], [], {}
        self.die_at = die_at

    def artifacts(self, phase):
        return self.finished.get(phase)

    def start(self, phase):
        self.seen.append(phase)
        self.told[phase] = []
        if phase == self.die_at:
            raise KeyboardInterrupt

    def finish(self, phase, artifacts):
        self.finished[phase] = json.loads(json.dumps(artifacts))

    def progress(self, phase, done, total):
        told = self.told[phase]
        before, whole = told[-1] if told else (0, total)
        assert before <= done <= total == whole, f"{phase}: {before}/{whole}, then {done}/{total}"
        told.append((done, total))

    def event(self, message, *, level="info", data=None):
        self.events.append(message)
        self.data.append(json.loads(json.dumps(data)))


def make_job(tmp_path, checkpoints, files, method=None, **changes):
    knobs = {"learning_rate": 1e-3, "max_steps": 4}
    method = method or {"type": "wmss", "wmss": {"hyperparameters": knobs}}
    values = {"model": "qwen3", "training_file": "t", "method": method}
    if changes.get("validation_file", files) is not None:
        values["validation_file"] = "v"
    job = Job(
        id="ftjob-1",
        spec=parse_job(values),
        base=checkpoints["qwen3"],
        weak=None,
        more_weak=(),
        strong=None,
        training_file=files / "train.jsonl",
        validation_file=files / "validation.jsonl",
        folder=tmp_path / "job",
        cache=tmp_path / "cache",
        result=tmp_path / "result",
        result_name="ft:qwen3::ftjob-1",
    )
    return dataclasses.replace(job, **changes)


def job_of(tmp_path, checkpoints, files, hyperparameters=None, models=None, **knobs):
    """A job that stores a checkpoint every other step."""
    knobs["hyperparameters"] = {"learning_rate": 1e-3, "max_steps": 4} | (hyperparameters or {})
    job = make_job(tmp_path, checkpoints, files, validation_file=None, **(models or {}))
    method = {"type": "wmss", "wmss": knobs}
    values = {"model": "qwen3", "training_file": "t", "method": method, "checkpointing": {"every_steps": 2}}
    return dataclasses.replace(job, spec=parse_job(values))


def run_wmss(tmp_path, checkpoints, files, *, hyperparameters=None, job_changes=None, checkpointing=None, **knobs):
    """A small job with these knobs of `wmss`; returns job, engines and journal."""
    hyperparameters = {"learning_rate": 1e-3, "max_steps": 4} | (hyperparameters or {})
    method = {"type": "wmss", "wmss": {"hyperparameters": hyperparameters, **knobs}}
    changes = {"validation_file": None, **(job_changes or {})}
    job = make_job(tmp_path, checkpoints, files, method, **changes)
    values = job.spec.model_dump(exclude_unset=True) | {"checkpointing": checkpointing or {}}
    job = dataclasses.replace(job, spec=parse_job(values))
    engines, journal = LocalEngines(tmp_path / "runs"), MemoryJournal()
    run_job(job, engines, journal)
    assert tuple(journal.seen) == phases_of(job.spec)
    return job, engines, journal


class SamplingEngines(LocalEngines):
    """With a sampler; dies after a number of calls if asked to."""

    die_after: int | None = None

    @contextlib.contextmanager
    def sampler(self, checkpoint, *, max_length):
        self.started.append("sampler")
        sampler = TorchSampler(max_length=max_length)
        if self.die_after is None:
            yield sampler
            return
        sample = sampler.sample

        def mortal(*arguments, **named):
            self.die_after -= 1
            if self.die_after < 0:
                raise KeyboardInterrupt
            return sample(*arguments, **named)

        sampler.sample = mortal
        yield sampler


class ScriptedEngines:
    """Scores that say which checkpoint they are of: entropy is its number, whatever the tokens."""

    def __init__(self, checkpoints, version="1"):
        self.checkpoints, self.version, self.asked = list(checkpoints), version, []

    def refusals(self, checkpoints, *, scoring):
        assert scoring
        return []

    def provenance(self):
        return {"engine": "scripted", "version": self.version}

    @contextlib.contextmanager
    def scorer(self, checkpoint, *, max_length, keep_states):
        number = self.checkpoints.index(checkpoint)
        self.asked.append(number)
        engines = self

        class Scorer:
            calls_at_once = 1

            def score(self, sequences, starts):
                pairs = zip(sequences, starts, strict=True)
                return [np.full((len(ids) - start, NUM_STATISTICS), number, np.float32) for ids, start in pairs]

            def provenance(self):
                return engines.provenance()

        yield Scorer()
