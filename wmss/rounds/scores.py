"""Entropy tables and evaluations of checkpoints, each computed once, ever: cached by content, for any job."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wmss.data.dataset import Sample, read_samples
from wmss.data.states import StateWriter
from wmss.data.tokenization import load_tokenized, tokens_digest
from wmss.models.loading import checkpoint_digest, load_tokenizer
from wmss.records import TokenizedSample
from wmss.rounds.job import Artifacts, Engines, Job
from wmss.scoring.evaluation import verified_accuracy
from wmss.scoring.interfaces import Progress
from wmss.scoring.rewards import is_verifiable
from wmss.scoring.tables import EntropyTable, score_samples

SCORE_CALL = {"batch_tokens": 32768}
"""How much is asked of a scorer at a time."""
STATES_CALL = {"batch_tokens": 8192, "min_samples": 1}
"""With hidden states, 4·D bytes a token: 134 MB a call at a width of 4096, and still a full step of the engine."""
CACHE_VERSION = 2
"""Part of every cache key; raise it when the same question would get another answer (positions, pooler, verifier)."""


@dataclass(frozen=True)
class Scored:
    """What scoring the training file under a checkpoint gave, and what it took."""

    table: Path
    """An `EntropyTable`."""
    states: Path | None
    """A `StateCache`, where it was asked for."""
    num_tokens: int
    """Scored now, of all files; 0 = everything was known already."""
    seconds: float
    """The engine's start not counted."""


class Scores:
    """Asks a job's engines about its samples, unless the answer is known."""

    def __init__(self, job: Job, engines: Engines, *, training: Path, validation: Path, validated: Artifacts) -> None:
        """`training` and `validation` are tokenized samples, `validated` what the validate phase recorded."""
        self._job = job
        self._engines = engines
        self._files = {"training": training} | ({"validation": validation} if job.validation_file else {})
        self._max_length: int = validated["max_length"]
        self._end_token_ids: list[int] = validated["end_token_ids"]

    def score(self, checkpoint: Path, progress: Progress, *, keep_states: bool = False) -> Scored:
        """Score the training file, and the validation file while an engine is there."""
        return self._score(checkpoint, progress, list(self._files), keep_states=keep_states)

    def evaluate(self, checkpoint: Path, progress: Progress) -> Artifacts:
        """NLL, mean entropy and verified accuracy of a checkpoint on the validation file."""
        job = self._job
        assert job.validation_file is not None
        tokenized = load_tokenized(self._files["validation"])
        samples: list[Sample] = read_samples(job.validation_file, param="validation_file")
        key = _cache_key(
            checkpoint_digest(checkpoint),
            tokens_digest(tokenized),
            [sample.answer for sample in samples],
            self._end_token_ids,
            self._engines.provenance(),
            self._max_length,
        )
        cached = job.cache / "evaluations" / f"{key}.json"
        if cached.is_file():
            return json.loads(cached.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        table = EntropyTable.load(self._score(checkpoint, progress, ["validation"], keep_states=False).table)
        result = {
            "nll": table.token_nll,
            "mean_entropy": table.mean_entropy,
            "accuracy": self._accuracy(checkpoint, samples, tokenized, progress),
        }
        cached.parent.mkdir(parents=True, exist_ok=True)
        self._publish(cached, lambda file: file.write_text(json.dumps(result), encoding="utf-8"))
        return result

    def _accuracy(
        self, checkpoint: Path, samples: list[Sample], tokenized: Sequence[TokenizedSample], progress: Progress
    ) -> Artifacts | None:
        if not all(is_verifiable(sample.answer) for sample in samples):
            return None
        with self._engines.generator(checkpoint, max_length=self._max_length) as generator:
            return verified_accuracy(
                samples,
                tokenized,
                load_tokenizer(checkpoint),
                generator,
                end_token_ids=self._end_token_ids,
                max_length=self._max_length,
                progress=progress,
            )

    def _score(self, checkpoint: Path, progress: Progress, names: list[str], *, keep_states: bool) -> Scored:
        samples = {name: load_tokenized(self._files[name]) for name in names}
        digest = checkpoint_digest(checkpoint)
        tables = {name: self._table(digest, rows) for name, rows in samples.items()}
        # States are large and the job's own; the tables of entropies are small and anyone's.
        states = self._job.folder / "states" / tables[names[0]].stem if keep_states else None
        missing = [name for name in names if not tables[name].is_file()]
        if states is not None and not states.is_dir() and names[0] not in missing:
            missing.insert(0, names[0])
        seconds = 0.0
        if missing:
            seconds = self._ask(checkpoint, progress, {name: samples[name] for name in missing}, tables, states)
        num_tokens = sum(len(sample.input_ids) for name in missing for sample in samples[name])
        return Scored(tables[names[0]], states, num_tokens, seconds)

    def _ask(
        self,
        checkpoint: Path,
        progress: Progress,
        samples: dict[str, Sequence[TokenizedSample]],
        tables: dict[str, Path],
        states: Path | None,
    ) -> float:
        provenance = self._engines.provenance()
        first = next(iter(tables))
        size = SCORE_CALL if states is None else STATES_CALL
        with self._engines.scorer(checkpoint, max_length=self._max_length, keep_states=states is not None) as scorer:
            assert scorer.provenance() == provenance, f"{scorer.provenance()} is not the promised {provenance}"
            started = time.monotonic()
            for name, rows in samples.items():
                writer = StateWriter(states, rows) if states is not None and name == first else None
                table = score_samples(rows, scorer, progress=progress, states=writer, **size)
                if writer is not None:
                    writer.close()
                self._publish(tables[name], table.save)
            return time.monotonic() - started

    def _table(self, digest: str, samples: Sequence[TokenizedSample]) -> Path:
        folder = self._job.cache / "entropy"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{_cache_key(digest, tokens_digest(samples), self._engines.provenance())}.parquet"

    def _publish(self, target: Path, write: Callable[[Path], Any]) -> None:
        """Write a file under another name first: a half-written one would be taken for an answer."""
        partial = target.with_suffix(f".{self._job.id}.partial")
        write(partial)
        partial.rename(target)


def _cache_key(*parts: Any) -> str:
    text = json.dumps([CACHE_VERSION, *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
