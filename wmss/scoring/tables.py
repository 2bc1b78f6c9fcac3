"""From token statistics to one entropy per sample: the table that the curriculum reads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wmss.data.states import StateWriter
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import NUM_STATISTICS, Progress, Scorer

FloatArray = npt.NDArray[np.float64]

Batch = list[int]
"""Indices of samples."""
Answer = TypeVar("Answer")

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

    Engines take from the calls that are left whenever they are free, so a slow one holds nobody up.
    `states` takes the hidden states at supervised positions, from a scorer that keeps them. The answers of such a one
    are D / 2 times as large: `min_samples` is better 1 then, and memory bounded by `batch_tokens` alone.
    """
    entropy = np.full(len(samples), np.nan)
    nll = np.full(len(samples), np.nan)
    done = 0

    def ask(batch: Batch) -> list[npt.NDArray[np.float32]]:
        # A prompt costs its prefill only: nothing reads the distributions before the first supervised token's.
        starts = [int(samples[i].predicting_positions[0]) for i in batch]
        return scorer.score([samples[i].input_ids.tolist() for i in batch], starts)

    for batch, results in _answers(_batches(samples, batch_tokens, min_samples), ask, scorer.calls_at_once):
        for index, statistics in zip(batch, results, strict=True):
            positions = samples[index].predicting_positions
            rows = statistics[positions - positions[0]]
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


def _answers(
    batches: Iterable[Batch], ask: Callable[[Batch], Answer], calls_at_once: int
) -> Iterator[tuple[Batch, Answer]]:
    """Every batch with its answer, in the order of the answers; no more of them are held than calls are under way."""
    if calls_at_once == 1:
        yield from ((batch, ask(batch)) for batch in batches)
        return
    left = iter(batches)
    with ThreadPoolExecutor(calls_at_once, thread_name_prefix="score") as threads:
        under_way = {threads.submit(ask, batch): batch for batch in islice(left, calls_at_once)}
        while under_way:
            for answered in wait(under_way, return_when=FIRST_COMPLETED).done:
                batch = under_way.pop(answered)
                under_way |= {threads.submit(ask, another): another for another in islice(left, 1)}
                yield batch, answered.result()


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
