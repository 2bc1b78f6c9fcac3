"""The cache of hidden states: what is read is what was written, and an unfinished one does not exist."""

import numpy as np
import pytest
import torch

from wmss.data.states import StateCache, StateWriter, check_states, states_bytes, states_digest
from wmss.errors import TrainingError
from wmss.records import TokenizedSample

NUM_TARGETS = [2, 1, 4]
WIDTH = 3


def make_samples():
    return [
        TokenizedSample(
            line=i,
            input_ids=np.arange(n + 1, dtype=np.int32),
            target_mask=np.array([False, *[True] * n]),
        )
        for i, n in enumerate(NUM_TARGETS)
    ]


def make_states():
    return [np.random.default_rng(i).normal(size=(n, WIDTH)).astype(np.float32) for i, n in enumerate(NUM_TARGETS)]


def write(folder, order=(0, 1, 2)):
    writer = StateWriter(folder, make_samples())
    for index in order:
        writer.write(index, make_states()[index])
    return writer


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_what_is_read_is_what_was_written(tmp_path, order):
    write(tmp_path / "cache", order).close()
    cache, states = StateCache(tmp_path / "cache"), make_states()
    rows = cache.rows([2, 0, 2])
    assert rows.shape == (4 + 2 + 4, WIDTH)
    assert np.array_equal(rows.numpy(), np.concatenate([states[2], states[0], states[2]]))


def test_no_sample_gives_no_row(tmp_path):
    write(tmp_path / "cache").close()
    assert StateCache(tmp_path / "cache").rows([]).shape == (0, WIDTH)


def test_rows_may_be_changed_without_changing_the_cache(tmp_path):
    write(tmp_path / "cache").close()
    cache = StateCache(tmp_path / "cache")
    cache.rows([1]).zero_()
    assert np.array_equal(cache.rows([1]).numpy(), make_states()[1])


def test_cache_appears_only_when_complete(tmp_path):
    writer = write(tmp_path / "cache", order=(0, 2))
    assert not (tmp_path / "cache").exists()
    with pytest.raises(AssertionError, match="1 samples have no states"):
        writer.close()
    assert not (tmp_path / "cache").exists()


def test_writing_again_replaces_the_cache(tmp_path):
    write(tmp_path / "cache").close()
    writer = StateWriter(tmp_path / "cache", make_samples())
    for index, states in enumerate(make_states()):
        writer.write(index, states + 1)
    writer.close()
    assert np.array_equal(StateCache(tmp_path / "cache").rows([0]).numpy(), make_states()[0] + 1)
    assert not list(tmp_path.glob("*.partial"))


def test_states_of_another_shape_are_refused(tmp_path):
    writer = StateWriter(tmp_path / "cache", make_samples())
    with pytest.raises(ValueError, match="could not broadcast"):
        writer.write(2, make_states()[0])


def test_the_digest_is_of_the_content_and_a_changed_bit_is_found(tmp_path):
    for name, order in (("cache", (0, 1, 2)), ("other", (2, 0, 1))):
        write(tmp_path / name, order).close()
    digest = states_digest(tmp_path / "cache")
    assert states_digest(tmp_path / "other") == digest
    check_states(tmp_path / "cache", digest)
    for name in ("states.npy", "offsets.npy"):
        content = (tmp_path / "cache" / name).read_bytes()
        (tmp_path / "cache" / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(TrainingError, match="its content has changed") as caught:
            check_states(tmp_path / "cache", digest)
        assert caught.value.param == "method.wmss.weak_cache"
        (tmp_path / "cache" / name).write_bytes(content)
    with pytest.raises(TrainingError, match="No such file"):
        check_states(tmp_path / "nowhere", digest)


def test_the_estimate_is_the_size_but_for_headers(tmp_path):
    write(tmp_path / "cache").close()
    size = sum(file.stat().st_size for file in (tmp_path / "cache").iterdir())
    assert states_bytes(make_samples(), WIDTH) == 4 * WIDTH * 7
    assert 0 < size - states_bytes(make_samples(), WIDTH) < 500


def test_states_in_bfloat16_are_rounded_as_torch_rounds_and_take_half(tmp_path):
    writer = StateWriter(tmp_path / "cache", make_samples(), "bfloat16")
    states = make_states()
    states[1][0] = [np.inf, -0.0, 3.3895314e38]  # the last is above what bfloat16 holds
    for index, each in enumerate(states):
        writer.write(index, each)
    writer.close()
    rows = StateCache(tmp_path / "cache").rows([2, 1])
    expected = torch.from_numpy(np.concatenate([states[2], states[1]])).to(torch.bfloat16).float()
    assert rows.dtype == torch.float32 and torch.equal(rows, expected)
    assert StateCache(tmp_path / "cache").rows([]).shape == (0, WIDTH)
    assert states_bytes(make_samples(), WIDTH, "bfloat16") == 2 * WIDTH * 7
    assert 0 < sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) - 2 * WIDTH * 7 < 500
