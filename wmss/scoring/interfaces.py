"""What an entropy scorer and a text generator are, whatever engine stands behind them."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Progress = Callable[[int, int], None]
"""progress(done, total), called as work completes."""


class Scorer(Protocol):
    """Exact entropy under one checkpoint."""

    def score(self, sequences: list[list[int]]) -> list[npt.NDArray[np.float32]]:
        """Per sequence of T token ids: [T, 2], entropy (nats) at each position and NLL of the next token (last NaN).

        A scorer that keeps states gives [T, 2 + D]: those that enter the output head come after.
        """

    def provenance(self) -> dict[str, Any]:
        """Engine, version and precision: figures of different provenance are not comparable."""


class Generator(Protocol):
    """Text generation under one checkpoint."""

    def generate(self, prompts: list[list[int]], max_tokens: list[int], *, end_token_ids: list[int]) -> list[list[int]]:
        """Greedy continuation of each prompt up to, without, one of `end_token_ids`, or `max_tokens[i]` ids."""
