"""What a driver tells the owner of a job, who may be on another machine."""

import warnings

from services.jobs.fence import Fence
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
