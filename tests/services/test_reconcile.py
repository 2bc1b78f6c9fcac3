"""The reconcile loop against scripted drivers: every gap between database and Ray is closed the right way."""

import time

import pytest

from services.chat.chat_store import ChatStore
from services.control import reconcile
from services.control.ray_jobs import DriverEnd, DriverStatus
from services.control.reconcile import Reconciler
from services.engines.engine_store import Engine, EngineStore
from services.jobs.attempts import LOST_EXIT_CODE, AttemptEnd
from services.jobs.fence import Fence
from services.jobs.states import State
from services.jobs.store import Store
from services.settings import Settings
from tests.services.scripted_ray import ScriptedDrivers
from wmss.config.job import Checkpointing
from wmss.ids import submission_id

SCORER, OTHER = (
    Engine(app, key=app, weights="w", label=f"the {app}", num_replicas=1, num_cpus=1, use_gpu=False)
    for app in ("scorer-1", "scorer-2")
)


@pytest.fixture
def world(tmp_path, database_url, monkeypatch):
    settings = Settings(home=tmp_path, database_url=database_url, lease_s=5, max_attempts=3)
    store = Store(settings.database)
    store.migrate()
    drivers = ScriptedDrivers()
    monkeypatch.setattr(reconcile, "ATTEMPT_GAP_S", 0.0)
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


def test_too_many_failed_attempts_fail_the_job(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in (1, 2, 3):
        drivers.statuses[submission_id("ftjob-a", attempt)] = DriverStatus.FAILED
        reconciler.pass_once()
    assert state(store) == (State.FAILED, 3)
    error = store.job("ftjob-a").error
    assert error["code"] == "driver_lost"
    assert error["message"] == (
        "3 attempts failed without progress between them (WMSS_MAX_ATTEMPTS), the last because its driver ended "
        "without a result (Job entrypoint command failed with exit code -9); see the log of ftjob-a-3 in the Ray "
        "dashboard"
    )


def messages(store):
    return [(event.message, event.data) for event in store.events("ftjob-a", after=None, limit=100)[0]]


def test_a_submission_that_ray_refuses_is_an_attempt(world):
    """Over and over it ends the job with Ray's own words."""
    store, drivers, reconciler = world
    add_job(store)
    drivers.refusal = "HTTP 500: UnicodeEncodeError: 'ascii' codec can't encode character"
    for _ in range(20):
        reconciler.pass_once()
    assert state(store) == (State.FAILED, 3)
    error = store.job("ftjob-a").error
    assert error["code"] == "submission_refused"
    assert "UnicodeEncodeError: 'ascii' codec" in error["message"]
    assert len(messages(store)) == 5  # accepted, three attempts, failed


def test_a_refusal_by_a_cluster_without_a_head_is_not_the_jobs(world):
    store, drivers, reconciler = world
    add_job(store)
    drivers.has_head = False
    reconciler.pass_once()
    assert state(store) == (State.QUEUED, 0), "no attempt is spent"
    drivers.has_head = True

    def submit(submission, job_id, attempt):
        drivers.has_head = False
        raise reconcile.SubmissionRefusedError("HTTP 500: the GCS is gone")

    played, drivers.submit = drivers.submit, submit
    reconciler.pass_once()
    assert (state(store), store.job("ftjob-a").attempt_end) == ((State.RUNNING, 1), None)
    drivers.submit, drivers.has_head = played, True
    reconciler.pass_once()
    assert (state(store), store.job("ftjob-a").failed_attempts) == ((State.RUNNING, 2), 0)


def test_attempts_at_a_job_keep_their_distance(world, monkeypatch):
    store, drivers, reconciler = world
    monkeypatch.setattr(reconcile, "ATTEMPT_GAP_S", 10.0)
    add_job(store)
    drivers.refusal = "HTTP 500"
    for _ in range(3):
        reconciler.pass_once()
    assert state(store) == (State.RUNNING, 1)
    later = time.time() + 10
    monkeypatch.setattr(time, "time", lambda: later)
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 2)


@pytest.mark.parametrize(
    "end",
    [
        DriverEnd("The actor died because its node has died", node_died=True),
        DriverEnd("Job entrypoint command failed with exit code 75", exit_code=LOST_EXIT_CODE),
    ],
    ids=["node", "exit"],
)
def test_a_driver_that_went_with_its_surroundings_does_not_count(world, end):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in range(1, 6):
        driver = submission_id("ftjob-a", attempt)
        drivers.ends[driver], drivers.statuses[driver] = end, DriverStatus.FAILED
        reconciler.pass_once()
    assert state(store) == (State.RUNNING, 6)
    assert store.job("ftjob-a").failed_attempts == 0


def test_a_driver_is_judged_once_its_head_has_outlived_it_for_a_while(world, monkeypatch):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    now = time.time()
    drivers.statuses["ftjob-a-1"] = DriverStatus.FAILED
    drivers.ends["ftjob-a-1"] = DriverEnd("exit code -15", at=now)
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 1)
    monkeypatch.setattr(time, "time", lambda: now + 6)
    drivers.has_head = False
    reconciler.pass_once()
    assert state(store) == (State.RUNNING, 1)
    drivers.statuses.clear()  # a new head has never heard of it
    drivers.has_head = True
    reconciler.pass_once()
    assert (state(store), store.job("ftjob-a").failed_attempts) == ((State.RUNNING, 2), 0)


@pytest.mark.parametrize(("counts", "failed"), [(True, 1), (False, 0)])
def test_a_driver_that_says_how_its_attempt_ended_is_believed(world, counts, failed):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    Fence(store, "ftjob-a", 1, lease_s=5).note_end(AttemptEnd("training_failed", "its workers vanished", counts=counts))
    drivers.statuses["ftjob-a-1"] = DriverStatus.FAILED
    reconciler.pass_once()
    job = store.job("ftjob-a")
    assert (state(store), job.failed_attempts, job.attempt_end) == ((State.RUNNING, 2), failed, None)
    assert "its workers vanished" in messages(store)[0][0]


def test_a_driver_without_a_lease_counts_when_it_is_stopped(world):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    drivers.statuses["ftjob-a-1"] = DriverStatus.STOPPED
    reconciler.pass_once()
    assert store.job("ftjob-a").failed_attempts == 1
    Fence(store, "ftjob-a", 2, lease_s=5).renew()
    drivers.statuses["ftjob-a-2"] = DriverStatus.STOPPED
    reconciler.pass_once()
    assert (state(store), store.job("ftjob-a").failed_attempts) == ((State.RUNNING, 3), 1)


def test_attempts_may_be_lost_for_so_many_hours(world, monkeypatch):
    """From the first one that was lost without progress since; each is told once."""
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    now = time.time()

    def lose(hours):
        monkeypatch.setattr(time, "time", lambda: now + hours * 3600)
        drivers.statuses.clear()
        reconciler.pass_once()

    for hours in (0, 30, 71):
        lose(hours)
    assert state(store) == (State.RUNNING, 4)
    [(told, count), *_] = messages(store)
    assert told.startswith("Attempt lost: Ray does not know its driver")
    assert count == {"times": 3, "last_at": int(now + 71 * 3600)}
    fence = Fence(store, "ftjob-a", 4, lease_s=5)
    fence.start_phase("sft")
    fence.finish_phase("sft", {})
    for hours in (72, 143):
        lose(hours)
    assert state(store) == (State.RUNNING, 6)
    lose(144.5)
    assert state(store) == (State.FAILED, 6)
    error = store.job("ftjob-a").error
    assert error["code"] == "attempts_lost"
    assert "attempts were lost for 72.5 hours without progress (WMSS_MAX_LOST_HOURS)" in error["message"]


def test_a_checkpoint_that_is_recorded_again_is_no_progress(world):
    """A resumed run records the one that it starts from: a job that dies there each time must not go on for ever."""
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()
    for attempt in (1, 2, 3, 4):
        Fence(store, "ftjob-a", attempt, lease_s=5).record_checkpoint(
            phase="sft", step=5, path="p", model_name="m", metrics={}, checkpointing=Checkpointing(keep_last=1)
        )
        drivers.statuses[submission_id("ftjob-a", attempt)] = DriverStatus.FAILED
        reconciler.pass_once()
        if state(store)[0] == State.FAILED:
            break
    assert state(store) == (State.FAILED, 3)


def test_an_api_that_died_between_claim_and_submission(world):
    store, drivers, reconciler = world
    store.claim(add_job(store), message="Starting")
    reconciler.pass_once()
    reconciler.pass_once()
    assert (state(store), drivers.statuses) == ((State.RUNNING, 2), {"ftjob-a-2": DriverStatus.RUNNING})
    assert store.job("ftjob-a").failed_attempts == 0


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


def test_the_loop_survives_a_failing_ray(world, caplog):
    store, drivers, reconciler = world
    add_job(store)
    reconciler.pass_once()

    def refuse(submission):
        raise ConnectionError("no Ray")

    known, drivers.status = drivers.status, refuse
    reconciler.start()
    deadline = time.time() + 10
    while "reconciling ftjob-a failed" not in caplog.text and time.time() < deadline:
        time.sleep(0.01)
    drivers.statuses["ftjob-a-1"] = DriverStatus.FAILED
    drivers.status = known
    reconciler.wake()
    while state(store) != (State.RUNNING, 2) and time.time() < deadline:
        time.sleep(0.01)
    reconciler.stop()
    assert "reconciling ftjob-a failed" in caplog.text
    assert state(store) == (State.RUNNING, 2)
