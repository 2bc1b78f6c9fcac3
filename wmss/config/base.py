"""What every configuration model is made of: its base class, and the types of names, counts and metadata."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints


class Knobs(BaseModel):
    """Base of every configuration model."""

    # Strict: `true` is not a batch size and "8" is not a number.
    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


MAX_COUNT = 2**24
"""Upper limit for batch size and sample length; larger values are treated as typing errors."""

Auto = Literal["auto"]
Steps = Annotated[int, Field(ge=1, le=10**9)]
"""Optimizer steps."""
BatchSize = Annotated[int, Field(ge=1, le=MAX_COUNT)]
"""Samples per optimizer step, over all workers."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
MixingWeight = Annotated[float, Field(ge=0, le=1)]
"""λ, the weight of the strong logits."""
Share = Annotated[float, Field(gt=0, le=1)]
"""A part of a whole that is not empty."""
MaxLength = Annotated[int, Field(ge=2, le=MAX_COUNT)] | Auto

METADATA_KEY = r'^[^"\\\[\]\x00-\x1f]{1,64}$'
_METADATA_VALUE = r"^[^\x00]{0,512}$"
_SUFFIX = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_NO_NUL = r"^[^\x00]*$"
PATTERNS = {
    METADATA_KEY: "a key of 1 to 64 characters, without quotes, brackets, backslashes and control characters",
    _METADATA_VALUE: "up to 512 characters, none of them NUL",
    _SUFFIX: "up to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    _NO_NUL: "text without NUL characters",
}
"""What each pattern asks for, in words."""

MetadataKey = Annotated[str, StringConstraints(pattern=METADATA_KEY)]
MetadataValue = Annotated[str, StringConstraints(pattern=_METADATA_VALUE)]
Suffix = Annotated[str, StringConstraints(pattern=_SUFFIX)]
FileName = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=_NO_NUL)]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=1024)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]

Model = TypeVar("Model", bound=BaseModel)


def check_shares(weak_shares: Sequence[float], num_weak: int) -> None:
    """Raise `ValueError` unless there is one share for each of `num_weak` weak models and they sum to 1."""
    if len(weak_shares) != num_weak:
        raise ValueError(f"weak_shares: expected {num_weak} numbers, one for each weak model, got {len(weak_shares)}")
    if weak_shares and abs(sum(weak_shares) - 1.0) > 1e-6:
        raise ValueError(f"weak_shares: expected numbers that sum to 1, got a sum of {sum(weak_shares)}")


def changed(model: Model, **fields: Any) -> Model:
    """A copy with other values in some fields, validated like a new one: `model_copy(update=...)` checks nothing.

    Raises:
        ValidationError: a field is unknown, or its value is out of bounds.
    """
    return type(model).model_validate(dict(model) | fields)
