"""Plain records that travel between packages."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

STRONG_FOLDER = "strong"
"""Folder of the strong branch inside a training checkpoint."""
ADAPTER_FOLDER = "adapter"
"""Folder of the strong branch's adapter inside a training checkpoint, where one is trained."""


@dataclass(frozen=True)
class CheckpointDigests:
    """SHA-256 of a checkpoint's two halves: equal weights compute alike, equal tokenizers read text alike."""

    weights: str
    """Of config.json and the safetensors files."""
    tokenizer: str
    """Of the tokenizer's files, its chat template included."""


@dataclass(frozen=True)
class TokenizedSample:
    """One training sample as the models see it.

    input_ids int32 [T]; target_mask bool [T], True where token t is a supervised *target*: the distribution that
    predicts it stands at position t-1. The first token is never a target. `line` is its line in the source file.
    """

    line: int
    input_ids: npt.NDArray[np.int32]
    target_mask: npt.NDArray[np.bool_]

    @property
    def num_targets(self) -> int:
        return int(self.target_mask.sum())

    @property
    def predicting_positions(self) -> npt.NDArray[np.intp]:
        """Positions [num_targets] whose distribution predicts a target."""
        return np.flatnonzero(self.target_mask) - 1

    @property
    def last_target(self) -> int:
        """Id of the last supervised token: the end token, unless the sample was cut."""
        return int(self.input_ids[np.flatnonzero(self.target_mask)[-1]])

    @property
    def last_completion_start(self) -> int:
        """Index of the first token of the last supervised span: everything before it is the prompt."""
        targets = np.flatnonzero(self.target_mask)
        breaks = np.flatnonzero(np.diff(targets) > 1)
        return int(targets[breaks[-1] + 1] if breaks.size else targets[0])
