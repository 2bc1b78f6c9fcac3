"""Every test that touches the job database runs on both databases that are supported."""

import pytest

from services.jobs.store import Store


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """URL of a fresh, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url


@pytest.fixture
def job_store(database_url):
    """The store on a fresh database."""
    store = Store(database_url)
    store.migrate()
    yield store
    store.close()
