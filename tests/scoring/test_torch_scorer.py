"""The torch scorer against a float64 full-logit forward, and the table's reduction by hand."""

import numpy as np
import pytest

from tests.scoring.exact import ragged, truth
from wmss.records import TokenizedSample
from wmss.scoring.interfaces import NUM_STATISTICS
from wmss.scoring.tables import EntropyTable, _batches, score_samples
from wmss.scoring.torch_scorer import TorchEntropyScorer


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_equals_full_logits(checkpoints, name):
    samples = ragged(20, seed=0)
    scored = TorchEntropyScorer(checkpoints[name]).score([s.input_ids.tolist() for s in samples])
    for sample, statistics, expected in zip(samples, scored, truth(checkpoints[name], samples), strict=True):
        assert np.isnan(statistics[-1, 1])
        np.testing.assert_allclose(statistics[sample.predicting_positions, :2], expected, atol=1e-4, rtol=0)


def test_starts_leave_out_rows_and_change_none(checkpoints):
    sequences = [sample.input_ids.tolist() for sample in ragged(6, seed=2)]
    starts = [0, 1, 2, *(len(ids) - 1 for ids in sequences[3:])]
    scorer = TorchEntropyScorer(checkpoints["qwen3"], keep_states=True)
    for all_rows, rows, start in zip(scorer.score(sequences), scorer.score(sequences, starts), starts, strict=True):
        assert rows.shape == (len(all_rows) - start, NUM_STATISTICS + 64)
        np.testing.assert_allclose(rows, all_rows[start:], rtol=1e-5, atol=1e-5)


class CountingScorer:
    """Entropy = token id, NLL = 10 × token id."""

    calls_at_once = 1

    def score(self, sequences, starts):
        return [
            np.array([[token, 10 * token, 0, 0] for token in ids[start:]], dtype=np.float32)
            for ids, start in zip(sequences, starts, strict=True)
        ]

    def provenance(self):
        return {"engine": "counting", "version": "1"}


def test_table_reduces_over_predicting_positions(tmp_path):
    sample = TokenizedSample(
        line=5,
        input_ids=np.array([5, 3, 7, 9, 4], dtype=np.int32),
        target_mask=np.array([False, False, True, False, True]),
    )
    table = score_samples([sample], CountingScorer(), batch_tokens=10, progress=lambda done, total: None)
    # Targets 2 and 4 are predicted at positions 1 and 3, whose tokens are 3 and 9.
    assert table.entropy.tolist() == [6.0]
    assert table.nll.tolist() == [60.0]
    assert (table.line.tolist(), table.num_targets.tolist()) == ([5], [2])
    table.save(tmp_path / "t.parquet")
    loaded = EntropyTable.load(tmp_path / "t.parquet")
    assert all(np.array_equal(getattr(loaded, name), getattr(table, name)) for name in vars(table))
    assert loaded.provenance == {"engine": "counting", "version": "1"}


def test_means_over_a_file_weigh_samples_by_their_targets():
    table = EntropyTable(*map(np.array, ([1, 2], [1, 3], [0.0, 0.0], [4.0, 8.0], [1.0, 0.0])), provenance={})
    assert (table.token_nll, table.token_top1) == (7.0, 0.25)


def test_batches_are_longest_first_and_within_budget():
    samples = ragged(500, seed=1)
    batches = list(_batches(samples, 2000, min_samples=64))
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    lengths = [len(samples[i].input_ids) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(batch) >= 64 for batch in batches[:-1])
