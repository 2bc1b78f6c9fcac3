"""A database of the release before: it migrates, is answered from as before, and its running jobs go on."""

import json
import sqlite3

import pytest
from fastapi.testclient import TestClient

from services.api.app import create_app
from services.control.reconcile import Reconciler
from services.driver.journal import DatabaseJournal
from services.driver.resolve import resolve, resolve_scores
from services.jobs.fence import Fence, LostLeaseError
from services.jobs.kinds import Kind
from services.jobs.states import State
from services.jobs.store import Store
from services.jobs.tables import PhaseRow
from services.settings import Settings
from tests.release_before import DATABASE, answers
from tests.services.scripted_ray import QuietRay, ScriptedDrivers, put_in_place_of_ray

ANSWERS = answers()
RUNNING = ("ftjob-running", "ftjob-improving", "escore-running")
QUEUED = "ftjob-queued"
TEXTS = ("title", "detail", "message")
"""What a problem says to people, which may be worded better."""

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments")  # Ray Serve's, when it is imported


def restored(folder):
    """Settings of a home whose database the release before left."""
    with sqlite3.connect(folder / "jobs.db") as connection:
        connection.executescript(DATABASE.read_text(encoding="utf-8"))
    connection.close()
    return Settings(home=folder, database_url=f"sqlite:///{folder}/jobs.db")


@pytest.fixture
def settings(tmp_path):
    return restored(tmp_path)


@pytest.fixture
def store(settings):
    store = Store(settings.database)
    store.migrate()
    yield store
    store.close()


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """One service for all that is only read; its reconcile loop must not change what is then compared."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        put_in_place_of_ray(monkeypatch, QuietRay())
        monkeypatch.setattr(Reconciler, "start", lambda self: None)
        monkeypatch.setattr(Reconciler, "stop", lambda self: None)
        with TestClient(create_app(restored(tmp_path_factory.mktemp("home")))) as client:
            yield client


def finished_phases(database, job_id):
    """{phase: artifacts} as the release before wrote them, read without any code of ours."""
    query = "SELECT name, artifacts FROM phases WHERE job_id = ? AND finished_at IS NOT NULL"
    with sqlite3.connect(database) as connection:
        rows = connection.execute(query, (job_id,)).fetchall()
    connection.close()
    return {name: json.loads(artifacts) for name, artifacts in rows}


def without_texts(body):
    """A problem but for its texts."""
    kept = {key: value for key, value in body.items() if key not in TEXTS}
    return kept | {"error": {key: value for key, value in body["error"].items() if key not in TEXTS}}


def without_added(body):
    """An answer without the field that requests for scores have had since: theirs is the default; and without the phase
    that jobs have had since, which those that go on will run."""
    if isinstance(body, list):
        added = {"name": "read_back", "status": "pending"}
        return [without_added(each) for each in body if not (isinstance(each, dict) and added.items() <= each.items())]
    if not isinstance(body, dict):
        return body
    if body.get("object") == "entropy_scores":
        assert body["too_long"] == "auto"
        body = {key: value for key, value in body.items() if key != "too_long"}
    return {key: without_added(value) for key, value in body.items()}


@pytest.mark.parametrize("path", sorted(ANSWERS))
def test_the_api_answers_as_the_release_before_did(api, path):
    before = ANSWERS[path]
    response = api.get(path)
    assert response.status_code == before["status"]
    if response.headers["content-type"] == "application/problem+json":
        assert without_texts(response.json()) == without_texts(json.loads(before["body"]))
    else:
        assert without_added(response.json()) == before["body"]


@pytest.mark.parametrize("job_id", [*RUNNING, QUEUED])
def test_its_jobs_are_resolved_and_their_finished_phases_read(settings, store, job_id):
    row = store.job(job_id)
    job = (resolve_scores if row.kind == Kind.ENTROPY_SCORES else resolve)(row, settings, store)
    assert (job.id, job.folder) == (job_id, settings.job_folder(job_id))
    assert job.spec.model_dump(mode="json", exclude_unset=True) == row.spec
    written = finished_phases(settings.root / "jobs.db", job_id)
    assert bool(written) == (job_id != QUEUED)
    journal = DatabaseJournal(store, Fence(store, job_id, row.attempt, lease_s=30), job_id, settings)
    assert {phase: journal.artifacts(phase) for phase in written} == written
    assert journal.artifacts("never_begun") is None


def test_its_running_jobs_are_claimed_as_the_next_attempt(settings, store):
    drivers = ScriptedDrivers()
    Reconciler(store, drivers, settings).pass_once()
    assert set(drivers.statuses) == {f"{job_id}-2" for job_id in RUNNING}
    jobs = {job.id: job for job in store.active_jobs()}
    assert {job_id: (job.state, job.attempt) for job_id, job in jobs.items()} == {
        **{job_id: (State.RUNNING, 2) for job_id in RUNNING},
        QUEUED: (State.QUEUED, 0),
    }
    with pytest.raises(LostLeaseError):
        Fence(store, "ftjob-running", 1, lease_s=30).finish_phase("joint", {})
    fence = Fence(store, "ftjob-running", 2, lease_s=30)
    fence.start_phase("joint")
    fence.finish_phase("joint", {})
    assert drivers.deleted == ["generator-abc"], "the engine that the lost driver was starting"


def test_rounds_of_an_unknown_release_are_a_conflict_that_names_the_phase(monkeypatch, settings, store):
    put_in_place_of_ray(monkeypatch, QuietRay())
    monkeypatch.setattr(Reconciler, "start", lambda self: None)
    monkeypatch.setattr(Reconciler, "stop", lambda self: None)
    with store.sessions.begin() as session:
        phase = session.get_one(PhaseRow, ("ftjob-improving", "decide"))
        phase.artifacts = phase.artifacts | {"verdict": "improving"}
    with TestClient(create_app(settings)) as client:
        problem = client.get("/v1/fine_tuning/jobs/ftjob-improving/rounds")
    assert (problem.status_code, problem.json()["error"]["code"]) == (409, "other_release")
    assert "phase decide" in problem.json()["detail"] and "verdict" in problem.json()["detail"]
