"""From the entropies of weak and strong to a round's draw: weights, how often each sample is drawn, and its table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import JsonValue
from transformers import PreTrainedTokenizerBase

from wmss.config import WmssConfig
from wmss.core.sample_weights import TERMS, cap_weights, draw, sampling_weights, weighting_terms
from wmss.core.saturation import MIN_ENTROPY_GAP
from wmss.errors import ConfigError, TrainingError
from wmss.records import TokenizedSample
from wmss.rounds import messages
from wmss.rounds.journal import Journal
from wmss.rounds.phase_records import Weighed
from wmss.scoring.tables import EntropyTable, entropy_change

_ROWS_A_GROUP = 4096
"""A page of the table is read from the row groups that hold it: some 0.3 MB each."""


class Pair(NamedTuple):
    """The entropies of a round's two models, comparable with each other."""

    weak: EntropyTable
    strong: EntropyTable


@dataclass(frozen=True)
class Draw:
    """What a round draws from n samples."""

    weights: npt.NDArray[np.float64]
    """[n], probability of each sample in every draw; sum 1."""
    times_drawn: npt.NDArray[np.int64]
    """[n]."""
    indices: npt.NDArray[np.int64]
    """Samples of an epoch."""


def draw_samples(wmss: WmssConfig, num_samples: int, pair: Pair | None, *, seed: int | Sequence[int]) -> Draw:
    """Draw as many samples as there are, with replacement; without a `pair` all are equally likely.

    Raises:
        ConfigError: the entropies leave no mass to draw from, or too little for `max_share`.
    """
    weights = _weights(wmss, num_samples, pair)
    every_draw = draw(weights, num_draws=num_samples, seed=seed, deduplicate=False)
    times_drawn = np.bincount(every_draw, minlength=num_samples)
    return Draw(weights, times_drawn, np.flatnonzero(times_drawn) if wmss.deduplicate else every_draw)


def _weights(wmss: WmssConfig, num_samples: int, pair: Pair | None) -> npt.NDArray[np.float64]:
    """Sampling probabilities as the configuration asks for them."""
    if pair is None:
        weights = np.full(num_samples, 1.0 / num_samples)
    else:
        weak, strong = pair.weak.entropy, pair.strong.entropy
        try:
            weights = sampling_weights(weak, strong, weighting=wmss.weighting, **wmss.coefficients)
        except ValueError as error:
            raise ConfigError(str(error), param="method.wmss.weighting") from error
    if wmss.max_share is None:
        return weights
    try:
        return cap_weights(weights, wmss.max_share)
    except ValueError as error:
        raise ConfigError(str(error), param="method.wmss.max_share") from error


def weighed(wmss: WmssConfig, drawn: Draw, pair: Pair | None, *, table: Path) -> Weighed:
    """The record of a draw, which `save_draw` wrote into `table` and beside it."""
    num_samples, num_unique = len(drawn.weights), int((drawn.times_drawn > 0).sum())
    return Weighed(
        table=table,
        indices=_indices_beside(table),
        num_unique=num_unique,
        num_duplicates=num_samples - num_unique,
        effective_sample_size=float(1.0 / np.square(drawn.weights).sum()),
        largest_share=float(drawn.weights.max()),
        term_masses=None if pair is None else _term_masses(wmss, pair),
        mean_entropy_weak=None if pair is None else pair.weak.mean_entropy,
        mean_entropy_strong=None if pair is None else pair.strong.mean_entropy,
    )


def _term_masses(wmss: WmssConfig, pair: Pair) -> dict[str, float]:
    """Share of each term of the weighting in the sum of all weights."""
    weak, strong = pair.weak.entropy, pair.strong.entropy
    terms = weighting_terms(weak, strong, weighting=wmss.weighting, **wmss.coefficients)
    return dict(zip(TERMS[wmss.weighting], (terms.sum(axis=1) / terms.sum()).tolist(), strict=True))


def save_draw(
    drawn: Draw,
    samples: Sequence[TokenizedSample],
    pair: Pair | None,
    table: Path,
    *,
    origin: Mapping[str, JsonValue],
) -> None:
    """Write one row per sample, in file order, and beside this table the samples of an epoch.

    `origin` goes into the schema's metadata, with the two provenances.
    """
    columns: dict[str, Any] = {
        "line": [sample.line for sample in samples],
        "num_targets": [sample.num_targets for sample in samples],
        "weight": drawn.weights,
        "times_drawn": drawn.times_drawn,
    }
    if pair is not None:
        columns |= {
            "weak_entropy": pair.weak.entropy,
            "strong_entropy": pair.strong.entropy,
            "entropy_delta": entropy_change(pair.weak, pair.strong),
            "weak_nll": pair.weak.nll,
            "strong_nll": pair.strong.nll,
        }
    provenance = {
        "weak_provenance": None if pair is None else pair.weak.provenance,
        "strong_provenance": None if pair is None else pair.strong.provenance,
    }
    metadata = {"wmss": json.dumps({**origin, **provenance})}
    pq.write_table(pa.table(columns, metadata=metadata), table, row_group_size=_ROWS_A_GROUP)
    np.save(_indices_beside(table), drawn.indices)


def _indices_beside(table: Path) -> Path:
    return table.with_suffix(".npy")


def drawn_indices(record: Weighed) -> Sequence[int]:
    """Samples of an epoch, as a draw left them.

    Raises:
        TrainingError: their file is not there or cannot be read.
    """
    if not isinstance(record.indices, Path):
        return record.indices
    try:
        indices: list[int] = np.load(record.indices).tolist()
    except (OSError, ValueError, EOFError) as error:
        raise TrainingError(
            f"expected the samples of an epoch in {record.indices}: {error}; start the job again"
        ) from error
    return indices


def tell_weights(journal: Journal, record: Weighed, drawn: Draw, pair: Pair | None) -> None:
    """Tell how the entropies changed, what the weights go to, and what was drawn."""
    figures = record.model_dump(mode="json", exclude={"table", "indices"})
    if pair is not None:
        journal.event(messages.entropy_shift(pair.weak.entropy, pair.strong.entropy), data=figures)
        journal.event(messages.term_masses(record.term_masses or {}))
        gap = pair.weak.mean_entropy - pair.strong.mean_entropy
        if gap < MIN_ENTROPY_GAP:
            journal.event(messages.close_pair(gap), level="warn", data={"entropy_gap": gap})
    journal.event(messages.drawn(len(drawn.indices), record.num_unique, len(drawn.weights)), data=figures)


def tell_extremes(
    journal: Journal, drawn: Draw, samples: Sequence[TokenizedSample], pair: Pair, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Tell the sample drawn most often, and of those never drawn the least likely one, for a person to look at."""
    times_drawn = drawn.times_drawn
    most = int(np.argmax(times_drawn))
    chosen = {f"drawn most often, {times_drawn[most]} x": most}
    if (times_drawn == 0).any():
        chosen["never drawn"] = int(np.argmin(np.where(times_drawn == 0, drawn.weights, np.inf)))
    for label, index in chosen.items():
        answer = samples[index].input_ids[samples[index].last_completion_start :]
        text = str(tokenizer.decode(answer.tolist(), skip_special_tokens=True))
        line, weak, strong = (
            int(pair.weak.line[index]),
            float(pair.weak.entropy[index]),
            float(pair.strong.entropy[index]),
        )
        journal.event(
            messages.one_sample(label, line=line, weak=weak, strong=strong, text=text),
            data={"line": line, "weak": weak, "strong": strong, "times_drawn": int(times_drawn[index])},
        )
