"""How many samples go to a scorer in one call."""

import queue
import time

import numpy as np
import pytest

from wmss.data.states import StateCache, StateWriter
from wmss.records import TokenizedSample
from wmss.scoring.tables import score_samples


class RecordingScorer:
    """Three hidden numbers a token behind the statistics; keeps how many tokens each call had."""

    calls_at_once = 1

    def __init__(self):
        self.calls = []

    def score(self, sequences, starts):
        self.calls.append(sum(map(len, sequences)))
        return [np.zeros((len(ids) - start, 4 + 3)) for ids, start in zip(sequences, starts, strict=True)]


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
