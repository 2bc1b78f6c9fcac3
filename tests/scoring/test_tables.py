"""How many samples go to a scorer in one call."""

import numpy as np
import pytest

from wmss.data.states import StateCache, StateWriter
from wmss.records import TokenizedSample
from wmss.scoring.tables import score_samples


class RecordingScorer:
    """Three hidden numbers a token behind the statistics; keeps how many tokens each call had."""

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
