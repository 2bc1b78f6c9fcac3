"""The whole service on PostgreSQL: a job from its creation to its end, and a database that is restarted under it."""

import shutil
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import create_engine, text

from services.control.ray_temp import ray_temp_folder
from tests.integration.stack import metrics, start, stop, submit, wait_for, wait_for_end, wait_for_step
from tests.postgres import PASSWORD

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def service(postgres, tmp_path_factory, checkpoints):
    """A service of its own, its database's address and the server."""
    home = tmp_path_factory.mktemp("postgres")
    shutil.copytree(checkpoints["qwen3"], home / "models" / "qwen3")
    with postgres.database() as url:
        running = start(home, WMSS_DATABASE_URL=url)
        yield running, url
        stop(running)


def supervised(stack, files, num_steps):
    knobs = {"batch_size": 16, "n_epochs": 999, "max_steps": num_steps}
    method = {"type": "supervised", "supervised": {"hyperparameters": knobs}}
    return submit(stack, files, method=method, checkpointing={"every_steps": 10, "keep_last": 2})


def test_a_job_under_which_the_database_is_restarted(service, files, postgres):
    """Requests are refused and may be sent again; the job goes on with the same driver, and nothing is lost."""
    stack, url = service
    num_steps = 250
    job_id = supervised(stack, files, num_steps)
    wait_for_step(stack, job_id, 5)
    base = stack.endpoint.base_url
    postgres.stop()
    try:
        response = httpx2.get(f"{base}/fine_tuning/jobs/{job_id}")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
        assert int(response.headers["retry-after"]) > 0
        response = httpx2.get(base.removesuffix("/v1") + "/readyz")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "database_unavailable")
        # The driver and the worker notice too: both write several times in this while.
        wait_for(lambda: waits_for_database(stack.home), timeout_s=60, what="a driver that waits")
    finally:
        postgres.start()
    assert httpx2.get(f"{base}/fine_tuning/jobs/{job_id}").json()["status"] == "running"
    job = wait_for_end(stack, job_id)
    assert (job.status, job.x_attempt) == ("succeeded", 1), job.error
    assert [m["step"] for m in metrics(stack, job_id)] == list(range(1, num_steps + 1))
    assert [c.step_number for c in stack.client.fine_tuning.jobs.checkpoints.list(job_id)] == [250, 240]
    engine = create_engine(url)
    with engine.connect() as connection:
        states = connection.execute(text("SELECT id, state FROM jobs")).all()
    engine.dispose()
    assert states == [(job_id, "succeeded")]
    assert not (stack.home / "wmss.db").exists()


def waits_for_database(home):
    return any("the job database cannot be reached" in text for text in logs(home).values())


def test_the_databases_password_is_written_nowhere(service):
    stack, _ = service
    shown = logs(stack.home)
    assert len(shown) > 10
    assert [str(path) for path, content in shown.items() if PASSWORD in content] == []
    headers = {"Authorization": f"Bearer {Path(stack.endpoint.token_path).read_text()}"}
    for path in ("/api/jobs/", "/api/train/v2/runs/v1", "/api/serve/applications/", "/api/v0/actors?detail=true"):
        response = httpx2.get(stack.endpoint.dashboard_url + path, headers=headers, timeout=30)
        assert response.status_code == 200
        assert PASSWORD not in response.text


def logs(home):
    """Every log of the service and of its Ray (whose folder may lie outside a home with a long name)."""
    folders = [home / "logs", *ray_temp_folder(home).glob("session_*/logs")]
    files = [home / "serve.log", *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    return {path: path.read_text(errors="replace") for path in files}
