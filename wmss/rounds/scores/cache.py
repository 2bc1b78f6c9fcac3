"""Entropy tables and evaluations of checkpoints: cached by content, shared by all jobs, each computed once."""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from wmss.data.dataset import Sample
from wmss.data.states import StatesDtype, StateWriter, states_bytes, states_digest
from wmss.data.tokenization import tokens_digest
from wmss.errors import ConfigError
from wmss.models.loading import checkpoint_digest, model_config
from wmss.records import TokenizedSample, in_parts
from wmss.rounds import messages
from wmss.rounds.job import Engines, ScoringEngines
from wmss.rounds.journal import Journal
from wmss.rounds.phase_records import Accuracy, Evaluation, TableRecord
from wmss.scoring.evaluation import verified_accuracy
from wmss.scoring.interfaces import Progress
from wmss.scoring.tables import MIN_BATCH_SAMPLES, EntropyTable, score_samples
from wmss.scoring.token_table import TokenTableWriter
from wmss.units import gigabytes
from wmss.verifiers.final_value import is_verifiable

BATCH_TOKENS = 32768
"""How much is asked of a scorer at a time."""
STATES_BATCH_TOKENS = 8192
"""With hidden states, 4·D bytes a token: 134 MB a call at a width of 4096, and still a full step of the engine."""
CACHE_VERSION = 3
"""Part of every cache key; raise it when the same question would get another answer (positions, pooler, verifier)."""


@dataclass(frozen=True)
class ScoringOutcome:
    """What scoring a list of samples under a checkpoint gave, and what it cost."""

    table: Path
    """An `EntropyTable`."""
    tokens: Path | None
    """Its table of tokens, where it was asked for."""
    states: Path | None
    """A `StateCache`, where it was asked for."""
    states_digest: str | None
    digest: str
    """The checkpoint's."""
    num_tokens: int
    """Scored now, of all lists; 0 = all was in the cache."""
    seconds: float
    """The engine's start not counted."""


@dataclass(frozen=True)
class _Question:
    """One list of samples, and where its answers lie or will lie."""

    samples: Sequence[TokenizedSample]
    table: Path
    tokens: Path | None = None
    states: Path | None = None
    states_dtype: StatesDtype = "float32"

    @property
    def answers(self) -> list[Path]:
        return [path for path in (self.table, self.tokens, self.states) if path is not None]


def _unanswered(questions: Sequence[_Question]) -> list[_Question]:
    return [each for each in questions if not all(answer.exists() for answer in each.answers)]


class Scores:
    """Scores samples with engines, or finds their scores in the cache.

    The cache key is the digest of the checkpoint, of the tokens of all samples and which of them are supervised, and
    of the engine with its version and precision.
    """

    def __init__(
        self, engines: ScoringEngines, *, cache: Path, max_length: int, owner: str, tell: Callable[[str], None]
    ) -> None:
        """`owner` must be unique among running processes: it names temporary files. `tell` is called with messages for
        the user."""
        self._engines = engines
        self._cache = cache
        self._max_length = max_length
        self._owner = owner
        self._tell = tell

    def score(
        self,
        checkpoint: Path,
        samples: Sequence[Sequence[TokenizedSample]],
        progress: Progress,
        *,
        tokens: bool = False,
        states_in: Path | None = None,
        states_dtype: StatesDtype = "float32",
    ) -> ScoringOutcome:
        """Score the first list of samples, and the others while an engine is there; `progress` is over their sum.

        With `tokens` the first list's tokens get a table as well, and their hidden states a cache in a folder
        `states_in`: states are large and belong to one job, tables of scores are small and shared.
        """
        digest = checkpoint_digest(checkpoint)
        first, *others = (self._question(digest, each) for each in samples)
        first = replace(
            first,
            tokens=first.table.with_suffix(".tokens.parquet") if tokens else None,
            states=states_in / first.table.stem if states_in is not None else None,
            states_dtype=states_dtype,
        )
        questions = (first, *others)
        missing = _unanswered(questions)
        seconds = 0.0
        if missing:
            with self._locked(each.table.stem for each in missing):
                missing = _unanswered(questions)
                seconds = self._ask(checkpoint, missing, progress) if missing else 0.0
        return ScoringOutcome(
            table=first.table,
            tokens=first.tokens,
            states=first.states,
            states_digest=None if first.states is None else states_digest(first.states),
            digest=digest,
            num_tokens=sum(len(sample.input_ids) for each in missing for sample in each.samples),
            seconds=seconds,
        )

    @contextmanager
    def _locked(self, names: Iterable[str]) -> Iterator[None]:
        """Hold the file locks of these cache entries: a second process waits, and then has a cache hit. The kernel
        releases a lock when its process ends.

        No deadlock: a process that waits here holds no engine, and all take their locks in one order.
        """
        folder = self._cache / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for name in sorted(names):
                lock = stack.enter_context((folder / name).open("w"))
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._tell("waiting: another process is computing these scores")
                    fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _question(self, digest: str, samples: Sequence[TokenizedSample]) -> _Question:
        # The engine's length decides how some models rescale their positions (LongRoPE).
        key = _cache_key(digest, tokens_digest(samples), self._engines.provenance(), self._max_length)
        return _Question(samples, self._cache / "entropy" / f"{key}.parquet")

    def _ask(self, checkpoint: Path, questions: list[_Question], progress: Progress) -> float:
        provenance = self._engines.provenance()
        keep_states = any(each.states is not None for each in questions)
        for each in questions:
            if each.states is not None:
                self._check_room(checkpoint, each, each.states)
        with self._engines.scorer(checkpoint, max_length=self._max_length, keep_states=keep_states) as scorer:
            assert scorer.provenance() == provenance, f"{scorer.provenance()} is not the promised {provenance}"
            started = time.monotonic()
            parts = in_parts(progress, [len(each.samples) for each in questions])
            for each, part in zip(questions, parts, strict=True):
                states = None if each.states is None else StateWriter(each.states, each.samples, each.states_dtype)
                tokens = None if each.tokens is None else TokenTableWriter(each.tokens, each.samples, self._owner)
                table = score_samples(
                    each.samples,
                    scorer,
                    batch_tokens=STATES_BATCH_TOKENS if keep_states else BATCH_TOKENS,
                    min_samples=1 if keep_states else MIN_BATCH_SAMPLES,
                    progress=part,
                    states=states,
                    tokens=tokens,
                )
                if states is not None:
                    states.close()
                if tokens is not None:
                    tokens.close(provenance)
                if not each.table.exists():  # else only tokens or states were missing: what jobs have read stays
                    self.publish(each.table, table.save)
            return time.monotonic() - started

    def _check_room(self, checkpoint: Path, question: _Question, folder: Path) -> None:
        samples = question.samples
        needed = states_bytes(samples, int(model_config(checkpoint).hidden_size), question.states_dtype)
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        said = (
            f"the hidden states of {sum(sample.num_targets for sample in samples):,} supervised tokens take "
            f"{gigabytes(needed)} of disk, {gigabytes(free)} are free"
        )
        if needed > free:
            raise ConfigError(
                f"weak_cache: {said} in {folder.parent}; make room there or set it to false",
                param="method.wmss.weak_cache",
            )
        self._tell(said)

    def publish(self, target: Path, write: Callable[[Path], Any]) -> None:
        """Write under another name and rename: a half-written file would be a cache hit."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{self._owner}.partial")
        write(partial)
        partial.rename(target)


class Evaluations:
    """How good checkpoints are on held-out samples, each evaluated once."""

    def __init__(
        self,
        scores: Scores,
        engines: Engines,
        samples: list[Sample],
        tokenized: Sequence[TokenizedSample],
        *,
        cache: Path,
        max_length: int,
        end_token_ids: list[int],
    ) -> None:
        self._scores = scores
        self._engines = engines
        self._samples = samples
        self._tokenized = tokenized
        self._cache = cache
        self._max_length = max_length
        self._end_token_ids = end_token_ids

    def evaluate(self, checkpoint: Path, progress: Progress) -> Evaluation:
        """NLL, mean entropy and verified accuracy of a checkpoint; `progress` is over the rows scored and answered."""
        key = _cache_key(
            checkpoint_digest(checkpoint),
            tokens_digest(self._tokenized),
            [sample.answer for sample in self._samples],
            self._end_token_ids,
            self._engines.provenance(),
            self._max_length,
        )
        cached = self._cache / "evaluations" / f"{key}.json"
        if cached.is_file():
            return Evaluation.model_validate_json(cached.read_bytes())
        rows = len(self._tokenized)
        scored, answered = in_parts(progress, (rows, self.num_asked - rows))
        table = EntropyTable.load(self._scores.score(checkpoint, [self._tokenized], scored).table)
        accuracy = self._accuracy(checkpoint, answered) if self._verifiable else None
        result = Evaluation(nll=table.token_nll, mean_entropy=table.mean_entropy, accuracy=accuracy)
        text = json.dumps(result.model_dump(mode="json"))
        self._scores.publish(cached, lambda file: file.write_text(text, encoding="utf-8"))
        return result

    @property
    def num_asked(self) -> int:
        """What the progress of an evaluation counts to: a row is scored, and answered where all can be verified."""
        return len(self._tokenized) * (2 if self._verifiable else 1)

    @cached_property
    def _verifiable(self) -> bool:
        return all(is_verifiable(sample.answer) for sample in self._samples)

    def _accuracy(self, checkpoint: Path, progress: Progress) -> Accuracy:
        with self._engines.sampler(checkpoint, max_length=self._max_length) as sampler:
            found = verified_accuracy(
                self._samples,
                self._tokenized,
                checkpoint,
                sampler,
                end_token_ids=self._end_token_ids,
                progress=progress,
            )
        return Accuracy(**found)


def record_scores(journal: Journal, phase: str, outcome: ScoringOutcome) -> TableRecord:
    """Tell the owner what scoring found and cost; returns what to record of its table."""
    table = EntropyTable.load(outcome.table)
    record = TableRecord(
        table=outcome.table,
        mean_entropy=table.mean_entropy,
        nll=table.token_nll,
        top1=table.token_top1,
        provenance=table.provenance,
    )
    journal.event(
        f"{phase}: mean entropy {table.mean_entropy:.4f} nat, NLL {table.token_nll:.4f} nat/token",
        data=record.model_dump(mode="json", include={"mean_entropy", "nll", "top1"}),
    )
    cost = {"num_tokens": outcome.num_tokens, "seconds": outcome.seconds}
    journal.event(messages.scoring_cost(phase, outcome.num_tokens, outcome.seconds), data=cost)
    return record


def _cache_key(*parts: Any) -> str:
    text = json.dumps([CACHE_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
