"""Asking a model, and judging what it says: what the phases of self-improvement share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from wmss.config import SelfImprovementConfig
from wmss.models.loading import load_tokenizer
from wmss.records import Completion, Progress, Verdict
from wmss.rounds.before.task_files import TaskFile
from wmss.rounds.improvement.rollouts import Rollout, read_rollouts, shard_path, write_rollouts
from wmss.rounds.job import Checkpoint, Job, SamplingEngines
from wmss.scoring.interfaces import Sampling
from wmss.scoring.rollouts import Request, sample_rollouts, sample_seed, shard_slices
from wmss.verifiers.registry import make_verifier, usual_processes

SHARD_REQUESTS = 256
"""About how many responses make a call and a file. Fixed: what is asked together decides what an engine gives."""


@dataclass(frozen=True)
class Wanted:
    """One response that is wanted."""

    index: int
    """Of the task in its file."""
    level: int
    purpose: str
    sample: int
    """Number among the responses to this task."""


class ResponseSampler:
    """Asks models for responses and a verifier for verdicts, as a job's knobs say."""

    def __init__(
        self,
        job: Job,
        engines: SamplingEngines,
        knobs: SelfImprovementConfig,
        *,
        max_length: int,
        end_token_ids: Sequence[int],
    ) -> None:
        self._job, self._engines, self._knobs = job, engines, knobs
        self._max_length = max_length
        self._end_token_ids = list(end_token_ids)

    def ask(
        self,
        progress: Progress,
        file: TaskFile,
        wanted: Sequence[Wanted],
        model: Checkpoint,
        *,
        round: int,
        folder: Path,
    ) -> list[Rollout]:
        """All responses that are `wanted`, shard by shard; those that lie in `folder` are not drawn again.

        The seed of a response is a function of the job's seed, `round`, its task and its number.
        """
        folder.mkdir(parents=True, exist_ok=True)
        seeds = [sample_seed(self._job.spec.seed, round, file.tasks[w.index].line, w.sample) for w in wanted]
        requests = [Request(tuple(file.prompts[w.index]), seed) for w, seed in zip(wanted, seeds, strict=True)]
        parts = shard_slices(len(wanted), self._shard_size)
        paths = [shard_path(folder, number) for number in range(len(parts))]
        finished = {number for number, path in enumerate(paths) if path.exists()}
        if len(finished) < len(parts):
            done = sum(len(wanted[parts[number]]) for number in finished)
            with self._engines.sampler(model.folder, max_length=self._max_length) as sampler:
                drawn = sample_rollouts(
                    requests,
                    sampler,
                    model.folder,
                    sampling=Sampling(**self._knobs.sampling.model_dump()),
                    end_token_ids=self._end_token_ids,
                    shard_size=self._shard_size,
                    finished=finished,
                )
                origin = {"job": self._job.id, "round": round, "weights": str(model.folder)}
                origin |= {"engine": sampler.provenance()}
                for number, completions in drawn:
                    part = parts[number]
                    rollouts = self._rollouts(file, wanted[part], seeds[part], completions)
                    write_rollouts(rollouts, paths[number], origin=origin)
                    done += len(rollouts)
                    progress(done, len(wanted))
        return read_rollouts(paths)

    def _rollouts(
        self, file: TaskFile, wanted: Sequence[Wanted], seeds: Sequence[int], completions: Sequence[Completion]
    ) -> list[Rollout]:
        return [
            Rollout(
                line=file.tasks[one.index].line,
                level=one.level,
                purpose=one.purpose,
                sample=one.sample,
                seed=seed,
                text=self._text(completion.token_ids),
                completion=completion,
            )
            for one, seed, completion in zip(wanted, seeds, completions, strict=True)
        ]

    def judge(self, progress: Progress, file: TaskFile, rollouts: Sequence[Rollout]) -> list[Verdict]:
        """The verifier's verdict on each response to tasks of the file."""
        pairs = [(file.at_line[each.line], each.text) for each in rollouts]
        with make_verifier(self._knobs.verifier, num_processes=usual_processes()) as verifier:
            return verifier.verify(pairs, progress=progress)

    def _text(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._job.base)

    @property
    def _shard_size(self) -> int:
        """Whole groups: a prompt is read once for all its responses in a call."""
        group = self._knobs.samples_per_prompt
        return max(1, SHARD_REQUESTS // group) * group
