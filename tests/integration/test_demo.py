"""`wmss demo` as a user runs it: the table, the picture, nothing left behind; also when interrupted. What it prints at
the end is run as it stands, but for the port (another service may run here).

pytest -m slow tests/integration/test_demo.py
"""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from services.control.supervisor import free_port
from services.jobs.states import State
from services.jobs.store import Store
from services.settings import Settings
from tests.integration.stack import WMSS, processes_of, wait_for
from wmss.models.loading import load_model

pytestmark = [pytest.mark.slow, pytest.mark.stack, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("demo-home")


def left_behind(home):
    return [process for process in processes_of(home / "demo") if process.is_running()]


def follow_next_steps(printed, home, tmp_path):
    """Run the three commands that a demo printed; returns the model's answer."""
    commands = re.findall(r"^  (WMSS_HOME=.*)$", printed, flags=re.M)
    serve, chat, export = (command.replace("WMSS_HOME=", "exec env WMSS_HOME=", 1) for command in commands)
    assert serve.endswith(" serve")
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    options = {"cwd": tmp_path, "env": environment}
    server = subprocess.Popen(["bash", "-c", f"{serve} --port {free_port()}"], start_new_session=True, **options)
    try:
        wait_for((home / "demo" / "endpoint.json").is_file, timeout_s=120, what="the service")
        asked = subprocess.run(["bash", "-c", chat], capture_output=True, text=True, timeout=600, **options)
        assert asked.returncode == 0, asked.stdout + asked.stderr
        copied = subprocess.run(["bash", "-c", export], capture_output=True, text=True, timeout=60, **options)
        assert copied.returncode == 0, copied.stdout + copied.stderr
    finally:
        server.terminate()
        assert server.wait(120) == 0
    assert load_model(tmp_path / copied.stdout.strip()).num_parameters() > 10_000
    return asked.stdout


def test_demo_ends_with_its_table(home, tmp_path):
    environment = os.environ | {"WMSS_HOME": str(home)}
    run = subprocess.run([*WMSS, "demo"], env=environment, capture_output=True, text=True, timeout=1100)
    assert run.returncode == 0, run.stdout + run.stderr
    for row in ("base", "strong before", "+ plain fine-tuning", "+ WMSS"):
        assert f"\n{row}  " in run.stdout
    assert (home / "demo" / "demo.png").stat().st_size > 10_000
    assert "#### " in follow_next_steps(run.stdout, home, tmp_path)
    assert left_behind(home) == []


@pytest.mark.timeout(1800)
def test_demo_of_self_improvement_ends_with_a_table_for_each_setting(home, tmp_path):
    environment = os.environ | {"WMSS_HOME": str(home), "COLUMNS": "150"}
    command = [*WMSS, "demo", "--method", "self_improvement"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1700)
    assert run.returncode == 0, run.stdout + run.stderr
    for row in ("base", "easy to hard", "mixture", "hard only"):
        assert f"\n{row}  " in run.stdout
    for number in (1, 2):
        assert (home / "demo" / f"self-improvement-{number}.png").stat().st_size > 10_000
    assert re.fullmatch(r"n\d( n\d)*\n", follow_next_steps(run.stdout, home, tmp_path))
    assert left_behind(home) == []


def test_interrupted_demo_leaves_nothing(home):
    """Ctrl-C during training, as a terminal sends it: to the whole process group."""
    environment = os.environ | {"WMSS_HOME": str(home)}
    demo = subprocess.Popen([*WMSS, "demo"], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)
    wait_for(lambda: demo.stdout.readline().startswith("  sft:"), timeout_s=120, what="training")
    time.sleep(8)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(60) != 0
    demo.stdout.close()
    assert left_behind(home) == []
    store = Store(Settings(home=home / "demo").database)
    states = [job.state for job in store.active_jobs()]
    store.close()
    assert set(states) <= {State.CANCELLING}  # the next demo ends it and runs its own
