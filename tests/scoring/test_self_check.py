"""The self-check lets right figures pass, and stops every wrong plugin that we could think of; no engine is needed."""

import json
import shutil

import numpy as np
import pytest

from tests.checkpoints import make_checkpoint
from wmss.errors import ScoringError
from wmss.scoring.self_check import EXACT, ROUNDED, check_statistics, expected_statistics
from wmss.scoring.torch_scorer import TorchEntropyScorer

DTYPES = [*EXACT, *ROUNDED]


class Changed:
    """A scorer whose answers go through `change(rows, ids, start)`."""

    def __init__(self, scorer, change):
        self._scorer, self._change = scorer, change

    def score(self, sequences, starts):
        answers = self._scorer.score(sequences, starts)
        return [
            self._change(rows.copy(), ids, start) for rows, ids, start in zip(answers, sequences, starts, strict=True)
        ]


def shift_labels(rows, ids, start):
    """NLL of the token at the position itself: log-probabilities stay, labels are one too early."""
    rows[1:, 1] = rows[:-1, 1]
    return rows


def swap(rows, ids, start):
    return rows[:, [1, 0, 2, 3]]


def forget_the_maximum(rows, ids, start):
    """logsumexp without the maximum that was taken out of the logits."""
    rows[:, 2] = rows[:, 0]
    return rows


def ignore_the_start(rows, ids, start):
    return np.concatenate([np.zeros((start, rows.shape[1]), dtype=np.float32), rows])


def begin_a_position_late(rows, ids, start):
    return np.concatenate([rows[1:], rows[-1:]]) if start else rows


def label_the_last_position(rows, ids, start):
    rows[-1, 1] = 3.0
    return rows


def lose_a_row(rows, ids, start):
    rows[4] = np.nan
    return rows


def halve_entropies(rows, ids, start):
    """Bits taken for nats, a mean over the wrong axis: a factor."""
    rows[:, 0] *= 0.69
    return rows


CHANGES = [
    shift_labels,
    swap,
    forget_the_maximum,
    ignore_the_start,
    begin_a_position_late,
    label_the_last_position,
    lose_a_row,
    halve_entropies,
]


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    # Sharp enough for the cap and the scale to matter.
    scales = {"qwen3": 6.0, "gemma3": 20.0, "granite": 20.0}
    return {name: make_checkpoint(folder / name, name, seed=1, scale=scale) for name, scale in scales.items()}


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "granite"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_right_figures_pass(families, family, dtype):
    expected = expected_statistics(families[family], max_length=256)
    check_statistics(TorchEntropyScorer(families[family]), expected, dtype=dtype)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("dtype", DTYPES)
def test_wrong_figures_are_stopped(families, change, dtype):
    expected = expected_statistics(families["qwen3"], max_length=256)
    with pytest.raises(ScoringError, match=r"^self-check: .*report this one's architecture"):
        check_statistics(Changed(TorchEntropyScorer(families["qwen3"]), change), expected, dtype=dtype)


@pytest.mark.parametrize(
    ("family", "field", "without"), [("gemma3", "final_logit_softcapping", None), ("granite", "logits_scaling", 1.0)]
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_without_the_cap_or_the_scale_is_stopped(families, tmp_path, family, field, without, dtype):
    copy = shutil.copytree(families[family], tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {field: without}))
    expected = expected_statistics(families[family], max_length=256)
    with pytest.raises(ScoringError, match=r"at position \d+ should be \d+\.\d+, the engine says"):
        check_statistics(TorchEntropyScorer(copy), expected, dtype=dtype)


def test_a_small_error_is_stopped_in_float32(families):
    def off(rows, ids, start):
        rows[6 % len(rows), 0] += 2e-3
        return rows

    expected = expected_statistics(families["qwen3"], max_length=256)
    with pytest.raises(ScoringError, match="entropy at position 6 should be"):
        check_statistics(Changed(TorchEntropyScorer(families["qwen3"]), off), expected, dtype="float32")


def test_sequence_fits_short_contexts_and_the_vocabulary(families):
    expected = expected_statistics(families["qwen3"], max_length=5)
    assert len(expected.ids) == len(expected.statistics) == 5
    assert len(set(expected.ids)) == 5
    assert all(0 <= token < 277 for token in expected.ids)
    check_statistics(TorchEntropyScorer(families["qwen3"]), expected, dtype="float32")


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_weights_before_are_known_where_rounding_would_hide_them(families, dtype):
    """An update may move figures by less than what is allowed; weights that hardly differ are no reason to think so."""
    allowed = (EXACT | ROUNDED)[dtype]
    scorer = TorchEntropyScorer(families["qwen3"])
    expected = expected_statistics(families["qwen3"], max_length=256)
    moved = expected._replace(statistics=expected.statistics + np.float32(allowed / 2))
    with pytest.raises(ScoringError, match="the engine has kept the weights before these"):
        check_statistics(scorer, moved, dtype=dtype, before=expected)
    check_statistics(scorer, moved, dtype=dtype)
    check_statistics(scorer, expected, dtype=dtype, before=moved)
    check_statistics(scorer, moved, dtype=dtype, before=moved)
