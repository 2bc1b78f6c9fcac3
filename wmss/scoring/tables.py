"""From token statistics to one entropy per sample: the table that the curriculum reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wmss.data.states import StateWriter
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import NUM_STATISTICS, Progress, Scorer

FloatArray = npt.NDArray[np.float64]

MIN_BATCH_SAMPLES = 64
"""Fewer samples a call leave the engine idle between calls."""


@dataclass(frozen=True)
class EntropyTable:
    """One row per sample, in file order. Entropy and NLL are means per target token, in nats (Eq. 7)."""

    line: npt.NDArray[np.int32]
    num_targets: npt.NDArray[np.int32]
    entropy: FloatArray
    nll: FloatArray

    @property
    def mean_entropy(self) -> float:
        """Mean over samples, as the paper reports it."""
        return float(self.entropy.mean())

    @property
    def token_nll(self) -> float:
        """Mean NLL per target token over the whole file."""
        return float(np.average(self.nll, weights=self.num_targets))

    def save(self, path: Path) -> None:
        """Write as parquet."""
        columns = {name: getattr(self, name) for name in ("line", "num_targets", "entropy", "nll")}
        pq.write_table(pa.table(columns), path)

    @classmethod
    def load(cls, path: Path) -> "EntropyTable":
        """Read what `save` wrote."""
        table = pq.read_table(path)
        return cls(**{name: table[name].to_numpy() for name in table.column_names})


def score_samples(
    samples: Sequence[TokenizedSample],
    scorer: Scorer,
    *,
    batch_tokens: int,
    progress: Progress,
    states: StateWriter | None = None,
    min_samples: int = MIN_BATCH_SAMPLES,
) -> EntropyTable:
    """Score every sample: longest first, in calls of about `batch_tokens` tokens but at least `min_samples` samples.

    `states` takes the hidden states at supervised positions, from a scorer that keeps them. The answers of such a one
    are D / 2 times as large: `min_samples` is better 1 then, and memory bounded by `batch_tokens` alone.
    """
    entropy = np.full(len(samples), np.nan)
    nll = np.full(len(samples), np.nan)
    done = 0
    for batch in _batches(samples, batch_tokens, min_samples):
        # A prompt costs its prefill only: nothing reads the distributions before the first supervised token's.
        starts = [int(samples[i].predicting_positions[0]) for i in batch]
        results = scorer.score([samples[i].input_ids.tolist() for i in batch], starts)
        for index, start, statistics in zip(batch, starts, results, strict=True):
            rows = statistics[samples[index].predicting_positions - start]
            entropy[index], nll[index] = rows[:, :2].astype(np.float64).mean(axis=0)
            if states is not None:
                states.write(index, rows[:, NUM_STATISTICS:])
        done += len(batch)
        progress(done, len(samples))
    assert np.isfinite(entropy).all() and np.isfinite(nll).all(), "the scorer returned a value that is not finite"
    return EntropyTable(
        line=np.array([sample.line for sample in samples], dtype=np.int32),
        num_targets=np.array([sample.num_targets for sample in samples], dtype=np.int32),
        entropy=entropy,
        nll=nll,
    )


def _batches(
    samples: Sequence[TokenizedSample], batch_tokens: int, min_samples: int = MIN_BATCH_SAMPLES
) -> list[list[int]]:
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i].input_ids), i))
    batches: list[list[int]] = []
    tokens = 0
    for index in order:
        length = len(samples[index].input_ids)
        if not batches or (tokens + length > batch_tokens and len(batches[-1]) >= min_samples):
            batches.append([])
            tokens = 0
        batches[-1].append(index)
        tokens += length
    return batches
