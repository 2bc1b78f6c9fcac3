"""Tensors of a forward pass by hand, packed and padded."""

import numpy as np
import pytest
import torch

from wmss.records import TokenizedSample
from wmss.training.batches import collate

CPU = torch.device("cpu")


def sample(ids, targets):
    return TokenizedSample(
        line=1, input_ids=np.array(ids, dtype=np.int32), target_mask=np.array([c == "1" for c in targets])
    )


SAMPLES = [sample([10, 11, 12, 13], "0011"), sample([20, 21], "01"), sample([30, 31, 32], "010")]


def test_packed_by_hand():
    batch = collate(SAMPLES, device=CPU, packing=True)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 20, 21, 30, 31, 32]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 0, 1, 2]]
    assert batch.lengths.tolist() == [[4, 4, 4, 4, 2, 2, 3, 3, 3]]
    assert batch.runs.pairs == ((1, 4), (1, 2), (1, 3))
    # A target is predicted one position before it.
    assert batch.rows.tolist() == [1, 2, 4, 6]
    assert batch.labels.tolist() == [12, 13, 21, 31]


def test_padded_by_hand():
    batch = collate(SAMPLES, device=CPU, packing=False)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13], [20, 21, 0, 0], [30, 31, 32, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 3
    assert batch.lengths.tolist() == [[4, 4, 4, 4], [2, 2, 1, 1], [3, 3, 3, 1]]
    assert batch.runs is None
    assert batch.rows.tolist() == [1, 2, 4, 8]
    assert batch.labels.tolist() == [12, 13, 21, 31]


@pytest.mark.parametrize("packing", [True, False])
def test_unsupervised_batch_has_no_target(packing):
    batch = collate(SAMPLES[:1], device=CPU, packing=packing, supervised=False)
    assert batch.input_ids.tolist() == [[10, 11, 12, 13]]
    assert batch.rows.shape == batch.labels.shape == (0,)
    assert batch.rows.dtype == batch.labels.dtype == torch.long


def test_weak_states_come_along_in_order():
    states = (torch.ones(4, 2), torch.zeros(4, 3))
    batch = collate(SAMPLES, device=CPU, packing=True, weak_states=states)
    assert [torch.equal(a, b) for a, b in zip(batch.weak_states, states, strict=True)] == [True, True]
