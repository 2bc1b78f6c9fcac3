"""Which samples make up optimizer step k: a pure function of the seed, so a resumed run needs only the step."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from wmss.records import TokenizedSample

IndexArray = npt.NDArray[np.int64]


class BatchSampler:
    """Global batches over `indices` for a number of epochs, each epoch in its own random order.

    The last batch of an epoch may be smaller; nothing is dropped. `max_steps` cuts the sequence off.
    """

    def __init__(
        self, indices: Sequence[int] | IndexArray, *, batch_size: int, num_epochs: int, max_steps: int | None, seed: int
    ) -> None:
        self._indices = np.asarray(indices, dtype=np.int64)
        if self._indices.size == 0:
            raise ValueError("indices: expected at least one sample to train on")
        self._batch_size = batch_size
        self._seed = seed
        self.steps_per_epoch = -(-self._indices.size // batch_size)
        steps = self.steps_per_epoch * num_epochs
        self.num_steps = steps if max_steps is None else min(steps, max_steps)
        self._shuffled: tuple[int, IndexArray] | None = None

    def batch(self, step: int) -> IndexArray:
        """Sample indices of optimizer step `step` (0-based), over all workers."""
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step: expected 0..{self.num_steps - 1}, got {step}")
        epoch, position = divmod(step, self.steps_per_epoch)
        return self._order(epoch)[position * self._batch_size : (position + 1) * self._batch_size].copy()

    def _order(self, epoch: int) -> IndexArray:
        """The samples of an epoch in their order, kept until another epoch is asked for: drawing it at every step would
        cost 39 ms a step at a million samples."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            order = np.random.default_rng([self._seed, epoch]).permutation(self._indices.size)
            self._shuffled = (epoch, self._indices[order])
        return self._shuffled[1]


def micro_batches(
    batch: Sequence[int],
    samples: Sequence[TokenizedSample],
    *,
    max_tokens: int,
    packing: bool,
    rank: int = 0,
    world_size: int = 1,
) -> list[list[int]]:
    """This rank's share of a global batch, cut into groups of at most `max_tokens` tokens (at least one sample).

    Without packing padding counts. Longest first, dealt round-robin to the ranks, so that padding is small, packed
    neighbours are of one length, and ranks carry equal loads.
    """
    by_length = sorted(batch, key=lambda index: (-len(samples[index].input_ids), index))
    groups: list[list[int]] = []
    filled = 0
    for index in by_length[rank::world_size]:
        length = len(samples[index].input_ids)
        cost = length if packing or not groups else len(samples[groups[-1][0]].input_ids)
        if groups and filled + cost <= max_tokens:
            groups[-1].append(index)
            filled += cost
        else:
            groups.append([index])
            filled = length
    return groups
