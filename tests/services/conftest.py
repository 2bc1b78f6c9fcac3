"""The job database, a service without Ray, and commands against it.

Tests of what depends on the database (transactions, locks, retries) run on SQLite and PostgreSQL; the others, where the
same statements are asked through more layers, on SQLite, and with `--all-databases` on both.
"""

import shutil

import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from typer.testing import CliRunner

from services import cli
from services.api.app import create_app
from services.jobs.store import Store
from services.settings import Settings
from tests.services.scripted_ray import QuietRay, put_in_place_of_ray

ON_BOTH_DATABASES = {"test_engines", "test_lease", "test_reconcile", "test_store"}


def pytest_generate_tests(metafunc):
    if "database_url" in metafunc.fixturenames:
        name = metafunc.module.__name__.split(".")[-1]
        both = name in ON_BOTH_DATABASES or metafunc.config.getoption("all_databases")
        databases = ["sqlite", "postgresql"] if both else ["sqlite"]
        metafunc.parametrize("database_url", databases, indirect=True, scope="function")


@pytest.fixture
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


@pytest.fixture
def quiet_ray(monkeypatch):
    """Ray, as the API meets it, answers and starts nothing."""
    put_in_place_of_ray(monkeypatch, QuietRay())


@pytest.fixture
def serve(quiet_ray):
    """Makes a client of a service with given settings, with a quiet Ray."""
    return lambda settings: TestClient(create_app(settings), raise_server_exceptions=False)


@pytest.fixture
def home(tmp_path, checkpoints):
    for name in ("qwen3", "qwen3_other", "llama"):
        shutil.copytree(checkpoints[name], tmp_path / "models" / name)
    return tmp_path


@pytest.fixture
def api(home, database_url, serve):
    with serve(Settings(home=home, database_url=database_url)) as client:
        yield client


@pytest.fixture
def command(monkeypatch):
    """Runs `wmss` against a service in this process; returns what it printed."""

    def run(client, *arguments):
        api = OpenAI(base_url="http://testserver/v1", api_key="any", http_client=client, max_retries=0)
        monkeypatch.setattr("services.commands.client.connect", lambda base_url: api)
        monkeypatch.setattr(cli.console, "width", 160)
        result = CliRunner(env={"NO_COLOR": "1"}).invoke(cli.app, list(arguments))
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs `wmss` in a home of its own, without a service; returns what it printed."""
    monkeypatch.setenv("WMSS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("WMSS_BASE_URL", raising=False)

    def run(*arguments):
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.output

    return run
