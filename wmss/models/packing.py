"""Do packed rows, or padded ones, give the states that each sample has alone under the family's own attention?

Both are compared with the family's own (eager) attention before training. What speaks against packing without any
weights is told before a job.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from wmss.errors import ModelError
from wmss.models.loading import attention_unpacked, batch_states, body_of, hidden_states, loader_errors
from wmss.models.packed_attention import PACKED, Runs, unknown_arguments

TOLERANCE = 1e-4
"""Largest relative difference of states from those of the family's own attention, in float32."""
_SHORT_WINDOW = 4
_LENGTHS = (3, 2 * _SHORT_WINDOW + 1)
_WINDOWS = ("sliding_window", "sliding_window_size", "attention_window_size", "window_size", "attention_chunk_size")
_PROBE = "wmss_probe"


@torch.no_grad()
def check_packing(model: PreTrainedModel, *, param: str) -> None:
    """Lay a model out for packed rows; raise `ModelError` unless samples packed into one row give the states that each
    has alone under the family's own (eager) attention.

    A model that keeps a state along the row (recurrent, convolutional), or whose attention is more than packed rows
    have (sinks, a cap on scores, a window that only its mask knows), would train on other states without a word. Its
    windows are made short for the time of the check, so that a few tokens are longer than they.
    """
    ids = _input_ids(model)
    name = type(model).__name__
    positions = torch.cat([torch.arange(len(each), device=model.device) for each in ids])[None]
    refused = loader_errors(f"{name} takes no packed rows", param=param, remedy='set packing to "auto" or false')
    with refused, _as_scored(model, PACKED):
        packed = batch_states(model, torch.cat(ids)[None], positions, Runs(_LENGTHS))[0]
        difference = _difference(packed, _alone(model, ids))
    if difference > TOLERANCE:
        raise ModelError(
            f"{param}: {name} does not keep packed samples apart, or attends otherwise than packed rows do (states "
            f'differ by {difference:.1e}, relative); set packing to "auto" or false',
            param=param,
        )


@torch.no_grad()
def check_padding(model: PreTrainedModel, *, param: str) -> None:
    """Lay a model out for padded rows; raise `ModelError` unless they give the states of each sample alone.

    A family that looks at what stands behind a token, or whose own SDPA attention leaves out a part of its eager one,
    can be trained in no form.
    """
    ids = _input_ids(model)
    longest = max(_LENGTHS)
    padded = torch.stack([torch.cat([each, each.new_zeros(longest - len(each))]) for each in ids])
    positions = torch.arange(longest, device=model.device).expand_as(padded)
    refused = loader_errors(
        f"{type(model).__name__} cannot be trained here", param=param, remedy="choose another model"
    )
    with refused, _as_scored(model, attention_unpacked(model.config)):
        rows = batch_states(model, padded, positions, None)
        found = torch.cat([row[: len(each)] for row, each in zip(rows, ids, strict=True)])
        difference = _difference(found, _alone(model, ids))
    if difference > TOLERANCE:
        raise ModelError(
            f"{param}: {type(model).__name__} gives other states in padded rows than for each sample alone under its "
            f"own attention (they differ by {difference:.1e}, relative), so it cannot be trained here; choose another "
            "model",
            param=param,
        )


def _input_ids(model: PreTrainedModel) -> tuple[Tensor, ...]:
    """Two samples of unequal length, one longer than a short window."""
    size = int(model.config.vocab_size)
    return torch.split(torch.arange(sum(_LENGTHS), device=model.device) % size, list(_LENGTHS))


def _alone(model: PreTrainedModel, ids: tuple[Tensor, ...]) -> Tensor:
    model.set_attn_implementation("eager")
    return torch.cat([hidden_states(model, each[None], torch.ones_like(each)[None])[0] for each in ids])


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@contextmanager
def _as_scored(model: PreTrainedModel, attention: str) -> Iterator[None]:
    """Without dropout and with short windows; with this attention, then and afterwards."""
    training = model.training
    try:
        with _short_windows(model):
            model.eval()
            model.set_attn_implementation(attention)
            yield
    finally:
        model.train(training)
        model.set_attn_implementation(attention)


@contextmanager
def _short_windows(model: PreTrainedModel) -> Iterator[None]:
    """Every window of attention no longer than a few tokens, in the configuration and in the layers that copied it."""
    holders: list[Any] = [
        *model.modules(),
        *{id(m.config): m.config for m in model.modules() if _has_config(m)}.values(),
    ]
    found = [
        (holder, name, value)
        for holder in holders
        for name, value in vars(holder).items()
        if name in _WINDOWS and type(value) is int and value > _SHORT_WINDOW
    ]
    try:
        for holder, name, _ in found:
            setattr(holder, name, _SHORT_WINDOW)
        yield
    finally:
        for holder, name, value in found:
            setattr(holder, name, value)


def _has_config(module: nn.Module) -> bool:
    return isinstance(getattr(module, "config", None), PretrainedConfig)


@dataclass
class _Seen:
    """What a model asks of its attention and its masks in one pass."""

    num_calls: int = 0
    unknown: set[str] = field(default_factory=set)
    windows: set[int] = field(default_factory=set)
    windows_of_masks: set[int] = field(default_factory=set)
    without_runs: bool = False


_seen: ContextVar[_Seen] = ContextVar("seen")


@torch.no_grad()
def packing_obstacle(config: PretrainedConfig) -> str | None:
    """Why a model of this configuration cannot be packed, as far as that shows without weights; None if nothing does.

    One pass without memory (torch's meta device) shows what the model hands to its attention. `check_packing` judges
    by numbers: it alone sees everything.
    """
    with torch.device("meta"):
        try:
            # Experts of the other kinds choose their tokens by number, and here there are none.
            model = AutoModelForCausalLM.from_config(
                copy.deepcopy(config), attn_implementation=_PROBE, experts_implementation="batched_mm"
            ).eval()
        except Exception:  # a family with attention classes of its own has no place for another
            return None
        # The second costs ten times as much, and goes on where a model looks at numbers of its masks or positions.
        seen, error = _pass_through(model)
        if error is not None:
            with FakeTensorMode(allow_non_fake_inputs=True):
                seen, error = _pass_through(model)
    return _obstacle(model, seen, error)


def _pass_through(model: PreTrainedModel) -> tuple[_Seen, Exception | None]:
    """What was seen, and what ended the pass too early."""
    seen = _Seen()
    token = _seen.set(seen)
    ids, positions = torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None]
    try:
        body_of(model)(
            input_ids=ids,
            position_ids=positions,
            attention_mask=torch.ones_like(ids),
            use_cache=False,
            packed_runs=Runs([4]),
        )
    except Exception as error:  # whatever a family does with numbers that are not there
        return seen, error
    finally:
        _seen.reset(token)
    return seen, None


def _obstacle(model: PreTrainedModel, seen: _Seen, error: Exception | None) -> str | None:
    num_layers = getattr(model.config, "num_hidden_layers", 0)
    if seen.unknown:
        return f"its attention needs {', '.join(sorted(seen.unknown))}, which packed rows lack"
    if seen.without_runs:
        return "it does not tell its attention where samples begin"
    if only_masked := seen.windows_of_masks - seen.windows:
        return f"only its mask knows the window of {min(only_masked)} tokens, and packed rows have no mask"
    if any(getattr(module, "_is_stateful", False) for module in model.modules()):
        return "it keeps a state along the row"
    if isinstance(error, TypeError | AttributeError):  # no numbers are behind these: mostly a mask that is not there
        return f"it takes no packed rows ({type(error).__name__}: {error})"
    if error is None and seen.num_calls < num_layers:
        return f"{num_layers - seen.num_calls} of its {num_layers} layers do not attend, but go on along the row"
    return None


def _probe(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_runs: Runs | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """As `packed_attention`, of which it notes the arguments; its output has nothing but a shape."""
    seen = _seen.get()
    seen.num_calls += 1
    seen.unknown |= unknown_arguments(**others)
    seen.without_runs |= packed_runs is None
    if sliding_window is not None:
        seen.windows.add(sliding_window)
    rows, heads, length, _ = query.shape
    return query.new_empty(rows, length, heads, value.shape[3]), None


def _note_window(*, local_size: int | None = None, **_: Any) -> None:
    if local_size is not None:
        _seen.get().windows_of_masks.add(local_size)


AttentionInterface.register(_PROBE, _probe)
AttentionMaskInterface.register(_PROBE, _note_window)
