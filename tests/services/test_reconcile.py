"""The reconcile loop against scripted drivers: every gap between database and Ray is closed the right way."""

import time

import pytest

from services.chat.chat_store import ChatStore
from services.control.ray_jobs import DriverStatus
from services.control.reconcile import Reconciler
from services.engines.engine_store import Engine, EngineStore
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.store import Store
from services.settings import Settings
from tests.services.scripted_ray import ScriptedDrivers
from wmss.ids import submission_id

SCORER, OTHER = (Engine(app, f"the {app}", num_replicas=1, use_gpu=False) for app in ("scorer-1", "scorer-2"))


@pytest.fixture
def world(tmp_path, database_url):
    settings = Settings(home=tmp_path, database_url=database_url, lease_s=5, max_attempts=3)
    store = Store(settings.database)
    store.migrate()
    drivers = ScriptedDrivers()
    yield store, drivers, Reconciler(store, drivers, settings)
    store.close()


def add_job(store, name="a"):
    return store.create_job(
        f"ftjob-{name}", spec={"resources": {}}, paths={}, fine_tuned_model=name, request_digest=name
    )


def state(store, name="a"):
    job = store.job(f"ftjob-{name}")
    return job.state, job.attempt


def test_jobs_run_one_at_a_time_in_order(world):
    store, drivers, reconciler = world
    for name in "ab":
        add_job(store, name)
    reconciler.pass_once()
    reconciler.pass_once()
    assert (state(store, "a"), state(store, "b")) == ((State.RUNNING, 1), (State.QUEUED, 0))
    Fence(store, "ftjob-a", 1, lease_s=5).end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    reconciler.pass_once()
    assert state(store, "b") == (State.RUNNING, 1)
    assert set(drivers.statuses) == {"ftjob-a-1", "ftjob-b-1"}


def test_jobs_run_together_only_where_there_is_room_for_both(tmp_path, database_url):
    settings = Settings(home=tmp_path, database_url=database_url, max_running_jobs=2)
    store, drivers = Store(settings.database), ScriptedDrivers()
    store.migrate()
    reconciler = Reconciler(store, drivers, settings)
    for name, workers in (("a", 3), ("b", 2), ("c", 1)):
        spec = {"resources": {"num_workers": workers}}
        store.create_job(f"ftjob-{name}", spec=spec, paths={}, fine_tuned_model=name, request_digest=name)
    reconciler.pass_once()
    assert set(drivers.statuses) == {"ftjob-a-1"}, "4 CPUs; and nobody overtakes"
    drivers.total = {"CPU": 5}
    reconciler.pass_once()
    assert set(drivers.statuses) == {"ftjob-a-1", "ftjob-b-1"}
    store.close()


@pytest.mark.parametrize("status", [DriverStatus.FAILED, DriverStatus.STOPPED, DriverStatus.SUCCEEDED])
def test_a_driver_that_ended_without_ending_its_job_is_followed_by_another(world, status):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    drivers.statuses["ftjob-a-1"] = status
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 2)
    assert drivers.statuses["ftjob-a-2"] == DriverStatus.RUNNING


def test_too_many_lost_drivers_fail_the_job(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in (1, 2, 3):
        drivers.statuses[submission_id("ftjob-a", attempt)] = DriverStatus.FAILED
        reconciler.pass_once()
    assert state(store) == (State.FAILED, 3)
    assert store.job("ftjob-a").error["code"] == "driver_lost"


def test_an_api_that_died_between_claim_and_submission(world):
    store, drivers, reconciler = world
    store.claim(add_job(store), message="Starting")
    reconciler.pass_once()
    reconciler.pass_once()
    assert (state(store), drivers.statuses) == ((State.RUNNING, 2), {"ftjob-a-2": DriverStatus.RUNNING})
    assert store.job("ftjob-a").lost_drivers == 0


def test_a_cluster_that_forgot_a_driver_gets_the_next_attempt(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    Fence(store, "ftjob-a", 1, lease_s=5).renew()
    drivers.statuses.clear()
    reconciler.pass_once()
    assert (state(store), set(drivers.statuses)) == ((State.RUNNING, 2), {"ftjob-a-2"})


def test_restarts_of_the_cluster_are_nobodys_fault(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in range(1, 8):
        Fence(store, "ftjob-a", attempt, lease_s=5).renew()
        drivers.statuses.clear()
        reconciler.pass_once()
    assert state(store) == (State.RUNNING, 8)


def test_a_job_that_gets_somewhere_may_lose_more_drivers(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in range(1, 7):
        fence = Fence(store, "ftjob-a", attempt, lease_s=5)
        fence.start_phase(f"phase-{attempt}")
        fence.finish_phase(f"phase-{attempt}", {})
        drivers.statuses[submission_id("ftjob-a", attempt)] = DriverStatus.FAILED
        reconciler.pass_once()
    assert state(store) == (State.RUNNING, 7)


def test_trouble_with_one_job_does_not_hold_up_the_others(world, monkeypatch):
    store, drivers, reconciler = world
    for name in "ab":
        add_job(store, name)
    monkeypatch.setattr(reconciler, "_settings", reconciler._settings.model_copy(update={"max_running_jobs": 2}))
    reconciler.pass_once()
    known = drivers.status
    drivers.status = lambda submission: 1 / 0 if "ftjob-a" in submission else known(submission)
    drivers.statuses["ftjob-b-1"] = DriverStatus.FAILED
    reconciler.pass_once()
    assert (state(store, "a"), state(store, "b")) == ((State.RUNNING, 1), (State.RUNNING, 2))


def test_a_hung_driver_is_stopped_and_followed(world, monkeypatch):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    Fence(store, "ftjob-a", 1, lease_s=5).renew()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 20)
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 1)
    monkeypatch.setattr(time, "time", lambda: now + 30)
    reconciler.pass_once()
    # Two drivers must never feed one training run: the next one waits until the first is gone.
    assert (drivers.stopped, state(store)) == (["ftjob-a-1"], (State.RUNNING, 1))
    drivers.statuses["ftjob-a-1"] = DriverStatus.STOPPED
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 2)


def test_a_driver_that_never_got_going_is_hung_too(world, monkeypatch):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 400)
    reconciler.pass_once()
    assert drivers.stopped == ["ftjob-a-1"]


def test_cancel_stops_the_driver_then_ends_the_job_and_its_engines(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    EngineStore(store).take(SCORER, Fence(store, "ftjob-a", 1, lease_s=5), places=1)
    store.request_cancel("ftjob-a")
    reconciler.pass_once()
    assert (drivers.stopped, state(store)) == (["ftjob-a-1"], (State.CANCELLING, 1))
    reconciler.pass_once()
    assert state(store) == (State.CANCELLING, 1)
    drivers.statuses["ftjob-a-1"] = DriverStatus.STOPPED
    reconciler.pass_once()
    assert state(store) == (State.CANCELLED, 1)
    reconciler.pass_once()
    assert drivers.deleted == ["scorer-1"]
    assert EngineStore(store).abandoned(idle_s=0) == []


def test_idle_engines_leave_after_a_while_or_when_chat_needs_their_place(world, monkeypatch):
    store, drivers, reconciler = world
    engines = EngineStore(store)
    add_job(store)
    reconciler.pass_once()
    fence = Fence(store, "ftjob-a", 1, lease_s=5)
    for engine in (SCORER, OTHER):
        engines.take(engine, fence, places=2)
        engines.ready(engine.app, fence)
    engines.release(SCORER.app, fence)
    drivers.total = {"CPU": 4}
    reconciler.pass_once()
    assert drivers.deleted == []
    assert ChatStore(store).want("m", "/m")
    reconciler.pass_once()
    assert drivers.deleted == []  # 1 for the job, 1 for chat, 1 for the idle engine
    drivers.total = {"CPU": 2}
    reconciler.pass_once()
    assert drivers.deleted == [SCORER.app]
    engines.release(OTHER.app, fence)
    later = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: later)
    reconciler.pass_once()
    assert drivers.deleted == [SCORER.app, OTHER.app]
    assert engines.idle() == []


def test_the_loop_survives_a_failing_ray(world, monkeypatch, caplog):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()

    def refuse(submission):
        raise ConnectionError("no Ray")

    monkeypatch.setattr(drivers, "status", refuse)
    reconciler.start()
    deadline = time.time() + 10
    while "reconciling ftjob-a failed" not in caplog.text and time.time() < deadline:
        time.sleep(0.01)
    monkeypatch.undo()
    drivers.statuses["ftjob-a-1"] = DriverStatus.FAILED
    reconciler.wake()
    while state(store) != (State.RUNNING, 2) and time.time() < deadline:
        time.sleep(0.01)
    reconciler.stop()
    assert "reconciling ftjob-a failed" in caplog.text
    assert state(store) == (State.RUNNING, 2)
