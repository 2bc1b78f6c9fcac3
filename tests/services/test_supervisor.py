"""What `wmss serve` hands down to Ray and the API, and a Ray head that does not start."""

import subprocess
import sys

from services.control.supervisor import MAX_RAY_STARTS, Supervisor
from services.settings import Settings


def test_children_use_the_database_of_the_supervisor(tmp_path, monkeypatch):
    monkeypatch.setenv("WMSS_DATABASE_URL", "postgresql+psycopg://user:secret@host/other")
    url = "postgresql+psycopg://user:secret@host/name"
    for database_url, expected in ((url, url), (None, f"sqlite:///{tmp_path}/wmss.db")):
        settings = Settings(home=tmp_path, database_url=database_url)
        environment = Supervisor(settings, host="127.0.0.1", port=8000)._environment(tmp_path / "token")
        assert environment["WMSS_DATABASE_URL"] == expected


def start_heads(home, *attempts):
    command = [sys.executable, "-m", "tests.services.failing_ray_head", str(home), *attempts]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout == "0 attempts left, 0 processes left\n", run.stderr
    return run


def test_a_ray_head_that_ends_while_it_starts_is_started_again(tmp_path):
    run = start_heads(tmp_path, "ends", "starts")
    assert run.returncode == 0, run.stderr
    assert "the Ray head ended while starting (code 1)" in run.stderr
    assert f"starting it again (2 of {MAX_RAY_STARTS})" in run.stderr


def test_a_ray_head_that_never_starts_is_an_error(tmp_path):
    run = start_heads(tmp_path, *["ends"] * MAX_RAY_STARTS)
    assert run.returncode == 1
    assert "ServeError: the Ray head ended while starting" in run.stderr
