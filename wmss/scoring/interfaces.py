"""The interfaces of engines: entropy scorers and samplers of responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from wmss.errors import ConfigError
from wmss.records import Completion
from wmss.records import Progress as Progress

NUM_STATISTICS = 4
"""Columns of a score: entropy, NLL of the next token, logsumexp of the logits, top-1 hit; hidden states follow them."""


class EngineDiedError(RuntimeError):
    """The process behind a scorer or sampler is gone; make another scorer or sampler."""


@dataclass(frozen=True)
class Line:
    """θ1 + step·(θ1 - θ0), where θ0 are the weights in the folder `weak` and θ1 those in `strong`.

    Each tensor is (1 + step)·θ1 - step·θ0 in float32: θ1 itself at 0, and θ0 itself at -1. The configuration is that of
    `strong`.
    """

    weak: Path
    strong: Path
    step: float

    def __post_init__(self) -> None:
        if not isfinite(self.step):
            raise ConfigError(f"step: expected a finite number, got {self.step}", param="step")

    def __str__(self) -> str:
        return f"{self.strong} {self.step:+g} times the way from {self.weak}"


Weights = Path | Line
"""A checkpoint folder, or a point between or beyond two of them."""


class Scorer(Protocol):
    """Exact entropy under one checkpoint."""

    calls_at_once: int
    """Calls of `score` that should be under way together, from as many threads; 1 = one after the other."""

    def score(self, sequences: list[list[int]], starts: list[int] | None = None) -> list[npt.NDArray[np.float32]]:
        """Statistics at the positions of each sequence from its start on: row r stands at position starts[i] + r.

        Args:
            sequences: token ids, T >= 1 of each.
            starts: first position wanted of each sequence, in [0, T); those before it are read but never projected
                through the output head. None = 0 for all.

        Returns:
            Per sequence [T - start, NUM_STATISTICS]: entropy (nats), NLL of the next token (nats), logsumexp of the
            logits, and 1 where no token is likelier than the next one, else 0. NLL and the last are NaN at position
            T - 1. A scorer that keeps states gives [.., NUM_STATISTICS + D]: what enters the output head comes after.
        """

    def provenance(self) -> dict[str, Any]:
        """Engine, version, precision and batch invariance: figures of different provenance are not comparable."""


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn."""

    temperature: float
    """0 = greedy: the likeliest token, whatever the seed."""
    top_p: float
    top_k: int | None
    """None = all tokens."""
    max_new_tokens: int


def response_limits(prompts: Sequence[Sequence[int]], sampling: Sampling, *, max_length: int) -> list[int]:
    """Most tokens of the response to each prompt, where both together have room for `max_length`.

    Raises `ConfigError` where a prompt leaves no room.
    """
    longest = max(map(len, prompts), default=0)
    if longest >= max_length:
        raise ConfigError(
            f"max_length: expected more tokens than the longest prompt has ({longest}), got {max_length}; raise it or "
            "leave that prompt out",
            param="max_length",
        )
    return [min(sampling.max_new_tokens, max_length - len(prompt)) for prompt in prompts]


class Sampler(Protocol):
    """Responses drawn from a model whose weights change from round to round."""

    calls_at_once: int
    """Calls of `sample` that should be under way together, from as many threads."""

    def sample(
        self,
        weights: Weights,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        *,
        sampling: Sampling,
        end_token_ids: Sequence[int],
    ) -> list[Completion]:
        """One response to each prompt, drawn with its own seed from the model with these weights.

        A call is a function of its arguments: the same prompts and seeds under the same weights give the same tokens,
        whatever was asked before. Other weights than those of the call before are loaded first, and probed; raises
        `ScoringError` where the engine does not compute with them what PyTorch does.
        """

    def provenance(self) -> dict[str, Any]:
        """Engine, version and precision."""
