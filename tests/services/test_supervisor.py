"""What `wmss serve` hands down to Ray and the API, what it refuses before it starts Ray, and a Ray head that does not
start."""

import os
import shutil
import subprocess
import sys

import pytest

from services.control.supervisor import MAX_RAY_STARTS, Supervisor, end_leftovers, free_port
from services.settings import MIN_FREE_BYTES, SUPERVISOR_PID, Settings
from wmss.errors import ConfigError


def test_children_use_the_database_of_the_supervisor(tmp_path, monkeypatch):
    monkeypatch.setenv("WMSS_DATABASE_URL", "postgresql+psycopg://user:secret@host/other")
    url = "postgresql+psycopg://user:secret@host/name"
    for database_url, expected in ((url, url), (None, f"sqlite:///{tmp_path}/wmss.db")):
        settings = Settings(home=tmp_path, database_url=database_url)
        environment = Supervisor(settings, host="127.0.0.1", port=8000)._environment(tmp_path / "token")
        assert environment["WMSS_DATABASE_URL"] == expected


def refused(home, **environment):
    """What `wmss serve` says that does not start: one line."""
    command = [sys.executable, "-m", "services.cli", "serve", "--home", str(home), "--port", str(free_port())]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1, run.stdout + run.stderr
    assert run.stderr.startswith("error ") and run.stderr.count("\n") == 1, run.stderr
    return run.stderr


def test_a_home_that_cannot_be_used_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    assert "--home" in refused(tmp_path / "file")
    (tmp_path / "home" / "lock").mkdir(parents=True)
    assert "(Is a directory); name a folder" in refused(tmp_path / "home")
    assert "/proc/x cannot be used" in refused("/proc/x")
    assert "(File name too long); name a folder" in refused(tmp_path / ("ü" * 200))


@pytest.mark.parametrize("query", ["", "?connect_timeout=2"])
def test_a_database_that_refuses_connections_is_said_before_ray_starts(tmp_path, query):
    url = f"postgresql+psycopg://user:se%2Fcret@127.0.0.1:{free_port()}/name{query}"
    said = refused(tmp_path / "home", WMSS_DATABASE_URL=url)
    assert said.startswith("error WMSS_DATABASE_URL: postgresql+psycopg://user:***@127.0.0.1:")
    assert "refused" in said and "start the database or correct the address" in said
    assert "cret" not in said
    assert not (tmp_path / "home" / "logs" / "ray.log").exists()


def test_a_full_disk_is_said_before_ray_starts_and_while_it_runs(tmp_path, monkeypatch, caplog):
    supervisor = Supervisor(Settings(home=tmp_path), host="127.0.0.1", port=8000)
    supervisor._prepare_home()
    supervisor._lock.close()
    supervisor._warn_of_full_disk()
    assert caplog.messages == []
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: real._replace(free=MIN_FREE_BYTES - 1))
    with pytest.raises(ConfigError, match=r"the disk of .* is full \(99 MB left, 100 needed\); free some space there"):
        supervisor._prepare_home()
    for _ in range(2):
        supervisor._warn_of_full_disk()
    assert len(caplog.messages) == 1 and "is full" in caplog.messages[0]


def test_what_a_killed_service_left_is_ended_and_nothing_else(tmp_path, caplog):
    """Two drivers must never feed one training run, and a shell that names the home is not the service's."""
    home, other = tmp_path / "h", tmp_path / "other"
    environments = {
        "left": {"WMSS_HOME": str(home), SUPERVISOR_PID: "1"},
        "shell": {"WMSS_HOME": str(home)},
        "elsewhere": {"WMSS_HOME": str(other), SUPERVISOR_PID: "1"},
    }
    started = {name: subprocess.Popen(["sleep", "60"], env=os.environ | extra) for name, extra in environments.items()}
    try:
        end_leftovers(home)
        assert started["left"].poll() is not None
        assert [started[name].poll() for name in ("shell", "elsewhere")] == [None, None]
        assert len(caplog.messages) == 1 and "ending 1 processes" in caplog.messages[0]
    finally:
        for process in started.values():
            process.kill()
            process.wait()


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
