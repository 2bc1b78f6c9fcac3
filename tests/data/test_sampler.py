"""Batches: every sample once an epoch, a pure function of the step, and micro-batches within their budget."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wmss.data.sampler import BatchSampler, micro_batches
from wmss.records import TokenizedSample


def test_an_epoch_is_every_sample_once():
    sampler = BatchSampler(range(10, 33), batch_size=5, num_epochs=3, max_steps=None, seed=1)
    assert (sampler.steps_per_epoch, sampler.num_steps) == (5, 15)
    epochs = [np.concatenate([sampler.batch(5 * e + k) for k in range(5)]) for e in range(3)]
    assert all(sorted(epoch) == list(range(10, 33)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    assert len(sampler.batch(4)) == 3


def test_batches_depend_on_seed_and_step_alone():
    make = lambda seed: BatchSampler(range(50), batch_size=8, num_epochs=4, max_steps=None, seed=seed)  # noqa: E731
    assert np.array_equal(make(3).batch(20), make(3).batch(20))
    assert not np.array_equal(make(3).batch(20), make(4).batch(20))


def test_batches_are_slices_of_the_epochs_permutation_whatever_was_asked_before():
    """Resume, and any other jump, gives the batches of an uninterrupted run."""
    indices = np.arange(100, 150)
    sampler = BatchSampler(indices, batch_size=8, num_epochs=3, max_steps=None, seed=9)
    for step in (0, 20, 13, 6, 7, 20, 1):
        epoch, position = divmod(step, 7)
        order = np.random.default_rng([9, epoch]).permutation(50)
        assert np.array_equal(sampler.batch(step), indices[order[8 * position : 8 * position + 8]])
    first = sampler.batch(0)
    first[:] = -1  # whoever gets a batch may change it
    assert np.array_equal(sampler.batch(0), indices[np.random.default_rng([9, 0]).permutation(50)[:8]])


def test_an_epochs_order_is_drawn_once(monkeypatch):
    drawn = []
    default_rng = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or default_rng(seed))
    sampler = BatchSampler(range(50), batch_size=8, num_epochs=3, max_steps=None, seed=9)
    for step in range(sampler.num_steps):
        sampler.batch(step)
    assert drawn == [[9, 0], [9, 1], [9, 2]]


def test_max_steps_and_duplicates():
    sampler = BatchSampler([7, 7, 7], batch_size=2, num_epochs=10, max_steps=3, seed=0)
    assert sampler.num_steps == 3
    assert sorted(np.concatenate([sampler.batch(0), sampler.batch(1)])) == [7, 7, 7]
    with pytest.raises(IndexError, match=r"step: expected 0..2, got 3"):
        sampler.batch(3)
    with pytest.raises(ValueError, match="at least one sample"):
        BatchSampler([], batch_size=2, num_epochs=1, max_steps=None, seed=0)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 100), st.integers(1, 4), st.booleans())
def test_micro_batches_share_out_the_batch_within_their_budget(lengths, max_tokens, world_size, packing):
    samples = [
        TokenizedSample(line=i, input_ids=np.zeros(n, dtype=np.int32), target_mask=np.ones(n, dtype=bool))
        for i, n in enumerate(lengths)
    ]
    batch = list(range(len(samples)))
    groups = [
        group
        for rank in range(world_size)
        for group in micro_batches(
            batch, samples, max_tokens=max_tokens, packing=packing, rank=rank, world_size=world_size
        )
    ]
    assert sorted(index for group in groups for index in group) == batch
    for group in groups:
        sizes = [lengths[index] for index in group]
        cost = sum(sizes) if packing else len(sizes) * max(sizes)
        assert cost <= max_tokens or len(group) == 1
