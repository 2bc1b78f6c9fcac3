"""What a training worker's failure becomes, with Ray Train's trainer replaced by its outcomes."""

import pickle
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from services.driver import trainer
from services.failures import KilledForMemory, OutOfMemory, WorkersLost
from wmss.config import Hyperparameters
from wmss.errors import ModelError, TrainingError
from wmss.training.run import ModelSource, TrainingRun


@pytest.fixture
def run(tmp_path):
    return TrainingRun(
        phase="sft",
        strong=ModelSource(folder=tmp_path),
        samples=tmp_path,
        indices=(0,),
        mixing_weight=1.0,
        batch_size=1,
        num_epochs=1,
        hyperparameters=Hyperparameters(),
        seed=1,
        checkpoint_every=1,
    )


def train_with(monkeypatch, run, tmp_path, fit):
    monkeypatch.setattr(trainer, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=fit))
    return trainer.run_training(
        run, name="j-sft-1", storage=tmp_path, num_workers=1, use_gpu=False, num_threads=1, keep_last=1, record={}
    )


def test_a_fault_found_by_a_worker_keeps_its_kind(monkeypatch, run, tmp_path):
    """As far as the driver, with code and field: it is the caller's to mend, whoever found it."""

    class Host:
        def __init__(self, **record):
            pass

        def close(self):
            pass

    def fail(run, host):
        raise ModelError("model: changes its logits", param="model")

    monkeypatch.setattr(trainer, "RayHost", Host)
    monkeypatch.setattr(trainer, "train", fail)
    returned = trainer.train_worker({"run": run.model_dump(mode="json"), "record": {}})
    result = SimpleNamespace(return_value=pickle.loads(pickle.dumps(returned)))
    with pytest.raises(ModelError, match="changes its logits") as caught:
        train_with(monkeypatch, run, tmp_path, lambda: result)
    assert (caught.value.code, caught.value.param) == ("invalid_model", "model")


MONITOR = OutOfMemoryError("1 worker(s) were killed due to the node running low on memory.")
GONE = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (WorkerGroupError("ValueError: odd\n", {0: ValueError("odd")}), TrainingError, "3 times: ValueError: odd; see"),
        (WorkerGroupError("gone", {0: GONE}), WorkersLost, "failed more than 3 times: gone; see their logs"),
        (WorkerGroupError("gone", {0: GONE, 1: ValueError("odd")}), TrainingError, "3 times: gone"),
        (ControllerError(ActorDiedError()), WorkersLost, "failed more than 3 times"),
        (WorkerGroupError(str(MONITOR), {0: MONITOR}), KilledForMemory, "ran out of memory .*lower micro_batch_tokens"),
        (WorkerGroupError("CUDA out of memory", {0: RuntimeError()}), OutOfMemory, "lower micro_batch_tokens"),
    ],
    ids=["raised", "gone", "both", "controller", "monitor", "cuda"],
)
def test_workers_that_failed_say_what_was_seen(monkeypatch, run, tmp_path, error, kind, message):
    def fit():
        raise error

    with pytest.raises(kind, match=message) as caught:
        train_with(monkeypatch, run, tmp_path, fit)
    assert type(caught.value) is kind
    assert ("memory" in caught.value.message) == isinstance(caught.value, OutOfMemory), "blamed only where it was seen"


def test_a_resumed_run_tells_its_saturation_once():
    """The steps after the last checkpoint run again, and what they say has a key, by which the store knows it."""
    host = object.__new__(trainer.RayHost)
    told = []
    host._phase, host._pending, host._flushed_at = "joint_2", [], float("inf")
    host._fence = SimpleNamespace(record_events=told.extend)
    for _ in range(2):
        host.log({"step": 12.0, "saturated_at": 12.0})
    assert {event.key for event in told} == {"joint-2-saturated"}
