"""Plain records that travel between packages."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Progress = Callable[[int, int], None]
"""progress(done, total), called as work completes."""


def in_parts(progress: Progress, sizes: Sequence[int]) -> list[Progress]:
    """A progress for each part of a whole, to be worked on in this order: all tell where the whole is, so that it never
    goes back. `sizes` are what the parts count for; a part that tells nothing is passed over by the next."""
    total = sum(sizes)

    def part(before: int, size: int) -> Progress:
        return lambda done, of: progress(before + size * done // max(of, 1), total)

    return [part(sum(sizes[:number]), size) for number, size in enumerate(sizes)]


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
    def labels(self) -> npt.NDArray[np.int64]:
        """[T] as trainers take them: the token's id where it is supervised, -100 elsewhere. Not shifted."""
        return np.where(self.target_mask, self.input_ids, -100).astype(np.int64)

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


Label = Literal["correct", "wrong", "unparseable", "timeout", "error"]
"""What a verifier finds; only `correct` is accepted. `error`: the verifier itself failed."""
FinishReason = Literal["stop", "length"]
"""Why a response ends: by an end token, or cut at the most tokens allowed."""
Split = Literal["validation", "test", "ood"]
"""What a held-out task is for: to stop and to choose by, for the final report only, or out of distribution."""


@dataclass(frozen=True)
class Task:
    """One row of a task file: a prompt, and what a verifier needs. Either `messages` or `prompt` is set."""

    line: int
    messages: tuple[dict[str, str], ...] = ()
    """Chat turns, the last one the user's."""
    prompt: str = ""
    answer: str | None = None
    """The reference; None only where the verifier needs none."""
    level: int | None = None
    """Difficulty, 1 = easiest; None = to be estimated."""
    data: dict[str, Any] = field(default_factory=dict)
    """What else a verifier reads: tests of a program, a graph."""
    split: Split = "validation"


@dataclass(frozen=True)
class Completion:
    """One response as a model gave it."""

    token_ids: tuple[int, ...]
    """With the end token where it stopped by itself."""
    finish_reason: FinishReason
    logprob: float
    """Sum over its tokens of log p under the model itself (temperature 1, all tokens), in nats."""


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response."""

    label: Label
    detail: str
    """The reason in a few words, from a small set that can be counted."""
    ms: float
    """What it took."""

    @property
    def accepted(self) -> bool:
        return self.label == "correct"
