"""One running service for all integration tests of the session, and files to train on."""

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.integration.stack import ATTACH, PATIENCE, attach, start, stop
from wmss.tasks.arithmetic import make_problems, write_jsonl


def pytest_collection_modifyitems(items):
    """Longer than the deadlines in a test of a running service, so that these say what did not come."""
    for item in items:
        if item.get_closest_marker("stack") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(PATIENCE * 450))


@pytest.fixture(scope="session")
def stack(tmp_path_factory, request):
    if ATTACH in os.environ:
        yield attach(Path(os.environ[ATTACH]))
        return
    checkpoints = request.getfixturevalue("checkpoints")
    home = tmp_path_factory.mktemp("home")
    for name in ("qwen3", "qwen3_other"):
        shutil.copytree(checkpoints[name], home / "models" / name)
    # As in the image, which has no C++ compiler; the cache holds nothing that one made before.
    without_compiler = {"CXX": "no-compiler", "TORCHINDUCTOR_CACHE_DIR": str(home / "inductor")}
    # Engines of the two models stay from one job to the next; an idle one is evicted when its place is needed.
    engines = {"WMSS_MAX_ENGINES": "3", "WMSS_ENGINE_IDLE_S": "1800"}
    running = start(home, WMSS_CHAT_IDLE_S="20", **engines, **without_compiler)
    yield running
    stop(running, signal.SIGINT)  # as Ctrl-C does; the service on PostgreSQL is stopped by SIGTERM


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_jsonl(make_problems(96, seed=1), folder / "train.jsonl")
    write_jsonl(make_problems(16, seed=2), folder / "validation.jsonl")
    return folder
