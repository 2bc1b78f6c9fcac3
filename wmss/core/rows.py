"""What the loss and the entropy share: which rows are projected, in what precision, how many at a time."""

import torch
from torch import Tensor

DEFAULT_IGNORE_INDEX = -100


def supervised_rows(labels: Tensor, *, vocab_size: int, ignore_index: int = DEFAULT_IGNORE_INDEX) -> Tensor:
    """Indices [R] of the rows whose label [N] is not `ignore_index`; a label outside [0, vocab_size) raises."""
    if labels.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"labels: expected int64 or int32, got {labels.dtype}")
    rows = (labels != ignore_index).nonzero(as_tuple=True)[0]
    if rows.numel():
        low, high = (int(value) for value in labels[rows].aminmax())
        if low < 0 or high >= vocab_size:
            raise ValueError(f"labels: expected values in [0, {vocab_size}) or {ignore_index}, got {low}..{high}")
    return rows


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """float64 if any input has it, else float32: bf16 logits alone would cost 7e-4 nat of entropy."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def resolve_chunk_size(chunk_size: int | None, device: torch.device) -> int:
    """Rows per chunk. Below some 1,000 rows a GPU re-reads the head more than it computes; a CPU cache likes 256."""
    if chunk_size is None:
        return 256 if device.type == "cpu" else 2048
    if chunk_size < 1:
        raise ValueError(f"chunk_size: expected a positive number of rows, got {chunk_size}")
    return chunk_size
