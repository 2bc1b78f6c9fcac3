"""What a replica of an engine does at a call: its engine is made, takes other weights, or ends with the replica."""

import asyncio
import os
import types
import warnings
from pathlib import Path

import pytest

from wmss.errors import ModelError, ScoringError
from wmss.scoring.interfaces import EngineDiedError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Ray Serve's own import
    from services.engines import replicas
    from services.engines.replicas import EngineReplica, NamedWeights, ServeEngine

FIRST, OTHER = NamedWeights(Path("first"), "1"), NamedWeights(Path("other"), "2")


class Ended(BaseException):
    """In place of the end of the process."""


class FakeEngine:
    def __init__(self, weights):
        self.weights, self.loads, self.fails = None, [], None
        self.load(weights)

    def load(self, weights, *, expected=None):
        self.loads.append((weights, expected))
        if expected == "wrong":
            raise ModelError("weights: not those")
        if self.weights == weights:
            return False
        if self.fails is not None:
            raise self.fails
        self.weights = weights
        return True

    def provenance(self):
        return {"weights": self.weights}

    def check_alive(self):
        raise EngineDiedError("gone")


@pytest.fixture
def made():
    return []


@pytest.fixture
def replica(made, monkeypatch):
    def end(code):
        raise Ended(code)

    def make(weights):
        made.append(FakeEngine(weights))
        return made[-1]

    monkeypatch.setattr(os, "_exit", end)
    return EngineReplica(make)


def have(replica, named):
    return asyncio.run(replica.load(named))


def test_the_engine_is_made_for_the_first_weights_and_takes_the_next_ones(replica, made):
    replica.check_health()
    assert [have(replica, named) for named in (OTHER, OTHER, FIRST, OTHER)] == ["started", "there", "loaded", "loaded"]
    [engine] = made
    assert engine.weights == OTHER.weights
    assert {expected for _, expected in engine.loads} == {None, "1", "2"}


def test_every_call_names_its_weights(replica):
    assert asyncio.run(replica.provenance(FIRST)) == {"weights": FIRST.weights}
    assert asyncio.run(replica.call(OTHER, lambda engine: engine.weights)) == OTHER.weights
    assert asyncio.run(replica.call(FIRST, lambda engine: engine.weights)) == FIRST.weights


def test_an_engine_that_does_not_take_weights_ends_with_its_replica(replica, made):
    """The caller asks again, and the next replica makes its engine for these weights."""
    have(replica, FIRST)
    made[0].fails = ScoringError("probe: ...")
    with pytest.raises(Ended):
        have(replica, OTHER)


def test_weights_that_no_engine_could_take_do_not_end_it(replica, made):
    have(replica, FIRST)
    made[0].fails = ModelError("weights: another shape")
    with pytest.raises(ModelError):
        have(replica, OTHER)
    assert have(replica, FIRST) == "there"


def test_what_keeps_an_engine_from_being_made_is_told_and_the_next_call_gets_another_replica(made, monkeypatch):
    def make(weights):
        raise ScoringError("self-check: ...")

    monkeypatch.setattr(os, "_exit", lambda code: (_ for _ in ()).throw(Ended(code)))
    replica = EngineReplica(make)
    with pytest.raises(ScoringError):
        have(replica, FIRST)
    with pytest.raises(Ended):
        have(replica, OTHER)


@pytest.mark.parametrize("first", [True, False])
def test_other_files_than_the_driver_saw_are_refused(replica, first):
    if not first:
        have(replica, FIRST)
    with pytest.raises(ModelError, match="not those"):
        have(replica, NamedWeights(FIRST.weights, "wrong"))


def test_a_dead_engine_ends_its_replica(replica):
    have(replica, FIRST)
    with pytest.raises(Ended):
        replica.check_health()


@pytest.mark.parametrize(
    ("answers", "told"),
    [(["there", "started", "loaded"], "started"), (["there", "loaded"], "loaded"), (["there"], "there")],
)
def test_all_replicas_of_an_engine_are_asked_to_load(monkeypatch, answers, told):
    given = iter(answers)
    asked = []
    monkeypatch.setattr(replicas, "named", lambda weights: FIRST)
    monkeypatch.setattr(replicas, "call_replica", lambda method, named: asked.append((method, named)) or next(given))
    handle = types.SimpleNamespace(load="load")
    assert ServeEngine(handle, FIRST.weights, num_replicas=len(answers)).load() == told
    assert asked == [("load", FIRST)] * len(answers)
