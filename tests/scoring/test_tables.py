"""How many samples go to a scorer in one call, what is kept of the answers, and which of them may be compared."""

import dataclasses
import queue
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from wmss.data.states import StateCache, StateWriter
from wmss.errors import ScoreTableError
from wmss.records import TokenizedSample
from wmss.scoring import token_table
from wmss.scoring.tables import EntropyTable, check_comparable, entropy_change, score_samples
from wmss.scoring.token_table import TokenTableWriter


class RecordingScorer:
    """Three hidden numbers a token behind the statistics; keeps how many tokens each call had."""

    calls_at_once = 1

    def __init__(self):
        self.calls = []

    def score(self, sequences, starts):
        self.calls.append(sum(map(len, sequences)))
        return [np.zeros((len(ids) - start, 4 + 3)) for ids, start in zip(sequences, starts, strict=True)]

    def provenance(self):
        return {"engine": "recording"}


@pytest.mark.parametrize(("size", "most"), [({}, 64 * 100), ({"min_samples": 1}, 200)])
def test_calls_stay_within_the_budget_if_asked_to(tmp_path, size, most):
    """A row of states is D numbers: sixty-four long samples a call would be gigabytes."""
    samples = [
        TokenizedSample(line=n, input_ids=np.zeros(100, dtype=np.int32), target_mask=np.arange(100) > 0)
        for n in range(1, 71)
    ]
    writer = StateWriter(tmp_path / "states", samples)
    scorer = RecordingScorer()
    score_samples(samples, scorer, batch_tokens=200, progress=lambda done, total: None, states=writer, **size)
    assert sum(scorer.calls) == 7000
    assert max(scorer.calls) == most
    writer.close()
    assert StateCache(tmp_path / "states").rows([5]).shape == (99, 3)


def table(**changes):
    values = {"line": [1, 3], "num_targets": [2, 4], "entropy": [1.0, 2.0], "nll": [0.5, 1.5], "top1": [1.0, 0.25]}
    origin = {"engine": "e", "version": "1", "dtype": "float32", "batch_invariant": False}
    return EntropyTable(**{name: np.array(column) for name, column in values.items()}, provenance=origin | changes)


def test_entropies_of_one_provenance_are_subtracted():
    strong = dataclasses.replace(table(), entropy=np.array([0.5, 2.5]))
    assert entropy_change(table(), strong).tolist() == [-0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"engine": "f"}, "engine 'e' and 'f'"),
        ({"version": "2"}, "version '1' and '2'"),
        ({"dtype": "bfloat16"}, "dtype 'float32' and 'bfloat16'"),
        ({"batch_invariant": True}, "batch_invariant False and True"),
    ],
)
def test_entropies_of_different_provenance_are_not(change, said):
    with pytest.raises(ScoreTableError, match=f"different provenance cannot be compared .*{said}"):
        entropy_change(table(), table(**change))


def test_entropies_of_different_samples_are_not():
    with pytest.raises(ScoreTableError, match="different samples"):
        check_comparable(table(), dataclasses.replace(table(), line=np.array([1, 4])))


def test_a_table_without_provenance_is_refused(tmp_path):
    file = tmp_path / "table.parquet"
    table().save(file)
    check_comparable(EntropyTable.load(file), table())
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)
    with pytest.raises(ScoreTableError, match="score the file again"):
        EntropyTable.load(file)


def ragged_samples(lengths):
    rng = np.random.default_rng(0)
    return [
        TokenizedSample(line=line, input_ids=rng.integers(0, 99, n).astype(np.int32), target_mask=np.arange(n) % 3 > 0)
        for line, n in enumerate(lengths, start=1)
    ]


@pytest.mark.parametrize("rows_per_group", [1, 20, 10**6])
def test_the_table_of_tokens_is_in_file_order_whatever_the_order_of_writing(tmp_path, monkeypatch, rows_per_group):
    monkeypatch.setattr(token_table, "ROWS_PER_GROUP", rows_per_group)
    samples = ragged_samples([9, 30, 4, 17, 2, 25])
    statistics = [np.random.default_rng(s.line).random((s.num_targets, 4), np.float32).round(1) for s in samples]
    path = tmp_path / "t.parquet"
    writer = TokenTableWriter(path, samples, "owner")
    for index in (1, 5, 3, 0, 2, 4):
        writer.write(index, statistics[index])
    assert not path.exists()
    writer.close({"engine": "e"})
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    groups = pq.ParquetFile(path).metadata
    sizes = [groups.row_group(number).num_rows for number in range(groups.num_row_groups)]
    assert len(sizes) == {1: 6, 20: 2, 10**6: 1}[rows_per_group]
    table = pq.read_table(path)
    assert table.column("line").to_pylist() == [s.line for s in samples for _ in range(s.num_targets)]
    assert table.column("position").to_pylist() == [int(t) for s in samples for t in np.flatnonzero(s.target_mask)]
    assert table.column("token_id").to_pylist() == [int(i) for s in samples for i in s.input_ids[s.target_mask]]
    flat = np.concatenate(statistics)
    for column, name in enumerate(("entropy", "nll", "logsumexp")):
        assert np.array_equal(table.column(name).to_numpy(), flat[:, column])
    assert table.column("top1").to_pylist() == (flat[:, 3] == 1.0).tolist()


def test_an_unfinished_table_of_tokens_does_not_exist(tmp_path):
    samples = ragged_samples([9, 30])
    writer = TokenTableWriter(tmp_path / "t.parquet", samples, "owner")
    writer.write(0, np.zeros((samples[0].num_targets, 4), np.float32))
    with pytest.raises(AssertionError, match="1 samples have no states"):
        writer.close({})
    assert not (tmp_path / "t.parquet").exists()


class SlowAndFast:
    """Two engines behind one scorer: whichever is free takes the next call; one needs ten times as long."""

    calls_at_once = 2

    def __init__(self):
        self._free = queue.SimpleQueue()
        for seconds in (0.02, 0.002):
            self._free.put(seconds)
        self.under_way, self.most, self.calls = 0, 0, {0.02: 0, 0.002: 0}

    def score(self, sequences, starts):
        seconds = self._free.get()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        time.sleep(seconds)
        self.calls[seconds] += 1
        self.under_way -= 1
        self._free.put(seconds)
        return [np.full((len(ids) - start, 4), ids[0]) for ids, start in zip(sequences, starts, strict=True)]

    def provenance(self):
        return {"engine": "two"}


def test_a_slow_engine_holds_nobody_up_and_every_sample_gets_its_own_answer():
    lengths = np.random.default_rng(0).integers(2, 30, 300)
    samples = [
        TokenizedSample(
            line=n + 1, input_ids=np.full(length, n, dtype=np.int32), target_mask=np.arange(length) >= length // 2
        )
        for n, length in enumerate(lengths)
    ]
    scorer, told = SlowAndFast(), []
    table = score_samples(samples, scorer, batch_tokens=64, progress=lambda *given: told.append(given), min_samples=1)
    assert table.entropy.tolist() == list(range(300))
    assert told == sorted(told) and told[-1] == (300, 300)
    assert scorer.most == 2
    assert scorer.calls[0.002] > 3 * scorer.calls[0.02]


def test_a_call_that_fails_ends_the_scoring():
    class Broken(RecordingScorer):
        calls_at_once = 3

        def score(self, sequences, starts):
            raise RuntimeError("lost")

    sample = TokenizedSample(line=1, input_ids=np.zeros(9, dtype=np.int32), target_mask=np.arange(9) > 0)
    with pytest.raises(RuntimeError, match="lost"):
        score_samples([sample] * 9, Broken(), batch_tokens=9, progress=lambda *given: None, min_samples=1)
