"""Asking a model, and judging what it says: what the phases of self-improvement share."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from wmss.config import SelfImprovementConfig
from wmss.models.loading import load_tokenizer
from wmss.records import Verdict
from wmss.rounds.job import Checkpoint, Engines, Job, Journal
from wmss.rounds.rollouts import Rollout, read_rollouts, shard_path, write_rollouts
from wmss.rounds.task_files import TaskFile
from wmss.scoring.interfaces import Sampling
from wmss.scoring.rollouts import Request, sample_rollouts, sample_seed
from wmss.verifiers.registry import make_verifier

SHARD_REQUESTS = 256
"""Responses of one call and one file. Fixed: what is asked together decides, with the seeds, what an engine gives."""
MAX_VERIFIER_PROCESSES = 8


@dataclass(frozen=True)
class Wanted:
    """One response that is wanted."""

    index: int
    """Of the task in its file."""
    level: int
    purpose: str
    sample: int
    """Number among the responses to this task."""


class Panel:
    """Asks models for responses and a verifier for verdicts, as a job's knobs say."""

    def __init__(
        self,
        job: Job,
        engines: Engines,
        journal: Journal,
        knobs: SelfImprovementConfig,
        *,
        max_length: int,
        end_token_ids: Sequence[int],
    ) -> None:
        self._job, self._engines, self._journal, self._knobs = job, engines, journal, knobs
        self._max_length = max_length
        self._end_token_ids = list(end_token_ids)

    def ask(
        self, phase: str, file: TaskFile, wanted: Sequence[Wanted], model: Checkpoint, *, round: int, folder: Path
    ) -> list[Rollout]:
        """All responses that are `wanted`, shard by shard; those that lie in `folder` are not drawn again.

        The seed of a response is a function of the job's seed, `round`, its task and its number.
        """
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [sample_seed(self._job.spec.seed, round, file.tasks[w.index].line, w.sample) for w in wanted]
        requests = [Request(file.prompts[w.index], seed) for w, seed in zip(wanted, seeds, strict=True)]
        num_shards = -(-len(wanted) // SHARD_REQUESTS)
        paths = [shard_path(folder, number) for number in range(num_shards)]
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        done = len(wanted) - sum(len(requests[_part(number)]) for number in missing)
        if missing:
            sampling = Sampling(**self._knobs.sampling.model_dump())
            with self._engines.sampler(self._job.base, max_length=self._max_length) as sampler:
                drawn = sample_rollouts(
                    requests,
                    sampler,
                    model.folder,
                    sampling=sampling,
                    end_token_ids=self._end_token_ids,
                    shard_size=SHARD_REQUESTS,
                    shards=missing,
                )
                for number, completions in drawn:
                    part = _part(number)
                    rollouts = [
                        Rollout(
                            line=file.tasks[w.index].line,
                            level=w.level,
                            purpose=w.purpose,
                            sample=w.sample,
                            seed=seed,
                            text=self._text(completion.token_ids),
                            completion=completion,
                        )
                        for w, seed, completion in zip(wanted[part], seeds[part], completions, strict=True)
                    ]
                    origin = {"job": self._job.id, "round": round, "weights": str(model.folder)}
                    write_rollouts(rollouts, paths[number], origin=origin | {"engine": sampler.provenance()})
                    done += len(rollouts)
                    self._journal.progress(phase, done, len(wanted))
        return read_rollouts(paths)

    def judge(self, phase: str, file: TaskFile, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """The verifier's verdict on each response to tasks of the file."""
        tasks = {task.line: task for task in file.tasks}
        pairs = [(tasks[each.line], each.text) for each in rollouts]
        num_processes = min(MAX_VERIFIER_PROCESSES, len(os.sched_getaffinity(0)))
        with make_verifier(self._knobs.verifier, num_processes=num_processes) as verifier:
            return verifier.verify(pairs, progress=lambda done, total: self._journal.progress(phase, done, total))

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._job.base)


def _part(number: int) -> slice:
    return slice(number * SHARD_REQUESTS, (number + 1) * SHARD_REQUESTS)
