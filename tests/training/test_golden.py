"""Twenty steps of three fixed runs give the losses that are stored."""

import json

import pytest

from tests.training.golden import FILE, RUNS, TOLERANCE, golden_losses


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_stored(checkpoints, samples_file, tmp_path, name):
    expected = json.loads(FILE.read_text(encoding="utf-8"))
    assert expected.keys() == RUNS.keys()
    assert len(expected[name]) == 20
    assert golden_losses(name, checkpoints, samples_file, tmp_path) == pytest.approx(expected[name], rel=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("knobs", [{"micro_batch_tokens": 60}, {"packing": False}, {"micro_batch_tokens": 100_000}])
@pytest.mark.parametrize("name", RUNS)
def test_tolerance_covers_another_order_of_sums(checkpoints, samples_file, tmp_path, name, knobs):
    expected = json.loads(FILE.read_text(encoding="utf-8"))[name]
    found = golden_losses(name, checkpoints, samples_file, tmp_path, **knobs)
    assert found != expected
    assert found == pytest.approx(expected, rel=TOLERANCE / 100)
