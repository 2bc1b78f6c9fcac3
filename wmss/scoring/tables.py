"""From token statistics to one entropy per sample: the table that the curriculum reads."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wmss.core.arrays import FloatArray
from wmss.data.states import StateWriter
from wmss.errors import ScoreTableError
from wmss.records import TokenizedSample
from wmss.scoring.calls import answers
from wmss.scoring.interfaces import NUM_STATISTICS, Progress, Scorer
from wmss.scoring.token_table import PROVENANCE, TokenTableWriter

Batch = list[int]
"""Indices of samples."""

MIN_BATCH_SAMPLES = 64
"""Fewer samples a call leave the engine idle between calls."""


@dataclass(frozen=True)
class EntropyTable:
    """One row per sample, in file order. Entropy and NLL are means per target token, in nats (Eq. 7); `top1` is the
    share of targets that no token is likelier than."""

    line: npt.NDArray[np.int32]
    num_targets: npt.NDArray[np.int32]
    entropy: FloatArray
    nll: FloatArray
    top1: FloatArray
    provenance: dict[str, Any]
    """What `Scorer.provenance` said of the engine."""

    @property
    def mean_entropy(self) -> float:
        """Mean over samples, as the paper reports it."""
        return float(self.entropy.mean())

    @property
    def token_nll(self) -> float:
        """Mean NLL per target token over the whole file."""
        return float(np.average(self.nll, weights=self.num_targets))

    @property
    def token_top1(self) -> float:
        """Share of the whole file's target tokens that no token is likelier than."""
        return float(np.average(self.top1, weights=self.num_targets))

    def save(self, path: Path) -> None:
        """Write as parquet."""
        columns = {name: getattr(self, name) for name in COLUMNS}
        pq.write_table(pa.table(columns, metadata={PROVENANCE: json.dumps(self.provenance)}), path)

    @classmethod
    def load(cls, path: Path) -> "EntropyTable":
        """Read what `save` wrote; raises `ScoreTableError` if it does not say where its scores come from."""
        table = pq.read_table(path)
        provenance = (table.schema.metadata or {}).get(PROVENANCE.encode())
        if provenance is None:
            raise ScoreTableError(
                f"{path}: expected a table of scores with its engine, version and precision, as this release writes "
                "them; score the file again"
            )
        return cls(**{name: table[name].to_numpy() for name in COLUMNS}, provenance=json.loads(provenance))


COLUMNS = ("line", "num_targets", "entropy", "nll", "top1")


def check_comparable(first: EntropyTable, second: EntropyTable) -> None:
    """Raise `ScoreTableError` unless two tables are of the same samples and their scores may be subtracted.

    Another engine, version or precision moves an entropy by more than many samples differ between checkpoints.
    """
    differing = [
        f"{key} {first.provenance.get(key)!r} and {second.provenance.get(key)!r}"
        for key in sorted(first.provenance.keys() | second.provenance.keys())
        if first.provenance.get(key) != second.provenance.get(key)
    ]
    if differing:
        raise ScoreTableError(
            f"scores of different provenance cannot be compared ({'; '.join(differing)}); score both checkpoints with "
            "the same engine"
        )
    if not np.array_equal(first.line, second.line) or not np.array_equal(first.num_targets, second.num_targets):
        raise ScoreTableError("scores of different samples cannot be compared; score both checkpoints on the same file")


def entropy_change(weak: EntropyTable, strong: EntropyTable) -> FloatArray:
    """ΔH = H_strong − H_weak of every sample, [n] in nats; raises as `check_comparable` does."""
    check_comparable(weak, strong)
    return strong.entropy - weak.entropy


def score_samples(
    samples: Sequence[TokenizedSample],
    scorer: Scorer,
    *,
    batch_tokens: int,
    progress: Progress,
    states: StateWriter | None = None,
    tokens: TokenTableWriter | None = None,
    min_samples: int = MIN_BATCH_SAMPLES,
) -> EntropyTable:
    """Score every sample: longest first, in calls of about `batch_tokens` tokens but at least `min_samples` samples.

    Engines take from the calls that are left whenever they are free, so a slow one holds nobody up.
    `states` takes the hidden states at supervised positions, from a scorer that keeps them. The answers of such a one
    are D / 4 times as large: `min_samples` is better 1 then, and memory bounded by `batch_tokens` alone. `tokens` takes
    the statistics of every supervised token.
    """
    means = np.full((len(samples), NUM_STATISTICS), np.nan)
    done = 0

    def ask(batch: Batch) -> list[npt.NDArray[np.float32]]:
        # A prompt costs its prefill only: nothing reads the distributions before the first supervised token's.
        starts = [int(samples[i].predicting_positions[0]) for i in batch]
        return scorer.score([samples[i].input_ids.tolist() for i in batch], starts)

    for batch, results in answers(_batches(samples, batch_tokens, min_samples), ask, scorer.calls_at_once):
        for index, statistics in zip(batch, results, strict=True):
            positions = samples[index].predicting_positions
            rows = statistics[positions - positions[0]]
            means[index] = rows[:, :NUM_STATISTICS].mean(axis=0, dtype=np.float64)
            if tokens is not None:
                tokens.write(index, rows[:, :NUM_STATISTICS])
            if states is not None:
                states.write(index, rows[:, NUM_STATISTICS:])
        done += len(batch)
        progress(done, len(samples))
    assert np.isfinite(means).all(), "the scorer returned a value that is not finite"
    entropy, nll, _, top1 = np.ascontiguousarray(means.T)
    return EntropyTable(
        line=np.array([sample.line for sample in samples], dtype=np.int32),
        num_targets=np.array([sample.num_targets for sample in samples], dtype=np.int32),
        entropy=entropy,
        nll=nll,
        top1=top1,
        provenance=scorer.provenance(),
    )


def _batches(samples: Sequence[TokenizedSample], batch_tokens: int, min_samples: int) -> Iterator[Batch]:
    """Indices of the samples, longest first, a call's worth at a time."""
    lengths = np.array([len(sample.input_ids) for sample in samples])
    batch: Batch = []
    tokens = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        if batch and tokens + lengths[index] > batch_tokens and len(batch) >= min_samples:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch
