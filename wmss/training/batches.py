"""From samples to the tensors of one forward pass.

Shape suffixes: B rows of samples, T tokens of a row, N = B·T positions, R supervised positions, D hidden width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wmss.models.packed_attention import Runs
from wmss.records import TokenizedSample


@dataclass(frozen=True)
class MicroBatch:
    """Samples of one forward pass: packed into one row (B = 1, `runs` set), or one to a right-padded row."""

    input_ids: Tensor
    """[B, T]."""
    position_ids: Tensor
    """[B, T], counted from 0 in every sample."""
    lengths: Tensor
    """[B, T], tokens of the sample that a position belongs to; 1 on padding."""
    runs: Runs | None
    """Lengths of the packed samples, None with padding."""
    rows: Tensor
    """[R], the supervised positions among all B·T, sample after sample."""
    labels: Tensor
    """[R], the tokens they must predict."""
    weak_states: tuple[Tensor, ...] = ()
    """[R, D] per cached weak model: its hidden states at `rows`."""


def collate(
    samples: Sequence[TokenizedSample],
    *,
    device: torch.device,
    packing: bool,
    supervised: bool = True,
    weak_states: Sequence[Tensor] = (),
) -> MicroBatch:
    """Tensors of `samples`; `supervised=False` leaves no target. `weak_states` are [R, D], in the order of `rows`."""
    lengths = [len(sample.input_ids) for sample in samples]
    longest = max(lengths)
    starts = [sum(lengths[:i]) if packing else i * longest for i in range(len(samples))]
    size = sum(lengths) if packing else len(samples) * longest
    input_ids_N = torch.zeros(size, dtype=torch.long)
    # Padding goes on counting: it stands behind the tokens, where causal attention never looks, and a row that counts
    # on needs no mask.
    position_ids_N = torch.arange(size) % longest
    lengths_N = torch.ones(size, dtype=torch.long)
    rows, labels = [], []
    for sample, start, length in zip(samples, starts, lengths, strict=True):
        ids = torch.from_numpy(sample.input_ids).long()
        input_ids_N[start : start + length] = ids
        position_ids_N[start : start + length] = torch.arange(length)
        lengths_N[start : start + length] = length
        if supervised:
            positions = torch.from_numpy(sample.predicting_positions)
            rows.append(positions + start)
            labels.append(ids[positions + 1])
    none = torch.zeros(0, dtype=torch.long)
    shape = (1 if packing else len(samples), -1)
    return MicroBatch(
        input_ids=input_ids_N.view(shape).to(device),
        position_ids=position_ids_N.view(shape).to(device),
        lengths=lengths_N.view(shape).to(device),
        runs=Runs(lengths) if packing else None,
        rows=torch.cat([none, *rows]).to(device),
        labels=torch.cat([none, *labels]).to(device),
        weak_states=tuple(states.to(device) for states in weak_states),
    )
