"""What a driver tells the owner of a job, who may be on another machine."""

import warnings

import pytest
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from services.jobs.attempts import LOST_EXIT_CODE, AttemptEnd
from services.jobs.fence import Fence
from services.jobs.states import State
from services.settings import Settings
from wmss.errors import ModelError


def test_a_driver_names_models_and_not_where_they_lie(job_store, tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray Serve and vLLM, when they are imported
        from services.driver import __main__ as driver

    settings = Settings(home=tmp_path, database_url=job_store.url)

    def fail(row, settings, store):
        raise ModelError(f"model: {settings.models}/mine has no config.json", param="model")

    job_store.create_job("ftjob-a", spec={}, paths={}, fine_tuned_model="ft:m::ftjob-a", request_digest="d")
    attempt = job_store.claim(job_store.job("ftjob-a"), message="Starting")
    journal = driver.DatabaseJournal(
        job_store, Fence(job_store, "ftjob-a", attempt, lease_s=30), "ftjob-a", settings=settings
    )
    journal.event(f"no room in {tmp_path}/scores", level="warn")
    monkeypatch.setattr(driver, "Settings", lambda: settings)
    monkeypatch.setattr(driver, "resolve", fail)
    monkeypatch.setattr(driver.ray, "init", lambda **options: None)
    driver.main("ftjob-a", attempt)
    reason = {"code": "invalid_model", "message": "model: mine has no config.json", "param": "model"}
    assert job_store.job("ftjob-a").error == reason
    said = [event.message for event in job_store.events("ftjob-a", after=None, limit=10)[0]]
    assert said[:2] == ["Failed: model: mine has no config.json", "no room in scores"]


@pytest.mark.parametrize(
    ("end", "noted", "code"),
    [
        (AttemptEnd("training_failed", "its workers in HOME/runs vanished", counts=True), True, 1),
        (AttemptEnd("attempts_lost", "the cluster went away", counts=False), True, LOST_EXIT_CODE),
        (AttemptEnd("attempts_lost", "the job database was away", counts=False), False, LOST_EXIT_CODE),
    ],
)
def test_an_attempt_that_ends_without_a_verdict_leaves_its_job(job_store, tmp_path, monkeypatch, end, noted, code):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from services.driver import __main__ as driver

    def fail(*arguments):
        raise RuntimeError("the cluster")

    def away(fence, end):
        raise PoolTimeoutError

    end = AttemptEnd(end.code, end.message.replace("HOME", str(tmp_path)), counts=end.counts)
    job_store.create_job("ftjob-a", spec={}, paths={}, fine_tuned_model="ft:m::ftjob-a", request_digest="d")
    attempt = job_store.claim(job_store.job("ftjob-a"), message="Starting")
    monkeypatch.setattr(driver, "Settings", lambda: Settings(home=tmp_path, database_url=job_store.url))
    monkeypatch.setattr(driver, "_run", fail)
    monkeypatch.setattr(driver, "end_of_attempt", lambda error: end)
    if not noted:
        monkeypatch.setattr(Fence, "note_end", away)
    with pytest.raises(SystemExit) as caught:
        driver.main("ftjob-a", attempt)
    assert caught.value.code == code
    job = job_store.job("ftjob-a")
    assert (job.state, job.error) == (State.RUNNING, None)
    told = AttemptEnd.from_json(job.attempt_end)
    assert (told is not None) == noted
    assert told is None or (told.counts == end.counts and str(tmp_path) not in told.message)
