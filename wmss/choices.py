"""Named choices and default numbers that both the configuration and the algorithms need, each declared once.

It imports nothing: the configuration stays free of torch, and the algorithms of pydantic.
"""

from typing import Literal

Weighting = Literal["v2", "v1", "per_term", "uniform", "all"]
"""How entropies become sampling weights; see `wmss.core.sample_weights`."""
MixingSchedule = Literal["constant", "linear", "cosine"]
"""How λ goes from the first step to the last; see `wmss.core.mixing.mixing_weight_at`."""
CurriculumPolicy = Literal["clock", "acceptance_target", "uniform", "hard_only", "hard_to_easy"]
"""How levels are chosen; see `wmss.core.levels`."""
Parallelism = Literal["ddp", "fsdp"]
"""How several training workers share the work; see `wmss.training.parallel`."""
KeptCheckpoint = Literal["last", "best"]
"""Which checkpoint of a training phase goes on: the last one, or that of the lowest loss on held-out rows."""
ActivationCheckpointing = Literal["none", "selective", "full"]
"""Which activations are kept for the backward pass: all, those of matrix products, or each block's input."""

TooLong = Literal["auto", "refuse", "drop", "cut"]
"""What becomes of rows longer than `max_length`; see `wmss.data.tokenization.tokenize_samples`."""

DType = Literal["float32", "bfloat16"]
"""Precision of a model in an engine."""
EngineChoice = Literal["auto", "vllm", "torch"]
"""Engine in the calling process; "auto" = vLLM where it is installed, else torch."""
TableFormat = Literal["parquet", "jsonl"]
"""Of a downloaded table."""

DEFAULT_MIXING_WEIGHT = 0.5
"""λ, the weight of the strong logits, in the paper."""
DEFAULT_ALPHA, DEFAULT_BETA, DEFAULT_GAMMA = 0.1, 0.8, 0.1
"""Coefficients of the three terms of the sampling weights in the paper, Eq. 9."""

DEFAULT_TARGET = 0.37
"""Acceptance of the level to train on: 1/e teaches most new steps per sample."""
DEFAULT_BAND = (0.2, 0.6)
"""Lowest and highest acceptance of a level that is worth training on."""
DEFAULT_PROBE_FRACTION = 0.1
DEFAULT_REPLAY_FRACTION = 0.15
"""Largest shares of a round that measure levels out of focus, and that go back to lower levels."""
DEFAULT_PATIENCE = 3
"""Rounds without promotion after which the samples of a round are doubled."""
DEFAULT_MIN_ACCEPTED = 64
"""Accepted responses below which a round does not train."""


def check_curriculum(
    *, target: float, band: tuple[float, float], probe_fraction: float, replay_fraction: float
) -> None:
    """Raise `ValueError` unless the target lies inside the band, and probes and replay leave room for the focus."""
    low, high = band
    if not 0 <= low < target < high <= 1:
        raise ValueError(f"band: expected 0 <= low < target < high <= 1, got low, target, high {low, target, high}")
    fractions = (probe_fraction, replay_fraction)
    if not (min(fractions) >= 0 and sum(fractions) < 1):
        raise ValueError(
            f"probe_fraction, replay_fraction: expected numbers >= 0 with a sum below 1, got {fractions}; lower one"
        )
