"""Ray Train as a driver uses it, with its trainer replaced by its outcomes: when workers start, wait, leave, fail."""

import pickle
import random
import threading
from pathlib import Path
from types import SimpleNamespace

import pyarrow.fs
import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError
from ray.train import Checkpoint, ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.checkpoint import checkpoint_manager
from ray.train.v2._internal.execution.training_report import _TrainingReport

from services.driver import handover, trainer, worker
from services.driver.trainer import FailureCount, Trainer, Workers
from services.failures import KilledForMemory, OutOfMemory, WorkersLost
from services.jobs.fence import forgotten
from services.jobs.tables import CheckpointRow
from wmss.config import Hyperparameters
from wmss.config.job import Checkpointing
from wmss.errors import ModelError, TrainingError
from wmss.training.run import ModelSource, TrainingRun

TIMEOUT_S = 20.0


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


@pytest.fixture
def ray_train(monkeypatch, tmp_path):
    """Ray Train whose workers read what to train and then do as the test says; `fits` is what they read."""
    found = SimpleNamespace(fits=[], workers=Workers(tmp_path, 1, False, 1, Checkpointing(), {}), train=None, started=0)

    class FakeTrainer:
        def __init__(self, _, *, train_loop_config, run_config, **options):
            self.file, self.name = Path(train_loop_config["run_file"]), run_config.name

        def fit(self):
            found.started += 1
            given = handover.awaited_run(self.file)
            found.fits.append((self.name, given))
            fault = None if given is None else found.train()
            return SimpleNamespace(return_value=fault, checkpoint=SimpleNamespace(path=str(tmp_path / self.name)))

    monkeypatch.setattr(trainer, "TorchTrainer", FakeTrainer)
    monkeypatch.setattr(trainer, "WATCH_S", 0.01)
    found.train = lambda: None
    return found


def raises(error):
    def fail():
        raise error

    return fail


def until(condition):
    """Wait for what a thread does."""
    event, end = threading.Event(), TIMEOUT_S / 0.01
    while not condition():
        event.wait(0.01)
        end -= 1
        assert end > 0, "not in time"


def test_a_fault_found_by_a_worker_keeps_its_kind(monkeypatch, run, tmp_path, ray_train):
    """As far as the driver, with code and field: it is the caller's to mend, whoever found it."""

    class Host:
        def __init__(self, **record):
            pass

        def close(self):
            pass

    def fail(run, host):
        raise ModelError("model: changes its logits", param="model")

    monkeypatch.setattr(worker, "RayHost", Host)
    monkeypatch.setattr(worker, "train", fail)
    handover.hand_over(run, tmp_path / "run.json")
    returned = worker.train_worker({"run_file": tmp_path / "run.json", "record": {}})
    ray_train.train = lambda: pickle.loads(pickle.dumps(returned))
    with pytest.raises(ModelError, match="changes its logits") as caught:
        Trainer(ray_train.workers).train(run, name="j-sft-1")
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
def test_workers_that_failed_say_what_was_seen(run, ray_train, error, kind, message):
    ray_train.train = raises(error)
    with pytest.raises(kind, match=message) as caught:
        Trainer(ray_train.workers).train(run, name="j-sft-1")
    assert type(caught.value) is kind
    assert ("memory" in caught.value.message) == isinstance(caught.value, OutOfMemory), "blamed only where it was seen"
    # What starts no workers Ray Train has tried often enough.
    assert len(ray_train.fits) == (1 if isinstance(error, ControllerError) else 1 + trainer.MAX_WORKER_FAILURES)


@pytest.mark.parametrize(
    ("begins_at", "newest", "too_many"),
    [
        (None, [None, None, None, None], [False, False, False, True]),
        (None, [1, 2, 3, 4, 5, 6], [False] * 6),
        (None, [1, 1, 1, 1], [False, False, False, True]),
        (7, [7, 7, 7, 7], [False, False, False, True]),
        (None, [None, None, None, 1, 1, 1, 1], [False] * 6 + [True]),
        (7, [7, 7, 7, 5], [False, False, False, True]),  # an older one is no progress: the newest was damaged
    ],
)
def test_failures_count_from_the_newest_checkpoint_on(begins_at, newest, too_many):
    count = FailureCount(3, begins_at)
    assert [count.is_too_many(step) for step in newest] == too_many


def test_a_run_outlives_any_number_of_failures_with_progress_between_them(run, ray_train, tmp_path):
    steps = iter(range(1, 8))

    def train():
        if (step := next(steps)) == 7:
            return
        folder = tmp_path / "j-sft-1" / f"step-{step:08d}"
        folder.mkdir()
        (folder / "digests_rank0.json").write_text('{"digests_rank0.json": ""}')
        raise WorkerGroupError("gone", {0: GONE})

    ray_train.train = train
    assert Trainer(ray_train.workers).train(run, name="j-sft-1") == tmp_path / "j-sft-1"
    assert ray_train.fits == [("j-sft-1", run)] * 7


def test_half_of_a_checkpoint_is_no_progress(run, ray_train, tmp_path):
    steps = iter(range(1, 8))

    def train():
        (tmp_path / "j-sft-1" / f"step-{next(steps):08d}").mkdir()
        raise WorkerGroupError("gone", {0: GONE})

    ray_train.train = train
    with pytest.raises(WorkersLost):
        Trainer(ray_train.workers).train(run, name="j-sft-1")
    assert len(ray_train.fits) == 4


def test_workers_wait_for_the_run_that_they_were_started_for(run, ray_train, tmp_path):
    group = Trainer(ray_train.workers)
    for _ in range(2):
        group.prepare("j-sft-1")
    until(lambda: ray_train.started == 1)
    assert group.waits and ray_train.fits == []
    assert group.train(run, name="j-sft-1") == tmp_path / "j-sft-1"
    assert (ray_train.fits, ray_train.started, group.waits) == ([("j-sft-1", run)], 1, False)
    assert list((tmp_path / "j-sft-1").iterdir()) == [], "nothing is left of how they were told"


def test_workers_that_waited_and_failed_are_started_again(run, ray_train):
    group = Trainer(ray_train.workers)
    outcomes = iter([raises(WorkerGroupError("gone", {0: GONE})), lambda: None])
    ray_train.train = lambda: next(outcomes)()
    group.prepare("j-sft-1")
    group.train(run, name="j-sft-1")
    assert ray_train.fits == [("j-sft-1", run)] * 2


def test_workers_leave_if_another_run_comes(run, ray_train):
    group = Trainer(ray_train.workers)
    group.prepare("j-train-1")
    group.prepare("j-train-2")
    group.train(run, name="j-train-2")
    until(lambda: len(ray_train.fits) == 2)
    assert sorted(ray_train.fits, key=str) == [("j-train-1", None), ("j-train-2", run)]


def test_workers_are_started_and_wait_only_while_there_is_room(run, ray_train):
    room = []
    group = Trainer(ray_train.workers, is_room=lambda: bool(room))
    group.prepare("j-sft-1")
    assert not group.waits and ray_train.started == 0
    room.append(True)
    group.prepare("j-sft-1")
    assert group.waits
    room.clear()
    until(lambda: ray_train.fits == [("j-sft-1", None)])
    assert not group.waits
    group.train(run, name="j-sft-1")
    assert ray_train.fits == [("j-sft-1", None), ("j-sft-1", run)], "when those had left, and not beside them"


def test_workers_that_died_waiting_do_not_count(run, ray_train, monkeypatch):
    def die(self):
        raise WorkerGroupError("gone", {0: GONE})

    with monkeypatch.context() as patched:
        patched.setattr(trainer.TorchTrainer, "fit", die)
        group = Trainer(ray_train.workers)
        group.prepare("j-sft-1")
        until(lambda: not group.waits)
    group.train(run, name="j-sft-1")
    assert ray_train.fits == [("j-sft-1", run)]


def test_half_of_what_is_handed_over_is_not_taken_for_it(run, tmp_path):
    file = tmp_path / "run.json"
    whole = run.model_dump_json()
    file.write_text(whole)
    found = []
    thread = threading.Thread(target=lambda: found.append(handover.awaited_run(file)))
    thread.start()
    thread.join(0.3)
    assert not found
    handover.hand_over(run, file)
    thread.join(TIMEOUT_S)
    assert found == [run]


@pytest.mark.parametrize("keep_last", [1, 3])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_database_forgets_what_ray_train_deletes(monkeypatch, keep, keep_last):
    """Ray's own manager of checkpoints, without its storage."""
    deleted = []
    monkeypatch.setattr(checkpoint_manager, "delete_fs_path", lambda fs, fs_path: deleted.append(fs_path))
    for name in ("_maybe_load_state_from_storage", "_write_state_to_storage", "_notify"):
        monkeypatch.setattr(checkpoint_manager.CheckpointManager, name, lambda self: None)
    checkpointing = Checkpointing(keep=keep, keep_last=keep_last)
    manager = checkpoint_manager.CheckpointManager(trainer.checkpoint_config(checkpointing), None)
    rows, draw = [], random.Random(keep_last)
    for step in range(1, 40):
        metrics = {"valid_loss": draw.choice([1.0, 1.25, 1.5, 2.0])}
        checkpoint = Checkpoint(f"/runs/{step}", filesystem=pyarrow.fs.LocalFileSystem())
        manager.register_checkpoint(_TrainingReport(checkpoint, metrics, validation=False))
        rows.insert(0, CheckpointRow(step=step, path=f"/runs/{step}", metrics=metrics))
        gone = forgotten(rows, checkpointing)
        assert sorted(deleted) == sorted(row.path for row in gone), step
        rows = [row for row in rows if row not in gone]
        deleted.clear()
    assert len(rows) in (keep_last, keep_last + 1)


def test_a_resumed_run_tells_its_saturation_once():
    """The steps after the last checkpoint run again, and what they say has a key, by which the store knows it."""
    host = object.__new__(worker.RayHost)
    told = []
    host._phase, host._pending, host._flushed_at = "joint_2", [], float("inf")
    host._fence = SimpleNamespace(record_events=told.extend)
    for _ in range(2):
        host.log({"step": 12.0, "saturated_at": 12.0})
    assert {event.key for event in told} == {"joint-2-saturated"}
