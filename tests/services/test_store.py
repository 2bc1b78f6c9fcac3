"""The job database: schema and migrations agree, claims and fences hold under races, pages are stable."""

import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, event
from sqlalchemy.exc import DBAPIError, IntegrityError

from services.chat.chat_store import ChatStore
from services.control.supervisor import free_port
from services.engines.engine_store import Engine, EngineStore
from services.jobs.fence import Fence, LostLeaseError, NewEvent
from services.jobs.kinds import Kind
from services.jobs.states import State
from services.jobs.store import KeyTakenError, Store, UnknownCheckpointError, UnknownCursorError, UnknownFileError
from services.jobs.tables import Base
from services.settings import Settings
from wmss.config.job import Checkpointing


@pytest.fixture
def store(job_store):
    return job_store


def add_job(store, name="a", metadata=None):
    spec = {"model": "m", "metadata": metadata}
    return store.create_job(
        f"ftjob-{name}", spec=spec, paths={}, fine_tuned_model=f"ft:m::ftjob-{name}", request_digest=name
    )


def start(store, name="a"):
    job = store.job(f"ftjob-{name}") or add_job(store, name)
    attempt = store.claim(job, message="Starting")
    return Fence(store, job.id, attempt, lease_s=30)


def messages(store, job_id="ftjob-a"):
    return [event.message for event in store.events(job_id, after=None, limit=100)[0]][::-1]


def test_only_one_of_many_creates_with_one_key_makes_a_job(store):
    made = []
    barrier = threading.Barrier(8)

    def create(number):
        barrier.wait()
        try:
            store.create_job(
                f"j{number}", spec={}, paths={}, fine_tuned_model=f"m{number}", request_digest="d", request_key="k"
            )
            made.append(number)
        except KeyTakenError:
            return

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert store.job_of_key("k").id == f"j{made[0]}"


def test_migrations_make_the_schema_of_the_tables(database_url):
    store = Store(database_url)
    store.migrate()
    store.migrate()  # a second start finds nothing to do
    store.close()
    engine = create_engine(database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


OLD_JOB = (
    "INSERT INTO jobs (id, created_at, state, spec, paths, fine_tuned_model, request_digest, attempt, lost_drivers)"
    " VALUES ('ftjob-a', 1, 'running', '{}', '{}', 'ft:m::ftjob-a', 'd', 3, 0)"
)
"""A job as releases before entropy scores wrote it."""


def test_a_database_of_the_first_release_keeps_its_jobs(database_url):
    store = Store(database_url)
    store.migrate("0001")
    with store._engine.begin() as connection:
        connection.exec_driver_sql(OLD_JOB)
        connection.exec_driver_sql("INSERT INTO engines (app, job_id) VALUES ('scorer-1', 'ftjob-a')")
    store.migrate()
    assert store.job("ftjob-a").fine_tuned_model == "ft:m::ftjob-a"
    assert EngineStore(store).abandoned(idle_s=1e9) == ["scorer-1"]
    assert ChatStore(store).want("m", "/m")
    assert store.weak_checkpoints(after=None, limit=1) == ([], False)
    store.close()


def test_a_database_of_before_entropy_scores_keeps_its_jobs_and_what_refers_to_them(database_url):
    store = Store(database_url)
    store.migrate("0002")
    happened = "INSERT INTO events (job_id, created_at, level, type, message) VALUES ('ftjob-a', 1, 'info', 'm', 'one')"
    with store._engine.begin() as connection:
        for statement in (OLD_JOB, happened):
            connection.exec_driver_sql(statement)
    store.migrate()
    job = store.job("ftjob-a")
    assert (job.kind, job.fine_tuned_model, job.attempt) == (Kind.FINE_TUNING, "ft:m::ftjob-a", 3)
    assert messages(store) == ["one"]
    Fence(store, "ftjob-a", 3, lease_s=30).record_events([NewEvent("two")])
    with pytest.raises(IntegrityError), store._engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM jobs")  # references are watched again
    scores = store.create_job(
        "score-a", kind=Kind.ENTROPY_SCORES, spec={}, paths={}, fine_tuned_model=None, request_digest="e"
    )
    listed = {kind: [row.id for row in store.jobs(after=None, limit=9, metadata={}, kind=kind)[0]] for kind in Kind}
    assert listed == {Kind.FINE_TUNING: ["ftjob-a"], Kind.ENTROPY_SCORES: [scores.id]}
    with pytest.raises(UnknownCursorError):
        store.jobs(after=scores.id, limit=9, metadata={})
    store.close()


def test_only_one_of_many_claimers_gets_a_job(store):
    job = add_job(store)
    won = []
    barrier = threading.Barrier(8)

    def claim():
        barrier.wait()
        won.append(store.claim(job, message="Starting"))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(attempt for attempt in won if attempt is not None) == [1]
    assert messages(store).count("Starting") == 1


def test_a_fenced_driver_can_change_nothing(store):
    old = start(store)
    old.record_events([NewEvent("from the first")])
    new = Fence(store, "ftjob-a", store.claim(store.job("ftjob-a"), message="Again"), lease_s=30)
    writes = [
        old.renew,
        lambda: old.record_events([NewEvent("from a zombie")]),
        lambda: old.start_phase("sft"),
        lambda: old.finish_phase("sft", {}),
        lambda: old.progress("sft", 1, 2),
        lambda: EngineStore(store).take(
            Engine("app", "key", "weights", "a", num_replicas=1, num_cpus=1, use_gpu=False), old, places=1
        ),
        lambda: old.end(State.SUCCEEDED, error=None, message="done", trained_tokens=1),
        lambda: old.record_checkpoint(
            phase="sft", step=1, path="p", model_name="n", metrics={}, checkpointing=Checkpointing(keep_last=1)
        ),
    ]
    for write in writes:
        with pytest.raises(LostLeaseError):
            write()
    new.record_events([NewEvent("from the second")])
    assert store.job("ftjob-a").state == State.RUNNING
    assert messages(store)[1:] == ["Starting", "from the first", "Again", "from the second"]
    assert store.phases("ftjob-a") == []


def test_a_cancelled_job_fences_its_driver(store):
    fence = start(store)
    assert store.request_cancel("ftjob-a") is State.RUNNING
    with pytest.raises(LostLeaseError):
        fence.end(State.SUCCEEDED, error=None, message="done", trained_tokens=1)
    assert store.end_job(store.job("ftjob-a"), State.CANCELLED, error=None, message="Cancelled")
    assert store.job("ftjob-a").state == State.CANCELLED
    assert store.request_cancel("ftjob-a") is State.CANCELLED


def test_a_queued_job_is_cancelled_at_once(store):
    add_job(store)
    assert store.request_cancel("ftjob-a") is State.QUEUED
    job = store.job("ftjob-a")
    assert (job.state, job.finished_at is not None) == (State.CANCELLED, True)
    assert store.claim(job, message="no") is None
    assert store.active_jobs() == []


def test_job_changed_meanwhile_is_not_ended(store):
    start(store)
    stale = store.job("ftjob-a")
    store.claim(stale, message="Again")
    assert not store.end_job(stale, State.FAILED, error={}, message="late")
    assert store.job("ftjob-a").state == State.RUNNING


def test_phases_keep_their_artifacts_and_progress(store):
    fence = start(store)
    fence.start_phase("sft")
    fence.progress("sft", 3, 10)
    [phase] = store.phases("ftjob-a")
    assert (phase.done, phase.total, phase.artifacts) == (3, 10, None)
    fence.finish_phase("sft", {"num_steps": 10})
    [phase] = store.phases("ftjob-a")
    assert (phase.done, phase.total, phase.artifacts) == (10, 10, {"num_steps": 10})


def test_a_repeated_metric_of_a_resumed_run_is_the_same_event(store):
    fence = start(store)
    for loss in (1.0, 1.0):
        fence.record_events([NewEvent("step 1", type="metrics", data={"loss": loss}, key="sft-1-1")])
    fence.record_events([NewEvent("no key"), NewEvent("no key")])
    assert messages(store)[2:] == ["step 1", "no key", "no key"]


def test_events_page_newest_first(store):
    fence = start(store)
    fence.record_events([NewEvent(str(i)) for i in range(5)])
    first, more = store.events("ftjob-a", after=None, limit=3)
    assert ([event.message for event in first], more) == (["4", "3", "2"], True)
    rest, more = store.events("ftjob-a", after=f"ftevent-{first[-1].number}", limit=10)
    assert ([event.message for event in rest], more) == (["1", "0", "Starting", rest[-1].message], False)
    for cursor in (
        "ftevent-0",
        f"ftevent-{first[0].number + 1}",
        "ftevent-x",
        "12",
        "ftevent-",
        "ftevent-" + "9" * 5000,
        "ftevent-٣",
    ):
        with pytest.raises(UnknownCursorError):
            store.events("ftjob-a", after=cursor, limit=3)


def test_jobs_page_and_filter(store):
    for name in "abc":
        add_job(store, name, metadata={"team": "x" if name != "b" else "y", "odd key.$'": name})
    add_job(store, "d")
    ids = lambda rows: [row.id[-1] for row in rows]  # noqa: E731
    rows, more = store.jobs(after=None, limit=2, metadata={})
    assert (ids(rows), more) == (["d", "c"], True)
    rows, more = store.jobs(after="ftjob-c", limit=2, metadata={})
    assert (ids(rows), more) == (["b", "a"], False)
    assert ids(store.jobs(after=None, limit=9, metadata={"team": "x"})[0]) == ["c", "a"]
    assert ids(store.jobs(after=None, limit=9, metadata={"team": "x", "odd key.$'": "a"})[0]) == ["a"]
    assert store.jobs(after=None, limit=9, metadata={"nobody": "x"})[0] == []
    with pytest.raises(UnknownCursorError):
        store.jobs(after="ftjob-z", limit=2, metadata={})


def test_checkpoints_follow_retention(store):
    fence = start(store)
    for step in (4, 8, 12, 12):
        fence.record_checkpoint(
            phase="sft",
            step=step,
            path=f"/p/{step}",
            model_name=f"n-{step}",
            metrics={"train_loss": 1.0},
            checkpointing=Checkpointing(keep_last=2),
        )
    fence.record_checkpoint(
        phase="joint", step=1, path="/p/j", model_name="j", metrics={}, checkpointing=Checkpointing(keep_last=2)
    )
    rows, _ = store.checkpoints("ftjob-a", after=None, limit=10)
    assert [(row.phase, row.step) for row in rows] == [("joint", 1), ("sft", 12), ("sft", 8)]
    assert store.checkpoint_of_model("n-12").path == "/p/12"
    assert store.checkpoint_of_model("n-4") is None


def test_the_best_checkpoints_and_the_newest_stay(store):
    fence, kept = start(store), []
    for step, loss in enumerate((3.0, 1.0, 2.0, 1.0, 4.0, 5.0), start=1):
        fence.record_checkpoint(
            phase="sft",
            step=step,
            path=f"/p/{step}",
            model_name=f"n-{step}",
            metrics={"valid_loss": loss},
            checkpointing=Checkpointing(keep_last=2, keep="best"),
        )
        rows, _ = store.checkpoints("ftjob-a", after=None, limit=10)
        kept.append({row.step for row in rows})
    assert kept == [{1}, {1, 2}, {2, 3}, {2, 4}, {2, 4, 5}, {2, 4, 6}]


def test_trained_tokens_count_each_step_once(store):
    fence = start(store)
    for step in (1, 2, 2):
        event = NewEvent("step", type="metrics", data={"num_tokens": 10.0}, key=f"sft-1-{step}")
        fence.record_events([event])
    assert store.trained_tokens("ftjob-a") == 20


def test_a_migration_cut_short_starts_again(database_url, monkeypatch):
    """SIGKILL in the middle of the first start, as a crash between two CREATE TABLE statements."""
    from alembic import op

    create, created = op.create_table, []

    def dying_create(name, *columns, **options):
        if len(created) == 3:
            raise KeyboardInterrupt
        created.append(name)
        return create(name, *columns, **options)

    monkeypatch.setattr(op, "create_table", dying_create)
    store = Store(database_url)
    with pytest.raises(KeyboardInterrupt):
        store.migrate()
    monkeypatch.undo()
    store.migrate()
    add_job(store)
    store.close()


def test_processes_that_start_at_once_make_one_schema(postgres):
    """Each waits for the one that migrates; on SQLite the home's lock admits one service."""
    code = "import sys; from services.jobs.store import Store; input(); Store(sys.argv[1]).migrate()"
    with postgres.database() as url:
        starting = [
            subprocess.Popen(
                [sys.executable, "-c", code, url], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(3)
        ]
        time.sleep(2)  # all have imported, and none has begun
        for process in starting:
            process.stdin.write("\n")
            process.stdin.flush()
        errors = [process.communicate(timeout=60)[1] for process in starting]
        assert [process.returncode for process in starting] == [0, 0, 0], errors
        store = Store(url)
        add_job(store)
        store.close()


def register(store, name="m", weights="w"):
    content = {"weights_digest": weights, "tokenizer_digest": "t", "content_key": f"{name}-{weights}-t"}
    sizes = {"architecture": "A", "num_parameters": 2**40, "vocab_size": 9}
    return store.add_weak_checkpoint(
        name=name, path=f"/{name}", revision=None, files={"f": [1, 2**61]}, labels=None, **content, **sizes
    )


def create_slowly(store, meanwhile, **values):
    """What `meanwhile` returns when it is called between the insert of a job and the end of its transaction, and
    whether the job came to be."""
    inserted, outcome = threading.Event(), []

    def hold(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO events"):
            inserted.set()
            time.sleep(0.5)

    event.listen(store._engine, "before_cursor_execute", hold)

    def create():
        try:
            store.create_job("ftjob-a", **values, fine_tuned_model="m", request_digest="d")
            outcome.append("created")
        except (UnknownFileError, UnknownCheckpointError):
            outcome.append("refused")

    creating = threading.Thread(target=create)
    creating.start()
    assert inserted.wait(10)
    answer = meanwhile()
    creating.join()
    return answer, *outcome


def test_a_file_is_never_deleted_under_a_job_that_is_being_created(store):
    """Whichever comes first, the other sees it."""
    store.add_file("file-1", filename="f", purpose="fine-tune", size=1, sha256="x")
    delete = partial(store.delete_file, "file-1")
    assert create_slowly(store, delete, spec={"training_file": "file-1"}, paths={}) == (["ftjob-a"], "created")
    assert store.file("file-1") is not None
    store.request_cancel("ftjob-a")
    assert delete() == []
    assert store.file("file-1") is None


def test_a_registered_checkpoint_is_never_forgotten_under_a_job_that_is_being_created(store):
    checkpoint = register(store).id
    delete = partial(store.delete_weak_checkpoint, checkpoint)
    paths = {"registered": {"method.wmss.weak_model": {"id": checkpoint, "weights": "w", "tokenizer": "t"}}}
    assert create_slowly(store, delete, spec={}, paths=paths) == (["ftjob-a"], "created")
    assert store.weak_checkpoint(checkpoint) is not None
    store.request_cancel("ftjob-a")
    assert delete() == []
    assert store.weak_checkpoint(checkpoint) is None


def test_one_of_many_registrations_of_the_same_content_makes_a_row(store):
    barrier, ids = threading.Barrier(8), []

    def add():
        barrier.wait()
        ids.append(register(store).id)

    threads = [threading.Thread(target=add) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 8 and len(set(ids)) == 1
    assert register(store, weights="other").id not in ids
    [newest, oldest] = store.weak_checkpoints(after=None, limit=9)[0]
    assert (oldest.id, oldest.num_parameters, oldest.files) == (ids[0], 2**40, {"f": [1, 2**61]})
    assert newest.weights_digest == "other"
    assert (store.is_registered(Path("/m")), store.is_registered(Path("/n"))) == (True, False)


def test_a_nul_is_kept_out_of_the_database(store):
    """PostgreSQL holds none: what a caller names is not found, what the service says is said without it."""
    assert store.file("file-\0") is None
    assert store.job_of_model("ft:\0") is None
    fence = start(store)
    fence.record_events([NewEvent("line 3: 'a\0b'", data={"text": "a\0b"})])
    fence.end(State.FAILED, error={"message": "a\0b"}, message="a\0b", trained_tokens=None)
    assert messages(store)[-2:] == ["line 3: 'a\ufffdb'", "a\ufffdb"]
    assert store.job("ftjob-a").error == {"message": "a\0b"}
    assert [job.id for job in store.jobs(after=None, limit=1, metadata={})[0]] == ["ftjob-a"]


def test_a_database_that_comes_back_is_found_again(postgres):
    """What waits for it goes on by itself; what does not, fails at once and works afterwards."""
    with postgres.database() as url:
        waiting, impatient = Store(url, patience_s=30), Store(url)
        waiting.migrate()
        fence = start(waiting)
        impatient.ping()
        postgres.stop()
        try:
            with pytest.raises(DBAPIError, match=r"refused|closed the connection"):
                impatient.ping()
            writing = threading.Thread(target=fence.record_events, args=([NewEvent("written while it was away")],))
            writing.start()
            time.sleep(0.5)
        finally:
            postgres.start()
        writing.join(30)
        assert messages(impatient)[-1] == "written while it was away"
        waiting.close()
        impatient.close()


def test_a_database_that_stays_away_is_not_waited_for_forever():
    store = Store(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/none", patience_s=0.5)
    started = time.monotonic()
    with pytest.raises(DBAPIError, match=r"refused|closed the connection"):
        store.ping()
    assert 0.5 <= time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["plain", "with space", "a?b", "a%20b", "ü"])
def test_the_database_lies_in_the_home_whatever_its_name(tmp_path, name):
    home = tmp_path / name
    home.mkdir()
    store = Store(Settings(home=home).database)
    store.migrate()
    store.close()
    assert (home / "wmss.db").is_file()
