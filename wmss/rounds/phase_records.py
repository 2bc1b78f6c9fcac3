"""What the phases of weak-driven, supervised and scoring jobs leave. Importing this loads no torch.

The records of trained checkpoints stand in `job.py`, beside the checkpoint that they describe.
"""

from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue

from wmss.rounds.journal import Record

Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


def _is_none(value: object) -> bool:
    return value is None


class FileCounts(Record):
    """What is in the file that a job reads, after cutting at `max_length`."""

    num_samples: Count
    num_tokens: Count
    num_targets: Count
    """Supervised tokens."""
    num_truncated: Count


class Validated(FileCounts):
    """Left by `validate` of a weak-driven or supervised job."""

    end_token_ids: list[int]
    """What a completion ends with."""
    max_length: int = Field(ge=2)
    batch_size: int = Field(ge=1)


class RequestValidated(FileCounts):
    """Left by `validate` of a request for scores."""

    max_length: int = Field(ge=2)


class TableRecord(Record):
    """A table of entropies: where it is, what it says on average, and which engine made it."""

    table: Path
    """An `EntropyTable`."""
    mean_entropy: float
    """Mean over samples of the mean over supervised tokens, in nats."""
    nll: float
    """Mean over supervised tokens, in nats."""
    top1: float
    """Share of supervised tokens that no token is likelier than."""
    provenance: dict[str, JsonValue]
    """Engine, version and precision: tables in which they differ are not comparable."""


class Scored(TableRecord):
    """Left by `score_weak` and `score_strong`."""

    states: Path | None = None
    """Cached hidden states, where a later phase trains on them; absent in jobs begun by a release without them."""
    states_digest: str | None = None


class RequestScored(TableRecord):
    """Left by `score_1`, `score_2`, … of a request for scores."""

    tokens: Path | None
    """The table of every supervised token, where it was asked for."""
    digest: str
    """SHA-256 of the checkpoint."""
    num_tokens_scored: Count
    """Computed for this request; 0 = all was in the cache."""
    seconds: float = Field(ge=0)
    """Of scoring, without the start of an engine."""


class Weighed(Record):
    """Left by `weigh`: the draw of a round."""

    table: Path
    """One row per sample: entropies, weight, times drawn."""
    indices: Path | tuple[Count, ...]
    """Samples of an epoch; with duplicates where the job asks for them. They lie in a file: in a record they would be a
    row of megabytes in the database. Jobs begun by a release before have them here."""
    num_unique: Count
    num_duplicates: Count
    effective_sample_size: float = Field(ge=0)
    """1 / Σ p²."""
    largest_share: Fraction
    """Largest probability of a sample."""
    term_masses: dict[str, float] | None = Field(default=None, exclude_if=_is_none)
    """Share of each term of the weighting. It and the two means are absent where no entropies were read."""
    mean_entropy_weak: float | None = Field(default=None, exclude_if=_is_none)
    mean_entropy_strong: float | None = Field(default=None, exclude_if=_is_none)


class Exported(Record):
    """Left by `export`."""

    path: Path
    """The finished model's folder."""
    name: str
    digest: str
    num_bytes: Count


class ReadBack(Record):
    """Left by `read_back`: the finished model is the one that was trained."""

    num_tensors: int = Field(ge=1)
    """On disk; each was compared bit for bit."""


class Accuracy(Record):
    """Verified pass@1 of greedy answers."""

    pass_at_1: Fraction
    interval_95: tuple[float, float]
    """Wilson interval."""
    num_correct: Count
    num_problems: int = Field(ge=1)
    truncated_share: Fraction
    """Answers cut at `max_new_tokens`."""
    max_new_tokens: int


class Evaluation(Record):
    """How good one model is on the validation file."""

    nll: float
    """Mean over supervised tokens, in nats."""
    mean_entropy: float
    accuracy: Accuracy | None
    """Null where not every reference answer can be verified."""


class Evaluated(Record):
    """Left by `evaluate`."""

    results: dict[str, Evaluation]
    """By model: `base`, `strong_before`, `round_1`, …, `result`."""
