"""Every test that touches the job database runs on both databases that are supported."""

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """URL of a fresh, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    with request.getfixturevalue("postgres").database() as url:
        yield url
