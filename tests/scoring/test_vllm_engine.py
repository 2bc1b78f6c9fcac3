"""When an engine loads, what it must show afterwards, and what it does after a load that failed; vLLM is not needed.

With vLLM: `test_vllm_scorer.py`, `test_vllm_sampler.py`.
"""

import os
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from wmss.errors import ModelError, ScoringError
from wmss.scoring import vllm_engine
from wmss.scoring.interfaces import Line
from wmss.scoring.self_check import check_statistics, expected_statistics
from wmss.scoring.torch_scorer import TorchEntropyScorer
from wmss.scoring.vllm_engine import VllmEngine
from wmss.scoring.weights import weights_id


class FakeLLM:
    """Has weights, and keeps what they gave once, as a prefix cache does."""

    def __init__(self, *, model, dtype, worker_extension_cls, use_tqdm_on_load):
        self.weights, self.cached, self.loads = Path(model), None, []
        self.before_load = lambda: None
        self.llm_engine = self
        self.model_config = self

    def using_transformers_backend(self):
        return False

    def collective_rpc(self, name, args):
        self.before_load()
        weights = Path(*args) if name == "load_folder" else Line(Path(args[1]), Path(args[0]), args[2])
        self.loads.append(weights)
        self.weights = weights

    def reset_prefix_cache(self):
        self.cached = None
        return True

    def score(self, sequences, starts):
        self.cached = self.cached or TorchEntropyScorer(self.weights)
        return self.cached.score(sequences, starts)


class Engine(VllmEngine):
    def __init__(self, weights):
        reference = partial(expected_statistics, max_length=64)
        super().__init__(weights, start=lambda make: make(), reference=reference, dtype="float32")

    def _check(self, reference, before, weights):
        check_statistics(self._llm, reference, dtype="float32", before=before)

    def _use_caches(self, reference):
        self._llm.score([reference.ids], [0])


@pytest.fixture
def pair(checkpoints, tmp_path):
    return [shutil.copytree(checkpoints[name], tmp_path / name) for name in ("qwen3", "qwen3_other")]


@pytest.fixture
def engine(pair, monkeypatch):
    monkeypatch.setattr(vllm_engine, "load_vllm", lambda: FakeLLM)
    monkeypatch.setattr(vllm_engine, "telling_deaths", nullcontext)
    return Engine(pair[0])


def touch(folder):
    file = folder / "model.safetensors"
    stamp = file.stat().st_mtime_ns + 1_000_000
    os.utime(file, ns=(stamp, stamp))


def test_weights_are_loaded_when_they_are_others(engine, pair):
    first, other = pair
    assert not engine.load(first)
    assert engine.load(other)
    assert not engine.load(other)
    assert engine.load(Line(first, other, 0.5))
    assert engine.load(first)
    touch(first)
    assert engine.load(first), "the files were written to"
    assert engine._llm.loads == [other, Line(first, other, 0.5), first, first]


def test_an_engine_for_a_line_begins_at_its_strong_end(engine, pair):
    made = Engine(Line(*pair, 0.5))
    assert made._llm.loads == [Line(*pair, 0.5)]
    assert not made.load(Line(*pair, 0.5))


def test_a_load_that_did_nothing_is_found_and_made_again(engine, pair, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ScoringError, match=r"^self-check: "):
        patch.setattr(FakeLLM, "collective_rpc", lambda self, name, args: None)
        engine.load(pair[1])
    assert engine.load(pair[1])
    assert engine._llm.loads == [pair[1]]


def test_after_a_failed_load_not_even_the_old_weights_are_believed(engine, pair, monkeypatch):
    """Half of them may be gone."""
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="disk"):
        patch.setattr(FakeLLM, "reset_prefix_cache", lambda self: (_ for _ in ()).throw(RuntimeError("disk")))
        engine.load(pair[1])
    assert engine.load(pair[0])


def test_a_cache_that_was_not_emptied_is_found(engine, pair, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ScoringError, match=r"^self-check: "):
        patch.setattr(FakeLLM, "reset_prefix_cache", lambda self: True)
        engine.load(pair[1])
    with monkeypatch.context() as patch, pytest.raises(ScoringError, match=r"^prefix cache: "):
        patch.setattr(FakeLLM, "reset_prefix_cache", lambda self: False)
        engine.load(pair[1])
    assert engine.load(pair[1])


def test_other_files_than_those_that_were_asked_for_are_refused(engine, pair):
    seen = weights_id(pair[1])
    assert engine.load(pair[1], expected=seen)
    touch(pair[1])
    with pytest.raises(ModelError, match="they were written to since"):
        engine.load(pair[1], expected=seen)
    with pytest.raises(ModelError, match="they were written to since"):
        engine.load(pair[0], expected=seen)


def test_files_that_change_while_they_are_loaded_are_refused(engine, pair):
    engine._llm.before_load = lambda: touch(pair[1])
    with pytest.raises(ModelError, match="they were written to since"):
        engine.load(pair[1])
    engine._llm.before_load = lambda: None
    assert engine.load(pair[1])


def test_another_architecture_is_refused_and_what_was_loaded_stays(engine, pair, checkpoints):
    with pytest.raises(ModelError, match="is a model of another shape than"):
        engine.load(checkpoints["llama"])
    assert not engine.load(pair[0])
