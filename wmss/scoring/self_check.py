"""Does an engine give right figures? One short sequence is scored by it, and by plain PyTorch on the same weights."""

import gc
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from wmss.errors import ConfigError, ScoringError
from wmss.models.loading import model_config
from wmss.scoring.interfaces import Scorer, Weights
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.scoring.weights import config_folder

LENGTH = 16
"""Tokens of the sequence: enough that a shifted label or a lost mask shows in several rows."""
COLUMNS = ("entropy", "nll", "logsumexp")
"""What is compared. A top-1 hit is not: where two logits nearly tie, rounding decides."""
EXACT = {"float32": 1e-3}
"""Difference allowed at every position, in nats, by the engine's precision. SmolLM2-135M: 8e-5."""
ROUNDED = {"float16": 0.05, "bfloat16": 0.25}
"""The same as a mean over positions: rounding alone moves single ones by half a nat. SmolLM2-135M: 0.02 and 0.09."""


def check_dtype(dtype: str) -> None:
    """Refuse a precision without a bound on its error."""
    known = [*EXACT, *ROUNDED]
    if dtype not in known:
        raise ConfigError(f"dtype: expected one of {known}, got {dtype!r}", param="dtype")


class Expected(NamedTuple):
    """A sequence, and its statistics [LENGTH, NUM_STATISTICS] in float32 from PyTorch."""

    ids: list[int]
    statistics: npt.NDArray[np.float32]


def expected_statistics(weights: Weights, *, max_length: int) -> Expected:
    """Score a fixed sequence with these weights, in float32 on the CPU: 4 bytes a parameter, for a moment
    (SmolLM2-135M: 0.6 s)."""
    vocab_size = int(model_config(config_folder(weights)).vocab_size)
    # Multiples of a prime: ids spread over the whole vocabulary.
    ids = [7919 * number % vocab_size for number in range(1, min(LENGTH, max_length) + 1)]
    statistics = TorchEntropyScorer(weights).score([ids])[0]
    gc.collect()
    return Expected(ids, statistics)


def check_statistics(scorer: Scorer, expected: Expected, *, dtype: str, before: Expected | None = None) -> None:
    """Raise `ScoringError` unless `scorer`, which computes in `dtype`, gives the expected statistics, from the first
    position on and from the middle on. `before` is expected of the weights that it had until now: what is allowed for
    rounding may be more than lies between the two, so these must not be the nearer ones by far."""
    starts = [0, len(expected.ids) // 2]
    answers = scorer.score([expected.ids] * len(starts), starts)
    for start, rows in zip(starts, answers, strict=True):
        wanted = expected.statistics[start:]
        if len(rows) != len(wanted):
            raise ScoringError(f"self-check: expected {len(wanted)} rows, the engine gave {len(rows)}; {_REMEDY}")
        for number, column in enumerate(COLUMNS):
            _compare(column, rows[:, number], wanted[:, number], start, dtype)
    if before is not None and _distance(answers[0], before) < _distance(answers[0], expected) / 2:
        raise ScoringError(
            f"self-check: the engine has kept the weights before these ({_distance(answers[0], before):.2g} nat from "
            f"their figures on average, {_distance(answers[0], expected):.2g} from those wanted): none of its figures "
            "can be trusted; try again with a new engine, and report this architecture and vLLM's version"
        )


def _distance(rows: npt.NDArray[np.float32], expected: Expected) -> float:
    """Mean over positions and columns, in nats."""
    columns = len(COLUMNS)
    return float(np.nanmean(np.abs(rows[:, :columns] - expected.statistics[:, :columns])))


def _compare(
    column: str, found: npt.NDArray[np.float32], wanted: npt.NDArray[np.float32], start: int, dtype: str
) -> None:
    # The last position predicts nothing: both must be NaN there, and nowhere else.
    difference = np.where(np.isnan(found) & np.isnan(wanted), 0.0, np.abs(found - wanted))
    worst = int(np.nan_to_num(difference, nan=np.inf).argmax())
    over, size, allowed = (
        ("at that position", difference[worst], EXACT[dtype])
        if dtype in EXACT
        else ("on average", difference.mean(), ROUNDED[dtype])
    )
    if not size <= allowed:
        raise ScoringError(
            f"self-check: {column} at position {start + worst} should be {wanted[worst]:.6f}, the engine says "
            f"{found[worst]:.6f} ({size:.2g} nat apart {over}, at most {allowed:g} is allowed in {dtype}); {_REMEDY}"
        )


_REMEDY = (
    "none of its figures can be trusted: score another model, and report this one's architecture and vLLM's version"
)
