"""Attention over several samples packed into one row without padding: each sees itself only, and nothing is masked.

Registered with transformers under the name `PACKED`, so any model whose attention goes through its interface takes it.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from wmss.errors import ModelError

PACKED = "wmss_packed"


class Runs:
    """Packed samples as (number, length) of neighbours of one length: a run is one batched call.

    A class of its own, and attention outside the graph, because torch.compile looks into tuples and would compile
    every block of the model again for each batch.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        """`lengths` of the samples in order; sorted ones make few and long runs."""
        self.pairs = tuple((len(list(group)), length) for length, group in groupby(lengths))
        self.longest = max(lengths, default=0)
        self._boundaries = tuple(accumulate(lengths, initial=0))
        self._on_device: Tensor | None = None

    def boundaries(self, device: torch.device) -> Tensor:
        """[samples + 1], int32: where each sample begins, and the end of the last. Copied to the device once."""
        if self._on_device is None or self._on_device.device != device:
            self._on_device = torch.tensor(self._boundaries, dtype=torch.int32, device=device)
        return self._on_device


@torch.compiler.disable  # type: ignore[untyped-decorator]
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_runs: Runs | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample of query [1, H, N, d] and key, value [1, K, N, d]; returns [1, N, H, d].

    Scores of Σ length² instead of N². A `sliding_window` shorter than a sample limits how far back it sees. Without
    `packed_runs` every row of [B, ...] is one sample. Positions are in query and key already.

    Raises:
        ModelError: the model asks for more than this, such as a cap on scores or attention sinks.
    """
    if asked := unknown_arguments(**others):
        raise ModelError(f"packed rows: {type(module).__name__} needs {', '.join(sorted(asked))}, which they lack")
    attend = partial(_attend, dropout=dropout, scaling=scaling, sliding_window=sliding_window)
    if packed_runs is None:
        return attend(query, key, value).transpose(1, 2), None
    if (kernel := _varlen_kernel()) is not None and _fits_varlen(query, dropout):
        return _varlen(kernel, query, key, value, packed_runs, scaling=scaling, sliding_window=sliding_window), None
    sizes = [count * length for count, length in packed_runs.pairs]
    outputs = []
    # split and cat: a slice's backward pass would write a full-size tensor of zeros for every run.
    parts = zip(*(torch.split(tensor, sizes, dim=2) for tensor in (query, key, value)), strict=True)
    for (count, length), (q, k, v) in zip(packed_runs.pairs, parts, strict=True):
        output = attend(*(_unpack(tensor, count, length) for tensor in (q, k, v)))
        outputs.append(output.transpose(1, 2).reshape(1, count * length, output.shape[1], output.shape[3]))
    return torch.cat(outputs, dim=1), None


def unknown_arguments(
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_ids: Tensor | None = None,
    use_cache: bool | None = None,
    **others: Any,
) -> set[str]:
    """Names of arguments that a family hands to its attention and `packed_attention` has no use for."""
    asked = {name for name, value in others.items() if value is not None and value is not False}
    return asked | {"is_causal=False"} if is_causal is False else asked


def _attend(
    query: Tensor, key: Tensor, value: Tensor, *, dropout: float, scaling: float | None, sliding_window: int | None
) -> Tensor:
    """[B, H, T, d] of B samples of one length."""
    length, mask = query.shape[2], None
    if sliding_window is not None and length > sliding_window:
        position = torch.arange(length, device=query.device)
        back = position[:, None] - position[None, :]
        mask = (back >= 0) & (back < sliding_window)
    shared = query.shape[1] != key.shape[1]
    if shared and query.is_cuda and not _is_half(query):
        # In float32 no fused kernel takes shared key heads: all scores [T, T] would be held, 117 GB for 16k tokens.
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
        shared = False
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=shared,
    )


@cache
def _varlen_kernel() -> Callable[..., Any] | None:
    """torch's own attention over samples of any lengths in one row, one kernel for all; None in a torch without it."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    options = inspect.signature(varlen_attn).parameters
    if "window_size" not in options:
        return None
    # torch 2.11 lets fewer key heads than query heads pass; later versions want to be told.
    return partial(varlen_attn, enable_gqa=True) if "enable_gqa" in options else varlen_attn


def _fits_varlen(query: Tensor, dropout: float) -> bool:
    """Flash attention: on a GPU, in half precision, without dropout, heads of at most 256."""
    return query.is_cuda and _is_half(query) and dropout == 0.0 and query.shape[3] <= 256 and query.shape[3] % 8 == 0


def _is_half(query: Tensor) -> bool:
    return query.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled("cuda")


def _varlen(
    kernel: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: Runs,
    *,
    scaling: float | None,
    sliding_window: int | None,
) -> Tensor:
    """[1, H, N, d] -> [1, N, H, d]."""
    # Autocast does not know the kernel, and rotary embeddings leave float32.
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    q, k, v = (tensor[0].transpose(0, 1).to(dtype) for tensor in (query, key, value))
    boundaries = runs.boundaries(query.device)
    # A window of W tokens is the token itself and W − 1 before it.
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    longest = runs.longest
    output: Tensor = kernel(q, k, v, boundaries, boundaries, longest, longest, scale=scaling, window_size=window)
    return output[None]


def _unpack(packed: Tensor, count: int, length: int) -> Tensor:
    """[1, H, count·length, d] -> [count, H, length, d]."""
    _, heads, _, width = packed.shape
    return packed.view(heads, count, length, width).transpose(0, 1)


def _no_mask(**_: Any) -> None:
    """The runs say who sees whom."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
