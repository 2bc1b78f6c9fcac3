"""Imports point one way: services -> rounds -> training, scoring -> data, models -> core; config, records, errors are
leaves. And what must stay light is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"wmss", "wmss.__version__", "wmss.config", "wmss.records", "wmss.errors", "wmss.units"}
ALLOWED = {
    "wmss.config": {"wmss.config", "wmss.errors"},
    "wmss.records": set(),
    "wmss.errors": set(),
    "wmss.units": set(),
    "wmss.core": {"wmss.core"},
    "wmss.theory": {"wmss.core", "wmss.theory"},
    "wmss.data": {"wmss.core", "wmss.data"},
    "wmss.models": {"wmss.core", "wmss.models"},
    "wmss.training": {"wmss.core", "wmss.data", "wmss.models", "wmss.training"},
    "wmss.verifiers": {"wmss.core", "wmss.data", "wmss.verifiers"},
    "wmss.scoring": {"wmss.core", "wmss.data", "wmss.models", "wmss.scoring", "wmss.verifiers"},
    "wmss.integrations": {"wmss.core", "wmss.models"},
    "wmss.tasks": {
        "wmss.core",
        "wmss.data",
        "wmss.models",
        "wmss.training",
        "wmss.scoring",
        "wmss.verifiers",
        "wmss.tasks",
    },
    "wmss.rounds": {
        "wmss.core",
        "wmss.theory",
        "wmss.data",
        "wmss.models",
        "wmss.training",
        "wmss.scoring",
        "wmss.verifiers",
        "wmss.rounds",
    },
}
FORBIDDEN_IN_LIBRARY = {"ray", "fastapi", "sqlalchemy", "alembic", "uvicorn", "openai", "typer", "services"}


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "wmss"}
    return names


def package_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


LIBRARY_FILES = sorted((ROOT / "wmss").rglob("*.py"))


@pytest.mark.parametrize("file", LIBRARY_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_point_one_way(file: Path):
    parts = file.relative_to(ROOT).with_suffix("").parts
    package = package_of(".".join(parts))
    if package == "wmss.__init__":
        return
    ours = {package_of(name) for name in imports_of(file) if name.split(".")[0] == "wmss"}
    allowed = ALLOWED[package] | (LEAVES if package not in LEAVES and package != "wmss.core" else set())
    assert ours <= allowed, f"{file.name} imports {ours - allowed}"


@pytest.mark.parametrize("file", LIBRARY_FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_library_knows_no_service(file: Path):
    roots = {name.split(".")[0] for name in imports_of(file)}
    assert not roots & FORBIDDEN_IN_LIBRARY
    if not file.name.startswith("vllm_"):
        assert "vllm" not in roots


def loaded_by(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(' '.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in run.stdout.split()}


def test_config_is_light():
    assert not loaded_by("import wmss.config") & {"torch", "ray", "vllm", "transformers", "fastapi", "sqlalchemy"}


def test_core_and_training_need_neither_ray_nor_vllm():
    modules = (
        "wmss.core.mixing, wmss.core.entropy, wmss.core.sample_weights, wmss.training.loop, wmss.scoring.torch_scorer"
    )
    assert not loaded_by(f"import {modules}") & {"ray", "vllm", "peft", "fastapi", "sqlalchemy"}


@pytest.mark.parametrize("module", ["services.cli", "services.api.app"])
def test_command_and_api_start_light(module):
    assert not loaded_by(f"import {module}") & {"torch", "ray", "vllm", "transformers"}


def test_a_running_job_knows_no_dry_run():
    importers = {
        str(file.relative_to(ROOT)) for file in LIBRARY_FILES if "wmss.rounds.before.dry_run" in imports_of(file)
    }
    assert importers == set()
